package console

import (
	"bufio"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/nearmiss/nearmiss/internal/cputime"
	"github.com/nearmiss/nearmiss/stream"
)

// TestThePageIsSmall: what a browser loads at the first visit.
func TestThePageIsSmall(t *testing.T) {
	p, err := newPage()
	if err != nil {
		t.Fatal(err)
	}
	var raw, packed int
	for name, b := range p.files {
		if strings.HasSuffix(name, "LICENSE") {
			continue
		}
		r := httptest.NewRequest(http.MethodGet, "/", nil)
		r.SetPathValue("file", name)
		r.Header.Set("Accept-Encoding", "gzip")
		w, send := httptest.NewRecorder(), p.asset
		if name == "index.html" {
			send = p.index
		}
		send(w, r)
		raw, packed = raw+len(b), packed+w.Body.Len()
	}
	t.Logf("%d bytes, %d packed", raw, packed)
	// What lean takes away is no part of a text: none has several lines.
	scripts, err := fs.Glob(web, "web/*.js")
	if err != nil || len(scripts) < 10 {
		t.Fatal(scripts, err)
	}
	for _, name := range scripts {
		b, err := web.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		for i, l := range strings.Split(string(b), "\n") {
			if strings.Count(l, "`")%2 > 0 {
				t.Errorf("%s:%d: a text of several lines", name, i+1)
			}
		}
	}
	if raw > 250<<10 || packed > 80<<10 {
		t.Errorf("the page has %d bytes, %d packed: at most 250 and 80 KiB are wanted", raw, packed)
	}
}

// BenchmarkConsoleLists asks for pages of 50,000 events of fifty cameras, half of them
// judged, five to an incident.
func BenchmarkConsoleLists(b *testing.B) {
	h := newHall(b, config())
	score, begin := 2.0, time.Now().Add(-24*time.Hour)
	for i := range indexMost {
		e := entry{
			Sequence: uint64(i + 1), ID: fmt.Sprint(i), Kind: stream.KindAnomaly, Detector: "parts", Camera: fmt.Sprint("line", i%50),
			ScoredAt: begin.Add(time.Duration(i/50)*time.Second + time.Duration(i/250)*time.Minute), Score: &score, Threshold: &score,
		}
		h.c.alarms.index.add(e)
		if i%2 == 0 {
			h.c.alarms.index.judge(e.ID, judged{State: stateSeen, order: uint64(i + 1)})
		}
	}
	for _, list := range []string{"events?kind=anomaly&state=open", "incidents?state=open"} {
		b.Run(list, func(b *testing.B) {
			var took []time.Duration
			for b.Loop() {
				begin := time.Now()
				r, err := http.Get(h.url + "api/v1/" + list + "&limit=100")
				if err != nil {
					b.Fatal(err)
				}
				_, err = io.Copy(io.Discard, r.Body)
				if r.Body.Close(); err != nil || r.StatusCode != http.StatusOK {
					b.Fatal(r.Status, err)
				}
				took = append(took, time.Since(begin))
			}
			slices.Sort(took)
			b.ReportMetric(float64(took[len(took)*95/100].Microseconds())/1000, "p95-ms")
		})
	}
	http.DefaultClient.CloseIdleConnections()
}

// BenchmarkConsoleLive has 50 cameras send five scores a second to one listener, for
// ten seconds, and an alarm each second.
func BenchmarkConsoleLive(b *testing.B) {
	h := newHall(b, config())
	const cameras, fps, seconds = 50, 5, 10
	r, err := http.Get(h.url + "api/v1/live")
	if err != nil {
		b.Fatal(err)
	}
	type line struct {
		text string
		at   time.Time
	}
	lines := make(chan line, 100_000)
	go func() {
		defer close(lines)
		for s := bufio.NewScanner(r.Body); s.Scan(); {
			lines <- line{s.Text(), time.Now()}
		}
	}()
	cpu, begin := cputime.Seconds(), time.Now()
	var stored []time.Time
	for i := range seconds * fps {
		for cam := range cameras {
			score, threshold, p, no := 0.5, 1.0, 0.5, false
			m, err := stream.Event{Detector: "parts", Camera: fmt.Sprintf("line%02d", cam), ScoredAt: time.Now(), Kind: "x", Score: &score, Threshold: &threshold, PValue: &p, Anomalous: &no}.Message(h.names)
			if err != nil {
				b.Fatal(err)
			}
			if err := h.nc.Publish(h.names.Scores("parts", fmt.Sprintf("line%02d", cam)), m.Data); err != nil {
				b.Fatal(err)
			}
		}
		if i%fps == 0 {
			stored = append(stored, time.Now())
			h.alarm(fmt.Sprint("alarm", i))
		}
		time.Sleep(time.Until(begin.Add(time.Duration(i+1) * time.Second / fps)))
	}
	took, used := time.Since(begin), cputime.Seconds()-cpu
	r.Body.Close()
	size, messages, alarms := 0, 0, 0
	var worst time.Duration
	for l := range lines {
		size += len(l.text) + 1
		if strings.HasPrefix(l.text, "event:") {
			messages++
		}
		if l.text == "event: event" {
			worst, alarms = max(worst, l.at.Sub(stored[alarms])), alarms+1
		}
	}
	http.DefaultClient.CloseIdleConnections()
	for b.Loop() { // what is measured has been: the cameras set the time
	}
	b.ReportMetric(float64(messages)/took.Seconds(), "msg/s")
	b.ReportMetric(float64(size)/1024/took.Seconds(), "KiB/s")
	b.ReportMetric(100*used/took.Seconds(), "%core") // broker and cameras included
	b.ReportMetric(float64(worst.Milliseconds()), "alarm-ms")
	b.ReportMetric(float64(alarms), "alarms")
	b.ReportMetric(0, "ns/op")
}
