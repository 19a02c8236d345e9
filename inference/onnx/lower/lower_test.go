package lower

import (
	"context"
	"math"
	"path/filepath"
	"slices"
	"testing"

	"github.com/nearmiss/nearmiss/inference/onnx"
	"github.com/nearmiss/nearmiss/inference/ort"
)

// normalised has layer normalisations of matrices, of tokens, of channels-last
// images, with statistics and, with the batch in the middle, of a sequence-first layout.
func normalised(batch int, free bool) *onnx.Graph {
	g := onnx.New("normalised")
	x := g.Input("x", onnx.Float, batch, 3, 4, 6)
	vector := func(v ...float32) *onnx.Value { return g.Initializer(onnx.FromFloat32("", v, len(v))) }
	scale, bias := vector(1, 2, -1, 0.5, 3, 1), vector(0, 1, 0, -1, 2, 0)
	h := g.LayerNorm(x, scale, bias, 1e-6)
	h = g.Reshape(g.LayerNorm(g.Reshape(h, 0, 12, 6), scale, nil, 1e-5), -1, 6)
	h = g.Add(h, g.LayerNorm(h, scale, bias, 1e-6))
	h = g.Reshape(h, -1, 12, 6)
	h = g.Add(h, g.Transpose(g.LayerNorm(g.Transpose(h, 1, 0, 2), scale, bias, 1e-6), 1, 0, 2))
	y := g.Op("LayerNormalization", onnx.Attrs{"axis": 1}, g.Reshape(h, -1, 12, 6), g.Initializer(onnx.FromFloat32("", make([]float32, 72), 12, 6)))
	h = g.Reshape(h, -1, 3, 4, 6)
	z := g.LayerNorm(g.Transpose(g.Transpose(h, 0, 1, 3, 2), 0, 1, 3, 2), scale, bias, 1e-6)
	stats := g.Extend(z.Producer(), 3) // mean and inverse deviation, as gradients need them
	g.Output("y", g.Add(g.Add(g.Add(h, g.Reshape(y, -1, 3, 4, 6)), z), g.Mul(stats[1], stats[2])))
	if free {
		x.SetDimName(0, "N")
		g.Outputs()[0].SetDimName(0, "N")
	}
	g.SetMetadata("key", "value")
	return g
}

func run(t *testing.T, model []byte, batch int) []float32 {
	t.Helper()
	s, err := ort.OpenBytes(model, ort.Options{IntraOpThreads: 1})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	data := make([]float32, batch*72)
	for i := range data {
		data[i] = float32(math.Sin(float64(i*i))) + 3
	}
	in, err := ort.NewTensor([]int{batch, 3, 4, 6}, data)
	if err != nil {
		t.Fatal(err)
	}
	out, err := s.Run(context.Background(), []*ort.Tensor{in})
	if err != nil {
		t.Fatal(err)
	}
	defer ort.CloseAll(append(out, in)...)
	return append([]float32(nil), out[0].Float32s()...)
}

func compare(t *testing.T, got, want []float32) {
	t.Helper()
	for i, w := range want {
		if math.Abs(float64(got[i]-w)) > 1e-5*math.Max(1, math.Abs(float64(w))) {
			t.Fatalf("element %d is %v, want %v", i, got[i], w)
		}
	}
}

func TestLoweringChangesNoValues(t *testing.T) {
	g := normalised(2, false)
	before, err := g.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	n, err := rewrite(g, func(*onnx.Node) bool { return true })
	if err != nil || n != 5 {
		t.Fatalf("replaced %d nodes, want all but the one over two dimensions: %v", n, err)
	}
	after, err := g.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	compare(t, run(t, after, 2), run(t, before, 2))
}

func TestFilesKeepTheirOpenBatch(t *testing.T) {
	path := filepath.Join(t.TempDir(), "m.onnx")
	g := normalised(1, true)
	if err := g.WriteFile(path); err != nil {
		t.Fatal(err)
	}
	before, err := g.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	after, ok := FileForCPU(path, true)
	if !ok {
		t.Fatal("nothing was lowered")
	}
	d, err := onnx.Decode(after, onnx.BindBatch(3))
	if err != nil {
		t.Fatal(err)
	}
	left := 0
	for _, n := range d.Nodes() {
		if n.OpType == "LayerNormalization" {
			left++
		}
	}
	if left != 3 {
		t.Errorf("%d nodes are left, want the one over two dimensions, the one with the batch inside and the one with statistics", left)
	}
	if d.Metadata()["key"] != "value" {
		t.Errorf("metadata is %v", d.Metadata())
	}
	for _, batch := range []int{1, 3} {
		compare(t, run(t, after, batch), run(t, before, batch))
	}
}

// TestPatchesAreTheSame: of an image, for any batch, and not where the batch is inside.
func TestPatchesAreTheSame(t *testing.T) {
	const side, p, grid = 12, 4, 3
	for name, c := range map[string]struct {
		shape  []int
		perm   []int
		lowers bool
	}{
		"channels first":   {[]int{-1, grid, p, grid, p, 3}, []int{0, 1, 3, 5, 2, 4}, true},
		"channels last":    {[]int{-1, grid, p, grid, p, 3}, []int{0, 1, 3, 2, 4, 5}, false},
		"the batch inside": {[]int{1, -1, p, grid, p, 3}, []int{0, 1, 3, 5, 2, 4}, false},
	} {
		g := onnx.New("patches")
		x := g.Input("x", onnx.Uint8, 1, side, side, 3)
		x.SetDimName(0, "N")
		y := g.Reshape(g.Transpose(g.Reshape(x, c.shape...), c.perm...), -1, 3*p*p)
		g.Output("y", y)
		y.SetDimName(0, "M")
		before, err := g.Bytes()
		if err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(t.TempDir(), "m.onnx")
		if err := g.WriteFile(path); err != nil {
			t.Fatal(err)
		}
		after, ok := FileForCPU(path, true)
		if ok != c.lowers {
			t.Fatalf("%s: lowered: %v", name, ok)
		}
		if !ok {
			continue
		}
		for _, batch := range []int{1, 3} {
			data := make([]uint8, batch*side*side*3)
			for i := range data {
				data[i] = uint8(i * i >> 3)
			}
			var got [2][]uint8
			for i, model := range [][]byte{before, after} {
				s, err := ort.OpenBytes(model, ort.Options{IntraOpThreads: 1})
				if err != nil {
					t.Fatal(err)
				}
				defer s.Close()
				in, err := ort.NewTensor([]int{batch, side, side, 3}, data)
				if err != nil {
					t.Fatal(err)
				}
				out, err := s.Run(t.Context(), []*ort.Tensor{in})
				if err != nil {
					t.Fatal(err)
				}
				got[i] = slices.Clone(ort.Data[uint8](out[0]))
				ort.CloseAll(append(out, in)...)
			}
			if len(got[0]) != len(data) || !slices.Equal(got[0], got[1]) {
				t.Errorf("%s: the patches of %d images differ", name, batch)
			}
		}
	}
}

// TestNothingOfOneImage: what all images but the first go through has nothing to do for
// one alone, and stays as it is.
func TestNothingOfOneImage(t *testing.T) {
	g := onnx.New("the others")
	x := g.Input("x", onnx.Float, 2, 4, 8)
	x.SetDimName(0, "N")
	others := g.Slice(x, 0, 1, onnx.End)
	norm := g.Op("LayerNormalization", nil, others, g.Repeated(onnx.Float, 1, 8), g.Repeated(onnx.Float, 0, 8))
	patches := g.Transpose(g.Reshape(norm, -1, 2, 2, 2, 2, 2), 0, 1, 3, 5, 2, 4)
	g.Output("y", patches)
	patches.SetDimName(0, "M")
	path := filepath.Join(t.TempDir(), "m.onnx")
	if err := g.WriteFile(path); err != nil {
		t.Fatal(err)
	}
	if _, ok := FileForCPU(path, true); ok {
		t.Error("it was lowered")
	}
}

func TestFilesThatStayAsTheyAre(t *testing.T) {
	path := filepath.Join(t.TempDir(), "m.onnx")
	g := onnx.New("plain")
	g.Output("y", g.Neg(g.Input("x", onnx.Float, 2)))
	if err := g.WriteFile(path); err != nil {
		t.Fatal(err)
	}
	if _, ok := FileForCPU(path, true); ok {
		t.Error("a model without layer normalisation was lowered")
	}
	if _, ok := FileForCPU(path+".missing", false); ok {
		t.Error("a missing model was lowered")
	}
}
