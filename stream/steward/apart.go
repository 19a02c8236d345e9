package steward

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/nearmiss/nearmiss/stream"
)

// A steward apart from the broker keeps nothing between two looks but what is in the
// stream's configuration, so that it goes on where another left off and several want
// the same: who is refused is missing among the subjects, and what the queue may hold
// when nobody is stands in the metadata. They change the stream one at a time, in turns.

// apart is what only a steward apart has.
type apart struct {
	refused map[string]*nats.Subscription // to the frames of detectors that the stream does not take
	others  turn                          // the turn of another, to change the stream
}

// frameBytes is the metadata that says how much the queue may hold, while it may hold
// more for those that are within their share.
const frameBytes = "nearmiss-frames-max-bytes"

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
	if n, err := strconv.ParseInt(have.Metadata[frameBytes], 10, 64); err == nil && n > 0 {
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
// errNotNow where another one apart has just changed the stream, or is about to.
var (
	errAttended = errors.New("there is a steward beside the broker")
	errNotNow   = errors.New("another steward changes the frame queue")
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
	switch now, err := s.js.Stream(ctx, s.cfg.FramesStream()); {
	case err != nil:
		return err
	case !asPlanned(now.CachedInfo().Config, have.Subjects, have.MaxBytes):
		s.look()
		return errNotNow
	}
	refuse()
	cfg := have
	cfg.Subjects, cfg.MaxBytes = p.subjects, p.limit
	cfg.Metadata = maps.Clone(have.Metadata)
	delete(cfg.Metadata, frameBytes)
	if p.takes != nil {
		if cfg.Metadata == nil {
			cfg.Metadata = map[string]string{}
		}
		cfg.Metadata[frameBytes] = strconv.FormatInt(s.cfg.FramesMaxBytes, 10)
	}
	_, err = s.js.UpdateStream(ctx, cfg)
	if _, ok := errors.AsType[*jetstream.APIError](err); ok && cfg.MaxBytes > have.MaxBytes {
		cfg.MaxBytes = have.MaxBytes
		_, err = s.js.UpdateStream(ctx, cfg)
	}
	return err
}

// turnKey is in the bucket of work while a steward changes the stream. Of two changes at
// once, both compared with the configuration before them, a server makes the same
// subscription twice, and stores every frame twice from then on (nats-server 2.15,
// stream.updateWithAdvisory).
const turnKey = "steward"

// turnLasts is after how long without an end a turn is taken from who has it: longer
// than a look at the queue may take.
const turnLasts = 15 * time.Second

// turn is the turn of another steward that was seen last, by our clock.
type turn struct {
	revision uint64
	since    time.Time
}

// takeTurn returns what ends the turn, or errNotNow where it is another's.
func (s *Steward) takeTurn(ctx context.Context) (end func(), err error) {
	kv, err := s.js.KeyValue(ctx, s.cfg.WorkBucket())
	if err != nil {
		return nil, fmt.Errorf("wait for a turn to change the frame queue: %w", err)
	}
	revision, err := kv.Create(ctx, turnKey, nil)
	if errors.Is(err, jetstream.ErrKeyExists) {
		revision, err = s.takeOver(ctx, kv)
	}
	if err != nil {
		return nil, fmt.Errorf("write %s into bucket %s, to change the frame queue: %w", turnKey, s.cfg.WorkBucket(), err)
	}
	return func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
		defer cancel()
		_ = kv.Purge(ctx, turnKey, jetstream.LastRevision(revision)) // in vain: others take it over
	}, nil
}

// takeOver takes the turn of a steward that has not ended it in time.
func (s *Steward) takeOver(ctx context.Context, kv jetstream.KeyValue) (revision uint64, err error) {
	e, err := kv.Get(ctx, turnKey)
	if errors.Is(err, jetstream.ErrKeyNotFound) {
		return 0, errNotNow // it has ended meanwhile: the next look finds out what became of it
	}
	if err != nil {
		return 0, err
	}
	if s.apart.others.revision != e.Revision() {
		s.apart.others = turn{e.Revision(), time.Now()}
	}
	if time.Since(s.apart.others.since) < turnLasts {
		return 0, errNotNow
	}
	revision, err = kv.Update(ctx, turnKey, nil, e.Revision())
	if _, ok := errors.AsType[*jetstream.APIError](err); ok {
		return 0, errNotNow // somebody was faster
	}
	return revision, err
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
