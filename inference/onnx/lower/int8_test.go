package lower

import (
	"context"
	"errors"
	"math"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"testing"

	"github.com/nearmiss/nearmiss/inference/onnx"
	"github.com/nearmiss/nearmiss/inference/ort"
)

// drawnWeights are random, of a spread of 1/8.
func drawnWeights(g *onnx.Graph, r *rand.Rand, shape ...int) *onnx.Value {
	n := 1
	for _, d := range shape {
		n *= d
	}
	data := make([]float32, n)
	for i := range data {
		data[i] = float32(r.NormFloat64() / 8)
	}
	return g.Initializer(onnx.FromFloat32("", data, shape...))
}

// products has products of every form: of 20 rows an image by weights as they are,
// transposed, in another shape and cut out of others, a batch of matrices, and of one
// row.
func products(t testing.TB) (path string, eight int) {
	t.Helper()
	r := rand.New(rand.NewPCG(1, 1))
	g := onnx.New("products")
	weights := func(shape ...int) *onnx.Value { return drawnWeights(g, r, shape...) }
	const d = 64
	x := g.Input("x", onnx.Float, 1, 20, d)
	x.SetDimName(0, "N")
	h := g.Reshape(x, -1, d)
	h = g.Gemm(h, weights(d, d), weights(d), nil)
	h = g.Gemm(h, weights(96, d), weights(96), onnx.Attrs{"transB": 1})
	h = g.Gemm(h, g.Reshape(weights(d, 4, 24), d, 96), nil, onnx.Attrs{"transB": 1})
	h = g.Gemm(h, g.Slice(weights(3*d, d), 0, d, 2*d), g.Slice(weights(3*d), 0, d, 2*d), onnx.Attrs{"transB": 1})
	h = g.Add(g.MatMul(g.Reshape(h, -1, 20, d), weights(d, d)), weights(d))
	h = g.Add(h, g.Reshape(g.LayerNorm(h, weights(d), weights(d), 1e-6), -1, 20, d))
	one := g.Reshape(g.Slice(h, 1, 0, 1), -1, d)
	y := g.Gemm(one, weights(d, d), weights(d), nil) // one row an image
	y = g.Gemm(y, weights(d, d), nil, onnx.Attrs{"alpha": 0.5})
	g.Output("y", y)
	g.Outputs()[0].SetDimName(0, "N")
	path = filepath.Join(t.TempDir(), "m.onnx")
	if err := g.WriteFile(path); err != nil {
		t.Fatal(err)
	}
	return path, 5
}

func embed(t *testing.T, s *ort.Session, rows []float32) []float32 {
	t.Helper()
	in, err := ort.NewTensor([]int{len(rows) / (20 * 64), 20, 64}, rows)
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	out, err := s.Run(context.Background(), []*ort.Tensor{in})
	if err != nil {
		t.Fatal(err)
	}
	defer ort.CloseAll(out...)
	return append([]float32(nil), out[0].Float32s()...)
}

// relativeError is the length of the difference in that of what is wanted.
func relativeError(got, want []float32) float64 {
	off, all := 0.0, 0.0
	for i, w := range want {
		off, all = off+math.Pow(float64(got[i]-w), 2), all+math.Pow(float64(w), 2)
	}
	return math.Sqrt(off / all)
}

// inEightBits is the file at path in 8 bits, and how many nodes there are of each operator.
func inEightBits(t *testing.T, path string) (model []byte, count map[string]int) {
	t.Helper()
	model, err := FileInt8(path, nil)
	if err != nil {
		t.Fatal(err)
	}
	g, err := onnx.Decode(model, onnx.BindBatch(1))
	if err != nil {
		t.Fatal(err)
	}
	count = map[string]int{}
	for _, n := range g.Nodes() {
		count[n.OpType]++
	}
	return model, count
}

// both are the file at path and the model of 8 bits that was made of it, until the test ends.
func both(t *testing.T, path string, model []byte) (float, eight *ort.Session) {
	t.Helper()
	float, err := ort.Open(path, ort.Options{IntraOpThreads: 1})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { float.Close() })
	eight, err = ort.OpenBytes(model, ort.Options{IntraOpThreads: 1})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { eight.Close() })
	return float, eight
}

func TestEightBitsAreCloseToThirtyTwo(t *testing.T) {
	path, want := products(t)
	model, count := inEightBits(t, path)
	if count["DynamicQuantizeMatMul"] != want || count["Gemm"] != 2 || count["MatMul"] != 0 || count["LayerNormalization"] != 0 {
		t.Fatalf("the operators are %v", count)
	}
	float, eight := both(t, path, model)
	r := rand.New(rand.NewPCG(2, 2))
	for range 3 {
		rows := make([]float32, 2*20*64)
		for i := range rows {
			rows[i] = float32(r.NormFloat64())
		}
		a, b := embed(t, float, rows), embed(t, eight, rows)
		if e := relativeError(b, a); !(e > 0 && e < 0.03) {
			t.Errorf("the relative error is %v", e)
		}
	}
}

// TestProductsThatStay: those that are named, and no name may be strange to the model.
func TestProductsThatStay(t *testing.T) {
	path, all := products(t)
	_, found, err := Int8Probe(path)
	if err != nil || len(found) != all {
		t.Fatalf("%d products, want %d: %v", len(found), all, err)
	}
	model, err := FileInt8(path, []string{found[1].Name, found[4].Name})
	if err != nil {
		t.Fatal(err)
	}
	g, err := onnx.Decode(model, onnx.BindBatch(1))
	if err != nil {
		t.Fatal(err)
	}
	for i, p := range found {
		if op := g.Lookup(p.Name).Producer().OpType; (op == "DynamicQuantizeMatMul") == (i == 1 || i == 4) {
			t.Errorf("product %d is a %s", i, op)
		}
	}
	if _, err := FileInt8(path, []string{found[0].Name, "another's"}); err == nil || errors.Is(err, ErrNothingToLower) {
		t.Errorf("a product that is not there: %v", err)
	}
	var names []string
	for _, p := range found {
		names = append(names, p.Name)
	}
	if _, err := FileInt8(path, names); !errors.Is(err, ErrNothingToLower) {
		t.Errorf("all stay: %v", err)
	}
}

// TestTheProbeShowsWhatComesIn: the model's own outputs, and of each product the range of
// what comes in and the results, for any batch.
func TestTheProbeShowsWhatComesIn(t *testing.T) {
	const rows, d, out = 20, 64, 80
	r := rand.New(rand.NewPCG(6, 6))
	g := onnx.New("probed")
	x := g.Input("x", onnx.Float, 1, rows, d)
	x.SetDimName(0, "N")
	w := drawnWeights(g, r, d, out)
	y := g.MatMul(x, w)
	g.Output("y", g.MatMul(y, drawnWeights(g, r, out, out)))
	g.Outputs()[0].SetDimName(0, "N")
	path := filepath.Join(t.TempDir(), "m.onnx")
	if err := g.WriteFile(path); err != nil {
		t.Fatal(err)
	}
	model, found, err := Int8Probe(path)
	if err != nil || len(found) != 2 {
		t.Fatal(found, err)
	}
	gain := 0.0
	for _, v := range w.Const().Float32s() {
		gain += float64(v) * float64(v) / out
	}
	if f := found[0]; f.Name != y.Name() || f.Out != out || math.Abs(f.Gain-gain) > 1e-9 {
		t.Errorf("%+v, want %s with a gain of %v", f, y.Name(), gain)
	}
	s, err := ort.OpenBytes(model, ort.Options{IntraOpThreads: 1})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	for _, images := range []int{1, 2} {
		in := make([]float32, images*rows*d)
		for i := range in {
			in[i] = float32(r.NormFloat64())
		}
		in[7], in[9] = -50, 70
		tensor, err := ort.NewTensor([]int{images, rows, d}, in)
		if err != nil {
			t.Fatal(err)
		}
		got, err := s.Run(t.Context(), []*ort.Tensor{tensor})
		if err != nil {
			t.Fatal(err)
		}
		if len(got) != 7 || got[1].Float32s()[0] != -50 || got[2].Float32s()[0] != 70 || len(got[3].Float32s()) != images*rows*out {
			t.Errorf("%d outputs, the range is %v to %v", len(got), got[1].Float32s(), got[2].Float32s())
		}
		least, largest := slices.Min(got[3].Float32s()), slices.Max(got[3].Float32s())
		if got[4].Float32s()[0] != least || got[5].Float32s()[0] != largest {
			t.Errorf("the second product takes in %v to %v, the first gives %v to %v", got[4].Float32s(), got[5].Float32s(), least, largest)
		}
		ort.CloseAll(append(got, tensor)...)
	}
}

func TestWhatEightBitsAreNotFor(t *testing.T) {
	path := filepath.Join(t.TempDir(), "m.onnx")
	for name, weight := range map[string]float32{"too small": 1, "not finite": float32(math.NaN())} {
		g := onnx.New("plain")
		rows, side := 20, 8
		if name == "not finite" {
			side = 64
		}
		data := make([]float32, side*side)
		for i := range data {
			data[i] = weight
		}
		g.Output("y", g.MatMul(g.Input("x", onnx.Float, rows, side), g.Initializer(onnx.FromFloat32("", data, side, side))))
		if err := g.WriteFile(path); err != nil {
			t.Fatal(err)
		}
		if _, err := FileInt8(path, nil); !errors.Is(err, ErrNothingToLower) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := FileInt8(path+".missing", nil); err == nil {
		t.Error("a missing model was lowered")
	}
}

func TestWeightsAreRoundedToTheNearest(t *testing.T) {
	const in, out = 70, 130
	r := rand.New(rand.NewPCG(3, 3))
	data := make([]float32, in*out)
	for i := range data {
		data[i] = float32(r.NormFloat64())
	}
	for name, w := range map[string]weights{
		"as they are": {data: data, in: in, out: out, down: out, across: 1},
		"transposed":  {data: data, in: in, out: out, down: 1, across: in},
	} {
		q, scales, finite := w.rounded()
		if !finite {
			t.Fatalf("%s: the weights are not finite", name)
		}
		for j := range out {
			largest := 0
			for i := range in {
				got, x := int(int8(q[i*out+j])), float64(data[i*w.down+j*w.across])/float64(scales[j])
				if math.Abs(float64(got)-x) > 0.5001 {
					t.Fatalf("%s: %v at %d, %d became %d", name, x, i, j, got)
				}
				largest = max(largest, got, -got)
			}
			if largest != 127 {
				t.Fatalf("%s: the largest of column %d is %d", name, j, largest)
			}
		}
	}
}

func BenchmarkRounding(b *testing.B) {
	const in, out = 768, 3072
	w := weights{data: make([]float32, in*out), in: in, out: out, down: 1, across: in}
	for i := range w.data {
		w.data[i] = float32(i%255) - 127
	}
	b.SetBytes(4 * in * out)
	for range b.N {
		w.rounded()
	}
}
