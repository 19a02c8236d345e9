package worker

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/nearmiss/nearmiss/stream"
	"github.com/nearmiss/nearmiss/stream/internal/wait"
)

// learn turns the first frames of a detector without a release into normals,
// and asks for training when there are enough. It ends with ctx.
func (l *detectorRunner) learn(ctx, work context.Context) {
	for ctx.Err() == nil {
		conf, target, cur, changed := l.state()
		if conf.LearnFrames == 0 || target.Release != "" || cur != nil {
			wait.Any(ctx, changed)
			continue
		}
		if err := l.collect(ctx, work, conf); err != nil && ctx.Err() == nil {
			l.log.Warn().Err(err).Msg("cannot learn yet")
			wait.Pause(ctx, time.Second)
		}
	}
}

// collect takes frames until there are enough normals, then waits for the
// release that the training makes.
func (l *detectorRunner) collect(ctx, work context.Context, conf stream.Detector) error {
	step, cancel := context.WithTimeout(ctx, 10*time.Second)
	err := l.ensureConsumer(step)
	cancel()
	if err != nil {
		return err
	}
	ctx, cancel = l.w.epoch.Within(ctx)
	defer cancel()
	t, err := newTaker(l.w.nc, l.w.cfg.Names, l.w.cfg.FramesStream(), stream.FramesConsumer(l.name))
	if err != nil {
		return err
	}
	defer t.close()
	normals := l.w.in.Normals()
	for ctx.Err() == nil {
		if _, target, cur, _ := l.state(); target.Release != "" || cur != nil {
			return nil
		}
		have, err := normals.Count(ctx, l.name)
		if err != nil {
			return err
		}
		if have >= conf.LearnFrames {
			return l.requestTraining(ctx, work, conf, have)
		}
		msgs, failure := t.take(ctx, &l.pace, min(l.w.cfg.BatchSize, conf.LearnFrames-have))
		if len(msgs) > 0 {
			l.hold(msgs)
		}
		beat := l.beat(msgs)
		for _, m := range msgs {
			l.learnOne(work, normals, m)
			beat.Done(m)
		}
		beat.Stop()
		if have == 0 && len(msgs) > 0 { // the same notice from all workers that are there at the beginning
			l.notify(work, stream.Notice(stream.KindRelease, l.name, stream.NoCamera, "", stream.ReleaseLearning,
				fmt.Sprintf("the first %d frames are taken to be normal: no frame is judged until it has learnt from them", conf.LearnFrames), strconv.FormatUint(conf.Revision, 10)))
		}
		if failure != nil {
			return failure
		}
	}
	return nil
}

func (l *detectorRunner) learnOne(ctx context.Context, normals *stream.Normals, m jetstream.Msg) {
	it := l.read(m)
	if it == nil {
		return
	}
	if it.failure == nil {
		l.loadImage(ctx, it)
	}
	defer it.free()
	var perm *stream.PermanentError
	if it.failure == nil && len(it.frame.Image) == 0 {
		it.failure = stream.Permanent("empty", errors.New("the image has no bytes"))
	}
	if inspect := l.w.cfg.Inspect; it.failure == nil && inspect != nil {
		if code, reason := inspect(it.frame.Image); code != "" {
			it.failure = stream.Permanent(code, errors.New(reason))
		}
	}
	if errors.As(it.failure, &perm) {
		it.event, it.announce = rejectedEvent(it.frame, perm.Code, perm.Error()), true
		it.event.Bytes = it.bytes
		if ok, _ := l.publish(ctx, nil, []*frameTask{it}); len(ok) == 1 {
			l.finish(ctx, it)
			return
		}
	}
	if it.failure == nil {
		_, err := normals.Add(ctx, stream.Normal{
			Detector: l.name, ID: it.frame.Camera + "/" + it.frame.ID, Origin: "learned from the first frames",
			Source: it.frame.Source, Camera: it.frame.Camera, CapturedAt: it.frame.CapturedAt, Image: it.frame.Image,
		})
		if err == nil {
			l.w.count.learned.Add(1)
			l.w.cfg.Meter.Frames(l.name, FramesLearned, 1)
			if err := m.Ack(); err != nil {
				l.log.Debug().Err(err).Msg("acknowledgement failed: the frame will be retried")
			}
			return
		}
		it.failure = err
	}
	l.giveBack(it)
}

// requestTraining asks for training, once however many workers learn, and waits for the
// release. Frames wait in the queue meanwhile. Trainers try again by themselves
// what may succeed; what they give up is said, and asked for again when the
// configuration has changed.
func (l *detectorRunner) requestTraining(ctx, work context.Context, conf stream.Detector, have int) error {
	requested := ""
	for ctx.Err() == nil {
		now, target, cur, changed := l.state()
		if target.Release != "" || cur != nil {
			return nil
		}
		if now.Revision != 0 {
			conf = now
		}
		job, err := l.firstJob(ctx, conf, have)
		if err != nil {
			return err
		}
		if !job.Finished() {
			if requested != job.Job {
				requested = job.Job
				l.log.Info().Int("normals", have).Str("job", job.Job).Msg("learned enough: training is asked for, frames wait in the queue")
				l.notify(work, stream.Notice(stream.KindRelease, l.name, stream.NoCamera, "", stream.ReleaseLearned,
					fmt.Sprintf("%d normals are there: job %s makes the first release, and frames wait for it", have, job.Job), job.Job))
			}
			step, cancel := wait.Either(ctx, changed)
			_, err := l.w.jobs.Wait(step, job.Job, nil)
			gone := step.Err() != nil
			cancel()
			if err != nil && !gone {
				return err
			}
			continue
		}
		if !job.Promoted {
			why := fmt.Sprintf("job %s, the first training, was %s", job.Job, job.State)
			switch {
			case job.Error != "":
				why = fmt.Sprintf("job %s, the first training, failed: %s", job.Job, job.Error)
			case job.Held != "":
				why = fmt.Sprintf("job %s, the first training, made a release that is held back: %s", job.Job, job.Held)
			}
			why += fmt.Sprintf("; frames wait until the configuration of %s is corrected, or nearmiss train %s is asked for", l.name, l.name)
			l.log.Error().Msg(why)
			l.notify(work, stream.Notice(stream.KindRelease, l.name, stream.NoCamera, "", stream.ReleaseMissing, why, job.Job))
		}
		wait.Any(ctx, changed)
	}
	return nil
}

// firstJob is the training that the detector's first release is to come from:
// one that is under way, or the one of the learn phase.
func (l *detectorRunner) firstJob(ctx context.Context, conf stream.Detector, have int) (stream.Job, error) {
	all, err := l.w.jobs.List(ctx, l.name)
	if err != nil {
		return stream.Job{}, err
	}
	for _, j := range all {
		if !j.Finished() && !j.Derived() && j.Completes() == "" {
			return j, nil
		}
	}
	return l.w.jobs.Request(ctx, stream.LearnRequest(conf, have, "worker"))
}

// shed keeps the queue of a live detector short.
func (l *detectorRunner) shed(ctx context.Context) {
	for ctx.Err() == nil {
		conf, _, _, changed := l.state()
		if conf.Policy != stream.PolicyLive {
			wait.Any(ctx, changed)
			continue
		}
		n, err := l.w.in.Shed(ctx, l.name, "*", conf.LiveBacklog)
		if err != nil && ctx.Err() == nil {
			l.log.Debug().Err(err).Msg("cannot drop old frames")
		}
		if n > 0 {
			l.w.count.dropped.Add(n)
			l.w.cfg.Meter.Frames(l.name, FramesDropped, n)
			l.log.Warn().Uint64("frames", n).Msg("live detector is behind: old frames dropped")
		}
		wait.Pause(ctx, time.Second)
	}
}
