package lower

import (
	"math"
	"math/rand/v2"
	"path/filepath"
	"testing"

	"github.com/nearmiss/nearmiss/inference/onnx"
)

// block is one of a ViT, of 20 tokens of 64 numbers in two heads, behind the sum of tokens
// and places, which only looks like one of two of a shape; with says what is unusual.
func block(t *testing.T, with string) (path string) {
	t.Helper()
	const d, heads, tokens = 64, 2, 20
	r := rand.New(rand.NewPCG(7, 7))
	g := onnx.New("block")
	weights := func(shape ...int) *onnx.Value { return drawnWeights(g, r, shape...) }
	linear := func(x *onnx.Value, out int) *onnx.Value {
		w, bias := weights(out, d), weights(out)
		if with == "no bias" {
			bias = nil
		}
		return g.Gemm(x, w, bias, onnx.Attrs{"transB": 1})
	}
	norm := func(x *onnx.Value) *onnx.Value {
		return g.LayerNorm(x, g.Repeated(onnx.Float, 1.5, d), weights(d), 1e-6)
	}
	x := g.Input("x", onnx.Float, 1, tokens, d)
	x.SetDimName(0, "N")
	h := g.Reshape(norm(g.Add(x, weights(1, tokens, d))), -1, d)
	all, real := linear(h, 3*d), onnx.Float
	if with == "64 bits" {
		real = onnx.Double
		all = g.Cast(all, real)
	}
	qkv := g.Split(all, 1, d, d, d)
	switch with {
	case "queries twice":
		qkv[1] = qkv[0]
	case "values of their own":
		qkv[2] = g.Split(linear(h, 3*d), 1, d, d, d)[2]
	}
	shape := []int{-1, tokens, heads, d / heads}
	scale := 1 / math.Sqrt(d/heads)
	switch with {
	case "all images at once":
		shape = []int{1, -1, heads, d / heads}
	case "another scale":
		scale = 0.3
	}
	part := func(i int, perm ...int) *onnx.Value { return g.Transpose(g.Reshape(qkv[i], shape...), perm...) }
	q, k, v := part(0, 0, 2, 1, 3), part(1, 0, 2, 3, 1), part(2, 0, 2, 1, 3)
	p := g.Softmax(g.MatMul(g.Mul(q, g.Const(real, scale)), k), -1)
	y := g.Reshape(g.Transpose(g.MatMul(p, v), 0, 2, 1, 3), -1, d)
	if real != onnx.Float {
		y = g.Cast(y, onnx.Float)
	}
	h = g.Add(h, linear(y, d))
	h = g.Add(h, linear(norm(h), d))
	g.Output("y", norm(h))
	g.Outputs()[0].SetDimName(0, "M")
	path = filepath.Join(t.TempDir(), "m.onnx")
	if err := g.WriteFile(path); err != nil {
		t.Fatal(err)
	}
	return path
}

// TestAttentionInEightBits: one node where it is what that computes, for any batch.
func TestAttentionInEightBits(t *testing.T) {
	for with, want := range map[string]map[string]int{
		"nothing unusual":     {"QAttention": 1, "DynamicQuantizeMatMul": 2, "Softmax": 0},
		"no bias":             {"QAttention": 1, "DynamicQuantizeMatMul": 2, "Softmax": 0},
		"queries twice":       {"QAttention": 0, "DynamicQuantizeMatMul": 3, "Softmax": 1},
		"values of their own": {"QAttention": 0, "DynamicQuantizeMatMul": 4, "Softmax": 1},
		"all images at once":  {"QAttention": 0, "DynamicQuantizeMatMul": 3, "Softmax": 1},
		"another scale":       {"QAttention": 0, "DynamicQuantizeMatMul": 3, "Softmax": 1},
		"64 bits":             {"QAttention": 0, "DynamicQuantizeMatMul": 3, "Softmax": 1},
	} {
		path := block(t, with)
		model, got := inEightBits(t, path)
		for op, n := range want {
			if got[op] != n {
				t.Errorf("%s: %d nodes are %s, want %d", with, got[op], op, n)
			}
		}
		float, eight := both(t, path, model)
		r := rand.New(rand.NewPCG(8, 8))
		for _, images := range []int{1, 3} {
			rows := make([]float32, images*20*64)
			for i := range rows {
				rows[i] = float32(r.NormFloat64())
			}
			if e := relativeError(embed(t, eight, rows), embed(t, float, rows)); !(e > 0 && e < 0.02) {
				t.Errorf("%s: the relative error for %d images is %v", with, images, e)
			}
		}
	}
}

// TestAProductThatStaysKeepsItsAttention in 32 bits.
func TestAProductThatStaysKeepsItsAttention(t *testing.T) {
	path := block(t, "nothing unusual")
	_, found, err := Int8Probe(path)
	if err != nil || len(found) != 3 {
		t.Fatalf("%d products: %v", len(found), err)
	}
	model, err := FileInt8(path, []string{found[0].Name})
	if err != nil {
		t.Fatal(err)
	}
	g, err := onnx.Decode(model, onnx.BindBatch(1))
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range g.Live() {
		if n.OpType == "QAttention" {
			t.Errorf("%s is in 8 bits", n)
		}
	}
	if op := g.Lookup(found[0].Name).Producer().OpType; op != "Gemm" {
		t.Errorf("the product is a %s", op)
	}
}
