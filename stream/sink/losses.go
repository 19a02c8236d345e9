package sink

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/nearmiss/nearmiss/stream"
)

// spot is a place in a stream.
type spot struct {
	stream string
	seq    uint64
}

// position is what was known of a sink's place in a stream at a time.
type position struct {
	delivered uint64 // up to this sequence, at least once
	pending   uint64 // events behind it
}

// came takes note of an event that came for the first time.
func (l *delivery) came(from string, seq uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.fresh == nil {
		l.fresh = map[spot]bool{}
	}
	l.fresh[spot{from, seq}] = true
}

// watchLosses counts what the broker discarded by age or size before the sink
// had it, and raises an event. It returns when ctx ends, or when the consumer is
// no more: whoever asks that for messages gets no error, unless the request was
// there before.
func (l *delivery) watchLosses(ctx context.Context, c source) error {
	tick := time.NewTicker(l.lossCheckInterval)
	defer tick.Stop()
	for {
		lost, first, err := l.losses(ctx, c)
		if errors.Is(err, jetstream.ErrConsumerNotFound) {
			return fmt.Errorf("sink %s: its consumer in %s: %w", l.sink.Name, c.stream, err)
		}
		if err == nil && lost > 0 {
			l.stats.add(ResultLost, "discarded by the broker", lost)
			l.log.Error().Uint64("events", lost).Msg("the broker discarded events before this sink had them: raise keep.events_age or keep.events_bytes, or mend the receiver")
			l.reportLosses(ctx, c, lost, first)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// losses counts what is lost since the last check, and returns the first sequence
// that is left. The broker counts what it discards as acknowledged, so its own
// figures do not show it: lost is what waited for another try and is gone, and
// what was still to come and is gone without having come. Where several engines
// share a sink, what came to another is among the latter: it is at most so many.
func (l *delivery) losses(ctx context.Context, c source) (lost, first uint64, err error) {
	info, err := c.Info(ctx)
	if err != nil {
		return 0, 0, err
	}
	l.stats.waiting(c.stream, info.NumPending+uint64(info.NumAckPending))
	s, err := l.js.Stream(ctx, c.stream)
	if err != nil {
		return 0, 0, err
	}
	first = s.CachedInfo().State.FirstSeq
	l.mu.Lock()
	defer l.mu.Unlock()
	for at := range l.fails {
		if at.stream == c.stream && at.seq < first {
			delete(l.fails, at)
			lost++
		}
	}
	before, known := l.positions[c.stream]
	delivered := uint64(0)
	for at := range l.fresh {
		if at.stream != c.stream {
			continue
		}
		if at.seq > before.delivered && at.seq < first {
			delivered++
		}
		if at.seq <= info.Delivered.Stream {
			delete(l.fresh, at)
		}
	}
	if known && first > before.delivered+1 {
		if gone := min(before.pending, first-1-before.delivered); gone > delivered {
			lost += gone - delivered
		}
	}
	if l.positions == nil {
		l.positions = map[string]position{}
	}
	l.positions[c.stream] = position{info.Delivered.Stream, info.NumPending}
	return lost, first, nil
}

// reportLosses raises an event, for the other sinks and whoever watches.
func (l *delivery) reportLosses(ctx context.Context, c source, lost, first uint64) {
	e := stream.Event{
		ID: fmt.Sprintf("untold-%s-%s-%d", l.sink.Name, c.stream, first), Kind: stream.KindLost, Code: stream.LostUndelivered,
		Detector: stream.NoCamera, Camera: stream.NoCamera, ScoredAt: time.Now().UTC(),
		Reason: fmt.Sprintf("sink %s: up to %d events were discarded by age or size before it had them", l.sink.Name, lost),
	}
	m, err := e.Message(l.names)
	if err == nil {
		step, cancel := context.WithTimeout(ctx, 10*time.Second)
		defer cancel()
		_, err = l.js.PublishMsg(step, m)
	}
	if err != nil {
		l.log.Warn().Err(err).Msg("the loss could not be told")
	}
}
