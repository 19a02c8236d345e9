// Package wait has the pauses and back-offs of processes that outlive their broker.
package wait

import (
	"context"
	"time"

	"github.com/cenkalti/backoff/v4"
)

// Pause waits for d or until ctx ends.
func Pause(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-t.C:
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
func Patient() backoff.BackOff {
	return backoff.NewExponentialBackOff(
		backoff.WithInitialInterval(100*time.Millisecond), backoff.WithMaxInterval(5*time.Second), backoff.WithMaxElapsedTime(0))
}

// Brief is the back-off within the handling of one message: 50 ms to 2 s, half
// a minute in all.
func Brief() backoff.BackOff {
	return backoff.NewExponentialBackOff(
		backoff.WithInitialInterval(50*time.Millisecond), backoff.WithMaxInterval(2*time.Second), backoff.WithMaxElapsedTime(30*time.Second))
}
