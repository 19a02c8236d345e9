// Package memory bounds what is decoded and held at the same time, in bytes: one
// budget for all that is under way together in a process.
package memory

import (
	"context"
	"fmt"
	"sync"

	"golang.org/x/sync/semaphore"
)

// Budget is a number of bytes that is lent. Who asks for more than there is waits
// until all of it is free and gets all of it: one image larger than the budget is
// handled alone. A nil Budget lends without bound.
//
// Nobody may wait for a budget while holding a part of the same budget: take what
// is needed in one piece, or Try.
type Budget struct {
	total int64
	sem   *semaphore.Weighted

	mu         sync.Mutex
	used, peak int64
}

// New makes a budget of so many bytes, 1 or more.
func New(total int64) *Budget {
	total = max(total, 1)
	return &Budget{total: total, sem: semaphore.NewWeighted(total)}
}

// Acquire waits until n bytes are free or ctx ends. The bytes are given back by
// release, which may be called more than once.
func (b *Budget) Acquire(ctx context.Context, n int64) (release func(), err error) {
	if b == nil || n <= 0 {
		return func() {}, nil
	}
	n = min(n, b.total)
	if err := b.sem.Acquire(ctx, n); err != nil {
		return nil, fmt.Errorf("wait for %d bytes of memory: %w", n, err)
	}
	return b.lent(n), nil
}

// AcquireEach is Acquire of several pieces at once, each of which is given back by
// itself.
func (b *Budget) AcquireEach(ctx context.Context, sizes []int64) (releases []func(), err error) {
	releases = make([]func(), len(sizes))
	if b == nil {
		for i := range releases {
			releases[i] = func() {}
		}
		return releases, nil
	}
	sum, parts := int64(0), make([]int64, len(sizes))
	for i, n := range sizes {
		parts[i] = min(max(n, 0), b.total-sum)
		sum += parts[i]
	}
	if err := b.sem.Acquire(ctx, sum); err != nil {
		return nil, fmt.Errorf("wait for %d bytes of memory: %w", sum, err)
	}
	for i, n := range parts {
		releases[i] = b.lent(n)
	}
	return releases, nil
}

// Try is Acquire that does not wait; ok is false when the bytes are not free.
func (b *Budget) Try(n int64) (release func(), ok bool) {
	if b == nil || n <= 0 {
		return func() {}, true
	}
	n = min(n, b.total)
	if !b.sem.TryAcquire(n) {
		return nil, false
	}
	return b.lent(n), true
}

func (b *Budget) lent(n int64) func() {
	b.mu.Lock()
	b.used += n
	b.peak = max(b.peak, b.used)
	b.mu.Unlock()
	return sync.OnceFunc(func() {
		b.mu.Lock()
		b.used -= n
		b.mu.Unlock()
		b.sem.Release(n)
	})
}

// Total is the size of the budget in bytes; 0 is no bound.
func (b *Budget) Total() int64 {
	if b == nil {
		return 0
	}
	return b.total
}

// Peak is the most that was lent at the same time, in bytes.
func (b *Budget) Peak() int64 {
	if b == nil {
		return 0
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.peak
}
