package stream_test

import (
	"context"
	"encoding/json"
	"path/filepath"
	"testing"
	"time"

	"github.com/nearmiss/nearmiss/internal/brokertest"
	"github.com/nearmiss/nearmiss/stream"
	"github.com/nearmiss/nearmiss/stream/broker"
)

// TestAResumedExtensionDoesNotUndoAPromotion: a trainer died between storing an
// extended release and making it active; meanwhile an operator promoted another
// release.
func TestAResumedExtensionDoesNotUndoAPromotion(t *testing.T) {
	r := newRig(t, stream.Topology{})
	r.detector(stream.Detector{Name: "bolts"})
	normals := r.in.Normals()
	seq, err := normals.Add(t.Context(), stream.Normal{Detector: "bolts", ID: "a", Image: image(0.95)})
	if err != nil {
		t.Fatal(err)
	}
	a := r.release("bolts", fake{Name: "A"})
	extended := r.put("bolts", fake{Name: "A", Known: [][]byte{image(0.95)}}) // made from A, stored
	r.trainer(stream.TrainerConfig{}, fakeTrainer{t: t})
	kv, err := r.js.KeyValue(t.Context(), r.names.JobsBucket())
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
		r.raw(r.names.Train("bolts"), string(data))
		return r.wait(req.Job)
	}
	active := func() string {
		t.Helper()
		now, err := r.reg.Active(t.Context(), "bolts")
		if err != nil {
			t.Fatal(err)
		}
		return now.Release
	}
	if job := resume("nothing-in-between", a); job.State != stream.JobDone || !job.Promoted || job.Release != extended || active() != extended {
		t.Errorf("with nothing in between: %+v; %s is active", job, active())
	}
	for name, base := range map[string]string{"with-its-base": a, "of-an-older-version": ""} {
		b := r.release("bolts", fake{Name: "B" + name})
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
	r := &rig{t: t, dir: t.TempDir()}
	cfg := broker.Config{Port: -1, StoreDir: filepath.Join(r.dir, "broker")}
	b, stop := brokertest.Start(t, cfg)
	r.url = b.ClientURL()
	r.open(stream.Topology{})
	r.detector(stream.Detector{Name: "bolts"})
	if _, err := r.in.Normals().Add(t.Context(), stream.Normal{Detector: "bolts", Image: image(0.1)}); err != nil {
		t.Fatal(err)
	}
	slowest := make(chan time.Duration, 8)
	r.trainer(stream.TrainerConfig{Drain: time.Second, RetryDelay: time.Millisecond}, fakeTrainer{t: t, train: func(_ context.Context, task *stream.Task) error {
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
	if _, err := r.jobs().Request(t.Context(), stream.TrainRequest{Job: "j", Detector: "bolts", Promote: true}); err != nil {
		t.Fatal(err)
	}
	if most := <-slowest; most > 2*time.Second { // one that waits for the broker takes five
		t.Errorf("one report took %v", most)
	}
}
