package console

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/rs/zerolog"
	"golang.org/x/sync/errgroup"
	"golang.org/x/time/rate"

	"github.com/nearmiss/nearmiss/stream"
	"github.com/nearmiss/nearmiss/stream/sink"
)

// DefaultListen is where the page is served unless set otherwise.
const DefaultListen = "127.0.0.1:4280"

// Config configures a [Console]. The zero value of a field means its default.
type Config struct {
	stream.Names

	// Listen is host and port. Default [DefaultListen]; port 0 takes a free one.
	Listen string
	// Cert and Key are files of a TLS certificate; without them it is HTTP.
	Cert, Key string
	// Hosts are further names under which browsers reach the page. Requests for any
	// other are refused: another site's name may have been pointed at this address.
	Hosts []string
	// Proxies may say who asks, in X-Forwarded-For, -Proto and -Host.
	Proxies []netip.Prefix
	// ProxySecret, when set, lets a trusted proxy that sends it in X-Proxy-Secret say
	// who the user is, in X-Forwarded-User and X-Forwarded-Role.
	ProxySecret string
	// Idle ends a session that is not used, Max every session. Default 12 hours and
	// 7 days, the most.
	Idle, Max time.Duration
	// Setup lets the first administrator be made from any address, by a link that
	// Setup is called with. It is valid for half an hour.
	Setup func(path string)
	// Links are the addresses of pictures that sinks make, whose holders need not sign
	// in. Nil: there are none.
	Links *sink.Links
	// Version is shown on the page.
	Version string

	// Shrink makes a JPEG of at most side pixels of an image file that anybody may
	// have sent. Required.
	Shrink func(image []byte, side int) ([]byte, error)
	// Check says why an image file cannot be learned from. Required.
	Check func(image []byte) error
	// CheckSink says what of a sink cannot work, and fills in what its kind wants where
	// nothing is said. Required.
	CheckSink func(sink.Sink) (sink.Sink, error)
	// Describe reads a release's manifest. Required.
	Describe func(manifest []byte) (Facts, error)
	// FalseAlarms returns between which rates, at 95 % confidence, false alarms lie
	// where rate was set by that many held-out normals. Required.
	FalseAlarms func(heldOut int, rate float64) (low, high float64)

	cost int // of bcrypt, in tests
}

// Facts are what people want to know of a release.
type Facts struct {
	Method       string    `json:"method"`
	CreatedAt    time.Time `json:"created_at"`
	Model        string    `json:"model,omitempty"`
	K            int       `json:"k"`
	Normals      int       `json:"normals"` // in the bank
	Alpha        float64   `json:"false_alarm_rate"`
	Promised     float64   `json:"promised_rate"`
	SmallestRate float64   `json:"smallest_rate"`
	HeldOut      int       `json:"held_out"`
	Threshold    *float64  `json:"threshold"`
	Bytes        int64     `json:"bytes"`
}

func (c Config) withDefaults() Config {
	c.Listen = cmp.Or(c.Listen, DefaultListen)
	c.Idle = cmp.Or(c.Idle, 12*time.Hour)
	c.Max = cmp.Or(c.Max, stream.SessionAge)
	return c
}

// Validate reports every setting that cannot work.
func (c Config) Validate() error {
	errs := []error{c.Names.Validate()}
	d := c.withDefaults()
	if _, _, err := net.SplitHostPort(d.Listen); err != nil {
		errs = append(errs, fmt.Errorf("console: listen %q: give host and port, as %s", d.Listen, DefaultListen))
	}
	if (d.Cert == "") != (d.Key == "") {
		errs = append(errs, errors.New("console: a certificate needs its key, and a key its certificate"))
	}
	if d.Idle < time.Minute || d.Max < d.Idle || d.Max > stream.SessionAge {
		errs = append(errs, fmt.Errorf("console: sessions of %v idle and %v at most: use a minute or more, and up to %v", d.Idle, d.Max, stream.SessionAge))
	}
	if d.ProxySecret != "" && len(d.ProxySecret) < 16 {
		errs = append(errs, errors.New("console: the proxy's secret is short: use 16 characters or more"))
	}
	return errors.Join(errs...)
}

// Console serves the page. Each of its parts answers for one area of it, by what the
// backend has and what is followed.
type Console struct {
	cfg      Config
	tracer   stream.Tracer // nil: nobody follows requests
	listener net.Listener
	page     *page
	tasks    *tasks
	backend  *backend

	door    *door
	live    *live
	wall    *wall
	gallery *gallery
	alarms  *alarms
	tuning  *tuning
	jobs    *jobs
	sinks   *sinks
	dead    *dead
}

// New prepares a console. It does nothing until Listen and Run.
func New(cfg Config, log zerolog.Logger) (*Console, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	cfg = cfg.withDefaults()
	page, err := newPage()
	if err != nil {
		return nil, err
	}
	b := &backend{Names: cfg.Names, log: log.With().Str("component", "console").Logger(), ready: make(chan struct{})}
	t := &tasks{busy: make(chan struct{}, maxTasks)}
	feed, index, hub := newFeed(), newIndex(), newHub()
	d := &door{cfg: cfg, backend: b, secure: cfg.Cert != ""}
	w := &wall{backend: b, tasks: t, feed: feed, index: index, hub: hub}
	h := &holder{backend: b, index: index, hub: hub, wake: make(chan struct{}, 1), held: map[string]*heldVerdict{}}
	g := &gallery{backend: b, tasks: t, shrink: cfg.Shrink, links: cfg.Links, shrinks: rate.NewLimiter(shrinksPerSec, shrinksPerSec)}
	return &Console{
		cfg: cfg, page: page, tasks: t, backend: b, door: d, wall: w, gallery: g,
		live:   &live{door: d, feed: feed, index: index, hub: hub},
		alarms: &alarms{backend: b, feed: feed, index: index, hub: hub, holder: h, gallery: g},
		tuning: &tuning{cfg: cfg, backend: b, tasks: t, wall: w},
		jobs:   &jobs{backend: b, hub: hub, curves: map[string][]stream.Progress{}},
		sinks:  &sinks{b, cfg.CheckSink},
		dead:   &dead{b, w},
	}, nil
}

// Listen takes the address and returns the page's URL.
func (c *Console) Listen() (url string, err error) {
	l, err := net.Listen("tcp", c.cfg.Listen)
	if err != nil {
		return "", fmt.Errorf("serve the console: %w", err)
	}
	scheme := "http"
	if c.door.secure {
		cert, err := tls.LoadX509KeyPair(c.cfg.Cert, c.cfg.Key)
		if err != nil {
			return "", errors.Join(fmt.Errorf("serve the console: %w", err), l.Close())
		}
		l = tls.NewListener(l, &tls.Config{Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS12, NextProtos: []string{"h2", "http/1.1"}})
		scheme = "https"
	}
	c.listener = l
	if a, ok := l.Addr().(*net.TCPAddr); ok {
		c.door.loopback = a.IP.IsLoopback()
	}
	return scheme + "://" + l.Addr().String() + "/", nil
}

// Run serves until ctx ends, on a connection that the caller closes. Listen has
// been called.
func (c *Console) Run(ctx context.Context, nc *nats.Conn) error {
	// Long answers end with ctx, so that the server need not wait for them.
	work, cancel := context.WithCancel(ctx)
	defer cancel()
	c.tasks.base = work
	defer c.tasks.running.Wait()
	server := &http.Server{
		Handler: traced(c.tracer, c.handler()), ReadHeaderTimeout: 10 * time.Second, IdleTimeout: 2 * time.Minute, MaxHeaderBytes: 64 << 10,
		BaseContext: func(net.Listener) context.Context { return work },
	}
	g, within := errgroup.WithContext(work)
	g.Go(func() error {
		if err := server.Serve(c.listener); !errors.Is(err, http.ErrServerClosed) {
			return fmt.Errorf("serve the console: %w", err)
		}
		return nil
	})
	g.Go(func() error {
		<-within.Done()
		cancel()
		stop, done := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
		defer done()
		if server.Shutdown(stop) != nil {
			_ = server.Close()
		}
		return nil
	})
	g.Go(func() error { return c.work(within, nc) })
	return g.Wait()
}

// work connects the page with the broker's content.
func (c *Console) work(ctx context.Context, nc *nats.Conn) error {
	if err := c.backend.open(ctx, nc, c.door.open); err != nil || ctx.Err() != nil {
		return err
	}
	if err := c.door.admit(); err != nil {
		return err
	}
	if err := c.alarms.readRules(ctx); err != nil && ctx.Err() == nil {
		c.backend.log.Warn().Err(err).Msg("what detectors say of their incidents is read when one changes")
	}
	close(c.backend.ready)
	g, ctx := errgroup.WithContext(ctx)
	for _, f := range []func(context.Context){
		c.alarms.followEvents, c.alarms.followDetectors, c.alarms.followFeedback, c.wall.followScores, c.jobs.follow, c.door.followUsers, c.wall.tick, c.alarms.holder.run,
	} {
		g.Go(func() error { f(ctx); return nil })
	}
	return g.Wait()
}

// maxTasks is how many start has at once.
const maxTasks = 4

// tasks go on when who asked for them has gone.
type tasks struct {
	base    context.Context // ends with Run; set by it
	running sync.WaitGroup
	busy    chan struct{} // has as many as there are
}

// start has f done, also when who asked for it has gone; false: there is too much
// of that already.
func (t *tasks) start(f func(context.Context)) bool {
	select {
	case t.busy <- struct{}{}:
	default:
		return false
	}
	t.running.Go(func() {
		defer func() { <-t.busy }()
		f(t.base)
	})
	return true
}
