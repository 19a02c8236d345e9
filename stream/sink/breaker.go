package sink

import (
	"context"
	"sync"
	"time"
)

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
	t := time.NewTimer(time.Until(until))
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false, false
	case <-t.C:
		return true, true
	}
}
