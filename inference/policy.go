package inference

import (
	"fmt"
	"time"
)

// BatchPolicy says when images that are ready become a batch: as soon as one
// of the limits is reached. The zero value of a field means its default.
type BatchPolicy struct {
	// Count is the largest number of images in a batch. Default 4 on the CPU,
	// 32 elsewhere.
	Count int
	// Bytes bounds the model's input of one batch, in bytes; at least one image
	// is taken. Default: no bound.
	Bytes int64
	// Period is how long the first image of a batch may wait for company.
	// Default 0: the model never idles while an image is ready, and batches
	// grow by themselves while it is busy.
	Period time.Duration
}

func (p BatchPolicy) validate() error {
	if p.Count < 0 || p.Bytes < 0 || p.Period < 0 {
		return fmt.Errorf("batch policy %+v: no field may be negative", p)
	}
	return nil
}

// limit is the number of images of the given size in a batch.
func (p BatchPolicy) limit(size int) int {
	n := max(p.Count, 1)
	if p.Bytes > 0 {
		n = min(n, max(int(p.Bytes/int64(size)), 1))
	}
	return n
}

// collect takes the first item, waiting for it, and those that are ready or
// become ready before the policy's period is over, at most limit. It returns
// nil when the channel is closed and empty. share is the number of collectors:
// without a period each leaves the others their part of what is ready.
func collect[T any](in <-chan T, limit, share int, period time.Duration) []T {
	first, ok := <-in
	if !ok {
		return nil
	}
	batch := append(make([]T, 0, limit), first)
	if period <= 0 {
		fair := (1 + len(in) + share - 1) / share
		for len(batch) < min(limit, fair) {
			select {
			case x, ok := <-in:
				if !ok {
					return batch
				}
				batch = append(batch, x)
			default:
				return batch
			}
		}
		return batch
	}
	deadline := time.NewTimer(period)
	defer deadline.Stop()
	for len(batch) < limit {
		select {
		case x, ok := <-in:
			if !ok {
				return batch
			}
			batch = append(batch, x)
		case <-deadline.C:
			return batch
		}
	}
	return batch
}
