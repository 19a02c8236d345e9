package main

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/nearmiss/nearmiss/inference/imaging/synthetic"
	"github.com/nearmiss/nearmiss/stream"
)

// TestTheOperatorsStory is the README's: a new detector learns from its camera,
// raises events, is told of a false alarm, is trained anew, and goes back.
func TestTheOperatorsStory(t *testing.T) {
	needRuntime(t)
	up := start(t, "up", "--data", t.TempDir(), "--port=-1", "--json")
	var a struct{ NATS string }
	if err := json.Unmarshal([]byte(up.line("its addresses", func(l string) bool { return strings.HasPrefix(l, "{") })), &a); err != nil {
		t.Fatal(err)
	}
	at := "--server=" + a.NATS
	l := listen(t, a.NATS)

	// Create it; it learns from the first frames of its camera.
	program(t, 0, "detector", "create", "parts", "--learn-frames=60", "--false-alarm-rate=0.1", at)
	good, bad := t.TempDir(), t.TempDir()
	draw(t, good, 90, 0, 0)
	draw(t, bad, 30, 500, 1)
	program(t, 0, "camera", good, "--detector=parts", "--camera=line1", at)
	eventually(t, "it learns and scores", func() bool { return len(l.scoresOf("parts")) == 30 })
	first := activeRelease(t, at)

	// Defects raise events.
	program(t, 0, "camera", bad, "--detector=parts", "--camera=line1", at)
	eventually(t, "all frames are scored", func() bool { return len(l.scoresOf("parts")) == 60 })
	var alarms []stream.Event
	eventually(t, "there are events", func() bool {
		alarms = nil
		for _, e := range l.alarms("parts") {
			if e.CapturedAt.After(l.scoresOf("parts")[29].CapturedAt) { // of the bad ones
				alarms = append(alarms, e)
			}
		}
		return len(alarms) >= 2
	})

	// One is called a false alarm: the bank has it at once, without training.
	program(t, 0, "mark", "parts", "normal", alarms[0].ID, at)
	eventually(t, "another release is active", func() bool { return activeRelease(t, at) != first })
	second := activeRelease(t, at)
	eventually(t, "it is in service", func() bool { return serves(t, at, second) })
	one := t.TempDir()
	image, err := os.ReadFile(filepath.Join(bad, alarms[0].Source))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(one, "again.png"), image, 0o644); err != nil {
		t.Fatal(err)
	}
	program(t, 0, "camera", one, "--detector=parts", "--camera=line1", at)
	eventually(t, "it is scored again", func() bool { return len(l.scoresOf("parts")) == 61 })
	if e := l.scoresOf("parts")[60]; *e.Anomalous || e.Release != second {
		t.Errorf("the false alarm again: score %v over %v, release %.12s", *e.Score, *e.Threshold, e.Release)
	}

	// Train on everything that is known to be normal, and go back.
	program(t, 0, "mark", "parts", "anomalous", alarms[1].ID, at)
	out, _ := program(t, 0, "train", "parts", "--wait", "--json", at)
	var job stream.Job
	lines := strings.Split(strings.TrimSpace(out), "\n")
	if err := json.Unmarshal([]byte(lines[len(lines)-1]), &job); err != nil || job.State != stream.JobDone || !job.Promoted || job.Normals != 61 {
		t.Fatalf("the job: %s, %v", lines[len(lines)-1], err)
	}
	if now := activeRelease(t, at); now != job.Release {
		t.Errorf("release %s is active, the job made %s", now, job.Release)
	}
	program(t, 0, "releases", "parts", "rollback", at)
	if now := activeRelease(t, at); now != second {
		t.Errorf("after the rollback release %s is active, want %s", now, second)
	}

	// Every frame has one score, and none was lost.
	seen := map[string]int{}
	for _, e := range l.scoresOf("parts") {
		seen[e.Camera+"/"+e.FrameID]++
	}
	if len(seen) != 61 {
		t.Errorf("%d frames of 61 were scored", len(seen))
	}
	for id, n := range seen {
		if n != 1 {
			t.Errorf("frame %s was scored %d times", id, n)
		}
	}
	if jobs, _ := program(t, 0, "jobs", "parts", at); strings.Count(jobs, " done ") != 3 {
		t.Errorf("jobs:\n%s", jobs)
	}
	if text, _ := program(t, 0, "status", at); !strings.Contains(text, second[:12]) || !strings.Contains(text, "61 normals, 1 labelled anomalies") {
		t.Errorf("status:\n%s", text)
	}
	up.stop()
}

// draw writes n synthetic parts, defective ones at a rate.
func draw(t *testing.T, dir string, n int, from uint64, rate float64) {
	t.Helper()
	gross := 0.0
	s, err := synthetic.New(synthetic.Parts, 1, synthetic.Options{DefectRate: rate, SubtleShare: &gross, Variation: 0.1, Defects: demoTasks[0].defects})
	if err != nil {
		t.Fatal(err)
	}
	for i := range n {
		img, _ := s.At(from + uint64(i))
		b, err := img.PNG()
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, fmt.Sprintf("%04d.png", i)), b, 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

func activeRelease(t *testing.T, at string) string {
	t.Helper()
	out, _ := program(t, 0, "releases", "parts", "--json", at)
	for line := range strings.SplitSeq(strings.TrimSpace(out), "\n") {
		var r struct {
			Release string
			Active  bool
		}
		if json.Unmarshal([]byte(line), &r) == nil && r.Active {
			return r.Release
		}
	}
	return ""
}

// serves says whether the worker has a release in service.
func serves(t *testing.T, at, release string) bool {
	t.Helper()
	out, _ := program(t, 0, "status", "--json", "--workers=200ms", at)
	var s struct{ Workers []stream.WorkerStatus }
	if err := json.Unmarshal([]byte(out), &s); err != nil {
		t.Fatal(err)
	}
	return len(s.Workers) == 1 && s.Workers[0].Serving["parts"] == release
}

// scoresOf returns what was scored of a detector so far.
func (l *listener) scoresOf(detector string) (all []stream.Event) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, e := range l.scores {
		if e.Detector == detector {
			all = append(all, e)
		}
	}
	return all
}

// alarms returns the anomaly events of a detector so far.
func (l *listener) alarms(detector string) (all []stream.Event) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, e := range l.events {
		if e.Detector == detector && e.Kind == stream.KindAnomaly {
			all = append(all, e)
		}
	}
	return all
}
