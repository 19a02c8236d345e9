package steward

import (
	"context"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/nearmiss/nearmiss/stream"
)

// Tell stores an event of a detector.
func (s *Steward) Tell(ctx context.Context, detector, code string) {
	s.storeEvent(ctx, detector, stream.NoCamera, code, code)
}

// Look is one look at the queue.
func (s *Steward) Look(ctx context.Context) error {
	s.listDetectors(ctx)
	return s.balance(ctx)
}

// Wait lets so much time pass for the turn of another.
func (s *Steward) Wait(d time.Duration) { s.held.lease.Silence -= d }

// Use is what each detector's frames take of the queue, by what the server says of it.
func (s *Steward) Use(ctx context.Context, st jetstream.Stream) (map[string]int64, error) {
	return s.use(ctx, st)
}

// Published counts frames of clients that get no answer, Stored those that the stream has.
func (s *Steward) Published(camera string, n int) {
	for range n {
		s.countFrame(nats.NewMsg("nearmiss.frames." + camera))
	}
}

func (s *Steward) Stored(camera string, n int) {
	for range n {
		s.stored(nats.NewMsg("nearmiss.stored." + camera))
	}
}

// Report is n reports, a second each.
func (s *Steward) Report(ctx context.Context, n int) {
	for range n {
		s.report(ctx)
	}
}

// SetSizes has the frames on these subjects be so large, in bytes.
func (s *Steward) SetSizes(of map[string]float64) {
	for subject, size := range of {
		s.flows[subject] = &flow{size: size}
	}
}
