package sink

import (
	"context"
	"fmt"
	"time"
)

// A Sender brings one notice to its receiver and returns when the receiver has
// it. It is called from several goroutines, unless the sink is ordered.
type Sender interface {
	Send(ctx context.Context, n Notice) error
	// Close ends what it holds open.
	Close() error
}

// Kinds open the senders of the kinds that there are: config is the sink's
// own, checked in full, and secret is what the sink's reference led to.
type Kinds map[string]func(s Sink, secret string) (Sender, error)

// Permanent marks a failure that another try cannot mend.
type Permanent struct{ Err error }

func (e *Permanent) Error() string { return e.Err.Error() }
func (e *Permanent) Unwrap() error { return e.Err }

// Later marks a failure with a receiver that says when to come again.
type Later struct {
	After time.Duration // 0: as the schedule has it
	Err   error
}

func (e *Later) Error() string { return e.Err.Error() }
func (e *Later) Unwrap() error { return e.Err }

// Gone marks a receiver that is no more: the sink is switched off.
type Gone struct{ Err error }

func (e *Gone) Error() string { return fmt.Sprintf("the receiver is gone: %v", e.Err) }
func (e *Gone) Unwrap() error { return e.Err }
