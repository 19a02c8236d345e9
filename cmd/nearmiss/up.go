package main

import (
	"context"
	"fmt"

	"github.com/nats-io/nats.go"
	"github.com/rs/zerolog"
	"golang.org/x/sync/errgroup"

	"github.com/nearmiss/nearmiss/inference/ort"
	"github.com/nearmiss/nearmiss/stream"
	"github.com/nearmiss/nearmiss/stream/broker"
	"github.com/nearmiss/nearmiss/stream/sink"
)

type upCmd struct {
	Demo bool `help:"Add two synthetic cameras, learn normal from their first frames, and print events as they come; all of it is kept in nearmiss-demo."`
	brokerFlags
	Backbone string `type:"backbone" placeholder:"FILE|NAME" help:"Model for detectors that name none (default: the starter backbone, for first trials)."`
	modelFlags
	JSON bool `name:"json" help:"Print one JSON object a line: first the addresses, then the demo's events."`
	configFlag
}

func (*upCmd) Help() string {
	return "Broker, worker, trainer, sinks and the operators' page in one process, until Ctrl-C. The next start goes on where this one ended.\n\n" +
		examples(
			"nearmiss up --demo",
			"nearmiss up --data /var/lib/nearmiss --backbone vit_b.onnx --mqtt 1883",
			"nearmiss up --config deployments/nearmiss.yaml",
		)
}

func (c *upCmd) Run(ctx context.Context, o *output) error {
	conf, err := c.settings()
	if err != nil {
		return err
	}
	if err := ort.Load(); err != nil { // now, and not at the first release
		return err
	}
	if c.Demo && o.Log.GetLevel() == zerolog.InfoLevel {
		o.Log = o.Log.Level(zerolog.WarnLevel) // the demo tells its own story
	}
	about := ""
	if c.Demo && conf.Trainer.Backbone == "" {
		conf.Trainer.Backbone, about = demoBackbone(ctx, o)
	}
	b, err := broker.New(conf.broker(), o.Log)
	if err != nil {
		return err
	}
	return observe(ctx, conf.observed(), o, []string{"broker", "worker", "trainer", "sinks"}, func(ctx context.Context, v *observer) error {
		return withBroker(ctx, b, conf, o, func(ctx context.Context, connect dial) error {
			return c.serve(ctx, b, conf, v, o, connect, about)
		})
	})
}

// demoData is where the demo keeps what it makes, apart from real work.
const demoData = "nearmiss-demo"

func (c *upCmd) settings() (config, error) {
	return c.load(func(conf *config) {
		if c.Demo && conf.Data == defaultConfig().Data {
			conf.Data = demoData
		}
		c.brokerFlags.override(conf)
		c.modelFlags.override(conf)
		set(&conf.Trainer.Backbone, c.Backbone)
	})
}

// serve runs everything beside a broker that is up.
func (c *upCmd) serve(ctx context.Context, b *broker.Broker, conf config, v *observer, o *output, connect dial, about string) (err error) {
	leave, err := v.broker(b, connect, conf)
	if err != nil {
		return err
	}
	defer leave()
	if conf.Console.LinksKey == "" {
		if err := sink.EnsureLinkKey(sink.LinkKeyFile(conf.Data)); err != nil {
			o.Log.Warn().Err(err).Msg("sinks can send no links to pictures (pictures=link)")
		}
	}
	page, url, err := openConsole(conf, o)
	if err != nil {
		return err
	}
	if c.JSON {
		a := addresses(b)
		if url != "" {
			a["console"] = url
		}
		err = o.JSON(a)
	} else if err = printAddresses(o, b, conf); err == nil && url != "" {
		_, err = fmt.Fprintf(o.Out, "the page for operators is on %s\n", url)
	}
	if err != nil {
		return err
	}
	g, ctx := errgroup.WithContext(ctx)
	for name, start := range map[string]func(context.Context, dial) error{
		"worker": func(ctx context.Context, connect dial) error {
			return connect.with("worker", func(nc *nats.Conn) error { return runWorker(ctx, conf, nil, nc, v, o) })
		},
		"trainer": func(ctx context.Context, connect dial) error {
			return connect.with("trainer", func(nc *nats.Conn) error { return runTrainer(ctx, conf, 0, nc, v, o) })
		},
		"sinks": func(ctx context.Context, connect dial) error {
			return connect.with("sinks", func(nc *nats.Conn) error {
				return runSinks(ctx, nc, stream.Names{Prefix: conf.Prefix}, conf.links(), v, o)
			})
		},
	} {
		g.Go(func() error {
			if err := start(ctx, connect); err != nil {
				return fmt.Errorf("%s: %w", name, err)
			}
			return nil
		})
	}
	if page != nil {
		page.Trace(v.tracer())
		g.Go(func() error {
			return connect.with("console", func(nc *nats.Conn) error { return page.Run(ctx, nc) })
		})
	}
	if c.Demo {
		g.Go(func() error { return runDemo(ctx, connect, conf, o, about, c.JSON) })
	}
	return g.Wait()
}
