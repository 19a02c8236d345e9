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
	"slices"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/rs/zerolog"
	"golang.org/x/sync/errgroup"

	"github.com/nearmiss/nearmiss/stream"
	"github.com/nearmiss/nearmiss/stream/internal/wait"
	"github.com/nearmiss/nearmiss/stream/registry"
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

// Console serves the page.
type Console struct {
	cfg    Config
	log    zerolog.Logger
	tracer stream.Tracer // nil: nobody follows requests

	listener net.Listener
	loopback bool // only this machine reaches it
	secure   bool // browsers reach it by TLS

	base  context.Context // ends with Run
	tasks sync.WaitGroup  // that go on when who asked for them has gone
	busy  chan struct{}   // has as many as there are

	nc        *nats.Conn
	js        jetstream.JetStream
	client    *stream.Client
	normals   *stream.Normals
	people    *people
	feed      *feed
	index     *index
	hub       *hub
	holder    *holder
	curves    *curves
	pictures  *pictureCache
	overview  flight[overview]
	facts     flight[Facts] // by release
	page      *page
	setup     *setup
	ready     chan struct{} // closed when what is stored has been read
	in        *stream.Installation
	detectors *stream.Detectors
	registry  *registry.Registry
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
	c := &Console{
		cfg: cfg, log: log.With().Str("component", "console").Logger(), page: page, ready: make(chan struct{}), busy: make(chan struct{}, maxTasks),
		feed: newFeed(), index: newIndex(), hub: newHub(), curves: newCurves(), pictures: newPictureCache(),
		secure: cfg.Cert != "",
	}
	c.holder = newHolder(c)
	return c, nil
}

// Listen takes the address and returns the page's URL.
func (c *Console) Listen() (url string, err error) {
	l, err := net.Listen("tcp", c.cfg.Listen)
	if err != nil {
		return "", fmt.Errorf("serve the console: %w", err)
	}
	scheme := "http"
	if c.secure {
		cert, err := tls.LoadX509KeyPair(c.cfg.Cert, c.cfg.Key)
		if err != nil {
			return "", errors.Join(fmt.Errorf("serve the console: %w", err), l.Close())
		}
		l = tls.NewListener(l, &tls.Config{Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS12, NextProtos: []string{"h2", "http/1.1"}})
		scheme = "https"
	}
	c.listener = l
	if a, ok := l.Addr().(*net.TCPAddr); ok {
		c.loopback = a.IP.IsLoopback()
	}
	return scheme + "://" + l.Addr().String() + "/", nil
}

// Run serves until ctx ends, on a connection that the caller closes. Listen has
// been called.
func (c *Console) Run(ctx context.Context, nc *nats.Conn) error {
	// Long answers end with ctx, so that the server need not wait for them.
	work, cancel := context.WithCancel(ctx)
	defer cancel()
	c.base = work
	defer c.tasks.Wait()
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
	if err := c.open(ctx, nc); err != nil || ctx.Err() != nil {
		return err
	}
	if err := c.admit(); err != nil {
		return err
	}
	if err := c.readRules(ctx); err != nil && ctx.Err() == nil {
		c.log.Warn().Err(err).Msg("what detectors say of their incidents is read when one changes")
	}
	close(c.ready)
	g, ctx := errgroup.WithContext(ctx)
	for _, f := range []func(context.Context){
		c.followEvents, c.followDetectors, c.followFeedback, c.followScores, c.followJobs, c.followUsers, c.tick, c.holder.run,
	} {
		g.Go(func() error { f(ctx); return nil })
	}
	return g.Wait()
}

// open waits until the broker has what the console reads.
func (c *Console) open(ctx context.Context, nc *nats.Conn) (err error) {
	c.nc = nc
	if c.js, err = c.cfg.JetStreamOn(nc); err != nil {
		return err
	}
	c.client, c.in = stream.NewClient(nc, c.cfg.Names), stream.NewInstallation(c.js, c.cfg.Names)
	c.normals = c.in.Normals()
	logged := false
	for ctx.Err() == nil {
		if err = c.openBuckets(ctx); err == nil {
			return nil
		}
		if !logged {
			c.log.Warn().Err(err).Msg("the page waits for the broker")
			logged = true
		}
		wait.Pause(ctx, time.Second)
	}
	return nil
}

func (c *Console) openBuckets(ctx context.Context) (err error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	if c.detectors, err = c.in.Detectors(ctx); err != nil {
		return err
	}
	if c.registry, err = c.in.Registry(ctx); err != nil {
		return err
	}
	c.people, err = openPeople(ctx, c.js, c.cfg, c.log)
	return err
}

// ErrNoUsers is returned by Run for an address that others reach, while nobody has
// to say who they are.
var ErrNoUsers = errors.New("the console listens where others reach it, and there are no users: start it once with --setup, or listen on 127.0.0.1")

// admit decides who may come in when nobody is known yet.
func (c *Console) admit() error {
	if c.cfg.Setup != nil {
		c.setup = newSetup()
		c.cfg.Setup("#/setup?" + c.setup.token)
		return nil
	}
	if !c.loopback && c.people.empty() && c.cfg.ProxySecret == "" {
		return ErrNoUsers
	}
	return nil
}

// openToAll says whether everybody who reaches the page is an administrator.
func (c *Console) openToAll() bool { return c.loopback && c.people.empty() && c.cfg.Setup == nil }

// maxTasks is how many start has at once.
const maxTasks = 4

// start has f done, also when who asked for it has gone; false: there is too much
// of that already.
func (c *Console) start(f func(context.Context)) bool {
	select {
	case c.busy <- struct{}{}:
	default:
		return false
	}
	c.tasks.Go(func() {
		defer func() { <-c.busy }()
		f(c.base)
	})
	return true
}

// repeat calls f until ctx ends; f returns when the broker was away.
func (c *Console) repeat(ctx context.Context, what string, f func(context.Context) error) {
	for ctx.Err() == nil {
		if err := f(ctx); err != nil && ctx.Err() == nil {
			c.log.Warn().Err(err).Msgf("%s are followed again", what)
		}
		wait.Pause(ctx, time.Second)
	}
}

// loopbackHost says whether a host name or address can only mean this machine.
func loopbackHost(host string) bool {
	if host == "localhost" {
		return true
	}
	a, err := netip.ParseAddr(host)
	return err == nil && a.Unmap().IsLoopback()
}

// trusts says whether an address is a trusted proxy's.
func (c Config) trusts(addr netip.Addr) bool {
	return slices.ContainsFunc(c.Proxies, func(p netip.Prefix) bool { return p.Contains(addr.Unmap()) })
}
