package sink_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/rs/zerolog"

	"github.com/nearmiss/nearmiss/internal/brokertest"
	"github.com/nearmiss/nearmiss/internal/eventually"
	"github.com/nearmiss/nearmiss/stream"
	"github.com/nearmiss/nearmiss/stream/broker"
	"github.com/nearmiss/nearmiss/stream/incident"
	"github.com/nearmiss/nearmiss/stream/sink"
)

func TestMain(m *testing.M) { brokertest.Main(m) }

// receiver is a kind whose sender does what the test says.
type receiver struct {
	mu   sync.Mutex
	got  []sink.Notice
	send func(n sink.Notice) error // nil: takes everything
}

func (r *receiver) Send(_ context.Context, n sink.Notice) error {
	r.mu.Lock()
	f := r.send
	r.mu.Unlock()
	if f != nil {
		if err := f(n); err != nil {
			return err
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.got = append(r.got, n)
	return nil
}

func (r *receiver) Close() error { return nil }

func (r *receiver) does(f func(sink.Notice) error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.send = f
}

func (r *receiver) notices() []sink.Notice {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.got)
}

func (r *receiver) ids() []string {
	var ids []string
	for _, n := range r.notices() {
		ids = append(ids, n.ID)
	}
	return ids
}

// hall is a broker with events and an engine.
type hall struct {
	t     *testing.T
	nc    *nats.Conn
	js    jetstream.JetStream
	sinks jetstream.KeyValue
	kinds sink.Kinds
	log   bytes.Buffer
	logMu sync.Mutex
	sent  int
}

func (h *hall) Write(b []byte) (int, error) {
	h.logMu.Lock()
	defer h.logMu.Unlock()
	return h.log.Write(b)
}

func newHall(t *testing.T, receivers map[string]*receiver) *hall {
	t.Helper()
	b, _ := brokertest.Start(t, broker.Config{Port: -1})
	h := &hall{t: t, nc: brokertest.Connect(t, b), kinds: sink.Kinds{}}
	h.js = brokertest.StreamsOn(t, h.nc)
	err := stream.Ensure(t.Context(), h.js, stream.Topology{})
	if err == nil {
		h.sinks, err = h.js.KeyValue(t.Context(), "NM_SINKS")
	}
	if err != nil {
		t.Fatal(err)
	}
	for name, r := range receivers {
		h.kinds[name] = func(sink.Sink, string) (sink.Sender, error) { return r, nil }
	}
	return h
}

// engine runs one until the test ends or stop is called.
func (h *hall) engine() (stop func()) {
	h.t.Helper()
	e, err := sink.NewEngine(sink.EngineConfig{Kinds: h.kinds, Delays: []time.Duration{50 * time.Millisecond, 100 * time.Millisecond}, LossCheckInterval: 50 * time.Millisecond}, h.nc, zerolog.New(h))
	if err != nil {
		h.t.Fatal(err)
	}
	return brokertest.Run(h.t, "sinks", e.Run)
}

func (h *hall) put(s sink.Sink) {
	h.t.Helper()
	b, err := json.Marshal(s)
	if err == nil {
		_, err = h.sinks.Put(h.t.Context(), s.Name, b)
	}
	if err != nil {
		h.t.Fatal(err)
	}
}

// event publishes an anomaly and returns its id.
func (h *hall) event(camera string, ratio float64) string {
	h.t.Helper()
	h.sent++
	threshold, at := 1.0, time.Now().UTC()
	e := stream.Event{ID: fmt.Sprintf("event-%d", h.sent), Kind: stream.KindAnomaly, Detector: "bolts", Camera: camera, FrameID: fmt.Sprint(h.sent), ScoredAt: at, Score: &ratio, Threshold: &threshold}
	m, err := e.Message(stream.Names{})
	if err == nil {
		_, err = h.js.PublishMsg(h.t.Context(), m)
	}
	if err != nil {
		h.t.Fatal(err)
	}
	return e.ID
}

func (h *hall) status(name string) sink.Status {
	h.t.Helper()
	var all []sink.Status
	h.ask("status", nil, &all)
	for _, s := range all {
		if s.Name == name {
			return s
		}
	}
	return sink.Status{}
}

func (h *hall) ask(what string, q, a any) {
	h.t.Helper()
	b, err := json.Marshal(q)
	if err != nil {
		h.t.Fatal(err)
	}
	m, err := h.nc.Request("nearmiss.api.sinks."+what, b, 2*time.Minute)
	if err != nil {
		h.t.Fatal(err)
	}
	if e := m.Header.Get("Nats-Service-Error"); e != "" {
		h.t.Fatalf("%s: %s", what, e)
	}
	if err := json.Unmarshal(m.Data, a); err != nil {
		h.t.Fatal(err)
	}
}

func (h *hall) ready(name string) {
	h.t.Helper()
	eventually.True(h.t, "it is so", func() bool {
		_, err := h.js.Consumer(h.t.Context(), "NM_EVENTS", "sink-"+name)
		return err == nil
	})
}

// TestASinkThatIsPutBack keeps what another engine has begun for it: one that was still
// sending when the sink was removed does not take away the new one's place.
func TestASinkThatIsPutBack(t *testing.T) {
	r, gone := &receiver{}, sink.Sink{Name: "a", Kind: "r", Enabled: true, Kinds: []string{"anomaly"}}
	sending, goOn := make(chan struct{}), make(chan struct{})
	r.does(func(sink.Notice) error {
		r.does(nil)
		close(sending)
		<-goOn
		return nil
	})
	h := newHall(t, map[string]*receiver{"r": r})
	h.engine()
	h.put(gone)
	h.ready("a")
	h.event("left", 2)
	<-sending // the first engine waits for the receiver
	h.engine()
	begun := func(n int) bool {
		h.logMu.Lock()
		defer h.logMu.Unlock()
		return strings.Count(h.log.String(), "sink is at work") >= n
	}
	eventually.True(t, "the second engine has it, too", func() bool { return begun(2) })
	consumer := func() *jetstream.ConsumerInfo {
		c, err := h.js.Consumer(t.Context(), "NM_EVENTS", "sink-a")
		if err != nil {
			return nil
		}
		return c.CachedInfo()
	}
	if err := h.sinks.Delete(t.Context(), "a"); err != nil {
		t.Fatal(err)
	}
	eventually.True(t, "the second engine has removed its place", func() bool { return consumer() == nil })
	h.put(gone)
	h.ready("a")
	created := consumer().Created
	close(goOn)
	eventually.True(t, "the first engine has it again, too", func() bool { return begun(4) })
	if c := consumer(); c == nil || !c.Created.Equal(created) {
		t.Errorf("its place was made at %v and is %+v", created, c)
	}
}

// A receiver that is down for a while gets every event in the end, though the
// engine was stopped and started meanwhile; another sink does not wait for it.
func TestNothingIsLostWhileAReceiverIsDown(t *testing.T) {
	down, other := &receiver{}, &receiver{}
	down.does(func(sink.Notice) error { return errors.New("connection refused") })
	h := newHall(t, map[string]*receiver{"down": down, "other": other})
	stop := h.engine()
	h.put(sink.Sink{Name: "a", Kind: "down", Enabled: true, Kinds: []string{"anomaly"}})
	h.put(sink.Sink{Name: "b", Kind: "other", Enabled: true, Kinds: []string{"anomaly"}})
	h.ready("a")
	h.ready("b")
	want := map[string]bool{}
	for range 50 {
		want[h.event("line1", 2)] = true
	}
	// Each arrives, and comes again where its acknowledgement was lost.
	arrived := func(r *receiver) int {
		got := map[string]bool{}
		for _, id := range r.ids() {
			got[id] = true
		}
		return len(got)
	}
	eventually.True(t, "the other has all", func() bool { return arrived(other) == 50 })
	eventually.True(t, "the one that is down is known to be", func() bool { return h.status("a").Open })
	for range 3 {
		stop()
		stop = h.engine()
	}
	for range 50 {
		want[h.event("line1", 2)] = true
	}
	down.does(nil)
	eventually.True(t, "all have arrived", func() bool { return arrived(down) == len(want) && arrived(other) == len(want) })
	for _, id := range down.ids() {
		if !want[id] {
			t.Errorf("%s arrived and was never sent", id)
		}
	}
	if s := h.status("a"); s.Open || s.Results[sink.ResultSent] == 0 {
		t.Errorf("%+v", s)
	}
}

// What a receiver refuses is in the dead letters with the reason, and can be
// sent again.
func TestDeadLettersCanBeSentAgain(t *testing.T) {
	r := &receiver{}
	r.does(func(sink.Notice) error { return &sink.Permanent{Err: errors.New("no such channel\r\nX: y")} })
	h := newHall(t, map[string]*receiver{"k": r})
	h.engine()
	h.put(sink.Sink{Name: "a", Kind: "k", Enabled: true, Kinds: []string{"anomaly"}})
	h.ready("a")
	id := h.event("line1", 2)
	eventually.True(t, "it is so", func() bool { return h.status("a").Results[sink.ResultDead] == 1 })
	dead, err := stream.NewInstallation(h.js, stream.Names{}).DeadLetters(t.Context(), 0)
	if err != nil || len(dead) != 1 {
		t.Fatalf("%v, %v", dead, err)
	}
	if d := dead[0]; d.Code != sink.CodeRefused || !strings.Contains(d.Reason, "no such channel") || d.Header.Get(sink.HeaderDeadSink) != "a" || d.Header.Get("X") != "" {
		t.Errorf("%+v", d)
	}
	r.does(nil)
	var a sink.ReplayAnswer
	h.ask("replay", sink.ReplayRequest{Sink: "a", Dead: true}, &a)
	if a.Sent != 1 || len(r.ids()) != 1 || r.ids()[0] != id {
		t.Errorf("%+v, %v", a, r.ids())
	}
	if dead, err = stream.NewInstallation(h.js, stream.Names{}).DeadLetters(t.Context(), 0); err != nil || len(dead) != 0 {
		t.Errorf("%v, %v", dead, err)
	}
	h.ask("replay", sink.ReplayRequest{Sink: "a", Since: time.Now().Add(-time.Hour)}, &a)
	if a.Sent != 1 || len(r.ids()) != 2 {
		t.Errorf("%+v", a)
	}
}

// Why an event was not sent is counted; a cool-down begins with what was
// delivered, and what is beyond the rate is told in one summary.
func TestEveryDecisionIsCounted(t *testing.T) {
	r := &receiver{}
	h := newHall(t, map[string]*receiver{"k": r})
	h.engine()
	h.put(sink.Sink{Name: "cool", Kind: "k", Enabled: true, Kinds: []string{"anomaly"}, MinRatio: 1.5, CoolDown: sink.Duration(time.Hour)})
	h.ready("cool")
	h.event("line1", 1.1) // filtered: starts no cool-down
	first := h.event("line1", 2)
	eventually.True(t, "it is so", func() bool { return len(r.ids()) == 1 })
	h.event("line1", 3) // cooled
	second := h.event("line2", 2)
	eventually.True(t, "it is so", func() bool { return len(r.ids()) == 2 })
	if ids := r.ids(); ids[0] != first || ids[1] != second {
		t.Errorf("%v", ids)
	}
	eventually.True(t, "it is so", func() bool {
		s := h.status("cool").Results
		return s[sink.ResultFiltered] == 1 && s[sink.ResultCooled] == 1 && s[sink.ResultSent] == 2
	})
	if h.status("cool").Reasons["filtered: score"] != 1 {
		t.Errorf("%+v", h.status("cool").Reasons)
	}

	h.put(sink.Sink{Name: "few", Kind: "k", Enabled: true, Kinds: []string{"anomaly"}, Rate: sink.Rate{N: 2, Per: sink.Duration(2 * time.Second)}, Ordered: true, Cameras: []string{"line3"}})
	h.ready("few")
	const events = 20
	for range events {
		h.event("line3", 2)
	}
	// How many periods they fall into is the machine's affair.
	eventually.True(t, "each was sent or is in a summary", func() bool {
		told := 0
		for _, n := range r.notices() {
			if told += n.Summary; n.Summary > 0 && n.Event.Reason != fmt.Sprintf("and %d more on bolts/line3", n.Summary) {
				t.Fatalf("%+v", n)
			}
		}
		s := h.status("few").Results
		return s[sink.ResultSent]+s[sink.ResultLimited] == events && told > 0 && told == int(s[sink.ResultLimited])
	})
}

// A receiver that is gone switches its sink off; a test goes past all filters
// and says what they would have done.
func TestGoneReceiversAndTests(t *testing.T) {
	r := &receiver{}
	h := newHall(t, map[string]*receiver{"k": r})
	h.engine()
	h.put(sink.Sink{Name: "a", Kind: "k", Enabled: true, Kinds: []string{"anomaly"}, MinRatio: 100})
	h.ready("a")
	h.event("line1", 2)
	eventually.True(t, "it is so", func() bool { return h.status("a").Results[sink.ResultFiltered] == 1 })
	var a sink.TestAnswer
	h.ask("test", map[string]string{"sink": "a", "event": "event-1"}, &a) // as it was once
	if a.Event != "event-1" {
		t.Errorf("%+v", a)
	}
	r.mu.Lock()
	r.got = nil
	r.mu.Unlock()
	h.ask("test", sink.TestRequest{Sink: "a"}, &a)
	if got := r.notices(); !a.OK || a.Filter != "filtered: score" || len(got) != 1 || !got[0].Test {
		t.Errorf("%+v, %+v", a, got)
	}
	r.does(func(sink.Notice) error { return &sink.Gone{Err: errors.New("410")} })
	h.put(sink.Sink{Name: "a", Kind: "k", Enabled: true, Kinds: []string{"anomaly"}})
	eventually.True(t, "it is so", func() bool {
		if s := h.status("a"); !s.Enabled {
			return true
		}
		h.event("line1", 2)
		return false
	})
}

// What the broker discards before a sink has it is counted and told; nothing is
// lost in silence.
func TestWhatIsDiscardedIsTold(t *testing.T) {
	down, desk := &receiver{}, &receiver{}
	down.does(func(sink.Notice) error { return errors.New("connection refused") })
	h := newHall(t, map[string]*receiver{"down": down, "desk": desk})
	h.engine()
	h.put(sink.Sink{Name: "a", Kind: "down", Enabled: true, Kinds: []string{"anomaly"}})
	h.put(sink.Sink{Name: "b", Kind: "desk", Enabled: true, Kinds: []string{"lost"}})
	h.ready("a")
	h.ready("b")
	for range 6 {
		h.event("line1", 2)
	}
	eventually.True(t, "it is so", func() bool { return h.status("a").Pending == 6 && h.status("a").Open })
	s, err := h.js.Stream(t.Context(), "NM_EVENTS")
	if err == nil {
		cfg := s.CachedInfo().Config
		cfg.MaxMsgs = 2 // the oldest go, as by age and size
		_, err = h.js.UpdateStream(t.Context(), cfg)
	}
	if err != nil {
		t.Fatal(err)
	}
	eventually.True(t, "it is so", func() bool { return h.status("a").Results[sink.ResultLost] >= 4 })
	eventually.True(t, "it is so", func() bool { return len(desk.ids()) > 0 })
	desk.mu.Lock()
	defer desk.mu.Unlock()
	if e := desk.got[0].Event; e.Code != stream.LostUndelivered || !strings.Contains(e.Reason, "before it had them") {
		t.Errorf("%+v", e)
	}
}

// collector is a receiver that gets digests.
type collector struct{ receiver }

func (c *collector) Every() time.Duration { return 50 * time.Millisecond }

func (c *collector) SendAll(ctx context.Context, all []sink.Notice) error {
	for _, n := range all {
		if err := c.Send(ctx, n); err != nil {
			return err
		}
	}
	return nil
}

// What waits in a digest is acknowledged when that was sent, and not lost with
// the engine.
func TestDigests(t *testing.T) {
	c := &collector{}
	h := newHall(t, nil)
	h.kinds["k"] = func(sink.Sink, string) (sink.Sender, error) { return c, nil }
	c.does(func(sink.Notice) error { return errors.New("away") })
	stop := h.engine()
	h.put(sink.Sink{Name: "a", Kind: "k", Enabled: true, Kinds: []string{"anomaly"}})
	h.ready("a")
	want := map[string]bool{}
	for range 10 {
		want[h.event("line1", 2)] = true
	}
	eventually.True(t, "it is so", func() bool { return h.status("a").Results[sink.ResultFailed] > 0 })
	stop()
	h.engine()
	c.does(nil)
	eventually.True(t, "it is so", func() bool {
		got := map[string]bool{}
		for _, id := range c.ids() {
			got[id] = true
		}
		return len(got) == len(want)
	})
	eventually.True(t, "it is so", func() bool { return h.status("a").Reasons["sent: in a digest"] >= 1 })
}

// A sink whose consumer is gone gets another, also when nothing was asked for at
// that moment, so that the broker told nobody.
func TestAConsumerThatIsGoneIsMadeAnew(t *testing.T) {
	r := &receiver{}
	h := newHall(t, map[string]*receiver{"k": r})
	tries := 0
	r.does(func(sink.Notice) error {
		if tries++; tries == 7 { // the breaker is open: this one alone is under way
			if err := h.js.DeleteConsumer(t.Context(), "NM_EVENTS", "sink-a"); err != nil {
				t.Error(err)
			}
			r.does(nil)
		}
		return errors.New("connection refused")
	})
	h.engine()
	h.put(sink.Sink{Name: "a", Kind: "k", Enabled: true, Kinds: []string{"anomaly"}, Ordered: true})
	h.ready("a")
	h.event("line1", 2)
	eventually.True(t, "it is so", func() bool { return strings.Contains(h.status("a").Error, "its consumer in NM_EVENTS") })
	eventually.True(t, "it is so", func() bool {
		h.event("line1", 2)
		return len(r.ids()) > 0
	})
}

// patient is a collector that sends nothing while a test runs.
type patient struct{ collector }

func (p *patient) Every() time.Duration { return time.Hour }

// What a digest had collected when its consumer failed is under way no more: it
// does not keep its camera waiting, though that has a cool-down.
func TestADigestThatFailsKeepsNoCamera(t *testing.T) {
	first, then := &patient{}, &collector{}
	h := newHall(t, nil)
	opened := 0
	h.kinds["k"] = func(sink.Sink, string) (sink.Sender, error) {
		if opened++; opened == 1 {
			return first, nil
		}
		return then, nil
	}
	h.engine()
	h.put(sink.Sink{Name: "a", Kind: "k", Enabled: true, Kinds: []string{"anomaly"}, CoolDown: sink.Duration(time.Hour)})
	h.ready("a")
	h.event("line1", 2)
	eventually.True(t, "it is so", func() bool {
		c, err := h.js.Consumer(t.Context(), "NM_EVENTS", "sink-a")
		return err == nil && c.CachedInfo().NumAckPending == 1
	})
	if err := h.js.DeleteConsumer(t.Context(), "NM_EVENTS", "sink-a"); err != nil {
		t.Fatal(err)
	}
	h.ready("a")
	eventually.True(t, "it is so", func() bool {
		h.event("line1", 2)
		return len(then.ids()) > 0
	})
}

// Values that anybody may have written cost only their own sink, and a secret
// is shown nowhere.
func TestBadSinksCostThemselves(t *testing.T) {
	r := &receiver{}
	h := newHall(t, map[string]*receiver{"k": r})
	secret := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(secret, []byte("hunter2"), 0o600); err != nil {
		t.Fatal(err)
	}
	h.kinds["asks"] = func(_ sink.Sink, s string) (sink.Sender, error) {
		if s != "hunter2" {
			return nil, fmt.Errorf("the secret is %q", s)
		}
		return r, nil
	}
	for key, v := range map[string]string{
		"broken": "{", "liar": `{"name":"other","kind":"k"}`, "more": `{"name":"more","kind":"k","x":1}`,
		"given": `{"name":"given","kind":"k","secret":"hunter2"}`, "later": `{"name":"later","kind":"nothing","enabled":true}`,
	} {
		if _, err := h.sinks.PutString(t.Context(), key, v); err != nil {
			t.Fatal(err)
		}
	}
	h.put(sink.Sink{Name: "good", Kind: "asks", Enabled: true, Kinds: []string{"anomaly"}, Secret: "file:" + secret})
	h.engine()
	h.ready("good")
	h.event("line1", 2)
	eventually.True(t, "it is so", func() bool { return len(r.ids()) == 1 })
	if s := h.status("good"); s.Secret != "set" {
		t.Errorf("%+v", s)
	}
	eventually.True(t, "it is so", func() bool { return strings.Contains(h.status("later").Error, `no kind "nothing"`) })
	// A receiver that answers with what it was sent.
	r.does(func(sink.Notice) error { return &sink.Permanent{Err: errors.New("401: who is hunter2?")} })
	h.event("line1", 2)
	eventually.True(t, "it is so", func() bool { return h.status("good").Results[sink.ResultDead] == 1 })
	var a sink.TestAnswer
	h.ask("test", sink.TestRequest{Sink: "good"}, &a)
	dead, err := stream.NewInstallation(h.js, stream.Names{}).DeadLetters(t.Context(), 0)
	if err != nil || len(dead) != 1 {
		t.Fatalf("%v, %v", dead, err)
	}
	for what, text := range map[string]string{"status": h.status("good").Error, "test": a.Error, "dead letter": dead[0].Reason} {
		if strings.Contains(text, "hunter2") || !strings.Contains(text, "who is (secret)?") {
			t.Errorf("the %s says %q", what, text)
		}
	}
	h.logMu.Lock()
	defer h.logMu.Unlock()
	if strings.Contains(h.log.String(), "hunter2") {
		t.Errorf("the log shows a secret:\n%s", h.log.String())
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(`{"name":"a","kind":"webhook","enabled":true,"hours":"Mon-Fri 06:00-22:00 Europe/Berlin","rate":{"n":1,"per":"1m"}}`))
	f.Add([]byte(`{"name":"a","kind":"k","min_ratio":1e400,"cool_down":"-1s"}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		s, err := sink.Parse("a", b)
		if err != nil {
			return
		}
		again, err := json.Marshal(s)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := sink.Parse("a", again); err != nil {
			t.Fatalf("what was accepted is refused when it is written again: %v\n%s", err, again)
		}
	})
}

// A sink that names no kinds tells of each alarm once when it begins and once
// when it is over, however many events it had.
func TestPeopleAreToldOnce(t *testing.T) {
	r := &receiver{}
	h := newHall(t, map[string]*receiver{"k": r})
	h.engine()
	var now atomic.Pointer[time.Time] // no time passes but what the test says
	began := time.Now()
	now.Store(&began)
	rules := incident.Rules{Quiet: time.Hour}
	i, err := incident.NewEngine(incident.Config{Rules: rules, Now: func() time.Time { return *now.Load() }}, h.nc, zerolog.Nop())
	if err != nil {
		t.Fatal(err)
	}
	brokertest.Run(t, "incidents", i.Run)
	h.put(sink.Sink{Name: "a", Kind: "k", Enabled: true})
	eventually.True(t, "it is so", func() bool {
		_, err1 := h.js.Consumer(t.Context(), "NM_EVENTS", "incidents")
		_, err2 := h.js.Consumer(t.Context(), "NM_INCIDENTS", "sink-a")
		return err1 == nil && err2 == nil
	})
	first := h.event("line1", 2)
	for range 20 {
		h.event("line1", 2)
	}
	eventually.True(t, "all are counted", func() bool {
		c, err := h.js.Consumer(t.Context(), "NM_EVENTS", "incidents")
		return err == nil && c.CachedInfo().AckFloor.Stream == uint64(h.sent)
	})
	over := began.Add(2 * rules.Quiet)
	now.Store(&over)
	eventually.True(t, "its beginning and its end are told", func() bool { return len(r.ids()) == 2 })
	r.mu.Lock()
	defer r.mu.Unlock()
	for n, phase := range []string{incident.New, incident.End} {
		got := r.got[n]
		if got.Incident == nil || got.Incident.ID != first || got.Incident.Phase != phase || got.ID != fmt.Sprintf("%s/%d", first, n) {
			t.Errorf("message %d: %+v", n, got.Incident)
		}
	}
	if n := r.got[1].Incident.Anomalies; n != 21 {
		t.Errorf("%d anomalies", n)
	}
}
