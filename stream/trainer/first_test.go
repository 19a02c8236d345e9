package trainer_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/nearmiss/nearmiss/internal/eventually"
	"github.com/nearmiss/nearmiss/stream"
	"github.com/nearmiss/nearmiss/stream/internal/streamtest"
	"github.com/nearmiss/nearmiss/stream/registry"
	"github.com/nearmiss/nearmiss/stream/trainer"
	"github.com/nearmiss/nearmiss/stream/worker"
)

const (
	learnJob = "learn-bolts-1"
	wholeJob = "whole-learn-bolts-1"
)

// TestAFirstReleaseServesUntilTheWholeOneIsMade: a camera's frames are scored by a release
// that is made without what takes long; one with that takes over, and no frame is lost.
func TestAFirstReleaseServesUntilTheWholeOneIsMade(t *testing.T) {
	r := streamtest.New(t, stream.Topology{})
	r.Detector(stream.Detector{Name: "bolts", LearnFrames: 20})
	w, _ := r.Worker(worker.Config{}, streamtest.LoadFake)
	goOn := make(chan struct{})
	for _, name := range []string{"t1", "t2"} {
		r.Trainer(trainer.Config{Name: name}, streamtest.FakeTrainer{T: t, Without: "a look at blur", OnTrain: func(ctx context.Context, task *trainer.Task) error {
			if task.First != (task.Request.Job == learnJob) || task.Count != 20 {
				t.Errorf("job %s: first %v, %d normals", task.Request.Job, task.First, task.Count)
			}
			if task.First {
				return nil
			}
			select {
			case <-goOn:
			case <-ctx.Done():
			}
			return ctx.Err()
		}})
	}
	scores, frame := r.Scores(), 0
	publish := func(n int) {
		for range n {
			frame++
			r.Publish(stream.Frame{Detector: "bolts", Camera: "left", ID: fmt.Sprint("f", frame), Image: streamtest.Image(0.5)})
		}
	}
	publish(30)
	eventually.True(t, "frames are scored by the first release", func() bool { return w.Stats().Scored == 10 })
	first := r.Wait(learnJob)
	if !first.Promoted || first.Without != "a look at blur" || len(first.Notes) != 1 || !strings.Contains(first.Notes[0], wholeJob) {
		t.Errorf("first job %+v", first)
	}
	close(goOn)
	whole := r.Wait(wholeJob)
	if !whole.Promoted || whole.Without != "" || whole.DataDigest != first.DataDigest || len(whole.Notes) != 0 {
		t.Errorf("second job %+v", whole)
	}
	eventually.True(t, "both have been told", func() bool { // in any order: nothing waits for a notice
		told := map[string]bool{}
		for _, e := range releaseEvents(r, stream.ReleaseInService) {
			told[e.Release] = true
		}
		return told[first.Release] && told[whole.Release]
	})
	publish(10)
	eventually.True(t, "all frames are scored", func() bool { return w.Stats().Scored == 20 })
	eventually.True(t, "each once, by the release of its time", func() bool {
		by := map[string]int{}
		for _, e := range scores.InOrder() {
			by[e.Release]++
		}
		return by[first.Release] == 10 && by[whole.Release] == 10
	})
	if all, err := r.Jobs().List(t.Context(), "bolts"); err != nil || len(all) != 2 {
		t.Errorf("%d jobs, want 2: %v", len(all), err)
	}
}

// TestTheWholeReleaseOfALostTrainer: a trainer died when it had made the first release
// active, and nothing else.
func TestTheWholeReleaseOfALostTrainer(t *testing.T) {
	r, first := firstRelease(t, stream.Job{Without: "a look at blur"})
	r.Trainer(trainer.Config{}, streamtest.FakeTrainer{T: t})
	eventually.True(t, "the second job is asked for", func() bool {
		_, err := r.Jobs().Get(t.Context(), wholeJob)
		return err == nil
	})
	whole := r.Wait(wholeJob)
	if j := r.Wait(learnJob); !j.Promoted || j.Release != first {
		t.Errorf("the first job: %+v", j)
	}
	if now := activeOf(t, r); !whole.Promoted || now != whole.Release || now == first {
		t.Errorf("%.8s is active, the second job: %+v", now, whole)
	}
}

// TestAFirstReleaseDoesNotComeBack: the request for it comes again, since its trainer died before
// it had said that it was done, and the second job is done already.
func TestAFirstReleaseDoesNotComeBack(t *testing.T) {
	r, first := firstRelease(t, stream.Job{Without: "a look at blur"})
	learnt, err := r.Jobs().Get(t.Context(), learnJob)
	if err != nil {
		t.Fatal(err)
	}
	put := r.Put("bolts", streamtest.Fake{Name: "whole"})
	if _, err := r.Jobs().Create(t.Context(), stream.Job{
		TrainRequest: stream.WholeRequest(learnt, "dead"), State: stream.JobDone, Release: put, Promoted: true,
	}); err != nil {
		t.Fatal(err)
	}
	promote(t, r, put, "job "+wholeJob)
	r.Trainer(trainer.Config{}, streamtest.FakeTrainer{T: t})
	if j := r.Wait(learnJob); j.State != stream.JobDone || !j.Promoted || j.Release != first || j.Held != "" {
		t.Errorf("the first job: %+v", j)
	}
	if now := activeOf(t, r); now != put {
		t.Errorf("%.8s is active, the first was %.8s", now, first)
	}
}

// TestTheWholeReleaseOfADeletedDetector is not made for another detector of that name, which
// takes its first frames to be normal.
func TestTheWholeReleaseOfADeletedDetector(t *testing.T) {
	for name, during := range map[string]bool{"before it is made": false, "while it is made": true} {
		t.Run(name, func(t *testing.T) {
			r, _ := firstRelease(t, stream.Job{State: stream.JobDone, Promoted: true, Without: "a look at blur"})
			learnt, err := r.Jobs().Get(t.Context(), learnJob)
			if err != nil {
				t.Fatal(err)
			}
			forget := func() {
				if err := r.Registry.Forget(t.Context(), "bolts"); err != nil {
					t.Error(err)
				}
			}
			if !during {
				forget()
			}
			r.Trainer(trainer.Config{}, streamtest.FakeTrainer{T: t, OnTrain: func(context.Context, *trainer.Task) error {
				if forget(); !during {
					t.Error("it was trained")
				}
				return nil
			}})
			if _, err := r.Jobs().Request(t.Context(), stream.WholeRequest(learnt, "a trainer")); err != nil {
				t.Fatal(err)
			}
			if j := r.Wait(wholeJob); j.State != stream.JobDone || j.Promoted || !strings.Contains(j.Held, "deleted") {
				t.Errorf("the second job: %+v", j)
			}
			if now, err := r.Registry.Active(t.Context(), "bolts"); !errors.Is(err, registry.ErrNoRelease) {
				t.Errorf("%.8s is active: %v", now.Release, err)
			}
		})
	}
}

// TestADetectorThatIsCalledLikeASecondJob has jobs like any other.
func TestADetectorThatIsCalledLikeASecondJob(t *testing.T) {
	name := "whole-learn-bolts"
	r := streamtest.New(t, stream.Topology{})
	r.Detector(stream.Detector{Name: name})
	if _, err := r.In.Normals().Add(t.Context(), stream.Normal{Detector: name, ID: "a", Image: streamtest.Image(0.1)}); err != nil {
		t.Fatal(err)
	}
	r.Release(name, streamtest.Fake{Name: "before"})
	r.Trainer(trainer.Config{}, streamtest.FakeTrainer{T: t})
	j, err := r.Jobs().Request(t.Context(), stream.TrainRequest{Job: stream.NewJob(name), Detector: name, Promote: true})
	if err != nil {
		t.Fatal(err)
	}
	if j = r.Wait(j.Job); !j.Promoted {
		t.Errorf("%+v", j)
	}
}

// extended has a job that adds a normal to what is active, and returns its release.
func extended(t *testing.T, r *streamtest.Rig, job string) string {
	t.Helper()
	seq, err := r.In.Normals().Add(t.Context(), stream.Normal{Detector: "bolts", ID: job, Image: streamtest.Image(0.95)})
	if err != nil {
		t.Fatal(err)
	}
	base := activeOf(t, r)
	put := r.Put("bolts", streamtest.Fake{Name: job})
	if _, err := r.Jobs().Create(t.Context(), stream.Job{
		TrainRequest: stream.TrainRequest{Job: job, Detector: "bolts", Extend: []uint64{seq}},
		State:        stream.JobDone, Base: base, Release: put, Promoted: true,
	}); err != nil {
		t.Fatal(err)
	}
	promote(t, r, put, "job "+job)
	return put
}

// TestOnlyAFirstReleaseIsReplaced: what becomes of the second job when something else
// happened since the first release.
func TestOnlyAFirstReleaseIsReplaced(t *testing.T) {
	for name, c := range map[string]struct {
		meanwhile func(t *testing.T, r *streamtest.Rig)
		during    bool // it happens while the second job trains
		held      bool
	}{
		"nothing": {meanwhile: func(*testing.T, *streamtest.Rig) {}},
		"a frame was confirmed normal": {meanwhile: func(t *testing.T, r *streamtest.Rig) {
			extended(t, r, "extend-bolts-2")
		}},
		"an operator trained": {held: true, meanwhile: func(t *testing.T, r *streamtest.Rig) {
			put := r.Put("bolts", streamtest.Fake{Name: "operator's"})
			if _, err := r.Jobs().Create(t.Context(), stream.Job{
				TrainRequest: stream.TrainRequest{Job: "bolts-2", Detector: "bolts"}, State: stream.JobDone, Release: put, Promoted: true,
			}); err != nil {
				t.Fatal(err)
			}
			promote(t, r, put, "job bolts-2")
		}},
		"an operator promoted another release": {held: true, meanwhile: func(t *testing.T, r *streamtest.Rig) {
			r.Release("bolts", streamtest.Fake{Name: "other"})
		}},
		"an operator went back to what a verdict had made": {held: true, meanwhile: func(t *testing.T, r *streamtest.Rig) {
			made := extended(t, r, "extend-bolts-1")
			extended(t, r, "extend-bolts-2")
			if p, err := r.Registry.Rollback(t.Context(), "bolts", registry.Change{By: "an operator"}); err != nil || p.Release != made {
				t.Fatal(p, err)
			}
		}},
		"an operator promoted another release while it was made": {held: true, during: true, meanwhile: func(t *testing.T, r *streamtest.Rig) {
			r.Release("bolts", streamtest.Fake{Name: "other"})
		}},
	} {
		t.Run(name, func(t *testing.T) {
			r, first := firstRelease(t, stream.Job{State: stream.JobDone, Promoted: true, Without: "a look at blur"})
			if !c.during {
				c.meanwhile(t, r)
			}
			trained := false
			r.Trainer(trainer.Config{}, streamtest.FakeTrainer{T: t, OnTrain: func(context.Context, *trainer.Task) error {
				if trained = true; c.during {
					c.meanwhile(t, r)
				}
				return nil
			}})
			learnt, err := r.Jobs().Get(t.Context(), learnJob)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := r.Jobs().Request(t.Context(), stream.WholeRequest(learnt, "a trainer")); err != nil {
				t.Fatal(err)
			}
			whole, now := r.Wait(wholeJob), activeOf(t, r)
			if whole.State != stream.JobDone || whole.Promoted == c.held || (whole.Held != "") != c.held || (now == whole.Release) == c.held || now == first {
				t.Errorf("%.8s is active, the first was %.8s, the second job: %+v", now, first, whole)
			}
			if c.held && !strings.Contains(whole.Held, "was made active by ") {
				t.Errorf("held since %s", whole.Held)
			}
			if trained != (c.during || !c.held) {
				t.Errorf("trained: %v", trained)
			}
		})
	}
}

// TestAFirstReleaseWithAllIsMadeOnce: what takes no longer with all is not made twice, nor
// is what an operator asked for.
func TestAFirstReleaseWithAllIsMadeOnce(t *testing.T) {
	for name, c := range map[string]struct{ job, without string }{
		"all is in it":                  {job: learnJob},
		"an operator's is not in haste": {job: "bolts-2", without: "a look at blur"},
	} {
		t.Run(name, func(t *testing.T) {
			r := streamtest.New(t, stream.Topology{})
			r.Detector(stream.Detector{Name: "bolts", LearnFrames: 1})
			if _, err := r.In.Normals().Add(t.Context(), stream.Normal{Detector: "bolts", ID: "a", Image: streamtest.Image(0.1)}); err != nil {
				t.Fatal(err)
			}
			r.Trainer(trainer.Config{}, streamtest.FakeTrainer{T: t, Without: c.without})
			if _, err := r.Jobs().Request(t.Context(), stream.TrainRequest{Job: c.job, Detector: "bolts", Promote: true}); err != nil {
				t.Fatal(err)
			}
			if j := r.Wait(c.job); !j.Promoted || j.Without != "" {
				t.Errorf("%+v", j)
			}
			if all, err := r.Jobs().List(t.Context(), "bolts"); err != nil || len(all) != 1 {
				t.Errorf("%d jobs, want 1: %v", len(all), err)
			}
		})
	}
}

// TestAFirstReleaseIsNoOtherJobs: a worker that does not know yet what the first job has come
// to does not take the one after it for that.
func TestAFirstReleaseIsNoOtherJobs(t *testing.T) {
	r, _ := firstRelease(t, stream.Job{State: stream.JobFailed, Error: "it died", Without: "a look at blur"})
	if err := r.Registry.Forget(t.Context(), "bolts"); err != nil {
		t.Fatal(err)
	}
	learnt, err := r.Jobs().Get(t.Context(), learnJob)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := r.Jobs().Request(t.Context(), stream.WholeRequest(learnt, "a trainer")); err != nil {
		t.Fatal(err)
	}
	r.Worker(worker.Config{}, streamtest.LoadFake)
	eventually.True(t, "it is told about a job", func() bool { return len(r.EventsOf(stream.KindRelease)) > 0 })
	if told := r.EventsOf(stream.KindRelease); told[0].Code != stream.ReleaseMissing || !strings.Contains(told[0].Reason, "job "+learnJob) {
		t.Errorf("it is told: %s: %s", told[0].Code, told[0].Reason)
	}
}

// firstRelease is an installation with a first release that is active, and the record of its
// job; one without a state is a dead trainer's, whose request waits.
func firstRelease(t *testing.T, j stream.Job) (r *streamtest.Rig, first string) {
	t.Helper()
	r = streamtest.New(t, stream.Topology{})
	r.Detector(stream.Detector{Name: "bolts", LearnFrames: 1})
	if _, err := r.In.Normals().Add(t.Context(), stream.Normal{Detector: "bolts", ID: "a", Image: streamtest.Image(0.1)}); err != nil {
		t.Fatal(err)
	}
	first = r.Release("bolts", streamtest.Fake{Name: "first"})
	d, err := r.In.Detectors(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	bolts, err := d.Get(t.Context(), "bolts")
	if err != nil {
		t.Fatal(err)
	}
	waits := j.State == ""
	j.TrainRequest, j.Release = stream.LearnRequest(bolts, 1, "worker"), first
	if waits {
		j.State, j.Trainer, j.Attempts = stream.JobRunning, "dead", 1
	}
	if _, err := r.Jobs().Create(t.Context(), j); err != nil {
		t.Fatal(err)
	}
	if waits {
		data, err := json.Marshal(j.TrainRequest)
		if err != nil {
			t.Fatal(err)
		}
		r.PublishRaw(r.Names.Train("bolts"), string(data))
	}
	return r, first
}

func promote(t *testing.T, r *streamtest.Rig, release, reason string) {
	t.Helper()
	if _, err := r.Registry.Promote(t.Context(), "bolts", release, registry.Change{Reason: reason}); err != nil {
		t.Fatal(err)
	}
}

func activeOf(t *testing.T, r *streamtest.Rig) string {
	t.Helper()
	now, err := r.Registry.Active(t.Context(), "bolts")
	if err != nil {
		t.Fatal(err)
	}
	return now.Release
}
