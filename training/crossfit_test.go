package training

import (
	"math"
	"path/filepath"
	"slices"
	"testing"

	"github.com/nearmiss/nearmiss/inference"
	"github.com/nearmiss/nearmiss/inference/release"
)

// Every normal calibrates a score of several parts: a fifth of them by the release's
// own banks, the others by banks made in the same way, so that new normals are as
// strange as they are.
func TestAllNormalsCalibrateInTurn(t *testing.T) {
	all := squares(t, 160)
	learnt, later := all[:80], all[80:]
	plan := Plan{
		Detector: "squares", Out: filepath.Join(t.TempDir(), "release"), Seed: 4, Data: Data{Normals: learnt, Frame: FrameAll},
		Model: Model{Backbone: smallBackbone(t), Light: LightUsual}, Score: Score{Coreset: 60}, Calibration: Calibration{Alpha: 0.02},
	}
	res, err := Fit(t.Context(), plan)
	if err != nil {
		t.Fatal(err)
	}
	if res.Bank != 64 || res.HeldOut != 80 || res.Folded != 64 || math.Abs(res.Smallest-1./81) > 1e-12 {
		t.Errorf("%d in the bank, %d calibrate, of these %d in turn, at least %v", res.Bank, res.HeldOut, res.Folded, res.Smallest)
	}
	d, err := inference.Open(t.Context(), plan.Out, inference.Options{Maps: inference.MapNone})
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	if c := d.Release().Manifest.Calibration; c.HeldOut != 80 || c.Folded != 64 {
		t.Errorf("the manifest says %+v", c)
	}
	judge := func(images []Image) (out []inference.Score) {
		var files [][]byte
		for _, m := range images {
			b, err := m.Read()
			if err != nil {
				t.Fatal(err)
			}
			files = append(files, b)
		}
		out, err := d.Score(t.Context(), files)
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	lines, err := release.ReadNormals(plan.Out)
	if err != nil {
		t.Fatal(err)
	}
	calibration := d.Bank().Calibration().HeldOut()
	for i, s := range judge(learnt) {
		near := slices.ContainsFunc(calibration, func(v float64) bool { return math.Abs(v-s.Score) <= 1e-4*v })
		if lines[i].Use == UsedToHold && !near {
			t.Errorf("%s is in no bank and scores %v, which does not calibrate", learnt[i].Name, s.Score)
		}
	}
	mean := 0.0
	for _, s := range judge(later) {
		mean += s.PValue / float64(len(later))
	}
	if mean < 0.4 || mean > 0.6 {
		t.Errorf("the mean p-value of later normals is %.3f", mean)
	}

	plan.Out, plan.Calibration = filepath.Join(t.TempDir(), "release"), Calibration{Alpha: 0.06, HeldOut: 0.2}
	if res, err = Fit(t.Context(), plan); err != nil || res.HeldOut != 16 || res.Folded != 0 {
		t.Errorf("with a share held out: %+v, %v", res, err)
	}
}
