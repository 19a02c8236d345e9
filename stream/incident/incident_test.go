package incident_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/rs/zerolog"
	"github.com/santhosh-tekuri/jsonschema/v6"
	"pgregory.net/rapid"

	"github.com/nearmiss/nearmiss/internal/brokertest"
	"github.com/nearmiss/nearmiss/internal/eventually"
	"github.com/nearmiss/nearmiss/stream"
	"github.com/nearmiss/nearmiss/stream/broker"
	"github.com/nearmiss/nearmiss/stream/incident"
)

func TestMain(m *testing.M) { brokertest.Main(m) }

var start = time.Date(2026, 11, 28, 12, 0, 0, 0, time.UTC)

func event(id int, camera string, at time.Time, ratio float64) stream.Event {
	threshold := 2.0
	score := ratio * threshold
	return stream.Event{
		ID: fmt.Sprintf("e%d", id), Kind: stream.KindAnomaly, Detector: "bolts", Camera: camera, FrameID: fmt.Sprint(id),
		ScoredAt: at, Score: &score, Threshold: &threshold, Release: "r1",
	}
}

// told checks that messages are those of incidents one after the other: each
// begins with new, is numbered without a gap, and all but the last have ended.
func told(t interface {
	Fatalf(string, ...any)
	Helper()
}, all []incident.Incident, open bool,
) (incidents int) {
	t.Helper()
	var last *incident.Incident
	seen := map[string]bool{}
	for i := range all {
		m := all[i]
		if last == nil || last.Phase == incident.End {
			if m.Phase != incident.New || m.N != 0 || seen[m.ID] {
				t.Fatalf("message %d begins an incident with %+v", i, m)
			}
			seen[m.ID] = true
			incidents++
		} else if m.ID != last.ID || m.N != last.N+1 || m.Phase == incident.New {
			t.Fatalf("message %d: %s/%d %s follows %s/%d %s", i, m.ID, m.N, m.Phase, last.ID, last.N, last.Phase)
		}
		if (m.Phase == incident.End) == m.EndedAt.IsZero() {
			t.Fatalf("message %d: phase %s, ended at %v", i, m.Phase, m.EndedAt)
		}
		last = &m
	}
	if last != nil && (last.Phase != incident.End) != open {
		t.Fatalf("the last message is %s, open %v", last.Phase, open)
	}
	return incidents
}

// book is what incidents are, in plain words and without any care for processes: an
// event belongs to the incident that is open, unless it has been quiet for too long
// or another release judges.
type book struct {
	rules   incident.Rules
	open    bool
	last    time.Time // of the events of the open incident
	cameras map[string]bool

	release, before string
	changed         time.Time

	good map[string][]time.Time // frames of each camera since something was wrong with it

	events []int    // of each incident
	ends   []string // why each was over
}

func (b *book) over(why string) {
	if b.open {
		b.open, b.ends = false, append(b.ends, why)
	}
}

func (b *book) look(now time.Time) {
	if now.Sub(b.last) > 30*time.Second {
		b.over(incident.ByQuiet)
	}
}

func (b *book) event(e stream.Event) {
	b.good[e.Camera] = nil
	b.look(e.ScoredAt)
	late := e.Release == b.before && e.ScoredAt.Sub(b.changed) < time.Minute // a worker that has not changed yet
	if b.release != "" && e.Release != b.release && !late {
		b.over(incident.ByRelease)
		b.before, b.changed = b.release, e.ScoredAt
	}
	if !late {
		b.release = e.Release
	}
	if !b.open {
		b.open, b.cameras, b.events = true, map[string]bool{}, append(b.events, 0)
	}
	b.cameras[e.Camera], b.last = true, e.ScoredAt
	b.events[len(b.events)-1]++
}

// run is what [incident.State.Good] asks.
func (b *book) run(camera string) (from, to time.Time, ok bool) {
	all, n := b.good[camera], b.rules.QuietFrames
	if n == 0 || len(all) < n {
		return from, to, false
	}
	return all[len(all)-n], all[len(all)-1], true
}

// count ends what has had enough good frames of all its cameras since the last event.
func (b *book) count() {
	for c := range b.cameras {
		since := 0
		for _, t := range b.good[c] {
			if t.After(b.last) {
				since++
			}
		}
		if since < max(b.rules.QuietFrames, 1) {
			return
		}
	}
	if b.rules.QuietFrames > 0 {
		b.over(incident.ByFrames)
	}
}

// Random events at random times, of one camera or several, by releases that change,
// with good frames between, each delivered once or again, with processes that die
// before a state is stored, before it is told, or before that is noted: what is told
// is the same as without all that, and as the book has it.
func TestIncidentsAreToldOnceWhateverDies(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		var smooth, rough incident.State
		var want []incident.Incident
		published := map[string]incident.Incident{}
		var order []incident.Incident
		tell := func(out []incident.Incident) {
			for _, i := range out {
				id := fmt.Sprintf("%s/%d", i.ID, i.N)
				if _, dup := published[id]; !dup { // the broker's de-duplication
					order = append(order, i)
				}
				published[id] = i
			}
		}
		// store is what survives a death: the state as JSON.
		store := func(s incident.State) incident.State {
			b, err := json.Marshal(s)
			if err != nil {
				rt.Fatal(err)
			}
			back, err := incident.ParseState("k", b)
			if err != nil {
				rt.Fatal(err)
			}
			return back
		}
		step := func(f func(*incident.State) bool) {
			f(&smooth)
			want = append(want, smooth.Outbox...)
			smooth.Outbox = nil
			for {
				next := store(rough)
				if f(&next) {
					if rapid.IntRange(0, 9).Draw(rt, "dies before it is stored") == 0 {
						continue
					}
					rough = store(next)
				}
				if rapid.IntRange(0, 9).Draw(rt, "dies before it is told") == 0 {
					continue
				}
				tell(rough.Outbox)
				if rapid.IntRange(0, 9).Draw(rt, "dies before that is noted") == 0 {
					continue
				}
				rough.Outbox = nil
				return
			}
		}
		now := start
		rules := incident.Rules{Flood: 8, QuietFrames: rapid.IntRange(0, 3).Draw(rt, "good frames that end it"), Group: rapid.Bool().Draw(rt, "a group")}
		b := &book{rules: rules, cameras: map[string]bool{}, good: map[string][]time.Time{}}
		cameras, releases := []string{"line1"}, []string{"r1", "r1", "r1", "r1", "r1", "r2", "r3"}
		if rules.Group {
			cameras = []string{"line1", "line2", "line3"}
		}
		n := rapid.IntRange(1, 60).Draw(rt, "events")
		for i := 1; i <= n; i++ {
			now = now.Add(time.Duration(rapid.IntRange(0, 45).Draw(rt, "seconds")) * time.Second)
			if rapid.Bool().Draw(rt, "looked at before") {
				at := now
				b.look(at)
				step(func(s *incident.State) bool { return s.Quiet(rules, at) })
			}
			for range rapid.IntRange(0, 3).Draw(rt, "good frames") {
				now = now.Add(time.Second)
				c := rapid.SampledFrom(cameras).Draw(rt, "camera of a good frame")
				b.good[c] = append(b.good[c], now)
			}
			if rapid.Bool().Draw(rt, "frames are counted") {
				b.count()
				step(func(s *incident.State) bool { return s.Good(rules, b.run) })
			}
			e := event(i, rapid.SampledFrom(cameras).Draw(rt, "camera"), now, rapid.Float64Range(1, 5).Draw(rt, "ratio"))
			e.Release = rapid.SampledFrom(releases).Draw(rt, "release")
			b.event(e)
			if rapid.IntRange(0, 4).Draw(rt, "rejected") == 0 {
				e.Kind, e.Score, e.Threshold = stream.KindRejected, nil, nil
			}
			for range rapid.IntRange(1, 2).Draw(rt, "deliveries") {
				step(func(s *incident.State) bool { return s.Add(rules, e, uint64(i)) })
			}
			if word := rapid.SampledFrom([]string{"", "", "normal", "anomalous", "seen", "withdrawn"}).Draw(rt, "verdict"); word != "" {
				f := stream.Feedback{Detector: "bolts", Verdict: word, Event: e.ID, By: "ann", At: now}
				for range rapid.IntRange(1, 2).Draw(rt, "deliveries of the verdict") {
					step(func(s *incident.State) bool { return s.Judge(f, e) })
				}
			}
		}
		told(rt, order, smooth.Open != nil)
		is, _ := json.Marshal(order)
		should, _ := json.Marshal(want)
		if !bytes.Equal(is, should) {
			rt.Fatalf("told\n%s\nwant\n%s", is, should)
		}
		var events []int
		var ends []string
		for i, m := range order {
			if i+1 == len(order) || order[i+1].Phase == incident.New {
				events = append(events, m.Anomalies+m.Rejected)
			}
			if m.Phase == incident.End {
				ends = append(ends, m.EndedBy)
			}
			if rules.Group != (len(m.Cameras) > 0) || m.Camera != m.Places()[0] {
				rt.Fatalf("%s/%d is of %s and of %q", m.ID, m.N, m.Camera, m.Cameras)
			}
		}
		if smooth.Open != nil {
			events[len(events)-1] = smooth.Open.Anomalies + smooth.Open.Rejected
			if got, want := len(smooth.Open.Places()), len(b.cameras); got != want {
				rt.Fatalf("%d cameras are in the incident, want %d", got, want)
			}
		}
		if diff := cmp.Diff(b.events, events); diff != "" {
			rt.Fatalf("events of incidents (want, got): %s", diff)
		}
		if diff := cmp.Diff(b.ends, ends); diff != "" {
			rt.Fatalf("ends of incidents (want, got): %s", diff)
		}
	})
}

func TestWhatIsTold(t *testing.T) {
	var s incident.State
	seq := uint64(0)
	add := func(after time.Duration, ratio float64) {
		seq++
		s.Add(incident.Rules{}, event(int(seq), "line1", start.Add(after), ratio), seq)
	}
	phases := func() (out []string) {
		for _, i := range s.Outbox {
			out = append(out, fmt.Sprintf("%s %d %.1f %d", i.Phase, i.N, i.Peak.Ratio, i.Anomalies))
		}
		s.Outbox = nil
		return out
	}
	add(0, 2)
	add(time.Second, 2.1)   // no worse by 20 %
	add(2*time.Second, 3)   // worse
	add(3*time.Second, 1.5) // better
	add(30*time.Second, 1)  // not yet a minute since
	add(58*time.Second, 1)  //
	add(63*time.Second, 1)  // a minute
	if s.Quiet(incident.Rules{}, start.Add(93*time.Second)) {
		t.Error("it ended within its quiet time")
	}
	s.Quiet(incident.Rules{}, start.Add(94*time.Second))
	add(200*time.Second, 1.2)
	add(300*time.Second, 1.2) // over meanwhile: its end and a new one
	got, want := phases(), []string{"new 0 2.0 1", "update 1 3.0 3", "update 2 3.0 7", "end 3 3.0 7", "new 0 1.2 1", "end 1 1.2 1", "new 0 1.2 1"}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("told %q\nwant %q", got, want)
	}
	for i := range 100 {
		add(300*time.Second+time.Duration(i)*100*time.Millisecond, 1.2+float64(i)/10)
	}
	flood := 0
	for _, i := range s.Outbox {
		if i.Flood {
			flood++
		}
	}
	if flood != 1 {
		t.Errorf("%d messages tell of the flood, want 1", flood)
	}
}

// A verdict on any event of the incident that is open is told once, and is in what
// is told later; the next incident begins without.
func TestVerdictsTravel(t *testing.T) {
	var s incident.State
	first, second := event(1, "line1", start, 2), event(2, "line1", start.Add(time.Second), 2)
	says := func(word string, e stream.Event) bool {
		return s.Judge(stream.Feedback{Detector: "bolts", Verdict: word, Event: e.ID, By: "ann", Note: "a shadow", At: start.Add(time.Hour)}, e)
	}
	if says("normal", first) {
		t.Error("a verdict without an incident changed something")
	}
	s.Add(incident.Rules{}, first, 1)
	s.Add(incident.Rules{}, second, 2)
	s.Outbox = nil
	var got []string
	for _, word := range []string{"seen", "normal", "normal", "withdrawn", "withdrawn", "anomalous", "normal"} {
		before := len(s.Outbox)
		changed := says(word, first)
		if changed != (len(s.Outbox) == before+1) {
			t.Errorf("%s: changed %v, %d messages", word, changed, len(s.Outbox)-before)
		}
	}
	if says("seen", event(3, "line1", start.Add(-time.Minute), 2)) {
		t.Error("a verdict on an event before the incident changed it")
	}
	s.Quiet(incident.Rules{}, start.Add(time.Hour))
	s.Add(incident.Rules{}, event(4, "line1", start.Add(2*time.Hour), 2), 4)
	for _, i := range s.Outbox {
		got = append(got, i.Phase+" "+i.State())
	}
	want := []string{"update seen", "update false_alarm", "update open", "update confirmed", "update false_alarm", "end false_alarm", "new open"}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("told %q\nwant %q", got, want)
	}
	if v := s.Outbox[5].Verdict; v == nil || v.By != "ann" || v.Reason != "a shadow" || !v.At.Equal(start.Add(time.Hour)) {
		t.Errorf("%+v", v)
	}
}

// What an operator says on an event reaches its incident, and is told when that is
// over.
func TestAVerdictReachesItsIncident(t *testing.T) {
	h := newHall(t)
	began := time.Now()
	h.now.Store(&began)
	h.engine(incident.Rules{})
	h.engine(incident.Rules{})
	eventually.True(t, "it is so", func() bool {
		_, err1 := h.js.Consumer(t.Context(), "NM_EVENTS", "incidents")
		_, err2 := h.js.Consumer(t.Context(), "NM_FEEDBACK", "incidents")
		return err1 == nil && err2 == nil
	})
	h.publish("line1", 2)
	h.publish("line2", 2)
	// At once: the event may not be counted yet.
	err := stream.NewInstallation(h.js, stream.Names{}).SendFeedback(t.Context(), stream.Feedback{Detector: "bolts", Verdict: stream.FeedbackNormal, Event: "e1", By: "ann"})
	if err != nil {
		t.Fatal(err)
	}
	eventually.True(t, "it is so", func() bool { return len(h.told()["line1"]) == 2 })
	later := began.Add(time.Minute)
	h.now.Store(&later)
	eventually.True(t, "it is so", func() bool { all := h.told(); return len(all["line1"]) == 3 && len(all["line2"]) == 2 })
	all := h.told()
	for n, want := range []string{incident.Open, incident.FalseAlarm, incident.FalseAlarm} {
		if got := all["line1"][n].State(); got != want {
			t.Errorf("message %d says %s, want %s", n, got, want)
		}
	}
	if s := all["line2"][1].State(); s != incident.Open {
		t.Errorf("line2 is %s", s)
	}
	valid(t, all["line1"]...)
}

// valid checks messages against their schema.
func valid(t *testing.T, all ...incident.Incident) {
	t.Helper()
	schema, err := jsonschema.UnmarshalJSON(bytes.NewReader(incident.Schema))
	if err != nil {
		t.Fatal(err)
	}
	c := jsonschema.NewCompiler()
	if err := c.AddResource("incident.json", schema); err != nil {
		t.Fatal(err)
	}
	s, err := c.Compile("incident.json")
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range all {
		b, err := json.Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		v, err := jsonschema.UnmarshalJSON(bytes.NewReader(b))
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Validate(v); err != nil {
			t.Errorf("%v\n%s", err, b)
		}
	}
}

// What was stored or is read under the name of before is still understood.
func TestTheNamesOfBeforeAreUnderstood(t *testing.T) {
	old := `{"open":{"id":"e1","phase":"new","n":1,"detector":"bolts","camera":"line1","opened_at":"2026-11-28T12:00:00Z","last_at":"2026-11-28T12:00:00Z","anomalies":1,"rejected":0,` +
		`"peak":{"event":"e7","at":"2026-11-28T12:00:00Z","ratio":2}},"seen":3}`
	s, err := incident.ParseState("bolts.line1", []byte(old))
	if err != nil || s.Open.Peak.ID != "e7" || s.Open.Peak.Ratio != 2 {
		t.Fatalf("%+v, %v", s.Open, err)
	}
	b, err := json.Marshal(s.Open.Peak)
	if err != nil || !bytes.Contains(b, []byte(`"id":"e7"`)) || !bytes.Contains(b, []byte(`"event":"e7"`)) {
		t.Errorf("%s, %v", b, err)
	}
	valid(t, *s.Open)
}

// TestAnIncidentEndsWhenTheClockIsSetBack: what comes after that opens another.
func TestAnIncidentEndsWhenTheClockIsSetBack(t *testing.T) {
	h := newHall(t)
	h.engine(incident.Rules{})
	eventually.True(t, "an engine counts", func() bool {
		_, err := h.js.Consumer(t.Context(), "NM_EVENTS", "incidents")
		return err == nil
	})
	h.publish("left", 2)
	eventually.True(t, "an incident is open", func() bool { return len(h.told()["left"]) == 1 })
	h.now.Store(new(time.Now().Add(-time.Hour)))
	eventually.True(t, "it is over", func() bool {
		all := h.told()["left"]
		return len(all) == 2 && all[1].Phase == incident.End
	})
	h.publish("left", 2)
	eventually.True(t, "another is open", func() bool {
		all := h.told()["left"]
		return len(all) == 3 && all[2].Phase == incident.New && all[2].ID != all[0].ID
	})
}

// hall is a broker and what is told on it.
type hall struct {
	t   *testing.T
	nc  *nats.Conn
	js  jetstream.JetStream
	n   int
	now atomic.Pointer[time.Time] // what the engines take for the time; nil: it is
}

func newHall(t *testing.T) *hall {
	t.Helper()
	b, _ := brokertest.Start(t, broker.Config{Port: -1})
	h := &hall{t: t, nc: brokertest.Connect(t, b)}
	h.js = brokertest.StreamsOn(t, h.nc)
	if err := stream.Ensure(t.Context(), h.js, stream.Topology{}); err != nil {
		t.Fatal(err)
	}
	return h
}

func (h *hall) engine(r incident.Rules) (stop func()) {
	h.t.Helper()
	e, err := incident.NewEngine(incident.Config{Rules: r, Now: h.time}, h.nc, zerolog.Nop())
	if err != nil {
		h.t.Fatal(err)
	}
	return brokertest.Run(h.t, "incidents", e.Run)
}

func (h *hall) time() time.Time {
	if now := h.now.Load(); now != nil {
		return *now
	}
	return time.Now()
}

func (h *hall) publish(camera string, ratio float64) {
	h.t.Helper()
	h.n++
	m, err := event(h.n, camera, h.time().UTC(), ratio).Message(stream.Names{})
	if err == nil {
		_, err = h.js.PublishMsg(context.Background(), m)
	}
	if err != nil {
		h.t.Fatal(err)
	}
}

func (h *hall) told() map[string][]incident.Incident {
	h.t.Helper()
	s, err := h.js.Stream(context.Background(), "NM_INCIDENTS")
	if err != nil {
		h.t.Fatal(err)
	}
	out := map[string][]incident.Incident{}
	for seq := uint64(1); seq <= s.CachedInfo().State.LastSeq; seq++ {
		m, err := s.GetMsg(context.Background(), seq)
		if err != nil {
			h.t.Fatal(err)
		}
		i, err := incident.Parse(m.Data)
		if err != nil {
			h.t.Fatal(err)
		}
		out[i.Camera] = append(out[i.Camera], i)
	}
	return out
}

// Ten cameras with a thousand anomalies, two engines that come and go: one
// beginning and one end each, and messages that follow their schema.
func TestEnginesShareTheWork(t *testing.T) {
	h := newHall(t)
	began := time.Now()
	h.now.Store(&began) // no time passes until all is published
	rules := incident.Rules{}
	h.engine(rules)
	stop := h.engine(rules)
	eventually.True(t, "it is so", func() bool {
		_, err := h.js.Consumer(t.Context(), "NM_EVENTS", "incidents")
		return err == nil
	})
	for i := range 1000 {
		if i%300 == 299 {
			stop()
			stop = h.engine(rules)
		}
		h.publish(fmt.Sprintf("line%d", i%10), 1.5)
	}
	later := began.Add(time.Minute)
	h.now.Store(&later)
	eventually.True(t, "it is so", func() bool {
		all := h.told()
		for _, msgs := range all {
			if msgs[len(msgs)-1].Phase != incident.End {
				return false
			}
		}
		return len(all) == 10
	})
	for camera, msgs := range h.told() {
		if n := told(t, msgs, false); n != 1 {
			t.Errorf("%s: %d incidents", camera, n)
		}
		if last := msgs[len(msgs)-1]; last.Anomalies != 100 {
			t.Errorf("%s: %d anomalies", camera, last.Anomalies)
		}
		valid(t, msgs...)
	}
}

// A state that anybody may have written costs only what it held.
func TestACorruptStateBeginsAnew(t *testing.T) {
	h := newHall(t)
	b, err := h.js.KeyValue(t.Context(), "NM_INCIDENTS")
	if err != nil {
		t.Fatal(err)
	}
	for _, k := range []string{"bolts.line1", "x", "a.b.c"} {
		if _, err := b.PutString(t.Context(), k, "{"); err != nil {
			t.Fatal(err)
		}
	}
	h.engine(incident.Rules{})
	eventually.True(t, "it is so", func() bool {
		_, err := h.js.Consumer(t.Context(), "NM_EVENTS", "incidents")
		return err == nil
	})
	h.publish("line1", 2)
	h.publish("line2", 2)
	eventually.True(t, "it is so", func() bool { all := h.told(); return len(all["line1"]) == 1 && len(all["line2"]) == 1 })
}

// What a detector says of its incidents acts at once: how long it must be quiet, how
// many good frames end one, and whether its cameras are one.
func TestDetectorsSayWhenIncidentsAreOver(t *testing.T) {
	h := newHall(t)
	began := time.Now().UTC()
	h.now.Store(&began)
	detectors, err := stream.NewInstallation(h.js, stream.Names{}).Detectors(t.Context())
	if err == nil {
		_, err = detectors.Create(t.Context(), stream.Detector{Name: "bolts", Quiet: stream.Duration(time.Hour), QuietFrames: 3, Group: stream.GroupDetector})
	}
	if err != nil {
		t.Fatal(err)
	}
	h.engine(incident.Rules{})
	h.engine(incident.Rules{})
	eventually.True(t, "it is so", func() bool {
		_, err := h.js.Consumer(t.Context(), "NM_EVENTS", "incidents")
		return err == nil
	})
	of := func(id string) (out []incident.Incident) {
		for _, all := range h.told() {
			for _, i := range all {
				if i.ID == id {
					out = append(out, i)
				}
			}
		}
		return out
	}
	h.publish("line1", 1.2)
	h.publish("line2", 1.1)
	h.publish("line2", 3)
	eventually.True(t, "it is so", func() bool { return len(of("e1")) == 2 }) // the third is worse
	if i := of("e1")[1]; i.Phase != incident.Update || i.Anomalies != 3 || fmt.Sprint(i.Cameras) != "[line1 line2]" || i.Peak.Camera != "line2" || i.Camera != "line1" {
		t.Errorf("%+v", i)
	}
	good := func(camera string, after time.Duration, yes bool) {
		t.Helper()
		e := event(0, camera, began.Add(after), 0.5)
		bad := !yes
		e.Anomalous = &bad
		data, err := json.Marshal(e)
		if err == nil {
			err = h.nc.Publish(stream.Names{}.Scores("bolts", camera), data)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	// Good frames of one camera are not enough, and a bad one begins anew.
	for i := range 5 {
		good("line1", time.Duration(i+1)*time.Second, true)
	}
	for i := range 2 {
		good("line2", time.Duration(i+1)*time.Second, true)
	}
	good("line2", 3*time.Second, false)
	for i := range 2 {
		good("line2", time.Duration(i+4)*time.Second, true)
	}
	// Half an hour is not long enough. That the engines have looked shows another
	// detector's incident, which ends after 30 s.
	m, err := stream.Event{ID: "nut", Kind: stream.KindAnomaly, Detector: "nuts", Camera: "line9", ScoredAt: began}.Message(stream.Names{})
	if err == nil {
		_, err = h.js.PublishMsg(t.Context(), m)
	}
	if err != nil {
		t.Fatal(err)
	}
	eventually.True(t, "it is so", func() bool { return len(of("nut")) == 1 })
	half := began.Add(30 * time.Minute)
	h.now.Store(&half)
	eventually.True(t, "it is so", func() bool { all := of("nut"); return len(all) == 2 && all[1].EndedBy == incident.ByQuiet })
	if all := of("e1"); len(all) != 2 {
		t.Errorf("told %+v", all[len(all)-1])
	}
	good("line2", 6*time.Second, true)
	eventually.True(t, "it is so", func() bool { return len(of("e1")) == 3 })
	if i := of("e1")[2]; i.EndedBy != incident.ByFrames || !i.EndedAt.Equal(began.Add(6*time.Second)) {
		t.Errorf("%+v", i)
	}
	// Each camera by itself again, and time alone.
	_, err = detectors.Set(t.Context(), "bolts", func(d *stream.Detector) error {
		d.Quiet, d.QuietFrames, d.Group = stream.Duration(time.Minute), 0, ""
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	eventually.True(t, "it is so", func() bool { // until who counts has read it
		h.publish("line2", 1)
		all := h.told()["line2"]
		return len(all) > 0 && len(all[len(all)-1].Cameras) == 0
	})
	later := half.Add(2 * time.Minute)
	h.now.Store(&later)
	eventually.True(t, "it is so", func() bool {
		for _, msgs := range h.told() {
			if msgs[len(msgs)-1].Phase != incident.End {
				return false
			}
		}
		return true
	})
	for _, msgs := range h.told() {
		valid(t, msgs...)
	}
}

func FuzzParseState(f *testing.F) {
	f.Add([]byte(`{"open":{"id":"a","n":1,"detector":"d","camera":"c"},"seen":3}`))
	f.Add([]byte(`{"outbox":[{}],"seen":-1}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		s, err := incident.ParseState("k", b)
		if err != nil {
			return
		}
		s.Add(incident.Rules{}, event(1, "line1", start, 2), s.LastSequence+1)
		s.Judge(stream.Feedback{Verdict: stream.FeedbackNormal}, event(1, "line1", start, 2))
		s.Good(incident.Rules{QuietFrames: 1}, func(string) (from, to time.Time, ok bool) { return start, start, true })
		s.Quiet(incident.Rules{}, start.Add(time.Hour))
		for _, i := range s.Outbox {
			if _, err := i.Message(stream.Names{}); err != nil {
				t.Fatal(err)
			}
		}
	})
}
