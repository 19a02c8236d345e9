// Package control changes an installation for people: configurations, verdicts,
// training, which release is active. The command line, the console and others ask it,
// by a [stream.Client]; none of them writes a bucket. It runs beside the broker
// (nearmiss up and nearmiss broker), or as nearmiss control where the broker is
// another's. Several may run: each request goes to one of them.
//
// offer declares the endpoints. One of the methods below carries a request out, through
// [stream.Installation], and the requester is answered. What changes something goes
// through serveChange, and record then writes down who asked for what and what came of it.
//
// The endpoints do not wait for each other: nats.go runs them. [Service.Start] adds one
// goroutine, which sees to it that detectors and jobs have their consumers; stop waits
// for it. There are no locks: what is shared is the installation's.
package control

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/nats-io/nats.go/micro"
	"github.com/rs/zerolog"

	"github.com/nearmiss/nearmiss/stream"
	"github.com/nearmiss/nearmiss/stream/internal/service"
	"github.com/nearmiss/nearmiss/stream/internal/text"
	"github.com/nearmiss/nearmiss/stream/registry"
	"github.com/nearmiss/nearmiss/stream/sink"
)

// Service answers the requests.
type Service struct {
	in  *stream.Installation
	nc  *nats.Conn
	js  jetstream.JetStream
	log zerolog.Logger
	who func(identity string) string

	unmade chan struct{} // a detector has no consumer of frames yet
}

// Knows says whose an identity's public key is, for the audit: an empty name where
// that is not known. Call it before Start.
func (c *Service) Knows(who func(identity string) string) { c.who = who }

// New prepares a service on a connection that the caller closes after it has ended.
func New(nc *nats.Conn, n stream.Names, log zerolog.Logger) (*Service, error) {
	if err := n.Validate(); err != nil {
		return nil, err
	}
	js, err := n.JetStreamOn(nc)
	if err != nil {
		return nil, fmt.Errorf("start control: %w", err)
	}
	return &Service{in: stream.NewInstallation(js, n), nc: nc, js: js, log: log.With().Str("component", "control").Logger(), unmade: make(chan struct{}, 1)}, nil
}

// Run waits for the broker and its streams, and answers until ctx ends.
func (c *Service) Run(ctx context.Context) error {
	err := stream.Await(ctx, c.log, func(step context.Context) error {
		_, err := c.in.Detectors(step)
		return err
	})
	if ctx.Err() != nil {
		return nil
	}
	if err != nil {
		return err
	}
	stop, err := c.Start(ctx)
	if err != nil {
		return err
	}
	defer stop()
	c.log.Info().Msg("control is up")
	<-ctx.Done()
	return nil
}

// Start answers from now on until stop, or until ctx ends.
func (c *Service) Start(ctx context.Context) (stop func(), err error) {
	// The trainers answered before; programs of that time still ask there.
	subjects := []string{c.in.Names().API() + ".control", c.in.Names().API() + ".trainer"}
	end, err := service.Start(ctx, c.nc, stream.ControlService, "changes detectors and their releases", subjects, map[string]string{"prefix": c.in.Names().Root()}, c.offer)
	if err != nil {
		return nil, err
	}
	if err := c.nc.FlushTimeout(5 * time.Second); err != nil {
		c.log.Debug().Err(err).Msg("requests come when the broker is back")
	}
	keep, cancel := context.WithCancel(ctx)
	var keeping sync.WaitGroup
	keeping.Go(func() { c.keepConsumers(keep) })
	return func() {
		end()
		cancel()
		keeping.Wait()
	}, nil
}

// offer declares the requests: first what reads, then what changes something.
func (c *Service) offer(e *service.Endpoints) {
	service.Serve(e, "status", func(ctx context.Context, _ struct{}) (stream.Status, error) { return c.in.Status(ctx) })
	service.Serve(e, "detectors", c.detectors)
	service.Serve(e, "jobs", c.jobs)
	service.Serve(e, "releases", c.releases)

	ofDetector := func(name string) string { return "detector/" + name }
	serveChange(c, e, "create", func(q stream.Detector) string { return ofDetector(q.Name) }, withStores(c, c.create))
	serveChange(c, e, "set", func(q stream.SetRequest) string { return ofDetector(q.Detector) }, withStores(c, c.set))
	serveChange(c, e, "feedback", func(q stream.Feedback) string { return ofDetector(q.Detector) }, c.feedback)
	serveChange(c, e, "train", func(q stream.TrainRequest) string { return ofDetector(q.Detector) }, withStores(c, c.train))
	serveChange(c, e, "cancel", func(q stream.JobRequest) string { return "job/" + q.Job }, withStores(c, c.cancel))
	serveChange(c, e, "promote", func(q stream.PromoteRequest) string { return ofDetector(q.Detector) }, withStores(c, c.promote))
	serveChange(c, e, "rollback", func(q stream.PromoteRequest) string { return ofDetector(q.Detector) }, withStores(c, c.rollback))
	serveChange(c, e, "shadow", func(q stream.PromoteRequest) string { return ofDetector(q.Detector) }, withStores(c, c.shadow))
	serveChange(c, e, "pin", func(q stream.PinRequest) string { return ofDetector(q.Detector) }, withStores(c, c.pin))
	serveChange(c, e, "delete", func(q stream.DeleteRequest) string { return ofDetector(q.Detector) }, withStores(c, c.delete))
	serveChange(c, e, "remove-normals", func(q stream.RemoveRequest) string { return ofDetector(q.Detector) }, c.removeNormals)
	serveChange(c, e, "set-sink", func(q stream.SinkRequest) string { return ofSink(q.Sink) }, c.setSink)
	serveChange(c, e, "remove-sink", func(q stream.SinkRequest) string { return ofSink(q.Sink) }, c.removeSink)
	serveChange(c, e, "test-sink", func(q sink.TestRequest) string { return ofSink(q.Sink) }, c.testSink)
	serveChange(c, e, "replay-sink", func(q sink.ReplayRequest) string { return ofSink(q.Sink) }, c.replaySink)
	serveChange(c, e, "collect", func(registry.CollectOptions) string { return "installation" }, c.collect)
}

// caller is who asks for a change.
type caller struct {
	// By is a person, as the client says in [stream.HeaderBy].
	By string
	// Identity is the public key of the NATS identity, as the reply subject tells:
	// only its owner may subscribe to it. An identity that does not want the answer
	// can name another's. Empty where the broker knows no identities.
	Identity string
}

// change is one thing that somebody asked [Service] to change.
type change struct {
	caller
	stream.Stores // opened by withStores

	Action string // the request: create, set, promote, …
	Object string // what is changed: detector/NAME, job/NAME, sink/NAME, installation
	Before any    // what the action replaces, where that is known
	After  any    // the answer
	Err    error  // why nothing was changed
}

// serveChange is [service.Serve] for requests that change something. All of them pass here,
// whoever sends them: what must hold of every change belongs here, and in
// [Service.record], which is called for each, done or refused, with who asked for
// it. f may say what it replaces, in Before; one that changes nothing empties
// Object, and is not recorded.
func serveChange[Q, A any](c *Service, e *service.Endpoints, name string, object func(Q) string, f func(context.Context, *change, Q) (A, error)) {
	service.ServeRequest(e, name, func(ctx context.Context, r micro.Request, q Q) (A, error) {
		ch := &change{caller: callerOf(r), Action: name, Object: object(q)}
		a, err := f(ctx, ch, q)
		if ch.Object != "" {
			ch.After, ch.Err = a, err
			c.record(ctx, *ch)
		}
		return a, err
	})
}

// withStores opens the stores for f. Verdicts, training sets and sinks are changed without
// them, also while one of the buckets is not there or has no leader.
func withStores[Q, A any](c *Service, f func(context.Context, *change, Q) (A, error)) func(context.Context, *change, Q) (A, error) {
	return func(ctx context.Context, ch *change, q Q) (a A, err error) {
		if ch.Stores, err = c.in.Stores(ctx); err != nil {
			return a, err
		}
		return f(ctx, ch, q)
	}
}

// record logs a change, and writes it down for good.
func (c *Service) record(ctx context.Context, ch change) {
	e := stream.AuditEntry{By: ch.By, Identity: ch.Identity, Action: ch.Action, Object: ch.Object, Before: stream.Audited(ch.Before)}
	if c.who != nil && ch.Identity != "" {
		e.User = c.who(ch.Identity)
	}
	if ch.Err == nil {
		e.After = stream.Audited(ch.After)
	} else {
		e.Result, e.Error = service.CodeOf(ch.Err), ch.Err.Error()
	}
	// Who asked may not wait for the answer any more.
	if err := c.in.WriteAudit(context.WithoutCancel(ctx), e); err != nil {
		c.log.Error().Err(err).Msg("a change is not in the audit")
	}
	c.log.Info().Err(ch.Err).Str("by", ch.By).Str("identity", ch.Identity).Str("action", ch.Action).Str("object", text.Clip(ch.Object)).Msg("asked for a change")
}

// callerOf reads who sent a request.
func callerOf(r micro.Request) caller {
	by := text.Line(nats.Header(r.Headers()).Get(stream.HeaderBy))
	if len(by) > stream.MaxFrameID {
		by = text.Clip(by)
	}
	who := caller{By: by}
	if rest, ok := strings.CutPrefix(r.Reply(), inboxPrefix); ok {
		who.Identity, _, _ = strings.Cut(rest, ".")
	}
	return who
}

// inboxPrefix is what the reply subjects of clients with an identity begin with;
// its public key follows.
const inboxPrefix = "_INBOX_"

func answerOf(d stream.Detector) stream.DetectorAnswer {
	return stream.DetectorAnswer{Detector: d, Revision: d.Revision}
}

func (c *Service) detectors(ctx context.Context, q stream.DetectorRequest) (a stream.DetectorsAnswer, err error) {
	s, err := c.in.Detectors(ctx)
	if err != nil {
		return a, err
	}
	a.Detectors = []stream.DetectorAnswer{}
	if q.Detector != "" {
		d, err := s.Get(ctx, q.Detector)
		a.Detectors = append(a.Detectors, answerOf(d))
		return a, err
	}
	all, unread, err := s.Check(ctx)
	for _, d := range all {
		a.Detectors = append(a.Detectors, answerOf(d))
	}
	a.Unreadable = unread
	return a, err
}

func (c *Service) jobs(ctx context.Context, q stream.DetectorRequest) ([]stream.Job, error) {
	s, err := c.in.Jobs(ctx)
	if err != nil {
		return nil, err
	}
	all, err := s.List(ctx, q.Detector)
	if all == nil {
		all = []stream.Job{}
	}
	return all, err
}

func (c *Service) releases(ctx context.Context, q stream.DetectorRequest) (a stream.ReleasesAnswer, err error) {
	r, err := c.in.Registry(ctx)
	if err != nil {
		return a, err
	}
	if a.Releases, err = r.List(ctx, q.Detector); err != nil || q.Detector == "" {
		return a, err
	}
	a.History, err = r.History(ctx, q.Detector)
	return a, err
}

func (c *Service) create(ctx context.Context, ch *change, d stream.Detector) (stream.DetectorAnswer, error) {
	if err := d.Validate(); err != nil {
		return stream.DetectorAnswer{}, stream.Permanent(stream.CodeBadRequest, text.OneLine(err))
	}
	d, err := ch.Detectors.Create(ctx, d)
	if err != nil {
		return answerOf(d), err
	}
	step, cancel := context.WithTimeout(ctx, 5*stream.Leaderless)
	defer cancel()
	if c.in.EnsureFramesConsumer(step, d.Name) != nil { // keepConsumers tries again, and says why not
		select {
		case c.unmade <- struct{}{}:
		default:
		}
	}
	return answerOf(d), nil
}

func (c *Service) set(ctx context.Context, ch *change, q stream.SetRequest) (stream.DetectorAnswer, error) {
	var was stream.Detector
	is, err := ch.Detectors.Set(ctx, q.Detector, func(d *stream.Detector) error {
		if q.Revision != 0 && q.Revision != d.Revision {
			return fmt.Errorf("change detector %s: its revision is %d, not %d: %w", d.Name, d.Revision, q.Revision, stream.ErrConflict)
		}
		was = *d
		if err := q.Apply(d); err != nil {
			return err
		}
		if err := d.Validate(); err != nil {
			return stream.Permanent(stream.CodeBadRequest, text.OneLine(err))
		}
		return nil
	})
	if err != nil {
		return stream.DetectorAnswer{}, err
	}
	ch.Before = was
	a := answerOf(is)
	return a, ch.takeEffect(ctx, was, is, &a)
}

// takeEffect has what was changed act as soon as it can, and says in a when that
// is.
func (ch *change) takeEffect(ctx context.Context, was, is stream.Detector, a *stream.DetectorAnswer) error {
	if _, err := ch.Registry.Active(ctx, is.Name); errors.Is(err, registry.ErrNoRelease) {
		return nil // all of it acts with the first training
	} else if err != nil {
		return err
	}
	if !stream.SameJudgement(was, is) {
		// Trainers do so by themselves; asked for here, it waits for one.
		j, err := ch.Jobs.Request(ctx, stream.ReadjustRequest(is, ch.By))
		if err != nil {
			return err
		}
		a.Job = j.Job
	}
	was, is = was.WithDefaults(), is.WithDefaults()
	for what, changed := range map[string]bool{
		"backbone": was.Backbone != is.Backbone, "method": was.Method != is.Method, "profile": was.Profile != is.Profile,
		"score": was.Score != is.Score, "symmetry": was.Symmetry != is.Symmetry,
		"tiles": was.Tiles != is.Tiles, "budget": was.Budget != is.Budget,
		"region": !reflect.DeepEqual(was.Region, is.Region), "mask": !slices.Equal(was.Ignore, is.Ignore),
		"bits": was.Bits != is.Bits, "held-out share": was.HeldOut != is.HeldOut,
	} {
		if changed {
			a.Learnt = append(a.Learnt, what)
		}
	}
	slices.Sort(a.Learnt)
	return nil
}

func (c *Service) delete(ctx context.Context, ch *change, q stream.DeleteRequest) (struct{}, error) {
	if d, err := ch.Detectors.Get(ctx, q.Detector); err == nil {
		ch.Before = d
	}
	return struct{}{}, c.in.DeleteDetector(ctx, q.Detector, q.Everything)
}

func (c *Service) removeNormals(ctx context.Context, _ *change, q stream.RemoveRequest) (struct{}, error) {
	if err := stream.CheckToken("detector", q.Detector); err != nil {
		return struct{}{}, err
	}
	for _, n := range q.Normals {
		if err := c.in.Normals().Remove(ctx, q.Detector, n); err != nil {
			return struct{}{}, err
		}
	}
	return struct{}{}, nil
}

func (c *Service) feedback(ctx context.Context, ch *change, f stream.Feedback) (struct{}, error) {
	f.By = cmp.Or(f.By, ch.By)
	return struct{}{}, c.in.SendFeedback(ctx, f)
}

func (c *Service) train(ctx context.Context, ch *change, q stream.TrainRequest) (stream.Job, error) {
	if _, err := ch.Detectors.Get(ctx, q.Detector); err != nil {
		return stream.Job{}, err
	}
	q.By = cmp.Or(q.By, ch.By)
	if q.Job == "" {
		q.Job = stream.NewJob(q.Detector)
	}
	return ch.Jobs.Request(ctx, q)
}

func (c *Service) cancel(ctx context.Context, ch *change, q stream.JobRequest) (stream.Job, error) {
	return ch.Jobs.Cancel(ctx, q.Job)
}

// release finds the release that a request is about; none where it names none.
func (ch *change) release(ctx context.Context, detector, release string) (digest string, err error) {
	if err := stream.CheckToken("detector", detector); err != nil || release == "" {
		return "", err
	}
	return ch.Registry.Resolve(ctx, detector, release)
}

// replaces notes which release was active.
func (ch *change) replaces(ctx context.Context, detector string) {
	if p, err := ch.Registry.Active(ctx, detector); err == nil {
		ch.Before = p
	}
}

func (c *Service) promote(ctx context.Context, ch *change, q stream.PromoteRequest) (registry.Pointer, error) {
	digest, err := ch.release(ctx, q.Detector, q.Release)
	if err != nil {
		return registry.Pointer{}, err
	}
	ch.replaces(ctx, q.Detector)
	return ch.Registry.Promote(ctx, q.Detector, digest, registry.Change{By: cmp.Or(q.By, ch.By), Reason: q.Reason, Expect: q.Expect})
}

func (c *Service) rollback(ctx context.Context, ch *change, q stream.PromoteRequest) (registry.Pointer, error) {
	if err := stream.CheckToken("detector", q.Detector); err != nil {
		return registry.Pointer{}, err
	}
	ch.replaces(ctx, q.Detector)
	return ch.Registry.Rollback(ctx, q.Detector, registry.Change{By: cmp.Or(q.By, ch.By), Reason: q.Reason, Expect: q.Expect})
}

func (c *Service) shadow(ctx context.Context, ch *change, q stream.PromoteRequest) (struct{}, error) {
	digest, err := ch.release(ctx, q.Detector, q.Release)
	if err != nil {
		return struct{}{}, err
	}
	return struct{}{}, ch.Registry.SetShadow(ctx, q.Detector, digest, registry.Change{By: cmp.Or(q.By, ch.By), Reason: q.Reason})
}

func (c *Service) pin(ctx context.Context, ch *change, q stream.PinRequest) (struct{}, error) {
	digest, err := ch.release(ctx, q.Detector, q.Release)
	switch {
	case err != nil:
		return struct{}{}, err
	case q.Unpin:
		return struct{}{}, ch.Registry.Unpin(ctx, digest)
	default:
		return struct{}{}, ch.Registry.Pin(ctx, digest, cmp.Or(q.By, ch.By))
	}
}

func (c *Service) collect(ctx context.Context, ch *change, q registry.CollectOptions) (stream.Collected, error) {
	if q.DryRun {
		ch.Object = ""
	}
	return c.in.Collect(ctx, q)
}
