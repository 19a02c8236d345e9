package main

import (
	"context"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/nearmiss/nearmiss/stream"
	"github.com/nearmiss/nearmiss/stream/broker"
	"github.com/nearmiss/nearmiss/stream/metrics"
	"github.com/nearmiss/nearmiss/stream/sink"
)

// httpConfig is where a service answers health checks and scrapes.
type httpConfig struct {
	Listen string `yaml:"listen" env:"LISTEN"` // "" or off: not at all
	Pprof  bool   `yaml:"pprof" env:"PPROF"`
}

// httpFlag is the same for commands that read no configuration.
type httpFlag struct {
	HTTP string `name:"http" env:"NEARMISS_HTTP_LISTEN" placeholder:"ADDR" help:"Serve /livez, /readyz and /metrics at this address, such as 127.0.0.1:9420 (default: not at all)."`
}

// observer shows what a service does: metrics and health checks over HTTP, and
// signs of life to the process that started it.
type observer struct {
	*metrics.Metrics

	mu    sync.Mutex
	order []string
	ready map[string]func() []stream.Check // by part; nil: it has not begun
	told  bool
}

// observe runs a service of some parts beside the HTTP server of its process, which
// ends after it: what stops can be asked how far it is.
func observe(ctx context.Context, h httpConfig, o *output, parts []string, run func(context.Context, *observer) error) error {
	if err := metrics.Validate(h.Listen, h.Pprof); err != nil {
		return usageError{err}
	}
	v := &observer{
		Metrics: metrics.New(metrics.Build{Version: version, Commit: commit}),
		order:   parts, ready: map[string]func() []stream.Check{},
	}
	server := metrics.Server{Listen: h.Listen, Pprof: h.Pprof, Ready: v.checks, Metrics: v.Metrics, Log: o.Log}
	serve, stop := context.WithCancel(context.WithoutCancel(ctx))
	work, fail := context.WithCancelCause(ctx)
	defer fail(nil)
	var beside sync.WaitGroup
	beside.Go(func() {
		if err := server.Run(serve, nil); err != nil {
			fail(err)
		}
	})
	beside.Go(func() { keepAlive(serve) })
	stopping := context.AfterFunc(ctx, func() { notify("STOPPING=1") })
	defer stopping()
	err := run(work, v)
	stop()
	beside.Wait()
	if err == nil && ctx.Err() == nil {
		if cause := context.Cause(work); cause != nil {
			return cause
		}
	}
	return err
}

// begun says how a part's health is found out, and, when it was the last of the
// parts, to whoever started this process that it is up. A broker that is away keeps
// no service from being up: it waits.
func (v *observer) begun(part string, ready func() []stream.Check) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.ready[part] = ready
	if len(v.ready) == len(v.order) && !v.told {
		v.told = true
		notify("READY=1")
	}
}

func (v *observer) checks() []stream.Check {
	v.mu.Lock()
	defer v.mu.Unlock()
	var all []stream.Check
	for _, part := range v.order {
		ready := v.ready[part]
		if ready == nil {
			all = append(all, stream.Check{Name: part, Detail: "it starts"})
			continue
		}
		for _, c := range ready() {
			c.Name = part + ": " + c.Name
			all = append(all, c)
		}
	}
	return all
}

// linked are the checks of a part that is ready when it is connected.
func linked(nc *nats.Conn) func() []stream.Check {
	return func() []stream.Check {
		return []stream.Check{{Name: "broker", OK: nc.IsConnected(), Detail: nc.Status().String()}}
	}
}

// installation shows metrics of everything that the broker knows.
func (v *observer) installation(js jetstream.JetStream, n stream.Names) {
	v.Installation(stream.NewInstallation(js, n).Levels)
}

// broker shows metrics of the embedded broker and all that it knows, by a connection
// that leave closes.
func (v *observer) broker(b *broker.Broker, connect dial, conf config) (leave func(), err error) {
	v.certificates(b)
	js, err := serverFlags{}.streams(connect("metrics"))
	if err != nil {
		return nil, err
	}
	v.Connection(js.Conn())
	v.installation(js, stream.Names{Prefix: conf.Prefix})
	v.begun("broker", linked(js.Conn()))
	return js.Conn().Close, nil
}

// certificates shows when those of the embedded broker end.
func (v *observer) certificates(b *broker.Broker) {
	v.Certificates(func() map[string]time.Time {
		all, _ := b.Expiries() // the broker itself says which cannot be read
		ends := make(map[string]time.Time, len(all))
		for _, e := range all {
			ends[e.File] = e.NotAfter
		}
		return ends
	})
}

// engine shows metrics of the sinks that this process runs.
func (v *observer) engine(e *sink.Engine) {
	v.Sinks(func() []metrics.SinkState {
		var all []metrics.SinkState
		for _, s := range e.Statuses() {
			all = append(all, metrics.SinkState{Name: s.Name, Results: s.Results, Pending: s.Pending, Open: s.Open, Delay: s.Delay})
		}
		return all
	})
}

type exporterCmd struct {
	HTTP string `name:"http" default:"127.0.0.1:9420" env:"NEARMISS_HTTP_LISTEN" placeholder:"ADDR" help:"Address of /livez, /readyz and /metrics."`
	serverFlags
}

func (*exporterCmd) Help() string {
	return "For a NATS server of your own: queues, streams, stores, dead letters and releases as metrics. " +
		"nearmiss up and nearmiss broker show them themselves. It needs an identity with role operator.\n\n" +
		examples("nearmiss exporter --server tls://nats.example.org:4222 --nkey exporter.nk --http 0.0.0.0:9420")
}

func (c *exporterCmd) Run(ctx context.Context, o *output) error {
	return observe(ctx, httpConfig{Listen: c.HTTP}, o, []string{"exporter"}, func(ctx context.Context, v *observer) error {
		js, err := c.streams(c.await("exporter", o))
		if err != nil {
			return err
		}
		defer js.Conn().Close()
		v.Connection(js.Conn())
		v.installation(js, c.names())
		v.begun("exporter", linked(js.Conn()))
		<-ctx.Done()
		return nil
	})
}
