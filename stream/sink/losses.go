package sink

import (
	"context"
	"errors"
	"fmt"
	"sync"
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

// lossCheck finds out which events the broker discarded before they came. The broker
// counts what it discards as acknowledged, so its own figures do not show it.
type lossCheck struct {
	interval time.Duration // between two checks

	mu        sync.Mutex
	fresh     map[spot]bool       // what came for the first time since the last check
	positions map[string]position // at the last check, by stream
}

// came takes note of an event that came for the first time.
func (c *lossCheck) came(at spot) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.fresh[at] = true
}

// discarded counts what was still to come at the last check and is gone without
// having come; first is the first sequence that is left in the stream. Where several
// engines share a sink, what came to another counts too: it is at most so many.
func (c *lossCheck) discarded(stream string, now position, first uint64) (n uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	before, known := c.positions[stream]
	delivered := uint64(0)
	for at := range c.fresh {
		if at.stream != stream {
			continue
		}
		if at.seq > before.delivered && at.seq < first {
			delivered++
		}
		if at.seq <= now.delivered {
			delete(c.fresh, at)
		}
	}
	if known && first > before.delivered+1 {
		if gone := min(before.pending, first-1-before.delivered); gone > delivered {
			n = gone - delivered
		}
	}
	c.positions[stream] = now
	return n
}

// watchLosses counts what the broker discarded by age or size before the sink
// had it, and raises an event. It returns when ctx ends, or when the consumer is
// no more: whoever asks that for messages gets no error, unless the request was
// there before.
func (l *delivery) watchLosses(ctx context.Context, c source) error {
	tick := time.Tick(l.losses.interval)
	for {
		lost, first, err := l.lost(ctx, c)
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
		case <-tick:
		}
	}
}

// lost counts what is lost since the last check: what waited for another try, and
// what was still to come. It returns the first sequence that is left, too.
func (l *delivery) lost(ctx context.Context, c source) (n, first uint64, err error) {
	info, err := c.Info(ctx)
	if err != nil {
		return 0, 0, err
	}
	l.stats.waiting(c.stream, info.NumPending+uint64(info.NumAckPending))
	s, err := l.origin.js.Stream(ctx, c.stream)
	if err != nil {
		return 0, 0, err
	}
	first = s.CachedInfo().State.FirstSeq
	now := position{info.Delivered.Stream, info.NumPending}
	return l.retries.discarded(c.stream, first) + l.losses.discarded(c.stream, now, first), first, nil
}

// reportLosses raises an event, for the other sinks and whoever watches.
func (l *delivery) reportLosses(ctx context.Context, c source, lost, first uint64) {
	e := stream.Event{
		ID: fmt.Sprintf("untold-%s-%s-%d", l.sink.Name, c.stream, first), Kind: stream.KindLost, Code: stream.LostUndelivered,
		Detector: stream.NoCamera, Camera: stream.NoCamera, ScoredAt: time.Now().UTC(),
		Reason: fmt.Sprintf("sink %s: up to %d events were discarded by age or size before it had them", l.sink.Name, lost),
	}
	m, err := e.Message(l.origin.Names)
	if err == nil {
		step, cancel := context.WithTimeout(ctx, 10*time.Second)
		defer cancel()
		_, err = l.origin.js.PublishMsg(step, m)
	}
	if err != nil {
		l.log.Warn().Err(err).Msg("the loss could not be told")
	}
}
