package lower

import (
	"errors"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"github.com/nearmiss/nearmiss/inference/onnx"
	"github.com/nearmiss/nearmiss/inference/ort"
)

// mixed has what is computed in 16 bits, what follows and what does not: a block with
// attention on [N, 20, 64].
func mixed(t testing.TB, large bool) string {
	t.Helper()
	r := rand.New(rand.NewPCG(4, 4))
	g := onnx.New("mixed")
	weights := func(shape ...int) *onnx.Value { return drawnWeights(g, r, shape...) }
	const d = 64
	x := g.Input("x", onnx.Float, 1, 20, d)
	x.SetDimName(0, "N")
	h := g.Add(x, weights(20, d)) // a table: 32 bits
	n := g.LayerNorm(h, weights(d), weights(d), 1e-6)
	q := g.Scale(g.MatMul(n, weights(d, d)), 0.125) // 16 bits, and what follows
	k := g.Transpose(g.Add(g.MatMul(n, weights(d, d)), weights(d)), 0, 2, 1)
	v := g.Add(g.MatMul(n, g.Reshape(weights(d*d), d, d)), weights(20, d)) // again a table
	h = g.Add(h, g.MatMul(g.Softmax(g.MatMul(q, k), -1), v))               // a sum of both: 32 bits
	y := g.Gelu(g.MatMul(h, weights(d, d)))
	if large {
		y = g.MatMul(y, g.Initializer(onnx.FromFloat32("large", append(make([]float32, d*d-1), 1e5), d, d)))
	}
	g.Output("y", y)
	g.Output("all", h)
	for _, o := range g.Outputs() {
		o.SetDimName(0, "N")
	}
	g.SetMetadata("key", "value")
	path := filepath.Join(t.TempDir(), "m.onnx")
	if err := g.WriteFile(path); err != nil {
		t.Fatal(err)
	}
	return path
}

// inTypes counts operators by the element type of what they give.
func inTypes(t *testing.T, model []byte) map[string]int {
	t.Helper()
	g, err := onnx.Decode(model, onnx.BindBatch(2))
	if err != nil {
		t.Fatal(err)
	}
	if g.Metadata()["key"] != "value" {
		t.Errorf("metadata is %v", g.Metadata())
	}
	count := map[string]int{}
	for _, n := range g.Nodes() {
		count[n.OpType+" "+n.Outputs[0].Type().String()]++
	}
	return count
}

func TestSixteenBitsWhereTheyDo(t *testing.T) {
	for _, large := range []bool{false, true} {
		path := mixed(t, large)
		model, err := FileHalf(path)
		if err != nil {
			t.Fatal(err)
		}
		got := inTypes(t, model)
		want := map[string]int{
			"MatMul float16": 6, "Mul float16": 1, "Add float16": 1, "Transpose float16": 1, "Gelu float16": 1,
			"Add float": 3, "LayerNormalization float": 1, "Softmax float": 1,
		}
		if large {
			want["MatMul float"] = 1 // one of its weights does not fit
		}
		for op, n := range want {
			if got[op] != n {
				t.Errorf("large %v: %d of %s, want %d: %v", large, got[op], op, n, got)
			}
		}
		half, err := ort.OpenBytes(model, ort.Options{IntraOpThreads: 1})
		if err != nil {
			t.Fatal(err)
		}
		defer half.Close()
		float, err := ort.Open(path, ort.Options{IntraOpThreads: 1})
		if err != nil {
			t.Fatal(err)
		}
		defer float.Close()
		if d := half.Outputs(); len(d) != 2 || d[0].Type != ort.Float || d[0].Shape[0] != -1 {
			t.Errorf("outputs are %v", d)
		}
		rows := make([]float32, 3*20*64)
		for i := range rows {
			rows[i] = float32(math.Sin(float64(i * i)))
		}
		a, b := embed(t, float, rows), embed(t, half, rows)
		off, all := 0.0, 0.0
		for i := range a {
			off, all = off+math.Pow(float64(a[i]-b[i]), 2), all+math.Pow(float64(a[i]), 2)
		}
		if e := math.Sqrt(off / all); !(e > 0 && e < 4.0/2048) {
			t.Errorf("the relative error is %v", e)
		}
	}
}

// TestNormsJoinTheConvolutions: with and without a bias of its own, and not where
// somebody else reads what the convolution gives.
func TestNormsJoinTheConvolutions(t *testing.T) {
	r := rand.New(rand.NewPCG(5, 5))
	g := onnx.New("norms")
	draw := func(least float64, shape ...int) *onnx.Value {
		n := 1
		for _, d := range shape {
			n *= d
		}
		data := make([]float32, n)
		for i := range data {
			data[i] = float32(least + r.Float64())
		}
		return g.Initializer(onnx.FromFloat32("", data, shape...))
	}
	norm := func(x *onnx.Value, epsilon float64) *onnx.Value {
		return g.Op("BatchNormalization", onnx.Attrs{"epsilon": epsilon}, x, draw(0.5, 4), draw(-0.5, 4), draw(-0.5, 4), draw(0.1, 4))
	}
	x := g.Input("x", onnx.Float, 1, 3, 4, 6)
	x.SetDimName(0, "N")
	pad := onnx.ConvOptions{Pads: []int{1, 1, 1, 1}}
	h := g.Relu(norm(g.Conv(x, draw(-0.5, 4, 3, 3, 3), nil, pad), 1e-5))
	h = g.Relu(norm(g.Conv(h, draw(-0.5, 4, 4, 3, 3), draw(-0.5, 4), pad), 0.1))
	c := g.Conv(h, draw(-0.5, 4, 2, 1, 1), nil, onnx.ConvOptions{Group: 2})
	y := g.Add(c, norm(c, 1e-5))
	g.Output("y", y)
	g.SetMetadata("key", "value")
	y.SetDimName(0, "N")
	before, err := g.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	if err := foldNorms(g); err != nil {
		t.Fatal(err)
	}
	after, err := g.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	folded, err := onnx.Decode(after, onnx.BindBatch(1))
	if err != nil {
		t.Fatal(err)
	}
	count := map[string]int{}
	for _, n := range folded.Nodes() {
		count[n.OpType]++
	}
	if count["Conv"] != 3 || count["BatchNormalization"] != 1 {
		t.Fatalf("the operators are %v", count)
	}
	compare(t, run(t, after, 2), run(t, before, 2))

	path := filepath.Join(t.TempDir(), "m.onnx")
	if err := os.WriteFile(path, before, 0o600); err != nil {
		t.Fatal(err)
	}
	half, err := FileHalf(path)
	if err != nil {
		t.Fatal(err)
	}
	if got := inTypes(t, half); got["Conv float16"] != 3 || got["BatchNormalization float"] != 1 {
		t.Errorf("in 16 bits the operators are %v", got)
	}
}

func TestWhatSixteenBitsAreNotFor(t *testing.T) {
	g := onnx.New("plain")
	g.Output("y", g.Neg(g.Input("x", onnx.Float, 2)))
	path := filepath.Join(t.TempDir(), "m.onnx")
	if err := g.WriteFile(path); err != nil {
		t.Fatal(err)
	}
	if _, err := FileHalf(path); !errors.Is(err, ErrNothingToLower) {
		t.Errorf("no products: %v", err)
	}
	if err := CheckHalf(path); !errors.Is(err, ErrNothingToLower) {
		t.Errorf("no products: %v", err)
	}
	for name, f := range map[string]func(string) error{
		"FileHalf":  func(p string) error { _, err := FileHalf(p); return err },
		"CheckHalf": CheckHalf, "CheckInt8": CheckInt8,
	} {
		if err := f(path + ".missing"); err == nil || errors.Is(err, ErrNothingToLower) {
			t.Errorf("%s of a missing model: %v", name, err)
		}
	}
}

// TestWeightsThatSixteenBitsDoNotHold: what has no others is refused, by the check and by
// the conversion alike, and such a product stays in 32 bits however its weights get there.
func TestWeightsThatSixteenBitsDoNotHold(t *testing.T) {
	const d = 512 // more than what is folded when a model is read
	write := func(name string, build func(g *onnx.Graph, x *onnx.Value, weights func(largest float32, shape ...int) *onnx.Value) *onnx.Value) string {
		g := onnx.New(name)
		x := g.Input("x", onnx.Float, 4, d)
		g.Output("y", build(g, x, func(largest float32, shape ...int) *onnx.Value {
			n := 1
			for _, d := range shape {
				n *= d
			}
			data := make([]float32, n)
			for i := range data {
				data[i] = float32(i%7) / 64
			}
			data[n/2] = largest
			return g.Initializer(onnx.FromFloat32("", data, shape...))
		}))
		path := filepath.Join(t.TempDir(), "m.onnx")
		if err := g.WriteFile(path); err != nil {
			t.Fatal(err)
		}
		return path
	}
	type drawn = func(largest float32, shape ...int) *onnx.Value
	product := func(largest float32) func(*onnx.Graph, *onnx.Value, drawn) *onnx.Value {
		return func(g *onnx.Graph, x *onnx.Value, w drawn) *onnx.Value { return g.MatMul(x, w(largest, d, d)) }
	}
	norm := func(scale float32) func(*onnx.Graph, *onnx.Value, drawn) *onnx.Value {
		return func(g *onnx.Graph, x *onnx.Value, w drawn) *onnx.Value {
			h := g.Conv(g.Reshape(x, 4, 2, 16, 16), w(100, 4, 2, 1, 1), nil, onnx.ConvOptions{})
			return g.Op("BatchNormalization", nil, h, w(scale, 4), w(0, 4), w(0, 4), w(1, 4))
		}
	}
	for name, c := range map[string]struct {
		build func(*onnx.Graph, *onnx.Value, drawn) *onnx.Value
		fits  bool
	}{
		"the largest":        {product(65504), true},
		"beyond":             {product(-65520), false},
		"infinite":           {product(float32(math.Inf(1))), false},
		"with a norm, small": {norm(1), true},
		"with a norm, large": {norm(1000), false},
		"a bias": {func(g *onnx.Graph, x *onnx.Value, w drawn) *onnx.Value {
			return g.Gemm(x, w(1, d, d), w(1e5, d), nil)
		}, false},
		"transposed": {func(g *onnx.Graph, x *onnx.Value, w drawn) *onnx.Value {
			return g.MatMul(x, g.Transpose(w(1e5, d, d), 1, 0))
		}, false},
		"transposed, joined and small": {func(g *onnx.Graph, x *onnx.Value, w drawn) *onnx.Value {
			return g.MatMul(x, g.Concat(1, g.Transpose(w(1, d, d), 1, 0), w(1, d, d)))
		}, true},
		"joined with others": {func(g *onnx.Graph, x *onnx.Value, w drawn) *onnx.Value {
			return g.MatMul(x, g.Concat(1, g.Transpose(w(1, d, d), 1, 0), w(1e5, d, d)))
		}, false},
		"joined with itself again and again": {func(g *onnx.Graph, x *onnx.Value, w drawn) *onnx.Value {
			b := g.Transpose(w(1, d, d), 1, 0)
			for range 64 {
				b = g.Slice(g.Concat(1, b, b), 1, 0, d)
			}
			return g.MatMul(x, b)
		}, true},
		"one of two": {func(g *onnx.Graph, x *onnx.Value, w drawn) *onnx.Value {
			return g.MatMul(g.MatMul(x, w(1e5, d, d)), w(1, d, d))
		}, true},
	} {
		path := write(name, c.build)
		check := CheckHalf(path)
		if c.fits != (check == nil) || check != nil && !errors.Is(check, ErrNothingToLower) {
			t.Errorf("%s: the check says %v", name, check)
		}
		if _, err := FileHalf(path); c.fits != (err == nil) || err != nil && !errors.Is(err, ErrNothingToLower) {
			t.Errorf("%s: the conversion says %v", name, err)
		}
	}
}

// FuzzLower: whatever model can be read, it is lowered to one that can be read, with the
// same outputs.
func FuzzLower(f *testing.F) {
	seed := func(path string) {
		b, err := os.ReadFile(path)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	path, _ := products(f)
	seed(path)
	seed(mixed(f, true))
	f.Fuzz(func(t *testing.T, b []byte) {
		for name, lower := range map[string]func(*onnx.Graph) error{
			"the CPU": func(g *onnx.Graph) error {
				_, err := rewrite(g, func(*onnx.Node) bool { return true })
				return err
			},
			"8 bits": func(g *onnx.Graph) error {
				_, err := quantize(g, nil, func(*onnx.Node) bool { return true })
				return err
			},
			"norms": foldNorms,
			"16 bits": func(g *onnx.Graph) error {
				if err := foldNorms(g); err != nil { // as FileHalf does it
					return err
				}
				_, err := halve(g)
				return err
			},
		} {
			g, err := onnx.Decode(b, onnx.BindBatch(2))
			if err != nil || len(g.Outputs()) == 0 {
				return
			}
			before := g.Outputs()
			if err := lower(g); err != nil {
				t.Fatalf("for %s: %v", name, err)
			}
			out, err := g.Bytes()
			if err != nil {
				t.Fatalf("for %s: %v", name, err)
			}
			after, err := onnx.Decode(out)
			if err != nil {
				t.Fatalf("for %s: %v", name, err)
			}
			for i, v := range after.Outputs() {
				if v.String() != before[i].String() {
					t.Errorf("for %s: output %v was %v", name, v, before[i])
				}
			}
		}
	})
}
