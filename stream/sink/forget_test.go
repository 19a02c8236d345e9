package sink

import (
	"context"
	"errors"
	"testing"

	"github.com/nats-io/nats.go/jetstream"
	"github.com/rs/zerolog"

	"github.com/nearmiss/nearmiss/internal/brokertest"
	"github.com/nearmiss/nearmiss/stream"
	"github.com/nearmiss/nearmiss/stream/broker"
)

// silent is a bucket that does not say whether a key is there.
type silent struct{ jetstream.KeyValue }

func (silent) Get(context.Context, string) (jetstream.KeyValueEntry, error) {
	return nil, context.DeadlineExceeded
}

// TestTheConsumersOfARemovedSinkGo also where the broker did not answer at first.
func TestTheConsumersOfARemovedSinkGo(t *testing.T) {
	ctx, names := t.Context(), stream.Names{}
	js := brokertest.JetStream(t, broker.Config{})
	if err := stream.Ensure(ctx, js, stream.Topology{}); err != nil {
		t.Fatal(err)
	}
	e, err := NewEngine(EngineConfig{}, js.Conn(), zerolog.Nop())
	if err != nil {
		t.Fatal(err)
	}
	b, err := js.KeyValue(ctx, names.SinksBucket())
	if err == nil {
		_, err = js.CreateConsumer(ctx, names.EventsStream(), jetstream.ConsumerConfig{Durable: durable("a")})
	}
	if err != nil {
		t.Fatal(err)
	}
	e.lines["a"] = &running{stop: func() {}}
	if err := e.reconcile(ctx, silent{b}); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("nobody says whether it is there: %v", err)
	}
	if _, err := js.Consumer(ctx, names.EventsStream(), durable("a")); err != nil {
		t.Errorf("its consumer: %v", err)
	}
	if err := e.reconcile(ctx, b); err != nil || len(e.lines) > 0 {
		t.Errorf("%v, %v", e.lines, err)
	}
	if _, err := js.Consumer(ctx, names.EventsStream(), durable("a")); !errors.Is(err, jetstream.ErrConsumerNotFound) {
		t.Errorf("its consumer: %v", err)
	}
}
