package console

import (
	"bufio"
	"fmt"
	"net/http"
	"net/netip"
	"strings"
	"testing"

	"github.com/nats-io/nats.go"
	"pgregory.net/rapid"

	"github.com/nearmiss/nearmiss/stream"
)

var loopback = []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}

func natsMsg(subject string, data []byte) *nats.Msg {
	m := nats.NewMsg(subject)
	m.Data = data
	return m
}

// In whatever order verdicts arrive, the last one in the stream wins, and a held one
// is shown before all.
func TestTheLastVerdictWins(t *testing.T) {
	said := []string{stateOpen, stateConfirmed, stateFalse, stateSeen}
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.IntRange(1, 12).Draw(t, "verdicts")
		all := make([]judged, n)
		for i := range all {
			all[i] = judged{State: rapid.SampledFrom(said).Draw(t, "state"), order: uint64(i + 1)}
		}
		x := newIndex()
		x.add(entry{Sequence: 1, ID: "e", Kind: stream.KindAnomaly})
		for _, i := range rapid.Permutation(index0(n)).Draw(t, "order") {
			x.judge("e", all[i])
		}
		if got := x.of("e").State; got != all[n-1].State {
			t.Fatalf("%s, and the last verdict was %s", got, all[n-1].State)
		}
		x.hold("e", judged{State: stateSeen})
		if a, _ := x.find(1); a.State != stateSeen || !a.Pending {
			t.Fatalf("a held verdict is shown as %+v", a)
		}
		x.release("e")
		if got := x.of("e"); got.State != all[n-1].State || got.Pending {
			t.Fatalf("taken back: %+v", got)
		}
	})
}

// A verdict that was sent from here stands until the stream brings it, and gives way
// to what was said later, whether or not the stream was faster than the answer.
func TestWhatWasSentStandsUntilTheStreamBringsIt(t *testing.T) {
	for name, faster := range map[string]bool{"the stream is faster": true, "the answer is faster": false} {
		t.Run(name, func(t *testing.T) {
			x := newIndex()
			want := func(state string) {
				t.Helper()
				if got := x.of("e").State; got != state {
					t.Errorf("it is shown as %s, want %s", got, state)
				}
			}
			x.judge("e", judged{State: stateSeen, order: 4})
			seen := x.newest()
			mine := judged{State: stateFalse}
			inStream := judged{State: stateFalse, order: 5}
			if faster {
				x.judge("e", inStream)
				x.sent("e", mine, seen)
			} else {
				x.sent("e", mine, seen)
				want(stateFalse)
				x.judge("e", inStream)
			}
			want(stateFalse)
			x.judge("e", judged{State: stateOpen, order: 6})
			want(stateOpen)
			x.sent("e", mine, seen) // the answer comes last of all
			want(stateOpen)
		})
	}
}

// Verdicts on events that the index has dropped stay: lists page on in the stream.
func TestDroppedEventsKeepTheirVerdicts(t *testing.T) {
	x := newIndex()
	for i := range indexMost + 1 {
		e := entry{Sequence: uint64(i + 1), ID: fmt.Sprint(i), Kind: stream.KindAnomaly}
		x.add(e)
		x.judge(e.ID, judged{State: stateSeen, order: e.Sequence})
	}
	if n := x.count(); n >= indexMost {
		t.Fatalf("none of %d events was dropped", n)
	}
	for i := range indexMost + 1 {
		if got := x.of(fmt.Sprint(i)).State; got != stateSeen {
			t.Fatalf("event %d is shown as %s", i, got)
		}
	}
}

func index0(n int) []int {
	out := make([]int, n)
	for i := range out {
		out[i] = i
	}
	return out
}

// Pages of the index hold every event once, newest first, whatever their size.
func TestPagesHoldEveryEventOnce(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		x, seq := newIndex(), uint64(0)
		n := rapid.IntRange(0, 40).Draw(t, "events")
		for range n {
			seq += uint64(rapid.IntRange(1, 5).Draw(t, "gap"))
			x.add(entry{Sequence: seq, ID: fmt.Sprint(seq), Kind: stream.KindAnomaly})
		}
		limit, got, last := rapid.IntRange(1, 7).Draw(t, "limit"), 0, seq+1
		for before := uint64(0); ; {
			items, next := x.list(filter{}, before, limit)
			for _, a := range items {
				if a.Sequence >= last {
					t.Fatalf("%d after %d", a.Sequence, last)
				}
				last = a.Sequence
			}
			got += len(items)
			if before = next; next == 0 {
				break
			}
		}
		if got != n {
			t.Fatalf("%d of %d events", got, n)
		}
	})
}

// A listener that takes nothing loses ticks, but no alarm; when there are too many
// it is told to read everything anew.
func TestASlowListenerLosesTicksOnly(t *testing.T) {
	h := newHub()
	c := h.join()
	for i := range 1000 {
		h.send(message{event: "scores", data: i, tick: true})
		if i%10 == 0 {
			h.send(message{event: "event", data: i, id: uint64(i + 1)})
		}
	}
	ticks, alarms := 0, 0
	for _, m := range c.take() {
		if m.tick {
			ticks++
		} else {
			alarms++
		}
	}
	if ticks != maxTicks || alarms != 100 {
		t.Errorf("%d ticks and %d alarms are left", ticks, alarms)
	}
	for i := range maxWaiting + 10 {
		h.send(message{event: "event", data: i})
	}
	if all := c.take(); len(all) > maxWaiting || all[0].event != "resync" {
		t.Errorf("%d messages wait, the first is %s", len(all), all[0].event)
	}
}

// lines reads a live stream until want lines with the prefix have come.
func (h *hall) lines(last, prefix string, want int, begun func()) (got []string) {
	h.t.Helper()
	r, err := http.NewRequestWithContext(h.t.Context(), "GET", h.url+"api/v1/live", nil)
	if err != nil {
		h.t.Fatal(err)
	}
	if last != "" {
		r.Header.Set("Last-Event-ID", last)
	}
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: patience}
	a, err := client.Do(r)
	if err != nil {
		h.t.Fatal(err)
	}
	defer a.Body.Close()
	if t := a.Header.Get("Content-Type"); t != "text/event-stream" {
		h.t.Fatalf("%d %s", a.StatusCode, t)
	}
	s := bufio.NewScanner(a.Body)
	for s.Scan() {
		if s.Text() == "event: hello" && begun != nil {
			begun()
		}
		if strings.HasPrefix(s.Text(), prefix) {
			if got = append(got, s.Text()); len(got) == want {
				return got
			}
		}
	}
	h.t.Fatalf("the stream ended after %d of %d: %v", len(got), want, s.Err())
	return nil
}

func TestTheLiveStreamGoesOnWhereItEnded(t *testing.T) {
	h := newHall(t, config())
	first := h.lines("", "id: ", 1, func() { h.alarm("a") })
	for _, id := range []string{"b", "c", "d"} {
		h.alarm(id)
	}
	if got := h.lines(strings.TrimPrefix(first[0], "id: "), "id: ", 3, nil); fmt.Sprint(got) != "[id: 2 id: 3 id: 4]" {
		t.Errorf("after %v come %v", first, got)
	}
	h.lines("", "event: scores", 1, func() {
		score, threshold, no := 0.5, 1.0, false
		e := stream.Event{Detector: "parts", Camera: "line1", Score: &score, Threshold: &threshold, Anomalous: &no}
		h.c.wall.feed.score(e, e.ScoredAt)
	})
}
