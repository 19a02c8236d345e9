package main

import (
	"encoding/json"
	"fmt"
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/nearmiss/nearmiss/internal/eventually"
	"github.com/nearmiss/nearmiss/internal/synthetic"
	"github.com/nearmiss/nearmiss/stream"
	"github.com/nearmiss/nearmiss/training/evaluate"
)

// story is what the README tells of a camera and its alarms, one command line
// after the other.
type story struct {
	t     *testing.T
	at    string // the broker's address, as a flag
	lines [][]string
}

func readStory(t *testing.T) *story {
	t.Helper()
	readme, err := os.ReadFile("../../README.md")
	if err != nil {
		t.Fatal(err)
	}
	_, text, found := strings.Cut(string(readme), "\n## A camera and an alarm\n")
	text, _, ended := strings.Cut(text, "\n## Signals\n")
	if !found || !ended {
		t.Fatal("the README tells no story")
	}
	s := &story{t: t}
	for _, m := range regexp.MustCompile(`(?m)^bin/nearmiss ([^#\n]*)`).FindAllStringSubmatch(text, -1) {
		s.lines = append(s.lines, strings.Fields(m[1]))
	}
	return s
}

// next is the story's next command, which must begin as the test expects, with
// the placeholders filled in.
func (s *story) next(begins string, fill ...string) []string {
	s.t.Helper()
	if len(s.lines) == 0 {
		s.t.Fatalf("the README's story ends before %q", begins)
	}
	line := strings.Join(s.lines[0], " ")
	s.lines = s.lines[1:]
	if !strings.HasPrefix(line, begins) {
		s.t.Fatalf("the README's story goes on with %q, the test with %q", line, begins)
	}
	line = strings.NewReplacer(fill...).Replace(strings.TrimSuffix(line, " &"))
	args := strings.Fields(line)
	if s.at != "" {
		args = append(args, s.at)
	}
	return args
}

// run carries the next command out and returns its standard output.
func (s *story) run(begins string, fill ...string) string {
	s.t.Helper()
	out, _ := program(s.t, 0, s.next(begins, fill...)...)
	return out
}

// TestTheOperatorsStory runs the command lines of the README's story: a new
// detector learns from its camera, raises events, is told of a false alarm, is
// trained anew while frames come in, and goes back.
func TestTheOperatorsStory(t *testing.T) {
	needRuntime(t)
	s := readStory(t)
	up := start(t, append(s.next("up"), "--data", t.TempDir(), "--port=-1", "--json")...)
	url := up.natsAddress()
	s.at = "--server=" + url
	l := listen(t, url)
	scored := func(n int) {
		t.Helper()
		eventually.True(t, fmt.Sprintf("%d frames are scored", n), func() bool { return len(l.scoresOf("parts")) >= n && l.waiting(t) == 0 })
	}

	// It learns from the first frames of its camera, and scores those that follow.
	s.run("detector create parts")
	watch := start(t, s.next("watch parts --kind anomaly --json")...)
	s.run("camera synthetic:parts")
	scored(30)
	var jobs []stream.Job
	eventually.True(t, "the whole release follows the first one", func() bool {
		text, _ := program(t, 0, "jobs", "parts", "--json", s.at)
		jobs = readLines[stream.Job](t, text)
		return len(jobs) == 2 && jobs[0].State == stream.JobDone && jobs[1].State == stream.JobDone
	})
	first := activeRelease(t, "parts", s.at)
	eventually.True(t, "it is in service", func() bool { return serves(t, "parts", s.at, first) })
	if jobs[1].Completes() != jobs[0].Job || !jobs[0].Promoted || jobs[1].Release != first || jobs[0].Release == first {
		t.Errorf("release %.12s is active after %+v", first, jobs)
	}

	// Events tell of defects and of some good parts.
	s.run("camera synthetic:parts")
	scored(90)
	before := l.scoresOf("parts")[30:]
	wanted := 0
	shown := map[string]bool{} // the frames of the second run
	for _, e := range before {
		shown[e.FrameID] = true
		if *e.Anomalous {
			wanted++
		}
	}
	var falseAlarm, trueAlarm eventLine
	for range wanted {
		text := watch.line("an event of the second run", func(l string) bool {
			var e eventLine
			return json.Unmarshal([]byte(l), &e) == nil && shown[e.FrameID]
		})
		var e eventLine
		if err := json.Unmarshal([]byte(text), &e); err != nil {
			t.Fatal(err)
		}
		if truthOf(t, string(e.Truth)).Anomalous {
			trueAlarm = e
		} else {
			falseAlarm = e
		}
	}
	if falseAlarm.ID == "" || trueAlarm.ID == "" {
		t.Fatalf("%d events, but no false or no true alarm among them", wanted)
	}

	// The false alarm enters the bank at once, without training.
	s.run("mark parts normal", "FALSE_ALARM", falseAlarm.ID)
	eventually.True(t, "another release is active", func() bool { return activeRelease(t, "parts", s.at) != first })
	second := activeRelease(t, "parts", s.at)
	eventually.True(t, "it is in service", func() bool { return serves(t, "parts", s.at, second) })
	s.run("mark parts anomalous", "TRUE_ALARM", trueAlarm.ID)
	s.run("camera synthetic:parts")
	scored(150)
	after := l.scoresOf("parts")[90:]
	marked := truthOf(t, string(falseAlarm.Truth)).Index
	for _, e := range after {
		if e.Release != second {
			t.Errorf("frame %s was scored by release %.12s, want %.12s", e.FrameID, e.Release, second)
		}
		if truthOf(t, e.Truth).Index == marked && *e.Anomalous {
			t.Errorf("the false alarm again: score %v over %v", *e.Score, *e.Threshold)
		}
	}
	// See TestConfirmedNormalsDoNotBlunt for a measure on more than these.
	t.Logf("AUROC on the 59 other frames, starter backbone: %.4f before the mark, %.4f after it", auroc(t, before, marked), auroc(t, after, marked))

	// Train on everything that is known to be normal, while frames come in.
	line1 := start(t, s.next("camera synthetic:parts")...)
	scored(151)
	s.run("train parts --wait")
	third := activeRelease(t, "parts", s.at)
	if third == second || third == first {
		t.Errorf("release %.12s is active after the training", third)
	}
	eventually.True(t, "the new release is in service", func() bool {
		all := l.scoresOf("parts")
		return all[len(all)-1].Release == third
	})
	if out := s.run("releases parts"); !strings.Contains(out, "* "+third[:12]) || strings.Count(out, "\n") != 4 {
		t.Errorf("releases:\n%s", out)
	}
	s.run("releases parts rollback")
	eventually.True(t, "the release before is in service again", func() bool {
		all := l.scoresOf("parts")
		return all[len(all)-1].Release == second
	})
	if err := line1.cmd.Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	<-line1.exited

	// Each frame that the broker has taken was learnt from or has one score. What the
	// camera said last may come in after its end.
	frames, err := l.js.Stream(t.Context(), stream.Names{}.FramesStream())
	if err != nil {
		t.Fatal(err)
	}
	total, seen := 0, map[string]int{}
	eventually.True(t, "every frame is scored", func() bool {
		info, err := frames.Info(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		total, seen = int(info.State.LastSeq)-120, map[string]int{}
		for _, e := range l.scoresOf("parts") {
			seen[e.Camera+"/"+e.FrameID]++
		}
		return len(seen) == total && info.State.Msgs == 0
	})
	for id, n := range seen {
		if n != 1 {
			t.Errorf("frame %s was scored %d times", id, n)
		}
	}
	if text := s.run("status"); !strings.Contains(text, second[:12]) || !strings.Contains(text, "121 normals, 1 labelled anomalies") {
		t.Errorf("status:\n%s", text)
	}
	if jobs, _ := program(t, 0, "jobs", "parts", s.at); strings.Count(jobs, " done ") != 4 {
		t.Errorf("jobs:\n%s", jobs)
	}
	if len(s.lines) != 0 {
		t.Errorf("the README's story goes on: %v", s.lines)
	}
	t.Logf("%d frames through three releases and back: %d have one score", total, len(seen))
	watch.stop()
	up.stop()
}

func truthOf(t *testing.T, text string) (truth synthetic.Truth) {
	t.Helper()
	if err := json.Unmarshal([]byte(text), &truth); err != nil {
		t.Fatalf("ground truth %q: %v", text, err)
	}
	return truth
}

// auroc is of the scores of all frames but one.
func auroc(t *testing.T, events []stream.Event, but uint64) float64 {
	t.Helper()
	var normal, anomalous []float64
	for _, e := range events {
		switch truth := truthOf(t, e.Truth); {
		case truth.Index == but:
		case truth.Anomalous:
			anomalous = append(anomalous, *e.Score)
		default:
			normal = append(normal, *e.Score)
		}
	}
	return evaluate.AUROC(normal, anomalous)
}

func activeRelease(t *testing.T, detector, at string) string {
	t.Helper()
	out, _ := program(t, 0, "releases", detector, "--json", at)
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
func serves(t *testing.T, detector, at, release string) bool {
	t.Helper()
	out, _ := program(t, 0, "status", "--json", "--workers=200ms", at)
	var s struct{ Workers []stream.WorkerStatus }
	if err := json.Unmarshal([]byte(out), &s); err != nil {
		t.Fatal(err)
	}
	return len(s.Workers) == 1 && s.Workers[0].Serving[detector] == release
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
