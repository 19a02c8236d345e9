package inference

import (
	"encoding/json"
	"errors"
	"image/color"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/nearmiss/nearmiss/bank"
	"github.com/nearmiss/nearmiss/inference/onnx"
	"github.com/nearmiss/nearmiss/inference/release"
)

// outsideModel is a backbone whose weights are in a file beside it.
func outsideModel(t *testing.T, dir string) string {
	t.Helper()
	g := onnx.New("outside")
	x := g.Input(inputImage, onnx.Uint8, 1, side, side, 3)
	w := make([]float32, side*side*3*16)
	for i := range w {
		w[i] = float32(i*31%17-8) / 1e5
	}
	f := g.Reshape(g.Cast(x, onnx.Float), -1, side*side*3)
	g.Output(outputEmbedding, g.MatMul(f, g.Initializer(onnx.FromFloat32("w", w, side*side*3, 16))))
	x.SetDimName(0, "N")
	g.Outputs()[0].SetDimName(0, "N")
	p, err := json.Marshal(preprocess())
	if err != nil {
		t.Fatal(err)
	}
	g.SetMetadata(metadataPreprocess, string(p))
	path := filepath.Join(dir, "big.onnx")
	if err := g.WriteFile(path, onnx.ExternalAbove(0)); err != nil {
		t.Fatal(err)
	}
	return path
}

// TestAReleaseIsWhole: weights beside the model go into the release and under its
// digest, and a release that does not load is not left behind.
func TestAReleaseIsWhole(t *testing.T) {
	dir := t.TempDir()
	model := outsideModel(t, dir)
	e, err := NewEmbedder(model, EmbedOptions{Threads: 1})
	if err != nil {
		t.Fatal(err)
	}
	defer e.Close()
	var files [][]byte
	for i := range 6 {
		f, _ := halves(t, color.RGBA{uint8(40 * i), 90, 30, 255}, color.RGBA{10, uint8(30 * i), 200, 255})
		files = append(files, f)
	}
	rows, err := e.Embed(t.Context(), files)
	if err != nil {
		t.Fatal(err)
	}
	b, err := bank.New(bank.Options{Dim: 16, K: 2, Kind: bank.Exact})
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	for i, r := range rows {
		if err := b.Add(uint64(i), r.Vector); err != nil {
			t.Fatal(err)
		}
	}
	spec := ReleaseSpec{Detector: "outside", Method: "knn", Model: model, Embedder: e, Bank: b, Check: files[:2]}
	out := filepath.Join(dir, "release")
	r, err := WriteRelease(t.Context(), out, spec)
	if err != nil {
		t.Fatal(err)
	}
	data, err := onnx.External(r.Path(r.Manifest.Model.File))
	if err != nil || len(data) != 1 || r.Manifest.Files[data[0]].Size == 0 {
		t.Fatalf("external data %q, files %v, error %v", data, r.Manifest.Files, err)
	}
	// Without the folder that it was made from it loads, and its weights are under
	// its digest.
	if err := os.Remove(filepath.Join(dir, data[0])); err != nil {
		t.Fatal(err)
	}
	d, err := Open(t.Context(), out, Options{})
	if err != nil {
		t.Fatal(err)
	}
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	path := r.Path(data[0])
	weights, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	weights[len(weights)/2] ^= 1
	if err := os.WriteFile(path, weights, 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(t.Context(), out, Options{}); !errors.Is(err, release.ErrCorrupt) {
		t.Errorf("with another weight: %v", err)
	}

	// The model's weights are gone: nothing is written.
	spec.Check = files[:1]
	if _, err := WriteRelease(t.Context(), filepath.Join(dir, "second"), spec); err == nil {
		t.Error("a release without its weights is written")
	}
	left, err := os.ReadDir(dir)
	if err != nil || slices.ContainsFunc(left, func(f os.DirEntry) bool { return f.Name() == "second" }) {
		t.Errorf("left behind: %v, error %v", left, err)
	}
}
