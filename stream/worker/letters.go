package worker

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"github.com/rs/zerolog"

	"github.com/nearmiss/nearmiss/stream"
	"github.com/nearmiss/nearmiss/stream/internal/pull"
	"github.com/nearmiss/nearmiss/stream/internal/wait"
)

// deadLetterMover moves what exceeded its deliveries from a work queue to the dead
// letters: the server leaves such messages in the stream, where nobody sees
// them. It works from the stored advisories, so that none is missed while no
// process runs.
type deadLetterMover struct {
	in  *stream.Installation
	js  jetstream.JetStream
	log zerolog.Logger
	// moved is called with each message before it is removed; an error leaves it
	// for later.
	moved func(ctx context.Context, m *jetstream.RawStreamMsg, d stream.DeadLetter) error
}

// run handles the advisories about one work queue until ctx ends.
func (u *deadLetterMover) run(ctx context.Context, queue string) {
	for ctx.Err() == nil {
		err := u.work(ctx, queue)
		if err != nil && ctx.Err() == nil {
			u.log.Warn().Err(err).Str("stream", queue).Msg("dead letters wait")
			wait.Pause(ctx, time.Second)
		}
	}
}

func (u *deadLetterMover) work(ctx context.Context, queue string) error {
	cons, err := u.js.CreateOrUpdateConsumer(ctx, u.in.Names().DeadStream(), jetstream.ConsumerConfig{
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
			if err := u.move(ctx, queue, m); err != nil {
				_ = m.NakWithDelay(time.Second)
				return err
			}
			if err := m.DoubleAck(ctx); err != nil {
				return err
			}
			if meta, err := m.Metadata(); err == nil {
				// The advisory has served; only the dead letter is kept.
				if s, err := u.js.Stream(ctx, u.in.Names().DeadStream()); err == nil {
					_ = s.DeleteMsg(ctx, meta.Sequence.Stream)
				}
			}
		}
	}
	return nil
}

func (u *deadLetterMover) move(ctx context.Context, queue string, advisory jetstream.Msg) error {
	var a struct {
		StreamSeq  uint64 `json:"stream_seq"`
		Deliveries int    `json:"deliveries"`
	}
	if err := json.Unmarshal(advisory.Data(), &a); err != nil || a.StreamSeq == 0 {
		u.log.Warn().Str("subject", advisory.Subject()).Msg("advisory cannot be understood")
		return nil
	}
	s, err := u.js.Stream(ctx, queue)
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
	m := stream.DeadMessage(u.in.Names(), raw.Subject, queue, raw.Sequence, a.Deliveries, raw.Header, raw.Data, stream.CodeMaxDeliveries, reason)
	if u.moved != nil {
		if err := u.moved(ctx, raw, stream.ParseDeadLetter(0, time.Now().UTC(), m.Header, m.Data)); err != nil {
			return err
		}
	}
	if err := u.in.StoreDeadLetter(ctx, m); err != nil {
		return err
	}
	u.log.Warn().Str("subject", raw.Subject).Uint64("sequence", raw.Sequence).Int("deliveries", a.Deliveries).Msg("moved to the dead letters")
	if err := s.DeleteMsg(ctx, raw.Sequence); err != nil && !errors.Is(err, jetstream.ErrMsgNotFound) {
		if api, ok := errors.AsType[*jetstream.APIError](err); ok && api.Code == 404 {
			return nil
		}
		return err
	}
	return nil
}
