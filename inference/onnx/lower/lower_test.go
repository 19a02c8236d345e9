package lower

import (
	"context"
	"math"
	"path/filepath"
	"testing"

	"github.com/nearmiss/nearmiss/inference/onnx"
	"github.com/nearmiss/nearmiss/inference/ort"
)

// normalised has layer normalisations of matrices, of tokens, of channels-last
// images and, with the batch in the middle, of a sequence-first layout.
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
	g.Output("y", g.Add(h, y))
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
		if math.Abs(float64(got[i]-w)) > 1e-5 {
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
	if err != nil || n != 4 {
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
	if left != 2 {
		t.Errorf("%d nodes are left, want the one over two dimensions and the one with the batch inside", left)
	}
	if d.Metadata()["key"] != "value" {
		t.Errorf("metadata is %v", d.Metadata())
	}
	for _, batch := range []int{1, 3} {
		compare(t, run(t, after, batch), run(t, before, batch))
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
