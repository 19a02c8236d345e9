package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/nearmiss/nearmiss/stream"
	"github.com/nearmiss/nearmiss/stream/access"
	"github.com/nearmiss/nearmiss/stream/broker"
	"github.com/nearmiss/nearmiss/stream/control"
	"github.com/nearmiss/nearmiss/stream/steward"
)

// configFlag reads the configuration that the services share.
type configFlag struct {
	Config string `type:"existingfile" env:"NEARMISS_CONFIG" placeholder:"FILE" help:"Configuration (YAML); deployments/nearmiss.yaml lists every key."`
}

// load reads the configuration, lets flags override it, and checks it.
func (f configFlag) load(override func(*config)) (config, error) {
	environment := map[string]string{}
	for _, kv := range os.Environ() {
		if k, v, ok := strings.Cut(kv, "="); ok {
			environment[k] = v
		}
	}
	c, err := loadConfig(f.Config, environment)
	if err != nil {
		return c, usageError{err}
	}
	override(&c)
	if err := c.Validate(); err != nil {
		return c, usageError{fmt.Errorf("configuration: %w", oneLine(err))}
	}
	return c, nil
}

// oneLine joins the parts of an errors.Join with semicolons.
func oneLine(err error) error {
	return errors.New(strings.ReplaceAll(err.Error(), "\n", "; "))
}

// set overrides a value of the configuration by a flag that was given.
func set[T comparable](to *T, flag T) {
	var unset T
	if flag != unset {
		*to = flag
	}
}

// brokerFlags say where a broker listens and what it keeps.
type brokerFlags struct {
	Data      string `type:"path" placeholder:"DIR" help:"Folder that keeps everything (default nearmiss-data)."`
	Host      string `placeholder:"ADDR" help:"Address to listen on (default 127.0.0.1)."`
	Port      int    `placeholder:"N" help:"Port of NATS clients (default 4222; --port=-1 takes a free one)."`
	MQTT      int    `name:"mqtt" placeholder:"N" help:"Also listen for MQTT clients on this port."`
	WebSocket int    `name:"websocket" placeholder:"N" help:"Also listen for NATS over WebSocket on this port."`
	TLSCert   string `name:"tls-cert" type:"existingfile" placeholder:"FILE" help:"Certificate of all listeners, from nearmiss tls issue server."`
	TLSKey    string `name:"tls-key" type:"existingfile" placeholder:"FILE" help:"Key of that certificate."`
	TLSCA     string `name:"tls-ca" type:"existingfile" placeholder:"FILE" help:"CA that signed the clients' certificates."`
	TLSVerify string `name:"tls-verify" enum:",optional,required" default:"" help:"Ask clients for a certificate: optional or required (default: not at all)."`
}

func (f brokerFlags) override(conf *config) {
	set(&conf.Data, f.Data)
	set(&conf.Broker.Host, f.Host)
	set(&conf.Broker.Port, f.Port)
	set(&conf.Broker.MQTTPort, f.MQTT)
	set(&conf.Broker.WebSocketPort, f.WebSocket)
	set(&conf.Broker.TLS.Cert, f.TLSCert)
	set(&conf.Broker.TLS.Key, f.TLSKey)
	set(&conf.Broker.TLS.CA, f.TLSCA)
	set(&conf.Broker.TLS.Verify, f.TLSVerify)
}

type brokerCmd struct {
	brokerFlags
	Setup string `placeholder:"URL" help:"Start nothing: create the streams and buckets in the NATS server at this address, and end."`
	JSON  bool   `name:"json" help:"Print the addresses as one JSON object."`
	NKey  string `name:"nkey" type:"existingfile" env:"NEARMISS_NKEY" placeholder:"FILE" help:"With --setup: key of an identity with role setup."`
	Creds string `type:"existingfile" env:"NEARMISS_CREDS" placeholder:"FILE" help:"With --setup: NATS credentials file."`
	configFlag
}

func (*brokerCmd) Help() string {
	return "It serves until Ctrl-C. Everything that was acknowledged is on the disk and there again at the next start.\n\n" +
		examples(
			"nearmiss broker --data /var/lib/nearmiss --mqtt 1883",
			"nearmiss broker --setup nats://nats.example.org:4222",
			"nearmiss broker --host 0.0.0.0 --tls-cert tls/server.crt --tls-key tls/server.key   # after nearmiss users add and nearmiss tls",
		)
}

func (c *brokerCmd) Run(ctx context.Context, o *output) error {
	conf, err := c.load(c.override)
	if err != nil {
		return err
	}
	if c.Setup != "" {
		who := credentialFlags{NKey: c.NKey, Creds: c.Creds, TLSCA: c.TLSCA, TLSCert: c.TLSCert, TLSKey: c.TLSKey}
		return setup(ctx, o, serverFlags{Server: c.Setup, credentialFlags: who}, conf)
	}
	b, err := broker.New(conf.broker(), o.Log)
	if err != nil {
		return err
	}
	return observe(ctx, conf.observed(), o, []string{"broker"}, func(ctx context.Context, v *observer) error {
		return withBroker(ctx, b, conf, o, func(ctx context.Context, connect dial) error {
			leave, err := v.broker(b, connect, conf)
			if err != nil {
				return err
			}
			defer leave()
			if c.JSON {
				if err := o.JSON(addresses(b)); err != nil {
					return err
				}
			} else if err := printAddresses(o, b, conf); err != nil {
				return err
			}
			<-ctx.Done()
			return nil
		})
	})
}

func setup(ctx context.Context, o *output, server serverFlags, conf config) error {
	js, err := server.streams(server.connect("setup", o))
	if err != nil {
		return err
	}
	defer js.Conn().Close()
	topology, factor, err := stream.EnsureWithin(ctx, js, conf.topology())
	if err != nil {
		return err
	}
	if factor < 1 {
		o.Log.Warn().Int64("wanted", conf.topology().Reserved()).Int64("frames", topology.FramesMaxBytes).Int64("events", topology.EventsMaxBytes).
			Msg("the server's store is smaller than all that may be kept: the limits are scaled to it; raise its max_file_store, or lower keep.frames_bytes and keep.events_bytes")
	}
	return o.printf("%s has the streams and buckets of Nearmiss\n", js.Conn().ConnectedUrlRedacted())
}

// dial opens a connection to the embedded broker.
type dial func(as string) (*nats.Conn, error)

// with runs do with a connection of its own.
func (d dial) with(as string, do func(*nats.Conn) error) error {
	nc, err := d(as)
	if err != nil {
		return err
	}
	defer nc.Close()
	return do(nc)
}

// withBroker runs the embedded broker around f: f starts when the streams are
// there, and the broker stops after f has returned.
func withBroker(ctx context.Context, b *broker.Broker, conf config, o *output, f func(context.Context, dial) error) error {
	work, cancel := context.WithCancel(ctx)
	defer cancel()
	serve, stop := context.WithCancel(context.WithoutCancel(ctx))
	ended := make(chan error, 1)
	go func() {
		err := b.Run(serve)
		cancel() // without a broker there is nothing left to do
		ended <- err
	}()
	err := func() error {
		select {
		case <-b.Ready():
		case <-work.Done():
			return nil
		}
		connect := func(as string) (*nats.Conn, error) {
			return stream.Connect(b.LocalURL(), "nearmiss "+as, o.Log, b.Credentials()...)
		}
		nc, err := connect("setup")
		if err != nil {
			return err
		}
		defer nc.Close()
		js, err := jetstream.New(nc)
		if err != nil {
			return err
		}
		step, done := context.WithTimeout(work, time.Minute)
		defer done()
		topology, factor := conf.topology().Fit(b.Limit())
		if factor < 1 {
			o.Log.Warn().Int64("store", b.Limit()).Int64("frames", topology.FramesMaxBytes).Int64("events", topology.EventsMaxBytes).
				Msg("the store is smaller than all that may be kept: the limits are scaled to it; raise broker.max_store, or make room on its disk")
		}
		if err := stream.Ensure(step, js, topology); err != nil {
			return err
		}
		go keepDurables(work, js, conf, o)
		hands, err := connect("control")
		if err != nil {
			return err
		}
		defer hands.Close()
		asked, err := control.New(hands, topology.Names, o.Log)
		if err != nil {
			return err
		}
		asked.Knows(func(public string) string {
			f, err := access.Load(conf.usersFile())
			if err != nil {
				return ""
			}
			return f.Owner(public)
		})
		enough, err := asked.Start(work)
		if err != nil {
			return err
		}
		defer enough()
		forSteward, err := connect("steward")
		if err != nil {
			return err
		}
		defer forSteward.Close()
		keeper, err := steward.New(steward.Config{Names: topology.Names, FramesMaxBytes: topology.FramesMaxBytes, Full: b.Full}, forSteward, o.Log)
		if err != nil {
			return err
		}
		var all sync.WaitGroup
		defer all.Wait()
		within, cancelSteward := context.WithCancel(work)
		defer cancelSteward()
		all.Go(func() {
			if err := keeper.Run(within); err != nil {
				o.Log.Error().Err(err).Msg("the frame queue is not attended to")
			}
		})
		return f(work, connect)
	}()
	stop()
	return errors.Join(<-ended, err)
}

func addresses(b *broker.Broker) map[string]string {
	a := map[string]string{"nats": b.ClientURL()}
	if m := b.MQTTAddr(); m != "" {
		a["mqtt"] = m
	}
	if w := b.WebSocketURL(); w != "" {
		a["websocket"] = w
	}
	return a
}

func printAddresses(o *output, b *broker.Broker, conf config) error {
	a := addresses(b)
	text := "NATS on " + a["nats"]
	if m := a["mqtt"]; m != "" {
		text += ", MQTT on " + m
	}
	if w := a["websocket"]; w != "" {
		text += ", WebSocket on " + w
	}
	return o.printf("%s; data in %s\n", text, conf.Data)
}
