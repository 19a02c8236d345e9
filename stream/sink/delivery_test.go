package sink

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"github.com/rs/zerolog"

	"github.com/nearmiss/nearmiss/stream"
	"github.com/nearmiss/nearmiss/stream/incident"
)

// again is a message that takes note of when it is to come again.
type again struct {
	jetstream.Msg
	after time.Duration
}

func (a *again) NakWithDelay(d time.Duration) error {
	a.after = d
	return nil
}

// An event that failed comes again as the receiver has asked, or as the schedule
// has it; while the receiver takes nothing at all, that does not count against the
// event.
func TestWhenAFailedEventComesAgain(t *testing.T) {
	meta := func(seq uint64) *jetstream.MsgMetadata {
		return &jetstream.MsgMetadata{Sequence: jetstream.SequencePair{Stream: seq}, Timestamp: time.Now()}
	}
	no := errors.New("connection refused")
	off := 0
	newLine := func() *delivery {
		return &delivery{sink: Sink{Name: "a", GiveUp: Duration(24 * 365 * time.Hour)}, retries: retries{delays: schedule, fails: map[spot]int{}}, log: zerolog.Nop(), off: func(error) { off++ }}
	}
	check := func(l *delivery, what string, seq uint64, err error, want time.Duration) {
		t.Helper()
		m := &again{}
		l.failed(t.Context(), taken{Msg: m, meta: meta(seq), stream: "NM_EVENTS"}, err)
		if low, high := want*8/10, want*12/10; m.after < low || m.after > high {
			t.Errorf("%s: it comes again after %v, want %v", what, m.after, want)
		}
	}
	l := newLine()
	check(l, "Retry-After", 1, &Later{After: 7 * time.Second, Err: no}, 7*time.Second)
	check(l, "a year", 2, &Later{After: 365 * 24 * time.Hour, Err: no}, 5*time.Hour)
	l = newLine()
	for n, want := range append(schedule, schedule[len(schedule)-1]) {
		l.retries.breaker.succeeded() // other events are taken
		check(l, "try "+string(rune('1'+n)), 1, no, want)
	}
	l = newLine()
	for seq := uint64(1); seq < breakAfter; seq++ {
		check(l, "one of some", seq, no, schedule[0])
	}
	for range 3 {
		l.retries.breaker.failed(time.Hour)
		check(l, "while it is down", 1, &Later{Err: no}, schedule[0])
	}
	if !l.retries.breaker.open() {
		t.Error("the breaker is closed")
	}
	l.failed(t.Context(), taken{Msg: &again{}, meta: meta(9), stream: "NM_EVENTS"}, &Gone{no})
	if off != 1 {
		t.Errorf("switched off %d times", off)
	}
}

// A sink that wants open incidents only is not told of what somebody has looked
// at; another is, and with the verdict.
func TestVerdictsAreSaidAndFiltered(t *testing.T) {
	at := time.Now()
	end := func(v *incident.Verdict) Notice {
		i := incident.Incident{ID: "e1", Phase: incident.End, N: 1, Detector: "bolts", Camera: "line1", OpenedAt: at, LastAt: at, EndedAt: at, Anomalies: 2, Verdict: v}
		return Notice{ID: "e1/1", At: at, Incident: &i, Event: stream.Event{ID: "e1", Kind: IncidentPrefix + incident.End, Detector: "bolts", Camera: "line1"}}
	}
	no := &incident.Verdict{State: incident.FalseAlarm, By: "ann", At: at, Reason: "a shadow"}
	j, err := newJudge(Sink{Name: "a", Verdicts: []string{incident.Open, incident.Confirmed}})
	if err != nil {
		t.Fatal(err)
	}
	for what, c := range map[string]struct {
		n    Notice
		want string
	}{
		"nobody has said anything": {end(nil), ResultSent + " "},
		"a false alarm":            {end(no), ResultFiltered + " verdict"},
		"confirmed":                {end(&incident.Verdict{State: incident.Confirmed, At: at}), ResultSent + " "},
		"an event":                 {Notice{Event: stream.Event{Kind: stream.KindDrift}}, ResultSent + " "},
	} {
		result, why := j.decide(c.n, at)
		if got := result + " " + why; got != c.want {
			t.Errorf("%s: %s", what, got)
		}
	}
	group := end(nil)
	group.Incident.Cameras = []string{"line1", "line2"}
	j, err = newJudge(Sink{Name: "a", Cameras: []string{"line2"}})
	if err != nil {
		t.Fatal(err)
	}
	for what, c := range map[string]struct {
		n    Notice
		want string
	}{"of several cameras": {group, ResultSent + " "}, "of another": {end(nil), ResultFiltered + " camera"}} {
		result, why := j.decide(c.n, at)
		if got := result + " " + why; got != c.want {
			t.Errorf("%s: %s", what, got)
		}
	}
	if _, text := end(no).Words(); !strings.Contains(text, "false alarm, says ann (a shadow)") {
		t.Errorf("%q", text)
	}
	if (Sink{Name: "a", Kind: "k", Verdicts: []string{"maybe"}}).Validate() == nil {
		t.Error("a verdict that does not exist is taken")
	}
}

// Beyond the rate events are held back until the period is over, and then told in
// one summary, with which another period begins.
func TestWhatIsBeyondTheRateIsToldOnce(t *testing.T) {
	j, err := newJudge(Sink{Kinds: []string{stream.KindAnomaly}, Rate: Rate{N: 2, Per: Duration(time.Minute)}})
	if err != nil {
		t.Fatal(err)
	}
	begin := time.Date(2026, 11, 29, 12, 0, 0, 0, time.UTC)
	at := func(after time.Duration) string {
		result, _ := j.decide(Notice{ID: "e", Event: stream.Event{Kind: stream.KindAnomaly, Detector: "bolts", Camera: "line3"}}, begin.Add(after))
		return result
	}
	var got []string
	for i := range 5 {
		got = append(got, at(time.Duration(i)*time.Second))
	}
	if want := []string{ResultSent, ResultSent, ResultLimited, ResultLimited, ResultLimited}; !slices.Equal(got, want) {
		t.Fatalf("%v", got)
	}
	if n, ok := j.summary(begin.Add(59*time.Second), false); ok {
		t.Errorf("told early: %+v", n)
	}
	if got := at(61 * time.Second); got != ResultLimited { // those before it are not told yet
		t.Errorf("%v", got)
	}
	n, ok := j.summary(begin.Add(62*time.Second), false)
	if !ok || n.Summary != 4 || n.Event.Reason != "and 4 more on bolts/line3" {
		t.Errorf("%+v", n)
	}
	if n, ok := j.summary(begin.Add(10*time.Minute), true); ok {
		t.Errorf("told twice: %+v", n)
	}
	if got := at(63 * time.Second); got != ResultSent {
		t.Errorf("%v in a new period", got)
	}
}
