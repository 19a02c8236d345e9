package main

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/nearmiss/nearmiss/inference"
	"github.com/nearmiss/nearmiss/internal/synthetic"
	"github.com/nearmiss/nearmiss/stream/camera"
	"github.com/nearmiss/nearmiss/training"
)

// What the demo's detectors find and how often they are wrong, by calibration and
// threshold: NEARMISS_TEST_DEMO=5 learns five times from other frames (make
// demo-found).
func TestWhatTheDemoFinds(t *testing.T) {
	runs, err := strconv.Atoi(os.Getenv("NEARMISS_TEST_DEMO"))
	if err != nil || runs < 1 {
		t.Skip("set NEARMISS_TEST_DEMO to how often each detector is to learn; a run takes two minutes")
	}
	needRuntime(t)
	model, _ := demoBackbone(t.Context(), &output{Out: os.Stderr, Err: os.Stderr})
	if model == "" {
		t.Skip("the demo's network is not to be had")
	}
	for _, task := range demoTasks {
		for name, held := range map[string]float64{"all in turn": 0, "20 % held out": 0.2, "40 % held out": 0.4} {
			t.Run(task.detector+" "+name, func(t *testing.T) {
				sum := &foundTally{kinds: map[string]*tally{}}
				for run := range runs {
					sum.learn(t, task, model, held, uint64(run))
				}
				t.Logf("\n%s", sum)
			})
		}
	}
}

// foundTally counts defects by kind, and normals, at several false-alarm rates.
type foundTally struct {
	at    [4]tally
	kinds map[string]*tally // at the demo's rate
	rates []float64         // of false alarms of single runs, at the demo's rate
	ranks float64           // of p-values of normals
}

var foundRates = [4]float64{0.005, demoAlpha, 0.02, 0.05}

// foundDemo is the place of the demo's rate among them.
const foundDemo = 1

func (f *foundTally) learn(t *testing.T, task demoTask, model string, held float64, run uint64) {
	good, mixed, err := task.images(0.25)
	if err != nil {
		t.Fatal(err)
	}
	const apart = 1_000_000
	next := camera.Drawn(good, run*apart)
	plan := training.Plan{
		Detector: task.detector, Out: filepath.Join(t.TempDir(), "release"), Seed: run,
		Model: training.Model{Backbone: model}, Calibration: training.Calibration{Alpha: demoAlpha, HeldOut: held, Settle: true},
	}
	for i := range demoLearn {
		b, _, err := next(i)
		if err != nil {
			t.Fatal(err)
		}
		plan.Data.Normals = append(plan.Data.Normals, training.Image{Name: fmt.Sprintf("%03d.png", i), Read: func() ([]byte, error) { return b, nil }})
	}
	if _, err := training.Fit(t.Context(), plan); err != nil {
		t.Fatal(err)
	}
	d, err := inference.Open(t.Context(), plan.Out, inference.Options{Maps: inference.MapNone})
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	next = camera.Drawn(mixed, run*apart+demoLearn)
	was := f.at[foundDemo]
	for i := 0; i < 400; i += 16 {
		f.see(t, d, next, i)
	}
	now := f.at[foundDemo]
	alarms, quiet := now.falseAlarms-was.falseAlarms, now.quiet-was.quiet
	f.rates = append(f.rates, float64(alarms)/float64(alarms+quiet))
}

// see counts the 16 frames from one on.
func (f *foundTally) see(t *testing.T, d *inference.Detector, next func(n int) ([]byte, string, error), from int) {
	var files [][]byte
	truths := []synthetic.Truth{}
	for i := from; i < from+16; i++ {
		b, text, err := next(i)
		if err != nil {
			t.Fatal(err)
		}
		var truth synthetic.Truth
		if err := json.Unmarshal([]byte(text), &truth); err != nil {
			t.Fatal(err)
		}
		files, truths = append(files, b), append(truths, truth)
	}
	scores, err := d.Score(context.Background(), files)
	if err != nil {
		t.Fatal(err)
	}
	for i, s := range scores {
		for k, alpha := range foundRates {
			f.at[k].count(truths[i].Anomalous, s.PValue <= alpha)
		}
		if !truths[i].Anomalous {
			f.ranks += s.PValue
			continue
		}
		kind := truths[i].Severity + " " + truths[i].Defect
		if f.kinds[kind] == nil {
			f.kinds[kind] = &tally{}
		}
		f.kinds[kind].count(true, s.PValue <= demoAlpha)
	}
}

func (f *foundTally) String() string {
	var b strings.Builder
	for k, a := range f.at {
		fmt.Fprintf(&b, "at %.3g %%: %d of %d defects found (%.1f %%), %d false alarms in %d (%.2f %%)\n", 100*foundRates[k],
			a.found, a.found+a.missed, 100*float64(a.found)/float64(a.found+a.missed), a.falseAlarms, a.falseAlarms+a.quiet, 100*float64(a.falseAlarms)/float64(a.falseAlarms+a.quiet))
	}
	fmt.Fprintf(&b, "mean p-value of normals %.3f; false alarms of single runs at %.3g %%:", f.ranks/float64(f.at[foundDemo].falseAlarms+f.at[foundDemo].quiet), 100*demoAlpha)
	for _, r := range f.rates {
		fmt.Fprintf(&b, " %.1f", 100*r)
	}
	b.WriteString("\n")
	for _, kind := range slices.Sorted(maps.Keys(f.kinds)) {
		a := f.kinds[kind]
		fmt.Fprintf(&b, "  %s: %d of %d\n", kind, a.found, a.found+a.missed)
	}
	return b.String()
}
