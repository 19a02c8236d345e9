package training

import (
	"encoding/json"
	"errors"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/nearmiss/nearmiss/bank"
	"github.com/nearmiss/nearmiss/inference"
	"github.com/nearmiss/nearmiss/inference/backbone"
	"github.com/nearmiss/nearmiss/inference/imaging"
	"github.com/nearmiss/nearmiss/inference/onnx"
	"github.com/nearmiss/nearmiss/training/dataset"
	"github.com/nearmiss/nearmiss/training/evaluate"
)

func TestScoresAreRead(t *testing.T) {
	for text, want := range map[string][]Part{
		"class": {ClassPart}, "both": {ClassPart, PatchPart}, "": {ClassPart}, "auto": {ClassPart},
		"pooled + patch": {PooledPart, PatchPart}, "class+frozen-class": {ClassPart, FrozenClassPart},
	} {
		got, auto, err := ParseScore(text)
		if err != nil || !slices.Equal(got, want) || auto != (text == "auto") {
			t.Errorf("%q: %v, %v, %v", text, got, auto, err)
		}
	}
	for _, text := range []string{"left", "class+class", "class+", "auto+class"} {
		if _, _, err := ParseScore(text); err == nil {
			t.Errorf("%q is accepted", text)
		}
	}
}

func TestOnlyWhatMakesSenseIsAskedOfPatches(t *testing.T) {
	for name, o := range map[string]PatchOptions{
		"a negative layer": {Layer: -1}, "an unknown statistic": {Statistic: "median"}, "a negative coreset": {Coreset: -1}, "no number": {Coreset: math.NaN()},
	} {
		if o.validate() == nil {
			t.Errorf("%s is accepted", name)
		}
	}
	for o, want := range map[float64]int{0: 20_000, 0.25: 25_000, 1: 100_000, 500: 500, 1e9: 100_000} {
		if got := (PatchOptions{Coreset: o}).withDefaults().want(100_000); got != want {
			t.Errorf("coreset %g of 100,000: %d, want %d", o, got, want)
		}
	}
	p := Plan{Detector: "d", Backbone: "b", Out: "o", Parts: []Part{PatchPart}, Patches: PatchOptions{Off: true}}
	if err := p.Validate(); err == nil || !strings.Contains(err.Error(), "bank of patches") {
		t.Errorf("patches without a bank: %v", err)
	}
}

// redSquare is a square with a red patch at the lower right.
func redSquare(t *testing.T, m Image) []byte {
	t.Helper()
	b, err := m.Read()
	if err != nil {
		t.Fatal(err)
	}
	img, err := imaging.Decode(b, imaging.DefaultLimits())
	if err != nil {
		t.Fatal(err)
	}
	for x := range 18 {
		for y := range 14 {
			img.SetRGB(20+x, 22+y, 250, 20, 20)
		}
	}
	if b, err = img.PNG(); err != nil {
		t.Fatal(err)
	}
	return b
}

func TestFitScoresOnClassAndPatches(t *testing.T) {
	normals := squares(t, 42)
	out, next := filepath.Join(t.TempDir(), "release"), filepath.Join(t.TempDir(), "next")
	plan := Plan{
		Detector: "squares", Normals: normals[:40], Backbone: smallBackbone(t), Out: out, Seed: 5, Settle: true,
		Parts: []Part{ClassPart, PatchPart}, Patches: PatchOptions{Coreset: 100},
	}
	res, err := Fit(t.Context(), plan)
	if err != nil {
		t.Fatal(err)
	}
	if res.Score != "class+patch" || res.Patches != 100 {
		t.Fatalf("%+v", res)
	}
	d, err := inference.Open(t.Context(), out, inference.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	m := d.Release().Manifest
	class, patch := m.Parts[0], m.Parts[1]
	if !class.Scored || !patch.Scored || class.Weight == patch.Weight || patch.Bank.K != 1 || patch.Radius <= 0 || patch.Heat == nil || patch.Layer != 1 {
		t.Errorf("parts %+v", m.Parts)
	}
	if m.Calibration.HeldOut != 8 || m.Calibration.Threshold == nil {
		t.Errorf("calibration %+v", m.Calibration)
	}
	strange, err := d.Score(t.Context(), [][]byte{redSquare(t, normals[40])})
	if err != nil {
		t.Fatal(err)
	}
	s := strange[0]
	if s.Err != nil || !s.Anomalous || len(s.Parts) != 2 || s.Map == nil {
		t.Fatalf("a red patch: %+v", s)
	}
	hot := 0
	for i, v := range s.Map.Values {
		if v > s.Map.Values[hot] {
			hot = i
		}
	}
	if x, y := hot%s.Map.Width, hot/s.Map.Width; x < 2 || y < 2 {
		t.Errorf("the hottest patch is %d,%d: %v", x, y, s.Map.Values)
	}

	// A confirmed normal enters every bank, and is then one.
	x := Extension{Release: out, Normals: []Image{{Name: "bar", Read: func() ([]byte, error) { return redSquare(t, normals[40]), nil }}}, Out: next}
	grown, err := Extend(t.Context(), x)
	if err != nil {
		t.Fatal(err)
	}
	if grown.Bank != res.Bank+1 || grown.Patches <= res.Patches || grown.Threshold != res.Threshold || grown.Score != res.Score {
		t.Errorf("before %+v, after %+v", res, grown)
	}
	e, err := inference.Open(t.Context(), next, inference.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer e.Close()
	again, err := e.Score(t.Context(), [][]byte{redSquare(t, normals[40])})
	if err != nil {
		t.Fatal(err)
	}
	if again[0].Anomalous || again[0].Score >= s.Score {
		t.Errorf("after it was confirmed: %+v", again[0])
	}
	if e.Parts()[1].Bank.Len() != grown.Patches || e.Release().Manifest.Parts[1].Heat == nil {
		t.Errorf("%+v", e.Release().Manifest.Parts[1])
	}
}

func TestFitOnPatchesAlone(t *testing.T) {
	normals := squares(t, 40)
	plan := Plan{
		Detector: "squares", Normals: normals, Backbone: smallBackbone(t), Out: filepath.Join(t.TempDir(), "release"), Seed: 5, Settle: true,
		Parts: []Part{PatchPart}, Patches: PatchOptions{Statistic: "max"},
	}
	if _, err := Fit(t.Context(), plan); err != nil {
		t.Fatal(err)
	}
	d, err := inference.Open(t.Context(), plan.Out, inference.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	if p := d.Parts(); len(p) != 2 || p[0].About.Name != "class" || p[0].About.Scored || !p[1].About.Scored {
		t.Fatalf("%+v", d.Release().Manifest.Parts)
	}
	s, err := d.Score(t.Context(), [][]byte{redSquare(t, normals[0])})
	if err != nil {
		t.Fatal(err)
	}
	// One part's score is its own, and the nearest images are still told.
	if s[0].Score != float64(slices.Max(s[0].Map.Values)) || !s[0].Anomalous || len(s[0].Nearest) != 2 {
		t.Errorf("%+v", s[0])
	}
}

func TestFitWhitensEitherBank(t *testing.T) {
	normals := squares(t, 40)
	plan := Plan{
		Detector: "squares", Normals: normals[:39], Backbone: smallBackbone(t), Out: filepath.Join(t.TempDir(), "release"), Seed: 5, Settle: true,
		Parts: []Part{ClassPart, PatchPart}, Whiten: 0.1, Patches: PatchOptions{Whiten: 0.5, Coreset: 200},
	}
	if _, err := Fit(t.Context(), plan); err != nil {
		t.Fatal(err)
	}
	d, err := inference.Open(t.Context(), plan.Out, inference.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	s, err := d.Score(t.Context(), [][]byte{redSquare(t, normals[39])})
	if err != nil {
		t.Fatal(err)
	}
	// A whitened normal has a squared length of about its dimensions, 64.
	if p := s[0].Parts; s[0].Err != nil || !s[0].Anomalous || p[0].Score < 10 || p[1].Score < 1 {
		t.Errorf("%+v", s[0])
	}
	if r := d.Release().Manifest.Parts[1].Radius; r != 0 {
		t.Errorf("radius %v of plain distances", r)
	}
	for _, bad := range []float64{-1, 2, math.NaN()} {
		p, q := plan, plan
		p.Whiten, q.Patches.Whiten = bad, bad
		if p.Validate() == nil || q.Validate() == nil {
			t.Errorf("shrinkage %v is accepted", bad)
		}
	}
}

func TestFitWithoutPatchesServesTheBackboneItself(t *testing.T) {
	plan := Plan{
		Detector: "squares", Normals: squares(t, 20), Backbone: smallBackbone(t), Out: filepath.Join(t.TempDir(), "release"), Seed: 5, Settle: true,
		Patches: PatchOptions{Off: true},
	}
	res, err := Fit(t.Context(), plan)
	if err != nil {
		t.Fatal(err)
	}
	d, err := inference.Open(t.Context(), plan.Out, inference.Options{Maps: inference.MapAll})
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	want, err := os.ReadFile(plan.Backbone)
	if err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile(d.Release().Path(d.Release().Manifest.Model.File))
	if err != nil {
		t.Fatal(err)
	}
	if res.Patches != 0 || d.HasMaps() || !slices.Equal(want, got) {
		t.Errorf("%+v; maps: %v; the model is the backbone: %v", res, d.HasMaps(), slices.Equal(want, got))
	}
}

// foreignBackbone is a model of another program: the mean colours of the image's
// halves.
func foreignBackbone(t *testing.T) string {
	t.Helper()
	g := onnx.New("foreign")
	x := g.Input(backbone.InputImage, onnx.Uint8, 1, 32, 32, 3)
	halves := g.Split(g.Scale(g.Cast(x, onnx.Float), 1.0/255), 2, 16, 16)
	e := g.Concat(1, g.ReduceMean(halves[0], false, 1, 2), g.ReduceMean(halves[1], false, 1, 2))
	g.Output(backbone.OutputEmbedding, e)
	x.SetDimName(0, "N")
	e.SetDimName(0, "N")
	p, err := json.Marshal(imaging.Preprocess{Resize: 32, Crop: 32, Interpolation: imaging.Bilinear, Mean: [3]float64{0.5, 0.5, 0.5}, Std: [3]float64{0.5, 0.5, 0.5}})
	if err != nil {
		t.Fatal(err)
	}
	g.SetMetadata(backbone.MetadataPreprocess, string(p))
	path := filepath.Join(t.TempDir(), "foreign.onnx")
	if err := g.WriteFile(path); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestForeignModelsHaveNoPatches(t *testing.T) {
	plan := Plan{Detector: "squares", Normals: squares(t, 20), Backbone: foreignBackbone(t), Out: filepath.Join(t.TempDir(), "release"), Settle: true, Advise: true}
	res, err := Fit(t.Context(), plan)
	if err != nil {
		t.Fatal(err)
	}
	if res.Patches != 0 || res.Score != "class" || len(res.Advice.Scores) != 1 {
		t.Errorf("%+v, advice %+v", res, res.Advice)
	}
	plan.Parts, plan.Out = []Part{PatchPart}, filepath.Join(t.TempDir(), "other")
	if _, err := Fit(t.Context(), plan); !errors.Is(err, ErrPlan) {
		t.Errorf("patches of a foreign model: %v", err)
	}
	plan.Parts, plan.Work = []Part{PatchPart}, t.TempDir()
	m, err := ForEvaluation(plan, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := m.Fit(t.Context(), twoClasses(t, 10).Items, 1); !errors.Is(err, ErrPlan) {
		t.Errorf("patches of a foreign model: %v", err)
	}
}

func TestPatchesInAGraphIndex(t *testing.T) {
	plan := Plan{
		Detector: "squares", Normals: squares(t, 40), Backbone: smallBackbone(t), Out: filepath.Join(t.TempDir(), "release"), Settle: true, Seed: 5,
		Parts: []Part{PatchPart}, Index: bank.HNSW,
	}
	if _, err := Fit(t.Context(), plan); err != nil {
		t.Fatal(err)
	}
	prov, d := provenanceOf(t, plan.Out)
	if r := prov.Patches.Index; r.Wanted != bank.HNSW || r.Kind != bank.HNSW && r.Fallback == "" {
		t.Errorf("%+v", r)
	}
	if p := d.Release().Manifest.Parts[1].Bank; p.Recall == nil || p.Count < 100 {
		t.Errorf("%+v", p)
	}
}

func TestFitAdvisesAndTakesTheAdvice(t *testing.T) {
	plan := Plan{
		Detector: "squares", Normals: squares(t, 40), Backbone: smallBackbone(t), Out: filepath.Join(t.TempDir(), "release"), Seed: 5, Settle: true,
		Auto: true,
	}
	res, err := Fit(t.Context(), plan)
	if err != nil {
		t.Fatal(err)
	}
	a := res.Advice
	if a == nil || len(a.Scores) != 5 || a.Choice != res.Score || a.Normals != 6 || len(a.Kinds) < 10 || a.Reason == "" || !(a.Sure >= 0 && a.Sure <= 1) {
		t.Fatalf("%+v", a)
	}
	for _, s := range a.Scores {
		if !(s.Low <= s.AUROC && s.AUROC <= s.High) || s.Low < 0 || s.High > 1 || len(s.Kinds) != len(a.Kinds) {
			t.Errorf("%+v", s)
		}
	}
	prov, d := provenanceOf(t, plan.Out)
	if prov.Advice == nil || prov.Advice.Choice != a.Choice || strings.Join(d.Info().Parts, "+") != a.Choice {
		t.Errorf("provenance %+v, parts %v", prov.Advice, d.Info().Parts)
	}
	// What only the advice needed is not served.
	if want := 64 * len(vectorParts(prov.Score)); d.Embedder().Dim() != want {
		t.Errorf("the model gives %d numbers, want %d", d.Embedder().Dim(), want)
	}
}

func TestAdviceIsClassUnlessAnotherIsSurelyBetter(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	const n = 40
	part := func(shift float64) map[string][]float64 {
		out := map[string][]float64{}
		for range n {
			out[groupUnseen] = append(out[groupUnseen], math.Exp(r.NormFloat64()))
			for _, kind := range []string{"warp", "blur"} {
				out[kind] = append(out[kind], math.Exp(r.NormFloat64()+shift))
			}
		}
		return out
	}
	parts := []Part{ClassPart, PooledPart, PatchPart}
	better := exam{ClassPart: part(0.5), PooledPart: part(0.4), PatchPart: part(3)}.advise(parts, 7)
	if better.Choice != "patch" && better.Choice != "class+patch" || better.Sure < 0.95 {
		t.Errorf("patches find much more: %+v", better)
	}
	same := part(1)
	even := exam{ClassPart: same, PooledPart: same, PatchPart: same}.advise(parts, 7)
	if even.Choice != "class" {
		t.Errorf("all are equal: %+v", even)
	}
	if d := cmp.Diff(even, exam{ClassPart: same, PooledPart: same, PatchPart: same}.advise(parts, 7), cmp.AllowUnexported(Advice{})); d != "" {
		t.Error(d)
	}
	alone := exam{ClassPart: part(1)}.advise([]Part{ClassPart}, 7)
	if alone.Choice != "class" || len(alone.Scores) != 1 {
		t.Errorf("no other score: %+v", alone)
	}
	nothing := exam{ClassPart: {groupUnseen: same[groupUnseen]}}.advise([]Part{ClassPart}, 7)
	if nothing.Choice != "class" || nothing.Reason == "" {
		t.Errorf("nothing to compare by: %+v", nothing)
	}
}

func TestMarksAreRobust(t *testing.T) {
	m := markOf([]float64{1, 2, 4, 8, 0})
	if m.scale != 2 || math.Abs(m.weight-1/(math.Ln2*math.Sqrt(5.0/3))) > 1e-9 {
		t.Errorf("%+v", m)
	}
	for _, few := range [][]float64{nil, {0, 0, 0, 0, 0}, {1, 2}, {math.Inf(1)}} {
		if m := markOf(few); !(m.scale > 0) || m.weight != 1 || math.IsInf(m.scale, 0) {
			t.Errorf("%v: %+v", few, m)
		}
	}
	if m := markOf([]float64{3, 3, 3, 3, 3}); m.weight != 1/leastSpread {
		t.Errorf("equal scores: %+v", m)
	}
}

func TestPatchesUnderTheProtocols(t *testing.T) {
	set := twoClasses(t, 30)
	shared := &Shared{}
	defer shared.Close()
	train, test := set.Select(dataset.Train, "blue"), set.Select(dataset.Test, "")
	if len(train) == 0 {
		train = set.Select(dataset.Train, set.Labels()[0])
	}
	var scores [][]float64
	for _, c := range []float64{1, 0.1} {
		plan := Plan{Method: KNN, Backbone: smallBackbone(t), Work: t.TempDir(), Parts: []Part{PatchPart}, Patches: PatchOptions{Coreset: c}}
		m, err := ForEvaluation(plan, shared, nil)
		if err != nil {
			t.Fatal(err)
		}
		s, err := m.Fit(t.Context(), train, 1)
		if err != nil {
			t.Fatal(err)
		}
		got, err := s.Score(t.Context(), test)
		if err != nil {
			t.Fatal(err)
		}
		scores = append(scores, got)
		l := s.(evaluate.Localizer)
		grids, err := l.Maps(t.Context(), test)
		if err != nil || len(grids) != len(test) || l.Preprocess().Crop != 32 {
			t.Fatalf("%d grids, %v", len(grids), err)
		}
		for i, g := range grids {
			if err := g.Validate(); err != nil || math.Abs(inference.PatchStatistic(g.Values, "mean")-got[i]) > 1e-6 {
				t.Errorf("image %d: %v, score %v", i, g, got[i])
			}
		}
		if err := s.(*partScorer).Close(); err != nil {
			t.Error(err)
		}
	}
	for i := range scores[0] {
		if scores[1][i] < scores[0][i]-1e-6 {
			t.Errorf("image %d scores %v, and %v with fewer patches in the bank", i, scores[0][i], scores[1][i])
		}
	}
}
