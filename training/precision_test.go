package training

import (
	"cmp"
	"errors"
	"math"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/nearmiss/nearmiss/inference"
	"github.com/nearmiss/nearmiss/inference/backbone"
	"github.com/nearmiss/nearmiss/inference/onnx"
	"github.com/nearmiss/nearmiss/inference/onnx/lower"
	"github.com/nearmiss/nearmiss/inference/ort"
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

func TestAReleaseInFewerBits(t *testing.T) {
	t.Parallel()
	// Pictures are computed one at a time in 8 bits; in 16 what a batch sums in another
	// order may be rounded to the next step. Cosines are to those of 32 bits.
	t.Run(PrecisionInt8, func(t *testing.T) { t.Parallel(); releaseInFewerBits(t, PrecisionInt8, 1e-5, 0.99) })
	t.Run(PrecisionHalf, func(t *testing.T) { t.Parallel(); releaseInFewerBits(t, PrecisionHalf, 0.02, 0.99999) })
}

func releaseInFewerBits(t *testing.T, precision string, apart, cosine float64) {
	plan := precisionPlan(t, precision)
	if _, err := Fit(t.Context(), plan); err != nil {
		t.Fatal(err)
	}
	_, d := provenanceOf(t, plan.Out)
	m := d.Release().Manifest
	if m.Model.Precision != precision || d.Embedder().Options().Precision != precision {
		t.Fatalf("the manifest says %q, the model computes %q", m.Model.Precision, d.Embedder().Options().Precision)
	}
	for _, c := range m.Check {
		if c.Tolerance == 0 {
			t.Errorf("check image %s: another device's rounding is not allowed for", c.File)
		}
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
		if a, b := alone[0].Score, together[i].Score; !(math.Abs(a-b) <= apart*math.Abs(a)) {
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
		if c := dot / math.Sqrt(aa*bb); same || !(c > cosine) {
			t.Errorf("picture %d: cosine %v of the embeddings with fewer and 32 bits, equal: %v", i, c, same)
		}
	}
}

// peaked is a backbone one of whose units is far above all others, whatever the image, as
// trained ViTs have them.
func peaked(t *testing.T) string {
	t.Helper()
	m, err := backbone.Random(backbone.Spec{Family: backbone.ViT, Dim: 64, Depth: 3, Heads: 1, Hidden: 128, Patch: 8, Size: 32, ClassPos: true, NormEps: 1e-6}, 1)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "even.onnx")
	if _, err := m.Write(path, backbone.Options{}); err != nil {
		t.Fatal(err)
	}
	g, err := onnx.ReadFile(path, onnx.BindBatch(1), onnx.KeepOpen())
	if err != nil {
		t.Fatal(err)
	}
	defer g.Close()
	bias := g.Lookup("blocks.1.mlp.fc1.bias").Const()
	peak := slices.Clone(bias.Float32s())
	peak[5] = 300
	bias.Data = onnx.FromFloat32("", peak, len(peak)).Data
	path = filepath.Join(t.TempDir(), "peaked.onnx")
	if err := g.WriteFile(path); err != nil {
		t.Fatal(err)
	}
	return path
}

// TestProductsThatEightBitsSpoil stay in 32 bits: the release says which, and who loads
// it computes so.
func TestProductsThatEightBitsSpoil(t *testing.T) {
	t.Parallel()
	plan := precisionPlan(t, PrecisionInt8)
	plan.Model.Backbone = peaked(t)
	if _, err := Fit(t.Context(), plan); err != nil {
		t.Fatal(err)
	}
	_, d := provenanceOf(t, plan.Out)
	m := d.Release().Manifest
	names := m.Model.FloatProducts
	if len(names) == 0 || !slices.Equal(d.Embedder().Options().FloatProducts, names) || m.SchemaVersion != 4 {
		t.Fatalf("version %d, products in 32 bits: %q, computed: %q", m.SchemaVersion, names, d.Embedder().Options().FloatProducts)
	}
	file := d.Release().Path(m.Model.File)
	g, err := onnx.ReadFile(file, onnx.BindBatch(1))
	if err != nil {
		t.Fatal(err)
	}
	defer g.Close()
	if n := g.Lookup(names[0]).Producer(); n.Inputs[1].Name() != "blocks.1.mlp.fc2.weight" {
		t.Errorf("what stays in 32 bits is %v", n)
	}
	var files [][]byte
	for _, n := range plan.Data.Normals[:8] {
		b, err := n.Read()
		if err != nil {
			t.Fatal(err)
		}
		files = append(files, b)
	}
	embed := func(precision string, float []string) []inference.Embedding {
		e, err := inference.NewEmbedder(file, inference.EmbedOptions{Preprocess: &m.Model.Preprocess, Precision: precision, FloatProducts: float})
		if err != nil {
			t.Fatal(err)
		}
		defer e.Close()
		out, err := e.Embed(t.Context(), files)
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	want := embed("", nil)
	off := func(got []inference.Embedding) (sum float64) {
		for i := range got {
			for j, v := range got[i].Vector {
				sum += math.Pow(float64(v-want[i].Vector[j]), 2)
			}
		}
		return math.Sqrt(sum)
	}
	served, err := d.Embedder().Embed(t.Context(), files)
	if err != nil {
		t.Fatal(err)
	}
	if kept, all := off(served), off(embed(PrecisionInt8, nil)); !(kept > 0 && 3*kept < all) {
		t.Errorf("embeddings are off by %v, and by %v with all products in 8 bits", kept, all)
	}
}

func TestThePrecisionIsChosen(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		gate precisionGate
		want string
	}{
		"8 bits do":               {precisionGate{faster: 1e-9, margin: 1, moved: 9}, PrecisionInt8},
		"8 bits are to be better": {precisionGate{faster: 1e-9, margin: -1, moved: 9}, PrecisionFloat},
		"scores may not move":     {precisionGate{faster: 1e-9, margin: 1, moved: 1e-9}, PrecisionFloat},
		"spoilt ones rank alike":  {precisionGate{faster: 1e-9, margin: 1, moved: 9, ranks: 1.1}, PrecisionFloat},
		"16 bits do":              {precisionGate{faster: 1e-9, margin: 1, moved: 9, try: PrecisionHalf}, PrecisionHalf},
		"nothing is fast enough":  {precisionGate{faster: 1e9, margin: 1, moved: 9}, PrecisionFloat},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			plan := precisionPlan(t, PrecisionAuto)
			plan.Model.gate = c.gate
			res, err := Fit(t.Context(), plan)
			if err != nil {
				t.Fatal(err)
			}
			prov, d := provenanceOf(t, plan.Out)
			r := res.Precision
			if r == nil || prov.Precision == nil || r.Choice != prov.Precision.Choice || !(r.Speed > 0) || !strings.HasPrefix(r.String(), r.Choice) {
				t.Fatalf("%+v, in the release %+v", r, prov.Precision)
			}
			if r.Choice != c.want || cmp.Or(d.Embedder().Options().Precision, release.Float32) != c.want {
				t.Errorf("%+v, and the model computes %q", r, d.Embedder().Options().Precision)
			}
			if res.Folded == 0 {
				t.Error("only what was held out calibrates")
			}
			other := r.Int8
			if c.gate.try == PrecisionHalf {
				other = r.Half
			}
			if judged := c.gate.faster < 1; judged != (r.Held == 8 && r.Low != nil && r.Moved != nil && *r.Moved > 0 && r.Ranks != nil && other != nil && *other > 0 && *other < 1) {
				t.Errorf("%+v", r)
			}
		})
	}
}

// TestPrecisionsAreComparedWithTheSameCopies, whatever was tried last of what is done about
// light, and not kept.
func TestPrecisionsAreComparedWithTheSameCopies(t *testing.T) {
	t.Parallel()
	plan := precisionPlan(t, PrecisionAuto).withDefaults()
	plan.Model.gate = precisionGate{faster: 1e-9, margin: 1, moved: 9}
	dir, nets := t.TempDir(), networks{served: plan.Model.Backbone, frozen: plan.Model.Backbone}
	x, err := embed(t.Context(), plan, nets, filepath.Join(dir, "model.onnx"), plan.Data.Normals, "embed")
	if err != nil {
		t.Fatal(err)
	}
	h, err := split(t.Context(), plan, x)
	if err != nil {
		t.Fatal(err)
	}
	one := built{x: x, p: plan}
	if one.s, err = x.b.build(t.Context(), x.n.at(h.train), x.n.at(h.held)); err != nil {
		t.Fatal(err)
	}
	want := one.s.Parts()[0].Bank.Len()
	x.b.copies = copying{lit: 2}
	done, r, err := inPrecision(t.Context(), nets, dir, one, h)
	if err != nil || r.Choice != PrecisionInt8 {
		t.Fatalf("%+v: %v", r, err)
	}
	if got := done.s.Parts()[0].Bank.Len(); got != want {
		t.Errorf("%d pictures are in the bank in 8 bits, %d in 32", got, want)
	}
	if err := done.Close(); err != nil {
		t.Error(err)
	}
}

// TestScoresThatMove: by nothing where only their scale differs, and by the noise that one
// precision adds.
func TestScoresThatMove(t *testing.T) {
	const n = 2000
	r := rand.New(rand.NewPCG(9, 9))
	draw := func(noise, scale float64) (found [2]evidence) {
		for i := range found {
			found[i].anomalies = map[string][]float64{}
		}
		for range n {
			v := r.NormFloat64()
			found[0].normals = append(found[0].normals, v)
			found[1].normals = append(found[1].normals, 7+scale*(v+noise*r.NormFloat64()))
			for _, kind := range spoiltBy[:2] {
				v := math.Exp(r.NormFloat64())
				found[0].anomalies[string(kind)] = append(found[0].anomalies[string(kind)], v)
				found[1].anomalies[string(kind)] = append(found[1].anomalies[string(kind)], scale*v*math.Exp(noise*r.NormFloat64()))
			}
		}
		return found
	}
	for _, c := range []struct{ noise, moved, least, most float64 }{
		{0, 0, 1, 1}, {0.3, 0.291, 0.94, 0.97}, {1, 0.765, 0.66, 0.72},
	} {
		var got PrecisionReport
		got.moves(draw(c.noise, 3))
		if math.Abs(*got.Moved-c.moved) > 0.03 || !(*got.Ranks > c.least-1e-9 && *got.Ranks < c.most+1e-9) {
			t.Errorf("noise of %v: moved by %v, want %v; ranks alike to %v, want %v to %v", c.noise, *got.Moved, c.moved, *got.Ranks, c.least, c.most)
		}
	}
	var got PrecisionReport
	if got.moves([2]evidence{{normals: []float64{1, 1}}, {normals: []float64{1, 2}}}); got.Moved != nil || got.Ranks != nil {
		t.Errorf("scores that do not differ: %+v", got)
	}
}

func TestWhatADeviceIsMadeFor(t *testing.T) {
	for device, want := range map[string]string{"cpu": PrecisionInt8, "cuda": PrecisionHalf, "cuda:1": PrecisionHalf, "tensorrt": PrecisionHalf} {
		d, err := ort.ParseDevice(device)
		if got := fewerBits(d); err != nil || got != want {
			t.Errorf("%s on %s, want %s: %v", got, device, want, err)
		}
	}
}

func TestADeviceThatCannotBeUsedIsSaidFirst(t *testing.T) {
	d := ort.Device{Kind: "tensorrt"}
	why := d.Usable()
	if why == nil {
		t.Skip("this machine has TensorRT")
	}
	plan := precisionPlan(t, PrecisionHalf)
	plan.Host.Device = d
	for i := range plan.Data.Normals {
		plan.Data.Normals[i].Read = func() ([]byte, error) { return nil, errors.New("a picture was read") }
	}
	if _, err := Fit(t.Context(), plan); err == nil || err.Error() != why.Error() {
		t.Errorf("%v, want %v", err, why)
	}
}

func TestEightBitsThatCannotBeHad(t *testing.T) {
	t.Parallel()
	for _, precision := range []string{PrecisionInt8, PrecisionHalf} {
		plan := precisionPlan(t, precision)
		plan.Model.Backbone = foreignBackbone(t)
		for i := range plan.Data.Normals {
			plan.Data.Normals[i].Read = func() ([]byte, error) { return nil, errors.New("a picture was read") }
		}
		if _, err := Fit(t.Context(), plan); !errors.Is(err, lower.ErrNothingToLower) || !errors.Is(err, ErrPlan) {
			t.Errorf("a backbone without products in %s: %v", precision, err)
		}
	}
	plan := precisionPlan(t, PrecisionInt8)
	plan.Host.Device = ort.Device{Kind: "cuda"}
	if _, err := Fit(t.Context(), plan); !errors.Is(err, ErrPlan) {
		t.Errorf("8 bits on an accelerator: %v", err)
	}
	plan.Host.Device, plan.Model.Backbone = ort.Device{}, foreignBackbone(t)
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
