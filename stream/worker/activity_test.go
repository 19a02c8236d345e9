package worker

import (
	"testing"
	"time"

	"github.com/nearmiss/nearmiss/stream"
)

// TestAFrameAheadOfTheClockIsRecordedOnce: each write of a record has its silence reckoned from
// then, and a camera that sends nothing would never be silent.
func TestAFrameAheadOfTheClockIsRecordedOnce(t *testing.T) {
	var s cameraActivities
	news := func() (all []time.Time) {
		for _, c := range s.news(10 * time.Second) {
			s.recorded(c)
			all = append(all, c.LastFrame)
		}
		return all
	}
	hence := time.Now().Add(time.Hour).UTC()
	for i, c := range []struct {
		at   time.Time
		want bool
	}{
		{hence, true},
		{time.Time{}, false}, // none has come
		{hence.Add(20 * time.Second), true},
		{hence.Add(10 * time.Second), false}, // given back by another worker
		{hence.Add(-time.Hour), true},        // the clock was set back
		{time.Time{}, false},
	} {
		if !c.at.IsZero() {
			s.count("bolts", "left", c.at, time.Time{})
		}
		if got := news(); len(got) > 1 || (len(got) == 1) != c.want || c.want && !got[0].Equal(c.at) {
			t.Errorf("%d: on record now: %v, want %v: %v", i, got, c.at, c.want)
		}
	}
}

// TestAWorkerWhoseClockIsBehindLeavesYoungerRecords: it would have cameras back that are silent.
func TestAWorkerWhoseClockIsBehindLeavesYoungerRecords(t *testing.T) {
	now := time.Now()
	for name, c := range map[string]struct {
		t, before time.Time
		want      bool
	}{
		"younger":                         {now, now.Add(-time.Second), true},
		"older":                           {now.Add(-time.Second), now, false},
		"the same":                        {now, now, false},
		"the clock was set back":          {now, now.Add(time.Hour), true},
		"both ahead, as the broker's are": {now.Add(time.Hour), now.Add(time.Hour + time.Second), false},
		"the first":                       {now, stream.CameraStatus{}.LastFrame, true},
	} {
		if got := replaces(c.t, c.before); got != c.want {
			t.Errorf("%s: %v", name, got)
		}
	}
}
