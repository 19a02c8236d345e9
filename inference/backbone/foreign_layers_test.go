package backbone

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/nearmiss/nearmiss/inference/onnx"
	"github.com/nearmiss/nearmiss/inference/ort"
)

// runs runs models as package inference does.
func runs(path string, images int) (map[string]Output, error) {
	s, err := ort.Open(path, ort.Options{IntraOpThreads: 1})
	if err != nil {
		return nil, err
	}
	defer s.Close()
	shape := s.Inputs()[0].Shape
	size := shape[1] * shape[2] * 3
	pixels := make([]uint8, images*size)
	for i := range pixels {
		pixels[i] = uint8(i % size * 7)
	}
	in, err := ort.NewTensor([]int{images, shape[1], shape[2], 3}, pixels)
	if err != nil {
		return nil, err
	}
	defer in.Close()
	outs, err := s.Run(context.Background(), []*ort.Tensor{in})
	if err != nil {
		return nil, err
	}
	defer ort.CloseAll(outs...)
	found := map[string]Output{}
	for i, o := range s.Outputs() {
		v := Output{Shape: outs[i].Shape()}
		if outs[i].Type() == ort.Float {
			v.Data = outs[i].Float32s()
		}
		found[o.Name] = v
	}
	return found, nil
}

// dinov2 is a DINOv2 as PyTorch exports it, and what it gives.
func dinov2(t *testing.T) (file string, want family, o ImportOptions) {
	t.Helper()
	if err := json.Unmarshal(readTestdata(t, "foreign.json"), &want); err != nil {
		t.Fatal(err)
	}
	o = ImportOptions{Output: "hidden", LoadOptions: LoadOptions{Size: want.Size, Mean: &imageNetMean, Std: &imageNetStd}}
	return filepath.Join("testdata", "foreign_dinov2.onnx"), want, o
}

// TestForeignDINOv2: shapes that the graph computes are inferred, blocks are found
// by their structure, and layers give what the reference implementation says.
func TestForeignDINOv2(t *testing.T) {
	const tol = 1e-4
	src, want, o := dinov2(t)
	images := testImages(2, want.Size)
	for name, run1 := range map[string]func(string, int) (map[string]Output, error){"by the graph alone": nil, "tried": runs} {
		t.Run(name, func(t *testing.T) {
			o.Run = run1
			dst := filepath.Join(t.TempDir(), "b.onnx")
			info, err := Import(src, dst, o)
			if err != nil {
				t.Fatal(err)
			}
			if info.Dim != 32 || info.Size != 42 {
				t.Errorf("%d dimensions from %d px", info.Dim, info.Size)
			}
			near(t, "embedding", run(t, dst, images, 2, want.Size)[OutputEmbedding].Float32s(), want.Embedding, tol)
			a, err := Dissect(dst)
			if d := cmp.Diff(Anatomy{Layers: 3, Class: true, PatchLayer: 1, Foreign: true}, a); d != "" || err != nil {
				t.Fatal(d, err)
			}
			var taps []Selected
			for l := range 3 {
				taps = append(taps, Selected{Tap: Tap{What: TapPooled, Layer: l + 1}})
			}
			taps = append(taps, Selected{Tap: Tap{What: TapClass}}, Selected{Tap: Tap{What: TapPatch, Layer: 2, Around: 3}},
				Selected{Tap: Tap{What: TapPatch, Layer: 2, Around: 1}}, Selected{Tap: Tap{What: TapSpread, Layer: 3, Margin: 4}}, Selected{Tap: Tap{What: TapClass, Layer: 3}})
			one := filepath.Join(t.TempDir(), "s.onnx")
			s, err := Select(one, []string{dst}, taps)
			if err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff([]int{32, 32, 32, 32, 32, 32}, s.Dims); d != "" {
				t.Error(d)
			}
			outs := run(t, one, images, 2, want.Size)
			got := outs[OutputEmbedding].Float32s()
			for l, rows := range append(want.Layers, want.Embedding) {
				piece := append(append([]float32{}, got[l*32:l*32+32]...), got[6*32+l*32:6*32+l*32+32]...)
				near(t, taps[l].String(), piece, rows, tol)
			}
			for i := range 32 { // the spread over one patch
				if v := got[4*32+i]; math.Abs(float64(v)) > 1e-6 {
					t.Fatalf("the spread of one patch is %v", v)
				}
			}
			p := outs["patch@2x3"]
			if d := cmp.Diff([]int{2, 9, 32}, p.Shape()); d != "" {
				t.Fatal(d)
			}
			single := outs["patch@2"].Float32s()
			mean := make([]float64, 32) // of what lies around the first patch of 3×3
			for _, at := range []int{0, 1, 3, 4} {
				length := 0.0
				for i, v := range single[at*32 : at*32+32] {
					length += float64(v) * float64(v)
					mean[i] += float64(v) / 4
				}
				if math.Abs(length-1) > 1e-5 {
					t.Errorf("patch vector %d has the squared length %v", at, length)
				}
			}
			near(t, "the mean of neighbours", p.Float32s()[:32], [][]float64{mean}, 1e-5)
		})
	}
	t.Run("layers by their names", func(t *testing.T) {
		o := o
		o.Layers = []string{"/backbone/encoder/layer.1/Add_1_output_0"}
		dst := filepath.Join(t.TempDir(), "b.onnx")
		if _, err := Import(src, dst, o); err != nil {
			t.Fatal(err)
		}
		if a, err := Dissect(dst); err != nil || a.Layers != 1 {
			t.Errorf("%+v, error %v", a, err)
		}
		for _, name := range []string{"nope", "pooled"} {
			o.Layers = []string{name}
			if _, err := Import(src, dst, o); err == nil || !strings.Contains(err.Error(), name) {
				t.Errorf("layer %s: %v", name, err)
			}
		}
	})
	t.Run("asked for what it does not have", func(t *testing.T) {
		dst := filepath.Join(t.TempDir(), "b.onnx")
		if _, err := Import(src, dst, o); err != nil {
			t.Fatal(err)
		}
		for _, tap := range []Tap{{What: TapPooled}, {What: TapClass, Layer: 4}, {What: TapPatch, Layer: 1, Around: 2}, {What: TapSpread, Layer: 1, Margin: 7}, {What: "logits", Layer: 1}} {
			if _, err := Select(dst+"2", []string{dst}, []Selected{{Tap: tap}}); !errors.Is(err, ErrArchitecture) {
				t.Errorf("%+v: %v", tap, err)
			}
		}
	})
}

// TestForeignStages: the planes of a convolutional network are found.
func TestForeignStages(t *testing.T) {
	g := onnx.NewOpset("cnn", 17)
	x := g.Input("x", onnx.Float, 1, 3, 64, 64)
	x.SetDimName(0, "n")
	y := x
	in := 3
	for i, out := range []int{8, 12, 16, 24} {
		w := g.Initializer(onnx.FromFloat32("w"+string(rune('0'+i)), drawn{Name: "w", Shape: []int{out, in, 3, 3}, Scale: 0.3}.values(), out, in, 3, 3))
		y = g.Relu(g.Conv(y, w, nil, onnx.ConvOptions{Pads: []int{1, 1, 1, 1}, Strides: []int{2, 2}}))
		in = out
	}
	f := g.Flatten(g.Op("GlobalAveragePool", nil, y), 1)
	f.SetDimName(0, "n")
	g.Output("features", f)
	b, err := g.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	src, dst := writeTemp(t, "cnn.onnx", b), filepath.Join(t.TempDir(), "b.onnx")
	if _, err := Import(src, dst, ImportOptions{LoadOptions: LoadOptions{Mean: &halfMean, Std: &halfMean}, Run: runs}); err != nil {
		t.Fatal(err)
	}
	props, err := readProperties(dst)
	if err != nil {
		t.Fatal(err)
	}
	layers, err := readLayers(props)
	if err != nil || len(layers) != 3 || layers[0].Width != 16 || layers[2].Dim != 24 || layers[0].Layout != layoutNCHW {
		t.Fatalf("%+v, error %v", layers, err)
	}
	one := filepath.Join(t.TempDir(), "s.onnx")
	s, err := Select(one, []string{dst}, []Selected{{Tap: Tap{What: TapClass}}, {Tap: Tap{What: TapPooled, Layer: 3}}, {Tap: Tap{What: TapPatch, Layer: 2, Around: 1}}})
	if err != nil {
		t.Fatal(err)
	}
	got := run(t, one, testImages(1, 64), 1, 64)
	v := got[OutputEmbedding].Float32s()
	if d := cmp.Diff([]int{24, 24}, s.Dims); d != "" || !agree(v[:24], v[24:]) {
		t.Error("the pooled last stage is not the embedding", d)
	}
	if d := cmp.Diff([]int{1, 64, 16}, got["patch@2"].Shape()); d != "" {
		t.Error(d)
	}
}

// TestForeignIsTried: what only a run tells.
func TestForeignIsTried(t *testing.T) {
	given := LoadOptions{Mean: &halfMean, Std: &halfMean}
	net := func(edit func(g *onnx.Graph, y *onnx.Value) *onnx.Value) string {
		return writeTemp(t, "net.onnx", foreignNet(t, "x", false, func(g *onnx.Graph, y *onnx.Value) { g.Output("out", edit(g, y)) }))
	}
	t.Run("a model that takes one image though it says otherwise is run so", func(t *testing.T) {
		src := net(func(g *onnx.Graph, y *onnx.Value) *onnx.Value {
			return g.Reshape(g.Op("GlobalAveragePool", nil, y), 1, 5) // the exporter's batch, for ever
		})
		var notes []string
		dst := filepath.Join(t.TempDir(), "b.onnx")
		if _, err := Import(src, dst, ImportOptions{LoadOptions: given, Run: runs, Note: func(s string) { notes = append(notes, s) }}); err != nil {
			t.Fatal(err)
		}
		s, err := ort.Open(dst, ort.Options{})
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		if s.Inputs()[0].Shape[0] != 1 || !strings.Contains(strings.Join(notes, " "), "one image at a time") {
			t.Errorf("input %v, notes %q", s.Inputs()[0].Shape, notes)
		}
	})
	t.Run("a map with one channel is no embedding", func(t *testing.T) {
		src := net(func(g *onnx.Graph, y *onnx.Value) *onnx.Value {
			w := g.Initializer(onnx.FromFloat32("one", make([]float32, 5), 1, 5, 1, 1))
			return g.Conv(y, w, nil, onnx.ConvOptions{})
		})
		if _, err := Import(src, filepath.Join(t.TempDir(), "b.onnx"), ImportOptions{LoadOptions: given, Run: runs}); err == nil || !strings.Contains(err.Error(), "--output") {
			t.Errorf("got %v", err)
		}
	})
	t.Run("a model that does not run is refused", func(t *testing.T) {
		src := net(func(g *onnx.Graph, y *onnx.Value) *onnx.Value { return g.Flatten(g.Op("GlobalAveragePool", nil, y), 1) })
		dst := filepath.Join(t.TempDir(), "b.onnx")
		fail := func(string, int) (map[string]Output, error) { return nil, errors.New("no kernel") }
		if _, err := Import(src, dst, ImportOptions{LoadOptions: given, Run: fail}); err == nil || !strings.Contains(err.Error(), "no kernel") {
			t.Errorf("got %v", err)
		}
		if _, err := os.Stat(dst); err == nil {
			t.Error("it was written all the same")
		}
	})
	t.Run("a model of an operator set that is not read here is run for its shape", func(t *testing.T) {
		b, err := os.ReadFile(net(func(g *onnx.Graph, y *onnx.Value) *onnx.Value {
			f := g.Flatten(g.Op("GlobalAveragePool", nil, y), 1)
			return g.Linear(f, g.Initializer(onnx.FromFloat32("fc", make([]float32, 10), 5, 2)), nil)
		}))
		if err != nil {
			t.Fatal(err)
		}
		old := bytes.Replace(b, []byte("\x10\x11"), []byte("\x10\x0b"), 1) // opset_import.version 17 → 11
		if _, err := onnx.Decode(old, onnx.BindBatch(1)); err == nil || !strings.Contains(err.Error(), "operator set 11") {
			t.Fatalf("the test's file: %v", err)
		}
		src, dst := writeTemp(t, "net.onnx", old), filepath.Join(t.TempDir(), "b.onnx")
		o := ImportOptions{LoadOptions: given, Output: "Flatten", Run: runs}
		info, err := Import(src, dst, o)
		if err != nil || info.Dim != 5 {
			t.Errorf("%+v, error %v", info, err)
		}
	})
}

// TestExternalData: weights in files beside a model come into it, so that no two
// models share them and no release lacks them.
func TestExternalData(t *testing.T) {
	given := ImportOptions{LoadOptions: LoadOptions{Mean: &halfMean, Std: &halfMean}, Run: runs}
	outside := func(dir, name string) (string, []float32) {
		g := onnx.NewOpset("net", 17)
		x := g.Input("x", onnx.Float, 1, 3, 16, 16)
		data := drawn{Name: name, Shape: []int{40, 3, 4, 4}, Scale: 0.5}.values()
		w := g.Initializer(onnx.FromFloat32("w", data, 40, 3, 4, 4))
		g.Output("features", g.Flatten(g.Op("GlobalAveragePool", nil, g.Relu(g.Conv(x, w, nil, onnx.ConvOptions{}))), 1))
		path := filepath.Join(dir, "model.onnx")
		if err := g.WriteFile(path, onnx.ExternalAbove(0)); err != nil {
			t.Fatal(err)
		}
		return path, data
	}
	a, b, models := t.TempDir(), t.TempDir(), t.TempDir()
	first, _ := outside(a, "first")
	second, _ := outside(b, "second")
	small, base := filepath.Join(models, "small.onnx"), filepath.Join(models, "base.onnx")
	if _, err := Import(first, small, given); err != nil {
		t.Fatal(err)
	}
	images := testImages(1, 16)
	before := append([]float32{}, run(t, small, images, 1, 16)[OutputEmbedding].Float32s()...)
	if _, err := Import(second, base, given); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(os.RemoveAll(a), os.RemoveAll(b)); err != nil {
		t.Fatal(err)
	}
	after := run(t, small, images, 1, 16)[OutputEmbedding].Float32s()
	if d := cmp.Diff(before, append([]float32{}, after...)); d != "" {
		t.Error("importing a second model changed the first", d)
	}
	if other := run(t, base, images, 1, 16)[OutputEmbedding].Float32s(); agree(after, other) {
		t.Error("the two models are the same")
	}
	for _, path := range []string{small, base} {
		if files, err := onnx.External(path); err != nil || len(files) > 0 {
			t.Errorf("%s needs %q beside it (error %v)", path, files, err)
		}
	}
	if left, _ := os.ReadDir(models); len(left) != 2 {
		t.Errorf("left in the folder: %v", left)
	}
	t.Run("refused", func(t *testing.T) {
		dir := t.TempDir()
		path, _ := outside(dir, "third")
		files, err := onnx.External(path)
		if err != nil || len(files) != 1 {
			t.Fatal(files, err)
		}
		data := filepath.Join(dir, files[0])
		if err := os.Truncate(data, 100); err != nil {
			t.Fatal(err)
		}
		if _, err := Import(path, small, given); err == nil || !strings.Contains(err.Error(), "truncated") {
			t.Errorf("half the weights: %v", err)
		}
		if err := os.Remove(data); err != nil {
			t.Fatal(err)
		}
		if _, err := Import(path, small, given); err == nil || !strings.Contains(err.Error(), "beside it") {
			t.Errorf("no weights: %v", err)
		}
		if err := os.Symlink("/etc/hostname", data); err == nil {
			if _, err := Import(path, small, given); err == nil {
				t.Error("weights outside the folder are read")
			}
		}
	})
}
