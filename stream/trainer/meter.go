package trainer

import (
	"time"

	"github.com/nearmiss/nearmiss/stream"
)

// Meter counts what a trainer does. Its methods must not wait.
type Meter interface {
	// Took says that a job has been taken; Ended that it is over: done, failed,
	// cancelled, lost or back in the queue.
	Took(detector, kind string)
	Ended(detector, kind, result string, took time.Duration)
	// Progress of a job that this trainer works at.
	Progress(kind string, p stream.Progress)
}

// Results of [Meter.Ended] besides the states of finished jobs.
const (
	JobGivenBack = "back" // in the queue, to be tried again
	JobTakenOver = "lost" // another trainer has taken it over
)

// uncounted counts nothing.
type uncounted struct{}

func (uncounted) Took(string, string)                   {}
func (uncounted) Ended(_, _, _ string, _ time.Duration) {}
func (uncounted) Progress(string, stream.Progress)      {}
