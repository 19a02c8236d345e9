package inference

import (
	"bytes"
	"math"
	"os"
	"path/filepath"
	"runtime"
	"testing"

	"github.com/nearmiss/nearmiss/inference/imaging"
	"github.com/nearmiss/nearmiss/inference/onnx"
)

// heavyModel writes a backbone with layer normalisation, products by weights of 1 MiB
// and positions that are added.
func heavyModel(t *testing.T) string {
	t.Helper()
	g := onnx.New("heavy")
	filled := func(shape ...int) *onnx.Value {
		n := 1
		for _, d := range shape {
			n *= d
		}
		data := make([]float32, n)
		for i := range data {
			data[i] = float32(math.Sin(float64(i)))
		}
		return g.Initializer(onnx.FromFloat32("", data, shape...))
	}
	const d = side * side * 3
	x := g.Input(inputImage, onnx.Uint8, 1, side, side, 3)
	h := g.Add(g.Reshape(g.Scale(g.Cast(x, onnx.Float), 1.0/255), -1, d), filled(d))
	h = g.LayerNorm(g.MatMul(h, filled(d, 1024)), filled(1024), filled(1024), 1e-6)
	g.Output(outputEmbedding, g.Gemm(h, filled(256, 1024), filled(256), onnx.Attrs{"transB": 1}))
	x.SetDimName(0, "N")
	g.Outputs()[0].SetDimName(0, "N")
	path := filepath.Join(t.TempDir(), "heavy.onnx")
	if err := g.WriteFile(path); err != nil {
		t.Fatal(err)
	}
	return path
}

// A model that was loaded needs its file no more: whoever overwrites one in place does
// not bring down what serves.
func TestALoadedModelLetsGoOfItsFile(t *testing.T) {
	path := heavyModel(t)
	p := preprocess()
	e := newTestEmbedder(t, path, EmbedOptions{Preprocess: &p})
	img := imaging.New(side, side)
	for i := range img.Pix {
		img.Pix[i] = uint8(i * 37)
	}
	before, err := e.Vectors(t.Context(), []*imaging.Image{img})
	if err != nil {
		t.Fatal(err)
	}
	if runtime.GOOS == "linux" {
		maps, err := os.ReadFile("/proc/self/maps")
		if err != nil {
			t.Fatal(err)
		}
		if bytes.Contains(maps, []byte(path)) {
			t.Fatal("the model's file is still mapped")
		}
	}
	if err := os.Truncate(path, 0); err != nil {
		t.Fatal(err)
	}
	after, err := e.Vectors(t.Context(), []*imaging.Image{img})
	if err != nil {
		t.Fatal(err)
	}
	if !near(before[0], after[0]) {
		t.Error("the embedding changed with the file")
	}
}
