package evaluate

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/nearmiss/nearmiss/inference/heatmap"
	"github.com/nearmiss/nearmiss/inference/imaging"
	"github.com/nearmiss/nearmiss/training/dataset"
)

// The test sets hold items of a few bytes; their "embedding" is those bytes.
func bytesAsVectors(calls *int) EmbedFunc {
	return func(_ context.Context, files [][]byte) ([][]float32, error) {
		*calls += len(files)
		out := make([][]float32, len(files))
		for i, f := range files {
			for _, b := range f {
				out[i] = append(out[i], float32(b)/16)
			}
		}
		return out, nil
	}
}

// clusters makes a set of classes on a line: a at 40, b at 60, c at 200.
func clusters(train, test int) *dataset.Set {
	r := rand.New(rand.NewPCG(3, 4))
	s := &dataset.Set{Name: "clusters", Root: "memory", Layout: dataset.LayoutClasses}
	for i, at := range []int{40, 60, 200} {
		label := string(rune('a' + i))
		for i := range train + test {
			split := dataset.Train
			if i >= train {
				split = dataset.Test
			}
			s.Items = append(s.Items, dataset.FromBytes(fmt.Sprintf("%s/%d", label, i), split, label,
				[]byte{byte(at + r.IntN(30)), byte(100 + r.IntN(8))}))
		}
	}
	return s
}

func TestOneVsRest(t *testing.T) {
	calls := 0
	set := clusters(20, 10)
	f := NewFeatures(bytesAsVectors(&calls))
	var told []string
	res, err := OneVsRest(t.Context(), set, KNN(f, 2), Options{Repeats: 2, Progress: func(done, total int, what string) {
		told = append(told, fmt.Sprint(done, "/", total, " ", what))
	}})
	if err != nil {
		t.Fatal(err)
	}
	if calls != 90 || f.Len() != 90 {
		t.Errorf("%d embeddings were computed of 90 images", calls)
	}
	if len(res.PerClass) != 3 || len(res.Parts) != 3 || len(res.Runs) != 6 || len(told) != 6 {
		t.Fatalf("%d classes, %d parts, %d runs, %d told", len(res.PerClass), len(res.Parts), len(res.Runs), len(told))
	}
	mean := 0.0
	for _, v := range res.PerClass {
		mean += v / 3
	}
	if math.Abs(mean-res.AUROC) > 1e-12 || res.AUROC < 0.7 || res.AUROC > 1 {
		t.Errorf("auroc %v, mean of the classes %v", res.AUROC, mean)
	}
	if res.Std != 0 {
		t.Errorf("the same split gave a deviation of %v", res.Std)
	}
	for _, p := range res.Parts {
		if p.Train != 20 || p.Normals != 10 || p.Anomalies != 20 || p.Anomaly != Rest {
			t.Errorf("%+v", p)
		}
	}

	// The JSON fields are a contract.
	b, err := json.Marshal(res)
	if err != nil {
		t.Fatal(err)
	}
	var fields map[string]any
	if err := json.Unmarshal(b, &fields); err != nil {
		t.Fatal(err)
	}
	if fields["protocol"] != "one-vs-rest" || fields["method"] != "knn" || fields["auroc"] != res.AUROC {
		t.Errorf("fields %v", fields)
	}
	if _, ok := fields["per_class"].(map[string]any)["a"].(float64); !ok {
		t.Errorf("per_class is %v", fields["per_class"])
	}
	if _, ok := fields["seconds"].(float64); !ok {
		t.Errorf("seconds are %v", fields["seconds"])
	}
}

func TestRandomSplitsDeviate(t *testing.T) {
	calls := 0
	f := NewFeatures(bytesAsVectors(&calls))
	o := Options{Repeats: 4, Seed: 7, Resplit: 0.6, TrainLimit: 15, TestLimit: 8, Normal: []string{"a", "b"}}
	res, err := OneVsRest(t.Context(), clusters(20, 10), KNN(f, 2), o)
	if err != nil {
		t.Fatal(err)
	}
	if res.Std == 0 || len(res.Seeds) != 4 || res.Seeds[3] != 10 {
		t.Errorf("std %v, seeds %v", res.Std, res.Seeds)
	}
	if len(res.PerClass) != 2 || res.Parts[0].Train != 15 || res.Parts[0].Normals != 8 {
		t.Errorf("%+v", res.Parts[0])
	}
	for r, seed := range res.Seeds {
		o := o
		o.Repeats, o.Seed = 1, seed
		single, err := OneVsRest(t.Context(), clusters(20, 10), KNN(f, 2), o)
		if err != nil || single.Parts[1].AUROC != res.Parts[1].AUROCs[r] || single.Parts[1].AUROCs != nil {
			t.Errorf("seed %d alone: %+v, %v, want %v", seed, single, err, res.Parts[1].AUROCs)
		}
	}
	again, err := OneVsRest(t.Context(), clusters(20, 10), KNN(f, 2), o)
	if err != nil {
		t.Fatal(err)
	}
	again.Seconds, res.Seconds = 0, 0
	if d := cmp.Diff(res.Parts, again.Parts); d != "" {
		t.Error(d)
	}
}

func TestNearFindsTheCloseClass(t *testing.T) {
	calls := 0
	f := NewFeatures(bytesAsVectors(&calls))
	set := clusters(30, 20)
	res, err := Near(t.Context(), set, set, KNN(f, 2), f, Options{})
	if err != nil {
		t.Fatal(err)
	}
	if len(res.Parts) != 6 || len(res.Bottom) != 2 || len(res.Nearest) != 2 {
		t.Fatalf("%d parts, bottom %v, nearest %v", len(res.Parts), res.Bottom, res.Nearest)
	}
	close := map[string]float64{}
	for _, p := range res.Parts {
		close[p.Normal+p.Anomaly] = *p.Closeness
	}
	// c is as far from b as can be and farther from a; a and b overlap.
	if !(close["ab"] > close["ac"] && close["ba"] > close["bc"]) {
		t.Errorf("closeness %v", close)
	}
	if res.Bottom[0] > res.Bottom[1] || res.Bottom[0] > res.Nearest[0]+1e-12 {
		t.Errorf("bottom %v, nearest %v", res.Bottom, res.Nearest)
	}
	if math.Abs(res.Bottom[1]-res.Nearest[1]) > 1e-12 {
		t.Errorf("all classes together differ: %v, %v", res.Bottom, res.Nearest)
	}
	if math.Abs(res.AUROC-res.Nearest[0]) > 1e-12 {
		t.Errorf("auroc %v, nearest %v", res.AUROC, res.Nearest)
	}
	if a := res.PerClass["a"]; a > 0.97 || a < 0.5 {
		t.Errorf("a against the overlapping b: %v", a)
	}
	if c := res.PerClass["c"]; c < 0.99 {
		t.Errorf("c against the far b: %v", c)
	}

	two, err := Near(t.Context(), set, clusters(10, 10), KNN(f, 2), f, Options{Normal: []string{"a"}})
	if err != nil {
		t.Fatal(err)
	}
	if len(two.Parts) != 3 || two.Parts[0].Anomaly != "other/a" || two.Data != "clusters against clusters" {
		t.Errorf("two sets gave %+v of %s", two.Parts, two.Data)
	}
	if _, err := Near(t.Context(), set, set, KNN(f, 2), nil, Options{}); err == nil {
		t.Error("closeness without features")
	}
}

func TestSoftmaxIsTheClosedForm(t *testing.T) {
	// Two classes of one feature, symmetric about 0: by symmetry the decision
	// lies at 0, and probabilities mirror.
	var x [][]float32
	var y []int
	for i := range 50 {
		v := float32(i)/25 - 0.4
		x, y = append(x, []float32{v}, []float32{-v}), append(y, 0, 1)
	}
	m := fitSoftmax(x, y, 2)
	if p := math.Exp(m.logProbability([]float32{0}, 0)); math.Abs(p-0.5) > 1e-3 {
		t.Errorf("probability at the middle is %v", p)
	}
	a, b := math.Exp(m.logProbability([]float32{1}, 0)), math.Exp(m.logProbability([]float32{-1}, 1))
	if math.Abs(a-b) > 1e-3 || a < 0.8 {
		t.Errorf("probabilities %v and %v do not mirror", a, b)
	}
	sum := math.Exp(m.logProbability([]float32{0.3}, 0)) + math.Exp(m.logProbability([]float32{0.3}, 1))
	if math.Abs(sum-1) > 1e-12 {
		t.Errorf("probabilities sum to %v", sum)
	}
}

// scripted scores items by their first byte and maps it to pixels.
type scripted struct{ fail error }

func (scripted) Name() string { return "scripted" }

func (s scripted) Fit(_ context.Context, normals []dataset.Item, _ uint64) (Scorer, error) {
	if len(normals) == 0 {
		return nil, errors.New("nothing to learn from")
	}
	return s, nil
}

func (s scripted) Score(_ context.Context, items []dataset.Item) ([]float64, error) {
	if s.fail != nil {
		return nil, s.fail
	}
	out := make([]float64, len(items))
	for i, it := range items {
		b, err := it.Read()
		if err != nil {
			return nil, err
		}
		out[i] = float64(b[0])
		if b[0] == 255 {
			out[i] = math.NaN()
		}
	}
	return out, nil
}

func surfaces() *dataset.Set {
	s := &dataset.Set{Name: "surfaces", Root: "memory", Layout: dataset.LayoutMVTec}
	add := func(split, label string, v ...byte) {
		for i, b := range v {
			it := dataset.FromBytes(fmt.Sprintf("%s/%s/%d", split, label, i), split, label, []byte{b})
			if label != dataset.Good {
				it.Defect = label
			}
			s.Items = append(s.Items, it)
		}
	}
	add(dataset.Train, dataset.Good, 1, 2, 3)
	add(dataset.Test, dataset.Good, 1, 2, 3, 4)
	add(dataset.Test, "crack", 5, 6)       // always above
	add(dataset.Test, "dent", 2, 2, 5, 10) // 1.5 + 1.5 + 4 + 4 of 16 pairs
	return s
}

func TestMVTecProtocol(t *testing.T) {
	res, err := MVTec(t.Context(), surfaces(), scripted{}, Options{})
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(map[string]float64{"crack": 1, "dent": 11. / 16}, res.PerDefect); d != "" {
		t.Error(d)
	}
	if want := (8 + 11.) / 24; math.Abs(res.AUROC-want) > 1e-12 {
		t.Errorf("all defects %v, want %v", res.AUROC, want)
	}
	if len(res.Parts) != 3 || res.Parts[2].Anomaly != All || res.Parts[2].Anomalies != 6 {
		t.Errorf("%+v", res.Parts)
	}
}

// mapping finds the bright pixels of an image file.
type mapping struct{ scripted }

func (mapping) Fit(context.Context, []dataset.Item, uint64) (Scorer, error) { return mapping{}, nil }

func (mapping) Score(_ context.Context, items []dataset.Item) ([]float64, error) {
	return make([]float64, len(items)), nil
}

func (mapping) Preprocess() imaging.Preprocess {
	return imaging.Preprocess{Resize: 8, Crop: 8, Interpolation: imaging.Bilinear}
}

func (mapping) Maps(_ context.Context, items []dataset.Item) ([]heatmap.Grid, error) {
	grids := make([]heatmap.Grid, len(items))
	for i, it := range items {
		b, err := it.Read()
		if err != nil {
			return nil, err
		}
		m, err := imaging.Decode(b, imaging.Limits{})
		if err != nil {
			return nil, err
		}
		grids[i] = heatmap.NewGrid(8, 8)
		for p := range grids[i].Values {
			grids[i].Values[p] = float32(m.Pix[3*p])
		}
	}
	return grids, nil
}

func TestMVTecMeasuresPixelsWhereThereAreMasks(t *testing.T) {
	dir := t.TempDir()
	write := func(name string, bright, size int) {
		t.Helper()
		m := imaging.New(size, 8)
		for i := range bright {
			m.Pix[3*i], m.Pix[3*i+1], m.Pix[3*i+2] = 255, 255, 255
		}
		b, err := m.PNG()
		if err != nil {
			t.Fatal(err)
		}
		p := filepath.Join(dir, filepath.FromSlash(name))
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(p, b, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	write("train/good/0.png", 0, 8)
	write("test/good/0.png", 0, 8)
	write("test/hole/0.png", 5, 8)
	write("ground_truth/hole/0_mask.png", 5, 8)
	set, err := dataset.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	res, err := MVTec(t.Context(), set, mapping{}, Options{Pixels: true})
	if err != nil {
		t.Fatal(err)
	}
	if res.PixelAUROC == nil || *res.PixelAUROC != 1 || res.PRO == nil || math.Abs(*res.PRO-1) > 1e-12 {
		t.Errorf("pixel auroc %v, pro %v of a perfect map", res.PixelAUROC, res.PRO)
	}
	if res, err = MVTec(t.Context(), set, mapping{}, Options{}); err != nil || res.PixelAUROC != nil {
		t.Errorf("pixels were measured unasked: %v", err)
	}
	write("ground_truth/hole/0_mask.png", 5, 9)
	if _, err := MVTec(t.Context(), set, mapping{}, Options{Pixels: true}); err == nil || !strings.Contains(err.Error(), "9×8") {
		t.Errorf("a mask of another size: %v", err)
	}
}

// locating is a scorer that knows the patches where its images are bright.
type locating struct{ mapping }

func (locating) Fit(context.Context, []dataset.Item, uint64) (Scorer, error) {
	return locating{}, nil
}

func (locating) Preprocess() imaging.Preprocess {
	half := [3]float64{0.5, 0.5, 0.5}
	return imaging.Preprocess{Resize: 64, Crop: 64, Interpolation: imaging.Bilinear, Mean: half, Std: half}
}

func (locating) Maps(_ context.Context, items []dataset.Item) ([]heatmap.Grid, error) {
	grids := make([]heatmap.Grid, len(items))
	for i, it := range items {
		b, err := it.Read()
		if err != nil {
			return nil, err
		}
		pix := make([]uint8, 64*64*3)
		if _, err := (locating{}).Preprocess().Apply(b, imaging.Limits{}, pix); err != nil {
			return nil, err
		}
		grids[i] = heatmap.NewGrid(8, 8)
		for p := range 64 * 64 {
			grids[i].Values[p/64/8*8+p%64/8] += float32(pix[3*p]) / 255 / 64
		}
	}
	return grids, nil
}

func TestMVTecMeasuresPatchesOnTheFramesGeometry(t *testing.T) {
	dir := t.TempDir()
	const w, h = 240, 120 // the crop sees columns 60 to 179
	draw := func(x0, x1 int, files ...string) {
		t.Helper()
		m := imaging.New(w, h)
		for y := 30; y < 60; y++ {
			for x := x0; x < x1; x++ {
				m.SetRGB(x, y, 255, 255, 255)
			}
		}
		b, err := m.PNG()
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range files {
			p := filepath.Join(dir, filepath.FromSlash(name))
			if err := errors.Join(os.MkdirAll(filepath.Dir(p), 0o755), os.WriteFile(p, b, 0o644)); err != nil {
				t.Fatal(err)
			}
		}
	}
	draw(0, 0, "train/good/0.png", "test/good/0.png")
	draw(75, 120, "test/inside/0.png", "ground_truth/inside/0_mask.png")
	draw(0, 30, "test/outside/0.png", "ground_truth/outside/0_mask.png")
	set, err := dataset.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	res, err := MVTec(t.Context(), set, locating{}, Options{Pixels: true, Repeats: 2})
	if err != nil {
		t.Fatal(err)
	}
	in, out, all := res.Pixels["inside"], res.Pixels["outside"], res.Pixels[All]
	if in.Covered != 1 || in.AUROC < 0.99 || in.CoveredAUROC < 0.99 || in.PRO < 0.9 || in.Regions != 1 {
		t.Errorf("inside: %+v", in)
	}
	if out.Covered != 0 || out.AUROC > 0.4 || out.PRO > 0.2 || out.CoveredAUROC != 0 {
		t.Errorf("outside: %+v", out)
	}
	if all.Regions != 2 || math.Abs(all.Covered-0.6) > 1e-9 || all.CoveredAUROC < 0.99 || all.AUROC > 0.9 || *res.PixelAUROC != all.AUROC || *res.PRO != all.PRO {
		t.Errorf("all: %+v", all)
	}
	run := res.Runs[0]
	for _, s := range run.Scored {
		m, err := run.Places.Map(s, w, h)
		if err != nil {
			t.Fatal(err)
		}
		if _, x, y, _ := m.Peak(); s.Item.Label == "inside" && (x < 75 || x >= 120 || y < 30 || y >= 60) {
			t.Errorf("the peak is at %d,%d", x, y)
		}
	}
}

func TestProtocolsFailClearly(t *testing.T) {
	ctx := t.Context()
	if _, err := MVTec(ctx, clusters(3, 3), scripted{}, Options{}); !errors.Is(err, ErrWrongLayout) {
		t.Errorf("mvtec on classes: %v", err)
	}
	if _, err := OneVsRest(ctx, surfaces(), scripted{}, Options{}); !errors.Is(err, ErrWrongLayout) {
		t.Errorf("one-vs-rest on mvtec: %v", err)
	}
	if _, err := Near(ctx, surfaces(), surfaces(), scripted{}, nil, Options{}); !errors.Is(err, ErrWrongLayout) {
		t.Errorf("near on mvtec: %v", err)
	}
	if _, err := OneVsRest(ctx, clusters(3, 3), scripted{}, Options{Normal: []string{"zebra"}}); err == nil || !strings.Contains(err.Error(), "zebra") {
		t.Errorf("a class that is not there: %v", err)
	}
	boom := errors.New("boom")
	if _, err := MVTec(ctx, surfaces(), scripted{fail: boom}, Options{}); !errors.Is(err, boom) {
		t.Errorf("a scorer that fails: %v", err)
	}
	bad := surfaces()
	bad.Items = append(bad.Items, dataset.FromBytes("nan", dataset.Test, dataset.Good, []byte{255}))
	if _, err := MVTec(ctx, bad, scripted{}, Options{}); err == nil || !strings.Contains(err.Error(), "nan") {
		t.Errorf("NaN as a score: %v", err)
	}
	empty := NewFeatures(func(_ context.Context, files [][]byte) ([][]float32, error) {
		return make([][]float32, len(files)), nil
	})
	if _, err := OneVsRest(ctx, clusters(3, 3), KNN(empty, 2), Options{}); err == nil {
		t.Error("empty embeddings were taken")
	}
}

// TestMoreNeighboursThanNormals: k is bounded by the normals that there are.
func TestMoreNeighboursThanNormals(t *testing.T) {
	calls := 0
	set := clusters(20, 10)
	f := NewFeatures(bytesAsVectors(&calls))
	var got [2]*Result
	for i, k := range []int{20, 50} {
		var err error
		if got[i], err = OneVsRest(t.Context(), set, KNN(f, k), Options{}); err != nil {
			t.Fatal(err)
		}
	}
	if got[0].AUROC != got[1].AUROC {
		t.Errorf("k = 50 of 20 normals gives %v, k = 20 %v", got[1].AUROC, got[0].AUROC)
	}
}

// TestFeaturesWithoutRoom: what there is no room for is embedded again, and is the same.
func TestFeaturesWithoutRoom(t *testing.T) {
	calls := 0
	f := NewFeatures(bytesAsVectors(&calls))
	f.Room = func(bytes int) (bool, error) { return f.Size()+bytes <= 3*8, nil }
	items := clusters(4, 1).Items
	items = append(items, items...) // and each twice
	all := NewFeatures(bytesAsVectors(new(int)))
	want, err := all.Of(t.Context(), items)
	if err != nil {
		t.Fatal(err)
	}
	for run, embedded := range []int{15, 12} {
		calls = 0
		got, err := f.Of(t.Context(), items)
		if err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(want, got); d != "" {
			t.Errorf("run %d: %s", run, d)
		}
		if calls != embedded || f.Len() != 3 || f.Size() != 3*8 {
			t.Errorf("run %d: %d images embedded, %d remembered in %d bytes; want %d, 3 and 24", run, calls, f.Len(), f.Size(), embedded)
		}
	}
	boom := errors.New("boom")
	f.Room = func(int) (bool, error) { return false, boom }
	if _, err := f.Of(t.Context(), items); !errors.Is(err, boom) {
		t.Errorf("a room that fails: %v", err)
	}
}
