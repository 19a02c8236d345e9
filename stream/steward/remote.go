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
)

// A remote steward keeps nothing between two checks but what is in the
// stream's configuration, so that it goes on where another left off and several want
// the same: who is refused is missing among the subjects, and what the queue may hold
// when nobody is stands in the metadata.

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
		s.wake()
	}
}

// remember reads from the stream what the last check left there. A queue without a limit
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
		if d != stream.NoCamera && !s.detectors[d] {
			s.odd = false
		}
	}
	for d := range s.detectors {
		if !taken[d] {
			s.cut[d] = true
		}
	}
	return true
}

// attended returns errAttended where a steward beside the broker looks after the queue.
func (s *Steward) attended(ctx context.Context) error {
	switch _, err := s.js.Conn().RequestWithContext(ctx, s.cfg.Steward(), nil); {
	case err == nil:
		return errAttended
	case !errors.Is(err, nats.ErrNoResponders):
		return fmt.Errorf("find a steward beside the broker: %w", err)
	}
	return nil
}

// note leaves in the stream's configuration what the next check has to know.
func (s *Steward) note(cfg *jetstream.StreamConfig, p plan) {
	delete(cfg.Metadata, stream.FramesBytes)
	if p.takes == nil {
		return
	}
	if cfg.Metadata == nil {
		cfg.Metadata = map[string]string{}
	}
	cfg.Metadata[stream.FramesBytes] = strconv.FormatInt(s.cfg.FramesMaxBytes, 10)
}

// subscribeRefused receives the frames of detectors that the stream does not take, to answer
// them, and no others: they may be far away. One of several stewards answers.
func (s *Steward) subscribeRefused(p plan, use map[string]int64) {
	want := map[string]bool{}
	if p.takes != nil {
		for _, all := range []map[string]bool{p.cut, s.detectors} {
			for d := range all {
				want[d] = !p.takes[d]
			}
		}
		for d := range use {
			want[d] = !p.takes[d] && stream.ValidToken(d)
		}
	}
	for d, sub := range s.held.refused {
		if !want[d] {
			_ = sub.Unsubscribe()
			delete(s.held.refused, d)
		}
	}
	for d, yes := range want {
		if !yes || s.held.refused[d] != nil {
			continue
		}
		sub, err := s.js.Conn().QueueSubscribe(s.cfg.Frames(d, "*"), "steward", func(m *nats.Msg) { s.refuseFrame(m, d) })
		if err != nil {
			s.log.Debug().Err(err).Str("detector", d).Msg("cameras are refused without an answer")
			continue
		}
		s.held.refused[d] = sub
	}
}
