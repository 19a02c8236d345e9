package steward

import "context"

// Look is one look at the queue.
func (s *Steward) Look(ctx context.Context) error {
	s.learn(ctx)
	return s.balance(ctx)
}
