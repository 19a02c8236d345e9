package stream

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"github.com/rs/zerolog"

	"github.com/nearmiss/nearmiss/stream/registry"
)

// line is a worker's part in one detector: its release and the lanes that score
// with it.
//
// A lane borrows the release for one batch. The swapper loads a new release
// beside the old one, exchanges the two between batches, and closes the old one
// when the last batch has given it back.
type line struct {
	w    *Worker
	name string
	log  zerolog.Logger
	stop context.CancelFunc

	mu      sync.Mutex
	conf    Detector
	target  registry.Pointer // what should be served; zero: nothing
	cur     *loaded          // what is served; nil: nothing yet
	changed chan struct{}    // closed and replaced when any of the above changes
	refused refusal          // the last release that was not fit
}

// loaded is a release in service.
type loaded struct {
	scorer  Scorer
	pointer registry.Pointer
	users   sync.WaitGroup
}

type refusal struct {
	revision uint64 // of the pointer
	err      error
}

func newLine(w *Worker, name string) *line {
	return &line{w: w, name: name, log: w.log.With().Str("detector", name).Logger(), changed: make(chan struct{})}
}

// want tells the line what the broker says. It does not wait.
func (l *line) want(conf Detector, target registry.Pointer) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.conf.Revision == conf.Revision && l.conf.Name != "" && l.target == target {
		return
	}
	l.conf, l.target = conf, target
	l.signal()
}

func (l *line) signal() {
	close(l.changed)
	l.changed = make(chan struct{})
}

// borrow returns the release in service, to be given back with users.Done, or
// nil.
func (l *line) borrow() *loaded {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.cur != nil {
		l.cur.users.Add(1)
	}
	return l.cur
}

func (l *line) state() (conf Detector, target registry.Pointer, cur *loaded, changed <-chan struct{}) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.conf, l.target, l.cur, l.changed
}

// run serves the detector until ctx ends and the batches under way are done;
// work is the context of those.
func (l *line) run(ctx, work context.Context) {
	var all sync.WaitGroup
	for range l.w.cfg.Lanes {
		all.Go(func() { l.lane(ctx, work) })
	}
	all.Go(func() { l.learn(ctx, work) })
	all.Go(func() { l.shed(ctx) })
	l.swapper(ctx, work)
	all.Wait()
	l.mu.Lock()
	cur := l.cur
	l.cur = nil
	l.mu.Unlock()
	if cur != nil {
		l.retire(cur)
	}
}

// consumer is the durable consumer that all workers of the detector share.
func (l *line) consumer(ctx context.Context) (jetstream.Consumer, error) {
	step, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	c, err := l.w.js.CreateOrUpdateConsumer(step, l.w.cfg.FramesStream(), jetstream.ConsumerConfig{
		Durable: framesConsumer(l.name), Description: "workers of detector " + l.name,
		FilterSubject: l.w.cfg.Frames(l.name, "*"),
		AckPolicy:     jetstream.AckExplicitPolicy, AckWait: l.w.cfg.AckWait, MaxDeliver: l.w.cfg.MaxDeliver,
		MaxAckPending: 10_000,
	})
	if err != nil {
		return nil, fmt.Errorf("frames consumer of detector %s: %w", l.name, err)
	}
	return c, nil
}

// lane takes batch after batch while there is a release.
func (l *line) lane(ctx, work context.Context) {
	var cons jetstream.Consumer
	for ctx.Err() == nil {
		if _, _, cur, changed := l.state(); cur == nil {
			select {
			case <-ctx.Done():
			case <-changed:
			}
			continue
		}
		if cons == nil {
			var err error
			if cons, err = l.consumer(ctx); err != nil {
				if ctx.Err() == nil {
					l.log.Warn().Err(err).Msg("cannot take frames yet")
					pause(ctx, time.Second)
				}
				continue
			}
		}
		msgs, err := l.w.epoch.fetch(ctx, cons, l.w.cfg.BatchSize)
		if err != nil && ctx.Err() == nil {
			l.log.Debug().Err(err).Msg("cannot take frames")
			if !l.w.nc.IsConnected() || errors.Is(err, jetstream.ErrConsumerNotFound) || errors.Is(err, jetstream.ErrConsumerDeleted) {
				cons = nil
			}
			pause(ctx, 250*time.Millisecond)
			continue
		}
		if len(msgs) == 0 {
			continue
		}
		rel := l.borrow()
		if rel == nil { // only at the end of Run
			continue
		}
		l.handle(work, rel, msgs)
		rel.users.Done()
	}
}

// swapper follows the target until ctx ends.
func (l *line) swapper(ctx, work context.Context) {
	told := false
	for ctx.Err() == nil {
		conf, target, cur, changed := l.state()
		switch {
		case target.Release == "":
			if !told {
				told = true
				if conf.LearnFrames > 0 {
					l.log.Info().Int("frames", conf.LearnFrames).Msg("no release yet: learning from the first frames")
				} else {
					l.log.Warn().Msg("no release yet: frames wait in the queue")
				}
			}
		case cur != nil && cur.pointer.Release == target.Release:
		case l.refused.revision == target.Revision:
		default:
			if !l.swap(ctx, work, target, cur) {
				pause(ctx, time.Second)
				continue
			}
		}
		select {
		case <-ctx.Done():
		case <-changed:
		}
	}
}

// swap takes a release into service, or refuses it. It returns false when it
// could not find out which, for the broker's sake.
func (l *line) swap(ctx, work context.Context, target registry.Pointer, old *loaded) bool {
	log := l.log.With().Str("release", short(target.Release)).Logger()
	begin := time.Now()
	scorer, err := l.load(ctx, target.Release)
	if ctx.Err() != nil {
		if scorer != nil {
			_ = scorer.Close()
		}
		return true
	}
	if err != nil {
		if retryable(err) && !unfit(err) {
			log.Warn().Err(err).Msg("cannot get the release yet")
			return false
		}
		l.w.count.refused.Add(1)
		l.mu.Lock()
		l.refused = refusal{revision: target.Revision, err: err}
		l.mu.Unlock()
		log.Error().Err(err).Bool("serving_another", old != nil).Msg("release refused")
		return true
	}
	fresh := &loaded{scorer: scorer, pointer: target}
	l.mu.Lock()
	l.cur = fresh
	l.signal()
	l.mu.Unlock()
	l.w.count.swaps.Add(1)
	log.Info().Dur("took", time.Since(begin)).Msg("release is in service")
	if old != nil {
		l.retire(old)
	}
	return true
}

// loadError is a release that the loader found unfit.
type loadError struct{ err error }

func (e *loadError) Error() string { return e.err.Error() }
func (e *loadError) Unwrap() error { return e.err }

// unfit says whether err is the release's own fault.
func unfit(err error) bool {
	var le *loadError
	return errors.As(err, &le) || errors.Is(err, registry.ErrCorrupt) || errors.Is(err, registry.ErrBadManifest) || errors.Is(err, registry.ErrNoRelease)
}

func (l *line) load(ctx context.Context, digest string) (s Scorer, err error) {
	dir, err := l.w.registry.Get(ctx, digest)
	if err != nil {
		return nil, err
	}
	defer func() {
		if p := recover(); p != nil {
			s, err = nil, &loadError{fmt.Errorf("open release %s: panic: %v", short(digest), p)}
		}
	}()
	s, err = l.w.loader.Load(ctx, dir)
	if err != nil {
		return nil, &loadError{fmt.Errorf("open release %s: %w", short(digest), err)}
	}
	return s, nil
}

// retire closes a release when nobody uses it any more.
func (l *line) retire(old *loaded) {
	old.users.Wait()
	if err := old.scorer.Close(); err != nil {
		l.log.Warn().Err(err).Str("release", short(old.pointer.Release)).Msg("closing the release failed")
	}
}

func short(digest string) string {
	if len(digest) > 12 {
		return digest[:12]
	}
	return digest
}
