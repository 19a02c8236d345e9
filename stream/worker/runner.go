package worker

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"github.com/rs/zerolog"

	"github.com/nearmiss/nearmiss/stream"
	"github.com/nearmiss/nearmiss/stream/internal/text"
	"github.com/nearmiss/nearmiss/stream/internal/wait"
	"github.com/nearmiss/nearmiss/stream/registry"
)

// detectorRunner is a worker's part in one detector: its release, maybe a candidate
// beside it, and the lanes that score with them.
//
// A lane borrows the releases for one batch. The swapper loads a new release
// beside the old one, exchanges the two between batches, and closes the old one
// when the last batch has given it back.
type detectorRunner struct {
	w       *Worker
	name    string
	log     zerolog.Logger
	stop    context.CancelFunc
	recent  recentScores
	hands   inHand
	pace    pacer
	making  making
	notices sync.WaitGroup

	pictureTasks chan pictureTask // anomalies whose pictures are to be made
	added        uint64           // bytes of pictures since bounded; drawPictures's
	bounded      time.Time        // when old pictures were last looked for; drawPictures's

	inService
}

// inService is what a detector's runner serves, and what it should.
type inService struct {
	// Lock order: detectorRunner.mu, then loaded.mu.
	mu           sync.Mutex
	want         wanted
	cur          *loaded             // what is served; nil: nothing yet
	shadow       *loaded             // the candidate; nil: none
	shadowReport stream.ShadowReport // of the candidate
	changed      context.Context     // ends, and is replaced, when any of the above changes
	change       context.CancelFunc  // of changed
	refused      map[string]uint64   // release → revision of the pointer with which it was refused
}

// wanted is what the broker says of a detector.
type wanted struct {
	conf   stream.Detector
	active registry.Pointer // zero: nothing is to be served
	shadow registry.Pointer // zero: no candidate
}

// loaded is a release in service.
type loaded struct {
	scorer  Scorer
	pointer registry.Pointer
	users   sync.WaitGroup

	mu    sync.Mutex
	drift map[string]*drift // by camera
}

func newDetectorRunner(w *Worker, name string) *detectorRunner {
	l := &detectorRunner{
		w: w, name: name, log: w.log.With().Str("detector", name).Logger(),
		inService:    inService{refused: map[string]uint64{}},
		pictureTasks: make(chan pictureTask, w.cfg.PictureQueue),
		pace:         pacer{within: w.cfg.AckWait / 4, memory: w.cfg.Memory.Total() / 8, most: w.cfg.BatchSize},
	}
	l.changed, l.change = context.WithCancel(context.Background())
	return l
}

// set tells the runner what the broker says. It does not wait.
func (l *detectorRunner) set(w wanted) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.want.conf.Name != "" && l.want.conf.Revision == w.conf.Revision && l.want.active == w.active && l.want.shadow == w.shadow {
		return
	}
	l.want = w
	l.signal()
}

func (l *detectorRunner) signal() {
	l.change()
	l.changed, l.change = context.WithCancel(context.Background())
}

// borrow returns the releases in service, each nil or to be given back with
// users.Done.
func (l *detectorRunner) borrow() (cur, shadow *loaded) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.cur != nil {
		l.cur.users.Add(1)
	}
	if l.shadow != nil {
		l.shadow.users.Add(1)
	}
	return l.cur, l.shadow
}

func (l *detectorRunner) state() (conf stream.Detector, target registry.Pointer, cur *loaded, changed context.Context) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.want.conf, l.want.active, l.cur, l.changed
}

// run serves the detector until ctx ends and the batches under way are done;
// work is the context of those.
func (l *detectorRunner) run(ctx, work context.Context) {
	var all, lanes, pictures sync.WaitGroup
	for range l.w.cfg.Lanes {
		lanes.Go(func() { l.lane(ctx, work) })
	}
	pictures.Go(func() { l.drawPictures(work) })
	all.Go(func() { l.learn(ctx, work) })
	all.Go(func() { l.shed(ctx) })
	l.swapper(ctx, work)
	lanes.Wait()
	close(l.pictureTasks)
	pictures.Wait()
	all.Wait()
	l.notices.Wait()
	l.mu.Lock()
	cur, shadow := l.cur, l.shadow
	l.cur, l.shadow = nil, nil
	l.mu.Unlock()
	l.retire(cur)
	l.retire(shadow)
}

// ensureConsumer makes the durable consumer that all workers of the detector share.
func (l *detectorRunner) ensureConsumer(ctx context.Context) error {
	_, err := l.w.js.CreateOrUpdateConsumer(ctx, l.w.cfg.FramesStream(), stream.FramesConsumerConfig(l.w.cfg.Names, l.name, l.w.cfg.AckWait))
	if err != nil {
		return fmt.Errorf("frames consumer of detector %s: %w", l.name, err)
	}
	return nil
}

// making is what a runner knows of its consumer.
type making struct {
	mu       sync.Mutex // held while it is made
	made     bool
	patience time.Duration // of the next try
}

// makeConsumer has the consumer made, or brought to this worker's configuration, once;
// anew says that it may be gone since. It is done by one lane at a time: the others
// do not wait for it, and take what there is. A server whose cluster has no leader
// yet answers nothing, and forgets the request; one that is only slow must get its
// time, so that each try in vain gives it more.
func (l *detectorRunner) makeConsumer(ctx context.Context, anew bool) error {
	m := &l.making
	if !m.mu.TryLock() {
		return nil
	}
	defer m.mu.Unlock()
	if m.made && !anew {
		return nil
	}
	m.patience = min(max(2*m.patience, stream.Leaderless), 5*stream.Leaderless)
	step, cancel := context.WithTimeout(ctx, m.patience)
	defer cancel()
	err := l.ensureConsumer(step)
	if err == nil {
		m.made, m.patience = true, 0
	}
	return err
}

// takeAll calls handle with the detector's frames, batch by batch, until ctx ends.
// Whatever happens to the broker, it goes on when that is back.
func (l *detectorRunner) takeAll(ctx context.Context, handle func([]jetstream.Msg)) {
	for ctx.Err() == nil {
		within, cancel := l.w.epoch.Within(ctx)
		err := l.takeFrames(within, handle)
		cancel()
		if err != nil && ctx.Err() == nil {
			l.log.Debug().Err(err).Msg("cannot take frames")
			wait.Pause(ctx, time.Second)
		}
	}
}

// takeFrames is takeAll for as long as ctx lasts. While nobody answers, which is so
// while the servers of a cluster agree on a new leader, it asks again and again: what
// an earlier request asked for may still come.
func (l *detectorRunner) takeFrames(ctx context.Context, handle func([]jetstream.Msg)) error {
	t, err := newTaker(l.w.nc, l.w.cfg.Names, l.w.cfg.FramesStream(), stream.FramesConsumer(l.name))
	if err != nil {
		return err
	}
	defer t.close()
	var since time.Time // nobody answers, or it was tried to make the consumer
	for ctx.Err() == nil {
		if err := l.makeConsumer(ctx, !since.IsZero() && time.Since(since) > stream.Leaderless); err != nil && ctx.Err() == nil {
			l.log.Debug().Err(err).Msg("cannot make the consumer of frames")
			since = time.Now()
		}
		msgs, err := t.take(ctx, &l.pace, l.w.cfg.BatchSize)
		if len(msgs) > 0 {
			handle(msgs)
		}
		switch {
		case err == nil:
			since = time.Time{}
			continue
		case !errors.Is(err, errGone):
			return err
		case since.IsZero():
			l.log.Debug().Err(err).Msg("cannot take frames yet")
			since = time.Now()
		}
		wait.Pause(ctx, takeAgain)
	}
	return nil
}

// takeAgain is the wait before frames are asked for again where nobody answered.
const takeAgain = 250 * time.Millisecond

// lane takes batch after batch while there is a release.
func (l *detectorRunner) lane(ctx, work context.Context) {
	for ctx.Err() == nil {
		_, _, cur, changed := l.state()
		if cur != nil { // and stays
			break
		}
		wait.Any(ctx, changed)
	}
	l.takeAll(ctx, func(msgs []jetstream.Msg) {
		rel, shadow := l.borrow() // rel is there: it goes only after the lanes
		l.handle(work, rel, shadow, msgs)
		rel.users.Done()
		if shadow != nil {
			shadow.users.Done()
		}
	})
}

// swapper brings the releases in service to those that are wanted, until ctx
// ends.
func (l *detectorRunner) swapper(ctx, work context.Context) {
	logged := false
	again := wait.Patient()
	for ctx.Err() == nil {
		l.mu.Lock()
		want, cur, shadow, changed := l.want, l.cur, l.shadow, l.changed
		l.mu.Unlock()
		if want.active.Release == "" && cur == nil && !logged && want.conf.Name != "" {
			logged = true
			if n := want.conf.LearnFrames; n > 0 {
				l.log.Info().Int("frames", n).Msg("no release yet: learning from the first frames")
			} else {
				l.log.Warn().Msg("no release yet: frames wait in the queue")
			}
		}
		ok := true
		if l.due(want.active, cur) {
			ok = l.swap(ctx, work, want.active, &l.cur)
		}
		if _, target, serving, _ := l.state(); ok && serving == nil && target == want.active && target.Release != "" {
			ok = l.fallBack(ctx, work, target) // it was refused
		}
		switch {
		case shadow != nil && shadow.pointer.Release != want.shadow.Release && want.shadow.Release == "":
			l.log.Info().Str("release", text.Short(shadow.pointer.Release)).Msg("candidate no longer scores alongside")
			l.exchange(&l.shadow, nil)
			l.w.cfg.Meter.Left(l.name, "candidate")
		case l.due(want.shadow, shadow):
			ok = l.swap(ctx, work, want.shadow, &l.shadow) && ok
		}
		if !ok {
			wait.Pause(ctx, again.NextBackOff())
			continue
		}
		again.Reset()
		wait.Any(ctx, changed)
	}
}

// due says whether a pointer names a release that is to be loaded.
func (l *detectorRunner) due(p registry.Pointer, have *loaded) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	rev, refused := l.refused[p.Release]
	return p.Release != "" && (have == nil || have.pointer.Release != p.Release) && !(refused && rev == p.Revision)
}

// swap takes a release into service, in one of the runner's two places, or
// refuses it. It returns false when it could not find out which, for the
// broker's sake.
func (l *detectorRunner) swap(ctx, work context.Context, target registry.Pointer, place **loaded) bool {
	role := "active"
	if place == &l.shadow {
		role = "candidate"
	}
	log := l.log.With().Str("release", text.Short(target.Release)).Str("role", role).Logger()
	begin := time.Now()
	scorer, err := l.load(ctx, target.Release)
	if ctx.Err() != nil {
		if scorer != nil {
			_ = scorer.Close()
		}
		return true
	}
	what := fmt.Sprintf("%s/%d", role, target.Revision)
	if err != nil {
		if stream.Retryable(err) && !unfit(err) {
			log.Warn().Err(err).Msg("cannot get the release yet")
			return false
		}
		l.w.count.refused.Add(1)
		l.w.cfg.Meter.Swap(l.name, role, target.Release, stream.ReleaseRefused, time.Since(begin))
		l.mu.Lock()
		l.refused[target.Release] = target.Revision
		serving := "no release serves"
		if l.cur != nil {
			serving = "release " + text.Short(l.cur.pointer.Release) + " goes on serving"
		}
		l.mu.Unlock()
		log.Error().Err(err).Msg("release refused: " + serving)
		l.notify(work, stream.Notice(stream.KindRelease, l.name, stream.NoCamera, target.Release, stream.ReleaseRefused, fmt.Sprintf("as the %s release: %v; %s", role, err, serving), what))
		return true
	}
	l.exchange(place, &loaded{scorer: scorer, pointer: target})
	l.w.count.swaps.Add(1)
	l.w.cfg.Meter.Swap(l.name, role, target.Release, stream.ReleaseInService, time.Since(begin))
	log.Info().Dur("took", time.Since(begin)).Msg("release is in service")
	l.notify(work, stream.Notice(stream.KindRelease, l.name, stream.NoCamera, target.Release, stream.ReleaseInService, "it is in service as the "+role+" release", what))
	return true
}

// exchange puts a release into its place between two batches, and closes what
// was there when nobody uses it any more.
func (l *detectorRunner) exchange(place **loaded, fresh *loaded) {
	l.mu.Lock()
	old := *place
	*place = fresh
	l.signal()
	l.mu.Unlock()
	l.retire(old)
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

func (l *detectorRunner) load(ctx context.Context, digest string) (s Scorer, err error) {
	dir, err := l.w.registry.Get(ctx, digest)
	if err != nil {
		return nil, err
	}
	defer func() {
		if p := recover(); p != nil {
			s, err = nil, &loadError{fmt.Errorf("open release %s: panic: %v", text.Short(digest), p)}
		}
	}()
	s, err = l.w.loader(ctx, dir)
	if err != nil {
		return nil, &loadError{fmt.Errorf("open release %s: %w", text.Short(digest), err)}
	}
	return s, nil
}

// retire closes a release when nobody uses it any more.
func (l *detectorRunner) retire(old *loaded) {
	if old == nil {
		return
	}
	old.users.Wait()
	if err := old.scorer.Close(); err != nil {
		l.log.Warn().Err(err).Str("release", text.Short(old.pointer.Release)).Msg("closing the release failed")
	}
}
