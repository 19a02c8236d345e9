package worker_test

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/nearmiss/nearmiss/internal/eventually"
	"github.com/nearmiss/nearmiss/stream"
	"github.com/nearmiss/nearmiss/stream/internal/streamtest"
	"github.com/nearmiss/nearmiss/stream/registry"
	"github.com/nearmiss/nearmiss/stream/worker"
)

func TestACandidateScoresAlongside(t *testing.T) {
	r := streamtest.New(t, stream.Topology{})
	active := r.Release("bolts", streamtest.Fake{Name: "one", Threshold: 0.8})
	candidate := r.Put("bolts", streamtest.Fake{Name: "two", Threshold: 0.5})
	if err := r.Registry.SetShadow(t.Context(), "bolts", candidate, registry.Change{}); err != nil {
		t.Fatal(err)
	}
	w, _ := r.Worker(worker.Config{}, streamtest.LoadFake)
	eventually.True(t, "both are loaded", func() bool { return w.Stats().Swaps == 2 })
	for i := range 100 {
		r.Publish(stream.Frame{Detector: "bolts", Camera: "left", ID: fmt.Sprint("f", i), Image: streamtest.Image(float64(i) / 100)})
	}
	eventually.True(t, "both have judged", func() bool { s := w.Shadows(); return len(s) == 1 && s[0].Frames == 100 })
	if s := w.Shadows()[0]; s.Both != 19 || s.OnlyShadow != 30 || s.OnlyActive != 0 || s.Active != active || s.Candidate != candidate {
		t.Errorf("%+v", s)
	}
	eventually.True(t, "the disagreements are told", func() bool { return len(r.EventsOf(stream.KindDisagreement)) == 30 })
	for _, e := range r.Events() {
		if e.Release != active {
			t.Errorf("event of %s", e.Release)
		}
	}
	for _, e := range r.EventsOf(stream.KindDisagreement) {
		if e.Release != candidate || e.Against.Release != active || e.Against.Anomalous {
			t.Errorf("%+v", e)
		}
	}
	if err := r.Registry.SetShadow(t.Context(), "bolts", "", registry.Change{}); err != nil {
		t.Fatal(err)
	}
	eventually.True(t, "the candidate is gone", func() bool { return len(w.Shadows()) == 0 })
}

func TestTheMeanOfACamerasScoresDecidesWhenTheDetectorSmooths(t *testing.T) {
	r := streamtest.New(t, stream.Topology{})
	r.Detector(stream.Detector{Name: "bolts", Smoothing: 4})
	r.Release("bolts", streamtest.Fake{Name: "one", Threshold: 0.5})
	w, _ := r.Worker(worker.Config{}, streamtest.LoadFake)
	// One outlier does not lift the mean over the threshold; a lasting rise does,
	// from the third frame on.
	for i, n := range []float64{0.1, 0.1, 0.1, 0.9, 0.1, 0.1, 0.1, 0.1, 0.9, 0.9, 0.9, 0.9} {
		r.Publish(stream.Frame{Detector: "bolts", Camera: "left", ID: fmt.Sprint("f", i), Image: streamtest.Image(n)})
		eventually.True(t, "it is scored", func() bool { return w.Stats().Scored == uint64(i+1) })
	}
	var ids []string
	for _, e := range r.Events() {
		ids = append(ids, e.FrameID)
		if e.Smoothed == nil || *e.Smoothed <= 0.5 || *e.Smoothed >= 0.95 {
			t.Errorf("%+v", e)
		}
	}
	if got := strings.Join(ids, " "); got != "f10 f11" {
		t.Errorf("events of %s", got)
	}
}

func TestACoolDownSparesTheSubscribers(t *testing.T) {
	r := streamtest.New(t, stream.Topology{})
	r.Detector(stream.Detector{Name: "bolts", CoolDown: stream.Duration(10 * time.Second)})
	r.Release("bolts", streamtest.Fake{Name: "one"})
	got := r.Scores()
	begin := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	for i := range 26 { // a frame a second; each half is another worker's
		for _, camera := range []string{"left", "right"} {
			r.Publish(stream.Frame{Detector: "bolts", Camera: camera, ID: fmt.Sprint(camera, i), CapturedAt: begin.Add(time.Duration(i) * time.Second), Image: streamtest.Image(0.95)})
		}
		if i%13 == 12 {
			_, stop := r.Worker(worker.Config{BatchSize: 4, Lanes: 1}, streamtest.LoadFake)
			eventually.True(t, "all scores are sent", func() bool { return len(got.ByFrame()) == 2*(i+1) })
			stop()
		}
	}
	seconds := map[string][]int{}
	for _, e := range r.Events() {
		seconds[e.Camera] = append(seconds[e.Camera], int(e.CapturedAt.Sub(begin)/time.Second))
	}
	for _, camera := range []string{"left", "right"} {
		if !slices.Equal(seconds[camera], []int{0, 10, 20}) {
			t.Errorf("camera %s: events of the seconds %v", camera, seconds[camera])
		}
	}
}

// drifting is a scorer whose test finds drift at the fifth frame.
type drifting struct{ streamtest.Fake }

func (drifting) DriftTest(string, float64) (worker.DriftTest, error) { return &countingTest{}, nil }

type countingTest struct{ s stream.DriftStatus }

func (c *countingTest) Observe(float64) (stream.DriftStatus, error) {
	c.s.Frames++
	c.s.Evidence = float64(c.s.Frames) / 5
	if c.s.Drifted = c.s.Frames >= 5; c.s.Drifted {
		c.s.Cause = "scores"
	}
	return c.s, nil
}

func TestDriftIsToldOnceAndRetrainingAdvised(t *testing.T) {
	r := streamtest.New(t, stream.Topology{})
	r.Detector(stream.Detector{Name: "bolts"})
	release := r.Release("bolts", streamtest.Fake{Name: "one"})
	w, _ := r.Worker(worker.Config{}, func(context.Context, string) (worker.Scorer, error) { return drifting{}, nil })
	for i := range 20 {
		r.Publish(stream.Frame{Detector: "bolts", Camera: "left", ID: fmt.Sprint("f", i), Image: streamtest.Image(0.5)})
	}
	eventually.True(t, "all are scored", func() bool { return w.Stats().Scored == 20 })
	eventually.True(t, "drift is told", func() bool { return len(r.EventsOf(stream.KindDrift)) == 1 })
	if e := r.EventsOf(stream.KindDrift)[0]; e.Camera != "left" || e.Release != release || e.Drift.Frames != 5 {
		t.Errorf("%+v", e)
	}
	s, err := r.In.Status(t.Context())
	if err != nil || len(s.Detectors) != 1 || len(s.Detectors[0].Retrain) != 1 {
		t.Fatalf("%+v, %v", s, err)
	}
	if st := w.Status(); len(st.Drift) != 1 || st.Drift[0].Frames != 20 {
		t.Errorf("%+v", st)
	}
	// Another release has nothing to do with it.
	r.Release("bolts", streamtest.Fake{Name: "two"})
	if s, err = r.In.Status(t.Context()); err != nil || len(s.Detectors[0].Retrain) != 0 {
		t.Errorf("%+v, %v", s, err)
	}
}
