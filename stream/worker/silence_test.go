package worker_test

import (
	"encoding/json"
	"fmt"
	"testing"
	"time"

	"github.com/nearmiss/nearmiss/internal/eventually"
	"github.com/nearmiss/nearmiss/stream"
	"github.com/nearmiss/nearmiss/stream/internal/streamtest"
	"github.com/nearmiss/nearmiss/stream/worker"
)

// TestACameraThatFallsSilentIsAnEvent, and so is its return: one each, however
// many workers notice, also after they have been started again. A worker that is
// held up for longer than the silence that is allowed may make one of the first
// frames, too: each silence has its end, and none is told twice.
func TestACameraThatFallsSilentIsAnEvent(t *testing.T) {
	r := streamtest.New(t, stream.Topology{})
	r.Detector(stream.Detector{Name: "bolts", Silence: stream.Duration(time.Second)})
	r.Detector(stream.Detector{Name: "nuts"}) // silence is nothing there
	r.Release("bolts", streamtest.Fake{Name: "one"})
	r.Release("nuts", streamtest.Fake{Name: "one"})
	a, stopA := r.Worker(worker.Config{BatchSize: 1}, streamtest.LoadFake)
	b, stopB := r.Worker(worker.Config{BatchSize: 1}, streamtest.LoadFake)
	send := func(detector, id string) {
		t.Helper()
		r.Publish(stream.Frame{Detector: detector, Camera: "left", ID: id, Image: streamtest.Image(0.1)})
	}
	for i := range 8 {
		send("bolts", fmt.Sprint(i))
	}
	send("nuts", "f")
	eventually.True(t, "all are scored", func() bool { return a.Stats().Scored+b.Stats().Scored == 9 })
	rate := 0.0
	for _, w := range []*worker.Worker{a, b} {
		for _, c := range w.Status().Cameras {
			if c.Detector == "bolts" && c.Camera == "left" {
				rate += c.PerSecond
			}
		}
	}
	if rate != 8.0/60 {
		t.Errorf("%v frames a second", rate)
	}
	said := func() (codes []string) {
		for _, e := range r.EventsOf(stream.KindCamera) {
			codes = append(codes, e.Detector+"/"+e.Camera+" "+e.Code)
		}
		return codes
	}
	silent := func() bool { return len(said())%2 == 1 }
	eventually.True(t, "it is silent", silent)
	eventually.True(t, "both cameras are on record", func() bool {
		all, err := r.In.Cameras(t.Context())
		return err == nil && len(all) == 2
	})
	stopA()
	stopB()
	before := len(said())
	w, _ := r.Worker(worker.Config{}, streamtest.LoadFake)
	sent := time.Now()
	send("bolts", "again")
	eventually.True(t, "it is back, and silent once more", func() bool { return len(said()) > before && silent() })
	for i, got := range said() {
		if want := []string{"bolts/left silent", "bolts/left back"}[i%2]; got != want {
			t.Errorf("%d: %s, want %s", i, got, want)
		}
	}
	var all []stream.CameraStatus
	eventually.True(t, "the record says so", func() bool {
		var err error
		all, err = r.In.Cameras(t.Context())
		return err == nil && len(all) == 2 && all[0].Silent && all[0].LastFrame.After(sent)
	})
	if all[0].Detector != "bolts" || all[1].Silent || all[1].LastFrame.IsZero() {
		t.Errorf("%+v", all)
	}
	if st, err := r.In.Status(t.Context()); err != nil || len(st.Cameras) != 2 {
		t.Errorf("%+v, %v", st.Cameras, err)
	}
	eventually.True(t, "the frame is counted", func() bool { return w.Stats().Scored == 1 })
	if err := r.In.DeleteDetector(t.Context(), "bolts", false); err != nil {
		t.Fatal(err)
	}
	if all, err := r.In.Cameras(t.Context()); err != nil || len(all) != 1 {
		t.Errorf("after the detector's end: %+v, %v", all, err)
	}
}

// TestSilenceWhenTheClockWasSetBack: the last frame on record is an hour ahead.
func TestSilenceWhenTheClockWasSetBack(t *testing.T) {
	r := streamtest.New(t, stream.Topology{})
	r.Detector(stream.Detector{Name: "bolts", Silence: stream.Duration(time.Second)})
	r.Release("bolts", streamtest.Fake{Name: "one"})
	bucket, err := r.JS.KeyValue(t.Context(), r.Names.WorkBucket())
	if err != nil {
		t.Fatal(err)
	}
	c, err := json.Marshal(stream.CameraStatus{Detector: "bolts", Camera: "left", LastFrame: time.Now().Add(time.Hour)})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := bucket.Put(t.Context(), "camera.bolts.left", c); err != nil {
		t.Fatal(err)
	}
	r.Worker(worker.Config{}, streamtest.LoadFake)
	codes := func() (all string) {
		for _, e := range r.EventsOf(stream.KindCamera) {
			all += e.Code + " "
		}
		return all
	}
	eventually.True(t, "it is silent", func() bool { return codes() == "silent " })
	r.Publish(stream.Frame{Detector: "bolts", Camera: "left", ID: "f", Image: streamtest.Image(0.1)})
	eventually.True(t, "it is back, and silent once more", func() bool { return codes() == "silent back silent " })
	if all, err := r.In.Cameras(t.Context()); err != nil || len(all) != 1 || all[0].LastFrame.After(time.Now()) {
		t.Errorf("%+v, %v", all, err)
	}
}

// TestFramesThatWaitAreNoSilence: where workers are behind, cameras are not silent.
func TestFramesThatWaitAreNoSilence(t *testing.T) {
	r := streamtest.New(t, stream.Topology{})
	r.Detector(stream.Detector{Name: "bolts", Silence: stream.Duration(time.Second)})
	r.Release("bolts", streamtest.Fake{Name: "slow", Delay: 1500 * time.Millisecond})
	for i := range 2 {
		r.Publish(stream.Frame{Detector: "bolts", Camera: "left", ID: fmt.Sprint(i), Image: streamtest.Image(0.1)})
	}
	w, _ := r.Worker(worker.Config{BatchSize: 1, Lanes: 1}, streamtest.LoadFake)
	eventually.True(t, "it is silent when nothing waits any more", func() bool { return len(r.EventsOf(stream.KindCamera)) > 0 })
	if n := w.Stats().Scored; n != 2 {
		t.Errorf("it was called silent when %d of its 2 frames were scored", n)
	}
}

// TestASilenceIsToldByAnother: the worker that noticed it died between the record
// and the event.
func TestASilenceIsToldByAnother(t *testing.T) {
	r := streamtest.New(t, stream.Topology{})
	r.Detector(stream.Detector{Name: "bolts", Silence: stream.Duration(time.Hour)})
	bucket, err := r.JS.KeyValue(t.Context(), r.Names.WorkBucket())
	if err != nil {
		t.Fatal(err)
	}
	c, err := json.Marshal(stream.CameraStatus{Detector: "bolts", Camera: "left", LastFrame: time.Now().Add(-2 * time.Hour), Silent: true, Unreported: true})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := bucket.Put(t.Context(), "camera.bolts.left", c); err != nil {
		t.Fatal(err)
	}
	r.Worker(worker.Config{}, streamtest.LoadFake)
	eventually.True(t, "it is told", func() bool {
		all := r.EventsOf(stream.KindCamera)
		return len(all) == 1 && all[0].Code == stream.CameraSilent && all[0].Camera == "left"
	})
	eventually.True(t, "and that is on record", func() bool {
		all, err := r.In.Cameras(t.Context())
		return err == nil && len(all) == 1 && all[0].Silent && !all[0].Unreported
	})
}

// TestAFrozenCameraIsOnRecord: since when a camera has sent the same picture is
// known to everybody, until it sends another.
func TestAFrozenCameraIsOnRecord(t *testing.T) {
	r := streamtest.New(t, stream.Topology{})
	r.Detector(stream.Detector{Name: "bolts"})
	r.Release("bolts", streamtest.Fake{Name: "one"})
	r.Worker(worker.Config{}, streamtest.LoadFake)
	since := time.Now().Add(-time.Hour).UTC().Truncate(time.Second)
	says := func(want time.Time) func() bool {
		return func() bool {
			st, err := r.In.Status(t.Context())
			return err == nil && len(st.Cameras) == 1 && st.Cameras[0].UnchangedSince.Equal(want)
		}
	}
	r.Publish(stream.Frame{Detector: "bolts", Camera: "left", ID: "1", Image: streamtest.Image(0.1), UnchangedSince: since})
	eventually.True(t, "the camera is frozen", says(since))
	r.Publish(stream.Frame{Detector: "bolts", Camera: "left", ID: "2", Image: streamtest.Image(0.2)})
	eventually.True(t, "it is not any more", says(time.Time{}))
}
