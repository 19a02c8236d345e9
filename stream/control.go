package stream

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/micro"
	"github.com/rs/zerolog"

	"github.com/nearmiss/nearmiss/stream/internal/kv"
	"github.com/nearmiss/nearmiss/stream/internal/text"
	"github.com/nearmiss/nearmiss/stream/registry"
)

// Control changes an installation for people: configurations, verdicts, training,
// which release is active. The command line, the console and others ask it, by a
// [Client]; none of them writes a bucket. It runs beside the broker (nearmiss up
// and nearmiss broker), or as nearmiss control where the broker is another's.
// Several may run: each request goes to one of them.
type Control struct {
	in  *Installation
	nc  *nats.Conn
	log zerolog.Logger
	who func(identity string) string

	unmade chan struct{} // a detector has no consumer of frames yet
}

// Knows says whose an identity's public key is, for the audit: an empty name where
// that is not known. Call it before Start.
func (c *Control) Knows(who func(identity string) string) { c.who = who }

// NewControl prepares a control on a connection that the caller closes after it
// has ended.
func NewControl(nc *nats.Conn, n Names, log zerolog.Logger) (*Control, error) {
	if err := n.Validate(); err != nil {
		return nil, err
	}
	js, err := n.JetStreamOn(nc)
	if err != nil {
		return nil, fmt.Errorf("start control: %w", err)
	}
	return &Control{in: NewInstallation(js, n), nc: nc, log: log.With().Str("component", "control").Logger(), unmade: make(chan struct{}, 1)}, nil
}

// Run waits for the broker and its streams, and answers until ctx ends.
func (c *Control) Run(ctx context.Context) error {
	err := await(ctx, c.log, func(step context.Context) error {
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
func (c *Control) Start(ctx context.Context) (stop func(), err error) {
	// The trainers answered before; programs of that time still ask there.
	subjects := []string{c.in.names.API() + ".control", c.in.names.API() + ".trainer"}
	end, err := startService(ctx, c.nc, ControlService, "changes detectors and their releases", subjects, map[string]string{"prefix": c.in.names.Root()}, c.offer)
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
func (c *Control) offer(e *endpoints) {
	serve(e, "status", func(ctx context.Context, _ struct{}) (Status, error) { return c.in.Status(ctx) })
	serve(e, "detectors", c.detectors)
	serve(e, "jobs", c.jobs)
	serve(e, "releases", c.releases)

	ofDetector := func(name string) string { return "detector/" + name }
	change(c, e, "create", func(q Detector) string { return ofDetector(q.Name) }, c.create)
	change(c, e, "set", func(q SetRequest) string { return ofDetector(q.Detector) }, c.set)
	change(c, e, "feedback", func(q Feedback) string { return ofDetector(q.Detector) }, c.feedback)
	change(c, e, "train", func(q TrainRequest) string { return ofDetector(q.Detector) }, c.train)
	change(c, e, "cancel", func(q JobRequest) string { return "job/" + q.Job }, c.cancel)
	change(c, e, "promote", func(q PromoteRequest) string { return ofDetector(q.Detector) }, c.promote)
	change(c, e, "rollback", func(q PromoteRequest) string { return ofDetector(q.Detector) }, c.rollback)
	change(c, e, "shadow", func(q PromoteRequest) string { return ofDetector(q.Detector) }, c.shadow)
	change(c, e, "pin", func(q PinRequest) string { return ofDetector(q.Detector) }, c.pin)
	change(c, e, "delete", func(q DeleteRequest) string { return ofDetector(q.Detector) }, c.delete)
	change(c, e, "remove-normals", func(q RemoveRequest) string { return ofDetector(q.Detector) }, c.removeNormals)
	change(c, e, "collect", func(registry.CollectOptions) string { return "installation" }, c.collect)
}

// Caller is who asks for a change.
type Caller struct {
	// By is a person, as the client says in [HeaderBy].
	By string `json:"by,omitempty"`
	// Identity is the public key of the NATS identity, as the reply subject tells:
	// only its owner may subscribe to it. An identity that does not want the answer
	// can name another's. Empty where the broker knows no identities.
	Identity string `json:"identity,omitempty"`
}

// Change is one thing that somebody asked [Control] to change.
type Change struct {
	Caller
	Action string `json:"action"`           // the request: create, set, promote, …
	Object string `json:"object"`           // what is changed: detector/NAME, job/NAME, installation
	Before any    `json:"before,omitempty"` // what the action replaces, where that is known
	After  any    `json:"after,omitempty"`  // the answer
	Err    error  `json:"-"`                // why nothing was changed
}

// change is serve for requests that change something. All of them pass here,
// whoever sends them: what must hold of every change belongs here, and in
// [Control.record], which is told of each, done or refused, with who asked for
// it. f may say what it replaces, in Before; one that changes nothing empties
// Object, and is not recorded.
func change[Q, A any](c *Control, e *endpoints, name string, object func(Q) string, f func(context.Context, *Change, Q) (A, error)) {
	serveRequest(e, name, func(ctx context.Context, r micro.Request, q Q) (A, error) {
		ch := &Change{Caller: callerOf(r), Action: name, Object: object(q)}
		a, err := f(ctx, ch, q)
		if ch.Object != "" {
			ch.After, ch.Err = a, err
			c.record(ctx, *ch)
		}
		return a, err
	})
}

// record tells of a change, and writes it down for good.
func (c *Control) record(ctx context.Context, ch Change) {
	e := AuditEntry{By: ch.By, Identity: ch.Identity, Action: ch.Action, Object: ch.Object, Before: audited(ch.Before)}
	if c.who != nil && ch.Identity != "" {
		e.User = c.who(ch.Identity)
	}
	if ch.Err == nil {
		e.After = audited(ch.After)
	} else {
		e.Result, e.Error = codeFor(ch.Err), ch.Err.Error()
	}
	// Who asked may not wait for the answer any more.
	if err := c.in.WriteAudit(context.WithoutCancel(ctx), e); err != nil {
		c.log.Error().Err(err).Msg("a change is not in the audit")
	}
	c.log.Info().Err(ch.Err).Str("by", ch.By).Str("identity", ch.Identity).Str("action", ch.Action).Str("object", text.Clip(ch.Object)).Msg("asked for a change")
}

// callerOf reads who sent a request.
func callerOf(r micro.Request) Caller {
	by := text.Line(nats.Header(r.Headers()).Get(HeaderBy))
	if len(by) > maxFrameID {
		by = text.Clip(by)
	}
	who := Caller{By: by}
	if rest, ok := strings.CutPrefix(r.Reply(), inboxPrefix); ok {
		who.Identity, _, _ = strings.Cut(rest, ".")
	}
	return who
}

// inboxPrefix is what the reply subjects of clients with an identity begin with;
// its public key follows.
const inboxPrefix = "_INBOX_"

// Requests and answers of the control, besides [Detector], [TrainRequest] and
// [Feedback].
type (
	// DetectorRequest names a detector; empty means all where that makes sense.
	DetectorRequest struct {
		Detector string `json:"detector,omitempty"`
	}
	// DetectorAnswer is a detector's configuration.
	DetectorAnswer struct {
		Detector
		Revision uint64 `json:"revision"` // a new one with every change
		// Job makes a changed k or false-alarm rate act: a release of the same model.
		Job string `json:"job,omitempty"`
		// Learnt are the settings that were changed and act with the next training.
		Learnt []string `json:"learnt,omitempty"`
	}
	// DetectorsAnswer is the configurations, by name, as far as they can be read.
	DetectorsAnswer struct {
		Detectors  []DetectorAnswer `json:"detectors"`
		Unreadable []Unreadable     `json:"unreadable,omitempty"`
	}
	// SetRequest changes single fields of a configuration.
	SetRequest struct {
		Detector string                     `json:"detector"`
		Set      map[string]json.RawMessage `json:"set"`                // fields and their values; null: the default
		Revision uint64                     `json:"revision,omitempty"` // only if this is the newest
	}
	// DeleteRequest removes a detector; everything: its training set, too.
	DeleteRequest struct {
		Detector   string `json:"detector"`
		Everything bool   `json:"everything,omitempty"`
	}
	// RemoveRequest takes images out of a training set, by their sequences.
	RemoveRequest struct {
		Detector string   `json:"detector"`
		Normals  []uint64 `json:"normals"`
	}
	// JobRequest names a job.
	JobRequest struct {
		Job string `json:"job"`
	}
	// PromoteRequest names a release, in full or by its first characters.
	PromoteRequest struct {
		Detector string `json:"detector"`
		Release  string `json:"release,omitempty"` // not for rollback; empty ends shadow mode
		Expect   string `json:"expect,omitempty"`  // release that must be active, in full
		By       string `json:"by,omitempty"`      // default: who asks
		Reason   string `json:"reason,omitempty"`
	}
	// PinRequest keeps a release from being collected, or lets it go.
	PinRequest struct {
		Detector string `json:"detector"`
		Release  string `json:"release"`
		Unpin    bool   `json:"unpin,omitempty"`
		By       string `json:"by,omitempty"` // default: who asks
	}
	// ReleasesAnswer is a detector's releases, oldest first, and its pointers,
	// newest first.
	ReleasesAnswer struct {
		Releases []registry.Release `json:"releases"`
		History  []registry.Pointer `json:"history"`
	}
)

func answerOf(d Detector) DetectorAnswer { return DetectorAnswer{Detector: d, Revision: d.Revision} }

func (c *Control) detectors(ctx context.Context, q DetectorRequest) (a DetectorsAnswer, err error) {
	s, err := c.in.Detectors(ctx)
	if err != nil {
		return a, err
	}
	a.Detectors = []DetectorAnswer{}
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

func (c *Control) jobs(ctx context.Context, q DetectorRequest) ([]Job, error) {
	s, err := c.in.Jobs(ctx)
	if err != nil {
		return nil, err
	}
	all, err := s.List(ctx, q.Detector)
	if all == nil {
		all = []Job{}
	}
	return all, err
}

func (c *Control) releases(ctx context.Context, q DetectorRequest) (a ReleasesAnswer, err error) {
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

func (c *Control) create(ctx context.Context, _ *Change, d Detector) (DetectorAnswer, error) {
	if err := d.Validate(); err != nil {
		return DetectorAnswer{}, Permanent(CodeBadRequest, oneLine(err))
	}
	s, err := c.in.Detectors(ctx)
	if err != nil {
		return DetectorAnswer{}, err
	}
	if d, err = s.Create(ctx, d); err != nil {
		return answerOf(d), err
	}
	step, cancel := context.WithTimeout(ctx, 5*leaderless)
	defer cancel()
	if c.in.ensureFramesConsumer(step, d.Name) != nil { // keepConsumers tries again, and says why not
		select {
		case c.unmade <- struct{}{}:
		default:
		}
	}
	return answerOf(d), nil
}

func (c *Control) set(ctx context.Context, ch *Change, q SetRequest) (DetectorAnswer, error) {
	s, err := c.in.Detectors(ctx)
	if err != nil {
		return DetectorAnswer{}, err
	}
	var was Detector
	is, err := s.Set(ctx, q.Detector, func(d *Detector) error {
		if q.Revision != 0 && q.Revision != d.Revision {
			return fmt.Errorf("change detector %s: its revision is %d, not %d: %w", d.Name, d.Revision, q.Revision, ErrConflict)
		}
		was = *d
		if err := q.Apply(d); err != nil {
			return err
		}
		if err := d.Validate(); err != nil {
			return Permanent(CodeBadRequest, oneLine(err))
		}
		return nil
	})
	if err != nil {
		return DetectorAnswer{}, err
	}
	ch.Before = was
	a := answerOf(is)
	return a, c.takeEffect(ctx, ch.By, was, is, &a)
}

// Apply changes d by the fields of the request. What comes of it need not be valid.
func (q SetRequest) Apply(d *Detector) error {
	bad := func(err error) error {
		return Permanent(CodeBadRequest, fmt.Errorf("change detector %s: %w", d.Name, oneLine(err)))
	}
	fields, err := fieldsOf(*d)
	if err != nil {
		return err
	}
	for name, value := range q.Set {
		switch {
		case name == "name" || name == "created_at":
			return bad(fmt.Errorf("its %s cannot be changed", name))
		case string(value) == "null":
			delete(fields, name)
		default:
			fields[name] = value
		}
	}
	b, err := json.Marshal(fields)
	if err != nil {
		return bad(err)
	}
	next := Detector{Revision: d.Revision}
	if err := kv.Object(b, &next, true); err != nil {
		return bad(err)
	}
	*d = next
	return nil
}

// fieldsOf are a configuration's fields that are not the default, as JSON.
func fieldsOf(d Detector) (map[string]json.RawMessage, error) {
	b, err := json.Marshal(d)
	if err != nil {
		return nil, err
	}
	fields := map[string]json.RawMessage{}
	return fields, json.Unmarshal(b, &fields)
}

// takeEffect has what was changed act as soon as it can, and says in a when that
// is.
func (c *Control) takeEffect(ctx context.Context, by string, was, is Detector, a *DetectorAnswer) error {
	r, err := c.in.Registry(ctx)
	if err != nil {
		return err
	}
	if _, err := r.Active(ctx, is.Name); errors.Is(err, registry.ErrNoRelease) {
		return nil // all of it acts with the first training
	} else if err != nil {
		return err
	}
	if !sameJudgement(was, is) {
		jobs, err := c.in.Jobs(ctx)
		if err != nil {
			return err
		}
		// Trainers do so by themselves; asked for here, it waits for one.
		j, err := jobs.Request(ctx, ReadjustRequest(is, by))
		if err != nil {
			return err
		}
		a.Job = j.Job
	}
	was, is = was.WithDefaults(), is.WithDefaults()
	for what, changed := range map[string]bool{
		"backbone": was.Backbone != is.Backbone, "method": was.Method != is.Method, "profile": was.Profile != is.Profile,
		"score": was.Score != is.Score, "symmetry": was.Symmetry != is.Symmetry,
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

func (c *Control) delete(ctx context.Context, ch *Change, q DeleteRequest) (struct{}, error) {
	if s, err := c.in.Detectors(ctx); err == nil && ValidToken(q.Detector) {
		if d, err := s.Get(ctx, q.Detector); err == nil {
			ch.Before = d
		}
	}
	return struct{}{}, c.in.DeleteDetector(ctx, q.Detector, q.Everything)
}

func (c *Control) removeNormals(ctx context.Context, _ *Change, q RemoveRequest) (struct{}, error) {
	if err := CheckToken("detector", q.Detector); err != nil {
		return struct{}{}, err
	}
	for _, n := range q.Normals {
		if err := c.in.Normals().Remove(ctx, q.Detector, n); err != nil {
			return struct{}{}, err
		}
	}
	return struct{}{}, nil
}

func (c *Control) feedback(ctx context.Context, ch *Change, f Feedback) (struct{}, error) {
	f.By = cmp.Or(f.By, ch.By)
	return struct{}{}, c.in.SendFeedback(ctx, f)
}

func (c *Control) train(ctx context.Context, ch *Change, q TrainRequest) (Job, error) {
	s, err := c.in.Detectors(ctx)
	if err != nil {
		return Job{}, err
	}
	if _, err := s.Get(ctx, q.Detector); err != nil {
		return Job{}, err
	}
	jobs, err := c.in.Jobs(ctx)
	if err != nil {
		return Job{}, err
	}
	q.By = cmp.Or(q.By, ch.By)
	if q.Job == "" {
		q.Job = NewJob(q.Detector)
	}
	return jobs.Request(ctx, q)
}

func (c *Control) cancel(ctx context.Context, _ *Change, q JobRequest) (Job, error) {
	jobs, err := c.in.Jobs(ctx)
	if err != nil {
		return Job{}, err
	}
	return jobs.Cancel(ctx, q.Job)
}

// release finds the release that a request is about.
func (c *Control) release(ctx context.Context, detector, release string) (*registry.Registry, string, error) {
	if err := CheckToken("detector", detector); err != nil {
		return nil, "", err
	}
	r, err := c.in.Registry(ctx)
	if err != nil || release == "" {
		return r, "", err
	}
	digest, err := r.Resolve(ctx, detector, release)
	return r, digest, err
}

// replaces notes which release was active.
func (ch *Change) replaces(ctx context.Context, r *registry.Registry, detector string) {
	if p, err := r.Active(ctx, detector); err == nil {
		ch.Before = p
	}
}

func (c *Control) promote(ctx context.Context, ch *Change, q PromoteRequest) (registry.Pointer, error) {
	r, digest, err := c.release(ctx, q.Detector, q.Release)
	if err != nil {
		return registry.Pointer{}, err
	}
	ch.replaces(ctx, r, q.Detector)
	return r.Promote(ctx, q.Detector, digest, registry.Change{By: cmp.Or(q.By, ch.By), Reason: q.Reason, Expect: q.Expect})
}

func (c *Control) rollback(ctx context.Context, ch *Change, q PromoteRequest) (registry.Pointer, error) {
	r, _, err := c.release(ctx, q.Detector, "")
	if err != nil {
		return registry.Pointer{}, err
	}
	ch.replaces(ctx, r, q.Detector)
	return r.Rollback(ctx, q.Detector, registry.Change{By: cmp.Or(q.By, ch.By), Reason: q.Reason, Expect: q.Expect})
}

func (c *Control) shadow(ctx context.Context, ch *Change, q PromoteRequest) (struct{}, error) {
	r, digest, err := c.release(ctx, q.Detector, q.Release)
	if err != nil {
		return struct{}{}, err
	}
	return struct{}{}, r.SetShadow(ctx, q.Detector, digest, registry.Change{By: cmp.Or(q.By, ch.By), Reason: q.Reason})
}

func (c *Control) pin(ctx context.Context, ch *Change, q PinRequest) (struct{}, error) {
	r, digest, err := c.release(ctx, q.Detector, q.Release)
	switch {
	case err != nil:
		return struct{}{}, err
	case q.Unpin:
		return struct{}{}, r.Unpin(ctx, digest)
	default:
		return struct{}{}, r.Pin(ctx, digest, cmp.Or(q.By, ch.By))
	}
}

func (c *Control) collect(ctx context.Context, ch *Change, q registry.CollectOptions) (Collected, error) {
	if q.DryRun {
		ch.Object = ""
	}
	return c.in.Collect(ctx, q)
}
