package stream_test

import (
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/rs/zerolog"

	"github.com/nearmiss/nearmiss/internal/brokertest"
	"github.com/nearmiss/nearmiss/stream"
	"github.com/nearmiss/nearmiss/stream/camera"
	"github.com/nearmiss/nearmiss/stream/internal/streamtest"
	"github.com/nearmiss/nearmiss/stream/registry"
	"github.com/nearmiss/nearmiss/stream/worker"
)

// childServer runs a nats-server by the configuration that the test has written.
func childServer(ctx context.Context, log zerolog.Logger) int {
	o, err := server.ProcessConfigFile(os.Getenv("NEARMISS_TEST_CONF"))
	if err != nil {
		log.Error().Err(err).Msg("child")
		return 1
	}
	o.NoSigs = true
	s, err := server.NewServer(o)
	if err != nil {
		log.Error().Err(err).Msg("child")
		return 1
	}
	s.Start()
	<-ctx.Done()
	s.Shutdown()
	return 0
}

// cluster are three nats-server processes whose links can be cut.
type cluster struct {
	t       *testing.T
	clients []string // host:port
	confs   []string
	procs   []*exec.Cmd
	links   map[[2]int]*link // from, to
}

// link carries the connection of one server to another.
type link struct {
	l  net.Listener
	to string

	mu    sync.Mutex
	cut   bool
	conns map[net.Conn]struct{}
}

func newLink(t *testing.T, to string) *link {
	t.Helper()
	k := &link{l: listenAnywhere(t), to: to, conns: map[net.Conn]struct{}{}}
	go k.run()
	t.Cleanup(func() { _ = k.l.Close(); k.set(true) })
	return k
}

func (k *link) run() {
	for {
		in, err := k.l.Accept()
		if err != nil {
			return
		}
		out, err := net.Dial("tcp", k.to)
		k.mu.Lock()
		if err != nil || k.cut {
			k.mu.Unlock()
			_ = in.Close()
			if err == nil {
				_ = out.Close()
			}
			continue
		}
		k.conns[in], k.conns[out] = struct{}{}, struct{}{}
		k.mu.Unlock()
		for _, c := range [][2]net.Conn{{in, out}, {out, in}} {
			go func() {
				_, _ = io.Copy(c[0], c[1])
				_, _ = c[0].Close(), c[1].Close()
				k.mu.Lock()
				delete(k.conns, c[0])
				k.mu.Unlock()
			}()
		}
	}
}

func (k *link) set(cut bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.cut = cut; cut {
		for c := range k.conns {
			_ = c.Close()
		}
	}
}

func newCluster(t *testing.T) *cluster {
	t.Helper()
	var free []net.Listener
	for range 6 {
		free = append(free, listenAnywhere(t))
	}
	addr := func(i int) string { return free[i].Addr().String() }
	c := &cluster{t: t, links: map[[2]int]*link{}, procs: make([]*exec.Cmd, 3)}
	dir := t.TempDir()
	for i := range 3 {
		c.clients = append(c.clients, addr(i))
		var routes []string
		for j := range 3 {
			if i == j {
				continue
			}
			k := newLink(t, addr(3+j))
			c.links[[2]int{i, j}] = k
			routes = append(routes, strconv.Quote("nats://"+k.l.Addr().String()))
		}
		conf := fmt.Sprintf(`server_name: n%d
listen: %q
max_payload: 8MB
jetstream { store_dir: %q, max_file_store: 8GB, max_buffered_size: 512MB, sync_interval: "10s" }
cluster { name: nearmiss, listen: %q, no_advertise: true, pool_size: -1, routes: [%s] }
`, i, addr(i), filepath.Join(dir, fmt.Sprint("n", i)), addr(3+i), strings.Join(routes, ", "))
		c.confs = append(c.confs, filepath.Join(dir, fmt.Sprintf("n%d.conf", i)))
		if err := os.WriteFile(c.confs[i], []byte(conf), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for _, l := range free {
		_ = l.Close()
	}
	for i := range 3 {
		c.start(i)
	}
	t.Cleanup(func() {
		for i := range 3 {
			c.kill(i)
		}
	})
	return c
}

func (c *cluster) start(i int) {
	c.t.Helper()
	c.procs[i] = startServer(c.t, c.confs[i])
}

// startServer runs a nats-server in a process of its own.
func startServer(t *testing.T, conf string) *exec.Cmd {
	t.Helper()
	p := exec.Command(os.Args[0])
	p.Env = append(os.Environ(), "NEARMISS_TEST_ROLE=nats", "NEARMISS_TEST_CONF="+conf)
	p.Stderr = os.Stderr
	if err := p.Start(); err != nil {
		t.Fatal(err)
	}
	return p
}

// kill ends a server as a power cut does.
func (c *cluster) kill(i int) {
	killServer(c.procs[i])
	c.procs[i] = nil
}

func killServer(p *exec.Cmd) {
	if p != nil {
		_ = p.Process.Kill()
		_ = p.Wait()
	}
}

// listenAnywhere finds a free port.
func listenAnywhere(t *testing.T) net.Listener {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func (c *cluster) url() string { return "nats://" + strings.Join(c.clients, ",nats://") }

// strange finds everything anomalous, so that each frame must have its event.
type strange struct{}

func (strange) Score(_ context.Context, images [][]byte) ([]worker.Verdict, error) {
	all := make([]worker.Verdict, len(images))
	for i := range all {
		all[i] = worker.Verdict{Score: 9, Threshold: 1, PValue: .01, Anomalous: true}
	}
	return all, nil
}

func (strange) Close() error { return nil }

// TestAClusterLosesNothing: three servers, three copies; servers are killed one at a
// time and links between them cut while a camera publishes and workers score. It
// takes minutes: NEARMISS_TEST_CLUSTER says how many frames (make cluster-test).
func TestAClusterLosesNothing(t *testing.T) {
	frames := number("NEARMISS_TEST_CLUSTER", 0)
	if frames == 0 {
		t.Skip("takes minutes: make cluster-test")
	}
	kills, cuts := number("NEARMISS_TEST_KILLS", 30), number("NEARMISS_TEST_CUTS", 10)
	c := newCluster(t)
	ctx, n := t.Context(), stream.Names{}
	nc, err := stream.Connect(c.url(), "test", zerolog.Nop())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	long := func(what string, ok func(context.Context) bool) {
		t.Helper()
		for begin := time.Now(); ; time.Sleep(200 * time.Millisecond) {
			step, cancel := context.WithTimeout(ctx, 10*time.Second)
			done := ok(step)
			cancel()
			if done {
				return
			}
			if time.Since(begin) > 5*time.Minute {
				t.Fatalf("not within 5 minutes: %s", what)
			}
		}
	}
	begin := time.Now()
	long("setup", func(context.Context) bool {
		step, cancel := context.WithTimeout(ctx, 15*time.Second) // it goes on where it ended
		defer cancel()
		err := stream.Ensure(step, js, stream.Topology{Replicas: 3})
		if err != nil {
			t.Logf("setup: %v", err)
		}
		return err == nil
	})
	t.Logf("set up with three copies after %v", time.Since(begin).Round(100*time.Millisecond))
	in := stream.NewInstallation(js, n)
	detectors, err := in.Detectors(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := detectors.Create(ctx, stream.Detector{Name: "bolts", NoEvidence: true}); err != nil {
		t.Fatal(err)
	}
	reg, err := in.Registry(ctx)
	if err != nil {
		t.Fatal(err)
	}
	digest, err := reg.Put(ctx, "bolts", streamtest.WriteRelease(t, streamtest.Fake{}))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := reg.Promote(ctx, "bolts", digest, registry.Change{By: "test"}); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		wc, err := stream.Connect(c.url(), "worker", zerolog.Nop())
		if err != nil {
			t.Fatal(err)
		}
		w, err := worker.New(worker.Config{CacheDir: t.TempDir()}, wc,
			func(context.Context, string) (worker.Scorer, error) { return strange{}, nil }, streamtest.Log(t))
		if err != nil {
			t.Fatal(err)
		}
		brokertest.Run(t, "worker", func(ctx context.Context) error { defer wc.Close(); return w.Run(ctx) })
	}
	cc, err := stream.Connect(c.url(), "camera", zerolog.Nop())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(cc.Close)
	cjs, err := jetstream.New(cc)
	if err != nil {
		t.Fatal(err)
	}
	p, err := camera.NewPublisher(camera.Config{Names: n, Detector: "bolts", Camera: "one"}, cjs, zerolog.Nop())
	if err != nil {
		t.Fatal(err)
	}
	published := make(chan error, 1)
	go func() {
		published <- p.Run(ctx, &camera.Generated{Count: frames, FPS: float64(number("NEARMISS_TEST_FPS", 50)), Make: func(i int) ([]byte, string, error) {
			return append(make([]byte, 20_000), fmt.Sprint(i)...), "", nil
		}})
	}()

	// well: all three servers are there and every copy of the frames is up to date.
	well := func(step context.Context) bool {
		for _, name := range []string{n.FramesStream(), n.EventsStream()} {
			s, err := js.Stream(step, name)
			if err != nil || s.CachedInfo().Cluster == nil || s.CachedInfo().Cluster.Leader == "" || len(s.CachedInfo().Cluster.Replicas) != 2 {
				return false
			}
			for _, r := range s.CachedInfo().Cluster.Replicas {
				if r.Offline || !r.Current {
					return false
				}
			}
		}
		return true
	}
	leader := func() int {
		who := -1
		long("a leader", func(step context.Context) bool {
			s, err := js.Stream(step, n.FramesStream())
			if err != nil || s.CachedInfo().Cluster == nil {
				return false
			}
			i, err := strconv.Atoi(strings.TrimPrefix(s.CachedInfo().Cluster.Leader, "n"))
			who = i
			return err == nil
		})
		return who
	}
	rnd := rand.New(rand.NewPCG(1, 2))
	idle := 0 // kills and cuts after the last frame was published
	for i := range kills + cuts {
		long("all copies are up to date", well)
		who := leader()
		idle += len(published)
		if i%max((kills+cuts)/max(cuts, 1), 1) == 0 && i/max((kills+cuts)/max(cuts, 1), 1) < cuts {
			other := (who + 1 + rnd.IntN(2)) % 3
			for _, k := range []*link{c.links[[2]int{who, other}], c.links[[2]int{other, who}]} {
				k.set(true)
			}
			time.Sleep(3 * time.Second)
			for _, k := range []*link{c.links[[2]int{who, other}], c.links[[2]int{other, who}]} {
				k.set(false)
			}
			continue
		}
		if i%3 == 2 { // a follower
			who = (who + 1 + rnd.IntN(2)) % 3
		}
		c.kill(who)
		time.Sleep(time.Duration(500+rnd.IntN(2000)) * time.Millisecond)
		c.start(who)
	}
	if err := <-published; err != nil {
		t.Fatal(err)
	}
	said := time.Now()
	long("every frame is scored", func(step context.Context) bool {
		s, err := js.Stream(step, n.FramesStream())
		if err != nil {
			return false
		}
		if left := s.CachedInfo().State.Msgs; left > 0 {
			if c, err := s.Consumer(step, "frames-bolts"); time.Since(said) > 30*time.Second {
				said = time.Now()
				if err != nil {
					t.Logf("%d frames wait: %v", left, err)
				} else {
					i := c.CachedInfo()
					t.Logf("%d frames wait: %d never delivered, %d in hand, %d requests", left, i.NumPending, i.NumAckPending, i.NumWaiting)
				}
			}
			return false
		}
		return true
	})
	if got := p.Stats().Published; got != uint64(frames) {
		t.Errorf("%d of %d frames were published", got, frames)
	}
	// The last kill may have been a moment ago.
	long("all copies are up to date", well)
	var dead jetstream.Stream
	long("the dead letters", func(step context.Context) bool {
		dead, err = js.Stream(step, n.DeadStream())
		return err == nil
	})
	if m := dead.CachedInfo().State.Msgs; m != 0 {
		t.Errorf("%d dead letters", m)
	}
	events := map[string]int{}
	var stored []time.Time
	cons, err := js.OrderedConsumer(ctx, n.EventsStream(), jetstream.OrderedConsumerConfig{FilterSubjects: []string{n.Events("bolts", "one", stream.KindAnomaly)}, HeadersOnly: true})
	if err != nil {
		t.Fatal(err)
	}
	s, err := js.Stream(ctx, n.EventsStream())
	if err != nil {
		t.Fatal(err)
	}
	info, err := s.Info(ctx, jetstream.WithSubjectFilter(n.Events("bolts", "one", stream.KindAnomaly)))
	if err != nil {
		t.Fatal(err)
	}
	for total := info.State.Subjects[n.Events("bolts", "one", stream.KindAnomaly)]; uint64(len(stored)) < total; {
		m, err := cons.Next(jetstream.FetchMaxWait(60 * time.Second))
		if err != nil {
			t.Fatal(err)
		}
		meta, err := m.Metadata()
		if err != nil {
			t.Fatal(err)
		}
		events[m.Headers().Get("ce-subject")]++
		stored = append(stored, meta.Timestamp)
	}
	if len(events) != frames || len(stored) != frames {
		t.Errorf("%d events of %d frames, %d were published: lost %d, twice %d", len(stored), len(events), frames, frames-len(events), len(stored)-len(events))
	}
	slices.SortFunc(stored, time.Time.Compare)
	var gaps []time.Duration
	for i := 1; i < len(stored); i++ {
		if d := stored[i].Sub(stored[i-1]); d > time.Second {
			gaps = append(gaps, d.Round(100*time.Millisecond))
		}
	}
	slices.Sort(gaps)
	t.Logf("%d frames, %d kills, %d cuts (%d of both after the last frame): %d pauses above 1 s: %v", frames, kills, cuts, idle, len(gaps), gaps)
	if len(gaps) > 0 {
		t.Logf("half of them within %v, nine of ten within %v, the longest %v", gaps[len(gaps)/2], gaps[len(gaps)*9/10], gaps[len(gaps)-1])
	}
}
