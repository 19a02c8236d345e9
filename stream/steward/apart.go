package steward

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/nearmiss/nearmiss/stream"
	"github.com/nearmiss/nearmiss/stream/internal/turn"
)

// A steward apart from the broker keeps nothing between two looks but what is in the
// stream's configuration, so that it goes on where another left off and several want
// the same: who is refused is missing among the subjects, and what the queue may hold
// when nobody is stands in the metadata. They change the stream one at a time, in turns
// with those who set it up.

// apart is what only a steward apart has.
type apart struct {
	refused map[string]*nats.Subscription // to the frames of detectors that the stream does not take
	turns   *turn.Turns                   // to change the stream; nil until there was one
}

// presence is where a steward beside the broker answers.
func presence(n stream.Names) string { return n.API() + ".steward" }

// measure counts the bytes of a frame that the stream has stored.
func (s *Steward) measure(m *nats.Msg) {
	size, err := strconv.Atoi(m.Header.Get("Nats-Msg-Size"))
	if err != nil {
		return
	}
	subject := s.cfg.Root() + ".frames." + strings.TrimPrefix(m.Subject, s.cfg.Root()+".stored.")
	s.mu.Lock()
	f := s.flowOf(subject)
	f.last = time.Now()
	flood := s.add(f, size+len(subject)+64)
	s.mu.Unlock()
	if flood {
		s.look()
	}
}

// remember reads from the stream what the last look left there. A queue without a limit
// has no shares.
func (s *Steward) remember(have jetstream.StreamConfig) bool {
	most := have.MaxBytes
	if n, err := strconv.ParseInt(have.Metadata[stream.FramesBytes], 10, 64); err == nil && n > 0 {
		most = n
	}
	if most <= 0 {
		return false
	}
	s.mu.Lock()
	s.cfg.FramesMaxBytes = most
	s.mu.Unlock()
	s.cut, s.odd = map[string]bool{}, false
	if slices.Contains(have.Subjects, s.cfg.Frames("*", "*")) {
		return true
	}
	s.odd = true
	taken := map[string]bool{}
	for _, subject := range have.Subjects {
		d, _, _ := s.cfg.ParseFrames(strings.TrimSuffix(subject, "*") + "x")
		taken[d] = true
		if d != stream.NoCamera && !s.known[d] {
			s.odd = false
		}
	}
	for d := range s.known {
		if !taken[d] {
			s.cut[d] = true
		}
	}
	return true
}

// errAttended is returned where a steward beside the broker looks after the queue, and
// errNotNow where somebody else has just changed the stream, or is about to.
var (
	errAttended = errors.New("there is a steward beside the broker")
	errNotNow   = errors.New("somebody else changes the frame queue")
)

// updateApart has the stream be as planned, if it still is as it was when that was
// planned. An account that may not store more than it does has the queue stay as large
// as it is: then those within their share have what is free.
func (s *Steward) updateApart(ctx context.Context, have jetstream.StreamConfig, p plan, refuse func()) error {
	switch _, err := s.js.Conn().RequestWithContext(ctx, presence(s.cfg.Names), nil); {
	case err == nil:
		return errAttended
	case !errors.Is(err, nats.ErrNoResponders):
		return fmt.Errorf("look for a steward beside the broker: %w", err)
	}
	end, err := s.takeTurn(ctx)
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
		s.look()
		return errNotNow
	}
	refuse()
	cfg.Subjects, cfg.MaxBytes = p.subjects, p.limit
	delete(cfg.Metadata, stream.FramesBytes)
	if p.takes != nil {
		if cfg.Metadata == nil {
			cfg.Metadata = map[string]string{}
		}
		cfg.Metadata[stream.FramesBytes] = strconv.FormatInt(s.cfg.FramesMaxBytes, 10)
	}
	_, err = s.js.UpdateStream(ctx, cfg)
	if _, ok := errors.AsType[*jetstream.APIError](err); ok && cfg.MaxBytes > have.MaxBytes {
		cfg.MaxBytes = have.MaxBytes
		_, err = s.js.UpdateStream(ctx, cfg)
	}
	return err
}

// takeTurn returns what ends the turn, or errNotNow where it is another's. Where nobody
// can have one the queue is looked after without.
func (s *Steward) takeTurn(ctx context.Context) (end func(), err error) {
	if s.apart.turns == nil {
		bucket, err := s.js.KeyValue(ctx, s.cfg.WorkBucket())
		if err != nil {
			return nil, fmt.Errorf("wait for a turn to change the frame queue: %w", err)
		}
		s.apart.turns = turn.Of(bucket, stream.TurnKey)
	}
	end, err = s.apart.turns.Take(ctx)
	switch {
	case errors.Is(err, turn.ErrOthers):
		return nil, errNotNow
	case errors.Is(err, turn.ErrNone):
		s.log.Debug().Err(err).Msg("the frame queue is changed whoever else changes it")
		return func() {}, nil
	}
	return end, err
}

// hearRefused hears the frames of detectors that the stream does not take, to answer
// them, and no others: they may be far away. One of several stewards answers.
func (s *Steward) hearRefused(p plan, use map[string]int64) {
	want := map[string]bool{}
	if p.takes != nil {
		for _, all := range []map[string]bool{p.cut, s.known} {
			for d := range all {
				want[d] = !p.takes[d]
			}
		}
		for d := range use {
			want[d] = !p.takes[d] && stream.ValidToken(d)
		}
	}
	for d, sub := range s.apart.refused {
		if !want[d] {
			_ = sub.Unsubscribe()
			delete(s.apart.refused, d)
		}
	}
	for d, yes := range want {
		if !yes || s.apart.refused[d] != nil {
			continue
		}
		sub, err := s.js.Conn().QueueSubscribe(s.cfg.Frames(d, "*"), "steward", func(m *nats.Msg) { s.refuseFrame(m, d) })
		if err != nil {
			s.log.Debug().Err(err).Str("detector", d).Msg("cameras are refused without an answer")
			continue
		}
		s.apart.refused[d] = sub
	}
}
