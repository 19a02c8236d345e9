package worker

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/cenkalti/backoff/v4"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/nearmiss/nearmiss/internal/redact"
	"github.com/nearmiss/nearmiss/stream"
	"github.com/nearmiss/nearmiss/stream/internal/object"
	"github.com/nearmiss/nearmiss/stream/internal/scan"
	"github.com/nearmiss/nearmiss/stream/internal/text"
	"github.com/nearmiss/nearmiss/stream/internal/wait"
)

// publish stores events and dead letters. It returns the frames whose publication
// is certain, and those to be tried again.
//
// That nothing can be stored is never the frame's fault: what is in hand is kept,
// and nothing new is taken, until the broker takes events again.
func (l *detectorRunner) publish(ctx context.Context, rel *loaded, items []*frameTask) (ok, failed []*frameTask) {
	type pending struct {
		it  *frameTask
		msg *nats.Msg
		ack jetstream.PubAckFuture
	}
	conf, _, _, _ := l.state()
	cool := time.Duration(conf.CoolDown)
	if cool == 0 {
		l.keepAll(ctx, items)
	}
	fail := func(it *frameTask, err error) {
		it.failure = err
		failed = append(failed, it)
	}
	var wait []*pending
	for _, it := range items {
		if !it.announce {
			ok = append(ok, it)
			continue
		}
		if it.event.Kind == stream.KindAnomaly {
			if announced, err := l.announced(ctx, rel, it); err != nil {
				fail(it, err)
				continue
			} else if announced {
				ok = append(ok, it)
				continue
			}
			if cool > 0 {
				var stored bool
				if err := l.insist(ctx, "event", func() (err error) { stored, err = l.coolDown(ctx, it, cool); return err }); err != nil {
					fail(it, err)
				} else {
					if it.announce = stored; stored {
						l.w.cfg.Meter.Stored(it.event.Kind)
					}
					ok = append(ok, it)
				}
				continue
			}
			if it.failure != nil { // its evidence could not be kept: ctx has ended
				failed = append(failed, it)
				continue
			}
		}
		m, err := it.event.Message(l.w.cfg.Names)
		if err != nil { // values that JSON cannot hold were refused before
			fail(it, stream.Permanent(stream.CodeInternal, err))
			continue
		}
		p := &pending{it: it, msg: m}
		if it.event.Kind == stream.KindRejected {
			dead := stream.DeadMessage(l.w.cfg.Names, it.msg.Subject(), l.w.cfg.FramesStream(), it.meta.Sequence.Stream, max(1, it.tried.Failed, it.tried.Died),
				it.msg.Headers(), it.msg.Data(), it.event.Code, it.event.Reason)
			if err := l.insist(ctx, "dead letter", func() error {
				within, cancel := l.w.epoch.Within(ctx)
				defer cancel()
				step, cancel := context.WithTimeout(within, 30*time.Second)
				defer cancel()
				return l.w.in.StoreDeadLetter(step, dead)
			}); err != nil {
				fail(it, err)
				continue
			}
		}
		if p.ack, err = l.w.js.PublishMsgAsync(m); err != nil {
			p.ack = nil // tried again below
		}
		wait = append(wait, p)
	}
	for _, p := range wait {
		if err := l.acked(ctx, p.ack, p.msg); err != nil {
			fail(p.it, fmt.Errorf("store event of frame %s: %w", p.it.frame.ID, err))
			continue
		}
		l.w.cfg.Meter.Stored(p.it.event.Kind)
		ok = append(ok, p.it)
	}
	return ok, failed
}

// insist does what must be done before a frame is: again and again until it
// succeeds, cannot ever, or ctx ends.
func (l *detectorRunner) insist(ctx context.Context, what string, do func() error) error {
	begin, logged := time.Now(), false
	err := stream.Retry(ctx, wait.Endless(100*time.Millisecond, time.Second), func() error {
		err := do()
		if stream.Retryable(err) && ctx.Err() == nil && !logged && time.Since(begin) > 5*time.Second {
			logged = true
			l.log.Warn().Err(err).Str("what", what).Msg("the broker does not store it: frames wait until it does")
		}
		return err
	})
	if logged && err == nil {
		l.log.Info().Str("what", what).Dur("after", time.Since(begin)).Msg("stored at last")
	}
	return err
}

// acked waits until an asynchronous publish is stored, or publishes again: the
// broker knows a message that it has by its id.
func (l *detectorRunner) acked(ctx context.Context, ack jetstream.PubAckFuture, m *nats.Msg) error {
	if ack != nil {
		within, cancel := l.w.epoch.Within(ctx)
		defer cancel()
		select {
		case <-ack.Ok():
			return nil
		case <-ack.Err():
		case <-within.Done():
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
	}
	return l.insist(ctx, "event", func() error {
		within, cancel := l.w.epoch.Within(ctx)
		defer cancel()
		step, cancel := context.WithTimeout(within, stream.PublishWait)
		defer cancel()
		again := nats.NewMsg(m.Subject)
		again.Header, again.Data = m.Header, m.Data
		_, err := l.w.js.PublishMsg(step, again)
		return err
	})
}

// announced says whether a frame that is here again has raised its event
// already, where the broker would not notice: the event ids it remembers have
// run out, or the release is another one now and the id with it.
func (l *detectorRunner) announced(ctx context.Context, rel *loaded, it *frameTask) (bool, error) {
	if it.deliveries <= 1 {
		return false, nil
	}
	if rel.pointer.PromotedAt.Before(it.meta.Timestamp) && time.Since(it.meta.Timestamp) < l.w.dupWindow()/2 {
		return false, nil
	}
	ctx, cancel := l.w.epoch.Within(ctx)
	defer cancel()
	announced := false
	start := it.meta.Timestamp
	err := scan.Run(ctx, l.w.js, l.w.cfg.EventsStream(), jetstream.OrderedConsumerConfig{
		FilterSubjects: []string{l.w.cfg.Events(it.frame.Detector, it.frame.Camera, stream.KindAnomaly)},
		DeliverPolicy:  jetstream.DeliverByStartTimePolicy, OptStartTime: &start, HeadersOnly: true,
	}, func(m jetstream.Msg, _ *jetstream.MsgMetadata) error {
		if stream.IsOfFrame(m.Headers(), it.frame) {
			announced = true
			return scan.ErrStop
		}
		return nil
	})
	if err != nil {
		return false, fmt.Errorf("find an earlier event of frame %s: %w", it.frame.ID, err)
	}
	return announced, nil
}

// keepAll keeps the evidence of a batch, several pieces at a time: each takes
// the broker several writes to the disk.
func (l *detectorRunner) keepAll(ctx context.Context, items []*frameTask) {
	var all sync.WaitGroup
	slots := make(chan struct{}, 8)
	for _, it := range items {
		if !it.announce || it.event.Kind != stream.KindAnomaly {
			continue
		}
		slots <- struct{}{}
		all.Go(func() {
			it.failure = l.keep(ctx, it)
			<-slots
		})
	}
	all.Wait()
}

// keep stores an anomaly's image as evidence, named by its content.
func (l *detectorRunner) keep(ctx context.Context, it *frameTask) error {
	l.locate(it)
	if conf, _, _, _ := l.state(); conf.NoEvidence {
		if it.place != nil {
			it.event.NoPictures = stream.NoPicturesPrivacy
			l.w.cfg.Meter.Pictures(stream.NoPicturesPrivacy)
		}
		return nil
	}
	begin := time.Now()
	defer func() { l.w.cfg.Meter.Stage(StageEvidence, time.Since(begin)) }()
	name := stream.EvidenceObjects + it.frame.Digest
	err := l.tryToKeep(ctx, func(step context.Context) error {
		if info, err := l.w.images.GetInfo(step, name); err == nil && info.Size == uint64(len(it.frame.Image)) {
			if l.w.whole(step, l.w.cfg.ImagesBucket(), info) == nil {
				return nil
			}
		}
		info, err := l.w.images.PutBytes(step, name, it.frame.Image)
		if err == nil {
			err = l.w.whole(step, l.w.cfg.ImagesBucket(), info)
		}
		return err
	})
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if err != nil { // the alarm is worth more than its picture
		it.event.NoPictures = stream.NoPicturesStorage
		l.w.cfg.Meter.Pictures(stream.NoPicturesStorage)
		l.log.Warn().Err(err).Str("camera", it.frame.Camera).Str("frame", it.frame.ID).Msg("the event goes without evidence")
		return l.show(ctx, it)
	}
	it.event.Evidence = l.w.cfg.ImagesBucket() + "/" + name
	return l.show(ctx, it)
}

// tryToKeep stores an object that an event can do without: for as long as the
// connection is away, and else for a few seconds.
func (l *detectorRunner) tryToKeep(ctx context.Context, put func(context.Context) error) error {
	var left time.Duration = keepTime
	return stream.Retry(ctx, wait.Patient(), func() error {
		within, cancel := l.w.epoch.Within(ctx)
		defer cancel()
		step, cancel := context.WithTimeout(within, 30*time.Second)
		defer cancel()
		begin := time.Now()
		err := put(step)
		if err != nil && l.w.nc.IsConnected() && within.Err() == nil {
			if left -= time.Since(begin) + time.Second; left <= 0 {
				return backoff.Permanent(err)
			}
		}
		return err
	})
}

// whole says whether the broker holds all chunks of an object: the client library
// does not always notice that one was refused (nats.go 1.55, obs.Put).
func (w *Worker) whole(ctx context.Context, bucket string, info *jetstream.ObjectInfo) error {
	s, err := w.js.Stream(ctx, object.StreamOf(bucket))
	if err != nil {
		return err
	}
	have, err := object.Stored(ctx, s, bucket, info)
	if err != nil {
		return err
	}
	if have != uint64(info.Chunks) {
		return fmt.Errorf("object %s: %d of %d chunks are stored: the store is full", text.Clip(info.Name), have, info.Chunks)
	}
	return nil
}

// keepTime is for how long evidence is tried to be kept while the broker is there.
const keepTime = 5 * time.Second

// finish sends a scored frame's score and acknowledges it. The score goes out
// first on the same connection: a frame that the broker counts as done has its
// score sent.
func (l *detectorRunner) finish(ctx context.Context, it *frameTask) {
	defer l.traced(it, nil)
	rejected := it.event != nil && it.event.Kind == stream.KindRejected
	switch {
	case it.again:
		l.w.count.repeated.Add(1)
	case rejected:
		l.w.count.rejected.Add(1)
		l.w.cfg.Meter.Frame(it.event, it.meta.Timestamp, it.taken)
		l.log.Warn().Str("camera", it.event.Camera).Str("frame", it.frame.ID).Str("code", it.event.Code).Str("reason", it.event.Reason).Msg("frame rejected")
	default:
		l.w.count.scored.Add(1)
		l.w.cfg.Meter.Frame(it.event, it.meta.Timestamp, it.taken)
		if *it.event.Anomalous {
			l.w.count.anomalies.Add(1)
		}
		l.sendScore(it.event)
	}
	l.w.recent.add(it.frame)
	defer l.forget(context.WithoutCancel(ctx), it)
	if it.frame.Object != "" && !rejected {
		// The object may go only when the frame cannot come again.
		step, cancel := context.WithTimeout(ctx, stream.PublishWait)
		defer cancel()
		if err := it.msg.DoubleAck(step); err != nil {
			l.log.Debug().Err(err).Str("frame", it.frame.ID).Msg("acknowledgement not confirmed")
			return
		}
		if err := l.w.large.Delete(step, it.frame.Object); err != nil && !errors.Is(err, jetstream.ErrObjectNotFound) {
			l.log.Warn().Err(err).Str("object", it.frame.Object).Msg("the frame's object stays until it is collected")
		}
		return
	}
	if err := it.msg.Ack(); err != nil {
		l.log.Debug().Err(err).Str("frame", it.frame.ID).Msg("acknowledgement failed: the frame will be retried")
	}
}

// sendScore publishes on core NATS: whoever listens gets it.
func (l *detectorRunner) sendScore(e *stream.Event) {
	s := *e
	s.Evidence, s.Pictures, s.NoPictures, s.Source = "", "", "", redact.Text(s.Source)
	data, err := json.Marshal(s)
	if err != nil {
		return
	}
	m := nats.NewMsg(l.w.cfg.Scores(e.Detector, e.Camera))
	m.Data = data
	if e.Truth != "" {
		m.Header.Set(stream.HeaderTruth, e.Truth)
	}
	if e.Trace != "" {
		m.Header.Set(stream.HeaderTrace, e.Trace)
	}
	if err := l.w.nc.PublishMsg(m); err != nil {
		l.log.Debug().Err(err).Msg("score not sent")
	}
}

// giveBack has a frame delivered again later. A bare Nak would spend all its
// deliveries at once. What can neither be handled nor reported, ever, is dropped
// with a line in the log.
func (l *detectorRunner) giveBack(it *frameTask) {
	l.traced(it, it.failure)
	if _, ok := errors.AsType[*stream.PermanentError](it.failure); ok || it.failure != nil && it.announce && !stream.Retryable(it.failure) && !errors.Is(it.failure, context.Canceled) {
		l.log.Error().Err(it.failure).Str("camera", it.frame.Camera).Str("frame", it.frame.ID).Msg("the frame can neither be handled nor reported: it is dropped")
		if err := it.msg.Term(); err != nil {
			l.log.Debug().Err(err).Str("frame", it.frame.ID).Msg("the frame will be retried when its acknowledgement times out")
		}
		return
	}
	l.w.count.retried.Add(1)
	l.w.cfg.Meter.Frames(l.name, FramesRetried, 1)
	delay := min(l.w.cfg.RetryDelay<<min(max(it.tried.Failed-1, 0), 6), time.Minute)
	l.log.Warn().Err(it.failure).Str("camera", it.frame.Camera).Str("frame", it.frame.ID).Int("delivery", it.deliveries).
		Dur("again_in", delay).Msg("frame not handled")
	if err := it.msg.NakWithDelay(delay); err != nil {
		l.log.Debug().Err(err).Str("frame", it.frame.ID).Msg("the frame will be retried when its acknowledgement times out")
	}
}
