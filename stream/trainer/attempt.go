package trainer

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/nearmiss/nearmiss/stream"
	"github.com/nearmiss/nearmiss/stream/internal/pull"
	"github.com/nearmiss/nearmiss/stream/internal/text"
	"github.com/nearmiss/nearmiss/stream/internal/wait"
	"github.com/nearmiss/nearmiss/stream/registry"
)

// maxTries ends a job whose record cannot be kept.
const maxTries = 1000

// handle sees one job to its end, or gives it back.
func (w *Worker) handle(ctx context.Context, m jetstream.Msg) {
	beat := pull.Beat(w.cfg.AckWait/3, []jetstream.Msg{m})
	defer beat.Stop()
	req, err := stream.ParseTrainRequest(m.Data())
	if err == nil && m.Subject() != w.cfg.Train(req.Detector) {
		err = fmt.Errorf("it asks for detector %s on subject %s: %w", req.Detector, m.Subject(), stream.ErrBadMessage)
	}
	if err != nil {
		w.toDeadLetters(ctx, m, nil, stream.CodeBadRequest, fmt.Errorf("training request: %w", err))
		return
	}
	log := w.log.With().Str("detector", req.Detector).Str("job", req.Job).Logger()
	job, err := w.begin(ctx, m, req)
	if err != nil {
		if ctx.Err() == nil {
			log.Warn().Err(err).Msg("cannot record the job: it will be retried")
		}
		_ = m.NakWithDelay(time.Second)
		return
	}
	switch {
	case job.Finished():
		_ = m.Ack()
		return
	case job.Cancel:
		w.end(ctx, m, job, func(j *stream.Job) { j.State = stream.JobCancelled }, "cancelled before it began")
		return
	case job.Attempts > w.cfg.MaxAttempts:
		reason := cmp.Or(job.Error, "its trainer died each time")
		w.toDeadLetters(ctx, m, &job, stream.CodeTraining, fmt.Errorf("%d attempts without a new checkpoint: %s", job.Attempts-1, reason))
		return
	}
	log.Info().Int("attempt", job.Attempts).Str("reason", req.Reason).Msg("job taken")
	begin := time.Now()
	w.cfg.Meter.Took(req.Detector, req.Kind())
	result := JobGivenBack
	defer func() { w.cfg.Meter.Ended(req.Detector, req.Kind(), result, time.Since(begin)) }()

	run, stop := context.WithCancelCause(ctx)
	var watch sync.WaitGroup
	taken := job // work changes it
	watch.Go(func() { w.watchCancel(run, taken, stop) })
	job, err = w.work(run, job)
	cause := context.Cause(run)
	stop(nil)
	watch.Wait()

	var perm *stream.PermanentError
	switch {
	case err == nil:
		result = stream.JobDone
		w.end(ctx, m, job, func(j *stream.Job) {
			j.State, j.Release, j.Promoted, j.Held, j.Notes = stream.JobDone, job.Release, job.Promoted, job.Held, job.Notes
			j.Error, j.Code = "", ""
		}, "done")
	case errors.Is(cause, errTakenOver), errors.Is(err, errTakenOver):
		result = JobTakenOver
		log.Warn().Msg("job lost: another trainer has taken it over")
	case errors.Is(cause, errJobCancelled):
		result = stream.JobCancelled
		w.end(ctx, m, job, func(j *stream.Job) { j.State = stream.JobCancelled }, "cancelled")
	case ctx.Err() != nil:
		log.Info().Msg("job given back: this trainer stops")
		w.release(ctx, m, job, 0, "", false)
	case errors.As(err, &perm):
		result = stream.JobFailed
		w.toDeadLetters(ctx, m, &job, perm.Code, perm)
	case job.Attempts >= w.cfg.MaxAttempts:
		result = stream.JobFailed
		w.toDeadLetters(ctx, m, &job, stream.CodeTraining, fmt.Errorf("%d attempts without a new checkpoint: %w", job.Attempts, err))
	default:
		delay := min(w.cfg.RetryDelay<<min(max(job.Attempts-1, 0), 7), 10*time.Minute)
		log.Warn().Err(err).Int("attempt", job.Attempts).Dur("again_in", delay).Msg("job failed")
		w.release(ctx, m, job, delay, err.Error(), true)
	}
}

// begin records that an attempt begins, before it can do harm.
func (w *Worker) begin(ctx context.Context, m jetstream.Msg, req stream.TrainRequest) (stream.Job, error) {
	if meta, err := m.Metadata(); err == nil && meta.NumDelivered > maxTries {
		return stream.Job{TrainRequest: req, State: stream.JobQueued, Attempts: maxTries}, nil
	}
	if _, err := w.jobs.Create(ctx, stream.Job{TrainRequest: req, State: stream.JobQueued}); err != nil && !errors.Is(err, stream.ErrConflict) {
		return stream.Job{}, err
	}
	return w.jobs.Update(ctx, req.Job, func(j *stream.Job) error {
		if j.Finished() || j.Cancel {
			return nil
		}
		j.State, j.Trainer = stream.JobRunning, w.cfg.Name
		j.Attempts++
		if j.StartedAt.IsZero() {
			j.StartedAt = time.Now().UTC()
		}
		return nil
	})
}

// work does one attempt. An extension of a release that was replaced meanwhile
// would undo what replaced it: it is made again.
func (w *Worker) work(ctx context.Context, job stream.Job) (stream.Job, error) {
	for {
		done, err := w.attempt(ctx, job)
		if !errors.Is(err, registry.ErrConflict) || ctx.Err() != nil {
			return done, err
		}
		w.log.Info().Str("job", job.Job).Msg("the active release was replaced meanwhile: trying again")
		if job, err = w.jobs.Update(ctx, job.Job, func(j *stream.Job) error {
			j.Release = ""
			return w.mine(j)
		}); err != nil {
			return done, err
		}
	}
}

func (w *Worker) attempt(ctx context.Context, job stream.Job) (done stream.Job, err error) {
	done = job
	// An earlier attempt may have died between storing the release and saying
	// so. One that was made from another release goes only into that one's place;
	// without a record of which that was it is made again.
	if job.Release != "" && (!job.Derived() || job.Base != "") {
		if _, err := w.registry.Show(ctx, job.Release); err == nil {
			return w.promote(ctx, done)
		}
	}
	if job.Completes() != "" {
		if _, done.Held, err = w.outrun(ctx, job); err != nil || done.Held != "" {
			return done, err
		}
	}
	dir, remove, err := scratch(w.cfg.ScratchDir)
	if err != nil {
		return done, fmt.Errorf("make a scratch folder: %w", err)
	}
	defer remove()
	task, err := w.prepare(ctx, job, dir)
	if err != nil {
		return done, err
	}
	defer task.close()
	done.Normals, done.DataDigest, done.LastNormal = task.Count, task.DataDigest, task.lastNormal
	done.K, done.FalseAlarmRate = task.Detector.K, task.Detector.FalseAlarmRate
	done.Skipped = 0
	for _, n := range task.Skipped {
		if !n.Anomaly {
			done.Skipped++
		}
	}
	// Also of a job that fails: it is what the next one is asked for after.
	if done.Base, done.Release = "", ""; job.Derived() {
		done.Base = task.ActiveID
	}
	if _, err := w.jobs.Update(ctx, job.Job, func(j *stream.Job) error {
		j.Base, j.Release, j.K, j.FalseAlarmRate = done.Base, "", done.K, done.FalseAlarmRate
		j.Normals, j.DataDigest, j.LastNormal, j.Skipped = done.Normals, done.DataDigest, done.LastNormal, done.Skipped
		return w.mine(j)
	}); err != nil {
		return done, err
	}
	task.Report(stream.Progress{Phase: "begin", Message: fmt.Sprintf("%d normal images", task.Count)})

	res, err := w.train(ctx, task)
	if now, gerr := w.jobs.Get(ctx, job.Job); gerr == nil {
		done.Attempts = now.Attempts // checkpoints begin a new count
	}
	if err != nil {
		return done, err
	}
	if done.Notes, done.Without = res.Notes, res.Without; done.Without != "" {
		done.Notes = append(done.Notes, fmt.Sprintf("it was made without %s, to be there soon; job %s makes one with all of that", done.Without, stream.WholeRequest(done, "").Job))
	}
	if done.Held = res.Hold; res.Dir == "" {
		return done, nil
	}
	if done.Release, err = registry.Digest(res.Dir); err != nil {
		return done, stream.Permanent(stream.CodeTraining, fmt.Errorf("the trainer's release: %w", err))
	}
	if _, err := w.jobs.Update(ctx, job.Job, func(j *stream.Job) error {
		j.Release, j.Held, j.Notes, j.Without = done.Release, done.Held, done.Notes, done.Without
		return w.mine(j)
	}); err != nil {
		return done, err
	}
	task.Report(stream.Progress{Phase: "store", Message: "release " + text.Short(done.Release)})
	if _, err := w.registry.Put(ctx, job.Detector, res.Dir); err != nil {
		return done, err
	}
	return w.promote(ctx, done)
}

// train calls the trainer. A panic is a failed attempt, and so is a trainer
// that does not stop in time: it is left behind.
func (w *Worker) train(ctx context.Context, task *Task) (Result, error) {
	type outcome struct {
		res Result
		err error
	}
	out := make(chan outcome, 1)
	go func() {
		var o outcome
		defer func() {
			if p := recover(); p != nil {
				o.err = fmt.Errorf("train %s: panic: %v", task.Request.Detector, p)
			}
			out <- o
		}()
		switch {
		case task.Request.Readjust:
			o.res, o.err = w.trainer.Readjust(ctx, task)
		case len(task.Request.Extend) > 0 && task.Count == 0:
			o.res.Hold = "the images have been removed from the training set meanwhile"
		case len(task.Request.Extend) > 0:
			o.res, o.err = w.trainer.Extend(ctx, task)
		case len(task.Request.Retract) > 0:
			o.res, o.err = w.trainer.Retract(ctx, task)
		default:
			o.res, o.err = w.trainer.Train(ctx, task)
		}
	}()
	select {
	case o := <-out:
		return o.res, o.err
	case <-ctx.Done():
	}
	select {
	case o := <-out:
		return o.res, o.err
	case <-time.After(w.cfg.Drain):
		return Result{}, fmt.Errorf("train %s: it did not stop within %v", task.Request.Detector, w.cfg.Drain)
	}
}

// promote makes a job's release active if it was asked for and allowed. One that
// was made from another release must find that one active.
func (w *Worker) promote(ctx context.Context, job stream.Job) (stream.Job, error) {
	if !job.Promote || job.Held != "" {
		return job, nil
	}
	if job.Without != "" {
		// An attempt that asked for the second job had promoted this one: by now that job, or
		// an operator, may have replaced it.
		switch _, err := w.jobs.Get(ctx, stream.WholeRequest(job, "").Job); {
		case err == nil:
			job.Promoted = true
			return job, nil
		case !errors.Is(err, stream.ErrNotFound) && !errors.Is(err, stream.ErrBadMessage):
			return job, err
		}
	}
	for {
		expect, why, err := w.outrun(ctx, job)
		if err != nil || why != "" {
			job.Held = why
			return job, err
		}
		_, err = w.registry.Promote(ctx, job.Detector, job.Release, registry.Change{By: w.cfg.Name, Reason: promotedBy + job.Job, Expect: expect})
		if errors.Is(err, registry.ErrConflict) && job.Base == "" && ctx.Err() == nil {
			continue // whoever was faster
		}
		if err != nil {
			return job, err
		}
		job.Promoted = true
		if err := w.catchUp(ctx, job); err != nil || job.Without == "" {
			return job, err
		}
		_, err = w.jobs.Request(ctx, stream.WholeRequest(job, w.cfg.Name))
		return job, err
	}
}

// outrun says why a trained release does not replace what is active: a job that was asked
// for later has learned newer normals, and another trainer had it done sooner; or it is for
// the place of a first release, where another one is. Else expect is what it replaces, where
// that must be one.
func (w *Worker) outrun(ctx context.Context, job stream.Job) (expect, why string, err error) {
	first := job.Completes()
	if job.Derived() || job.Force && first == "" {
		return job.Base, "", nil
	}
	active, err := w.registry.Active(ctx, job.Detector)
	if errors.Is(err, registry.ErrNoRelease) && first != "" { // a detector of that name may be learning anew
		return "", fmt.Sprintf("the first release does not serve any more, since detector %s was deleted meanwhile", job.Detector), nil
	}
	if errors.Is(err, registry.ErrNoRelease) || errors.Is(err, registry.ErrCorrupt) {
		return "", "", nil
	}
	if err != nil {
		return "", "", err
	}
	if first != "" {
		ours, err := w.madeFrom(ctx, active, first)
		if err == nil && !ours && active.Release != job.Release {
			why = fmt.Sprintf("release %s was made active by %s meanwhile; nearmiss train %s makes one in its place",
				text.Short(active.Release), cmp.Or(text.Clip(active.By), "somebody"), job.Detector)
		}
		return active.Release, why, err
	}
	all, err := w.jobs.List(ctx, job.Detector)
	if err != nil {
		return "", "", err
	}
	for _, j := range all {
		// One that has just taken over has not said so yet.
		if (j.Promoted || j.Release == active.Release) && !j.Derived() && j.At.After(job.At) && j.LastNormal > job.LastNormal {
			return "", fmt.Sprintf("job %s, which was asked for later and has newer normals, took over meanwhile; nearmiss releases %s promote %s replaces it all the same",
				j.Job, job.Detector, text.Short(job.Release)), nil
		}
	}
	return "", "", nil
}

// madeFrom says whether what is active is the release of the job first, or was made from it
// by others. It asks for one record after the other, each as it is now.
func (w *Worker) madeFrom(ctx context.Context, p registry.Pointer, first string) (bool, error) {
	j, err := w.jobs.Get(ctx, first)
	for err == nil && p.Release != j.Release {
		var by stream.Job
		if by, err = w.jobs.Get(ctx, strings.TrimPrefix(p.Reason, promotedBy)); err == nil && (!by.Derived() || by.Release != p.Release) {
			return false, nil
		}
		if err == nil {
			p, err = w.registry.Before(ctx, p)
		}
	}
	if errors.Is(err, stream.ErrNotFound) || errors.Is(err, registry.ErrNoPrevious) {
		return false, nil
	}
	return err == nil, err
}

// promotedBy is what the reason of a promotion by a job begins with.
const promotedBy = "job "

// catchUp brings into a newly trained release what operators have called normal
// while it was trained: the release that it replaces had that already.
func (w *Worker) catchUp(ctx context.Context, job stream.Job) error {
	if err := w.retractLate(ctx, job); err != nil || job.Derived() {
		return err
	}
	if err := w.overtaken(ctx, job); err != nil {
		return err
	}
	var late []uint64
	if _, err := w.normals.Replay(ctx, job.Detector, false, false, func(n stream.Normal) error {
		if n.Sequence > job.LastNormal && strings.HasPrefix(n.ID, feedbackID) {
			late = append(late, n.Sequence)
		}
		return nil
	}); err != nil || len(late) == 0 {
		return err
	}
	_, err := w.jobs.Request(ctx, stream.TrainRequest{
		Job: "late-" + job.Detector + "-" + text.Short(job.Release), Detector: job.Detector, Extend: late, Promote: true,
		By: w.cfg.Name, Reason: fmt.Sprintf("%d frames were confirmed normal during job %s", len(late), job.Job),
	})
	return err
}

var (
	errJobCancelled = errors.New("the job was cancelled")
	errTakenOver    = errors.New("another trainer has taken the job over")
)

// mine says whether this trainer still has the job: one that gave no sign of
// life for too long has lost it, and must not touch it any more.
func (w *Worker) mine(j *stream.Job) error {
	if j.Trainer != w.cfg.Name {
		return stream.Permanent(stream.CodeConflict, fmt.Errorf("job %s: %w (%s)", j.Job, errTakenOver, j.Trainer))
	}
	return nil
}

// watchCancel stops a job when its record says so.
func (w *Worker) watchCancel(ctx context.Context, job stream.Job, stop context.CancelCauseFunc) {
	revision := job.Revision
	for ctx.Err() == nil {
		step, cancel := context.WithTimeout(ctx, 5*time.Second)
		if err := w.jobs.Changed(step, job.Job, revision); err != nil {
			wait.Pause(step, time.Second)
		}
		cancel()
		j, err := w.jobs.Get(ctx, job.Job)
		if err != nil {
			continue
		}
		revision = j.Revision
		switch {
		case j.Cancel:
			stop(errJobCancelled)
			return
		case j.Trainer != w.cfg.Name:
			stop(errTakenOver)
			return
		}
	}
}

// lasting is a context for what must be said even when ctx has ended.
func (w *Worker) lasting(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.WithoutCancel(ctx), w.cfg.Drain)
}

// end records a job's end and takes it out of the queue.
func (w *Worker) end(ctx context.Context, m jetstream.Msg, job stream.Job, change func(*stream.Job), how string) {
	ctx, cancel := w.lasting(ctx)
	defer cancel()
	var final stream.Job
	err := stream.Retry(ctx, wait.Brief(), func() (err error) {
		final, err = w.jobs.Update(ctx, job.Job, func(j *stream.Job) error {
			change(j)
			j.FinishedAt = time.Now().UTC()
			if j.Progress != nil {
				j.Progress.State = j.State
			}
			return nil
		})
		return err
	})
	if err != nil {
		w.log.Warn().Err(err).Str("job", job.Job).Msg("cannot record the job's end: it will be retried")
		_ = m.NakWithDelay(time.Second)
		return
	}
	if final.Checkpoint != "" {
		_ = w.artifacts.Delete(ctx, final.Checkpoint)
	}
	if err := m.DoubleAck(ctx); err != nil {
		w.log.Debug().Err(err).Str("job", job.Job).Msg("acknowledgement not confirmed")
	}
	w.reportProgress(stream.Progress{Job: job.Job, Detector: job.Detector, Phase: "end", State: final.State, Message: how, At: time.Now().UTC()})
	e := w.log.Info()
	if final.State == stream.JobFailed {
		e = w.log.Error().Str("error", final.Error)
	}
	e.Str("detector", job.Detector).Str("job", job.Job).Str("state", final.State).Str("release", text.Short(final.Release)).
		Bool("promoted", final.Promoted).Str("held", final.Held).Msg("job ended")
}

// release gives a job back to the queue. An attempt that ended because this
// trainer stops does not count.
func (w *Worker) release(ctx context.Context, m jetstream.Msg, job stream.Job, delay time.Duration, why string, counts bool) {
	ctx, cancel := w.lasting(ctx)
	defer cancel()
	if _, err := w.jobs.Update(ctx, job.Job, func(j *stream.Job) error {
		j.State, j.Error = stream.JobQueued, why
		if !counts {
			j.Attempts = max(j.Attempts-1, 0)
		}
		return w.mine(j)
	}); err != nil {
		w.log.Warn().Err(err).Str("job", job.Job).Msg("cannot record that the job goes back")
	}
	if err := m.NakWithDelay(max(delay, 100*time.Millisecond)); err != nil {
		w.log.Debug().Err(err).Str("job", job.Job).Msg("the job will be retried when its acknowledgement times out")
	}
}

// toDeadLetters moves a job to the dead letters.
func (w *Worker) toDeadLetters(ctx context.Context, m jetstream.Msg, job *stream.Job, code string, why error) {
	ctx, cancel := w.lasting(ctx)
	defer cancel()
	if err := w.storeDeadLetter(ctx, m, w.cfg.TrainingStream(), code, why); err != nil {
		w.log.Warn().Err(err).Msg("dead letter not stored: the job will be retried")
		_ = m.NakWithDelay(time.Second)
		return
	}
	if job == nil {
		w.log.Error().Err(why).Str("subject", m.Subject()).Msg("training request refused")
		_ = m.Ack()
		return
	}
	w.end(ctx, m, *job, func(j *stream.Job) { j.State, j.Code, j.Error = stream.JobFailed, code, why.Error() }, why.Error())
}

// storeDeadLetter stores a copy of a message of a queue.
func (w *Worker) storeDeadLetter(ctx context.Context, m jetstream.Msg, queue, code string, why error) error {
	meta, err := m.Metadata()
	if err != nil {
		return err
	}
	dead := stream.DeadMessage(w.cfg.Names, m.Subject(), queue, meta.Sequence.Stream, int(meta.NumDelivered), m.Headers(), m.Data(), code, why.Error())
	return stream.Retry(ctx, wait.Brief(), func() error { return w.in.StoreDeadLetter(ctx, dead) })
}

// reportProgress publishes progress on core NATS.
func (w *Worker) reportProgress(p stream.Progress) {
	data, err := json.Marshal(p)
	if err != nil {
		return
	}
	if err := w.nc.Publish(w.cfg.Progress(p.Detector, p.Job), data); err != nil {
		w.log.Debug().Err(err).Msg("progress not sent")
	}
}
