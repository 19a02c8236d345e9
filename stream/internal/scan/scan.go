// Package scan reads what a stream holds now.
package scan

import (
	"context"
	"errors"
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

// ErrStop, returned by the function that Run calls, ends the scan early, without an
// error.
var ErrStop = errors.New("enough")

// patience is how long a scan waits for a message before it asks whether there
// are any left: what was removed meanwhile does not come. Of last messages each that
// is replaced meanwhile does not, so that the wait is short; whoever scans these looks
// for others in the end.
const (
	patience     = 5 * time.Second
	patienceLast = 250 * time.Millisecond
)

// Run calls f for every message that a stream holds now and that the ordered
// consumer's filter lets through, in the order of their sequences. opts say how
// many messages are on their way at a time.
func Run(ctx context.Context, js jetstream.JetStream, stream string, cfg jetstream.OrderedConsumerConfig, f func(jetstream.Msg, *jetstream.MsgMetadata) error, opts ...jetstream.PullMessagesOpt) error {
	cons, err := js.OrderedConsumer(ctx, stream, cfg)
	if err != nil {
		return err
	}
	info, err := cons.Info(ctx)
	if err != nil {
		return err
	}
	left := info.NumPending
	defer func() { _ = js.DeleteConsumer(context.WithoutCancel(ctx), stream, info.Name) }()
	if left == 0 {
		return nil
	}
	it, err := cons.Messages(opts...)
	if err != nil {
		return err
	}
	defer it.Stop()
	wait := patience
	if cfg.DeliverPolicy == jetstream.DeliverLastPerSubjectPolicy {
		wait = patienceLast
	}
	for left > 0 {
		step, cancel := context.WithTimeout(ctx, wait)
		m, err := it.Next(jetstream.NextContext(step))
		late := step.Err() != nil
		cancel()
		if err != nil && ctx.Err() == nil && late {
			now, err := cons.Info(ctx)
			if err != nil {
				return err
			}
			if now.NumPending == 0 {
				return nil
			}
			continue
		}
		if err != nil {
			return err
		}
		meta, err := m.Metadata()
		if err != nil {
			return err
		}
		if err := f(m, meta); errors.Is(err, ErrStop) {
			return nil
		} else if err != nil {
			return err
		}
		left--
		if meta.NumPending == 0 {
			return nil
		}
	}
	return nil
}
