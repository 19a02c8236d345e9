// Package wait has the pauses and back-offs of processes that outlive their broker.
package wait

import (
	"context"
	"time"

	"github.com/cenkalti/backoff/v4"
)

// Pause waits for d or until ctx ends.
func Pause(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

// Any waits until one of two contexts ends.
func Any(ctx, other context.Context) {
	select {
	case <-ctx.Done():
	case <-other.Done():
	}
}

// Either returns a context that ends with other, too.
func Either(ctx, other context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(ctx)
	stop := context.AfterFunc(other, cancel)
	return ctx, func() {
		stop()
		cancel()
	}
}

// Patient is the back-off for what must succeed at last: 100 ms to 5 s, for ever.
func Patient() backoff.BackOff { return Endless(100*time.Millisecond, 5*time.Second) }

// Endless is a back-off from first to most, for ever.
func Endless(first, most time.Duration) backoff.BackOff {
	return backoff.NewExponentialBackOff(backoff.WithInitialInterval(first), backoff.WithMaxInterval(most), backoff.WithMaxElapsedTime(0))
}

// Brief is the back-off within the handling of one message: 50 ms to 2 s, half
// a minute in all.
func Brief() backoff.BackOff {
	return backoff.NewExponentialBackOff(
		backoff.WithInitialInterval(50*time.Millisecond), backoff.WithMaxInterval(2*time.Second), backoff.WithMaxElapsedTime(30*time.Second))
}
