package stream_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/rs/zerolog"
	"go.uber.org/goleak"

	"github.com/nearmiss/nearmiss/internal/brokertest"
	"github.com/nearmiss/nearmiss/stream"
	"github.com/nearmiss/nearmiss/stream/broker"
	"github.com/nearmiss/nearmiss/stream/registry"
)

// leak is nats.go's: a Put into an Object Store that ends before its helper has
// begun leaves the helper waiting (v1.55, resetPendingAcksOnReconnect).
var leak = goleak.IgnoreTopFunction("github.com/nats-io/nats.go/jetstream.(*jetStream).resetPendingAcksOnReconnect")

func TestMain(m *testing.M) {
	if role := os.Getenv("NEARMISS_TEST_ROLE"); role != "" {
		os.Exit(child(role))
	}
	goleak.VerifyTestMain(m, leak)
}

// testLog shows what happened when a test fails.
func testLog(t testing.TB) zerolog.Logger {
	return zerolog.New(zerolog.NewTestWriter(t)).Level(zerolog.InfoLevel)
}

// rig is a broker with everything set up, and a client.
type rig struct {
	t       testing.TB
	names   stream.Names
	dir     string
	url     string
	nc      *nats.Conn
	js      jetstream.JetStream
	in      *stream.Installation
	control *stream.Control
	reg     *registry.Registry
}

// newRig starts a broker for one test, which then runs beside others: most of
// their time goes into waiting for the disk.
func newRig(t *testing.T, topology stream.Topology) *rig {
	t.Helper()
	t.Parallel()
	r := &rig{t: t, dir: t.TempDir(), names: topology.Names}
	b, _ := brokertest.Start(t, broker.Config{Port: -1, StoreDir: filepath.Join(r.dir, "broker")})
	r.url = b.ClientURL()
	r.open(topology)
	return r
}

// open connects the rig to its broker and sets everything up in it.
func (r *rig) open(topology stream.Topology) {
	r.t.Helper()
	r.nc = r.connect()
	var err error
	if r.js, err = jetstream.New(r.nc); err != nil {
		r.t.Fatal(err)
	}
	if err := stream.Ensure(r.t.Context(), r.js, topology); err != nil {
		r.t.Fatal(err)
	}
	r.in = stream.NewInstallation(r.js, r.names)
	if r.reg, err = registry.Open(r.t.Context(), r.js, registry.Config{
		ActiveBucket: r.names.ActiveBucket(), ArtifactsBucket: r.names.ArtifactsBucket(), CacheDir: filepath.Join(r.dir, "cache"),
	}); err != nil {
		r.t.Fatal(err)
	}
}

func (r *rig) connect() *nats.Conn {
	r.t.Helper()
	nc, err := stream.Connect(r.url, "test", zerolog.Nop())
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(nc.Close)
	return nc
}

// release stores a release whose only file says how the fake scorer behaves,
// and makes it active.
func (r *rig) release(detector string, f fake) string {
	r.t.Helper()
	digest := r.put(detector, f)
	if _, err := r.reg.Promote(r.t.Context(), detector, digest, registry.Change{By: "test"}); err != nil {
		r.t.Fatal(err)
	}
	return digest
}

func (r *rig) put(detector string, f fake) string {
	r.t.Helper()
	digest, err := r.reg.Put(r.t.Context(), detector, writeRelease(r.t, f))
	if err != nil {
		r.t.Fatal(err)
	}
	return digest
}

// writeRelease makes a release folder.
func writeRelease(t testing.TB, f fake) string {
	t.Helper()
	dir := t.TempDir()
	if err := makeRelease(dir, f); err != nil {
		t.Fatal(err)
	}
	return dir
}

func makeRelease(dir string, f fake) error {
	model, err := json.Marshal(f)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	sum := sha256.Sum256(model)
	manifest := fmt.Sprintf(`{"schema_version":1,"files":{"fake.json":{"sha256":%q,"size":%d}}}`, hex.EncodeToString(sum[:]), len(model))
	return errors.Join(
		os.WriteFile(filepath.Join(dir, "fake.json"), model, 0o644),
		os.WriteFile(filepath.Join(dir, "manifest.json"), []byte(manifest), 0o644),
	)
}

// fake is a deterministic scorer: the score is a number of the image's bytes.
type fake struct {
	Name      string        // makes releases differ
	Threshold float64       // default 0.9
	Delay     time.Duration // of each batch
	Broken    string        // Load fails with it
	Known     [][]byte      // images that are normal, whatever their number
	Retracted []uint64      // normals that have left the bank

	onScore func([][]byte) error // for tests of one process
}

func (f fake) threshold() float64 {
	if f.Threshold == 0 {
		return 0.9
	}
	return f.Threshold
}

// image makes the bytes of a fake image; number is between 0 and 1.
func image(number float64) []byte {
	b := []byte("FAKE")
	return binary.LittleEndian.AppendUint64(b, uint64(number*(1<<32)))
}

func (f fake) Score(ctx context.Context, images [][]byte) ([]stream.Verdict, error) {
	if f.Delay > 0 {
		select {
		case <-time.After(f.Delay):
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	if f.onScore != nil {
		if err := f.onScore(images); err != nil {
			return nil, err
		}
	}
	out := make([]stream.Verdict, len(images))
	for i, b := range images {
		switch {
		case len(b) == 0:
			out[i] = stream.Verdict{Reject: "empty", Reason: "the image has no bytes"}
		case !bytes.HasPrefix(b, []byte("FAKE")) || len(b) < 12:
			out[i] = stream.Verdict{Reject: "unsupported", Reason: "this is no image"}
		default:
			s := float64(binary.LittleEndian.Uint64(b[4:])) / (1 << 32)
			if slices.ContainsFunc(f.Known, func(k []byte) bool { return bytes.Equal(k, b) }) {
				s = 0
			}
			out[i] = stream.Verdict{
				Score: s, Threshold: f.threshold(), PValue: 1 - s, Anomalous: s > f.threshold(), K: 2,
				Nearest: []stream.Near{{ID: 1, Distance: s / 2}, {ID: 2, Distance: s / 2}}, Width: 8, Height: 8,
			}
		}
	}
	return out, nil
}

func (f fake) Close() error { return nil }

// loadFake is the Loader of fakes.
var loadFake = stream.LoaderFunc(func(_ context.Context, dir string) (stream.Scorer, error) {
	b, err := os.ReadFile(filepath.Join(dir, "fake.json"))
	if err != nil {
		return nil, err
	}
	var f fake
	if err := json.Unmarshal(b, &f); err != nil {
		return nil, err
	}
	if f.Broken != "" {
		return nil, errors.New(f.Broken)
	}
	return f, nil
})

// worker runs a worker until the test ends or stop is called.
func (r *rig) worker(cfg stream.WorkerConfig, loader stream.Loader) (w *stream.Worker, stop func()) {
	r.t.Helper()
	cfg.Names = r.names
	if cfg.CacheDir == "" {
		cfg.CacheDir = filepath.Join(r.dir, "cache")
	}
	nc := r.connect()
	w, err := stream.NewWorker(cfg, nc, loader, testLog(r.t))
	if err != nil {
		r.t.Fatal(err)
	}
	return w, brokertest.Run(r.t, "worker", w.Run)
}

// publish sends one frame and fails the test when the broker does not take it.
func (r *rig) publish(f stream.Frame) {
	r.t.Helper()
	m, err := f.Message(r.names)
	if err != nil {
		r.t.Fatal(err)
	}
	if _, err := r.js.PublishMsg(r.t.Context(), m); err != nil {
		r.t.Fatal(err)
	}
}

// scores collects what is sent on the scores subjects from now on.
type scores struct {
	mu  sync.Mutex
	all []stream.Event
}

func (r *rig) scores() *scores {
	r.t.Helper()
	s := &scores{}
	sub, err := r.nc.Subscribe(r.names.Scores("*", "*"), func(m *nats.Msg) {
		e, err := stream.ParseScore(m.Data, m.Header)
		if err != nil {
			r.t.Errorf("score: %v", err)
		}
		s.mu.Lock()
		s.all = append(s.all, e)
		s.mu.Unlock()
	})
	if err != nil {
		r.t.Fatal(err)
	}
	if err := sub.SetPendingLimits(-1, -1); err != nil {
		r.t.Fatal(err)
	}
	if err := r.nc.Flush(); err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { _ = sub.Unsubscribe() })
	return s
}

func (s *scores) byFrame() map[string][]stream.Event {
	s.mu.Lock()
	defer s.mu.Unlock()
	m := map[string][]stream.Event{}
	for _, e := range s.all {
		m[e.FrameID] = append(m[e.FrameID], e)
	}
	return m
}

// stored returns every message of a stream.
func (r *rig) stored(name string) []*jetstream.RawStreamMsg {
	r.t.Helper()
	s, err := r.js.Stream(r.t.Context(), name)
	if err != nil {
		r.t.Fatal(err)
	}
	info, err := s.Info(r.t.Context())
	if err != nil {
		r.t.Fatal(err)
	}
	var all []*jetstream.RawStreamMsg
	for seq := info.State.FirstSeq; seq <= info.State.LastSeq && seq > 0; seq++ {
		m, err := s.GetMsg(r.t.Context(), seq)
		if errors.Is(err, jetstream.ErrMsgNotFound) {
			continue
		}
		if err != nil {
			r.t.Fatal(err)
		}
		all = append(all, m)
	}
	return all
}

// events returns every stored event of a frame.
func (r *rig) events() []stream.Event {
	r.t.Helper()
	return r.eventsOf(stream.KindAnomaly, stream.KindRejected)
}

// eventsOf returns every stored event of these kinds.
func (r *rig) eventsOf(kinds ...string) []stream.Event {
	r.t.Helper()
	var all []stream.Event
	for _, m := range r.stored(r.names.EventsStream()) {
		e, err := stream.ParseEvent(r.names, m.Subject, m.Header, m.Data)
		if err != nil {
			r.t.Fatal(err)
		}
		checkSchema(r.t, m.Data)
		if slices.Contains(kinds, e.Kind) {
			all = append(all, e)
		}
	}
	return all
}

// waiting returns how many frames are in the queue. A broker that was killed may
// have taken the question with it: as long as there is no answer, the queue is
// not known to be empty.
func (r *rig) waiting() uint64 {
	r.t.Helper()
	s, err := r.js.Stream(r.t.Context(), r.names.FramesStream())
	if errors.Is(err, context.DeadlineExceeded) || errors.Is(err, nats.ErrNoResponders) {
		return math.MaxUint64
	}
	if err != nil {
		r.t.Fatal(err)
	}
	return s.CachedInfo().State.Msgs
}

// eventually polls until ok, and fails the test after a minute.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	deadline := time.Now().Add(time.Minute)
	for !ok() {
		if time.Now().After(deadline) {
			t.Fatalf("waited in vain until %s", what)
		}
		time.Sleep(5 * time.Millisecond)
	}
}
