package steward

import (
	"context"
	"errors"
	"fmt"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/nearmiss/nearmiss/stream"
	"github.com/nearmiss/nearmiss/stream/internal/lease"
)

// held is what a steward has of the broker between two checks.
type held struct {
	lease   *lease.Lease                  // to change the stream; nil until there was one
	refused map[string]*nats.Subscription // remote: to the frames of detectors that the stream does not take
}

// errAttended is returned where a steward beside the broker looks after the queue, and
// errNotNow where somebody else has just changed the stream, or is about to.
var (
	errAttended = errors.New("there is a steward beside the broker")
	errNotNow   = errors.New("another program changes the frame queue")
)

// update has the stream be as planned, if it still is as it was when that was planned, and
// calls refuse before. Stewards and those who set streams up do so one at a time.
func (s *Steward) update(ctx context.Context, have jetstream.StreamConfig, p plan, refuse func()) error {
	if s.cfg.Remote {
		if err := s.attended(ctx); err != nil {
			return err
		}
	}
	end, err := s.acquire(ctx)
	if err != nil {
		return err
	}
	defer end()
	now, err := s.js.Stream(ctx, s.cfg.FramesStream())
	if err != nil {
		return err
	}
	cfg := now.CachedInfo().Config // what a setup has changed meanwhile stays
	if !asPlanned(cfg, have.Subjects, have.MaxBytes) || cfg.Metadata[stream.FramesBytes] != have.Metadata[stream.FramesBytes] {
		s.wake()
		return errNotNow
	}
	refuse()
	cfg.Subjects, cfg.MaxBytes = p.subjects, p.limit
	if s.cfg.Remote {
		s.note(&cfg, p)
	}
	_, err = s.js.UpdateStream(ctx, cfg)
	if _, ok := errors.AsType[*jetstream.APIError](err); ok && s.cfg.Remote && cfg.MaxBytes > have.MaxBytes {
		// An account that may not store more than it does: those within their share
		// have what is free.
		cfg.MaxBytes = have.MaxBytes
		_, err = s.js.UpdateStream(ctx, cfg)
	}
	return err
}

// acquire takes the lease and returns what ends it, or errNotNow where another program
// holds it. Where nobody can have it, the queue is looked after without.
func (s *Steward) acquire(ctx context.Context) (end func(), err error) {
	if s.held.lease == nil {
		bucket, err := s.js.KeyValue(ctx, s.cfg.WorkBucket())
		if err != nil {
			return nil, fmt.Errorf("take the lease to change the frame queue: %w", err)
		}
		s.held.lease = lease.Of(bucket, stream.StreamsLease)
	}
	end, err = s.held.lease.Take(ctx)
	switch {
	case errors.Is(err, lease.ErrOthers):
		return nil, errNotNow
	case errors.Is(err, lease.ErrNone):
		s.log.Debug().Err(err).Msg("the frame queue is changed without a lease")
		return func() {}, nil
	}
	return end, err
}
