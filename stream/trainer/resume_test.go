package trainer_test

import (
	"context"
	"encoding/json"
	"path/filepath"
	"testing"
	"time"

	"github.com/nearmiss/nearmiss/internal/brokertest"
	"github.com/nearmiss/nearmiss/stream"
	"github.com/nearmiss/nearmiss/stream/broker"
	"github.com/nearmiss/nearmiss/stream/internal/streamtest"
	"github.com/nearmiss/nearmiss/stream/trainer"
)

// TestAResumedExtensionDoesNotUndoAPromotion: a trainer died between storing an
// extended release and making it active; meanwhile an operator promoted another
// release.
func TestAResumedExtensionDoesNotUndoAPromotion(t *testing.T) {
	r := streamtest.New(t, stream.Topology{})
	r.Detector(stream.Detector{Name: "bolts"})
	normals := r.In.Normals()
	seq, err := normals.Add(t.Context(), stream.Normal{Detector: "bolts", ID: "a", Image: streamtest.Image(0.95)})
	if err != nil {
		t.Fatal(err)
	}
	a := r.Release("bolts", streamtest.Fake{Name: "A"})
	extended := r.Put("bolts", streamtest.Fake{Name: "A", Normal: [][]byte{streamtest.Image(0.95)}}) // made from A, stored
	r.Trainer(trainer.Config{}, streamtest.FakeTrainer{T: t})
	kv, err := r.JS.KeyValue(t.Context(), r.Names.JobsBucket())
	if err != nil {
		t.Fatal(err)
	}
	resume := func(name, base string) stream.Job {
		t.Helper()
		req := stream.TrainRequest{Job: name, Detector: "bolts", Extend: []uint64{seq}, Promote: true, At: time.Now()}
		data, err := json.Marshal(stream.Job{TrainRequest: req, State: stream.JobRunning, Trainer: "dead", Attempts: 1, Release: extended, Base: base})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := kv.Create(t.Context(), req.Job, data); err != nil {
			t.Fatal(err)
		}
		if data, err = json.Marshal(req); err != nil {
			t.Fatal(err)
		}
		r.PublishRaw(r.Names.Train("bolts"), string(data))
		return r.Wait(req.Job)
	}
	active := func() string {
		t.Helper()
		now, err := r.Registry.Active(t.Context(), "bolts")
		if err != nil {
			t.Fatal(err)
		}
		return now.Release
	}
	if job := resume("nothing-in-between", a); job.State != stream.JobDone || !job.Promoted || job.Release != extended || active() != extended {
		t.Errorf("with nothing in between: %+v; %s is active", job, active())
	}
	for name, base := range map[string]string{"with-its-base": a, "of-an-older-version": ""} {
		b := r.Release("bolts", streamtest.Fake{Name: "B" + name})
		job := resume(name, base)
		now := active()
		if job.State != stream.JobDone || !job.Promoted || job.Base != b || now == extended || now == b || now != job.Release {
			t.Errorf("%s: %+v; %.8s is active, the operator's was %.8s, the old extension %.8s", name, job, now, b, extended)
		}
	}
}

// TestProgressDoesNotWaitForTheBroker: a training goes on at its own pace while
// the broker is away.
func TestProgressDoesNotWaitForTheBroker(t *testing.T) {
	t.Parallel()
	r := &streamtest.Rig{T: t, Dir: t.TempDir()}
	cfg := broker.Config{Port: -1, StoreDir: filepath.Join(r.Dir, "broker")}
	b, stop := brokertest.Start(t, cfg)
	r.URL = b.ClientURL()
	r.Open(stream.Topology{})
	r.Detector(stream.Detector{Name: "bolts"})
	if _, err := r.In.Normals().Add(t.Context(), stream.Normal{Detector: "bolts", Image: streamtest.Image(0.1)}); err != nil {
		t.Fatal(err)
	}
	slowest := make(chan time.Duration, 8)
	r.Trainer(trainer.Config{Drain: time.Second, RetryDelay: time.Millisecond}, streamtest.FakeTrainer{T: t, OnTrain: func(_ context.Context, task *trainer.Task) error {
		stop()
		var most time.Duration
		for begin := time.Now(); time.Since(begin) < 2500*time.Millisecond; time.Sleep(10 * time.Millisecond) {
			at := time.Now()
			task.Report(stream.Progress{Phase: "train", Step: 1})
			most = max(most, time.Since(at))
		}
		select {
		case slowest <- most:
		default:
		}
		return nil
	}})
	if _, err := r.Jobs().Request(t.Context(), stream.TrainRequest{Job: "j", Detector: "bolts", Promote: true}); err != nil {
		t.Fatal(err)
	}
	if most := <-slowest; most > 2*time.Second { // one that waits for the broker takes five
		t.Errorf("one report took %v", most)
	}
}
