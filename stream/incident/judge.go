package incident

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/nearmiss/nearmiss/stream"
	"github.com/nearmiss/nearmiss/stream/internal/kv"
)

// countSoon is after how long it is checked again whether an event is counted.
const countSoon = 200 * time.Millisecond

// judge brings people's verdicts to the incidents that they are about, one after
// the other.
func (e *Engine) judge(ctx context.Context) error {
	states, err := e.states(ctx)
	if err != nil {
		return err
	}
	cons, err := e.js.CreateOrUpdateConsumer(ctx, e.cfg.FeedbackStream(), jetstream.ConsumerConfig{
		Durable: durable, Description: "brings verdicts to incidents",
		DeliverPolicy: jetstream.DeliverNewPolicy, AckPolicy: jetstream.AckExplicitPolicy,
		AckWait: 30 * time.Second, MaxDeliver: -1, MaxAckPending: 1, // in order
	})
	if err != nil {
		return fmt.Errorf("make the consumer of verdicts: %w", err)
	}
	for ctx.Err() == nil {
		if err := next(ctx, cons, func(m jetstream.Msg) error { return e.verdict(ctx, states, m) }); err != nil {
			return err
		}
	}
	return nil
}

// verdict brings one to its incident and acknowledges it.
func (e *Engine) verdict(ctx context.Context, states kv.Store[State], m jetstream.Msg) error {
	f, err := stream.ParseFeedback(m.Data())
	if err != nil || m.Subject() != e.cfg.Feedback(f.Detector) {
		return m.Term() // the trainer says so
	}
	ev, err := stream.NewInstallation(e.js, e.cfg.Names).Meant(ctx, f)
	if errors.Is(err, stream.ErrNotFound) {
		return m.Term()
	}
	if err != nil {
		return err
	}
	// A verdict may be faster than its event.
	late, err := e.behind(ctx, ev.Sequence)
	if err != nil {
		return err
	}
	if late {
		return m.NakWithDelay(countSoon)
	}
	err = e.change(ctx, states, e.key(ev.Detector, ev.Camera), func(s *State) bool { return s.Judge(f, ev) })
	if err != nil {
		return err
	}
	return m.DoubleAck(ctx)
}

// behind says whether the event at a sequence is still to be counted.
func (e *Engine) behind(ctx context.Context, seq uint64) (bool, error) {
	c, err := e.js.Consumer(ctx, e.cfg.EventsStream(), durable)
	if errors.Is(err, jetstream.ErrConsumerNotFound) {
		return false, nil // it begins with what comes then
	}
	if err != nil {
		return false, err
	}
	i := c.CachedInfo()
	return i.AckFloor.Stream < seq && i.NumPending+uint64(i.NumAckPending) > 0, nil
}
