package worker

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/nearmiss/nearmiss/stream"
	"github.com/nearmiss/nearmiss/stream/internal/pull"
	"github.com/nearmiss/nearmiss/stream/internal/wait"
)

// moveDeadLetters moves frames that were delivered too often to the dead letters: the
// server leaves them in the queue, where nobody sees them. It works from the stored
// advisories, so that none is missed while no process runs.
func (w *Worker) moveDeadLetters(ctx context.Context) {
	for ctx.Err() == nil {
		err := w.followAdvisories(ctx)
		if err != nil && ctx.Err() == nil {
			w.log.Warn().Err(err).Str("stream", w.cfg.FramesStream()).Msg("dead letters wait")
			wait.Pause(ctx, time.Second)
		}
	}
}

func (w *Worker) followAdvisories(ctx context.Context) error {
	queue := w.cfg.FramesStream()
	cons, err := w.js.CreateOrUpdateConsumer(ctx, w.cfg.DeadStream(), jetstream.ConsumerConfig{
		Durable: "advisories-" + queue, Description: "moves what was delivered too often to the dead letters",
		FilterSubject: stream.AdvisoryMaxDeliver + queue + ".*", AckPolicy: jetstream.AckExplicitPolicy,
		AckWait: 30 * time.Second, MaxAckPending: 64,
	})
	if err != nil {
		return err
	}
	for ctx.Err() == nil {
		msgs, err := pull.Fetch(ctx, cons, 16)
		if err != nil {
			return err
		}
		for _, m := range msgs {
			if err := w.moveDeadLetter(ctx, m); err != nil {
				_ = m.NakWithDelay(time.Second)
				return err
			}
			if err := m.DoubleAck(ctx); err != nil {
				return err
			}
			if meta, err := m.Metadata(); err == nil {
				// The advisory has served; only the dead letter is kept.
				if s, err := w.js.Stream(ctx, w.cfg.DeadStream()); err == nil {
					_ = s.DeleteMsg(ctx, meta.Sequence.Stream)
				}
			}
		}
	}
	return nil
}

// moveDeadLetter rejects the frame that an advisory is about, and then moves it.
func (w *Worker) moveDeadLetter(ctx context.Context, advisory jetstream.Msg) error {
	var a struct {
		StreamSeq  uint64 `json:"stream_seq"`
		Deliveries int    `json:"deliveries"`
	}
	if err := json.Unmarshal(advisory.Data(), &a); err != nil || a.StreamSeq == 0 {
		w.log.Warn().Str("subject", advisory.Subject()).Msg("advisory cannot be understood")
		return nil
	}
	s, err := w.js.Stream(ctx, w.cfg.FramesStream())
	if err != nil {
		return err
	}
	raw, err := s.GetMsg(ctx, a.StreamSeq)
	if errors.Is(err, jetstream.ErrMsgNotFound) {
		return nil // acknowledged late, after all
	}
	if err != nil {
		return err
	}
	reason := fmt.Sprintf("delivered %d times and never acknowledged: the process that handled it died or was too slow each time", a.Deliveries)
	m := stream.DeadMessage(w.cfg.Names, raw.Subject, w.cfg.FramesStream(), raw.Sequence, a.Deliveries, raw.Header, raw.Data, stream.CodeMaxDeliveries, reason)
	if err := w.rejectRaw(ctx, raw, reason); err != nil {
		return err
	}
	if err := w.in.StoreDeadLetter(ctx, m); err != nil {
		return err
	}
	w.log.Warn().Str("subject", raw.Subject).Uint64("sequence", raw.Sequence).Int("deliveries", a.Deliveries).Msg("moved to the dead letters")
	if err := s.DeleteMsg(ctx, raw.Sequence); err != nil && !errors.Is(err, jetstream.ErrMsgNotFound) {
		if api, ok := errors.AsType[*jetstream.APIError](err); ok && api.Code == 404 {
			return nil
		}
		return err
	}
	return nil
}

// rejectRaw stores the event of a frame that is moved.
func (w *Worker) rejectRaw(ctx context.Context, raw *jetstream.RawStreamMsg, reason string) error {
	meta := &jetstream.MsgMetadata{Timestamp: raw.Time, Sequence: jetstream.SequencePair{Stream: raw.Sequence}}
	f, _ := stream.ParseFrame(w.cfg.Names, raw.Subject, raw.Header, raw.Data, meta, time.Unix(0, w.created.Load()))
	if f.Detector == "" || f.Camera == "" {
		return nil
	}
	return w.in.StoreEvent(ctx, rejectedEvent(f, stream.CodeMaxDeliveries, reason))
}
