package inference

import (
	"context"
	"encoding/json"
	"errors"
	"image/color"
	"math"
	"path/filepath"
	"slices"
	"testing"

	"github.com/nearmiss/nearmiss/bank"
	"github.com/nearmiss/nearmiss/inference/heatmap"
	"github.com/nearmiss/nearmiss/inference/onnx"
	"github.com/nearmiss/nearmiss/inference/ort"
	"github.com/nearmiss/nearmiss/inference/release"
)

// writePatchModel writes writeModel's backbone with a second output: the mean
// colours of 2×2 patches.
func writePatchModel(t testing.TB) string {
	t.Helper()
	g := onnx.New("tiny")
	x := g.Input(inputImage, onnx.Uint8, 1, side, side, 3)
	f := g.Scale(g.Cast(x, onnx.Float), 1.0/255)
	halves := g.Split(f, 2, side/2, side/2)
	g.Output(outputEmbedding, g.Concat(1, g.ReduceMean(halves[0], false, 1, 2), g.ReduceMean(halves[1], false, 1, 2)))
	p := g.Reshape(f, -1, 2, side/2, 2, side/2, 3)
	g.Output(release.OutputPatches, g.Reshape(g.ReduceMean(p, false, 2, 4), -1, 4, 3))
	x.SetDimName(0, "N")
	for _, v := range g.Outputs() {
		v.SetDimName(0, "N")
	}
	b, err := json.Marshal(preprocess())
	if err != nil {
		t.Fatal(err)
	}
	g.SetMetadata(metadataPreprocess, string(b))
	path := filepath.Join(t.TempDir(), "tiny.onnx")
	if err := g.WriteFile(path); err != nil {
		t.Fatal(err)
	}
	return path
}

func bankOfRows(t testing.TB, dim, k int, rows ...[]float32) *bank.Bank {
	t.Helper()
	b, err := bank.New(bank.Options{Dim: dim, K: k})
	if err != nil {
		t.Fatal(err)
	}
	for i, r := range rows {
		if err := b.Add(uint64(i), r); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := b.Build(context.Background(), nil); err != nil {
		t.Fatal(err)
	}
	return b
}

// threeParts are parts on the left and right halves, and on patches.
func threeParts(t testing.TB, e *Embedder, files [][]byte, scored ...string) []Part {
	t.Helper()
	all, err := e.Embed(context.Background(), files)
	if err != nil {
		t.Fatal(err)
	}
	var left, right, patches [][]float32
	for _, v := range all {
		left, right = append(left, v.Vector[:3]), append(right, v.Vector[3:])
		for i := range 4 {
			patches = append(patches, v.Patches[0][i*3:(i+1)*3])
		}
	}
	parts := []Part{
		{release.Part{Name: "left", Output: release.OutputEmbedding, Dim: 3, Statistic: release.StatisticKNN, Scale: 0.5, Weight: 1}, bankOfRows(t, 3, 2, left...)},
		{release.Part{Name: "right", Output: release.OutputEmbedding, From: 3, Dim: 3, Statistic: release.StatisticKNN, Scale: 0.25, Weight: 3}, bankOfRows(t, 3, 2, right...)},
		{release.Part{Name: "patch", Output: release.OutputPatches, Dim: 3, Statistic: release.StatisticMean, Scale: 2, Weight: 2, Width: 2, Height: 2}, bankOfRows(t, 3, 1, patches...)},
	}
	for i := range parts {
		parts[i].About.Scored = slices.Contains(scored, parts[i].About.Name)
	}
	return parts
}

func TestPatchStatistic(t *testing.T) {
	v := make([]float32, 196)
	for i := range v {
		v[(i*37)%196] = float32(i)
	}
	for statistic, want := range map[string]float64{
		release.StatisticMean: 97.5, release.StatisticMax: 195, release.StatisticTop5: 190.5, // the ten largest of 196
		release.StatisticTop1: 194.5, release.StatisticContrast: 97, // the two largest, and less the median
	} {
		if got := PatchStatistic(v, statistic); math.Abs(got-want) > 1e-9 {
			t.Errorf("%s: %v, want %v", statistic, got, want)
		}
	}
	if got := PatchStatistic([]float32{3}, release.StatisticTop5); got != 3 {
		t.Errorf("one patch: %v", got)
	}
}

func TestCombinedScoresAreWeighedGeometricMeans(t *testing.T) {
	a, b := PartScore{Score: 8, Ratio: 4, Weight: 1}, PartScore{Score: 5, Ratio: 0.5, Weight: 3}
	if got := CombineScores([]PartScore{a}, nil); got != 8 {
		t.Errorf("one part's score becomes %v", got)
	}
	if got, want := CombineScores([]PartScore{a, b}, nil), math.Pow(4*0.5*0.5*0.5, 0.25); math.Abs(got-want) > 1e-12 {
		t.Errorf("%v, want %v", got, want)
	}
	b.Ratio = 0
	if got := CombineScores([]PartScore{a, b}, nil); got != 0 {
		t.Errorf("a copy of a normal scores %v", got)
	}
	b.Ratio = math.NaN()
	if got := CombineScores([]PartScore{a, b}, nil); !math.IsNaN(got) {
		t.Errorf("what cannot be judged scores %v", got)
	}
}

// A joint score is at least that of the group that stands out more, and hardly
// more than it.
func TestGroupsAreJoinedBySoftMaximum(t *testing.T) {
	join := &release.Join{Sharpness: 2, Unit: 0.5, Groups: []release.Group{
		{Name: "whole", Center: 0.5, Spread: 0.25, Weight: 0.5}, {Name: "local", Center: 0, Spread: 0.5, Weight: 0.5},
	}}
	parts := func(a, b, c float64) []PartScore {
		return []PartScore{{Ratio: a, Weight: 1, Group: "whole"}, {Ratio: b, Weight: 3, Group: "whole"}, {Ratio: c, Weight: 7, Group: "local"}}
	}
	want := func(whole, local float64) float64 {
		return math.Exp(0.5 * math.Log(0.5*math.Exp(2*whole)+0.5*math.Exp(2*local)) / 2)
	}
	for _, c := range [][3]float64{{math.E, math.E, 1}, {1, 1, math.E}, {2, 0.5, 8}} {
		whole, local := ((math.Log(c[0])+3*math.Log(c[1]))/4-0.5)/0.25, math.Log(c[2])/0.5
		if got, want := CombineScores(parts(c[0], c[1], c[2]), join), want(whole, local); math.Abs(got-want) > 1e-9*want {
			t.Errorf("%v: %v, want %v", c, got, want)
		}
	}
	if got := CombineScores(parts(1, 1, 1e300), join); !(got > 1e100) {
		t.Errorf("what stands out by far scores %v", got)
	}
	if got := CombineScores(parts(0, 1, 0), join); got != 0 {
		t.Errorf("a copy of a normal scores %v", got)
	}
	if got := CombineScores(parts(1, math.NaN(), 1), join); !math.IsNaN(got) {
		t.Errorf("what cannot be judged scores %v", got)
	}
	if a, b := CombineScores(parts(0, 1, 1), join), CombineScores(parts(1, 1, 1), join); !(a > 0 && a < b) {
		t.Errorf("a copy by one group scores %v, any normal %v", a, b)
	}
}

func TestMapsOfSeveralGridsAreAdded(t *testing.T) {
	coarse := heatmap.Grid{Width: 1, Height: 1, Values: []float32{3}}
	fine := heatmap.Grid{Width: 2, Height: 1, Values: []float32{1, 5}}
	got := SumMaps([]release.Part{{Map: 2}, {Map: 0.5}}, []heatmap.Grid{coarse, fine})
	if got.Width != 2 || got.Height != 1 || got.Values[0] != 6.5 || got.Values[1] != 8.5 {
		t.Errorf("%+v", got)
	}
	if one := SumMaps([]release.Part{{}}, []heatmap.Grid{fine}); &one.Values[0] != &fine.Values[0] {
		t.Error("a grid alone is changed")
	}
	wide := heatmap.Grid{Width: 3, Height: 1, Values: []float32{4, 1, 2}}
	got = SumMaps([]release.Part{{Map: 2, MapExcess: true}, {}}, []heatmap.Grid{wide, {Width: 3, Height: 1, Values: []float32{7, 8, 9}}})
	if want := []float32{11, 8, 9}; !slices.Equal(got.Values, want) { // above the median 2: 2, 0, 0
		t.Errorf("%v, want %v", got.Values, want)
	}
}

func TestDetectorJoinsParts(t *testing.T) {
	ctx := context.Background()
	e := newTestEmbedder(t, writePatchModel(t), EmbedOptions{Patches: []string{release.OutputPatches}})
	files, _ := images(t, 40, 3)
	parts := threeParts(t, e, files, "left", "right", "patch")
	d, err := newOfParts(e, parts, nil, MapAnomalies)
	if err != nil {
		t.Fatal(err)
	}
	held, _ := images(t, 19, 4)
	own, err := d.Score(ctx, held)
	if err != nil {
		t.Fatal(err)
	}
	var heldScores []float64
	for _, s := range own {
		heldScores = append(heldScores, s.Score)
	}
	c, err := bank.NewCalibration(heldScores, 0.1)
	if err != nil {
		t.Fatal(err)
	}
	d.Bank().SetCalibration(c)

	queries, want := images(t, 12, 5)
	scores, err := d.Score(ctx, queries)
	if err != nil {
		t.Fatal(err)
	}
	var left, right [][]float32
	all, err := e.Embed(ctx, files)
	if err != nil {
		t.Fatal(err)
	}
	for _, v := range all {
		left, right = append(left, v.Vector[:3]), append(right, v.Vector[3:])
	}
	for i, s := range scores {
		if s.Err != nil {
			t.Fatal(s.Err)
		}
		// A patch lies in one half and has its colour, and so have the normals'.
		nearest := func(q []float32) float64 {
			return min(plainScore(left, q, 1), plainScore(right, q, 1))
		}
		l, r := plainScore(left, want[i][:3], 2), plainScore(right, want[i][3:], 2)
		p := (nearest(want[i][:3]) + nearest(want[i][3:])) / 2
		total := math.Exp((math.Log(l/0.5) + 3*math.Log(r/0.25) + 2*math.Log(p/2)) / 6)
		if math.Abs(s.Score-total) > 1e-4*total || len(s.Parts) != 3 || math.Abs(s.Parts[2].Score-p) > 1e-5 {
			t.Errorf("image %d: %+v, want %v from %v, %v, %v", i, s, total, l, r, p)
		}
		if s.PValue != c.PValue(s.Score) || s.Threshold != c.Threshold() || s.Anomalous != (s.Score > s.Threshold) {
			t.Errorf("image %d: %+v is judged otherwise than the calibration does", i, s)
		}
		if s.Map == nil || s.Map.Width != 2 || s.Map.Values[0] != s.Map.Values[2] || math.Abs(float64(s.Map.Values[1])-nearest(want[i][3:])) > 1e-5 {
			t.Errorf("image %d: map %+v", i, s.Map)
		}
	}
	if got := d.Info().Parts; !slices.Equal(got, []string{"left", "right", "patch"}) {
		t.Errorf("parts %v", got)
	}
}

// A part that is kept out of maps counts in the score as before, and the others
// draw what they draw without it.
func TestMapsLeavePartsOut(t *testing.T) {
	ctx := context.Background()
	e := newTestEmbedder(t, writePatchModel(t), EmbedOptions{Patches: []string{release.OutputPatches}})
	files, _ := images(t, 40, 3)
	queries, _ := images(t, 6, 5)
	embedded, err := e.Embed(ctx, queries)
	if err != nil {
		t.Fatal(err)
	}
	score := func(parts []Part) []Score {
		t.Helper()
		d, err := newOfParts(e, parts, nil, MapAll)
		if err != nil {
			t.Fatal(err)
		}
		out := make([]Score, len(embedded))
		for i := range embedded {
			if err := d.Judge(ctx, []*Embedding{&embedded[i]}, []*Score{&out[i]}); err != nil {
				t.Fatal(err)
			}
		}
		return out
	}
	for _, scored := range []bool{true, false} {
		parts := threeParts(t, e, files, "left", "patch")
		more := parts[2] // far from every patch, so that it shows in maps
		more.About.Name, more.About.Scored, more.About.Map, more.Bank = "far", scored, 1, bankOfRows(t, 3, 1, []float32{9, 9, 9})
		alone := score(parts)
		parts = append(parts, more)
		all := score(parts)
		parts[3].About.NoMap = true
		without := score(parts)
		parts[2].About.NoMap = true
		if none := score(parts); none[0].Map != nil || none[0].Score != all[0].Score {
			t.Errorf("scored %v: every part is kept out of maps: %+v", scored, none[0])
		}
		for i := range queries {
			if !slices.Equal(without[i].Map.Values, alone[i].Map.Values) || slices.Equal(all[i].Map.Values, alone[i].Map.Values) {
				t.Errorf("scored %v, image %d: %v alone, %v with another, %v with its distances left out", scored, i, alone[i].Map.Values, all[i].Map.Values, without[i].Map.Values)
			}
			if without[i].Score != all[i].Score || (without[i].Score == alone[i].Score) == scored {
				t.Errorf("scored %v, image %d: scores %v alone, %v with another, %v with its distances left out", scored, i, alone[i].Score, all[i].Score, without[i].Score)
			}
		}
	}
}

func TestReleasesOfPartsAreReadBack(t *testing.T) {
	ctx := context.Background()
	model := writePatchModel(t)
	e := newTestEmbedder(t, model, EmbedOptions{Patches: []string{release.OutputPatches}})
	files, _ := images(t, 40, 3)
	held, _ := images(t, 39, 4)
	write := func(scored ...string) string {
		parts := threeParts(t, e, files, scored...)
		d, err := newOfParts(e, parts, nil, MapAnomalies)
		if err != nil {
			t.Fatal(err)
		}
		own, err := d.Score(ctx, held)
		if err != nil {
			t.Fatal(err)
		}
		var scores []float64
		for _, s := range own {
			scores = append(scores, s.Score)
		}
		c, err := bank.NewCalibration(scores, 0.1)
		if err != nil {
			t.Fatal(err)
		}
		d.Bank().SetCalibration(c)
		dir := filepath.Join(t.TempDir(), "r")
		if _, err := WriteRelease(ctx, dir, ReleaseSpec{Detector: "halves", Method: "knn", Model: model, Embedder: e, Parts: parts, Check: held[:2]}); err != nil {
			t.Fatal(err)
		}
		return dir
	}
	strange, _ := halves(t, color.RGBA{0, 255, 0, 255}, color.RGBA{255, 0, 255, 255})
	queries, _ := images(t, 10, 6)
	queries = append(queries, strange)

	both := write("left", "patch")
	d, err := Open(ctx, both, Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	m := d.Release().Manifest
	if m.Bank.File != release.BankName || len(m.Parts) != 3 || m.Parts[2].Bank.File != release.PartBankName("patch") || m.Parts[2].Bank.Count != 160 {
		t.Errorf("%+v", m.Parts)
	}
	first, err := d.Score(ctx, queries)
	if err != nil {
		t.Fatal(err)
	}
	for i, s := range first {
		if len(s.Parts) != 2 || s.Map == nil || len(s.Nearest) != 2 {
			t.Errorf("image %d: %+v", i, s)
		}
	}

	// Where the score needs no patches, anomalies alone have a map, unless asked.
	alone := write("left")
	for name, c := range map[string]struct {
		maps Maps
		want func(s Score) bool
	}{
		"anomalies": {MapAnomalies, func(s Score) bool { return s.Anomalous }},
		"all":       {MapAll, func(Score) bool { return true }},
		"none":      {MapNone, func(Score) bool { return false }},
	} {
		d, err := Open(ctx, alone, Options{Maps: c.maps})
		if err != nil {
			t.Fatal(err)
		}
		scores, err := d.Score(ctx, queries)
		if err != nil {
			t.Fatal(err)
		}
		anomalies := 0
		for i, s := range scores {
			if (s.Map != nil) != c.want(s) || len(s.Parts) != 1 || s.Score != s.Parts[0].Score {
				t.Errorf("%s, image %d: %+v", name, i, s)
			}
			if s.Anomalous {
				anomalies++
			}
		}
		if anomalies == 0 || anomalies == len(scores) {
			t.Errorf("%d of %d are anomalous", anomalies, len(scores))
		}
		if d.HasMaps() != (c.maps != MapNone) {
			t.Errorf("%s: has maps: %v", name, d.HasMaps())
		}
		if err := d.Close(); err != nil {
			t.Error(err)
		}
	}
}

func TestPartsThatDoNotFitAreRefused(t *testing.T) {
	e := newTestEmbedder(t, writePatchModel(t), EmbedOptions{Patches: []string{release.OutputPatches}})
	files, _ := images(t, 10, 3)
	for name, change := range map[string]func(p []Part) []Part{
		"another length":             func(p []Part) []Part { p[0].About.Dim = 4; return p },
		"beyond the embedding":       func(p []Part) []Part { p[1].About.From = 4; return p },
		"another grid":               func(p []Part) []Part { p[2].About.Width = 3; return p },
		"nothing scored":             func(p []Part) []Part { p[0].About.Scored = false; return p[:1] },
		"nothing of the whole image": func(p []Part) []Part { return p[2:] },
	} {
		if _, err := newOfParts(e, change(threeParts(t, e, files, "left", "patch")), nil, MapAnomalies); !errors.Is(err, ErrMismatch) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := NewEmbedder(writeModel(t, 0, 1, false), EmbedOptions{Patches: []string{release.OutputPatches}}); err == nil {
		t.Error("a model without patches gives some")
	}
}

func TestBlockSearchIsTheProductsMaximum(t *testing.T) {
	e, err := NewBatchEngine(ort.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer e.Close()
	const dim, block, n, m = 5, 4, 12, 7
	rows, queries := make([]float32, n*dim), make([]float32, m*dim)
	for i := range rows {
		rows[i] = float32((i*31)%17) - 8
	}
	for i := range queries {
		queries[i] = float32((i*13)%11) - 5
	}
	s, err := e.PrepareBlocks(rows, dim, block)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	got, err := s.Best(context.Background(), queries)
	if err != nil {
		t.Fatal(err)
	}
	for i := range m {
		for b := range n / block {
			want := math.Inf(-1)
			for r := b * block; r < (b+1)*block; r++ {
				dot := 0.0
				for j := range dim {
					dot += float64(queries[i*dim+j]) * float64(rows[r*dim+j])
				}
				want = max(want, dot)
			}
			if math.Abs(float64(got[i*n/block+b])-want) > 1e-4 {
				t.Errorf("query %d, block %d: %v, want %v", i, b, got[i*n/block+b], want)
			}
		}
	}
	for _, bad := range [][]float32{nil, rows[:dim], rows[:dim*block+1]} {
		if _, err := e.PrepareBlocks(bad, dim, block); err == nil {
			t.Errorf("%d numbers are taken for blocks", len(bad))
		}
	}
	if _, err := s.Best(context.Background(), queries[:dim+1]); err == nil {
		t.Error("half a query is answered")
	}
}
