package main

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"hash/crc32"
	"maps"
	"math"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/rs/zerolog"

	"github.com/nearmiss/nearmiss/inference/backbone/starter"
	"github.com/nearmiss/nearmiss/inference/imaging"
	"github.com/nearmiss/nearmiss/internal/brokertest"
	"github.com/nearmiss/nearmiss/internal/eventually"
	"github.com/nearmiss/nearmiss/stream"
)

// listener collects what a broker sends out.
type listener struct {
	nc     *nats.Conn
	js     jetstream.JetStream
	mu     sync.Mutex
	scores []stream.Event
	events []stream.Event
}

func listen(t *testing.T, url string) *listener {
	t.Helper()
	nc, err := stream.Connect(url, "test", zerolog.Nop())
	if err != nil {
		t.Fatal(err)
	}
	l := &listener{nc: nc, js: brokertest.StreamsOn(t, nc)}
	since := time.Now() // whenever the watch of events begins
	_, err = nc.Subscribe(stream.Names{}.Scores("*", "*"), func(m *nats.Msg) {
		if e, err := stream.ParseScore(m.Data, m.Header); err == nil {
			l.mu.Lock()
			defer l.mu.Unlock()
			l.scores = append(l.scores, e)
		}
	})
	if err == nil {
		err = nc.Flush() // the broker has the subscription
	}
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	var watching sync.WaitGroup
	watching.Go(func() {
		_ = stream.Watch(ctx, nc, stream.WatchConfig{Since: since}, zerolog.Nop(), func(_ context.Context, e stream.Event) error {
			l.mu.Lock()
			defer l.mu.Unlock()
			if e.FrameID != "" { // not those about releases
				l.events = append(l.events, e)
			}
			return nil
		})
	})
	t.Cleanup(func() { cancel(); watching.Wait(); nc.Close() })
	return l
}

func (l *listener) seen() (scores, events []stream.Event) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.scores), slices.Clone(l.events)
}

// waiting is the number of frames in the work queue.
func (l *listener) waiting(t *testing.T) uint64 {
	t.Helper()
	s, err := l.js.Stream(t.Context(), stream.Names{}.FramesStream())
	if err != nil {
		t.Fatal(err)
	}
	info, err := s.Info(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return info.State.Msgs
}

// publishRelease learns from the material's normals and makes the release the
// active one.
func publishRelease(t *testing.T, m material, url string) (dir string) {
	t.Helper()
	dir = filepath.Join(t.TempDir(), "release")
	program(t, 0, "fit", "--normals", m.normals, "--backbone", m.backbone, "--out", dir, "--detector", "cells", "--seed", "1", "--json")
	program(t, 0, "releases", "cells", "publish", dir, "--promote", "--server", url)
	return dir
}

func TestStreamingEqualsOffline(t *testing.T) {
	m := newMaterial(t)
	url := startBroker(t)
	release := publishRelease(t, m, url)
	text, _ := program(t, 0, "score", "--release", release, m.test, "--json")
	offline := map[string]scoreLine{}
	for _, s := range readLines[scoreLine](t, text) {
		name, err := filepath.Rel(m.test, s.Image)
		if err != nil {
			t.Fatal(err)
		}
		offline[filepath.ToSlash(name)] = s
	}

	l := listen(t, url)
	workers := make([]*process, 2)
	for i := range workers {
		workers[i] = start(t, "worker", "--server", url, "--data", t.TempDir(), "--batch", "4")
	}
	for _, w := range workers {
		w.logged("release is in service")
	}
	// A worker that stands still for a moment leaves the first frames to the other.
	rounds := 0
	eventually.True(t, "both workers have scored frames", func() bool {
		program(t, 0, "camera", m.test, "--detector", "cells", "--camera", "one", "--server", url, "--json")
		rounds++
		eventually.True(t, "every frame is scored and acknowledged", func() bool {
			scores, _ := l.seen()
			return len(scores) >= rounds*len(offline) && l.waiting(t) == 0
		})
		out, _ := program(t, 0, "status", "--json", "--server", url)
		st := readLines[struct{ Workers []stream.WorkerStatus }](t, out)[0]
		return len(st.Workers) == len(workers) && !slices.ContainsFunc(st.Workers, func(w stream.WorkerStatus) bool { return w.Scored == 0 })
	})
	for _, w := range workers {
		w.stop()
	}
	if err := l.nc.Flush(); err != nil {
		t.Fatal(err)
	}

	scores, events := l.seen()
	anomalies := map[string]bool{}
	frames, seen := map[string]bool{}, map[string]int{}
	for _, s := range scores {
		want, ok := offline[s.Source]
		if !ok || frames[s.FrameID] {
			t.Fatalf("frame %s has an unexpected or a second score", s.Source)
		}
		frames[s.FrameID] = true
		seen[s.Source]++
		if off := math.Abs(*s.Score-*want.Score) / *want.Score; off > 1e-4 {
			t.Errorf("%s: %v streamed, %v offline: %.2g apart", s.Source, *s.Score, *want.Score, off)
		}
		if *s.Anomalous {
			anomalies[s.FrameID] = true
		}
	}
	for source := range offline {
		if seen[source] != rounds {
			t.Errorf("%s has %d scores, it was shown %d times", source, seen[source], rounds)
		}
	}
	eventually.True(t, "an event for each anomaly", func() bool {
		_, events = l.seen()
		return len(events) >= len(anomalies)
	})
	announced := map[string]bool{}
	for _, e := range events {
		if announced[e.FrameID] || !anomalies[e.FrameID] {
			t.Errorf("frame %s: an event twice, or without an anomaly", e.FrameID)
		}
		announced[e.FrameID] = true
	}
}

// pngHeader is a file that promises w × h pixels and holds next to nothing.
func pngHeader(w, h uint32, depth, colour byte) []byte {
	var b bytes.Buffer
	b.WriteString("\x89PNG\r\n\x1a\n")
	chunk := func(kind string, data []byte) {
		_ = binary.Write(&b, binary.BigEndian, uint32(len(data)))
		body := append([]byte(kind), data...)
		b.Write(body)
		_ = binary.Write(&b, binary.BigEndian, crc32.ChecksumIEEE(body))
	}
	ihdr := binary.BigEndian.AppendUint32(nil, w)
	ihdr = binary.BigEndian.AppendUint32(ihdr, h)
	chunk("IHDR", append(ihdr, depth, colour, 0, 0, 0))
	chunk("IDAT", []byte{0x78, 0x9c, 0x63, 0, 0})
	chunk("IEND", nil)
	return b.Bytes()
}

func TestBadImagesAreRejectedAndTheNextGoodOneIsScored(t *testing.T) {
	url := startBroker(t)
	m := material{backbone: randomModel(t), normals: filepath.Join(t.TempDir(), "normals")}
	needRuntime(t)
	drawImages(t, m.normals, 40, 0)
	publishRelease(t, m, url)
	l := listen(t, url)
	config := filepath.Join(t.TempDir(), "worker.yaml")
	write(t, config, "images: {max_bytes: 2097152}\n")
	w := start(t, "worker", "--server", url, "--data", t.TempDir(), "--config", config, "--threads", "1")
	w.logged("release is in service")

	good, err := os.ReadFile(filepath.Join(m.normals, "000.png"))
	if err != nil {
		t.Fatal(err)
	}
	decoded, err := imaging.Decode(good, imaging.Limits{})
	if err != nil {
		t.Fatal(err)
	}
	photo, err := decoded.JPEG(90)
	if err != nil {
		t.Fatal(err)
	}
	corrupt := bytes.Clone(good)
	for i := len(corrupt) / 2; i < len(corrupt)/2+40; i++ {
		corrupt[i] ^= 0x5a
	}
	bad := map[string]struct {
		file []byte
		code string // one of several, separated by |
	}{
		"empty":         {nil, "empty"},
		"text":          {[]byte("this is no image, and that is all there is to it\n"), "unsupported"},
		"pdf":           {[]byte("%PDF-1.7\n1 0 obj\n<< /Type /Catalog >>\nendobj\n"), "unsupported"},
		"corrupt-png":   {corrupt, "corrupt|truncated"},
		"truncated-png": {good[:len(good)/2], "truncated|corrupt"},
		"truncated-jpg": {photo[:len(photo)/2], "truncated|corrupt"},
		"bomb-pixels":   {pngHeader(60_000, 60_000, 8, 2), "too_large"},
		"bomb-memory":   {pngHeader(9_900, 9_900, 16, 6), "truncated"}, // would fit, a row at a time: its data are missing
		"ribbon":        {pngHeader(50_000, 10, 8, 2), "bad_aspect"},
		"huge":          {append(bytes.Clone(good), make([]byte, 3<<20)...), "too_large"},
	}
	publish := func(id string, file []byte) {
		t.Helper()
		msg, err := stream.Frame{Detector: "cells", Camera: "rough", ID: id, Image: file}.Message(stream.Names{})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := l.js.PublishMsg(t.Context(), msg); err != nil {
			t.Fatal(err)
		}
	}
	publish("good", good)
	eventually.True(t, "the first good frame is scored", func() bool { return l.waiting(t) == 0 })
	before := peakMemory(t, w)

	names := slices.Sorted(maps.Keys(bad))
	const rounds = 5
	for round := range rounds {
		for _, name := range names {
			publish(fmt.Sprintf("%s-%d", name, round), bad[name].file)
			publish(fmt.Sprintf("good-after-%s-%d", name, round), good)
		}
	}
	n := rounds * len(bad)
	eventually.True(t, "all frames are handled", func() bool {
		scores, events := l.seen()
		return l.waiting(t) == 0 && len(scores) >= 1+n && len(events) >= n
	})

	scores, events := l.seen()
	scored := map[string]float64{}
	for _, s := range scores {
		if s.Score == nil {
			continue
		}
		if _, twice := scored[s.FrameID]; twice {
			t.Errorf("frame %s is scored twice", s.FrameID)
		}
		scored[s.FrameID] = *s.Score
	}
	rejected := map[string]string{}
	for _, e := range events {
		if e.Kind != stream.KindRejected {
			continue
		}
		if rejected[e.FrameID] != "" {
			t.Errorf("frame %s is rejected twice", e.FrameID)
		}
		rejected[e.FrameID] = e.Code
		if e.Reason == "" {
			t.Errorf("frame %s is rejected without a reason", e.FrameID)
		}
	}
	letters, err := stream.NewInstallation(l.js, stream.Names{}).DeadLetters(t.Context(), 10*n)
	if err != nil {
		t.Fatal(err)
	}
	dead := map[string]int{}
	for _, d := range letters {
		dead[d.Header.Get(stream.HeaderFrameID)]++
	}
	for round := range rounds {
		for _, name := range names {
			id := fmt.Sprintf("%s-%d", name, round)
			if got := rejected[id]; !slices.Contains(strings.Split(bad[name].code, "|"), got) {
				t.Errorf("%s: rejected as %q, want %s", id, got, bad[name].code)
			}
			if dead[id] != 1 {
				t.Errorf("%s: %d dead letters", id, dead[id])
			}
			if s, ok := scored["good-after-"+id]; !ok || math.Abs(s-scored["good"]) > 1e-4*math.Abs(scored["good"])+1e-6 {
				t.Errorf("the good frame after %s: scored %v with %v, want %v", id, ok, s, scored["good"])
			}
		}
	}
	if len(rejected) != n || len(letters) != n {
		t.Errorf("%d rejected events and %d dead letters for %d bad images", len(rejected), len(letters), n)
	}
	if after := peakMemory(t, w); after > before+200<<20 {
		t.Errorf("the worker's peak memory grew from %d to %d MiB", before>>20, after>>20)
	}
	w.stop()
}

// peakMemory is the largest resident set that a process has had, in bytes. Where
// the system does not tell, it is 0.
func peakMemory(t *testing.T, p *process) int64 {
	t.Helper()
	return memory(t, p, "VmHWM:")
}

// memory is a figure of /proc's on a process, in bytes. Where the system does
// not tell, it is 0.
func memory(t *testing.T, p *process, field string) int64 {
	t.Helper()
	if runtime.GOOS != "linux" {
		t.Logf("memory is not measured on %s", runtime.GOOS)
		return 0
	}
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.cmd.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.SplitSeq(string(b), "\n") {
		if rest, ok := strings.CutPrefix(line, field); ok {
			kib, err := strconv.ParseInt(strings.Fields(rest)[0], 10, 64)
			if err != nil {
				t.Fatal(err)
			}
			return kib << 10
		}
	}
	t.Fatalf("no %s in the process's status", field)
	return 0
}

func TestDemoReachesATrueAnomalyAndSurvivesARestart(t *testing.T) {
	needRuntime(t)
	data := t.TempDir()
	model, err := starter.File(data) // and no download
	if err != nil {
		t.Fatal(err)
	}
	type line struct {
		eventLine
		Agrees *bool `json:"agrees"`
	}
	var first []string
	for range 2 {
		up := start(t, "up", "--demo", "--json", "--data", data, "--port=-1", "--backbone", model)
		at := "--server=" + up.natsAddress()
		l := up.line("a true anomaly event", func(s string) bool {
			var e line
			return json.Unmarshal([]byte(s), &e) == nil && e.Kind == stream.KindAnomaly && e.Agrees != nil && *e.Agrees &&
				e.Detector == demoTasks[1].detector
		})
		var e line
		if err := json.Unmarshal([]byte(l), &e); err != nil {
			t.Fatal(err)
		}
		if e.Score == nil || e.Threshold == nil || *e.Score <= *e.Threshold || len(e.Event.Truth) != 0 || len(e.Truth) == 0 {
			t.Errorf("the event: %s", l)
		}
		// The first release may have been replaced by the one that was made after it.
		var jobs []stream.Job
		eventually.True(t, "both have a job", func() bool {
			text, _ := program(t, 0, "jobs", e.Detector, "--json", at)
			jobs = readLines[stream.Job](t, text)
			return len(jobs) == 2
		})
		if jobs[1].Completes() != jobs[0].Job || e.Release != jobs[0].Release && e.Release != jobs[1].Release {
			t.Errorf("the event is of release %.12s, and the jobs %+v", e.Release, jobs)
		}
		first = append(first, jobs[0].Release)
		up.stop()
	}
	if first[0] != first[1] {
		t.Error("after the restart the demo learnt anew")
	}
}

func TestUpSaysWhenThePortIsTaken(t *testing.T) {
	needRuntime(t)
	url := startBroker(t)
	port := url[strings.LastIndex(url, ":")+1:]
	_, errs := program(t, 1, "up", "--data", t.TempDir(), "--port", port)
	if !strings.Contains(errs, port) {
		t.Errorf("the port is not named: %s", errs)
	}
}

func TestCommandsSayThatThereIsNoBroker(t *testing.T) {
	for _, args := range [][]string{{"watch"}, {"releases", "cells"}} {
		_, errs := program(t, 1, append(args, "--server", "nats://127.0.0.1:1")...)
		if !strings.Contains(errs, "no broker answers at nats://127.0.0.1:1") || strings.Count(errs, "\n") != 1 {
			t.Errorf("%v: %s", args, errs)
		}
	}
	if _, errs := program(t, 1, "watch", "--server", "nats://u:s3cret@127.0.0.1:1"); strings.Contains(errs, "s3cret") || !strings.Contains(errs, "nats://u:xxxxx@127.0.0.1:1") {
		t.Errorf("the password is shown: %s", errs)
	}
}
