package worker

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/nats-io/nuid"
	"github.com/rs/zerolog"

	"github.com/nearmiss/nearmiss/internal/memory"
	"github.com/nearmiss/nearmiss/stream"
	"github.com/nearmiss/nearmiss/stream/internal/pull"
	"github.com/nearmiss/nearmiss/stream/internal/wait"
	"github.com/nearmiss/nearmiss/stream/registry"
)

// Config configures a [Worker]. The zero value of a field means its
// default.
type Config struct {
	stream.Names

	// Detectors to serve. Default: all that the broker knows.
	Detectors []string
	// CacheDir holds the releases that are in use. Required.
	CacheDir string
	// BatchSize is how many frames go to the scorer at once, at most. Default 16.
	BatchSize int
	// Lanes is how many batches of one detector are under way at once: one is
	// fetched or published while another is scored. Default 2.
	Lanes int
	// AckWait is how long the broker waits for a sign of life before it gives a
	// frame to another worker; the worker gives one every third of it. Default
	// 10 s: what was on its way when a worker or the broker died is late by as much.
	AckWait time.Duration
	// MaxDeliver is how often a frame is tried before it goes to the dead
	// letters. What counts is that its scoring failed, or that the process ended
	// while it scored this frame and nothing else, not that the frame was on its
	// way. Default 5.
	MaxDeliver int
	// RetryDelay is the wait before the second try of a frame; it doubles with
	// each. Default 1 s, at most a minute.
	RetryDelay time.Duration
	// PictureQueue is how many anomalies of a detector may wait for their pictures.
	// Those beyond it go without: frames never wait for pictures. Default 32.
	PictureQueue int
	// MaxImage bounds the image that an object-referenced frame may name, in
	// bytes. Default 64 MiB.
	MaxImage int64
	// Memory is what the images of all frames under way may take together, as
	// files; the loader bounds what they take as pixels. Default 512 MiB.
	Memory *memory.Budget
	// Inspect checks an image before it becomes a normal in the learn phase,
	// in which no release can. A code, a stable word, and a reason reject it; an
	// empty code accepts it. Default: whatever is not empty is accepted.
	Inspect func(image []byte) (code, reason string)
	// Meter counts what the worker does. Default: nothing is counted.
	Meter Meter
	// Tracer makes spans of frames and events. Default nil: nobody follows them.
	Tracer stream.Tracer
	// Drain is how long frames under way may take to finish when Run's context
	// ends. Default 20 s.
	Drain time.Duration
	// Resync is how often pointers and configurations are read again without a
	// cause. Default 30 s.
	Resync time.Duration
}

func (c Config) withDefaults() Config {
	c.BatchSize = cmp.Or(c.BatchSize, 16)
	c.Lanes = cmp.Or(c.Lanes, 2)
	c.AckWait = cmp.Or(c.AckWait, stream.FrameAckWait)
	c.MaxDeliver = cmp.Or(c.MaxDeliver, 5)
	c.RetryDelay = cmp.Or(c.RetryDelay, time.Second)
	c.PictureQueue = cmp.Or(c.PictureQueue, 32)
	c.MaxImage = cmp.Or(c.MaxImage, 64<<20)
	if c.Memory == nil {
		c.Memory = memory.New(512 << 20)
	}
	if c.Meter == nil {
		c.Meter = unmetered{}
	}
	c.Drain = cmp.Or(c.Drain, 20*time.Second)
	c.Resync = cmp.Or(c.Resync, 30*time.Second)
	return c
}

// Validate reports every setting that cannot work.
func (c Config) Validate() error {
	errs := []error{c.Names.Validate()}
	d := c.withDefaults()
	for _, name := range c.Detectors {
		errs = append(errs, stream.CheckToken("detector", name))
	}
	bad := func(wrong bool, format string, args ...any) {
		if wrong {
			errs = append(errs, fmt.Errorf(format, args...))
		}
	}
	bad(d.CacheDir == "", "worker: no cache folder is configured")
	bad(d.BatchSize < 1 || d.BatchSize > 1024, "worker: batch size %d: use 1 to 1024", d.BatchSize)
	bad(d.Lanes < 1 || d.Lanes > 64, "worker: %d lanes: use 1 to 64", d.Lanes)
	bad(d.AckWait < 100*time.Millisecond, "worker: ack wait %v: use 100ms or more", d.AckWait)
	bad(d.MaxDeliver < 1, "worker: %d deliveries: use 1 or more", d.MaxDeliver)
	bad(d.PictureQueue < 1 || d.PictureQueue > 1024, "worker: %d anomalies that wait for pictures: use 1 to 1024", d.PictureQueue)
	bad(d.RetryDelay < 0 || d.Drain < 0 || d.Resync < 0, "worker: delays must not be negative")
	return errors.Join(errs...)
}

type workerCounters struct {
	scored, anomalies, rejected, retried, dropped, learned, repeated, swaps, refused, pictured, unpictured atomic.Uint64
}

// Worker turns frames into scores and events. Several workers, in one process
// or in many, share the frames of a detector.
type Worker struct {
	cfg    Config
	nc     *nats.Conn
	loader Loader
	log    zerolog.Logger
	count  workerCounters
	id     string // names this worker among others
	recent recentFrames
	poke   chan struct{} // pointers or configurations may have changed
	epoch  *pull.Epoch

	workerStores

	unread  stream.Reporter // of what is stored and cannot be read
	cameras cameraActivities

	// scoring is held by all that score; who holds it alone scores a frame that may
	// end the process.
	scoring sync.RWMutex

	mu      sync.Mutex
	runners map[string]*detectorRunner
}

// workerStores are what a worker has opened of the installation: Run does before
// any runner is started.
type workerStores struct {
	js        jetstream.JetStream
	in        *stream.Installation
	registry  *registry.Registry
	detectors *stream.Detectors
	jobs      *stream.Jobs
	large     jetstream.ObjectStore // images of frames
	images    jetstream.ObjectStore // of anomalies
	evidence  jetstream.ObjectStore
	work      jetstream.KeyValue
	events    jetstream.Stream
	created   atomic.Int64 // when the frames stream was created, Unix nanoseconds
	opened    atomic.Bool  // what it needs is there
	window    atomic.Int64 // how long the broker remembers event ids, nanoseconds
}

// New prepares a worker on a connection that the caller closes after Run
// has returned; see [stream.Connect].
func New(cfg Config, nc *nats.Conn, loader Loader, log zerolog.Logger) (*Worker, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	return &Worker{
		cfg: cfg.withDefaults(), nc: nc, loader: loader,
		log:     log.With().Str("component", "worker").Logger(),
		id:      nuid.Next(),
		poke:    make(chan struct{}, 1),
		epoch:   pull.NewEpoch(),
		runners: map[string]*detectorRunner{},
	}, nil
}

// Stats returns the worker's counters.
func (w *Worker) Stats() stream.WorkerStats {
	c := &w.count
	return stream.WorkerStats{
		Scored: c.scored.Load(), Anomalies: c.anomalies.Load(), Rejected: c.rejected.Load(), Retried: c.retried.Load(),
		Dropped: c.dropped.Load(), Learned: c.learned.Load(), Repeated: c.repeated.Load(), Swaps: c.swaps.Load(), Refused: c.refused.Load(),
		Pictured: c.pictured.Load(), Unpictured: c.unpictured.Load(),
	}
}

// Run serves until ctx ends, finishes the frames under way, and gives up on
// them after the drain time: the broker then gives them to another worker. It
// waits for a broker that is not there or not set up yet.
func (w *Worker) Run(ctx context.Context) error {
	if err := w.open(ctx); err != nil {
		if ctx.Err() != nil {
			return nil
		}
		return err
	}
	w.opened.Store(true)
	stopService, err := w.service(ctx)
	if err != nil {
		return err
	}
	defer stopService()
	// work outlives ctx by the drain time.
	work, kill := context.WithCancel(context.WithoutCancel(ctx))
	defer kill()

	var helpers sync.WaitGroup
	helpers.Go(func() {
		w.follow(ctx, "releases", func(ctx context.Context) error { return w.registry.Watch(ctx, w.wake) })
	})
	helpers.Go(func() {
		w.follow(ctx, "detectors", func(ctx context.Context) error { return w.detectors.Watch(ctx, w.wake) })
	})
	helpers.Go(func() { w.moveDeadLetters(ctx) })
	helpers.Go(func() { w.adoptFrames(ctx) })

	// After a reconnect the watches need seconds to wake: read again at once.
	helpers.Go(func() {
		w.epoch.Follow(ctx, w.nc, func() {
			w.log.Info().Msg("connected again: reading pointers and configurations")
			w.reopen(ctx)
			w.wake()
		})
	})
	helpers.Go(func() { w.evict(ctx) })
	helpers.Go(func() { w.watchCameras(ctx) })
	tick := time.Tick(w.cfg.Resync)

	var runners sync.WaitGroup
	w.log.Info().Int("batch", w.cfg.BatchSize).Int("lanes", w.cfg.Lanes).Msg("worker is up")
	for ctx.Err() == nil {
		if err := w.refresh(ctx, work, &runners); err != nil && ctx.Err() == nil {
			w.log.Warn().Err(err).Msg("cannot read what to serve: going on with what is known")
		}
		select {
		case <-ctx.Done():
		case <-w.poke:
		case <-tick:
		}
	}

	done := make(chan struct{})
	go func() {
		runners.Wait()
		helpers.Wait()
		close(done)
	}()
	lost := w.away(done)
	select {
	case <-done:
	case <-lost:
		kill() // nothing can be finished without a broker
		<-done
	case <-time.After(w.cfg.Drain):
		w.log.Warn().Dur("drain", w.cfg.Drain).Msg("frames under way did not finish in time: they go to another worker")
		kill()
		<-done
	}
	if w.nc.IsConnected() {
		last, cancel := context.WithTimeout(context.Background(), 2*time.Second)
		w.leave(last)
		cancel()
		if err := w.nc.FlushTimeout(2 * time.Second); err != nil {
			w.log.Debug().Err(err).Msg("last acknowledgements may be late")
		}
	}
	w.log.Info().Uint64("scored", w.count.scored.Load()).Uint64("anomalies", w.count.anomalies.Load()).Msg("worker is down")
	return nil
}

// away is closed when the broker has been away for two seconds before done is.
func (w *Worker) away(done <-chan struct{}) <-chan struct{} {
	lost := make(chan struct{})
	go func() {
		for n := 0; n < 20; {
			select {
			case <-done:
				return
			case <-time.After(100 * time.Millisecond):
			}
			if n++; w.nc.IsConnected() {
				n = 0
			}
		}
		close(lost)
	}()
	return lost
}

// evict keeps this machine's cache of releases from growing for ever.
func (w *Worker) evict(ctx context.Context) {
	for ctx.Err() == nil {
		n, err := w.registry.Evict(ctx, evictAfter)
		switch {
		case err != nil && ctx.Err() == nil:
			w.log.Debug().Err(err).Msg("cannot clear the cache of releases")
		case n > 0:
			w.log.Info().Int("releases", n).Msg("cleared from the cache")
		}
		wait.Pause(ctx, evictAfter)
	}
}

// evictAfter is how old a cached release must be to go, when nothing points to
// it.
const evictAfter = time.Hour

// wake has pointers and configurations read again soon.
func (w *Worker) wake() {
	select {
	case w.poke <- struct{}{}:
	default:
	}
}

// open waits for the broker and its streams.
func (w *Worker) open(ctx context.Context) error {
	var err error
	if w.js, err = w.cfg.JetStreamOn(w.nc, jetstream.WithPublishAsyncMaxPending(1024), jetstream.WithPublishAsyncTimeout(stream.PublishWait)); err != nil {
		return fmt.Errorf("start worker: %w", err)
	}
	w.in = stream.NewCachingInstallation(w.js, w.cfg.Names, w.cfg.CacheDir)
	return stream.Await(ctx, w.log, func(step context.Context) error {
		frames, err := w.js.Stream(step, w.cfg.FramesStream())
		if err != nil {
			return fmt.Errorf("find stream %s: %w", w.cfg.FramesStream(), err)
		}
		w.created.Store(frames.CachedInfo().Created.UnixNano())
		events, err := w.js.Stream(step, w.cfg.EventsStream())
		if err != nil {
			return fmt.Errorf("find stream %s: %w", w.cfg.EventsStream(), err)
		}
		w.events = events
		w.window.Store(int64(events.CachedInfo().Config.Duplicates))
		s, err := w.in.Stores(step)
		if err != nil {
			return err
		}
		w.registry, w.detectors, w.jobs = s.Registry, s.Detectors, s.Jobs
		if w.large, err = w.js.ObjectStore(step, w.cfg.LargeBucket()); err != nil {
			return noBucket(w.cfg.LargeBucket(), err)
		}
		if w.images, err = w.js.ObjectStore(step, w.cfg.ImagesBucket()); err != nil {
			return noBucket(w.cfg.ImagesBucket(), err)
		}
		if w.evidence, err = w.js.ObjectStore(step, w.cfg.EvidenceBucket()); err != nil {
			return err
		}
		if w.work, err = w.js.KeyValue(step, w.cfg.WorkBucket()); err != nil {
			return noBucket(w.cfg.WorkBucket(), err)
		}
		return nil
	})
}

func noBucket(name string, err error) error {
	return fmt.Errorf("find bucket %s (nearmiss up, broker and broker --setup make it): %w", name, err)
}

// reopen learns whether the frames stream is the one it was.
func (w *Worker) reopen(ctx context.Context) {
	step, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	if s, err := w.js.Stream(step, w.cfg.FramesStream()); err == nil {
		w.created.Store(s.CachedInfo().Created.UnixNano())
	}
}

// dupWindow is how long the broker remembers event ids.
func (w *Worker) dupWindow() time.Duration { return time.Duration(w.window.Load()) }

// follow keeps a watch running. It begins anew after a reconnect: the old one
// would need 10 to 20 seconds to notice.
func (w *Worker) follow(ctx context.Context, what string, watch func(context.Context) error) {
	for ctx.Err() == nil {
		within, cancel := w.epoch.Within(ctx)
		err := watch(within)
		cancel()
		if err != nil && ctx.Err() == nil {
			w.log.Debug().Err(err).Str("of", what).Msg("watch ended: starting it again")
			wait.Pause(ctx, time.Second)
		}
		w.wake()
	}
}

// refresh brings the runners to what the broker says: one for each detector that
// has a configuration or a release.
func (w *Worker) refresh(ctx, work context.Context, running *sync.WaitGroup) error {
	step, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	pointers, shadows, bad, err := w.registry.Pointers(step)
	if err != nil {
		return err
	}
	list, unread, err := w.detectors.Check(step)
	if err != nil {
		return err
	}
	w.unread.Report(step, w.in, w.log, append(bad, unread...))
	confs := map[string]stream.Detector{}
	for _, d := range list {
		confs[d.Name] = d
	}
	for name := range pointers {
		if _, ok := confs[name]; !ok {
			confs[name] = w.unconfigured(name, unread)
		}
	}
	if len(w.cfg.Detectors) > 0 {
		only := map[string]stream.Detector{}
		for _, name := range w.cfg.Detectors {
			d, ok := confs[name]
			if !ok {
				d = stream.Detector{Name: name}
			}
			only[name] = d
		}
		confs = only
	}

	w.mu.Lock()
	defer w.mu.Unlock()
	for name, conf := range confs {
		l := w.runners[name]
		if l == nil {
			l = newDetectorRunner(w, name)
			w.runners[name] = l
			mine, stop := context.WithCancel(ctx)
			l.stop = stop
			running.Go(func() { l.run(mine, work) })
		}
		l.set(wanted{conf: conf.WithDefaults(), active: pointers[name], shadow: shadows[name]})
	}
	for name, l := range w.runners {
		if _, ok := confs[name]; !ok {
			w.log.Info().Str("detector", name).Msg("detector is gone")
			l.stop()
			delete(w.runners, name)
			w.cfg.Meter.Gone(name)
		}
	}
	return nil
}

// unconfigured is what holds for a detector that has a release and no
// configuration. One whose configuration cannot be read goes on with the one that
// is in force; where none is, its images are not kept: it may have forbidden that.
func (w *Worker) unconfigured(name string, unread []stream.Unreadable) stream.Detector {
	if !slices.ContainsFunc(unread, func(u stream.Unreadable) bool { return u.Key == name }) {
		return stream.Detector{Name: name}
	}
	w.mu.Lock()
	l := w.runners[name]
	w.mu.Unlock()
	if l != nil {
		if conf, _, _, _ := l.state(); conf.Name != "" {
			return conf
		}
	}
	return stream.Detector{Name: name, NoEvidence: true}
}
