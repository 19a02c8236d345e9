package console

import (
	"testing"
	"time"

	"github.com/nearmiss/nearmiss/stream"
)

// A tick and a second of a camera have the last score and the highest one, in
// whatever order they came.
func TestTheHighestScoreIsKept(t *testing.T) {
	f, now, line1 := newFeed(), time.Now(), cameraName{"parts", "line1"}
	send := func(scores ...float64) {
		for _, s := range scores {
			threshold, p, odd := 2.0, 0.5, s > 2
			f.score(stream.Event{Detector: "parts", Camera: "line1", Score: &s, Threshold: &threshold, PValue: &p, Anomalous: &odd}, now)
		}
	}
	for _, c := range []struct {
		scores []float64
		want   row
	}{
		{[]float64{1, 3, 0.5}, row{0, 3, 0.5, 3, 2, 0.5, 1}},
		{[]float64{-2, -1}, row{0, 2, -1, -1, 2, 0.5, 0}}, // nothing is left of the tick before
	} {
		send(c.scores...)
		if rows, _ := f.take(1); len(rows) != 1 || rows[0] != c.want {
			t.Errorf("scores %v: the tick has %v, want %v", c.scores, rows, c.want)
		}
	}
	s, ok := f.series(line1, now.Add(-time.Minute))
	if !ok || len(s.T) != 1 || s.Max[0] != 3 || s.Last[0] != -1 || s.Alarms[0] != 1 {
		t.Errorf("the second has %+v", s)
	}
	if rows, _ := f.take(1); len(rows) != 0 {
		t.Errorf("a tick without frames has %v", rows)
	}
}
