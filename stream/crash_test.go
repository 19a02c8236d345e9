package stream_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"github.com/nearmiss/nearmiss/internal/brokertest"
	"github.com/nearmiss/nearmiss/internal/eventually"
	"github.com/nearmiss/nearmiss/stream"
	"github.com/nearmiss/nearmiss/stream/broker"
	"github.com/nearmiss/nearmiss/stream/camera"
	"github.com/nearmiss/nearmiss/stream/internal/streamtest"
	"github.com/nearmiss/nearmiss/stream/trainer"
	"github.com/nearmiss/nearmiss/stream/worker"
)

// child is what the test binary does when a test starts it as another process.
func child(role string) int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	fmt.Println("an interrupt is heard from now on")
	log := zerolog.New(os.Stderr).Level(zerolog.WarnLevel)
	switch role {
	case "broker":
		return childBroker(ctx, log)
	case "nats":
		return childServer(ctx, log)
	}
	nc, err := stream.Connect(os.Getenv("NEARMISS_TEST_URL"), role, log)
	if err != nil {
		log.Error().Err(err).Msg("child")
		return 1
	}
	defer nc.Close()
	dir := os.Getenv("NEARMISS_TEST_DIR")
	switch role {
	case "worker":
		w, err := worker.New(worker.Config{CacheDir: filepath.Join(dir, "cache"), AckWait: childAckWait()}, nc, streamtest.LoadFake, log)
		if err == nil {
			err = w.Run(ctx)
		}
		if err != nil {
			log.Error().Err(err).Msg("child")
			return 1
		}
	case "nothing":
		return childNothing(ctx, nc, dir, log)
	case "console":
		return childConsole(ctx, nc, log)
	case "trainer":
		steps, _ := strconv.Atoi(os.Getenv("NEARMISS_TEST_STEPS"))
		w, err := trainer.New(trainer.Config{
			Name: fmt.Sprint("pid-", os.Getpid()), CacheDir: filepath.Join(dir, "cache"), ScratchDir: filepath.Join(dir, "scratch"), AckWait: 500 * time.Millisecond,
		}, nc, stepping(steps), log)
		if err == nil {
			err = w.Run(ctx)
		}
		if err != nil {
			log.Error().Err(err).Msg("child")
			return 1
		}
	default:
		log.Error().Str("role", role).Msg("child has an unknown role")
		return 2
	}
	return 0
}

// childAckWait is a second unless the test says otherwise.
func childAckWait() time.Duration {
	if d, err := time.ParseDuration(os.Getenv("NEARMISS_TEST_ACKWAIT")); err == nil {
		return d
	}
	return time.Second
}

// childBroker serves the store of the test on any free port, and says where.
func childBroker(ctx context.Context, log zerolog.Logger) int {
	b, err := broker.New(broker.Config{Port: -1, StoreDir: filepath.Join(os.Getenv("NEARMISS_TEST_DIR"), "broker"), Free: brokertest.Roomy}, log)
	if err == nil {
		go func() {
			<-b.Ready()
			fmt.Println(b.ClientURL())
		}()
		err = b.Run(ctx)
	}
	if err != nil {
		log.Error().Err(err).Msg("child")
		return 1
	}
	return 0
}

// stepping is a trainer of so many steps, with a checkpoint after each.
type stepping int

func (n stepping) Train(ctx context.Context, task *trainer.Task) (trainer.Result, error) {
	if n < 0 {
		return trainer.Result{}, n.die(ctx, task)
	}
	step := 0
	if task.Checkpoint != "" {
		b, err := os.ReadFile(task.Checkpoint)
		if err != nil {
			return trainer.Result{}, err
		}
		if step, err = strconv.Atoi(string(b)); err != nil {
			return trainer.Result{}, err
		}
	}
	for step < int(n) {
		step++
		task.Report(stream.Progress{Phase: "fit", Step: step, Steps: int(n)})
		path := filepath.Join(task.Dir, "checkpoint")
		if err := os.WriteFile(path, []byte(strconv.Itoa(step)), 0o644); err != nil {
			return trainer.Result{}, err
		}
		if err := task.SaveCheckpoint(ctx, path); err != nil {
			return trainer.Result{}, err
		}
	}
	out := filepath.Join(task.Dir, "release")
	return trainer.Result{Dir: out}, streamtest.MakeRelease(out, streamtest.Fake{Name: task.DataDigest})
}

// die saves what it has, the same each time, and kills its process.
func (stepping) die(ctx context.Context, task *trainer.Task) error {
	dir := filepath.Join(task.Dir, "steps")
	if _, err := task.RestoreFolder(dir); err != nil {
		return err
	}
	if err := errors.Join(os.MkdirAll(dir, 0o755), os.WriteFile(filepath.Join(dir, "seed"), []byte("7"), 0o644), task.SaveFolder(ctx, dir)); err != nil {
		return err
	}
	return syscall.Kill(os.Getpid(), syscall.SIGKILL)
}

func (stepping) Extend(context.Context, *trainer.Task) (trainer.Result, error) {
	return trainer.Result{}, errors.New("not here")
}

func (stepping) Retract(context.Context, *trainer.Task) (trainer.Result, error) {
	return trainer.Result{}, errors.New("not here")
}

func (stepping) Readjust(context.Context, *trainer.Task) (trainer.Result, error) {
	return trainer.Result{}, errors.New("not here")
}

// process is this test binary in another role.
type process struct {
	cmd  *exec.Cmd
	says *bufio.Reader
}

func startProcess(r *streamtest.Rig, role string, env ...string) *process {
	r.T.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), append([]string{
		"NEARMISS_TEST_ROLE=" + role, "NEARMISS_TEST_URL=" + r.URL, "NEARMISS_TEST_DIR=" + r.Dir,
	}, env...)...)
	cmd.Stderr = os.Stderr
	says, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		r.T.Fatal(err)
	}
	p := &process{cmd: cmd, says: bufio.NewReader(says)}
	r.T.Cleanup(p.kill)
	return p
}

// kill sends SIGKILL and waits for the end.
func (p *process) kill() {
	if p.cmd.ProcessState == nil {
		_ = p.cmd.Process.Signal(syscall.SIGKILL)
		_ = p.cmd.Wait()
	}
}

// interrupt asks the process to end, once it hears that, and returns how it did.
func (p *process) interrupt() error {
	if _, err := p.says.ReadString('\n'); err != nil {
		return err
	}
	if err := p.cmd.Process.Signal(os.Interrupt); err != nil {
		return err
	}
	return p.cmd.Wait()
}

func TestKilledWorkersLoseNoFrameAndRepeatNoEvent(t *testing.T) {
	const frames, kills = 2000, 20
	r := streamtest.New(t, stream.Topology{})
	r.Release("bolts", streamtest.Fake{Name: "one", Threshold: 0.9, Delay: 2 * time.Millisecond})
	got := r.Scores()
	want := map[string]bool{} // frames that are anomalous
	for i := range frames {
		id := fmt.Sprint("f", i)
		n := float64(i%10) / 10
		if i%10 == 9 {
			n, want[id] = 0.95, true
		}
		// Each image is another, so that each piece of evidence is.
		r.Publish(stream.Frame{Detector: "bolts", Camera: fmt.Sprint("c", i%3), ID: id, Image: streamtest.Image(n + float64(i)/1e6)})
	}
	rng := rand.New(rand.NewPCG(1, 2))
	workers := []*process{startProcess(r, "worker"), startProcess(r, "worker")}
	for k := range kills {
		target := frames * (k + 1) / (kills + 2)
		eventually.True(t, fmt.Sprintf("%d frames are scored", target), func() bool { return len(got.ByFrame()) >= target })
		i := rng.IntN(len(workers))
		workers[i].kill()
		workers[i] = startProcess(r, "worker")
	}
	eventually.True(t, "every frame is scored", func() bool { return len(got.ByFrame()) == frames })
	eventually.True(t, "the queue is empty", func() bool { return r.Waiting() == 0 })
	for _, w := range workers {
		if err := w.interrupt(); err != nil {
			t.Errorf("worker: %v", err)
		}
	}
	again := 0
	for _, s := range got.ByFrame() {
		again += len(s) - 1
	}
	cons, err := r.JS.Consumer(t.Context(), r.Names.FramesStream(), "frames-bolts")
	if err != nil {
		t.Fatal(err)
	}
	delivered := cons.CachedInfo().Delivered.Consumer
	t.Logf("%d kills: %d of %d frames were delivered again, %d scored again", kills, delivered-frames, frames, again)
	if delivered < frames+kills/2 {
		t.Errorf("only %d frames were under way when their worker was killed: the test shows little", delivered-frames)
	}
	events := map[string]int{}
	for _, e := range r.Events() {
		events[e.FrameID]++
		if !want[e.FrameID] || e.Kind != stream.KindAnomaly {
			t.Errorf("event of %s: %+v", e.FrameID, e)
		}
	}
	for id := range want {
		if events[id] != 1 {
			t.Errorf("frame %s has %d events, want 1", id, events[id])
		}
	}
	if dead := r.Stored(r.Names.DeadStream()); len(dead) > 0 {
		t.Errorf("%d dead letters, first: %v", len(dead), dead[0].Header)
	}
}

// TestAKilledBrokerLosesNoFrameAndRepeatsNoEvent kills the broker while a camera
// publishes and a worker scores. What the broker acknowledged it still has; what
// it did not the camera sends again.
func TestAKilledBrokerLosesNoFrameAndRepeatsNoEvent(t *testing.T) {
	const frames, kills = 600, 6
	way := brokertest.NewRelay(t, "") // to whichever broker is there, by one address
	r := &streamtest.Rig{T: t, Dir: t.TempDir(), URL: "nats://" + way.Addr()}
	start := func() *process {
		p := startProcess(r, "broker")
		_, _ = p.says.ReadString('\n') // that it hears an interrupt
		at, err := p.says.ReadString('\n')
		if err != nil {
			t.Fatal(err)
		}
		way.Lead(strings.TrimPrefix(strings.TrimSpace(at), "nats://"))
		return p
	}
	server := start()
	r.Open(stream.Topology{})
	r.Release("bolts", streamtest.Fake{Name: "one"})
	// Scores on core NATS are lost while the broker is away: the scorer itself
	// says what it has seen.
	var mu sync.Mutex
	seen := map[string]int{}
	// A kill may cost a frame a delivery, and these come so fast that one frame may
	// be under way at each.
	w, stopWorker := r.Worker(worker.Config{AckWait: time.Second, MaxDeliver: kills + 5}, streamtest.Serve(streamtest.Fake{OnScore: func(images [][]byte) error {
		mu.Lock()
		defer mu.Unlock()
		for _, b := range images {
			seen[string(b)]++
		}
		return nil
	}}))

	js := brokertest.StreamsOn(t, r.Connect())
	p, err := camera.NewPublisher(camera.Config{Detector: "bolts", Camera: "left", Run: "r"}, js, zerolog.Nop())
	if err != nil {
		t.Fatal(err)
	}
	published := make(chan error, 1)
	go func() {
		published <- p.Run(t.Context(), &camera.Generated{Count: frames, Make: func(n int) ([]byte, string, error) {
			return streamtest.Image([]float64{0.1, 0.95}[n%2] + float64(n)/1e6), "", nil
		}})
	}()
	for k := range kills {
		target := uint64(frames * (k + 1) / (kills + 2))
		eventually.True(t, fmt.Sprintf("%d frames are scored", target), func() bool { return w.Stats().Scored >= target })
		way.Lead("")
		server.kill()
		server = start()
	}
	if err := <-published; err != nil {
		t.Fatal(err)
	}
	eventually.True(t, "the queue is empty", func() bool { return r.Waiting() == 0 })
	stopWorker()
	again := 0
	for _, n := range seen {
		again += n - 1
	}
	if len(seen) != frames {
		t.Errorf("%d frames of %d were scored", len(seen), frames)
	}
	t.Logf("%d kills: %d publishes were repeated, %d frames scored again", kills, p.Stats().Repeated, again)
	events := map[string]int{}
	for _, e := range r.Events() {
		events[e.FrameID]++
	}
	if len(events) != frames/2 {
		t.Errorf("%d frames have events, want %d", len(events), frames/2)
	}
	for id, n := range events {
		if n != 1 {
			t.Errorf("frame %s has %d events", id, n)
		}
	}
}

// TestAJobThatKillsItsTrainersEndsInTheDeadLetters starts trainer after trainer.
func TestAJobThatKillsItsTrainersEndsInTheDeadLetters(t *testing.T) {
	r := streamtest.New(t, stream.Topology{})
	r.Detector(stream.Detector{Name: "bolts"})
	if _, err := r.In.Normals().Add(t.Context(), stream.Normal{Detector: "bolts", Image: streamtest.Image(0.1)}); err != nil {
		t.Fatal(err)
	}
	if _, err := r.Jobs().Request(t.Context(), stream.TrainRequest{Job: "poison", Detector: "bolts", Promote: true}); err != nil {
		t.Fatal(err)
	}
	died := 0
	ended := make(chan stream.Job, 1)
	ctx, cancel := context.WithTimeout(t.Context(), eventually.Patience) // seven programs are started meanwhile
	defer cancel()
	jobs := r.Jobs()
	go func() {
		j, _ := jobs.Wait(ctx, "poison", nil)
		ended <- j
	}()
	for over := false; !over; {
		p := startProcess(r, "trainer", "NEARMISS_TEST_STEPS=-1")
		gone := make(chan struct{})
		go func() {
			_ = p.cmd.Wait()
			close(gone)
		}()
		select {
		case <-gone:
			died++
		case j := <-ended:
			over = true
			if j.State != stream.JobFailed || j.Code != stream.CodeTraining || !strings.Contains(j.Error, "its trainer died each time") {
				t.Errorf("%+v", j)
			}
			if err := p.cmd.Process.Signal(os.Interrupt); err != nil {
				t.Error(err)
			}
			<-gone
		}
	}
	// The first saved a checkpoint, which began a new count.
	if died != 6 {
		t.Errorf("%d trainers died, want 6", died)
	}
	dead, err := r.In.DeadLetters(t.Context(), 0)
	if err != nil || len(dead) != 1 || dead[0].Code != stream.CodeTraining {
		t.Errorf("%+v, %v", dead, err)
	}
}
