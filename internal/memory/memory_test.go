package memory

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"testing"
)

func TestNoMoreIsLentThanThereIs(t *testing.T) {
	b := New(100)
	var held, peak atomic.Int64
	var all sync.WaitGroup
	for i := range 200 {
		all.Go(func() {
			n := int64(i%70 + 1)
			release, err := b.Acquire(context.Background(), n)
			if err != nil {
				t.Error(err)
				return
			}
			now := held.Add(n)
			for p := peak.Load(); now > p && !peak.CompareAndSwap(p, now); p = peak.Load() {
			}
			held.Add(-n)
			release()
			release() // once is enough
		})
	}
	all.Wait()
	if peak.Load() > 100 || b.Peak() > 100 || b.Peak() < 70 {
		t.Errorf("%d bytes of 100 were held together, the budget says %d", peak.Load(), b.Peak())
	}
	if _, ok := b.Try(100); !ok {
		t.Error("not all was given back")
	}
}

func TestMoreThanTheBudgetIsAllOfIt(t *testing.T) {
	b := New(100)
	release, err := b.Acquire(context.Background(), 1<<62)
	if err != nil {
		t.Fatal(err)
	}
	if _, ok := b.Try(1); ok {
		t.Error("a byte was lent beside an image larger than the budget")
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := b.Acquire(ctx, 1); !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
	release()
	if _, ok := b.Try(100); !ok {
		t.Error("not all was given back")
	}
}

func TestNoBudgetIsNoBound(t *testing.T) {
	var b *Budget
	release, err := b.Acquire(context.Background(), 1<<62)
	if err != nil || b.Total() != 0 || b.Peak() != 0 {
		t.Fatal(err)
	}
	release()
	if _, ok := b.Try(1); !ok {
		t.Error("refused")
	}
}
