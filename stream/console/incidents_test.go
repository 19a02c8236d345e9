package console

import (
	"fmt"
	"net/http"
	"testing"
	"time"

	"github.com/nearmiss/nearmiss/internal/eventually"
	"github.com/nearmiss/nearmiss/stream"
)

// TestAlarmsOfOneIncidentAreARow: events of a camera without a pause are one row,
// which a verdict is about as a whole, and which is open again when more comes.
func TestAlarmsOfOneIncidentAreARow(t *testing.T) {
	h := newHall(t, config())
	me := asker{h: h}
	begin := time.Now().UTC().Truncate(time.Second).Add(-10 * time.Minute)
	put := func(id, camera string, after time.Duration, score float64) (sequence uint64) {
		t.Helper()
		threshold, p, yes := 1.0, 0.01, true
		e := stream.Event{ID: id, Kind: stream.KindAnomaly, FrameID: id, Detector: "parts", Camera: camera, ScoredAt: begin.Add(after), Score: &score, Threshold: &threshold, PValue: &p, Anomalous: &yes}
		if score == 0 {
			e = stream.Event{ID: id, Kind: stream.KindRejected, FrameID: id, Detector: "parts", Camera: camera, ScoredAt: begin.Add(after), Code: "bad_image", Reason: "no image"}
		}
		m, err := e.Message(h.names)
		if err != nil {
			t.Fatal(err)
		}
		ack, err := h.js.PublishMsg(t.Context(), m)
		if err != nil {
			t.Fatal(err)
		}
		eventually.True(t, "the event in the index", func() bool { _, ok := h.c.alarms.index.find(ack.Sequence); return ok })
		return ack.Sequence
	}
	first := put("a", "line1", 0, 2)
	put("b", "line1", 10*time.Second, 5)
	other := put("c", "line2", 12*time.Second, 3)
	put("d", "line1", 20*time.Second, 0)
	put("unread", "line3", 20*time.Second, 0) // no alarm, so no row
	second := put("e", "line1", 60*time.Second, 2)

	type row struct {
		Sequence               uint64
		ID, Camera, State      string
		Pending                bool
		Alarms, Rejected, Open int
		Peak                   struct{ ID string }
	}
	type page struct {
		Items      []row
		Next       string
		Open       int
		OpenAlarms int `json:"open_alarms"`
	}
	say := func(p page) (text string) {
		for _, r := range p.Items {
			text += fmt.Sprintf("%s of %s: %d+%d, %d open, peak %s, %s; ", r.ID, r.Camera, r.Alarms, r.Rejected, r.Open, r.Peak.ID, r.State)
		}
		return text + fmt.Sprintf("%d open, %d alarms", p.Open, p.OpenAlarms)
	}
	is := func(what, want string) {
		t.Helper()
		if got := say(ok[page](me, "GET", "incidents"+what, nil)); got != want {
			t.Errorf("incidents%s\n%s, want\n%s", what, got, want)
		}
	}
	rows := []string{
		"e of line1: 1+0, 1 open, peak e, open; ", "a of line1: 2+1, 2 open, peak b, open; ", "c of line2: 1+0, 1 open, peak c, open; ",
	}
	is("", rows[0]+rows[1]+rows[2]+"3 open, 4 alarms")
	is("?camera=line2", rows[2]+"3 open, 4 alarms")
	is("?since="+begin.Add(30*time.Second).Format(time.RFC3339), rows[0]+"3 open, 4 alarms")
	p := ok[page](me, "GET", "incidents?limit=2", nil)
	if got := say(p); got != rows[0]+rows[1]+"3 open, 4 alarms" || p.Next == "" {
		t.Errorf("%s, next %q", got, p.Next)
	}
	is("?limit=2&cursor="+p.Next, rows[2]+"3 open, 4 alarms")

	one := ok[struct {
		row
		Ongoing bool
		Events  []struct{ ID string }
	}](me, "GET", fmt.Sprint("incidents/", first), nil)
	if got := fmt.Sprint(one.Events, " ", one.Ongoing, " ", one.ID); got != "[{d} {b} {a}] false a" {
		t.Errorf("the incident: %s", got)
	}
	for path, want := range map[string]int{"incidents/99": 404, "incidents/x": 404, "incidents?state=bad": 400, "incidents?kind=anomaly": 400} {
		if status, body := me.do("GET", path, nil); status != want {
			t.Errorf("%s: %d %s", path, status, body)
		}
	}

	judge := func(verdict string, hold float64, incidents ...uint64) (v struct {
		Token        string
		Events, Left int
	},
	) {
		t.Helper()
		status, body := me.do("POST", "verdicts", map[string]any{"incidents": incidents, "verdict": verdict, "hold": hold})
		if status != http.StatusAccepted {
			t.Fatalf("%s: %d %s", verdict, status, body)
		}
		return decode[struct {
			Token        string
			Events, Left int
		}](t, body)
	}
	held := judge("normal", 60, first, other)
	if held.Events != 3 || held.Left != 0 {
		t.Errorf("%+v", held)
	}
	is("?state=false_alarm", "a of line1: 2+1, 0 open, peak b, false_alarm; c of line2: 1+0, 0 open, peak c, false_alarm; 1 open, 1 alarms")
	ok[any](me, "DELETE", "verdicts/"+held.Token, nil)
	is("?state=open", rows[0]+rows[1]+rows[2]+"3 open, 4 alarms")
	if all := h.feedback(); len(all) != 0 {
		t.Errorf("after it was taken back %q are in the stream", all)
	}
	judge("seen", 0, first)
	eventually.True(t, "the verdicts on both alarms", func() bool { return len(h.feedback()) == 2 })
	eventually.True(t, "the incident as seen", func() bool {
		r := ok[row](me, "GET", fmt.Sprint("incidents/", first), nil)
		return r.State == "seen" && !r.Pending
	})

	// What comes after a verdict was not seen; only that is judged.
	put("f", "line1", 65*time.Second, 9)
	judge("anomalous", 0, second)
	eventually.True(t, "both as confirmed", func() bool {
		r := ok[row](me, "GET", fmt.Sprint("incidents/", second), nil)
		return r.State == "confirmed" && !r.Pending
	})
	put("g", "line1", 70*time.Second, 4)
	is("?camera=line1&state=open", "e of line1: 3+0, 1 open, peak f, open; 2 open, 2 alarms")
	if v := judge("seen", 60, second); v.Events != 1 {
		t.Errorf("%d alarms are judged again", v.Events-1)
	}
	if v := judge("withdrawn", 60, second); v.Events != 3 {
		t.Errorf("of %d alarms is taken back what was said", v.Events)
	}
	// Detectors say when it is over, and of what it is.
	ok[any](me, "POST", "detectors", map[string]any{"name": "parts", "quiet": "5s", "group": "detector"})
	eventually.True(t, "what the detector says", func() bool {
		h.c.alarms.index.mu.Lock()
		defer h.c.alarms.index.mu.Unlock()
		return h.c.alarms.index.rules["parts"].Group
	})
	put("h", "line1", 200*time.Second, 2)
	put("i", "line2", 203*time.Second, 3)
	put("j", "line1", 210*time.Second, 2)
	is("?limit=2&since="+begin.Add(200*time.Second).Format(time.RFC3339), "j of line1: 1+0, 1 open, peak j, open; h of line1: 2+0, 2 open, peak i, open; 4 open, 7 alarms")

	if status, body := me.do("POST", "verdicts", map[string]any{"incidents": []uint64{99}, "verdict": "seen"}); status != http.StatusNotFound {
		t.Errorf("%d %s", status, body)
	}
	if status, body := me.do("POST", "verdicts", map[string]any{"incidents": []uint64{other}, "verdict": "withdrawn"}); status != http.StatusConflict {
		t.Errorf("taken back, although nobody has said anything: %d %s", status, body)
	}
}
