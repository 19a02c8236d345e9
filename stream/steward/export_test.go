package steward

import (
	"context"

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
