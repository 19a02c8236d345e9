package sink

import (
	"context"
	"errors"
	"fmt"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/nearmiss/nearmiss/stream"
	"github.com/nearmiss/nearmiss/stream/internal/pull"
)

// origin is the broker, where the events of sinks come from.
type origin struct {
	stream.Names
	nc *nats.Conn
	js jetstream.JetStream
}

// durable is the name of a sink's consumer.
func durable(sink string) string { return "sink-" + sink }

// source is a sink's place in a stream. It keeps its place when the filter
// changes.
type source struct {
	jetstream.Consumer
	stream string
}

// consumers are a sink's places in the events and the incidents, as far as it
// wants any.
func (o origin) consumers(ctx context.Context, s Sink) ([]source, error) {
	events, incidents := s.filters(o.Names)
	var all []source
	for name, filters := range map[string][]string{o.EventsStream(): events, o.IncidentsStream(): incidents} {
		if len(filters) == 0 {
			// What it wanted before must not wait for ever.
			if err := o.js.DeleteConsumer(ctx, name, durable(s.Name)); err != nil && !errors.Is(err, jetstream.ErrConsumerNotFound) {
				return nil, fmt.Errorf("sink %s: remove its consumer: %w", s.Name, err)
			}
			continue
		}
		cfg := jetstream.ConsumerConfig{
			Durable: durable(s.Name), Description: "for sink " + s.Name,
			FilterSubjects: filters, DeliverPolicy: jetstream.DeliverNewPolicy,
			AckPolicy: jetstream.AckExplicitPolicy, AckWait: ackWait, MaxDeliver: -1, MaxAckPending: maxPending,
		}
		if s.Ordered {
			cfg.MaxAckPending = 1
		}
		c, err := o.js.CreateOrUpdateConsumer(ctx, name, cfg)
		if err != nil {
			return nil, fmt.Errorf("sink %s: make its consumer: %w", s.Name, err)
		}
		all = append(all, source{c, name})
	}
	return all, nil
}

// hold keeps a message in hand until release is called.
func hold(m jetstream.Msg) (release func()) {
	return pull.Beat(ackWait/3, []jetstream.Msg{m}).Stop
}

// giveBack returns the messages that were pulled and not begun: the broker
// would wait for them, and the next engine with it.
func giveBack(it jetstream.MessagesContext) {
	it.Drain()
	for {
		m, err := it.Next()
		if err != nil {
			return
		}
		_ = m.Nak()
	}
}
