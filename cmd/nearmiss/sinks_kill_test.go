package main

import (
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/nearmiss/nearmiss/internal/eventually"
	"github.com/nearmiss/nearmiss/stream"
)

// desk is a receiver of webhooks that can be down.
type desk struct {
	mu    sync.Mutex
	down  bool
	got   map[string]int // by webhook-id
	other map[string]int // deliveries whose body was of another event
	late  []time.Duration
}

func (d *desk) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	var cloud struct {
		ID   string
		Time time.Time
	}
	err := json.NewDecoder(r.Body).Decode(&cloud)
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.down {
		w.WriteHeader(http.StatusServiceUnavailable)
		return
	}
	id := r.Header.Get("webhook-id")
	if err != nil || id != cloud.ID {
		d.other[id]++
	}
	d.got[id]++
	d.late = append(d.late, time.Since(cloud.Time))
}

func (d *desk) events() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return len(d.got)
}

func (d *desk) set(down bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.down = down
}

// setting is a number that a make target sets to make a test longer.
func setting(t *testing.T, name string, otherwise int) int {
	t.Helper()
	v, err := strconv.Atoi(os.Getenv(name))
	if err != nil {
		return otherwise
	}
	return v
}

// TestSinksKilledLoseNothing kills the process that runs the sinks, and the
// broker, at random moments while a receiver is down and comes back: it gets
// every event, and what it gets twice has one id. Another sink's receiver is up
// all the time. make sinks is the long form.
func TestSinksKilledLoseNothing(t *testing.T) {
	t.Parallel() // most of its time it waits for what the dead had in hand
	events, kills := setting(t, "NEARMISS_TEST_SINK_EVENTS", 120), setting(t, "NEARMISS_TEST_SINK_KILLS", 3)
	down := time.Duration(setting(t, "NEARMISS_TEST_SINK_DOWN", 0)) * time.Second
	data := t.TempDir()
	server, at := runBroker(t, "--data", data)
	way := lastingFor(t, at)
	at = way.url()
	weak, steady := &desk{got: map[string]int{}, other: map[string]int{}, down: true}, &desk{got: map[string]int{}, other: map[string]int{}}
	for name, d := range map[string]*desk{"weak": weak, "steady": steady} {
		srv := httptest.NewServer(d)
		t.Cleanup(srv.Close)
		program(t, 0, "sinks", "add", name, "webhook", "--url", srv.URL, "--allow-loopback", "--no-secret", "--event", "anomaly", "--server", at)
	}
	sinks := func() *process {
		p := start(t, "sinks", "--server", at)
		p.logged("sinks are up")
		return p
	}
	worker := sinks()
	l := listen(t, at)
	for _, name := range []string{"weak", "steady"} {
		eventually.True(t, name+" has its consumer", func() bool {
			_, err := l.js.Consumer(t.Context(), "NM_EVENTS", "sink-"+name)
			return err == nil
		})
	}

	// What is killed, and after how many events.
	rng := rand.New(rand.NewPCG(18, 1))
	at1, at2 := map[int]bool{}, map[int]bool{}
	for _, n := range rng.Perm(events)[:kills] {
		at1[n] = true
	}
	for _, n := range rng.Perm(events)[:max(1, kills/2)] {
		at2[n] = true
	}
	began := time.Now()
	up := events / 3
	if down > 0 {
		up = events // it is down until the time is over
	}
	want := map[string]bool{}
	for n := range events {
		if at1[n] {
			kill(t, worker)
			worker = sinks()
		}
		if at2[n] {
			way.away()
			kill(t, server)
			var now string
			server, now = runBroker(t, "--data", data)
			way.lead(now)
		}
		if n == up {
			weak.set(false)
		}
		if pause := down*time.Duration(n)/time.Duration(events) - time.Since(began); pause > 0 {
			time.Sleep(pause) // the long form only
		}
		score, threshold := 2.0, 1.0
		e := stream.Event{
			ID: fmt.Sprintf("event-%d", n), Kind: stream.KindAnomaly, Detector: "bolts", Camera: "line" + strconv.Itoa(n%10),
			FrameID: strconv.Itoa(n), ScoredAt: time.Now().UTC(), Score: &score, Threshold: &threshold,
		}
		m, err := e.Message(stream.Names{})
		if err != nil {
			t.Fatal(err)
		}
		eventually.True(t, "the event is stored", func() bool {
			step, cancel := context.WithTimeout(t.Context(), 5*time.Second)
			defer cancel()
			_, err := l.js.PublishMsg(step, m)
			return err == nil
		})
		want[e.ID] = true
	}
	weak.set(false)
	back := time.Now()
	for name, d := range map[string]*desk{"steady": steady, "weak": weak} {
		eventually.True(t, name+" has every event", func() bool { return d.events() == events })
		d.mu.Lock()
		twice := 0
		for id, n := range d.got {
			if !want[id] {
				t.Errorf("%s got %q, which nobody sent", name, id)
			}
			twice += n - 1
		}
		if len(d.other) > 0 {
			t.Errorf("%s got events under other ids: %v", name, d.other)
		}
		slices.Sort(d.late)
		t.Logf("%s: %d events, %d deliveries more; delays: half within %v, 95 of 100 within %v; all %v after the end",
			name, len(d.got), twice, d.late[len(d.late)/2].Round(time.Millisecond), d.late[len(d.late)*95/100].Round(time.Millisecond), time.Since(back).Round(time.Millisecond))
		d.mu.Unlock()
	}
	worker.stop()
	server.stop()
}

func kill(t *testing.T, p *process) {
	t.Helper()
	if err := p.cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	<-p.exited
}
