package stream_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
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
	"github.com/nearmiss/nearmiss/stream/console"
	"github.com/nearmiss/nearmiss/stream/internal/streamtest"
	"github.com/nearmiss/nearmiss/stream/registry"
	"github.com/nearmiss/nearmiss/stream/steward"
	"github.com/nearmiss/nearmiss/stream/worker"
)

// nothing finds everything normal, at once: what is left is the cost of the stream.
type nothing struct{}

func (nothing) Score(_ context.Context, images [][]byte) ([]worker.Verdict, error) {
	all := make([]worker.Verdict, len(images))
	for i := range all {
		all[i] = worker.Verdict{Score: .1, Threshold: 1, PValue: .9}
	}
	return all, nil
}

func (nothing) Close() error { return nil }

// childNothing is a worker whose scorer does nothing.
func childNothing(ctx context.Context, nc *nats.Conn, dir string, log zerolog.Logger) int {
	w, err := worker.New(worker.Config{CacheDir: filepath.Join(dir, "cache")}, nc,
		func(context.Context, string) (worker.Scorer, error) { return nothing{}, nil }, log)
	if err == nil {
		err = w.Run(ctx)
	}
	if err != nil {
		log.Error().Err(err).Msg("child")
		return 1
	}
	return 0
}

// childConsole is the page for people, at NEARMISS_TEST_LISTEN.
func childConsole(ctx context.Context, nc *nats.Conn, log zerolog.Logger) int {
	c, err := console.New(console.Config{Listen: os.Getenv("NEARMISS_TEST_LISTEN"), Version: "test"}, log)
	if err == nil {
		_, err = c.Listen()
	}
	if err == nil {
		err = c.Run(ctx, nc)
	}
	if err != nil {
		log.Error().Err(err).Msg("child")
		return 1
	}
	return 0
}

// usage is what a process has used: processor time, and its memory now, in bytes.
func usage(t *testing.T, p *exec.Cmd) (cpu time.Duration, memory int64) {
	t.Helper()
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", p.Process.Pid))
	if err != nil {
		t.Skip("figures of other processes are only to be had on Linux: ", err)
	}
	_, after, _ := strings.Cut(string(stat), ") ")
	f := strings.Fields(after)
	for _, s := range f[11:13] { // utime, stime in hundredths of a second; proc(5)
		n, err := strconv.ParseInt(s, 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		cpu += time.Duration(n) * 10 * time.Millisecond
	}
	pages, err := strconv.ParseInt(f[21], 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	return cpu, pages * int64(os.Getpagesize())
}

// plant is a NATS server, a worker, a console that browsers listen to, and cameras that
// publish at their rate, each on a connection of its own.
type plant struct {
	t                       *testing.T
	names                   stream.Names
	url                     string
	server, worker, console *exec.Cmd
	image                   []byte
	sent, failed, shown     atomic.Int64 // shown: bytes to browsers

	mu     sync.Mutex
	delays map[string][]time.Duration // from captured to scored, by detector
}

// camera publishes until ctx ends, from a moment of its own within the first interval.
func (p *plant) camera(ctx context.Context, js jetstream.JetStream, detector, camera string, every *atomic.Int64, begin time.Duration) {
	timer := time.NewTimer(begin)
	defer timer.Stop()
	next := time.Now().Add(begin)
	for i := 0; ; i++ {
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		}
		m := nats.NewMsg(p.names.Frames(detector, camera))
		m.Header.Set(stream.HeaderFrameID, fmt.Sprint(i))
		m.Header.Set(stream.HeaderCapturedAt, time.Now().UTC().Format(time.RFC3339Nano))
		m.Data = append(p.image[:len(p.image):len(p.image)], fmt.Sprint(i)...)
		step, cancel := context.WithTimeout(ctx, 10*time.Second)
		_, err := js.PublishMsg(step, m)
		cancel()
		if err == nil {
			p.sent.Add(1)
		} else if ctx.Err() == nil {
			p.failed.Add(1)
		}
		next = next.Add(time.Duration(every.Load()))
		if late := time.Since(next); late > 0 {
			next = time.Now()
		}
		timer.Reset(time.Until(next))
	}
}

// listen collects delays until ctx ends.
func (p *plant) listen(nc *nats.Conn) {
	sub, err := nc.Subscribe(p.names.Scores("*", "*"), func(m *nats.Msg) {
		var e struct {
			Detector string    `json:"detector"`
			Captured time.Time `json:"captured_at"`
			Scored   time.Time `json:"scored_at"`
		}
		if json.Unmarshal(m.Data, &e) == nil {
			p.mu.Lock()
			p.delays[e.Detector] = append(p.delays[e.Detector], e.Scored.Sub(e.Captured))
			p.mu.Unlock()
		}
	})
	if err != nil {
		p.t.Fatal(err)
	}
	if err := sub.SetPendingLimits(-1, -1); err != nil {
		p.t.Fatal(err)
	}
}

// browse listens to what the console tells the page, as a browser does, until ctx ends.
func (p *plant) browse(ctx context.Context, address string) {
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+address+"/api/v1/live", nil)
	if err != nil {
		p.t.Error(err)
		return
	}
	a, err := http.DefaultClient.Do(r)
	if err == nil && a.StatusCode != http.StatusOK {
		err = errors.New(a.Status)
	}
	if err == nil {
		defer a.Body.Close()
		for b := make([]byte, 64<<10); err == nil; {
			var n int
			n, err = a.Body.Read(b)
			p.shown.Add(int64(n))
		}
	}
	if ctx.Err() == nil {
		p.t.Errorf("a browser hears nothing any more: %v", err)
	}
}

// quantiles of the delays since the last call, of all detectors but one.
func (p *plant) quantiles(but string) (n int, half, most time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	var all []time.Duration
	for d, some := range p.delays {
		if d != but {
			all = append(all, some...)
		}
	}
	p.delays = map[string][]time.Duration{}
	if len(all) == 0 {
		return 0, 0, 0
	}
	slices.Sort(all)
	return len(all), all[len(all)/2].Round(time.Millisecond), all[len(all)*99/100].Round(time.Millisecond)
}

// child starts this binary in a role, until the test ends.
func (p *plant) child(role string, env ...string) *exec.Cmd {
	p.t.Helper()
	c := exec.Command(os.Args[0])
	c.Env = append(append(os.Environ(), "NEARMISS_TEST_ROLE="+role, "NEARMISS_TEST_URL="+p.url), env...)
	c.Stderr = os.Stderr
	if err := c.Start(); err != nil {
		p.t.Fatal(err)
	}
	p.t.Cleanup(func() { killServer(c) })
	return c
}

// measure lets the plant run for a while and says what that took.
func (p *plant) measure(what string, d time.Duration, but string) {
	p.t.Helper()
	time.Sleep(3 * time.Second) // until what came before is over
	p.quantiles("")
	sent, failed := p.sent.Load(), p.failed.Load()
	c1, _ := usage(p.t, p.server)
	w1, _ := usage(p.t, p.worker)
	p1, _ := usage(p.t, p.console)
	shown := p.shown.Load()
	begin := time.Now()
	time.Sleep(d)
	took := time.Since(begin)
	c2, server := usage(p.t, p.server)
	w2, worker := usage(p.t, p.worker)
	p2, page := usage(p.t, p.console)
	n, half, most := p.quantiles(but)
	p.t.Logf("%s: %.0f frames/s acknowledged (%d refused), %.0f/s scored; delay half %v, 99%% %v; broker %.0f%% of a core, %d MiB; worker %.0f%% of a core, %d MiB; console %.1f%%, %d MiB, %.1f KiB/s to each of %d browsers",
		what, float64(p.sent.Load()-sent)/took.Seconds(), p.failed.Load()-failed, float64(n)/took.Seconds(), half, most,
		100*(c2-c1).Seconds()/took.Seconds(), server>>20, 100*(w2-w1).Seconds()/took.Seconds(), worker>>20,
		100*(p2-p1).Seconds()/took.Seconds(), page>>20, float64(p.shown.Load()-shown)/1024/browsers/took.Seconds(), browsers)
}

// browsers listen to the console.
const browsers = 10

// TestAPlantOfCameras: NEARMISS_TEST_CAMERAS cameras at one frame a second, twenty a
// detector, against scorers that do nothing; what broker, worker and console take, where it
// bends, and what one detector's flood costs the others (make scale).
func TestAPlantOfCameras(t *testing.T) {
	cameras := number("NEARMISS_TEST_CAMERAS", 0)
	if cameras == 0 {
		t.Skip("takes minutes: make scale")
	}
	const each = 20                             // cameras a detector
	interval := os.Getenv("NEARMISS_TEST_SYNC") // of the server
	if interval == "" {
		interval = "always"
	}
	t.Logf("sync_interval: %s", interval)
	d := 15 * time.Second
	ctx, dir, n := t.Context(), t.TempDir(), stream.Names{}
	l := listenAnywhere(t)
	p := &plant{t: t, names: n, url: "nats://" + l.Addr().String(), image: make([]byte, 8<<10), delays: map[string][]time.Duration{}}
	conf := filepath.Join(dir, "nats.conf")
	if err := os.WriteFile(conf, fmt.Appendf(nil, "server_name: plant\nlisten: %q\nmax_payload: 8MB\njetstream { store_dir: %q, max_file_store: 16GB, max_buffered_size: 2GB, sync_interval: %q }\n",
		l.Addr().String(), filepath.Join(dir, "store"), interval), 0o600); err != nil {
		t.Fatal(err)
	}
	_ = l.Close()
	p.server = startServer(t, conf)
	t.Cleanup(func() { killServer(p.server) })
	connect := func(name string) *nats.Conn {
		nc, err := stream.Connect(p.url, name, zerolog.Nop())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(nc.Close)
		return nc
	}
	js, err := jetstream.New(connect("setup"))
	if err != nil {
		t.Fatal(err)
	}
	eventually.True(t, "the server is set up", func() bool {
		step, cancel := context.WithTimeout(ctx, 30*time.Second)
		defer cancel()
		return stream.Ensure(step, js, stream.Topology{FramesMaxBytes: 256 << 20}) == nil
	})
	in := stream.NewInstallation(js, n)
	detectors, err := in.Detectors(ctx)
	if err != nil {
		t.Fatal(err)
	}
	reg, err := in.Registry(ctx)
	if err != nil {
		t.Fatal(err)
	}
	name := func(i int) string { return fmt.Sprint("d", i/each) }
	for i := 0; i < cameras; i += each {
		if _, err := detectors.Create(ctx, stream.Detector{Name: name(i)}); err != nil {
			t.Fatal(err)
		}
		digest, err := reg.Put(ctx, name(i), streamtest.WriteRelease(t, streamtest.Fake{}))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := reg.Promote(ctx, name(i), digest, registry.Change{By: "test"}); err != nil {
			t.Fatal(err)
		}
	}
	p.worker = p.child("nothing", "NEARMISS_TEST_DIR="+dir)
	page := listenAnywhere(t)
	_ = page.Close()
	p.console = p.child("console", "NEARMISS_TEST_LISTEN="+page.Addr().String())
	s, err := steward.New(steward.Config{FramesMaxBytes: 256 << 20}, connect("steward"), streamtest.Log(t))
	if err != nil {
		t.Fatal(err)
	}
	brokertest.Run(t, "steward", s.Run)
	p.listen(connect("listener"))

	var every atomic.Int64
	every.Store(int64(time.Second))
	var all sync.WaitGroup
	work, stop := context.WithCancel(ctx)
	defer all.Wait()
	defer stop()
	eventually.True(t, "the console serves", func() bool {
		a, err := http.Get("http://" + page.Addr().String() + "/api/v1/status")
		if err != nil {
			return false
		}
		_ = a.Body.Close()
		return a.StatusCode == http.StatusOK
	})
	for range browsers {
		all.Go(func() { p.browse(work, page.Addr().String()) })
	}
	p.measure(fmt.Sprintf("no camera, %d detectors", (cameras+each-1)/each), 5*time.Second, "")
	on := 0
	more := func(upTo int) {
		for ; on < upTo; on++ {
			cjs, err := jetstream.New(connect("camera"))
			if err != nil {
				t.Fatal(err)
			}
			i := on
			all.Go(func() {
				p.camera(work, cjs, name(i), fmt.Sprint("c", i), &every, time.Duration(i%997)*time.Millisecond)
			})
		}
	}
	for _, part := range []int{10, 3} {
		more(cameras / part)
		p.measure(fmt.Sprintf("%d cameras at 1/s", on), d, "")
	}
	flood, end := context.WithCancel(work)
	fjs, err := jetstream.New(connect("flood"))
	if err != nil {
		t.Fatal(err)
	}
	var fast atomic.Int64
	for i := range 32 {
		all.Go(func() { p.camera(flood, fjs, name(0), fmt.Sprint("flood", i), &fast, 0) })
	}
	p.measure(fmt.Sprintf("%d cameras at 1/s and a flood for one detector; delays are the others'", on), d, name(0))
	end()
	more(cameras)
	p.measure(fmt.Sprintf("%d cameras at 1/s", on), d, "")
	for _, f := range []int{2, 4} {
		every.Store(int64(time.Second) / int64(f))
		p.measure(fmt.Sprintf("%d cameras at %d/s", on, f), d, "")
	}
	t.Logf("%d frames acknowledged, %d refused", p.sent.Load(), p.failed.Load())
}
