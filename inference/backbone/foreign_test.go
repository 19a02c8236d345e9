package backbone

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/nearmiss/nearmiss/inference/onnx"
	"github.com/nearmiss/nearmiss/inference/onnx/wire"
)

// foreignNet is a small convolutional network as an exporter would write it:
// float NCHW input, open batch, a classifier behind the features.
func foreignNet(t *testing.T, input string, half bool, edit func(g *onnx.Graph, conv *onnx.Value)) []byte {
	t.Helper()
	g := onnx.NewOpset("foreign", 17)
	typ := onnx.Float
	if half {
		typ = onnx.Float16
	}
	x := g.Input(input, typ, 1, 3, 16, 16)
	x.SetDimName(0, "batch")
	y := x
	if half {
		y = g.Cast(x, onnx.Float)
	}
	w := g.Initializer(onnx.FromFloat32("embedding_weight", drawn{Name: "w", Shape: []int{5, 3, 3, 3}, Scale: 0.4}.values(), 5, 3, 3, 3))
	y = g.Relu(g.Conv(y, w, nil, onnx.ConvOptions{Pads: []int{1, 1, 1, 1}}))
	edit(g, y)
	if err := g.Err(); err != nil {
		t.Fatal(err)
	}
	for _, v := range g.Outputs() {
		v.SetDimName(0, "batch")
	}
	b, err := g.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// foreignReference computes pooled features of foreignNet in plain Go.
func foreignReference(images []uint8, n int, mean, std [3]float64) [][]float64 {
	const s = 16
	w := drawn{Name: "w", Shape: []int{5, 3, 3, 3}, Scale: 0.4}.values()
	out := make([][]float64, n)
	for i := range out {
		at := func(c, y, x int) float64 {
			if y < 0 || x < 0 || y >= s || x >= s {
				return 0
			}
			return (float64(images[((i*s+y)*s+x)*3+c])/255 - mean[c]) / std[c]
		}
		for o := range 5 {
			sum := 0.0
			for y := range s {
				for x := range s {
					v := 0.0
					for c := range 3 {
						for k := range 9 {
							v += at(c, y+k/3-1, x+k%3-1) * float64(w[(o*3+c)*9+k])
						}
					}
					sum += max(v, 0)
				}
			}
			out[i] = append(out[i], sum/(s*s))
		}
	}
	return out
}

func TestImportForeign(t *testing.T) {
	pooled := func(g *onnx.Graph, y *onnx.Value) *onnx.Value {
		return g.Flatten(g.Op("GlobalAveragePool", nil, y), 1)
	}
	tokens := func(g *onnx.Graph, y *onnx.Value) *onnx.Value { // [N, 256, 5]
		return g.Transpose(g.Reshape(y, -1, 5, 256), 0, 2, 1)
	}
	mean, std := [3]float64{0.1, 0.2, 0.3}, [3]float64{0.5, 0.6, 0.7}
	for _, c := range []struct {
		name  string
		input string
		half  bool
		edit  func(g *onnx.Graph, y *onnx.Value)
		o     ImportOptions
	}{
		{"rank 2 is taken as it is", "pixel_values", false, func(g *onnx.Graph, y *onnx.Value) { g.Output("features", pooled(g, y)) }, ImportOptions{}},
		{"rank 4 is averaged", "x", false, func(g *onnx.Graph, y *onnx.Value) { g.Output("map", y) }, ImportOptions{}},
		{"rank 3 is averaged on request", "x", false, func(g *onnx.Graph, y *onnx.Value) { g.Output("last_hidden_state", tokens(g, y)) }, ImportOptions{Pool: PoolMean}},
		{"the public names may be taken", "image", false, func(g *onnx.Graph, y *onnx.Value) {
			g.Output("embedding", y)
			g.Output("logits", g.ReduceSum(y, false, 1, 2, 3))
		}, ImportOptions{Output: "embedding"}},
		{"half-precision input and inner output", "in", true, func(g *onnx.Graph, y *onnx.Value) {
			g.Output("features", pooled(g, y))
		}, ImportOptions{Output: "features"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			src := writeTemp(t, "net.onnx", foreignNet(t, c.input, c.half, c.edit))
			dst := filepath.Join(t.TempDir(), "out.onnx")
			c.o.Mean, c.o.Std = &mean, &std
			info, err := Import(src, dst, c.o)
			if err != nil {
				t.Fatal(err)
			}
			want := Info{Name: "net", Family: Foreign, Format: "onnx", Size: 16, Dim: 5, Params: 135}
			if d := cmp.Diff(want, info); d != "" {
				t.Error(d)
			}
			tol := 1e-5
			if c.half {
				tol = 2e-3
			}
			im := testImages(3, 16)
			near(t, "embedding", run(t, dst, im, 3, 16)[OutputEmbedding].Float32s(), foreignReference(im, 3, mean, std), tol)
			r, err := Inspect(dst, ImportOptions{})
			if err != nil || !r.Imported || r.Preprocess.Mean != mean {
				t.Errorf("inspected %+v, error %v", r, err)
			}
			// Decoding proves that names are still unique and inputs known.
			g, err := onnx.ReadFile(dst, onnx.BindBatch(2))
			if err != nil {
				t.Fatal(err)
			}
			defer g.Close()
			if g.Opset() != 17 {
				t.Errorf("operator set %d, want the model's own 17", g.Opset())
			}
			again := filepath.Join(t.TempDir(), "again.onnx")
			if _, err := Import(dst, again, ImportOptions{}); err != nil {
				t.Errorf("importing the imported: %v", err)
			}
		})
	}
	t.Run("class token", func(t *testing.T) {
		src := writeTemp(t, "net.onnx", foreignNet(t, "x", false, func(g *onnx.Graph, y *onnx.Value) { g.Output("last_hidden_state", tokens(g, y)) }))
		dst := filepath.Join(t.TempDir(), "out.onnx")
		if _, err := Import(src, dst, ImportOptions{LoadOptions: LoadOptions{Mean: &mean, Std: &std}}); err != nil {
			t.Fatal(err)
		}
		if out := run(t, dst, testImages(2, 16), 2, 16)[OutputEmbedding]; !cmp.Equal(out.Shape(), []int{2, 5}) {
			t.Errorf("shape %v", out.Shape())
		}
	})
	t.Run("an inner value, its shape given by how to pool it", func(t *testing.T) {
		src := writeTemp(t, "net.onnx", foreignNet(t, "x", false, func(g *onnx.Graph, y *onnx.Value) {
			f := pooled(g, y)
			w := g.Initializer(onnx.FromFloat32("fc", make([]float32, 10), 5, 2))
			g.Output("logits", g.Linear(f, w, nil))
		}))
		dst := filepath.Join(t.TempDir(), "out.onnx")
		if _, err := Import(src, dst, ImportOptions{Output: "Flatten", Pool: PoolNone, LoadOptions: LoadOptions{Mean: &mean, Std: &std}}); err != nil {
			t.Fatal(err)
		}
		im := testImages(2, 16)
		near(t, "embedding", run(t, dst, im, 2, 16)[OutputEmbedding].Float32s(), foreignReference(im, 2, mean, std), 1e-5)
	})

	t.Run("an input of zero images of zero pixels is an open one", func(t *testing.T) {
		b := foreignNet(t, "x", false, func(g *onnx.Graph, y *onnx.Value) { g.Output("features", pooled(g, y)) })
		b, err := wire.Rewrite(b, func(out []byte, f wire.Field) ([]byte, error) {
			if f.Num != wire.ModelGraph {
				return append(out, f.Raw...), nil
			}
			graph, err := wire.Rewrite(f.Val, func(out []byte, f wire.Field) ([]byte, error) {
				if f.Num != wire.GraphInput {
					return append(out, f.Raw...), nil
				}
				in, err := wire.ParseValueInfo(f.Val)
				in.Dims = []int64{0, 3, 0, 0}
				return wire.AppendBytes(out, f.Num, in.Encode()), err
			})
			return wire.AppendBytes(out, f.Num, graph), err
		})
		if err != nil {
			t.Fatal(err)
		}
		dst := filepath.Join(t.TempDir(), "out.onnx")
		if _, err := Import(writeTemp(t, "net.onnx", b), dst, ImportOptions{LoadOptions: LoadOptions{Size: 16, Mean: &mean, Std: &std}}); err != nil {
			t.Fatal(err)
		}
		im := testImages(2, 16)
		near(t, "embedding", run(t, dst, im, 2, 16)[OutputEmbedding].Float32s(), foreignReference(im, 2, mean, std), 1e-5)
	})

	for _, c := range []struct {
		name, message string
		edit          func(g *onnx.Graph, y *onnx.Value)
		o             ImportOptions
	}{
		{"two outputs, none named", "name one", func(g *onnx.Graph, y *onnx.Value) { g.Output("a", y); g.Output("b", y) }, ImportOptions{}},
		{"an output that is not there", `"zzz"`, func(g *onnx.Graph, y *onnx.Value) { g.Output("a", y) }, ImportOptions{Output: "zzz"}},
		{"another size", "32", func(g *onnx.Graph, y *onnx.Value) { g.Output("a", y) }, ImportOptions{LoadOptions: LoadOptions{Size: 32}}},
		{"pooling that does not fit", "pooling", func(g *onnx.Graph, y *onnx.Value) { g.Output("a", y) }, ImportOptions{Pool: PoolClass}},
		{"two inputs", "inputs", func(g *onnx.Graph, y *onnx.Value) {
			g.Output("a", g.Add(y, g.Input("second", onnx.Float, 1)))
		}, ImportOptions{Input: "x"}},
	} {
		t.Run("refused: "+c.name, func(t *testing.T) {
			src := writeTemp(t, "net.onnx", foreignNet(t, "x", false, c.edit))
			dst := filepath.Join(t.TempDir(), "out.onnx")
			_, err := Import(src, dst, c.o)
			if !errors.Is(err, ErrArchitecture) || !strings.Contains(err.Error(), c.message) {
				t.Errorf("got %v", err)
			}
			if _, err := os.Stat(dst); err == nil {
				t.Error("a file was written")
			}
		})
	}
}

// TestUnshare: weights that an exporter merged because they were equal come
// apart again.
func TestUnshare(t *testing.T) {
	src := writeTemp(t, "net.onnx", foreignNet(t, "x", false, func(g *onnx.Graph, y *onnx.Value) {
		one := g.Initializer(onnx.FromFloat32("first.scale", []float32{1, 2, 3, 4, 5}, 5))
		two := g.Op("Identity", nil, one)
		y = g.Flatten(g.Op("GlobalAveragePool", nil, y), 1)
		g.Output("features", g.Mul(g.Mul(y, one), two))
	}))
	dst := filepath.Join(t.TempDir(), "out.onnx")
	info, err := Import(src, dst, ImportOptions{LoadOptions: LoadOptions{Mean: &imageNetMean, Std: &imageNetStd}})
	if err != nil {
		t.Fatal(err)
	}
	if info.Params != 135+10 {
		t.Errorf("%d parameters, want 145", info.Params)
	}
	g, err := onnx.ReadFile(dst, onnx.BindBatch(1))
	if err != nil {
		t.Fatal(err)
	}
	defer g.Close()
	n := 0
	for _, v := range g.Initializers() {
		if cmp.Equal(v.Shape(), []int{5}) {
			n++
		}
	}
	if n != 2 {
		t.Errorf("%d vectors of five, want 2", n)
	}
	near(t, "embedding", run(t, dst, testImages(2, 16), 2, 16)[OutputEmbedding].Float32s(), func() [][]float64 {
		ref := foreignReference(testImages(2, 16), 2, imageNetMean, imageNetStd)
		for _, row := range ref {
			for i := range row {
				row[i] *= float64((i + 1) * (i + 1))
			}
		}
		return ref
	}(), 1e-5)
}

func TestReplaceWeights(t *testing.T) {
	src := writeTemp(t, "net.onnx", foreignNet(t, "x", false, func(g *onnx.Graph, y *onnx.Value) { g.Output("map", y) }))
	dir := t.TempDir()
	imported, dst := filepath.Join(dir, "imported.onnx"), filepath.Join(dir, "out.onnx")
	if _, err := Import(src, imported, ImportOptions{LoadOptions: LoadOptions{Mean: &halfMean, Std: &halfMean}}); err != nil {
		t.Fatal(err)
	}
	w := drawn{Name: "w", Shape: []int{5, 3, 3, 3}, Scale: 0.4}.values()
	for i := range w {
		w[i] *= 2
	}
	if err := ReplaceWeights(imported, dst, []onnx.Tensor{onnx.FromFloat32("embedding_weight", w, 5, 3, 3, 3)}); err != nil {
		t.Fatal(err)
	}
	im := testImages(2, 16)
	a := run(t, imported, im, 2, 16)[OutputEmbedding].Float32s()
	b := run(t, dst, im, 2, 16)[OutputEmbedding].Float32s()
	for i := range a { // one convolution and a ReLU: twice the weights, twice the features
		if b[i] != 2*a[i] {
			t.Fatalf("feature %d is %v, want %v", i, b[i], 2*a[i])
		}
	}
	for name, bad := range map[string]onnx.Tensor{
		"unknown": onnx.FromFloat32("nope", w, 5, 3, 3, 3),
		"smaller": onnx.FromFloat32("embedding_weight", w[:9], 1, 1, 3, 3),
	} {
		if err := ReplaceWeights(imported, dst, []onnx.Tensor{bad}); !errors.Is(err, ErrArchitecture) {
			t.Errorf("%s: got %v", name, err)
		}
	}
}

func FuzzForeign(f *testing.F) {
	g := onnx.New("seed")
	g.Output("embedding", g.Relu(g.Input("image", onnx.Float, 1, 3, 8, 8)))
	b, err := g.Bytes()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b, "", "")
	f.Add(b, "Relu", "mean")
	f.Fuzz(func(t *testing.T, b []byte, output, pool string) {
		if !isONNX(b) {
			return
		}
		r, err := importForeign(b, ImportOptions{Output: output, Pool: Pooling(pool), LoadOptions: LoadOptions{Size: 8, Mean: &halfMean, Std: &halfMean}})
		if err == nil && (!isONNX(r.model) || r.info.Dim < 1) {
			t.Error("the result is no model")
		}
	})
}
