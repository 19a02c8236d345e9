package training

import (
	"errors"
	"math"
	"path/filepath"
	"strings"
	"testing"

	"github.com/nearmiss/nearmiss/inference"
	"github.com/nearmiss/nearmiss/inference/onnx/lower"
	"github.com/nearmiss/nearmiss/inference/release"
)

func precisionPlan(t *testing.T, precision string) Plan {
	t.Helper()
	return Plan{
		Detector: "squares", Seed: 1, Out: filepath.Join(t.TempDir(), "release"), Data: Data{Normals: squares(t, 40)},
		Model:       Model{Backbone: smallBackbone(t), Precision: precision},
		Calibration: Calibration{Settle: true}, Score: Score{Coreset: 50},
	}
}

func TestAReleaseInEightBits(t *testing.T) {
	t.Parallel()
	plan := precisionPlan(t, PrecisionInt8)
	if _, err := Fit(t.Context(), plan); err != nil {
		t.Fatal(err)
	}
	_, d := provenanceOf(t, plan.Out)
	m := d.Release().Manifest
	if m.Model.Precision != release.Int8 || d.Embedder().Options().Precision != release.Int8 {
		t.Fatalf("the manifest says %q, the model computes %q", m.Model.Precision, d.Embedder().Options().Precision)
	}
	var files [][]byte
	for _, n := range plan.Data.Normals[:8] {
		b, err := n.Read()
		if err != nil {
			t.Fatal(err)
		}
		files = append(files, b)
	}
	together, err := d.Score(t.Context(), files)
	if err != nil {
		t.Fatal(err)
	}
	for i := range files {
		alone, err := d.Score(t.Context(), files[i:i+1])
		if err != nil {
			t.Fatal(err)
		}
		if a, b := alone[0].Score, together[i].Score; !(math.Abs(a-b) <= 1e-5*math.Abs(a)) {
			t.Errorf("picture %d scores %v alone and %v in company", i, a, b)
		}
	}

	// The same plan in 32 bits gives about the same embeddings, and others.
	float, err := inference.NewEmbedder(d.Release().Path(m.Model.File), inference.EmbedOptions{Preprocess: &m.Model.Preprocess})
	if err != nil {
		t.Fatal(err)
	}
	defer float.Close()
	a, err := float.Embed(t.Context(), files)
	if err != nil {
		t.Fatal(err)
	}
	b, err := d.Embedder().Embed(t.Context(), files)
	if err != nil {
		t.Fatal(err)
	}
	for i := range a {
		dot, aa, bb, same := 0.0, 0.0, 0.0, true
		for j, x := range a[i].Vector {
			y := b[i].Vector[j]
			dot, aa, bb, same = dot+float64(x)*float64(y), aa+float64(x)*float64(x), bb+float64(y)*float64(y), same && x == y
		}
		if c := dot / math.Sqrt(aa*bb); same || !(c > 0.99) {
			t.Errorf("picture %d: cosine %v of the embeddings with 8 and 32 bits, equal: %v", i, c, same)
		}
	}
}

func TestThePrecisionIsChosen(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		gate precisionGate
		want string
	}{
		"8 bits do":               {precisionGate{1e-9, 1}, PrecisionInt8},
		"8 bits are to be better": {precisionGate{1e-9, -1}, PrecisionFloat},
		"nothing is fast enough":  {precisionGate{1e9, 1}, PrecisionFloat},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			plan := precisionPlan(t, PrecisionAuto)
			plan.Model.eightBits = c.gate
			res, err := Fit(t.Context(), plan)
			if err != nil {
				t.Fatal(err)
			}
			prov, d := provenanceOf(t, plan.Out)
			r := res.Precision
			if r == nil || prov.Precision == nil || r.Choice != prov.Precision.Choice || !(r.Speed > 0) || !strings.HasPrefix(r.String(), r.Choice) {
				t.Fatalf("%+v, in the release %+v", r, prov.Precision)
			}
			if r.Choice != c.want || (d.Embedder().Options().Precision == release.Int8) != (c.want == PrecisionInt8) {
				t.Errorf("%+v, and the model computes %q", r, d.Embedder().Options().Precision)
			}
			if res.Folded == 0 {
				t.Error("only what was held out calibrates")
			}
			if judged := c.gate.faster < 1; judged != (r.Held == 8 && r.Low != nil && r.Int8 != nil && *r.Int8 > 0 && *r.Int8 < 1) {
				t.Errorf("%+v", r)
			}
		})
	}
}

func TestEightBitsThatCannotBeHad(t *testing.T) {
	t.Parallel()
	plan := precisionPlan(t, PrecisionInt8)
	plan.Model.Backbone = foreignBackbone(t)
	if _, err := Fit(t.Context(), plan); !errors.Is(err, lower.ErrNothingToQuantize) {
		t.Errorf("a backbone without products: %v", err)
	}
	plan.Model.Precision = PrecisionAuto
	res, err := Fit(t.Context(), plan)
	if err != nil || res.Precision == nil || res.Precision.Choice != PrecisionFloat || res.Precision.Reason == "" {
		t.Errorf("the choice for a backbone without products: %+v, %v", res, err)
	}
	plan.Model.Precision = "fp4"
	if err := plan.Validate(); !errors.Is(err, ErrPlan) {
		t.Errorf("precision fp4: %v", err)
	}
	plan.Model.Precision = PrecisionAuto
	plan.Host.Work = t.TempDir()
	if _, err := ForEvaluation(plan, nil, nil); !errors.Is(err, ErrPlan) {
		t.Errorf("an evaluation that is to choose: %v", err)
	}
}
