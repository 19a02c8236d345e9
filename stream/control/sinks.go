package control

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/nearmiss/nearmiss/stream"
	"github.com/nearmiss/nearmiss/stream/internal/kv"
	"github.com/nearmiss/nearmiss/stream/internal/text"
	"github.com/nearmiss/nearmiss/stream/sink"
)

func (c *Service) sinks(ctx context.Context) (kv.Store[sink.Sink], error) {
	b, err := c.js.KeyValue(ctx, c.in.Names().SinksBucket())
	if err != nil {
		return kv.Store[sink.Sink]{}, fmt.Errorf("open the bucket of sinks: %w", err)
	}
	return kv.Store[sink.Sink]{Bucket: b, Decode: sink.Parse}, nil
}

// setSink stores a sink, new or changed. Whether its kind can work with it only who
// has the kinds can say, and says before.
func (c *Service) setSink(ctx context.Context, ch *change, q stream.SinkRequest) (a stream.SinkAnswer, err error) {
	ch.Action = "set"
	if q.Create {
		ch.Action = "create"
	}
	n, err := sink.Parse(q.Sink, q.Value)
	if err != nil {
		return a, stream.Permanent(stream.CodeBadRequest, err)
	}
	value, err := json.Marshal(n)
	if err != nil {
		return a, err
	}
	s, err := c.sinks(ctx)
	if err != nil {
		return a, err
	}
	for range 5 {
		e, err := s.Get(ctx, n.Name)
		if err != nil && !errors.Is(err, jetstream.ErrKeyNotFound) && !errors.Is(err, kv.ErrUnreadable) {
			return a, err
		}
		if q.Revision != 0 && q.Revision != e.Head {
			return a, fmt.Errorf("change sink %s: its revision is %d, not %d: %w", n.Name, e.Head, q.Revision, stream.ErrConflict)
		}
		if q.Create && !errors.Is(err, jetstream.ErrKeyNotFound) {
			return a, fmt.Errorf("there is a sink %s already: %w", n.Name, stream.ErrConflict)
		}
		ch.Action = "set"
		switch {
		case errors.Is(err, jetstream.ErrKeyNotFound):
			ch.Action = "create"
		case err == nil:
			ch.Before = e.Value
		}
		revision, err := s.Put(ctx, n.Name, n, e.Head)
		if kv.Conflict(err) {
			continue
		}
		if err != nil {
			return a, fmt.Errorf("store sink %s: %w", n.Name, err)
		}
		return stream.SinkAnswer{Sink: value, Revision: revision}, nil
	}
	return a, fmt.Errorf("change sink %s: %w", n.Name, stream.ErrConflict)
}

// removeSink removes one. The sinks' process then drops what waits for it.
func (c *Service) removeSink(ctx context.Context, ch *change, q stream.SinkRequest) (struct{}, error) {
	ch.Action = "delete"
	if err := stream.CheckToken("sink", q.Sink); err != nil {
		return struct{}{}, err
	}
	s, err := c.sinks(ctx)
	if err != nil {
		return struct{}{}, err
	}
	e, err := s.Get(ctx, q.Sink)
	switch {
	case errors.Is(err, jetstream.ErrKeyNotFound):
		return struct{}{}, fmt.Errorf("sink %s: %w", q.Sink, stream.ErrNotFound)
	case err == nil:
		ch.Before = e.Value
	case !errors.Is(err, kv.ErrUnreadable):
		return struct{}{}, err
	}
	if err := s.Bucket.Delete(ctx, q.Sink); err != nil {
		return struct{}{}, fmt.Errorf("remove sink %s: %w", q.Sink, err)
	}
	return struct{}{}, nil
}

// testSink and replaySink pass the request on to who runs the sinks.
func (c *Service) testSink(ctx context.Context, ch *change, q sink.TestRequest) (a sink.TestAnswer, err error) {
	ch.Action = "test"
	return a, sink.Ask(ctx, c.nc, c.in.Names(), ch.Action, q, &a)
}

func (c *Service) replaySink(ctx context.Context, ch *change, q sink.ReplayRequest) (a sink.ReplayAnswer, err error) {
	ch.Action = "replay"
	return a, sink.Ask(ctx, c.nc, c.in.Names(), ch.Action, q, &a)
}

// ofSink is the object of a change to a sink.
func ofSink(name string) string { return "sink/" + text.Clip(name) }
