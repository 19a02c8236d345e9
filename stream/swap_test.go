package stream_test

import (
	"context"
	"fmt"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/nearmiss/nearmiss/internal/eventually"
	"github.com/nearmiss/nearmiss/stream"
	"github.com/nearmiss/nearmiss/stream/internal/streamtest"
	"github.com/nearmiss/nearmiss/stream/registry"
	"github.com/nearmiss/nearmiss/stream/worker"
)

// TestAHundredHotSwapsUnderLoad exchanges releases while frames are scored. The
// threshold of a release names it, so that a score of one release with another
// one's digest would show.
func TestAHundredHotSwapsUnderLoad(t *testing.T) {
	const swaps, releases = 100, 4
	r := streamtest.New(t, stream.Topology{})
	digests, thresholds := make([]string, releases), map[string]float64{}
	for i := range releases {
		f := streamtest.Fake{Name: fmt.Sprint(i), Threshold: 0.5 + float64(i)/10, Delay: time.Millisecond}
		digests[i] = r.Put("bolts", f)
		thresholds[digests[i]] = f.Threshold
	}
	promote := func(i int) {
		if _, err := r.Registry.Promote(t.Context(), "bolts", digests[i%releases], registry.Change{}); err != nil {
			t.Fatal(err)
		}
	}
	promote(0)
	got := r.Scores()
	var open, most int
	var mu sync.Mutex
	loader := func(ctx context.Context, dir string) (worker.Scorer, error) {
		s, err := streamtest.LoadFake(ctx, dir)
		if err != nil {
			return nil, err
		}
		mu.Lock()
		defer mu.Unlock()
		open++
		most = max(most, open)
		return &counted{s, func() { mu.Lock(); open--; mu.Unlock() }, make([]byte, 1<<20)}, nil
	}
	w, stop := r.Worker(worker.Config{BatchSize: 8}, loader)

	eventually.True(t, "the first release is in service", func() bool { return w.Stats().Swaps == 1 })

	// A camera publishes all the while.
	ctx, cancel := context.WithCancel(t.Context())
	var camera sync.WaitGroup
	published := 0
	camera.Go(func() {
		for ctx.Err() == nil {
			m, err := stream.Frame{Detector: "bolts", Camera: "left", ID: fmt.Sprint("f", published), Image: streamtest.Image(float64(published%100) / 100)}.Message(r.Names)
			if err != nil {
				t.Error(err)
				return
			}
			if _, err := r.JS.PublishMsg(context.WithoutCancel(ctx), m); err != nil {
				t.Error(err)
				return
			}
			published++
		}
	})
	var memory []uint64
	for i := 1; i <= swaps; i++ {
		before := w.Stats().Scored
		promote(i)
		eventually.True(t, "the release is in service", func() bool { return w.Stats().Swaps == uint64(i+1) })
		eventually.True(t, "it scores", func() bool { return w.Stats().Scored > before })
		if i%20 == 0 {
			runtime.GC()
			var m runtime.MemStats
			runtime.ReadMemStats(&m)
			memory = append(memory, m.HeapInuse>>20)
		}
	}
	cancel()
	camera.Wait()
	eventually.True(t, "every frame is scored", func() bool { return len(got.ByFrame()) == published })
	stop()

	var pause time.Duration
	var last time.Time
	used := map[string]int{}
	all := got.InOrder()
	for _, e := range all {
		used[e.Release]++
		if want, ok := thresholds[e.Release]; !ok || *e.Threshold != want {
			t.Errorf("frame %s: threshold %v with release %s", e.FrameID, *e.Threshold, e.Release)
		}
		if !last.IsZero() {
			pause = max(pause, e.ScoredAt.Sub(last))
		}
		last = e.ScoredAt
	}
	if len(all) != published {
		t.Errorf("%d scores of %d frames", len(all), published)
	}
	if len(used) != releases {
		t.Errorf("scores of %d releases", len(used))
	}
	if open != 0 || most > 2 {
		t.Errorf("%d releases are still open, %d were at once", open, most)
	}
	t.Logf("%d swaps under %d frames: longest pause between scores %v; heap in use after each 20 swaps %v MiB", swaps, published, pause.Round(time.Millisecond), memory)
}

// counted knows how many scorers are open, and is large enough to be missed.
type counted struct {
	worker.Scorer
	closed  func()
	ballast []byte
}

func (c *counted) Close() error {
	c.closed()
	c.ballast = nil
	return c.Scorer.Close()
}

// TestKilledTrainersFinishTheirJob kills the trainer ten times: the job goes on
// from its last checkpoint and makes one release, and nothing is left behind.
func TestKilledTrainersFinishTheirJob(t *testing.T) {
	r := streamtest.New(t, stream.Topology{})
	r.Detector(stream.Detector{Name: "bolts"})
	normals := r.In.Normals()
	for i := range 5 {
		if _, err := normals.Add(t.Context(), stream.Normal{Detector: "bolts", Image: streamtest.Image(float64(i) / 10)}); err != nil {
			t.Fatal(err)
		}
	}
	const kills, steps = 10, 40
	env := fmt.Sprint("NEARMISS_TEST_STEPS=", steps)
	if _, err := r.Jobs().Request(t.Context(), stream.TrainRequest{Job: "job", Detector: "bolts", Promote: true}); err != nil {
		t.Fatal(err)
	}
	trainers := []*process{startProcess(r, "trainer", env), startProcess(r, "trainer", env)}
	next := 0
	for k := range kills {
		// Kill whoever works, somewhere between two checkpoints.
		target := (k + 1) * steps / (kills + 2)
		eventually.True(t, fmt.Sprintf("step %d is done", target), func() bool {
			j, err := r.Jobs().Get(t.Context(), "job")
			return err == nil && j.CheckpointN >= target
		})
		j, err := r.Jobs().Get(t.Context(), "job")
		if err != nil {
			t.Fatal(err)
		}
		next = 0
		if j.Trainer == fmt.Sprint("pid-", trainers[1].cmd.Process.Pid) {
			next = 1
		}
		trainers[next].kill()
		trainers[next] = startProcess(r, "trainer", env)
	}
	j := r.Wait("job")
	if j.State != stream.JobDone || !j.Promoted || j.CheckpointN < steps {
		t.Errorf("%+v", j)
	}
	t.Logf("%d kills: %d checkpoints for %d steps", kills, j.CheckpointN, steps)
	for _, p := range trainers {
		if err := p.interrupt(); err != nil {
			t.Errorf("trainer: %v", err)
		}
	}
	all, err := r.Registry.List(t.Context(), "bolts")
	if err != nil || len(all) != 1 || all[0].Digest != j.Release || !all[0].Active {
		t.Errorf("releases %+v, %v", all, err)
	}
	if _, err := r.In.Collect(t.Context(), registry.CollectOptions{Grace: -1}); err != nil {
		t.Fatal(err)
	}
	store, err := r.JS.ObjectStore(t.Context(), r.Names.ArtifactsBucket())
	if err != nil {
		t.Fatal(err)
	}
	objects, err := store.List(t.Context())
	objects = slices.DeleteFunc(objects, func(i *jetstream.ObjectInfo) bool { return strings.HasPrefix(i.Name, stream.JobObjects) }) // as long as the record
	if err != nil || len(objects) != 2 {
		t.Errorf("%d objects are left, want the manifest and its file: %v", len(objects), err)
	}
	s, err := r.JS.Stream(t.Context(), r.Names.TrainingStream())
	if err != nil || s.CachedInfo().State.Msgs != 0 {
		t.Errorf("%d requests wait, %v", s.CachedInfo().State.Msgs, err)
	}
	if left, _ := os.ReadDir(r.Dir + "/scratch"); len(left) > 1 {
		t.Errorf("%d scratch folders are left", len(left)) // one, if the last to be killed died while it cleared
	}
}
