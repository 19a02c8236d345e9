package training

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/nearmiss/nearmiss/inference"
	"github.com/nearmiss/nearmiss/inference/backbone"
	"github.com/nearmiss/nearmiss/inference/imaging"
	"github.com/nearmiss/nearmiss/inference/onnx"
	"github.com/nearmiss/nearmiss/inference/release"
	"github.com/nearmiss/nearmiss/internal/eventually"
)

func TestMain(m *testing.M) { eventually.Main(m) }

// smallBackbone writes a ViT of one block with random weights.
func smallBackbone(t testing.TB) string {
	t.Helper()
	m, err := backbone.Random(backbone.Spec{
		Family: backbone.ViT, Dim: 64, Depth: 1, Heads: 1, Hidden: 128, Patch: 8, Size: 32, ClassPos: true, NormEps: 1e-6,
	}, 1)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "small.onnx")
	if _, err := m.Write(path, backbone.Options{}); err != nil {
		t.Fatal(err)
	}
	return path
}

// squares returns n different images: a bright square somewhere on noise.
func squares(t testing.TB, n int) []Image { return squaresIn(t, n, 30, 30) }

// squaresIn leaves the square's upper left corner the w×h upper left of 31×31
// places.
func squaresIn(t testing.TB, n, w, h int) []Image {
	t.Helper()
	r := rand.New(rand.NewPCG(7, 7))
	images := make([]Image, n)
	for i := range images {
		img := imaging.New(40, 40)
		for j := range img.Pix {
			img.Pix[j] = uint8(r.IntN(40))
		}
		x0, y0 := r.IntN(w), r.IntN(h)
		for y := range 10 {
			for x := range 10 {
				img.SetRGB(x0+x, y0+y, 200, 210, 220)
			}
		}
		b, err := img.PNG()
		if err != nil {
			t.Fatal(err)
		}
		images[i] = Image{Name: fmt.Sprintf("square-%d.png", i), Read: func() ([]byte, error) { return b, nil }}
	}
	return images
}

// oneByOne writes a foreign model that fails on more than one image at a time.
func oneByOne(t *testing.T) string {
	t.Helper()
	g := onnx.NewOpset("one", 17)
	x := g.Input("x", onnx.Float, 1, 3, 32, 32)
	x.SetDimName(0, "n")
	w := make([]float32, 16*3*8*8)
	for i := range w {
		w[i] = float32(i*37%19-9) / 40
	}
	y := g.Relu(g.Conv(x, g.Initializer(onnx.FromFloat32("w", w, 16, 3, 8, 8)), nil, onnx.ConvOptions{Strides: []int{8, 8}}))
	g.Output("features", g.Reshape(g.Op("GlobalAveragePool", nil, y), 1, 16))
	src, dst := filepath.Join(t.TempDir(), "one.onnx"), filepath.Join(t.TempDir(), "b.onnx")
	if err := g.WriteFile(src); err != nil {
		t.Fatal(err)
	}
	half := [3]float64{0.5, 0.5, 0.5}
	if _, err := backbone.Import(src, dst, backbone.ImportOptions{LoadOptions: backbone.LoadOptions{Mean: &half, Std: &half}}); err != nil {
		t.Fatal(err)
	}
	return dst
}

func TestFitKeepsToTheBatch(t *testing.T) {
	model := oneByOne(t)
	plan := Plan{
		Detector: "squares", Seed: 5, Data: Data{Normals: squares(t, 30)}, Model: Model{Backbone: model},
		Calibration: Calibration{Settle: true}, Score: Score{Groups: Class()},
	}
	plan.Out = filepath.Join(t.TempDir(), "four")
	if _, err := Fit(t.Context(), plan); err == nil {
		t.Fatal("the test's model takes batches")
	}
	plan.Out = filepath.Join(t.TempDir(), "one")
	plan.Host.Batch = 1
	if _, err := Fit(t.Context(), plan); err != nil {
		t.Error(err)
	}
}

func TestFitWritesAReleaseThatScores(t *testing.T) {
	normals := squares(t, 50)
	normals = append(normals, Image{Name: "copy.png", Read: normals[3].Read},
		Image{Name: "broken.png", Read: func() ([]byte, error) { return []byte("\x89PNG\r\n\x1a\nnonsense"), nil }})
	out := filepath.Join(t.TempDir(), "release")
	var steps []string
	plan := Plan{
		Detector:    "squares",
		Out:         out,
		Seed:        5,
		Data:        Data{Normals: normals},
		Model:       Model{Backbone: smallBackbone(t)},
		Host:        Host{Tool: "test", Progress: func(p Progress) { steps = append(steps, fmt.Sprintf("%s %d/%d", p.Step, p.Done, p.Total)) }},
		Calibration: Calibration{Settle: true},
		Score:       Score{Groups: Class()},
	}
	res, err := Fit(t.Context(), plan)
	if err != nil {
		t.Fatal(err)
	}
	if res.Bank != 40 || res.HeldOut != 10 || res.Duplicate != 1 || res.Rejected != 1 {
		t.Fatalf("%+v", res)
	}
	// 1 % is out of reach of ten held-out normals: the result says so
	if res.Alpha != 1.0/11 || res.Smallest != 1.0/11 {
		t.Errorf("false-alarm rate %v, smallest %v", res.Alpha, res.Smallest)
	}
	for _, want := range []string{"493", "copies", "broken.png"} {
		if !strings.Contains(strings.Join(res.Warnings, "\n"), want) {
			t.Errorf("%q is not in the warnings: %q", want, res.Warnings)
		}
	}
	if got := strings.Join(steps, ", "); !strings.HasPrefix(got, "embed 52/52, bank 0/1, bank 1/1, maps 0/1, maps 1/1, calibrate 0/10, calibrate 1/10") || !strings.HasSuffix(got, "calibrate 10/10") {
		t.Errorf("progress: %s", got)
	}

	d, err := inference.Open(t.Context(), out, inference.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	m := d.Release().Manifest
	if !m.Model.RandomWeights || len(m.Check) != checkImages || m.Calibration.HeldOut != 10 {
		t.Errorf("manifest: %+v", m)
	}
	var prov Provenance
	if err := json.Unmarshal(m.Training, &prov); err != nil || prov.Seed != 5 || prov.DataSHA256 == "" {
		t.Errorf("provenance %+v: %v", prov, err)
	}

	// an entry of the bank is its own nearest neighbour, and the listing names it
	lines, err := release.ReadNormals(out)
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range lines {
		if n.Use != UsedInBank {
			continue
		}
		b, _ := normals[n.ID].Read()
		s, err := d.Score(t.Context(), [][]byte{b})
		if err != nil {
			t.Fatal(err)
		}
		if s[0].Nearest[0].ID != n.ID || s[0].Nearest[0].Distance > 1e-3 {
			t.Errorf("%s: nearest is %+v", n.Name, s[0].Nearest)
		}
		break
	}
	count := map[string]int{}
	for _, n := range lines {
		count[n.Use]++
	}
	if count[UsedInBank] != 40 || count[UsedToHold] != 10 || count[NotUsedTwice] != 1 || count[NotUsedReject] != 1 {
		t.Errorf("listing: %v", count)
	}
}

func TestFitIsRepeatable(t *testing.T) {
	plan := Plan{Detector: "squares", Seed: 9, Data: Data{Normals: squares(t, 20)}, Model: Model{Backbone: smallBackbone(t)}, Calibration: Calibration{Settle: true}, Score: Score{Groups: Class()}}
	var digests []string
	for range 2 {
		plan.Out = filepath.Join(t.TempDir(), "release")
		if _, err := Fit(t.Context(), plan); err != nil {
			t.Fatal(err)
		}
		r, err := release.Open(plan.Out)
		if err != nil {
			t.Fatal(err)
		}
		digests = append(digests, r.Manifest.BankDigest())
	}
	if digests[0] != digests[1] {
		t.Fatal("one plan gave two banks")
	}
}

func TestFitRefusesWhatItCannotPromise(t *testing.T) {
	plan := Plan{Detector: "squares", Out: filepath.Join(t.TempDir(), "release"), Data: Data{Normals: squares(t, 20)}, Model: Model{Backbone: smallBackbone(t)}, Calibration: Calibration{Alpha: 0.05}, Score: Score{Groups: Class()}}
	_, err := Fit(t.Context(), plan)
	if err == nil || !strings.Contains(err.Error(), "93 different normal images") {
		t.Errorf("4 held-out images, false-alarm rate 5 %%: %v", err)
	}
	plan.Calibration.Settle, plan.Data.Normals = true, plan.Data.Normals[:2]
	if _, err := Fit(t.Context(), plan); err == nil || !strings.Contains(err.Error(), "too few") {
		t.Errorf("two images: %v", err)
	}
	if _, err := Fit(t.Context(), Plan{Method: "magic", Score: Score{Groups: Class()}}); err == nil || !strings.Contains(err.Error(), "magic") {
		t.Errorf("unknown method: %v", err)
	}
	if left, _ := filepath.Glob(filepath.Join(filepath.Dir(plan.Out), "*")); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}

func TestFitStopsWhenItsContextEnds(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	normals := squares(t, 30)
	read := normals[10].Read
	normals[10].Read = func() ([]byte, error) { cancel(); return read() }
	plan := Plan{Detector: "squares", Out: filepath.Join(t.TempDir(), "release"), Data: Data{Normals: normals}, Model: Model{Backbone: smallBackbone(t)}, Calibration: Calibration{Settle: true}, Score: Score{Groups: Class()}}
	if _, err := Fit(ctx, plan); !errors.Is(err, context.Canceled) {
		t.Fatalf("cancelled fit: %v", err)
	}
	if left, _ := filepath.Glob(filepath.Join(filepath.Dir(plan.Out), "*")); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}

func TestExtendPutsAConfirmedNormalIntoTheBank(t *testing.T) {
	normals := squares(t, 32)
	first, second := filepath.Join(t.TempDir(), "first"), filepath.Join(t.TempDir(), "second")
	plan := Plan{Detector: "squares", Out: first, Seed: 5, Data: Data{Normals: normals[:30]}, Model: Model{Backbone: smallBackbone(t)}, Calibration: Calibration{Settle: true}, Score: Score{Groups: Class()}}
	before, err := Fit(t.Context(), plan)
	if err != nil {
		t.Fatal(err)
	}
	// one image is new, the other has been seen
	x := Extension{Derivation: Derivation{Release: first, Out: second}, Normals: []Image{normals[31], normals[0]}}
	res, err := Extend(t.Context(), x)
	if err != nil {
		t.Fatal(err)
	}
	if res.Bank != before.Bank+1 || res.Duplicate != 1 || res.Threshold != before.Threshold || res.Digest == before.Digest {
		t.Fatalf("before %+v, after %+v", before, res)
	}
	d, err := inference.Open(t.Context(), second, inference.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	b, _ := normals[31].Read()
	s, err := d.Score(t.Context(), [][]byte{b})
	if err != nil {
		t.Fatal(err)
	}
	if s[0].Nearest[0].ID != 30 || s[0].Nearest[0].Distance > 1e-3 {
		t.Fatalf("the added image's nearest: %+v", s[0].Nearest)
	}
	x.Normals, x.Out = normals[:2], filepath.Join(t.TempDir(), "third")
	if _, err := Extend(t.Context(), x); !errors.Is(err, ErrNothingNew) {
		t.Fatalf("nothing new: %v", err)
	}
}

// TestWorse: a release that knows far less than what serves says so.
func TestWorse(t *testing.T) {
	normals, model, dir := squares(t, 60), smallBackbone(t), t.TempDir()
	fit := func(n int, alpha float64) *Result {
		t.Helper()
		res, err := Fit(t.Context(), Plan{
			Detector: "squares", Out: filepath.Join(dir, fmt.Sprint(n, alpha)), Seed: 5, Data: Data{Normals: normals[:n]}, Model: Model{Backbone: model},
			Score: Score{Groups: Class()}, Calibration: Calibration{Alpha: alpha, Settle: true},
		})
		if err != nil {
			t.Fatal(err)
		}
		return res
	}
	many, most, few := fit(60, 0.1), fit(50, 0.1), fit(10, 0.1)
	for _, c := range []struct {
		serves, made *Result
		asked        float64
		wants        []string
	}{
		{many, most, 0.1, nil},
		{few, many, 0.1, nil},
		{many, few, 0.1, []string{"learnt from", "promises"}},
		{many, few, 0.9, []string{"learnt from"}}, // so many false alarms were asked for
	} {
		why, err := Worse(c.serves.Release, c.made, c.asked)
		if err != nil || (why == "") != (len(c.wants) == 0) {
			t.Errorf("%d normals for %d: %q, %v", c.made.Bank, c.serves.Bank, why, err)
		}
		for _, w := range c.wants {
			if !strings.Contains(why, w) {
				t.Errorf("%q does not say %q", why, w)
			}
		}
	}
	if _, err := Worse(t.TempDir(), few, 0.1); err == nil {
		t.Error("no release, no error")
	}
}

// TestRetractTakesANormalOutOfTheBank again: what Extend put in, and what was
// there from the beginning.
func TestRetractTakesANormalOutOfTheBank(t *testing.T) {
	normals := squares(t, 32)
	dir := t.TempDir()
	first, second := filepath.Join(dir, "first"), filepath.Join(dir, "second")
	before, err := Fit(t.Context(), Plan{
		Detector: "squares", Out: first, Seed: 5, Data: Data{Normals: normals[:30]}, Model: Model{Backbone: smallBackbone(t)},
		Calibration: Calibration{Settle: true}, Score: Score{Groups: Class()},
	})
	if err != nil {
		t.Fatal(err)
	}
	late := normals[31]
	late.Name = "000000000046.png"
	if _, err := Extend(t.Context(), Extension{Derivation: Derivation{Release: first, Out: second}, Normals: []Image{late}}); err != nil {
		t.Fatal(err)
	}
	retract := func(from, to string, names ...string) (*Result, error) {
		return Retract(t.Context(), Retraction{Derivation: Derivation{Release: from, Out: filepath.Join(dir, to)}, Names: func(n string) bool { return slices.Contains(names, n) }})
	}
	res, err := retract(second, "third", late.Name)
	if err != nil || res.Bank != before.Bank || res.Threshold != before.Threshold || len(res.Warnings) > 0 {
		t.Fatalf("before %+v, after %+v, %v", before, res, err)
	}
	third := filepath.Join(dir, "third")
	thumbs, err := release.ReadThumbnails(third)
	if err != nil || thumbs[30] != nil {
		t.Errorf("its thumbnail is left: %v", err)
	}
	known, err := release.ReadNormals(third)
	if err != nil || len(known) != 30 || slices.ContainsFunc(known, func(n Normal) bool { return n.Name == late.Name }) {
		t.Errorf("%d images are listed, %v", len(known), err)
	}
	d, err := inference.Open(t.Context(), third, inference.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	b, _ := late.Read()
	if s, err := d.Score(t.Context(), [][]byte{b}); err != nil || s[0].Nearest[0].ID == 30 {
		t.Errorf("the retracted image's nearest: %+v, %v", s[0].Nearest, err)
	}
	if _, err := retract(third, "none", late.Name); !errors.Is(err, ErrNotThere) {
		t.Errorf("again: %v", err)
	}
	var inBank, all []string
	for _, n := range known {
		all = append(all, n.Name)
		if n.Use == UsedInBank {
			inBank = append(inBank, n.Name)
		}
	}
	if res, err := retract(third, "fourth", inBank[:3]...); err != nil || res.Bank != before.Bank-3 || res.Threshold < before.Threshold {
		t.Errorf("from the beginning: %+v, %v", res, err)
	}
	if _, err := retract(third, "nothing", all...); !errors.Is(err, ErrNeeded) {
		t.Errorf("all of them: %v", err)
	}
}

func TestReadjustDecidesAsATrainingWouldHave(t *testing.T) {
	normals, model := squares(t, 60), smallBackbone(t)
	fit := func(k int, alpha float64) string {
		t.Helper()
		out := filepath.Join(t.TempDir(), "release")
		if _, err := Fit(t.Context(), Plan{Detector: "squares", Out: out, Seed: 5, Data: Data{Normals: normals}, Model: Model{Backbone: model}, Score: Score{Groups: Class(), K: k}, Calibration: Calibration{Alpha: alpha}}); err != nil {
			t.Fatal(err)
		}
		return out
	}
	scores := func(dir string) []inference.Score {
		t.Helper()
		d, err := inference.Open(t.Context(), dir, inference.Options{})
		if err != nil {
			t.Fatal(err)
		}
		defer d.Close()
		var files [][]byte
		for _, n := range normals[:10] {
			b, _ := n.Read()
			files = append(files, b)
		}
		all, err := d.Score(t.Context(), files)
		if err != nil {
			t.Fatal(err)
		}
		return all
	}
	first := fit(2, 0.2)
	for _, c := range []struct {
		k     int
		alpha float64
	}{{2, 0.1}, {4, 0.2}, {1, 0.3}} {
		out := filepath.Join(t.TempDir(), "readjusted")
		res, err := Readjust(t.Context(), Readjustment{Derivation: Derivation{Release: first, Out: out}, K: c.k, Alpha: c.alpha})
		if err != nil {
			t.Fatal(err)
		}
		if res.Alpha != c.alpha || res.Bank != 48 || res.HeldOut != 12 || len(res.Warnings) > 0 {
			t.Errorf("%+v", res)
		}
		if diff := cmp.Diff(scores(fit(c.k, c.alpha)), scores(out)); diff != "" {
			t.Errorf("k = %d, rate %g: %s", c.k, c.alpha, diff)
		}
		if all, err := release.ReadNormals(out); err != nil || len(all) != 60 {
			t.Errorf("%d normals, %v", len(all), err)
		}
	}
	x := Readjustment{Derivation: Derivation{Release: first, Out: filepath.Join(t.TempDir(), "out")}, K: 2, Alpha: 0.2}
	if _, err := Readjust(t.Context(), x); !errors.Is(err, ErrUnchanged) {
		t.Error(err)
	}
	x.Alpha = 0.001
	if res, err := Readjust(t.Context(), x); err != nil || res.Alpha != 1.0/13 || len(res.Warnings) != 1 {
		t.Errorf("%+v, %v", res, err)
	}
}

// TestWhatIsOutsideTheViewDoesNotCount learns with a view, and spoils an image
// outside it, in the ignored part, and inside.
func TestWhatIsOutsideTheViewDoesNotCount(t *testing.T) {
	out := filepath.Join(t.TempDir(), "release")
	view := &imaging.View{Region: &imaging.Rect{Width: 0.8, Height: 0.8}, Ignore: []imaging.Rect{{X: 0.4, Y: 0.4, Width: 0.1, Height: 0.1}}}
	normals := squares(t, 30)
	if _, err := Fit(t.Context(), Plan{
		Detector:    "squares",
		Out:         out,
		Seed:        5,
		Data:        Data{Normals: normals, View: view},
		Model:       Model{Backbone: smallBackbone(t)},
		Calibration: Calibration{Settle: true},
		Score:       Score{Groups: Class()},
	}); err != nil {
		t.Fatal(err)
	}
	d, err := inference.Open(t.Context(), out, inference.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	file, err := normals[0].Read()
	if err != nil {
		t.Fatal(err)
	}
	img, err := imaging.Decode(file, imaging.Limits{})
	if err != nil {
		t.Fatal(err)
	}
	files := [][]byte{file}
	for _, at := range []struct{ x, y int }{{36, 36}, {17, 18}, {5, 5}} {
		spoilt := img.Clone()
		spoilt.SetRGB(at.x, at.y, 255, 0, 255)
		b, err := spoilt.PNG()
		if err != nil {
			t.Fatal(err)
		}
		files = append(files, b)
	}
	s, err := d.Score(t.Context(), files)
	if err != nil {
		t.Fatal(err)
	}
	if s[1].Score != s[0].Score || s[2].Score != s[0].Score {
		t.Errorf("what is outside counts: %v, %v, %v", s[0].Score, s[1].Score, s[2].Score)
	}
	if s[3].Score == s[0].Score {
		t.Error("what is inside does not count")
	}
	if s[0].Width != 40 || s[0].Height != 40 {
		t.Errorf("the image is said to have %d × %d pixels", s[0].Width, s[0].Height)
	}
}
