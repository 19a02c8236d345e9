package worker_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"math"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/nearmiss/nearmiss/internal/brokertest"
	"github.com/nearmiss/nearmiss/internal/eventually"
	"github.com/nearmiss/nearmiss/stream"
	"github.com/nearmiss/nearmiss/stream/broker"
	"github.com/nearmiss/nearmiss/stream/internal/streamtest"
	"github.com/nearmiss/nearmiss/stream/registry"
	"github.com/nearmiss/nearmiss/stream/worker"
)

func TestWorkerScoresEveryFrameAndAnnouncesAnomalies(t *testing.T) {
	r := streamtest.New(t, stream.Topology{})
	release := r.Release("bolts", streamtest.Fake{Name: "one"})
	got := r.Scores()
	w, stop := r.Worker(worker.Config{}, streamtest.LoadFake)
	const frames = 50
	for i := range frames {
		r.Publish(stream.Frame{Detector: "bolts", Camera: "left", ID: fmt.Sprint("f", i), Image: streamtest.Image(float64(i) / frames), Truth: `{"defect":false}`, Source: "a/b.png"})
	}
	eventually.True(t, "all frames are scored", func() bool { return w.Stats().Scored == frames })
	eventually.True(t, "the queue is empty", func() bool { return r.Waiting() == 0 })
	stop()
	if err := r.NC.Flush(); err != nil {
		t.Fatal(err)
	}
	for id, s := range got.ByFrame() {
		if len(s) != 1 {
			t.Errorf("frame %s has %d scores", id, len(s))
		}
	}
	if n := len(got.ByFrame()); n != frames {
		t.Errorf("%d frames have a score, want %d", n, frames)
	}
	events := r.Events()
	if len(events) != 4 {
		t.Errorf("%d events, want 4", len(events))
	}
	for _, e := range events {
		if e.Release != release || !*e.Anomalous || e.Truth == "" || e.Source != "a/b.png" {
			t.Errorf("event %+v", e)
		}
		bucket, name, _ := strings.Cut(e.Evidence, "/")
		store, err := r.JS.ObjectStore(t.Context(), bucket)
		if err != nil {
			t.Fatal(err)
		}
		if b, err := store.GetBytes(t.Context(), name); err != nil || !bytes.HasPrefix(b, []byte("FAKE")) {
			t.Errorf("evidence %s: %d bytes, %v", e.Evidence, len(b), err)
		}
	}
}

func TestEventsAreCloudEvents(t *testing.T) {
	r := streamtest.New(t, stream.Topology{Names: stream.Names{Prefix: "plant-2"}})
	r.Release("bolts", streamtest.Fake{Name: "one"})
	r.Worker(worker.Config{}, streamtest.LoadFake)
	captured := time.Date(2026, 1, 2, 3, 4, 5, 600, time.UTC)
	r.Publish(stream.Frame{Detector: "bolts", Camera: "left", ID: "f1", CapturedAt: captured, Image: streamtest.Image(0.95), Trace: "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"})
	eventually.True(t, "there is an event", func() bool { return len(r.Events()) == 1 })
	var m *jetstream.RawStreamMsg
	for _, stored := range r.Stored("PLANT-2_EVENTS") { // also that a release is in service, before it or after it
		if stored.Subject == "plant-2.events.bolts.left.anomaly" {
			m = stored
		}
	}
	if m == nil {
		t.Fatal("there is no event on its subject")
	}
	for k, want := range map[string]string{
		"ce-specversion": "1.0", "ce-type": "dev.nearmiss.anomaly.v1", "ce-source": "/plant-2/bolts", "ce-subject": "left/f1",
		"ce-datacontenttype": "application/json", "traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
	} {
		if got := m.Header.Get(k); got != want {
			t.Errorf("header %s is %q, want %q", k, got, want)
		}
	}
	if id := m.Header.Get("ce-id"); id == "" || id != m.Header.Get(nats.MsgIdHdr) {
		t.Errorf("ce-id %q, Nats-Msg-Id %q", id, m.Header.Get(nats.MsgIdHdr))
	}
	if _, err := time.Parse(time.RFC3339Nano, m.Header.Get("ce-time")); err != nil {
		t.Error(err)
	}
	e := r.Events()[0]
	if !e.CapturedAt.Equal(captured) || *e.Score < 0.94 || e.K != 2 || len(e.Nearest) != 2 || e.Bytes != 12 || e.Width != 8 {
		t.Errorf("%+v", e)
	}
}

func TestTwoWorkersShareTheFramesOfADetector(t *testing.T) {
	r := streamtest.New(t, stream.Topology{})
	r.Release("bolts", streamtest.Fake{Name: "one"})
	const frames = 400
	for i := range frames {
		r.Publish(stream.Frame{Detector: "bolts", Camera: "left", ID: fmt.Sprint("f", i), Image: streamtest.Image(0.1)})
	}
	// Neither is done with a frame before both have some: how long the other took to begin
	// is the machine's affair.
	var both sync.WaitGroup
	slow := func() worker.Loader {
		both.Add(1)
		begins := sync.OnceFunc(both.Done)
		return streamtest.Serve(streamtest.Fake{Delay: 5 * time.Millisecond, OnScore: func([][]byte) error {
			begins()
			both.Wait()
			return nil
		}})
	}
	first, second := slow(), slow()
	one, _ := r.Worker(worker.Config{BatchSize: 8}, first)
	two, _ := r.Worker(worker.Config{BatchSize: 8}, second)
	eventually.True(t, "all frames are scored", func() bool { return one.Stats().Scored+two.Stats().Scored == frames })
	a, b := one.Stats().Scored, two.Stats().Scored
	t.Logf("%d and %d frames", a, b)
	if min(a, b) < frames/4 {
		t.Errorf("one worker scored %d frames, the other %d", a, b)
	}
}

func TestAFrameThatCannotBeReadIsRejectedAtOnce(t *testing.T) {
	r := streamtest.New(t, stream.Topology{})
	r.Release("bolts", streamtest.Fake{Name: "one"})
	w, _ := r.Worker(worker.Config{MaxImage: 1 << 20}, streamtest.LoadFake)
	subject := r.Names.Frames("bolts", "left")
	store, err := r.JS.ObjectStore(t.Context(), r.Names.LargeBucket())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := store.PutBytes(t.Context(), "frames/huge", make([]byte, 2<<20)); err != nil {
		t.Fatal(err)
	}
	cases := []struct {
		name   string
		data   []byte
		header nats.Header
		code   string
	}{
		{"empty", nil, nil, "empty"},
		{"not an image", []byte("hello"), nil, "unsupported"},
		{"truncated", streamtest.Image(0.5)[:10], nil, "unsupported"},
		{"bad time", streamtest.Image(0.5), nats.Header{stream.HeaderCapturedAt: {"yesterday"}}, stream.CodeBadHeader},
		{"bad id", streamtest.Image(0.5), nats.Header{stream.HeaderFrameID: {"two words"}}, stream.CodeBadHeader},
		{"object elsewhere", nil, nats.Header{stream.HeaderObject: {"release/x"}}, stream.CodeBadHeader},
		{"object and payload", streamtest.Image(0.5), nats.Header{stream.HeaderObject: {"frames/x"}}, stream.CodeBadHeader},
		{"object missing", nil, nats.Header{stream.HeaderObject: {"frames/none"}}, stream.CodeObjectMissing},
		{"object too large", nil, nats.Header{stream.HeaderObject: {"frames/huge"}}, stream.CodeTooLarge},
	}
	for i, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			m := nats.NewMsg(subject)
			m.Data = c.data
			maps.Copy(m.Header, c.header)
			if _, err := r.JS.PublishMsg(t.Context(), m); err != nil {
				t.Fatal(err)
			}
			r.Publish(stream.Frame{Detector: "bolts", Camera: "left", ID: fmt.Sprint("good", i), Image: streamtest.Image(0.1)})
			eventually.True(t, "the next frame is scored", func() bool { return w.Stats().Scored == uint64(i+1) })
			eventually.True(t, "it is rejected", func() bool { return w.Stats().Rejected == uint64(i+1) })
			events := r.Events()
			if e := events[len(events)-1]; len(events) != i+1 || e.Kind != stream.KindRejected || e.Code != c.code || e.Reason == "" || e.FrameID == "" {
				t.Errorf("%d events, last %+v", len(events), e)
			}
			dead, err := r.In.DeadLetters(t.Context(), 0)
			if err != nil {
				t.Fatal(err)
			}
			if d := dead[len(dead)-1]; len(dead) != i+1 || d.Code != c.code || d.Deliveries != 1 || d.Subject != subject || !bytes.Equal(d.Data, c.data) {
				t.Errorf("%d dead letters, last %+v", len(dead), d)
			}
		})
	}
	eventually.True(t, "the queue is empty", func() bool { return r.Waiting() == 0 })
	if n := w.Stats().Retried; n != 0 {
		t.Errorf("%d frames were retried", n)
	}
}

func TestAScoreThatIsNoNumberIsNoNormalFrame(t *testing.T) {
	r := streamtest.New(t, stream.Topology{})
	r.Release("bolts", streamtest.Fake{Name: "one"})
	w, _ := r.Worker(worker.Config{}, func(context.Context, string) (worker.Scorer, error) { return nanScorer{}, nil })
	r.Publish(stream.Frame{Detector: "bolts", Camera: "left", ID: "f", Image: streamtest.Image(0.1)})
	eventually.True(t, "it is rejected", func() bool { return w.Stats().Rejected == 1 })
	if e := r.Events(); len(e) != 1 || e[0].Code != stream.CodeNotFinite {
		t.Errorf("%+v", e)
	}
}

type nanScorer struct{}

func (nanScorer) Score(_ context.Context, images [][]byte) ([]worker.Verdict, error) {
	v := make([]worker.Verdict, len(images))
	for i := range v {
		v[i] = worker.Verdict{Score: math.NaN(), Threshold: 1, PValue: 0.5, K: 1}
	}
	return v, nil
}
func (nanScorer) Close() error { return nil }

func TestAScorerThatFailsIsTriedAgain(t *testing.T) {
	r := streamtest.New(t, stream.Topology{})
	r.Release("bolts", streamtest.Fake{Name: "one"})
	var calls, poisoned atomic.Int64
	poison := streamtest.Image(0.123)
	f := streamtest.Fake{OnScore: func(images [][]byte) error {
		if calls.Add(1) <= 2 {
			return errors.New("the session was lost")
		}
		for _, b := range images {
			if bytes.Equal(b, poison) {
				poisoned.Add(1)
				panic("division by zero")
			}
		}
		return nil
	}}
	w, _ := r.Worker(worker.Config{RetryDelay: time.Millisecond, MaxDeliver: 4}, streamtest.Serve(f))
	r.Publish(stream.Frame{Detector: "bolts", Camera: "left", ID: "good1", Image: streamtest.Image(0.1)})
	r.Publish(stream.Frame{Detector: "bolts", Camera: "left", ID: "poison", Image: poison})
	r.Publish(stream.Frame{Detector: "bolts", Camera: "left", ID: "good2", Image: streamtest.Image(0.2)})
	eventually.True(t, "the good frames are scored", func() bool { return w.Stats().Scored == 2 })
	eventually.True(t, "the bad frame is given up", func() bool { return w.Stats().Rejected == 1 })
	dead, err := r.In.DeadLetters(t.Context(), 0)
	if err != nil || len(dead) != 1 || dead[0].Code != stream.CodeScoring || dead[0].Deliveries != 4 || !strings.Contains(dead[0].Reason, "division by zero") {
		t.Errorf("dead letters %+v, %v", dead, err)
	}
	eventually.True(t, "the queue is empty", func() bool { return r.Waiting() == 0 })
	if e := r.Events(); len(e) != 1 || e[0].Code != stream.CodeScoring || e[0].FrameID != "poison" {
		t.Errorf("events %+v", e)
	}
}

func TestAFrameThatIsNeverAcknowledgedGoesToTheDeadLetters(t *testing.T) {
	r := streamtest.New(t, stream.Topology{})
	// Somebody takes the frame as often as allowed and says nothing, with no
	// worker running: the advisory waits for one.
	r.Publish(stream.Frame{Detector: "bolts", Camera: "left", ID: "cursed", Image: streamtest.Image(0.5)})
	cons, err := r.JS.CreateConsumer(t.Context(), r.Names.FramesStream(), jetstream.ConsumerConfig{
		Durable: "frames-bolts", FilterSubject: r.Names.Frames("bolts", "*"), AckPolicy: jetstream.AckExplicitPolicy, AckWait: 20 * time.Millisecond, MaxDeliver: 2,
	})
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if _, err := cons.Next(); err != nil {
			t.Fatal(err)
		}
	}
	eventually.True(t, "the broker gives up", func() bool {
		_, _ = cons.Next(jetstream.FetchMaxWait(20 * time.Millisecond))
		return len(r.Stored(r.Names.DeadStream())) == 1
	})
	r.Release("bolts", streamtest.Fake{Name: "one"})
	w, _ := r.Worker(worker.Config{}, streamtest.LoadFake)
	eventually.True(t, "it is dead", func() bool {
		dead, err := r.In.DeadLetters(t.Context(), 0)
		return err == nil && len(dead) == 1 && dead[0].Code == stream.CodeMaxDeliveries && bytes.Equal(dead[0].Data, streamtest.Image(0.5))
	})
	eventually.True(t, "the queue is empty", func() bool { return r.Waiting() == 0 })
	eventually.True(t, "only the dead letter is left", func() bool { return len(r.Stored(r.Names.DeadStream())) == 1 })
	if e := r.Events(); len(e) != 1 || e[0].Code != stream.CodeMaxDeliveries || e[0].FrameID != "cursed" {
		t.Errorf("events %+v", e)
	}
	r.Publish(stream.Frame{Detector: "bolts", Camera: "left", ID: "next", Image: streamtest.Image(0.5)})
	eventually.True(t, "the next frame is scored", func() bool { return w.Stats().Scored == 1 })
}

func TestFramesOfADetectorWithoutAReleaseWait(t *testing.T) {
	r := streamtest.New(t, stream.Topology{})
	w, _ := r.Worker(worker.Config{}, streamtest.LoadFake)
	for i := range 5 {
		r.Publish(stream.Frame{Detector: "bolts", Camera: "left", ID: fmt.Sprint("f", i), Image: streamtest.Image(0.5)})
	}
	// Another detector works meanwhile.
	r.Release("nuts", streamtest.Fake{Name: "nuts"})
	r.Publish(stream.Frame{Detector: "nuts", Camera: "left", ID: "f", Image: streamtest.Image(0.5)})
	eventually.True(t, "the other detector's frame is scored", func() bool { return w.Stats().Scored == 1 })
	eventually.True(t, "only the others wait", func() bool { return r.Waiting() == 5 })
	r.Release("bolts", streamtest.Fake{Name: "bolts"})
	eventually.True(t, "they are scored once there is one", func() bool { return w.Stats().Scored == 6 })
	if w.Stats().Retried != 0 {
		t.Errorf("%+v", w.Stats())
	}
}

func TestFramesOfAnyClient(t *testing.T) {
	r := streamtest.New(t, stream.Topology{})
	r.Release("bolts", streamtest.Fake{Name: "one"})
	got := r.Scores()
	w, _ := r.Worker(worker.Config{}, streamtest.LoadFake)
	for range 3 { // plain core NATS publishes, no headers
		if err := r.NC.Publish("nearmiss.frames.bolts.phone", streamtest.Image(0.3)); err != nil {
			t.Fatal(err)
		}
	}
	m := nats.NewMsg("nearmiss.frames.bolts.phone")
	m.Data = streamtest.Image(0.3)
	m.Header.Set(nats.MsgIdHdr, "mine")
	if err := r.NC.PublishMsg(m); err != nil {
		t.Fatal(err)
	}
	eventually.True(t, "they are scored", func() bool { return w.Stats().Scored == 4 })
	eventually.True(t, "their scores are there", func() bool { return len(got.ByFrame()) == 4 })
	if len(got.ByFrame()["mine"]) != 1 {
		t.Errorf("scores of %v", got.ByFrame())
	}
}

func TestAnImageAboveThePayloadLimitIsScoredAndItsObjectRemoved(t *testing.T) {
	r := streamtest.New(t, stream.Topology{})
	r.Release("bolts", streamtest.Fake{Name: "one"})
	w, _ := r.Worker(worker.Config{}, streamtest.LoadFake)
	store, err := r.JS.ObjectStore(t.Context(), r.Names.LargeBucket())
	if err != nil {
		t.Fatal(err)
	}
	big := append(streamtest.Image(0.2), make([]byte, 9<<20)...)
	if _, err := store.PutBytes(t.Context(), "frames/big", big); err != nil {
		t.Fatal(err)
	}
	r.Publish(stream.Frame{Detector: "bolts", Camera: "left", ID: "big", Object: "frames/big"})
	eventually.True(t, "it is scored", func() bool { return w.Stats().Scored == 1 })
	eventually.True(t, "its object is gone", func() bool {
		_, err := store.GetInfo(t.Context(), "frames/big")
		return errors.Is(err, jetstream.ErrObjectNotFound)
	})
}

// TestAFrameThatComesAgainAfterASwapRaisesNoSecondEvent: the event was stored,
// the acknowledgement was lost, and the release is another one now.
func TestAFrameThatComesAgainAfterASwapRaisesNoSecondEvent(t *testing.T) {
	r := streamtest.New(t, stream.Topology{})
	old := r.Release("bolts", streamtest.Fake{Name: "one"})
	cons, err := r.JS.CreateConsumer(t.Context(), r.Names.FramesStream(), jetstream.ConsumerConfig{
		Durable: "frames-bolts", FilterSubject: r.Names.Frames("bolts", "*"), AckPolicy: jetstream.AckExplicitPolicy, AckWait: 30 * time.Second, MaxDeliver: 5,
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, id := range []string{"told", "untold"} {
		r.Publish(stream.Frame{Detector: "bolts", Camera: "left", ID: id, Image: streamtest.Image(0.95)})
	}
	var msgs []jetstream.Msg
	for range 2 {
		m, err := cons.Next()
		if err != nil {
			t.Fatal(err)
		}
		msgs = append(msgs, m)
	}
	score, yes := 0.95, true
	e := stream.Event{
		ID: "of the old release", Kind: stream.KindAnomaly, FrameID: "told", Detector: "bolts", Camera: "left",
		CapturedAt: time.Now().UTC(), ScoredAt: time.Now().UTC(), Score: &score, Threshold: &score, PValue: &score, Anomalous: &yes,
		K: 1, Nearest: []stream.Near{}, Release: old, Width: 8, Height: 8, Bytes: 12,
	}
	m, err := e.Message(r.Names)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := r.JS.PublishMsg(t.Context(), m); err != nil {
		t.Fatal(err)
	}
	r.Release("bolts", streamtest.Fake{Name: "two"})
	for _, m := range msgs {
		if err := m.Nak(); err != nil {
			t.Fatal(err)
		}
	}
	w, _ := r.Worker(worker.Config{}, streamtest.LoadFake)
	eventually.True(t, "both are scored", func() bool { return w.Stats().Scored == 2 })
	var ids []string
	for _, e := range r.Events() {
		ids = append(ids, e.FrameID)
	}
	if len(ids) != 2 || ids[0] == ids[1] {
		t.Errorf("events of frames %v", ids)
	}
}

func TestALiveDetectorKeepsOnlyTheNewestFrames(t *testing.T) {
	r := streamtest.New(t, stream.Topology{})
	r.Detector(stream.Detector{Name: "bolts", Policy: stream.PolicyLive, LiveBacklog: 10})
	for i := range 100 {
		r.Publish(stream.Frame{Detector: "bolts", Camera: "left", ID: fmt.Sprint("f", i), Image: streamtest.Image(0.5)})
	}
	w, _ := r.Worker(worker.Config{}, streamtest.LoadFake)
	eventually.True(t, "old frames are dropped", func() bool { return w.Stats().Dropped == 90 })
	got := r.Scores()
	r.Release("bolts", streamtest.Fake{Name: "one"})
	eventually.True(t, "the others are scored", func() bool { return len(got.ByFrame()) == 10 })
	if len(got.ByFrame()["f99"]) != 1 {
		t.Error("the newest frame is not scored")
	}
}

func TestAWorkerFinishesItsFramesWhenItIsStopped(t *testing.T) {
	r := streamtest.New(t, stream.Topology{})
	r.Release("bolts", streamtest.Fake{Name: "one"})
	entered := make(chan struct{})
	var taken atomic.Uint64 // how many that are in one batch depends on how fast they come
	f := streamtest.Fake{Delay: 0, OnScore: func(images [][]byte) error {
		if n := uint64(len(images)); taken.Add(n) == n {
			close(entered)
			time.Sleep(50 * time.Millisecond)
		}
		return nil
	}}
	const frames = 8
	for i := range frames {
		r.Publish(stream.Frame{Detector: "bolts", Camera: "left", ID: fmt.Sprint("f", i), Image: streamtest.Image(0.5)})
	}
	w, stop := r.Worker(worker.Config{BatchSize: frames, Lanes: 1}, streamtest.Serve(f))
	<-entered
	stop()
	if st := w.Stats(); st.Scored != taken.Load() || st.Retried != 0 {
		t.Errorf("%d frames taken, %+v", taken.Load(), st)
	}
	eventually.True(t, "only what was not taken is in the queue", func() bool { return r.Waiting() == frames-taken.Load() })
}

func TestAScorerThatHangsDoesNotHoldTheWorker(t *testing.T) {
	r := streamtest.New(t, stream.Topology{})
	r.Release("bolts", streamtest.Fake{Name: "one"})
	entered := make(chan struct{}, 10)
	r.Publish(stream.Frame{Detector: "bolts", Camera: "left", ID: "f", Image: streamtest.Image(0.5)})
	f := streamtest.Fake{Delay: time.Hour, OnScore: nil}
	w, stop := r.Worker(worker.Config{Drain: 10 * time.Millisecond, Lanes: 1}, func(context.Context, string) (worker.Scorer, error) {
		return hooked{f, func() { entered <- struct{}{} }}, nil
	})
	<-entered
	stop()
	if w.Stats().Scored != 0 || r.Waiting() != 1 {
		t.Errorf("%d frames scored, %d wait", w.Stats().Scored, r.Waiting())
	}
}

type hooked struct {
	streamtest.Fake
	hook func()
}

func (h hooked) Score(ctx context.Context, images [][]byte) ([]worker.Verdict, error) {
	h.hook()
	return h.Fake.Score(ctx, images)
}

// TestWorkGoesOnAfterTheBrokerRestarts restarts the broker under a worker, and
// changes the release while the worker cannot hear of it.
func TestWorkGoesOnAfterTheBrokerRestarts(t *testing.T) {
	dir := t.TempDir()
	store := filepath.Join(dir, "broker")
	b, stop := brokertest.Start(t, broker.Config{Port: -1, StoreDir: store})
	way := brokertest.NewRelay(t, strings.TrimPrefix(b.ClientURL(), "nats://")) // to each of them by one address
	r := &streamtest.Rig{T: t, Dir: dir, URL: "nats://" + way.Addr()}
	r.Open(stream.Topology{})
	r.Release("bolts", streamtest.Fake{Name: "one"})
	w, stopWorker := r.Worker(worker.Config{Resync: time.Hour}, streamtest.LoadFake)
	frame := 0
	publish := func(n int) {
		for range n {
			frame++
			r.Publish(stream.Frame{Detector: "bolts", Camera: "left", ID: fmt.Sprint("f", frame), Image: streamtest.Image(0.95)})
		}
	}
	publish(20)
	eventually.True(t, "the first frames are scored", func() bool { return w.Stats().Scored == 20 })
	way.Lead("")
	stop()
	// The pointer changes behind the worker's back: on a broker that it does not know.
	b2, stop2 := brokertest.Start(t, broker.Config{Port: -1, StoreDir: store})
	other := &streamtest.Rig{T: t, Dir: dir, URL: b2.ClientURL()}
	other.Open(stream.Topology{})
	second := other.Release("bolts", streamtest.Fake{Name: "two"})
	other.NC.Close()
	stop2()
	b, _ = brokertest.Start(t, broker.Config{Port: -1, StoreDir: store})
	way.Lead(strings.TrimPrefix(b.ClientURL(), "nats://"))
	eventually.True(t, "the connection is back", r.NC.IsConnected)
	publish(20)
	eventually.True(t, "the next frames are scored", func() bool { return w.Stats().Scored >= 40 })
	eventually.True(t, "the pointer is read again", func() bool { return w.Stats().Swaps == 2 })
	publish(5)
	eventually.True(t, "the last frames are scored", func() bool { return w.Stats().Scored >= 45 })
	stopWorker() // before the broker, or it waits for it
	seen := map[string]int{}
	for _, e := range r.Events() {
		seen[e.FrameID]++
	}
	if len(seen) != 45 {
		t.Errorf("%d frames have events", len(seen))
	}
	stored := r.Events()
	if last := stored[len(stored)-1]; last.Release != second {
		t.Errorf("the last event is of release %s", last.Release)
	}
	for id, n := range seen {
		if n != 1 {
			t.Errorf("frame %s has %d events", id, n)
		}
	}
}

func TestAReleaseThatIsUnfitIsRefusedAndTheOldOneServes(t *testing.T) {
	r := streamtest.New(t, stream.Topology{})
	old := r.Release("bolts", streamtest.Fake{Name: "good"})
	w, _ := r.Worker(worker.Config{}, streamtest.LoadFake)
	r.Publish(stream.Frame{Detector: "bolts", Camera: "left", ID: "f1", Image: streamtest.Image(0.95)})
	eventually.True(t, "it serves", func() bool { return w.Stats().Scored == 1 })
	r.Release("bolts", streamtest.Fake{Name: "bad", Broken: "the bank has 192 dimensions, the model 384"})
	eventually.True(t, "the new one is refused", func() bool { return w.Stats().Refused == 1 })
	r.Publish(stream.Frame{Detector: "bolts", Camera: "left", ID: "f2", Image: streamtest.Image(0.95)})
	eventually.True(t, "the old one serves", func() bool { return w.Stats().Scored == 2 })
	for _, e := range r.Events() {
		if e.Release != old {
			t.Errorf("event of release %s", e.Release)
		}
	}
	eventually.True(t, "the refusal is told", func() bool {
		for _, e := range r.EventsOf(stream.KindRelease) {
			if e.Code == stream.ReleaseRefused && strings.Contains(e.Reason, "192 dimensions") && strings.Contains(e.Reason, "goes on serving") {
				return true
			}
		}
		return false
	})
	if _, err := r.Registry.Rollback(t.Context(), "bolts", registry.Change{By: "test"}); err != nil {
		t.Fatal(err)
	}
	third := r.Release("bolts", streamtest.Fake{Name: "better"})
	eventually.True(t, "the third one serves", func() bool { return w.Stats().Swaps == 2 })
	r.Publish(stream.Frame{Detector: "bolts", Camera: "left", ID: "f3", Image: streamtest.Image(0.95)})
	eventually.True(t, "it scores", func() bool { return w.Stats().Scored == 3 })
	var releases []string
	for _, e := range r.Events() {
		releases = append(releases, e.Release)
	}
	if last := releases[len(releases)-1]; last != third {
		t.Errorf("the last event is of %s, want %s", last, third)
	}
}

// TestAReleaseThatIsDamagedInTheStoreIsRefused points a detector, past the
// registry's own check, to releases whose objects are not what they should be.
func TestAReleaseThatIsDamagedInTheStoreIsRefused(t *testing.T) {
	r := streamtest.New(t, stream.Topology{})
	old := r.Release("bolts", streamtest.Fake{Name: "good"})
	w, _ := r.Worker(worker.Config{}, streamtest.LoadFake)
	eventually.True(t, "it serves", func() bool { return w.Stats().Swaps == 1 })
	store, err := r.JS.ObjectStore(t.Context(), r.Names.ArtifactsBucket())
	if err != nil {
		t.Fatal(err)
	}
	kv, err := r.JS.KeyValue(t.Context(), r.Names.ActiveBucket())
	if err != nil {
		t.Fatal(err)
	}
	file := func(digest string) string {
		rel, err := r.Registry.Show(t.Context(), digest)
		if err != nil {
			t.Fatal(err)
		}
		return rel.Files[0].SHA256
	}
	for i, c := range []struct {
		name   string
		damage func(digest string) error
		reason string
	}{
		{"truncated", func(d string) error {
			info, err := store.GetInfo(t.Context(), file(d))
			if err != nil {
				return err
			}
			s, err := r.JS.Stream(t.Context(), "OBJ_"+r.Names.ArtifactsBucket())
			if err != nil {
				return err
			}
			return s.Purge(t.Context(), jetstream.WithPurgeSubject("$O."+r.Names.ArtifactsBucket()+".C."+info.NUID))
		}, "chunks"},
		{"another model", func(d string) error {
			_, err := store.PutBytes(t.Context(), file(d), []byte("another model"))
			return err
		}, "sha256"},
		{"gone", func(d string) error { return store.Delete(t.Context(), file(d)) }, "not in the store"},
		{"no manifest", func(d string) error { return store.Delete(t.Context(), d) }, "no such release"},
	} {
		t.Run(c.name, func(t *testing.T) {
			digest := r.Put("bolts", streamtest.Fake{Name: c.name})
			if err := c.damage(digest); err != nil {
				t.Fatal(err)
			}
			if _, err := kv.PutString(t.Context(), "bolts", `{"detector":"bolts","release":"`+digest+`"}`); err != nil {
				t.Fatal(err)
			}
			eventually.True(t, "it is refused", func() bool { return w.Stats().Refused == uint64(i+1) })
			eventually.True(t, "the reason is told", func() bool {
				for _, e := range r.EventsOf(stream.KindRelease) {
					if e.Release == digest && e.Code == stream.ReleaseRefused && strings.Contains(e.Reason, c.reason) {
						return true
					}
				}
				return false
			})
			r.Publish(stream.Frame{Detector: "bolts", Camera: "left", ID: fmt.Sprint("f", i), Image: streamtest.Image(0.95)})
			eventually.True(t, "the old one serves", func() bool { return len(r.Events()) == i+1 })
			if e := r.Events()[i]; e.Release != old {
				t.Errorf("event of release %s", e.Release)
			}
		})
	}
}
