package onnx

import (
	"bytes"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// attentionBlock builds a small transformer block with a class token, the way
// a ViT does.
func attentionBlock(t *testing.T) *Graph {
	t.Helper()
	g := New("block")
	x := g.Input("pixels", Uint8, 2, 32, 32, 3)
	weight := func(name string, shape ...int) *Value {
		return g.Initializer(FromFloat32(name, make([]float32, Elements(shape)), shape...))
	}
	h := g.Scale(g.Cast(x, Float), 1.0/255)
	h = g.Transpose(h, 0, 3, 1, 2)
	h = g.Conv(h, weight("patch.w", 24, 3, 8, 8), weight("patch.b", 24), ConvOptions{Strides: []int{8, 8}})
	h = g.Transpose(g.Reshape(h, 2, 24, -1), 0, 2, 1)
	h = g.Concat(1, g.Expand(weight("cls", 1, 1, 24), 2, 1, 24), h)
	h = g.Add(h, weight("pos", 1, 17, 24))
	func() {
		defer g.Scope("blocks.0")()
		y := g.LayerNorm(h, weight("blocks.0.ln.w", 24), weight("blocks.0.ln.b", 24), 1e-6)
		qkv := g.Linear(y, weight("qkv.w", 24, 72), weight("qkv.b", 72))
		q := g.Split(g.Transpose(g.Reshape(qkv, 2, 17, 3, 3, 8), 2, 0, 3, 1, 4), 0, 1, 1, 1)
		for i := range q {
			q[i] = g.Squeeze(q[i], 0)
		}
		p := g.Softmax(g.MatMul(q[0], g.Transpose(q[1], 0, 1, 3, 2)), -1)
		y = g.Reshape(g.Transpose(g.MatMul(p, q[2]), 0, 2, 1, 3), 2, 17, 24)
		h = g.Add(h, g.Gelu(y))
	}()
	g.Output("embedding", g.At(h, 1, 0))
	if err := g.Err(); err != nil {
		t.Fatal(err)
	}
	return g
}

func TestBuildingInfersShapes(t *testing.T) {
	g := attentionBlock(t)
	if got := g.Outputs()[0]; !slices.Equal(got.Shape(), []int{2, 24}) || got.Type() != Float || got.Name() != "embedding" {
		t.Errorf("output is %v", got)
	}
	found := false
	for _, n := range g.Nodes() {
		found = found || strings.HasPrefix(n.Name, "blocks.0/LayerNormalization")
	}
	if !found {
		t.Error("no node carries its scope")
	}
}

func TestModelSurvivesEncodingAndDecoding(t *testing.T) {
	g := attentionBlock(t)
	g.SetMetadata("nearmiss.backbone", `{"name":"tiny"}`)
	b, err := g.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	d, err := Decode(b)
	if err != nil {
		t.Fatal(err)
	}
	if d.Metadata()["nearmiss.backbone"] != `{"name":"tiny"}` {
		t.Errorf("metadata: %v", d.Metadata())
	}
	if got := d.Lookup("embedding"); got == nil || !slices.Equal(got.Shape(), []int{2, 24}) {
		t.Errorf("output is %v", got)
	}
	again, err := d.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(b, again) {
		t.Error("encoding what was decoded gives other bytes")
	}
}

func TestWeightsAreNotCopied(t *testing.T) {
	data := []float32{1, 2, 3, 4}
	g := New("alias")
	w := g.Initializer(FromFloat32("w", data, 2, 2))
	g.Output("y", g.Neg(w))
	data[0] = 7
	if w.Const().Float32s()[0] != 7 {
		t.Error("the initialiser does not alias its data")
	}
	b, err := g.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	d, err := Decode(b)
	if err != nil {
		t.Fatal(err)
	}
	at := bytes.Index(b, d.Lookup("w").Const().Data)
	if at < 0 || &b[at] != &d.Lookup("w").Const().Data[0] {
		t.Error("the decoded initialiser does not alias the message")
	}
}

func TestExternalDataBesideTheModel(t *testing.T) {
	big := make([]float32, 5000)
	for i := range big {
		big[i] = float32(i)
	}
	g := New("external")
	x := g.Input("x", Float, 1)
	y := g.Add(g.Initializer(FromFloat32("big", big, 5000)), g.Initializer(FromFloat32("small", []float32{1})))
	g.Output("y", g.Mul(g.Add(y, x), g.Initializer(FromFloat32("other", big[1000:], 4000, 1))))
	dir := t.TempDir()
	path := filepath.Join(dir, "m.onnx")
	if err := g.WriteFile(path, ExternalAbove(1000)); err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(path)
	if err != nil || info.Size() > 1000 {
		t.Fatalf("model file: %v, %v", info.Size(), err)
	}
	d, err := ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string][]float32{"big": big, "other": big[1000:], "small": {1}} {
		if got := d.Lookup(name).Const().Float32s(); !slices.Equal(got, want) {
			t.Errorf("%s differs after reading", name)
		}
	}
	if err := d.Close(); err != nil {
		t.Error(err)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Decode(b); err == nil || !strings.Contains(err.Error(), "m.onnx.data") {
		t.Errorf("decoding without the folder: %v", err)
	}
	if _, err := Decode(bytes.ReplaceAll(b, []byte("m.onnx.data"), []byte("../.x.data.")), ExternalDir(dir)); err == nil || !strings.Contains(err.Error(), "not a path inside") {
		t.Errorf("a path out of the folder: %v", err)
	}
	if err := os.Truncate(path+".data", 5000); err != nil {
		t.Fatal(err)
	}
	if _, err := ReadFile(path); err == nil || !strings.Contains(err.Error(), `tensor "big"`) {
		t.Errorf("truncated data: %v", err)
	}
}

func TestErrorsNameTheNode(t *testing.T) {
	for name, c := range map[string]struct {
		build func(g *Graph)
		want  string
	}{
		"inner dimensions": {func(g *Graph) {
			defer g.Scope("head")()
			g.MatMul(g.Input("x", Float, 2, 3), g.Input("y", Float, 4, 5))
		}, `MatMul "head/MatMul": shapes [2 3] and [4 5]`},
		"unknown operator": {func(g *Graph) { g.Op("com.example:Fancy", nil) }, `com.example.Fancy "Fancy"`},
		"missing input":    {func(g *Graph) { g.Op("Add", nil, g.Input("x", Float)) }, "has 1 inputs, takes 2"},
		"taken name":       {func(g *Graph) { g.Input("x", Float); g.Input("x", Float) }, `"x" is already taken`},
		"foreign value":    {func(g *Graph) { g.Neg(New("other").Input("x", Float)) }, "belongs to another graph"},
	} {
		t.Run(name, func(t *testing.T) {
			g := New("g")
			c.build(g)
			if err := g.Err(); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, want %q in it", err, c.want)
			}
		})
	}
}

func TestShapeArithmeticFolds(t *testing.T) {
	g := New("fold")
	x := g.Input("x", Float, 4, 6, 10)
	shape := g.Op("Shape", nil, x)
	batch := g.Gather(shape, g.Ints(0), 0)
	rest := g.Op("ReduceProd", nil, g.Slice(shape, 0, 1, End), g.Ints(0))
	y := g.Op("Reshape", nil, x, g.Concat(0, batch, rest))
	if !slices.Equal(y.Shape(), []int{4, 60}) {
		t.Fatalf("shape is %v: %v", y.Shape(), g.Err())
	}
	half := g.Op("Div", nil, rest, g.Ints(2))
	if got := half.Const(); got == nil || got.Ints()[0] != 30 {
		t.Errorf("half of 60 is %v", got)
	}
	r := g.Op("Range", nil, g.Const(Int64, 3), g.Const(Int64, 12), g.Const(Int64, 4))
	if got := r.Const(); got == nil || !slices.Equal(got.Ints(), []int64{3, 7, 11}) {
		t.Errorf("range is %v", got)
	}
	full := g.Op("Expand", nil, g.Const(Float, 2.5), g.Ints(2, 2))
	if got := full.Const(); got == nil || !slices.Equal(got.Float32s(), []float32{2.5, 2.5, 2.5, 2.5}) {
		t.Errorf("expand is %v", got)
	}
}

func TestLoopBodyUsesOuterValues(t *testing.T) {
	g := New("loop")
	x := g.Input("x", Float, 3)
	w := g.Initializer(FromFloat32("w", []float32{1, 2, 3}, 3))
	final, stacked := g.Loop(g.Const(Int64, 5), []*Value{x}, func(b *Graph, i *Value, c []*Value) (next, stack []*Value) {
		y := b.Add(c[0], b.Mul(w, b.Cast(i, Float)))
		return []*Value{y}, []*Value{b.ReduceSum(y, false)}
	})
	if err := g.Err(); err != nil {
		t.Fatal(err)
	}
	g.Output("y", final[0])
	g.Output("sums", stacked[0])
	if !slices.Equal(stacked[0].Shape(), []int{5}) || !slices.Equal(final[0].Shape(), []int{3}) {
		t.Errorf("loop gives %v and %v", final[0], stacked[0])
	}
	b, err := g.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	d, err := Decode(b)
	if err != nil {
		t.Fatal(err)
	}
	if got := d.Lookup("sums"); got == nil || !slices.Equal(got.Shape(), []int{5}) {
		t.Errorf("decoded: %v", got)
	}
}

func TestInlineReplacesInputsAndWeights(t *testing.T) {
	src := attentionBlock(t)
	g := New("outer")
	x := g.Input("x", Uint8, 2, 32, 32, 3)
	w := g.Input("w", Float, 24, 72)
	out, values, err := g.Inline(src, map[*Value]*Value{src.Inputs()[0]: x, src.Lookup("qkv.w"): w})
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(out[0].Shape(), []int{2, 24}) || values[src.Lookup("cls")] == nil {
		t.Errorf("inlined output is %v", out[0])
	}
	g.Output("y", out[0])
	if g.Lookup("qkv.w") != nil || g.Lookup("pos") == nil {
		t.Error("initialisers: the replaced one must go, the others must come")
	}
	if _, err := g.Bytes(); err != nil {
		t.Fatal(err)
	}
}

func TestFloat16(t *testing.T) {
	for bits, want := range map[uint16]float64{0x3c00: 1, 0xc000: -2, 0x7bff: 65504, 0x0001: math.Ldexp(1, -24), 0x3555: 0.333251953125} {
		if got := float64(Half(bits)); got != want {
			t.Errorf("%#x is %v, want %v", bits, got, want)
		}
	}
}

func TestHalfPrecisionRoundsToTheNearest(t *testing.T) {
	for h := range 1 << 16 {
		v := Half(uint16(h))
		if v-v != 0 {
			continue // infinite or NaN
		}
		if got, ok := ToHalf(v); !ok || got != uint16(h) {
			t.Fatalf("%#04x is %v, which becomes %#04x (%v)", h, v, got, ok)
		}
		// Half-way to the next number: to the even one. A hair beyond: up.
		next := Half(uint16(h + 1))
		if next-next != 0 || h&0x7fff == 0x7fff {
			continue
		}
		middle := float32((float64(v) + float64(next)) / 2)
		want := uint16(h + h&1)
		if got, _ := ToHalf(middle); got != want {
			t.Fatalf("%v, between %#04x and its successor, becomes %#04x", middle, h, got)
		}
		beyond := math.Nextafter32(middle, next)
		if got, _ := ToHalf(beyond); got != uint16(h+1) {
			t.Fatalf("%v, beyond the middle of %#04x and its successor, becomes %#04x", beyond, h, got)
		}
	}
	for _, v := range []float32{65520, -1e9, float32(math.Inf(1)), float32(math.NaN())} {
		if _, ok := ToHalf(v); ok {
			t.Errorf("%v is taken for a number of half precision", v)
		}
	}
}
