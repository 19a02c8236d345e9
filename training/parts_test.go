package training

import (
	"encoding/json"
	"errors"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/nearmiss/nearmiss/bank"
	"github.com/nearmiss/nearmiss/inference"
	"github.com/nearmiss/nearmiss/inference/backbone"
	"github.com/nearmiss/nearmiss/inference/heatmap"
	"github.com/nearmiss/nearmiss/inference/imaging"
	"github.com/nearmiss/nearmiss/inference/onnx"
	"github.com/nearmiss/nearmiss/inference/release"
	"github.com/nearmiss/nearmiss/training/dataset"
	"github.com/nearmiss/nearmiss/training/evaluate"
)

func TestScoresAreRead(t *testing.T) {
	white := classPart
	white.White, white.Unit = 0.1, true
	single := Part{Tap: backbone.Tap{What: backbone.TapPatch, Layer: 4, Around: 1}, Statistic: release.StatisticTop1}
	last := Part{Tap: backbone.Tap{What: backbone.TapPatch, Around: 3}, Statistic: release.StatisticMean}
	frozen := classPart
	frozen.Frozen = true
	middle, texture := Part{Tap: backbone.Tap{What: "pooled", Layer: 6, Margin: 2}}, Part{Tap: backbone.Tap{What: "spread", Layer: 6, Margin: 4}}
	placed := single
	placed.Placed, placed.Statistic = true, "top1:mean"
	for text, want := range map[string][][]Part{
		"class": {{classPart}}, "both": {{classPart, patchPart}}, "": nil, "full": nil, "auto": nil,
		"pooled + patch": {{pooledPart, patchPart}}, "class+frozen-class": {{classPart, frozen}},
		"class:unit:white|patch@4:top1": {{white}, {single}}, "patch@0x3": {{last}},
		"pooled@6m2+spread@6m4|patch@4:placed:top1:mean": {{middle, texture}, {placed}},
	} {
		got, err := ParseScore(text)
		if d := cmp.Diff(want, got); err != nil || d != "" {
			t.Errorf("%q: %v, %s", text, err, d)
		}
		again, err := ParseScore(Score{Groups: got}.name())
		if d := cmp.Diff(want, again); err != nil || d != "" {
			t.Errorf("%q is written as %q: %v, %s", text, Score{Groups: got}.name(), err, d)
		}
	}
	for _, text := range []string{
		"left", "class+class", "class+", "auto+class", "class|", "class@x", "class:white=x", "class:white=2", "class:white=NaN",
		"class:top1", "patch:median", "patch@4|patch@4", "class:", "patch@4x0", "class@-1", "class:placed", "patch:top1:top1",
	} {
		if got, err := ParseScore(text); err == nil {
			t.Errorf("%q is read as %v", text, got)
		}
	}
}

func FuzzParseScore(f *testing.F) {
	f.Add("class:unit:white+frozen-pooled@6|patch@4x3:top1")
	f.Fuzz(func(t *testing.T, text string) {
		got, err := ParseScore(text)
		if err != nil {
			return
		}
		again, err := ParseScore(Score{Groups: got}.name())
		if d := cmp.Diff(got, again); err != nil || d != "" {
			t.Errorf("%q is written as %q: %v, %s", text, Score{Groups: got}.name(), err, d)
		}
	})
}

func TestOnlyWhatMakesSenseIsAskedOfPatches(t *testing.T) {
	for name, s := range map[string]Score{
		"a negative coreset": {Coreset: -1}, "no number": {Coreset: math.NaN()}, "a negative k": {K: -1},
		"patches without a bank": {Groups: [][]Part{{patchPart}}, NoPatches: true},
	} {
		if s.validate() == nil {
			t.Errorf("%s is accepted", name)
		}
	}
	for o, want := range map[float64]int{0: DefaultCoreset, 0.25: 25_000, 1: 100_000, 500: 500, 1e9: 100_000} {
		if got := (Score{Coreset: o}).withDefaults().want(100_000); got != want {
			t.Errorf("coreset %g of 100,000: %d, want %d", o, got, want)
		}
	}
}

// The full score reads every layer, whatever the backbone is, and one vector where
// there is no more.
func TestTheFullScoreFitsTheBackbone(t *testing.T) {
	for name, c := range map[string]struct {
		a     backbone.Anatomy
		tuned bool
		parts string
	}{
		"a transformer":           {backbone.Anatomy{Layers: 2, Class: true, PatchLayer: 1}, false, "class pooled-1m2 spread-1m2 pooled-1m4 spread-1m4 class-2 pooled-2m2 spread-2m2 pooled-2m4 spread-2m4 pooled-0m2 pooled-0m4|patch-1 patch-1x3"},
		"a convolutional network": {backbone.Anatomy{Layers: 4, PatchLayer: 3}, false, "class pooled-2m2 spread-2m2 pooled-2m4 spread-2m4 pooled-3m2 spread-3m2 pooled-3m4 spread-3m4 pooled-4m2 pooled-4m4|patch-2 patch-2x3 patch-3x3"},
		"a foreign model":         {backbone.Anatomy{}, false, "class"},
	} {
		got, err := Score{}.compose("file", c.a, c.tuned)
		if err != nil {
			t.Fatal(err)
		}
		var whole, local []string
		for _, p := range got.parts {
			short, _, _ := strings.Cut(p.name, "-unit")
			if short, _, _ = strings.Cut(short, "-placed"); p.group == release.GroupLocal {
				local = append(local, short)
			} else if p.White == 0 || len(got.parts) == 1 { // each is compared twice
				whole = append(whole, short)
			}
		}
		text := strings.Join(whole, " ")
		if len(local) > 0 {
			text += "|" + strings.Join(local, " ")
		}
		if text != c.parts || got.joined != (len(local) > 0) {
			t.Errorf("%s: %s", name, text)
		}
	}
	for _, bad := range []string{"class@3", "patch@3", "pooled"} {
		g, err := ParseScore(bad)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := (Score{Groups: g}).compose("file", backbone.Anatomy{Layers: 2}, false); !errors.Is(err, ErrPlan) {
			t.Errorf("%s of a network of two stages: %v", bad, err)
		}
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
		Detector:    "squares",
		Out:         out,
		Seed:        5,
		Data:        Data{Normals: normals[:40]},
		Model:       Model{Backbone: smallBackbone(t)},
		Calibration: Calibration{Settle: true},
		Score:       Score{Groups: [][]Part{{classPart, patchPart}}, Coreset: 100},
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
	if m.Calibration.HeldOut != 40 || m.Calibration.Folded != 32 || m.Calibration.Threshold == nil {
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
	x := Extension{Derivation: Derivation{Release: out, Out: next}, Normals: []Image{{Name: "bar", Read: func() ([]byte, error) { return redSquare(t, normals[40]), nil }}}}
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
	largest := patchPart
	largest.Statistic = release.StatisticMax
	normals := squares(t, 40)
	plan := Plan{
		Detector:    "squares",
		Out:         filepath.Join(t.TempDir(), "release"),
		Seed:        5,
		Data:        Data{Normals: normals},
		Model:       Model{Backbone: smallBackbone(t)},
		Calibration: Calibration{Settle: true},
		Score:       Score{Groups: [][]Part{{largest}}},
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
	groups, err := ParseScore("class:white+patch:white=0.5")
	if err != nil {
		t.Fatal(err)
	}
	plan := Plan{
		Detector:    "squares",
		Out:         filepath.Join(t.TempDir(), "release"),
		Seed:        5,
		Data:        Data{Normals: normals[:39]},
		Model:       Model{Backbone: smallBackbone(t)},
		Calibration: Calibration{Settle: true},
		Score:       Score{Groups: groups, Coreset: 200},
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
	if r := d.Release().Manifest.Parts[1].Radius; r < 1 {
		t.Errorf("radius %v is of plain distances", r)
	}
}

func TestFitWithoutPatchesServesTheBackboneItself(t *testing.T) {
	plan := Plan{
		Detector:    "squares",
		Out:         filepath.Join(t.TempDir(), "release"),
		Seed:        5,
		Data:        Data{Normals: squares(t, 20)},
		Model:       Model{Backbone: smallBackbone(t)},
		Calibration: Calibration{Settle: true},
		Score:       Score{Groups: Class(), NoPatches: true},
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
	want, err := os.ReadFile(plan.Model.Backbone)
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
// halves. It names layers that it may not have.
func foreignBackbone(t *testing.T, layers ...backbone.Layer) string {
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
	if layers != nil {
		if p, err = json.Marshal(layers); err != nil {
			t.Fatal(err)
		}
		g.SetMetadata(backbone.MetadataLayers, string(p))
		g.SetMetadata(backbone.MetadataBackbone, `{"size":32}`)
	}
	path := filepath.Join(t.TempDir(), "foreign.onnx")
	if err := g.WriteFile(path); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestForeignModelsHaveNoPatches(t *testing.T) {
	plan := Plan{Detector: "squares", Out: filepath.Join(t.TempDir(), "release"), Data: Data{Normals: squares(t, 20)}, Model: Model{Backbone: foreignBackbone(t), Advise: true}, Calibration: Calibration{Settle: true}, Score: Score{}}
	res, err := Fit(t.Context(), plan)
	if err != nil {
		t.Fatal(err)
	}
	if res.Patches != 0 || res.Score != "full" || res.Cost.Parts != 1 || !strings.Contains(strings.Join(res.Warnings, "\n"), "foreign") {
		t.Errorf("%+v", res)
	}
	plan.Score.Groups, plan.Out = [][]Part{{patchPart}}, filepath.Join(t.TempDir(), "other")
	if _, err := Fit(t.Context(), plan); !errors.Is(err, ErrPlan) {
		t.Errorf("patches of a foreign model: %v", err)
	}
	plan.Host.Work = t.TempDir()
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
		Detector:    "squares",
		Out:         filepath.Join(t.TempDir(), "release"),
		Seed:        5,
		Data:        Data{Normals: squares(t, 40)},
		Model:       Model{Backbone: smallBackbone(t)},
		Calibration: Calibration{Settle: true},
		Score:       Score{Groups: [][]Part{{patchPart}}, Index: bank.HNSW},
	}
	if _, err := Fit(t.Context(), plan); err != nil {
		t.Fatal(err)
	}
	prov, d := provenanceOf(t, plan.Out)
	if r := prov.Patches[0].Index; r.Wanted != bank.HNSW || r.Kind != bank.HNSW && r.Fallback == "" {
		t.Errorf("%+v", r)
	}
	if p := d.Release().Manifest.Parts[1].Bank; p.Recall == nil || p.Count < 100 {
		t.Errorf("%+v", p)
	}
}

func TestMarksAreRobust(t *testing.T) {
	m := partScaleOf([]float64{1, 2, 4, 8, 0}, leastSpreads)
	if m.scale != 2 || math.Abs(m.weight-1/(math.Ln2*math.Sqrt(5.0/3))) > 1e-9 {
		t.Errorf("%+v", m)
	}
	for _, few := range [][]float64{nil, {0, 0, 0, 0, 0}, {1, 2}, {math.Inf(1)}} {
		if m := partScaleOf(few, leastSpreads); !(m.scale > 0) || m.weight != 1 || math.IsInf(m.scale, 0) {
			t.Errorf("%v: %+v", few, m)
		}
	}
	if m := partScaleOf([]float64{3, 3, 3, 3, 3}, leastSpreads); m.weight != 1/leastSpread {
		t.Errorf("equal scores: %+v", m)
	}
}

// A place where normals differ much counts less.
func TestPlacesAreWhatNormalsShow(t *testing.T) {
	var grids []heatmap.Grid
	for i := range 20 {
		g := heatmap.NewGrid(4, 4)
		for j := range g.Values {
			g.Values[j] = 1
		}
		g.Values[0] = float32(i)
		grids = append(grids, g)
	}
	got := places(grids)
	if got[15] != 1 || !(got[0] > got[1] && got[1] > 1) || math.Abs(float64(got[0])-(18+3)/4.) > 1e-6 {
		t.Errorf("%v", got)
	}
	if places(nil) != nil || places([]heatmap.Grid{heatmap.NewGrid(2, 2)}) != nil {
		t.Error("places of nothing")
	}
}

func TestFitJoinsTheWholePictureAndItsPatches(t *testing.T) {
	normals := squares(t, 44)
	plan := Plan{
		Detector: "squares", Seed: 5, Out: filepath.Join(t.TempDir(), "release"), Data: Data{Normals: normals[:40]},
		Model: Model{Backbone: smallBackbone(t)}, Calibration: Calibration{Settle: true}, Score: Score{Coreset: 100},
	}
	res, err := Fit(t.Context(), plan)
	if err != nil {
		t.Fatal(err)
	}
	prov, d := provenanceOf(t, plan.Out)
	m := d.Release().Manifest
	if res.Score != "full" || prov.Score != "full" || len(prov.Patches) != 4 || res.Patches != 3*100+32 || res.Cost.Milliseconds <= 0 || res.Cost.Banks == 0 {
		t.Errorf("%+v, %+v", res, prov)
	}
	if j := m.Join; j == nil || len(j.Groups) != 2 || j.Groups[0].Name != "whole" || !(j.Groups[1].Weight < j.Groups[0].Weight) || !m.Model.Preprocess.Squash {
		t.Fatalf("join %+v, %+v", j, m.Model.Preprocess)
	}
	last := m.Parts[len(m.Parts)-3] // of the score; two more are for maps
	if len(last.Also) != 2 || len(last.Places) != 16 || last.Map <= 0 || last.Group != "local" || m.Parts[0].Name != "class-unit" {
		t.Errorf("%+v, first %s", last, m.Parts[0].Name)
	}
	files := [][]byte{redSquare(t, normals[40])}
	for _, n := range normals[40:] {
		b, _ := n.Read()
		files = append(files, b)
	}
	s, err := d.Score(t.Context(), files)
	if err != nil {
		t.Fatal(err)
	}
	if !s[0].Anomalous || s[0].Map == nil || len(s[0].Nearest) != 2 {
		t.Errorf("a red patch: %+v", s[0])
	}
	for i, v := range s[1:] {
		if !(v.Score > 0) || v.Score >= s[0].Score {
			t.Errorf("normal %d: score %v, threshold %v", i, v.Score, v.Threshold)
		}
	}
	// The same plan without patches is the whole picture alone.
	plan.Out, plan.Score.NoPatches = filepath.Join(t.TempDir(), "whole"), true
	if res, err = Fit(t.Context(), plan); err != nil || res.Patches != 0 {
		t.Fatalf("%+v, %v", res, err)
	}
	if _, d := provenanceOf(t, plan.Out); d.Release().Manifest.Join != nil || d.HasMaps() {
		t.Errorf("%+v", d.Release().Manifest.Join)
	}
	// A few normals are enough for a score, though not for weights.
	plan.Out, plan.Score.NoPatches, plan.Data.Normals = filepath.Join(t.TempDir(), "few"), false, normals[:3]
	if _, err = Fit(t.Context(), plan); err != nil {
		t.Fatal(err)
	}
}

// Maps of the full score are drawn from single patches of an early and a middle layer,
// neighbourhoods of a late one, and wide ones, of which the middle's and the wide ones are
// not in the score; the early one's small neighbourhoods, which blur, are in the score alone.
func TestTheFullScoreDrawsSingleAndWidePatches(t *testing.T) {
	t.Parallel()
	plan := Plan{
		Detector: "squares", Seed: 5, Out: filepath.Join(t.TempDir(), "release"), Data: Data{Normals: squares(t, 20), Frame: FrameAll},
		Model: Model{Backbone: sixLayers(t), Light: LightUsual}, Calibration: Calibration{Settle: true}, Score: Score{Coreset: 100},
	}
	if _, err := Fit(t.Context(), plan); err != nil {
		t.Fatal(err)
	}
	_, d := provenanceOf(t, plan.Out)
	var got []string
	for _, p := range d.Release().Manifest.Parts {
		if !p.IsPatch() {
			continue
		}
		text := p.Output
		if p.Scored {
			text += " scored"
		}
		if p.MapExcess {
			text += " excess"
		}
		if p.Map > 0 && !p.NoMap {
			text += " drawn"
		}
		if p.Heat != nil {
			text += " heat"
		}
		got = append(got, text)
	}
	if diff := cmp.Diff([]string{"patch@2 scored excess drawn heat", "patch@2x3 scored excess", "patch@4x3 scored excess drawn", "patch@3 excess drawn", "patch@2x9 drawn"}, got); diff != "" {
		t.Error(diff)
	}
}

// Banks that only maps need are made of the score that is kept, and not of those that
// are tried before: no score depends on them.
func TestMapsAreDrawnOfTheScoreThatIsKept(t *testing.T) {
	t.Parallel()
	plan := Plan{
		Detector: "squares", Seed: 5, Out: "none", Data: Data{Normals: squares(t, 64)},
		Model: Model{Backbone: sixLayers(t)}, Score: Score{Coreset: 100},
	}.withDefaults()
	nets := networks{served: plan.Model.Backbone, frozen: plan.Model.Backbone}
	x, err := embed(t.Context(), plan, nets, filepath.Join(t.TempDir(), "model.onnx"), plan.Data.Normals, "embed")
	if err != nil {
		t.Fatal(err)
	}
	defer x.Close()
	x.b.folded = true
	turns := 0
	x.b.progress = func(step string, done, total int) {
		if step == "maps" && done == 0 {
			turns++
		}
	}
	for _, held := range []int{44, 10} {
		all := make([]int, len(plan.Data.Normals))
		for i := range all {
			all[i] = i
		}
		train, out := all[held:], all[:held]
		s, err := x.b.build(t.Context(), x.n.at(train), x.n.at(out))
		if err != nil {
			t.Fatal(err)
		}
		judge := func() (scores []float64) {
			t.Helper()
			if err := x.n.replay(t.Context(), out, func(e *inference.Embedding) error {
				var v inference.Score
				err := s.Judge(t.Context(), []*inference.Embedding{e}, []*inference.Score{&v})
				scores = append(scores, v.Score)
				return err
			}); err != nil {
				t.Fatal(err)
			}
			return scores
		}
		if slices.ContainsFunc(s.Parts(), func(p inference.Part) bool { return !p.About.Scored }) || turns != 0 {
			t.Errorf("%d parts before maps are drawn", len(s.Parts()))
		}
		before := judge()
		if err := s.draw(t.Context()); err != nil {
			t.Fatal(err)
		}
		after := judge()
		if !slices.Equal(before, after) || len(s.folded) != len(all) {
			t.Errorf("%d normals calibrate; scores %v, and %v once maps are drawn", len(s.folded), before, after)
		}
		only := 0
		for _, p := range s.Parts() {
			if p.About.Scored {
				continue
			}
			if only++; p.Bank.Len() < 2 || p.Bank.Len() > 100 || len(p.About.Places) != 16 || !(p.About.Map > 0) {
				t.Errorf("%+v, %d patches", p.About, p.Bank.Len())
			}
		}
		if only != 2 || turns != 1 {
			t.Errorf("%d parts for maps, filled %d times", only, turns)
		}
		turns = 0
		if n := len(s.foldedMaps); n != len(all) {
			t.Errorf("%d normals say how maps count, of %d held out", n, held)
		}
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}
}

// A normal that stands out is as hot in what calibrates maps as a new one would be: it
// sets no place and no weight of its own map.
func TestANormalSetsNothingOfItsOwnMap(t *testing.T) {
	part := placed{Part: Part{Placed: true}, scored: true}
	about := release.Part{Output: release.OutputPatches, Width: 2, Height: 1, Scored: true}
	s := &builtScore{basis: basis{
		by:    &scoreBuilder{composition: composition{parts: []placed{part, part}}},
		parts: []inference.Part{{About: about}, {About: about}},
	}}
	s.x.partScores = newPartScores(2)
	const normals, odd = 20, 3
	for i := range s.parts {
		for j := range normals + 2*i { // the score has seen more of one part
			g := heatmap.Grid{Width: 2, Height: 1, Values: []float32{1, 2}}
			if j == odd {
				g.Values = []float32{100, 200}
			}
			s.x.grids[i] = append(s.x.grids[i], g)
		}
	}
	maps := s.calibratingMaps()
	if len(maps) != normals {
		t.Fatalf("%d maps of %d normals", len(maps), normals)
	}
	hot := 0
	for _, m := range maps {
		if m.Values[0] > 10 { // 1, where it has a say
			hot++
		}
	}
	if hot != 1 {
		t.Errorf("%d of %v are hot", hot, maps)
	}
}

// sixLayers is a transformer of which the layers of the full score are different ones.
func sixLayers(t *testing.T) string {
	t.Helper()
	m, err := backbone.Random(backbone.Spec{
		Family: backbone.ViT, Dim: 32, Depth: 6, Heads: 1, Hidden: 64, Patch: 8, Size: 32, ClassPos: true, NormEps: 1e-6,
	}, 1)
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "six.onnx")
	if _, err := m.Write(file, backbone.Options{}); err != nil {
		t.Fatal(err)
	}
	return file
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
		plan := Plan{Method: KNN, Model: Model{Backbone: smallBackbone(t)}, Host: Host{Work: t.TempDir()}, Score: Score{Groups: [][]Part{{patchPart}}, Coreset: c}}
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
		if err := s.(*evaluatedScore).Close(); err != nil {
			t.Error(err)
		}
	}
	for i := range scores[0] {
		if scores[1][i] < scores[0][i]-1e-6 {
			t.Errorf("image %d scores %v, and %v with fewer patches in the bank", i, scores[0][i], scores[1][i])
		}
	}
}

// Squares that are always as bright as can be told from darker ones, so that light
// that changes raises alarms; with their light evened out they are as before.
func TestFitSeesWhatOtherLightDoes(t *testing.T) {
	plan := Plan{
		Detector: "squares", Seed: 5, Out: filepath.Join(t.TempDir(), "release"), Data: Data{Normals: squares(t, 80)},
		Model: Model{Backbone: smallBackbone(t)}, Calibration: Calibration{Settle: true}, Score: Score{Coreset: 100},
	}
	res, err := Fit(t.Context(), plan)
	if err != nil {
		t.Fatal(err)
	}
	l := res.Light
	prov, d := provenanceOf(t, plan.Out)
	tone := d.Embedder().Preprocess().Tone
	if l == nil || l.Usual == nil || (tone != nil && tone.Levels != nil) != (l.Choice == LightEven) || tone != nil && tone.Colours != nil || cmp.Diff(prov.Light, l) != "" {
		t.Fatalf("%+v, in the release %+v, tone %+v", l, prov.Light, tone)
	}
	if f := l.Found[l.Choice]; !(f > 0.5 && f <= 1) {
		t.Errorf("spoilt squares are found with an AUROC of %v", f)
	}
	if *l.Usual > sensitiveAlarms && l.Even == nil || *l.Usual <= sensitiveAlarms && l.Choice != LightUsual {
		t.Errorf("%v", l)
	}
	plan.Out, plan.Model.Light = filepath.Join(t.TempDir(), "colours"), LightColours
	if res, err = Fit(t.Context(), plan); err != nil {
		t.Fatal(err)
	}
	_, d = provenanceOf(t, plan.Out)
	if tone := d.Embedder().Preprocess().Tone; res.Light.Choice != LightColours || res.Light.Colours == nil || tone == nil || len(tone.Levels) == 0 || len(tone.Colours) != 3 || tone.Grey || res.Light.Grey {
		t.Errorf("%+v, tone %+v", res.Light, tone)
	}
	// A picture that is a fifth darker scores as before, or nearly so.
	b, err := plan.Data.Normals[0].Read()
	if err != nil {
		t.Fatal(err)
	}
	m, err := imaging.Decode(b, imaging.Limits{})
	if err != nil {
		t.Fatal(err)
	}
	for i, v := range m.Pix {
		m.Pix[i] = uint8(0.8*float64(v) + 0.5)
	}
	dark, err := m.PNG()
	if err != nil {
		t.Fatal(err)
	}
	s, err := d.Score(t.Context(), [][]byte{b, dark})
	if err != nil || math.Abs(s[1].Score-s[0].Score) > 0.3*s[0].Score {
		t.Errorf("score %v, in the dark %v, %v", s[0].Score, s[1].Score, err)
	}
	// Copies are entries of the bank: one mirrored, two in other light.
	plan.Out, plan.Model.Light, plan.Model.Turned = filepath.Join(t.TempDir(), "varied"), LightVaried, "flip"
	if res, err = Fit(t.Context(), plan); err != nil {
		t.Fatal(err)
	}
	if _, d = provenanceOf(t, plan.Out); res.Light.Choice != LightVaried || res.Light.Varied == nil || d.Bank().Len() != 4*res.Bank {
		t.Errorf("%+v, %d entries for %d normals", res.Light, d.Bank().Len(), res.Bank)
	}
	if got := d.Release().Manifest.Bank.Images(); got != res.Bank { // copies are no normals of their own
		t.Errorf("the release says %d normals, %d were learnt from", got, res.Bank)
	}
	if s, err = d.Score(t.Context(), [][]byte{b}); err != nil || len(s[0].Nearest) == 0 || s[0].Nearest[0].ID >= uint64(len(plan.Data.Normals)) {
		t.Errorf("nearest %+v, %v", s[0].Nearest, err)
	}
	third := 1. / 3
	for _, l := range []LightReport{{}, {Choice: LightUsual, Usual: &third, Grey: true}, {Choice: LightEven, Even: &third}, {Choice: LightColours, Colours: &third}, {Choice: LightEven, Usual: &third, Even: &third}, {Choice: LightVaried, Usual: &third, Even: &third, Varied: &third}} {
		if l.String() == "" {
			t.Errorf("%+v is not told", l)
		}
	}
}
