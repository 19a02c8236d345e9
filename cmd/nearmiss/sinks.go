package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"golang.org/x/sync/errgroup"

	"github.com/nearmiss/nearmiss/stream"
	"github.com/nearmiss/nearmiss/stream/incident"
	"github.com/nearmiss/nearmiss/stream/sink"
	"github.com/nearmiss/nearmiss/stream/sink/archive"
	"github.com/nearmiss/nearmiss/stream/sink/mail"
	"github.com/nearmiss/nearmiss/stream/sink/mqtt"
	"github.com/nearmiss/nearmiss/stream/sink/plc"
	"github.com/nearmiss/nearmiss/stream/sink/webhook"
)

type sinksCmd struct {
	Serve  sinksServeCmd  `cmd:"" default:"withargs" help:"Bring events to the sinks until Ctrl-C (nearmiss up does, too)."`
	List   sinksListCmd   `cmd:"" help:"List sinks, and what became of their events."`
	Show   sinksShowCmd   `cmd:"" help:"Show one sink whole: settings, counters, the last failure."`
	Add    sinksAddCmd    `cmd:"" help:"Add a sink, or change one."`
	Test   sinksTestCmd   `cmd:"" help:"Send one event now, past all filters, and see what the receiver says."`
	Pause  sinksPauseCmd  `cmd:"" help:"Send nothing; events wait in the broker."`
	Resume sinksResumeCmd `cmd:"" help:"Go on where it was paused."`
	Replay sinksReplayCmd `cmd:"" help:"Send events again."`
	Remove sinksRemoveCmd `cmd:"" help:"Remove a sink."`
	Rekey  sinksRekeyCmd  `cmd:"" help:"Make a new key for links to pictures."`
}

// sinkKinds are the kinds of sinks that this program has.
// in and links are nil where they are only checked.
func sinkKinds(n stream.Names, in *stream.Installation, links *sink.Links) sink.Kinds {
	var pictures sink.Pictures
	var from archive.Source
	if in != nil {
		pictures = sink.PicturesFrom(in)
		from = archive.Source{Pictures: pictures, Image: in.EventImage}
	}
	return sink.Kinds{
		webhook.Kind:   webhook.Opener(n, version, pictures, links),
		plc.ModbusKind: plc.OpenModbus,
		plc.OPCUAKind:  plc.OpenOPCUA,
		mqtt.Kind:      mqtt.Opener(n, version, pictures),
		mail.Kind:      mail.Opener(version, pictures, links),
		archive.Kind:   archive.Opener(n, from),
	}
}

// checkSink says what of a sink cannot work, before it is stored. Where it names no
// events it gets those that its kind is made for.
func checkSink(n stream.Names, s sink.Sink) (sink.Sink, error) {
	if err := s.Validate(); err != nil {
		return s, oneLine(err)
	}
	open := sinkKinds(n, nil, nil)[s.Kind]
	if open == nil {
		return s, fmt.Errorf("sink %s: there is no kind %q", s.Name, s.Kind)
	}
	if len(s.Kinds) == 0 {
		s.Kinds = map[string][]string{mqtt.Kind: mqtt.Events, archive.Kind: archive.Events}[s.Kind]
	}
	check, err := open(s, "")
	if err != nil {
		return s, err
	}
	return s, check.Close()
}

// runSinks makes incidents of events and brings both to the sinks until ctx ends.
func runSinks(ctx context.Context, nc *nats.Conn, n stream.Names, links *sink.Links, v *observer, o *output) error {
	js, err := n.JetStreamOn(nc)
	if err != nil {
		return err
	}
	e, err := sink.NewEngine(sink.EngineConfig{Names: n, Kinds: sinkKinds(n, stream.NewInstallation(js, n), links), Tracer: v.tracer()}, nc, o.Log)
	if err != nil {
		return err
	}
	i, err := incident.NewEngine(incident.Config{Names: n}, nc, o.Log)
	if err != nil {
		return err
	}
	v.Connection(nc)
	v.engine(e)
	v.begun("sinks", linked(nc))
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return e.Run(ctx) })
	g.Go(func() error { return i.Run(ctx) })
	return g.Wait()
}

type sinksServeCmd struct {
	LinksKey string `env:"NEARMISS_CONSOLE_LINKS_KEY" placeholder:"REF" help:"Where the key of links to pictures is, for pictures=link: file:PATH or env:NAME. It is the console's (console.links_key; nearmiss up keeps its own in auth/links.key of its data folder)."`
	serverFlags
	httpFlag
}

func (*sinksServeCmd) Help() string {
	return "Several may run: each event goes to one of them. Secrets are read on this machine.\n\n" +
		examples("nearmiss sinks serve --server nats://broker.example.org:4222")
}

func (c *sinksServeCmd) Run(ctx context.Context, o *output) error {
	return c.serve(ctx, "sinks", c.observed(), o, func(ctx context.Context, nc *nats.Conn, v *observer) error {
		return runSinks(ctx, nc, c.names(), &sink.Links{Key: c.LinksKey}, v, o)
	})
}

type sinksRekeyCmd struct {
	Data string `default:"nearmiss-data" env:"NEARMISS_DATA" type:"path" placeholder:"DIR" help:"Folder that has the key, in auth/links.key."`
	Drop bool   `help:"Invalidate the links that were already sent (default: they stay valid for their seven days, unless the key is replaced twice)."`
}

func (*sinksRekeyCmd) Help() string {
	return "Links to pictures (pictures=link) are signed with this key, and the console shows a picture to whoever has its link. No restart is needed. With several machines, copy the file to the others.\n\n" + examples("nearmiss sinks rekey --data /var/lib/nearmiss --drop")
}

func (c *sinksRekeyCmd) Run(_ context.Context, o *output) error {
	path := sink.LinkKeyFile(c.Data)
	if err := sink.NewLinkKey(path, c.Drop); err != nil {
		return err
	}
	return o.print(path + " has a new key")
}

// withSinks gives f the bucket of sinks, for reading, and a client of the control, for
// changing them.
func withSinks(ctx context.Context, s serverFlags, o *output, f func(jetstream.KeyValue, *stream.Client) error) error {
	return s.withJetStream("sinks", o, func(js jetstream.JetStream) error {
		b, err := js.KeyValue(ctx, s.names().SinksBucket())
		if errors.Is(err, jetstream.ErrBucketNotFound) {
			return fmt.Errorf("the broker has no bucket of sinks: start nearmiss up or nearmiss broker of this version once")
		}
		if err != nil {
			return err
		}
		return f(b, s.client(js.Conn()))
	})
}

// askSinks asks the process that runs the sinks for their status.
func askSinks(ctx context.Context, s serverFlags, o *output) (all []sink.Status, err error) {
	nc, err := s.connect("sinks", o)
	if err != nil {
		return nil, err
	}
	defer nc.Close()
	err = sink.Ask(ctx, nc, s.names(), "status", nil, &all)
	if errors.Is(err, stream.ErrNobody) {
		return nil, errors.New("no process runs the sinks: start nearmiss up, or nearmiss sinks")
	}
	return all, inWords(err)
}

// sinksDo has the control, which writes down who asked, have the process that runs the
// sinks do something.
func sinksDo(ctx context.Context, s serverFlags, o *output, what string, q, a any) error {
	return s.withClient("sinks", o, func(control *stream.Client) error {
		return inWords(control.AskSink(ctx, what, q, a))
	})
}

// inWords is an error without the code with which a service answered.
func inWords(err error) error {
	if service, ok := errors.AsType[*stream.ServiceError](err); ok {
		return errors.New(service.Message)
	}
	return err
}

type sinksListCmd struct {
	JSON bool `name:"json" help:"Print one JSON object a sink."`
	serverFlags
}

func (*sinksListCmd) Help() string {
	return examples("nearmiss sinks list", "nearmiss sinks list --json")
}

func (c *sinksListCmd) Run(ctx context.Context, o *output) error {
	step, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	all, err := askSinks(step, c.serverFlags, o)
	if err != nil {
		return err
	}
	if len(all) == 0 && !c.JSON {
		return o.print("there are no sinks: nearmiss sinks add")
	}
	return list(o, c.JSON, all, func(s sink.Status) string {
		var counts []string
		for _, k := range slices.Sorted(maps.Keys(s.Results)) {
			counts = append(counts, fmt.Sprintf("%s %d", k, s.Results[k]))
		}
		text := fmt.Sprintf("%-20s %-10s %-14s %s, %d wait", s.Name, s.Kind, sinkState(s), strings.Join(append(counts, fmt.Sprintf("last delay %.1f s", s.Delay)), ", "), s.Pending)
		if s.Error != "" {
			text += "\n  " + s.Error
		}
		return text
	})
}

// sinkState is how a sink is, in a word or two.
func sinkState(s sink.Status) string {
	switch {
	case !s.Enabled:
		return "paused"
	case s.Open:
		return "receiver down"
	case s.Error != "" && s.LastSent.IsZero():
		return "failing"
	}
	return "at work"
}

type sinksTestCmd struct {
	Name  string `arg:"" help:"Sink."`
	Event string `placeholder:"ID" help:"Event to send (default: the last anomaly, or a made-up one)."`
	JSON  bool   `name:"json" help:"Print one JSON object."`
	serverFlags
}

func (*sinksTestCmd) Help() string {
	return "The event is marked as a test. There is no second try.\n\n" + examples("nearmiss sinks test desk")
}

func (c *sinksTestCmd) Run(ctx context.Context, o *output) error {
	step, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	var a sink.TestAnswer
	if err := sinksDo(step, c.serverFlags, o, "test", sink.TestRequest{Sink: c.Name, Event: c.Event}, &a); err != nil {
		return err
	}
	text := fmt.Sprintf("event %s arrived after %.2f s", a.Event, a.Seconds)
	if a.Filter != "" {
		text += "; otherwise it would not have been sent: " + a.Filter
	}
	if c.JSON || a.OK {
		if err := o.result(c.JSON, a, text); err != nil {
			return err
		}
	}
	if !a.OK {
		return errors.New(a.Error)
	}
	return nil
}

// changeSink lets f change a sink.
func changeSink(ctx context.Context, s serverFlags, o *output, name string, f func(*sink.Sink)) error {
	return withSinks(ctx, s, o, func(b jetstream.KeyValue, control *stream.Client) error {
		e, err := b.Get(ctx, name)
		if errors.Is(err, jetstream.ErrKeyNotFound) {
			return noSink(name)
		}
		if err != nil {
			return fmt.Errorf("read sink %s: %w", name, err)
		}
		v, err := sink.Parse(name, e.Value())
		if err != nil {
			return fmt.Errorf("%w: add it again", err)
		}
		f(&v)
		value, err := json.Marshal(v)
		if err == nil {
			_, err = control.SetSink(ctx, name, value, e.Revision())
		}
		return err
	})
}

func noSink(name string) error {
	return fmt.Errorf("there is no sink %q: see nearmiss sinks list", name)
}

type sinksPauseCmd struct {
	Name string `arg:"" help:"Sink."`
	serverFlags
}

func (*sinksPauseCmd) Help() string { return examples("nearmiss sinks pause desk") }

func (c *sinksPauseCmd) Run(ctx context.Context, o *output) error {
	if err := changeSink(ctx, c.serverFlags, o, c.Name, func(s *sink.Sink) { s.Enabled = false }); err != nil {
		return err
	}
	return o.print(c.Name + " is paused; its events wait")
}

type sinksResumeCmd struct {
	Name string `arg:"" help:"Sink."`
	serverFlags
}

func (*sinksResumeCmd) Help() string { return examples("nearmiss sinks resume desk") }

func (c *sinksResumeCmd) Run(ctx context.Context, o *output) error {
	if err := changeSink(ctx, c.serverFlags, o, c.Name, func(s *sink.Sink) { s.Enabled = true }); err != nil {
		return err
	}
	return o.print(c.Name + " goes on")
}

type sinksReplayCmd struct {
	Name  string        `arg:"" help:"Sink."`
	Dead  bool          `help:"Those that it could not deliver; they leave the dead letters when they arrive."`
	Since time.Duration `placeholder:"AGO" help:"All since this long ago, delivered or not."`
	JSON  bool          `name:"json" help:"Print one JSON object."`
	serverFlags
}

func (*sinksReplayCmd) Help() string {
	return examples("nearmiss sinks replay desk --dead", "nearmiss sinks replay desk --since 2h")
}

func (c *sinksReplayCmd) Run(ctx context.Context, o *output) error {
	q := sink.ReplayRequest{Sink: c.Name, Dead: c.Dead}
	if c.Since > 0 {
		q.Since = time.Now().Add(-c.Since)
	}
	if c.Dead == (c.Since > 0) {
		return usageError{errors.New("say which: --dead or --since")}
	}
	step, cancel := context.WithTimeout(ctx, 10*time.Minute)
	defer cancel()
	var a sink.ReplayAnswer
	if err := sinksDo(step, c.serverFlags, o, "replay", q, &a); err != nil {
		return err
	}
	if err := o.result(c.JSON, a, fmt.Sprintf("%d events sent, %d failed", a.Sent, a.Failed)); err != nil {
		return err
	}
	if a.Failed > 0 {
		return errors.New(a.Error)
	}
	return nil
}

type sinksRemoveCmd struct {
	Name string `arg:"" help:"Sink."`
	serverFlags
}

func (*sinksRemoveCmd) Help() string { return examples("nearmiss sinks remove desk") }

func (c *sinksRemoveCmd) Run(ctx context.Context, o *output) error {
	return c.withClient("sinks", o, func(control *stream.Client) error {
		err := control.RemoveSink(ctx, c.Name)
		if errors.Is(err, stream.ErrNotFound) {
			return noSink(c.Name)
		}
		if err != nil {
			return err
		}
		return o.print(c.Name + " is removed; events that waited for it are dropped")
	})
}
