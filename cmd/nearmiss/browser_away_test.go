package main

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/nearmiss/nearmiss/internal/brokertest"
	"github.com/nearmiss/nearmiss/stream"
)

// stage is a broker, a console beside it and a tab that shows the page; no detector,
// no worker: the test says what was scored.
type stage struct {
	*tab
	way     lasting
	data    string
	browser context.Context
	broker  *process
	console *process
	nc      *nats.Conn
	js      jetstream.JetStream
}

func newStage(t *testing.T) *stage {
	t.Helper()
	browser := newBrowser(t)
	s := &stage{way: lastingFor(t, "nats://"), data: t.TempDir(), browser: browser}
	s.startBroker(t)
	s.console = start(t, "console", "--server", s.way.url())
	l := s.console.line("the page's address", func(l string) bool { return strings.HasPrefix(l, "console on ") })
	s.tab = openTab(t, browser, strings.TrimPrefix(l, "console on "))
	return s
}

// startBroker starts the broker, on the folder that it had before.
func (s *stage) startBroker(t *testing.T) {
	t.Helper()
	var at string
	s.broker, at = runBroker(t, "--data", s.data)
	s.way.lead(at)
	s.nc = brokertest.Client(t, at)
	s.js = brokertest.StreamsOn(t, s.nc)
}

// event is what a worker says of a frame.
func (s *stage) event(id, camera string, score float64) *nats.Msg {
	s.t.Helper()
	threshold, p, anomalous := 1.0, 0.5, score > 1
	m, err := stream.Event{
		ID: id, Kind: stream.KindAnomaly, Detector: "parts", Camera: camera, FrameID: id, ScoredAt: time.Now(),
		Score: &score, Threshold: &threshold, PValue: &p, Anomalous: &anomalous, NoPictures: stream.NoPicturesBusy,
	}.Message(stream.Names{})
	if err != nil {
		s.t.Fatal(err)
	}
	return m
}

// alarm stores an alarm.
func (s *stage) alarm(id string) {
	s.t.Helper()
	if _, err := s.js.PublishMsg(s.t.Context(), s.event(id, "line1", 2)); err != nil {
		s.t.Fatal(err)
	}
}

// liveModule is what the page hears, in the page.
const liveModule = `import("./" + document.querySelector("script[type=module]").getAttribute("src").replace("app.js", "live.js"))`

// TestThePageWhileTheBrokerComesAndGoes: alarms come by themselves, fifty cameras are
// as fast as one, and what is stored while the broker was away for others is there
// afterwards.
func TestThePageWhileTheBrokerComesAndGoes(t *testing.T) {
	s := newStage(t)
	b := s.tab
	rows := func(n int) {
		t.Helper()
		b.see(fmt.Sprint(n, " alarms"), fmt.Sprintf(`document.querySelectorAll(".row").length === %d`, n))
	}

	t.Run("the first alarm", func(t *testing.T) {
		s.t, b.t = t, t
		b.goTo("#/alarms?rows=frames")
		b.shows("No open alarms")
		if !later[bool](b, liveModule+`.then((live) => { window.live = live; return true; })`) {
			t.Fatal("the page does not tell what it hears")
		}
		b.see("the live stream", `window.live.last.hello`)
		// When it is seen is asked of the page, in which nothing waits for this test.
		js[any](b, `(() => { window.seen = 0; new MutationObserver(() => { if (!window.seen && document.querySelector(".row")) window.seen = Date.now(); }).observe(document.body, {childList: true, subtree: true}); })()`)
		begun := time.Now()
		s.alarm("first")
		rows(1)
		t.Logf("an alarm is on the page after %v", time.UnixMilli(int64(js[float64](b, "window.seen"))).Sub(begun).Round(time.Millisecond))
	})

	t.Run("fifty cameras", func(t *testing.T) {
		s.t, b.t = t, t
		const cameras, times = 50, 20
		b.visit("#/wall", "Wall")
		listen := later[bool](b, liveModule+`.then((live) => {
			window.got = {messages: 0, frames: 0, twice: 0};
			live.on("scores", ({v}) => {
				window.got.messages++;
				if (new Set(v.map((r) => r[0])).size < v.length) window.got.twice++;
				for (const r of v) window.got.frames += r[1];
			});
			return true;
		})`)
		if !listen {
			t.Fatal("the page does not tell what it hears")
		}
		for range times {
			for c := range cameras {
				camera := fmt.Sprintf("line%02d", c)
				m := s.event(camera, camera, 0.5)
				if err := s.nc.Publish(stream.Names{}.Scores("parts", camera), m.Data); err != nil {
					t.Fatal(err)
				}
			}
		}
		b.see("every score", fmt.Sprintf("window.got.frames === %d", cameras*times))
		b.see("fifty tiles", fmt.Sprintf(`document.querySelectorAll(".tile").length >= %d`, cameras))
		got := js[struct {
			Messages int `json:"messages"`
			Twice    int `json:"twice"`
		}](b, "window.got")
		if got.Twice > 0 {
			t.Errorf("%d messages have a camera twice", got.Twice)
		}
		t.Logf("%d scores came in %d messages", cameras*times, got.Messages)
	})

	t.Run("the broker dies and returns", func(t *testing.T) {
		s.t, b.t = t, t
		b.visit("#/alarms?rows=frames", "open")
		rows(1)
		s.way.away()
		if err := s.broker.cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		<-s.broker.exited
		b.see("that the broker is away", `document.querySelector("#top .chip.away") && document.querySelector(".toast.bad")?.innerText.includes("The broker is away")`)
		rows(1) // what was known stays
		s.startBroker(t)
		for i := range 3 {
			s.alarm(fmt.Sprint("after", i))
		}
		rows(4)
		b.see("that it is back", `document.querySelector("#top .chip.ok") && !document.querySelector(".toast.bad")`)
		b.see("four open alarms", `document.querySelector("h1 + .num").innerText === "4 open"`)
	})
}
