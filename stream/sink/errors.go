package sink

import (
	"fmt"
	"time"
)

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
