package stream_test

import (
	"fmt"
	"testing"

	"github.com/nearmiss/nearmiss/stream"
)

func TestWorkerScoresEveryFrameAndAnnouncesAnomalies(t *testing.T) {
	r := newRig(t, stream.Topology{})
	release := r.release("bolts", fake{Name: "one"})
	got := r.scores()
	w, stop := r.worker(stream.WorkerConfig{}, loadFake)
	const frames = 50
	for i := range frames {
		r.publish(stream.Frame{Detector: "bolts", Camera: "left", ID: fmt.Sprint("f", i), Image: image(float64(i) / frames), Truth: `{"defect":false}`})
	}
	eventually(t, "all frames are scored", func() bool { return w.Stats().Scored == frames })
	eventually(t, "the queue is empty", func() bool { return r.waiting() == 0 })
	stop()
	if err := r.nc.Flush(); err != nil {
		t.Fatal(err)
	}
	for id, s := range got.byFrame() {
		if len(s) != 1 {
			t.Errorf("frame %s has %d scores", id, len(s))
		}
	}
	if n := len(got.byFrame()); n != frames {
		t.Errorf("%d frames have a score, want %d", n, frames)
	}
	events := r.events()
	if len(events) != 4 {
		t.Errorf("%d events, want 4", len(events))
	}
	for _, e := range events {
		if e.Release != release || !*e.Anomalous || e.Truth == "" || e.Evidence == "" {
			t.Errorf("event %+v", e)
		}
	}
}
