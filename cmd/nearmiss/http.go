package main

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/nearmiss/nearmiss/stream"
	"github.com/nearmiss/nearmiss/stream/broker"
	"github.com/nearmiss/nearmiss/stream/metrics"
	"github.com/nearmiss/nearmiss/stream/sink"
	"github.com/nearmiss/nearmiss/stream/traces"
)

// httpConfig is where a service answers health checks and scrapes.
type httpConfig struct {
	Listen string `yaml:"listen" env:"LISTEN"` // "" or off: not at all
	Pprof  bool   `yaml:"pprof" env:"PPROF"`
}

// otelConfig is where spans of what is done are sent.
type otelConfig struct {
	Endpoint string  `yaml:"endpoint" env:"ENDPOINT"` // "": nowhere
	Share    float64 `yaml:"share" env:"SHARE"`       // of the traces that are recorded
}

// observed is how a service can be watched.
type observed struct {
	HTTP httpConfig
	OTel otelConfig
}

func (c config) observed() observed { return observed{c.HTTP, c.OTel} }

// httpFlag is the same for commands that read no configuration.
type httpFlag struct {
	HTTP  string  `name:"http" env:"NEARMISS_HTTP_LISTEN" placeholder:"ADDR" help:"Serve /livez, /readyz and /metrics at this address, such as 127.0.0.1:9420 (default: not at all)."`
	OTel  string  `name:"otel-endpoint" env:"NEARMISS_OTEL_ENDPOINT" placeholder:"URL" help:"Send traces to this OpenTelemetry collector, such as http://127.0.0.1:4318 (default: nowhere)."`
	Share float64 `name:"otel-share" env:"NEARMISS_OTEL_SHARE" default:"0.01" placeholder:"SHARE" help:"Share of the traces that are recorded, 0 to 1 (default 0.01)."`
}

func (f httpFlag) observed() observed {
	return observed{httpConfig{Listen: f.HTTP}, otelConfig{f.OTel, f.Share}}
}

// observer shows what a service does: metrics and health checks over HTTP, and
// signs of life to the process that started it.
type observer struct {
	*metrics.Metrics
	traces *traces.Tracer // nil: there are none

	mu        sync.Mutex
	order     []string
	ready     map[string]func() []stream.Check // by part; nil: it has not begun
	announced bool
}

// observe runs a service of some parts beside the HTTP server of its process, which
// ends after it: what stops can be asked how far it is.
func observe(ctx context.Context, by observed, o *output, parts []string, run func(context.Context, *observer) error) error {
	h := by.HTTP
	if err := errors.Join(metrics.Validate(h.Listen, h.Pprof), by.OTel.traces(parts).Validate()); err != nil {
		return usageError{oneLine(err)}
	}
	v := &observer{
		Metrics: metrics.New(metrics.Build{Version: version, Commit: commit}),
		order:   parts, ready: map[string]func() []stream.Check{},
	}
	if by.OTel.Endpoint != "" {
		var err error
		if v.traces, err = traces.New(ctx, by.OTel.traces(parts), o.Log); err != nil {
			return err
		}
		defer v.traces.Close()
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

// traces is where a process of these parts sends its spans.
func (c otelConfig) traces(parts []string) traces.Config {
	service := "nearmiss"
	if len(parts) == 1 {
		service += "-" + parts[0]
	}
	return traces.Config{Endpoint: c.Endpoint, Share: c.Share, Service: service, Version: version}
}

// tracer is nil where nobody follows what is done.
func (v *observer) tracer() stream.Tracer {
	if v.traces == nil {
		return nil
	}
	return v.traces
}

// begun says how a part's health is found out, and, when it was the last of the
// parts, to whoever started this process that it is up. A broker that is away keeps
// no service from being up: it waits.
func (v *observer) begun(part string, ready func() []stream.Check) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.ready[part] = ready
	if len(v.ready) == len(v.order) && !v.announced {
		v.announced = true
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
	return observe(ctx, observed{HTTP: httpConfig{Listen: c.HTTP}}, o, []string{"exporter"}, func(ctx context.Context, v *observer) error {
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
