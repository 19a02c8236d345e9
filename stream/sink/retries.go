package sink

import (
	"context"
	"errors"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/nearmiss/nearmiss/stream/internal/wait"
)

const breakAfter = 5 // failures in a row that open the breaker

// schedule is how long after each try the next one follows: that of Standard
// Webhooks, shortened at its head. The last goes on until the sink gives up.
var schedule = []time.Duration{5 * time.Second, 30 * time.Second, 5 * time.Minute, 30 * time.Minute, 2 * time.Hour, 5 * time.Hour}

// retries say when an event that failed comes again.
type retries struct {
	delays  []time.Duration // after each try, such as [schedule]
	breaker breaker

	mu sync.Mutex
	// fails counts the tries of what waits for another one while the receiver took
	// other events; at most maxPending of each stream.
	fails map[spot]int
}

// failed takes note of a failed try and returns how long after it the next one
// follows, and whether the breaker has just opened.
func (r *retries) failed(at spot, err error) (delay time.Duration, opened bool) {
	delay = r.delay(at)
	if later := (*Later)(nil); errors.As(err, &later) && later.After > 0 {
		delay = min(later.After, r.delays[len(r.delays)-1])
	}
	delay += time.Duration(float64(delay) * 0.4 * (rand.Float64() - 0.5))
	return delay, r.breaker.failed(r.delays[0])
}

// delay is what the schedule has. While the receiver takes nothing at all, a failure
// is no fault of the event's: it must not come hours after the receiver is back.
func (r *retries) delay(at spot) time.Duration {
	down := r.breaker.open()
	r.mu.Lock()
	defer r.mu.Unlock()
	if down {
		r.fails[at] += 0
		return r.delays[0]
	}
	r.fails[at]++
	return r.delays[min(r.fails[at], len(r.delays))-1]
}

// done forgets the tries of an event that is done with.
func (r *retries) done(at spot) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.fails, at)
}

// discarded forgets what waits for another try and is gone, and counts it: what
// lies in a stream before its first sequence.
func (r *retries) discarded(stream string, first uint64) (n uint64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for at := range r.fails {
		if at.stream == stream && at.seq < first {
			delete(r.fails, at)
			n++
		}
	}
	return n
}

// breaker stops pulling while the receiver takes nothing.
type breaker struct {
	mu     sync.Mutex
	fails  int
	opened time.Time // when the next probe may go; zero: closed
}

// failed counts a failure and says whether the breaker has just opened.
func (b *breaker) failed(delay time.Duration) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.fails++
	if b.fails < breakAfter {
		return false
	}
	b.opened = time.Now().Add(delay)
	return b.fails == breakAfter
}

func (b *breaker) succeeded() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.fails, b.opened = 0, time.Time{}
}

func (b *breaker) open() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return !b.opened.IsZero()
}

// wait returns when a message may be taken; probe says that it must be the only
// one under way. ok is false when ctx ended.
func (b *breaker) wait(ctx context.Context) (probe, ok bool) {
	b.mu.Lock()
	until := b.opened
	b.mu.Unlock()
	if until.IsZero() {
		return false, ctx.Err() == nil
	}
	wait.Pause(ctx, time.Until(until))
	return ctx.Err() == nil, ctx.Err() == nil
}
