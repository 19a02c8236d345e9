package trainer_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"github.com/nearmiss/nearmiss/internal/brokertest"
	"github.com/nearmiss/nearmiss/internal/eventually"
	"github.com/nearmiss/nearmiss/stream"
	"github.com/nearmiss/nearmiss/stream/broker"
	"github.com/nearmiss/nearmiss/stream/internal/streamtest"
	"github.com/nearmiss/nearmiss/stream/registry"
	"github.com/nearmiss/nearmiss/stream/trainer"
	"github.com/nearmiss/nearmiss/stream/worker"
)

// releaseEvents are the release events with a code.
func releaseEvents(r *streamtest.Rig, code string) (all []stream.Event) {
	for _, e := range r.EventsOf(stream.KindRelease) {
		if e.Code == code {
			all = append(all, e)
		}
	}
	return all
}

// TestLearningIsVisible: status counts the frames that are learned from, and
// events tell when that begins and when there are enough.
func TestLearningIsVisible(t *testing.T) {
	r := streamtest.New(t, stream.Topology{})
	r.Detector(stream.Detector{Name: "bolts", LearnFrames: 20})
	learning := func(want stream.Learning) {
		t.Helper()
		eventually.True(t, fmt.Sprintf("status says %+v", want), func() bool {
			st, err := r.In.Status(t.Context())
			if err != nil || len(st.Detectors) != 1 {
				t.Fatal(st.Detectors, err)
			}
			d := st.Detectors[0]
			return d.Learning != nil && *d.Learning == want && d.Release == ""
		})
	}
	learning(stream.Learning{Frames: 20})
	for range 2 { // which tell it once
		r.Worker(worker.Config{}, streamtest.LoadFake)
	}
	frame := 0
	publish := func(n int) {
		for range n {
			frame++
			r.Publish(stream.Frame{Detector: "bolts", Camera: "left", ID: fmt.Sprint("f", frame), Image: streamtest.Image(0.5)})
		}
	}
	publish(1)
	eventually.True(t, "it is told that learning has begun", func() bool { return len(releaseEvents(r, stream.ReleaseLearning)) == 1 })
	publish(11)
	learning(stream.Learning{Normals: 12, Frames: 20})
	publish(13)
	eventually.True(t, "it is told that there are enough", func() bool { return len(releaseEvents(r, stream.ReleaseLearned)) == 1 })
	learning(stream.Learning{Normals: 20, Frames: 20})
	r.Trainer(trainer.Config{}, streamtest.FakeTrainer{T: t, Model: func(*trainer.Task) streamtest.Fake { return streamtest.Fake{Name: "learned"} }})
	eventually.True(t, "it has a release, and learns no more", func() bool {
		st, err := r.In.Status(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return st.Detectors[0].Release != "" && st.Detectors[0].Learning == nil
	})
	if a, b := releaseEvents(r, stream.ReleaseLearning), releaseEvents(r, stream.ReleaseLearned); len(a) != 1 || len(b) != 1 || !strings.Contains(a[0].Reason, "20") {
		t.Errorf("%d events of a beginning, %d of an end", len(a), len(b))
	}
}

func TestANewDetectorLearnsFromItsFirstFramesThenScores(t *testing.T) {
	r := streamtest.New(t, stream.Topology{})
	r.Detector(stream.Detector{Name: "bolts", LearnFrames: 20})
	w, _ := r.Worker(worker.Config{Inspect: func(b []byte) (code, reason string) {
		if b[0] != 'F' {
			return "unsupported", "this is no image"
		}
		return "", ""
	}}, streamtest.LoadFake)
	counted := 0
	r.Trainer(trainer.Config{}, streamtest.FakeTrainer{T: t, Model: func(task *trainer.Task) streamtest.Fake {
		counted = task.Count
		return streamtest.Fake{Name: "learned"}
	}})
	const frames = 50
	r.Publish(stream.Frame{Detector: "bolts", Camera: "left", ID: "empty"})
	r.Publish(stream.Frame{Detector: "bolts", Camera: "left", ID: "text", Image: []byte("text")})
	for i := range frames {
		r.Publish(stream.Frame{Detector: "bolts", Camera: "left", ID: fmt.Sprint("f", i), Image: streamtest.Image(0.5)})
	}
	eventually.True(t, "the rest is scored", func() bool { return w.Stats().Scored == frames-20 })
	if s := w.Stats(); s.Rejected != 2 || len(r.Events()) != 2 {
		t.Errorf("%+v, %d events", s, len(r.Events()))
	}
	if counted != 20 || w.Stats().Learned != 20 {
		t.Errorf("trained on %d images, %d learned, want 20", counted, w.Stats().Learned)
	}
	r.Wait(learnJob) // its release serves a moment before it has ended
	jobs, err := r.Jobs().List(t.Context(), "bolts")
	if err != nil || len(jobs) != 1 || jobs[0].State != stream.JobDone || !jobs[0].Promoted || jobs[0].Normals != 20 || len(jobs[0].DataDigest) != 64 {
		t.Errorf("jobs %+v, %v", jobs, err)
	}
}

// TestAFirstTrainingThatFailsIsReportedAndRepeated learns with a configuration
// that no trainer can carry out, until an operator corrects it.
func TestAFirstTrainingThatFailsIsReportedAndRepeated(t *testing.T) {
	r := streamtest.New(t, stream.Topology{})
	r.Detector(stream.Detector{Name: "bolts", LearnFrames: 5, Backbone: "missing.onnx"})
	w, _ := r.Worker(worker.Config{}, streamtest.LoadFake)
	r.Trainer(trainer.Config{}, streamtest.FakeTrainer{T: t, OnTrain: func(_ context.Context, task *trainer.Task) error {
		if task.Detector.Backbone != "" {
			return stream.Permanent(stream.CodeTraining, errors.New("there is no "+task.Detector.Backbone))
		}
		return nil
	}})
	for i := range 8 {
		r.Publish(stream.Frame{Detector: "bolts", Camera: "left", ID: fmt.Sprint("f", i), Image: streamtest.Image(0.5)})
	}
	eventually.True(t, "it is reported", func() bool { return len(releaseEvents(r, stream.ReleaseMissing)) == 1 })
	e := releaseEvents(r, stream.ReleaseMissing)[0]
	for _, want := range []string{"missing.onnx", "nearmiss train bolts"} {
		if !strings.Contains(e.Reason, want) {
			t.Errorf("%s: %s", e.Code, e.Reason)
		}
	}
	eventually.True(t, "only what was not learnt from waits", func() bool { return r.Waiting() == 3 }) // acknowledgements are not answered
	detectors, err := r.In.Detectors(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := detectors.Set(t.Context(), "bolts", func(d *stream.Detector) error { d.Backbone = ""; return nil }); err != nil {
		t.Fatal(err)
	}
	eventually.True(t, "the frames are scored", func() bool { return w.Stats().Scored == 3 })
	if jobs, err := r.Jobs().List(t.Context(), "bolts"); err != nil || len(jobs) != 2 {
		t.Errorf("%+v, %v", jobs, err)
	}
}

func TestAReleaseIsReadjustedWithoutTraining(t *testing.T) {
	r := streamtest.New(t, stream.Topology{})
	r.Detector(stream.Detector{Name: "bolts", FalseAlarmRate: 0.3})
	r.Trainer(trainer.Config{}, streamtest.FakeTrainer{T: t})
	request := func(job string) stream.Job {
		t.Helper()
		if _, err := r.Jobs().Request(t.Context(), stream.TrainRequest{Job: job, Detector: "bolts", Readjust: true, Promote: true}); err != nil {
			t.Fatal(err)
		}
		return r.Wait(job)
	}
	if j := request("early"); j.State != stream.JobFailed || !strings.Contains(j.Error, "no release") {
		t.Errorf("%+v", j)
	}
	r.Release("bolts", streamtest.Fake{Name: "one"})
	got := r.Scores()
	w, _ := r.Worker(worker.Config{}, streamtest.LoadFake)
	if j := request("now"); j.State != stream.JobDone || !j.Promoted {
		t.Errorf("%+v", j)
	}
	eventually.True(t, "it serves", func() bool {
		p, err := r.Registry.Active(t.Context(), "bolts")
		return err == nil && w.Status().Serving["bolts"] == p.Release
	})
	r.Publish(stream.Frame{Detector: "bolts", Camera: "left", ID: "f", Image: streamtest.Image(0.8)})
	eventually.True(t, "it is scored", func() bool { return len(got.ByFrame()) == 1 })
	if e := got.ByFrame()["f"][0]; *e.Threshold != 0.7 || !*e.Anomalous {
		t.Errorf("score %v over %v", *e.Score, *e.Threshold)
	}
}

// Of a training its progress and a picture are kept, for who looks later.
func TestAJobsHistoryIsKept(t *testing.T) {
	r := streamtest.New(t, stream.Topology{})
	r.Detector(stream.Detector{Name: "bolts"})
	if _, err := r.In.Normals().Add(t.Context(), stream.Normal{Detector: "bolts", Image: streamtest.Image(0.1)}); err != nil {
		t.Fatal(err)
	}
	r.Trainer(trainer.Config{MaxAttempts: 1}, streamtest.FakeTrainer{T: t, OnTrain: func(_ context.Context, task *trainer.Task) error {
		for i := range 1000 {
			v := float64(i)
			p := stream.Progress{Phase: "fakes-1: train", Step: i, Steps: 1000, Loss: &v}
			if i%100 == 0 {
				p.Frechet = &v
			}
			task.Report(p)
		}
		if err := task.Sheet(make([]byte, 1<<20)); err == nil {
			t.Error("a sheet of 1 MiB is taken")
		}
		return task.Sheet([]byte("sheet"))
	}})
	jobs, err := r.In.Jobs(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	j, err := jobs.Request(t.Context(), stream.TrainRequest{Detector: "bolts", Job: "first"})
	if err != nil {
		t.Fatal(err)
	}
	kept := func() []stream.Progress {
		h, err := r.In.History(t.Context(), j.Job)
		if err != nil {
			t.Fatal(err)
		}
		return h
	}
	eventually.True(t, "the whole history", func() bool { h := kept(); return len(h) > 0 && h[len(h)-1].Phase == "store" })
	h, looks := kept(), 0
	for i, p := range h {
		if p.Frechet != nil {
			looks++
		}
		if i > 0 && p.At.Before(h[i-1].At) {
			t.Errorf("point %d is out of order", i)
		}
	}
	if len(h) > 260 || looks != 10 || h[len(h)-2].Step != 999 {
		t.Errorf("%d points, %d of the generator's curve, the last but one %+v", len(h), looks, h[len(h)-2])
	}
	eventually.True(t, "the sheet, which is stored after the history", func() bool {
		b, err := r.In.JobFile(t.Context(), j.Job, stream.JobSheet)
		if err != nil && !errors.Is(err, stream.ErrNotFound) {
			t.Fatal(err)
		}
		return string(b) == "sheet"
	})
	if _, err := r.In.JobFile(t.Context(), "none", stream.JobSheet); !errors.Is(err, stream.ErrNotFound) {
		t.Errorf("of no job: %v", err)
	}

	// It goes with the job's record.
	store, err := r.JS.ObjectStore(t.Context(), stream.Names{}.ArtifactsBucket())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := store.PutString(t.Context(), stream.JobObjects+"gone/"+stream.JobHistory, "[]"); err != nil {
		t.Fatal(err)
	}
	if c, err := r.In.Collect(t.Context(), registry.CollectOptions{Grace: -1}); err != nil || c.Checkpoints != 1 || len(kept()) == 0 {
		t.Errorf("collected: %+v, %v; %d points are left", c, err, len(kept()))
	}
}

func TestTrainingJobs(t *testing.T) {
	r := streamtest.New(t, stream.Topology{})
	r.Detector(stream.Detector{Name: "bolts"})
	normals := r.In.Normals()
	taken := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	for i := range 3 {
		if _, err := normals.Add(t.Context(), stream.Normal{
			Detector: "bolts", ID: fmt.Sprint(i), Camera: "left", CapturedAt: taken.Add(time.Duration(i) * time.Second), Image: streamtest.Image(float64(i) / 10),
		}); err != nil {
			t.Fatal(err)
		}
	}
	calm := errors.New("calm down")
	attempts := 0
	r.Trainer(trainer.Config{RetryDelay: time.Millisecond, MaxAttempts: 3}, streamtest.FakeTrainer{T: t, OnTrain: func(ctx context.Context, task *trainer.Task) error {
		attempts++
		files, err := os.ReadDir(task.Normals)
		if err != nil {
			return err
		}
		for i, e := range files {
			if n := task.Taken[e.Name()]; n.Camera != "left" || !n.CapturedAt.Equal(taken.Add(time.Duration(i)*time.Second)) || n.Image != nil {
				t.Errorf("file %s: %+v", e.Name(), n)
			}
		}
		switch task.Request.Profile {
		case "poison":
			panic("poison")
		case "hopeless":
			return stream.Permanent(stream.CodeTraining, errors.New("hopeless"))
		case "shaky":
			if attempts < 3 {
				return calm
			}
		case "slow":
			task.Report(stream.Progress{Phase: "fit", Step: 1, Steps: 2})
			<-ctx.Done()
			return ctx.Err()
		case "stuck": // saves the same at each attempt, and dies after it
			dir := filepath.Join(task.Dir, "steps")
			if _, err := task.RestoreFolder(dir); err != nil {
				return err
			}
			if err := errors.Join(os.MkdirAll(dir, 0o755), os.WriteFile(filepath.Join(dir, "seed"), []byte("7"), 0o644)); err != nil {
				return err
			}
			for range 2 {
				if err := task.SaveFolder(ctx, dir); err != nil {
					return err
				}
			}
			panic("stuck")
		}
		return nil
	}})
	request := func(profile string) stream.Job {
		t.Helper()
		attempts = 0
		j, err := r.Jobs().Request(t.Context(), stream.TrainRequest{Job: "job-" + profile, Detector: "bolts", Profile: profile, Promote: true})
		if err != nil {
			t.Fatal(err)
		}
		return j
	}
	t.Run("a job that panics ends in the dead letters", func(t *testing.T) {
		request("poison")
		j := r.Wait("job-poison")
		if j.State != stream.JobFailed || j.Code != stream.CodeTraining || attempts != 3 {
			t.Errorf("after %d attempts: %+v", attempts, j)
		}
		dead, err := r.In.DeadLetters(t.Context(), 0)
		if err != nil || len(dead) != 1 || dead[0].Code != stream.CodeTraining {
			t.Errorf("dead letters %+v, %v", dead, err)
		}
	})
	t.Run("a job that dies again and again after its checkpoint ends there, too", func(t *testing.T) {
		request("stuck")
		if j := r.Wait("job-stuck"); j.State != stream.JobFailed || j.CheckpointN != 1 || attempts != 4 {
			t.Errorf("after %d attempts: %+v", attempts, j)
		}
	})
	t.Run("a job that cannot succeed is tried once", func(t *testing.T) {
		request("hopeless")
		if j := r.Wait("job-hopeless"); j.State != stream.JobFailed || j.Error != "hopeless" || attempts != 1 {
			t.Errorf("after %d attempts: %+v", attempts, j)
		}
	})
	t.Run("a job that fails at first succeeds at last", func(t *testing.T) {
		request("shaky")
		if j := r.Wait("job-shaky"); j.State != stream.JobDone || attempts != 3 || !j.Promoted {
			t.Errorf("after %d attempts: %+v", attempts, j)
		}
	})
	t.Run("a running job is cancelled", func(t *testing.T) {
		request("slow")
		eventually.True(t, "it runs", func() bool {
			j, err := r.Jobs().Get(t.Context(), "job-slow")
			return err == nil && j.Progress != nil
		})
		if _, err := r.Jobs().Cancel(t.Context(), "job-slow"); err != nil {
			t.Fatal(err)
		}
		if j := r.Wait("job-slow"); j.State != stream.JobCancelled {
			t.Errorf("%+v", j)
		}
	})
	t.Run("a request that cannot be understood is a dead letter", func(t *testing.T) {
		if _, err := r.JS.Publish(t.Context(), r.Names.Train("bolts"), []byte("{")); err != nil {
			t.Fatal(err)
		}
		eventually.True(t, "it is dead", func() bool {
			dead, err := r.In.DeadLetters(t.Context(), 0)
			return err == nil && len(dead) == 4 && dead[3].Code == stream.CodeBadRequest
		})
	})
	t.Run("nothing is left", func(t *testing.T) {
		eventually.True(t, "the queue is empty", func() bool {
			s, err := r.JS.Stream(t.Context(), r.Names.TrainingStream())
			return err == nil && s.CachedInfo().State.Msgs == 0
		})
		if left, _ := os.ReadDir(filepath.Join(r.Dir, "scratch")); len(left) > 0 {
			t.Errorf("scratch has %v", left)
		}
	})
}

// TestTrainingsAtOnce: of two jobs of a detector that two trainers do at once the one that
// was asked for first ends last. What has newer normals stays.
func TestTrainingsAtOnce(t *testing.T) {
	r := streamtest.New(t, stream.Topology{})
	r.Detector(stream.Detector{Name: "bolts"})
	begun, goOn := make(chan struct{}), make(chan struct{})
	for _, name := range []string{"t1", "t2"} {
		r.Trainer(trainer.Config{Name: name}, streamtest.FakeTrainer{T: t, OnTrain: func(ctx context.Context, task *trainer.Task) error {
			if task.Request.Profile != "slow" {
				return nil
			}
			close(begun)
			select {
			case <-goOn:
			case <-ctx.Done():
			}
			return ctx.Err()
		}})
	}
	train := func(job, profile string, force bool) {
		t.Helper()
		if _, err := r.In.Normals().Add(t.Context(), stream.Normal{Detector: "bolts", ID: job, Image: streamtest.Image(0.1)}); err != nil {
			t.Fatal(err)
		}
		if _, err := r.Jobs().Request(t.Context(), stream.TrainRequest{Job: job, Detector: "bolts", Profile: profile, Promote: true, Force: force}); err != nil {
			t.Fatal(err)
		}
	}
	for round, c := range []struct{ force, unsaid bool }{{}, {force: true}, {unsaid: true}} {
		force := c.force
		begun, goOn = make(chan struct{}), make(chan struct{})
		first, second := fmt.Sprint("first-", round), fmt.Sprint("second-", round)
		train(first, "slow", force)
		<-begun
		train(second, "quick", false)
		quick := r.Wait(second)
		if c.unsaid { // its trainer has just promoted, and not recorded that
			if _, err := r.Jobs().Update(t.Context(), second, func(j *stream.Job) error { j.Promoted = false; return nil }); err != nil {
				t.Fatal(err)
			}
		}
		close(goOn)
		slow := r.Wait(first)
		now, err := r.Registry.Active(t.Context(), "bolts")
		if err != nil {
			t.Fatal(err)
		}
		want := quick.Release
		if force {
			want = slow.Release
		}
		if now.Release != want || !quick.Promoted || slow.State != stream.JobDone || slow.Promoted != force || strings.Contains(slow.Held, second) == force {
			t.Errorf("%+v: %.8s is active, of the first job %+v, of the second %+v", c, now.Release, slow, quick)
		}
	}
}

// TestTrainingSurvivesABrokerRestart restarts the broker in the middle of a job
// while frames are scored.
func TestTrainingSurvivesABrokerRestart(t *testing.T) {
	store := filepath.Join(t.TempDir(), "broker")
	b, stop := brokertest.Start(t, broker.Config{Port: -1, StoreDir: store})
	way := brokertest.NewRelay(t, strings.TrimPrefix(b.ClientURL(), "nats://")) // to both of them by one address
	r := &streamtest.Rig{T: t, Dir: t.TempDir(), URL: "nats://" + way.Addr()}
	r.Open(stream.Topology{})
	r.Detector(stream.Detector{Name: "bolts"})
	r.Release("bolts", streamtest.Fake{Name: "old"})
	if _, err := r.In.Normals().Add(t.Context(), stream.Normal{Detector: "bolts", Image: streamtest.Image(0.1)}); err != nil {
		t.Fatal(err)
	}
	w, stopWorker := r.Worker(worker.Config{}, streamtest.LoadFake)
	eventually.True(t, "the old release serves", func() bool { return w.Stats().Swaps == 1 })
	middle, restarted := make(chan struct{}), make(chan struct{})
	attempts := 0
	stopTrainer := r.Trainer(trainer.Config{AckWait: time.Second}, streamtest.FakeTrainer{T: t, OnTrain: func(ctx context.Context, task *trainer.Task) error {
		attempts++
		path := filepath.Join(task.Dir, "checkpoint")
		if err := os.WriteFile(path, []byte("x"), 0o644); err != nil {
			return err
		}
		for step := range 4 {
			if step == 2 && attempts == 1 {
				close(middle)
				<-restarted
			}
			task.Report(stream.Progress{Phase: "fit", Step: step})
			if err := task.SaveCheckpoint(ctx, path); err != nil {
				return err
			}
		}
		return nil
	}})
	if _, err := r.Jobs().Request(t.Context(), stream.TrainRequest{Job: "job", Detector: "bolts", Promote: true}); err != nil {
		t.Fatal(err)
	}
	<-middle
	way.Lead("")
	stop()
	b, _ = brokertest.Start(t, broker.Config{Port: -1, StoreDir: store})
	way.Lead(strings.TrimPrefix(b.ClientURL(), "nats://"))
	close(restarted)
	eventually.True(t, "the connection is back", r.NC.IsConnected)
	if j := r.Wait("job"); j.State != stream.JobDone || !j.Promoted {
		t.Errorf("%+v", j)
	}
	eventually.True(t, "the new release serves", func() bool { return w.Stats().Swaps == 2 })
	r.Publish(stream.Frame{Detector: "bolts", Camera: "left", ID: "f", Image: streamtest.Image(0.1)})
	eventually.True(t, "frames are scored", func() bool { return w.Stats().Scored == 1 })
	t.Logf("%d attempts", attempts)
	stopWorker() // before the broker, or they wait for it
	stopTrainer()
}

// TestRetrainingIsRepeatedOnItsSchedule has trainings that ended hours ago: the
// next is due an hour after the last, also where that one failed.
func TestRetrainingIsRepeatedOnItsSchedule(t *testing.T) {
	r := streamtest.New(t, stream.Topology{})
	kv, err := r.JS.KeyValue(t.Context(), r.Names.JobsBucket())
	if err != nil {
		t.Fatal(err)
	}
	ago := func(detector, job, state string, normals int, d time.Duration) {
		t.Helper()
		data, err := json.Marshal(stream.Job{
			TrainRequest: stream.TrainRequest{Job: job, Detector: detector, At: time.Now().Add(-d)}, State: state, FinishedAt: time.Now().Add(-d), Normals: normals,
		})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := kv.Create(t.Context(), job, data); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{"late", "failed", "fresh", "never"} {
		r.Detector(stream.Detector{Name: name, RetrainEvery: stream.Duration(time.Hour)})
		if _, err := r.In.Normals().Add(t.Context(), stream.Normal{Detector: name, Image: streamtest.Image(0.1)}); err != nil {
			t.Fatal(err)
		}
		if name != "never" {
			ago(name, "one-"+name, stream.JobDone, 1, 4*time.Hour)
		}
	}
	ago("failed", "two-failed", stream.JobFailed, 1, 2*time.Hour)
	ago("fresh", "two-fresh", stream.JobFailed, 1, time.Minute)
	// One that ended before it had read the normals was not a training on none.
	r.Detector(stream.Detector{Name: "held", RetrainAfter: 1})
	if _, err := r.In.Normals().Add(t.Context(), stream.Normal{Detector: "held", Image: streamtest.Image(0.1)}); err != nil {
		t.Fatal(err)
	}
	ago("held", "one-held", stream.JobDone, 1, 2*time.Hour)
	ago("held", "two-held", stream.JobDone, 0, time.Hour)
	r.Trainer(trainer.Config{Schedule: 10 * time.Millisecond}, streamtest.FakeTrainer{T: t})
	for _, name := range []string{"late", "failed"} {
		eventually.True(t, name+" is trained", func() bool {
			all, err := r.Jobs().List(t.Context(), name)
			return err == nil && all[len(all)-1].By == "schedule" && all[len(all)-1].State == stream.JobDone
		})
	}
	for name, want := range map[string]int{"late": 2, "failed": 3, "fresh": 2, "held": 2, "never": 0} {
		if all, err := r.Jobs().List(t.Context(), name); err != nil || len(all) != want {
			t.Errorf("%s has %d jobs, want %d (%v)", name, len(all), want, err)
		}
	}
}

func TestRetrainingIsAskedForWhenItIsDue(t *testing.T) {
	r := streamtest.New(t, stream.Topology{})
	r.Detector(stream.Detector{Name: "bolts", RetrainAfter: 3})
	normals := r.In.Normals()
	add := func(n int) {
		for i := range n {
			if _, err := normals.Add(t.Context(), stream.Normal{Detector: "bolts", ID: fmt.Sprint(time.Now().UnixNano(), i), Image: streamtest.Image(0.1)}); err != nil {
				t.Fatal(err)
			}
		}
	}
	add(5)
	r.Trainer(trainer.Config{Schedule: 10 * time.Millisecond}, streamtest.FakeTrainer{T: t})
	r.Trainer(trainer.Config{Schedule: 10 * time.Millisecond}, streamtest.FakeTrainer{T: t})
	jobs := func() []stream.Job {
		all, err := r.Jobs().List(t.Context(), "bolts")
		if err != nil {
			t.Fatal(err)
		}
		return all
	}
	add(4) // without a first training nothing is due
	if _, err := r.Jobs().Request(t.Context(), stream.TrainRequest{Job: "first", Detector: "bolts", Promote: true}); err != nil {
		t.Fatal(err)
	}
	if j := r.Wait("first"); j.Normals != 9 || len(jobs()) != 1 {
		t.Errorf("%+v, %d jobs", j, len(jobs()))
	}
	add(3)
	eventually.True(t, "retraining is asked for", func() bool { return len(jobs()) == 2 })
	second := r.Wait(jobs()[1].Job)
	if second.State != stream.JobDone || second.Normals != 12 || second.By != "schedule" {
		t.Errorf("%+v", second)
	}
	if n := len(jobs()); n != 2 {
		t.Errorf("%d jobs", n)
	}
}

// TestJobsWhoseRequestsAreLost: in a restored installation the records of jobs are there,
// and the queue is not, since no backup has it.
func TestJobsWhoseRequestsAreLost(t *testing.T) {
	r := streamtest.New(t, stream.Topology{})
	for detector, job := range map[string]stream.Job{
		"bolts": {State: stream.JobQueued},
		"nuts":  {State: stream.JobRunning, Trainer: "gone", Attempts: 1, StartedAt: time.Now().UTC()},
		"pins":  {State: stream.JobDone, FinishedAt: time.Now().UTC()},
	} {
		r.Detector(stream.Detector{Name: detector})
		if _, err := r.In.Normals().Add(t.Context(), stream.Normal{Detector: detector, ID: "n", Image: streamtest.Image(0.1)}); err != nil {
			t.Fatal(err)
		}
		job.TrainRequest = stream.TrainRequest{Job: "of-" + detector, Detector: detector, Promote: true, At: time.Now().UTC()}
		if _, err := r.Jobs().Create(t.Context(), job); err != nil {
			t.Fatal(err)
		}
	}
	for range 2 { // which ask for each once
		r.Trainer(trainer.Config{Schedule: 10 * time.Millisecond}, streamtest.FakeTrainer{T: t})
	}
	for job, attempts := range map[string]int{"of-bolts": 1, "of-nuts": 2} {
		if j := r.Wait(job); j.State != stream.JobDone || !j.Promoted || j.Attempts != attempts {
			t.Errorf("%+v", j)
		}
	}
	s, err := r.JS.Stream(t.Context(), r.Names.TrainingStream())
	if err != nil {
		t.Fatal(err)
	}
	eventually.True(t, "nothing waits", func() bool {
		i, err := s.Info(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if i.State.LastSeq != 2 {
			t.Errorf("%d requests, want one for each job that is open", i.State.LastSeq)
		}
		return i.State.Msgs == 0
	})
}

// TestOpenJobsOfDeletedDetectors: earlier versions left them. They are cancelled, and what
// has the name of their detector now is not trained by them.
func TestOpenJobsOfDeletedDetectors(t *testing.T) {
	r := streamtest.New(t, stream.Topology{})
	r.Detector(stream.Detector{Name: "bolts"}) // another one than the job is about
	if _, err := r.In.Normals().Add(t.Context(), stream.Normal{Detector: "bolts", ID: "n", Image: streamtest.Image(0.1)}); err != nil {
		t.Fatal(err)
	}
	for _, detector := range []string{"bolts", "nuts"} {
		if _, err := r.Jobs().Create(t.Context(), stream.Job{
			TrainRequest: stream.TrainRequest{Job: "of-" + detector, Detector: detector, Promote: true, At: time.Now().Add(-time.Hour).UTC()},
			State:        stream.JobQueued,
		}); err != nil {
			t.Fatal(err)
		}
	}
	r.Trainer(trainer.Config{Schedule: 10 * time.Millisecond}, streamtest.FakeTrainer{T: t})
	for _, job := range []string{"of-bolts", "of-nuts"} {
		if j := r.Wait(job); j.State != stream.JobCancelled || j.Attempts != 0 || j.FinishedAt.IsZero() {
			t.Errorf("%+v", j)
		}
	}
	s, err := r.JS.Stream(t.Context(), r.Names.TrainingStream())
	if err != nil {
		t.Fatal(err)
	}
	if n := s.CachedInfo().State.LastSeq; n != 0 {
		t.Errorf("%d requests", n)
	}
}

// TestARequestThatTheBrokerHadWithinTheHour: it is not in the queue, and is not said to be.
func TestARequestThatTheBrokerHadWithinTheHour(t *testing.T) {
	r := streamtest.New(t, stream.Topology{})
	r.Detector(stream.Detector{Name: "bolts"})
	detectors, err := r.In.Detectors(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	j, err := r.Jobs().Request(t.Context(), stream.TrainRequest{Job: "a", Detector: "bolts"})
	if err != nil {
		t.Fatal(err)
	}
	s, err := r.JS.Stream(t.Context(), r.Names.TrainingStream())
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Purge(t.Context()); err != nil {
		t.Fatal(err)
	}
	if lost, err := r.Jobs().Requeue(t.Context(), []stream.Job{j}, detectors); err != nil || len(lost) != 0 {
		t.Errorf("%+v, %v", lost, err)
	}
	if j, err = r.Jobs().Get(t.Context(), "a"); err != nil || j.State != stream.JobQueued {
		t.Errorf("%+v, %v", j, err)
	}
}

// idle is a trainer that has nothing to do.
type idle struct{ trainer.Maker }

// TestATrainerEndsWhenIdle.
func TestATrainerEndsWhenIdle(t *testing.T) {
	r := streamtest.New(t, stream.Topology{})
	w, err := trainer.New(trainer.Config{
		CacheDir: t.TempDir(), ScratchDir: t.TempDir(), IdleExit: 200 * time.Millisecond,
	}, r.Connect(), idle{}, zerolog.Nop())
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	ctx, cancel := context.WithTimeout(t.Context(), 90*time.Second)
	defer cancel()
	go func() { ended <- w.Run(ctx) }()
	if err := <-ended; err != nil || ctx.Err() != nil {
		t.Errorf("%v, %v", err, ctx.Err())
	}
}
