// Package streamtest sets up an installation for the tests of its roles, with scorers
// and trainers of which the tests know what they say.
package streamtest

import (
	"cmp"
	"context"
	"errors"
	"math"
	"path/filepath"
	"slices"
	"sync"
	"testing"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/rs/zerolog"

	"github.com/nearmiss/nearmiss/internal/brokertest"
	"github.com/nearmiss/nearmiss/internal/eventually"
	"github.com/nearmiss/nearmiss/stream"
	"github.com/nearmiss/nearmiss/stream/broker"
	"github.com/nearmiss/nearmiss/stream/control"
	"github.com/nearmiss/nearmiss/stream/registry"
	"github.com/nearmiss/nearmiss/stream/steward"
	"github.com/nearmiss/nearmiss/stream/trainer"
	"github.com/nearmiss/nearmiss/stream/worker"
)

// Log shows what happened when a test fails.
func Log(t testing.TB) zerolog.Logger {
	return zerolog.New(zerolog.NewTestWriter(t)).Level(zerolog.InfoLevel)
}

// Rig is a broker with everything set up, and a client.
type Rig struct {
	T        testing.TB
	Names    stream.Names
	Dir      string
	URL      string
	NC       *nats.Conn
	JS       jetstream.JetStream
	In       *stream.Installation
	Control  *control.Service
	Registry *registry.Registry
}

// New starts a broker for one test, which then runs beside others: most of
// their time goes into waiting for the disk.
func New(t *testing.T, topology stream.Topology) *Rig {
	t.Helper()
	t.Parallel()
	r := &Rig{T: t, Dir: t.TempDir(), Names: topology.Names}
	b, _ := brokertest.Start(t, broker.Config{Port: -1, StoreDir: filepath.Join(r.Dir, "broker")})
	r.URL = b.ClientURL()
	r.Open(topology)
	return r
}

// Open connects the rig to its broker and sets everything up in it.
func (r *Rig) Open(topology stream.Topology) {
	r.T.Helper()
	r.NC = r.Connect()
	r.JS = brokertest.StreamsOn(r.T, r.NC)
	r.must(stream.Ensure(r.T.Context(), r.JS, topology))
	r.In = stream.NewInstallation(r.JS, r.Names)
	var err error
	r.Registry, err = registry.Open(r.T.Context(), r.JS, registry.Config{
		ActiveBucket: r.Names.ActiveBucket(), ArtifactsBucket: r.Names.ArtifactsBucket(), CacheDir: filepath.Join(r.Dir, "cache"),
	})
	r.must(err)
}

// must ends the test when something that it builds on failed.
func (r *Rig) must(err error) {
	r.T.Helper()
	if err != nil {
		r.T.Fatal(err)
	}
}

func (r *Rig) Connect() *nats.Conn {
	r.T.Helper()
	nc, err := stream.Connect(r.URL, "test", zerolog.Nop())
	r.must(err)
	r.T.Cleanup(nc.Close)
	return nc
}

// Worker runs a worker until the test ends or stop is called.
func (r *Rig) Worker(cfg worker.Config, loader worker.Loader) (w *worker.Worker, stop func()) {
	r.T.Helper()
	cfg.Names = r.Names
	cfg.CacheDir = cmp.Or(cfg.CacheDir, filepath.Join(r.Dir, "cache"))
	nc := r.Connect()
	w, err := worker.New(cfg, nc, loader, Log(r.T))
	r.must(err)
	return w, brokertest.Run(r.T, "worker", w.Run)
}

// Publish sends one frame and fails the test when the broker does not take it.
func (r *Rig) Publish(f stream.Frame) {
	r.T.Helper()
	m, err := f.Message(r.Names)
	r.must(err)
	_, err = r.JS.PublishMsg(r.T.Context(), m)
	r.must(err)
}

// Scores collects what is sent on the scores subjects from now on.
type Scores struct {
	mu  sync.Mutex
	all []stream.Event
}

func (r *Rig) Scores() *Scores {
	r.T.Helper()
	s := &Scores{}
	sub, err := r.NC.Subscribe(r.Names.Scores("*", "*"), func(m *nats.Msg) {
		e, err := stream.ParseScore(m.Data, m.Header)
		if err != nil {
			r.T.Errorf("score: %v", err)
		}
		s.mu.Lock()
		s.all = append(s.all, e)
		s.mu.Unlock()
	})
	r.must(err)
	r.must(sub.SetPendingLimits(-1, -1))
	r.must(r.NC.Flush())
	r.T.Cleanup(func() { _ = sub.Unsubscribe() })
	return s
}

// InOrder are all of them, in the order in which they came.
func (s *Scores) InOrder() []stream.Event {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.all)
}

func (s *Scores) ByFrame() map[string][]stream.Event {
	s.mu.Lock()
	defer s.mu.Unlock()
	m := map[string][]stream.Event{}
	for _, e := range s.all {
		m[e.FrameID] = append(m[e.FrameID], e)
	}
	return m
}

// Stored returns every message of a stream.
func (r *Rig) Stored(name string) []*jetstream.RawStreamMsg {
	r.T.Helper()
	s, err := r.JS.Stream(r.T.Context(), name)
	r.must(err)
	info, err := s.Info(r.T.Context())
	r.must(err)
	var all []*jetstream.RawStreamMsg
	for seq := info.State.FirstSeq; seq <= info.State.LastSeq && seq > 0; seq++ {
		m, err := s.GetMsg(r.T.Context(), seq)
		if errors.Is(err, jetstream.ErrMsgNotFound) {
			continue
		}
		r.must(err)
		all = append(all, m)
	}
	return all
}

// Events returns every stored event of a frame.
func (r *Rig) Events() []stream.Event {
	r.T.Helper()
	return r.EventsOf(stream.KindAnomaly, stream.KindRejected)
}

// EventsOf returns every stored event of these kinds.
func (r *Rig) EventsOf(kinds ...string) []stream.Event {
	r.T.Helper()
	var all []stream.Event
	for _, m := range r.Stored(r.Names.EventsStream()) {
		e, err := stream.ParseEvent(r.Names, m.Subject, m.Header, m.Data)
		r.must(err)
		checkSchema(r.T, m.Data)
		if slices.Contains(kinds, e.Kind) {
			all = append(all, e)
		}
	}
	return all
}

// Waiting returns how many frames are in the queue. A broker that was killed may
// have taken the question with it: as long as there is no answer, the queue is
// not known to be empty.
func (r *Rig) Waiting() uint64 {
	r.T.Helper()
	s, err := r.JS.Stream(r.T.Context(), r.Names.FramesStream())
	if errors.Is(err, context.DeadlineExceeded) || errors.Is(err, nats.ErrNoResponders) {
		return math.MaxUint64
	}
	r.must(err)
	return s.CachedInfo().State.Msgs
}

func (r *Rig) Trainer(cfg trainer.Config, tr trainer.Maker) (stop func()) {
	r.T.Helper()
	cfg.Names = r.Names
	cfg.CacheDir, cfg.ScratchDir = filepath.Join(r.Dir, "cache"), filepath.Join(r.Dir, "scratch")
	w, err := trainer.New(cfg, r.Connect(), tr, Log(r.T))
	r.must(err)
	return brokertest.Run(r.T, "trainer", w.Run)
}

func (r *Rig) Detector(d stream.Detector) {
	r.T.Helper()
	s, err := r.In.Detectors(r.T.Context())
	r.must(err)
	_, err = s.Create(r.T.Context(), d)
	r.must(err)
}

// Consumers makes the consumers of detectors, as control does, before a steward changes
// the stream that they are of: nats-server 2.15 makes a consumer by what a change writes
// at the same time, a data race of its own, which the race detector holds against a test.
func (r *Rig) Consumers(detectors ...string) {
	r.T.Helper()
	for _, d := range detectors {
		r.must(r.In.EnsureFramesConsumer(r.T.Context(), d))
	}
}

func (r *Rig) Jobs() *stream.Jobs {
	r.T.Helper()
	s, err := r.In.Jobs(r.T.Context())
	r.must(err)
	return s
}

// Wait returns a job's record when it has finished.
func (r *Rig) Wait(job string) stream.Job {
	r.T.Helper()
	ctx, cancel := context.WithTimeout(r.T.Context(), eventually.Patience)
	defer cancel()
	j, err := r.Jobs().Wait(ctx, job, nil)
	r.must(err)
	return j
}

// Client asks a control, which the first call starts.
func (r *Rig) Client() *stream.Client {
	r.T.Helper()
	if r.Control == nil {
		var err error
		r.Control, err = control.New(r.Connect(), r.Names, Log(r.T))
		r.must(err)
		stop, err := r.Control.Start(r.T.Context())
		r.must(err)
		r.T.Cleanup(stop)
	}
	return stream.NewClient(r.NC, r.Names).For("tester")
}

func (r *Rig) Steward(cfg steward.Config) {
	r.T.Helper()
	cfg.Names = r.Names
	s, err := steward.New(cfg, r.Connect(), Log(r.T))
	r.must(err)
	brokertest.Run(r.T, "steward", s.Run)
}

// PublishRaw publishes bytes on a subject of a stream.
func (r *Rig) PublishRaw(subject, data string) {
	r.T.Helper()
	_, err := r.JS.Publish(r.T.Context(), subject, []byte(data))
	r.must(err)
}

// Send publishes a message as any client may and fails the test when the broker
// does not take it, or takes it for a duplicate.
func (r *Rig) Send(subject string, header map[string]string, data []byte) {
	r.T.Helper()
	m := nats.NewMsg(subject)
	m.Data = data
	for k, v := range header {
		m.Header.Set(k, v)
	}
	ack, err := r.JS.PublishMsg(r.T.Context(), m)
	r.must(err)
	if ack.Duplicate {
		r.T.Errorf("%s is taken for a duplicate", subject)
	}
}
