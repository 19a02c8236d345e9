package steward

import (
	"context"
	"time"

	"github.com/nearmiss/nearmiss/stream"
)

// Tell stores an event of a detector.
func (s *Steward) Tell(ctx context.Context, detector, code string) {
	s.tell(ctx, detector, stream.NoCamera, code, code)
}

// Look is one look at the queue.
func (s *Steward) Look(ctx context.Context) error {
	s.learn(ctx)
	return s.balance(ctx)
}

// Wait lets so much time pass for the turn of another.
func (s *Steward) Wait(d time.Duration) { s.apart.others.since = s.apart.others.since.Add(-d) }
