package inference

import (
	"bytes"
	"context"
	"encoding/json"
	"image"
	"image/color"
	"image/png"
	"math/rand/v2"
	"path/filepath"
	"testing"

	"github.com/nearmiss/nearmiss/bank"
	"github.com/nearmiss/nearmiss/inference/imaging"
	"github.com/nearmiss/nearmiss/inference/onnx"
	"github.com/nearmiss/nearmiss/internal/eventually"
)

func TestMain(m *testing.M) { eventually.Main(m) }

const (
	side         = 8
	outputTokens = "tokens" // of the tiny model: its pixels as patches
)

func preprocess() imaging.Preprocess {
	return imaging.Preprocess{
		Resize: side, Crop: side, Interpolation: imaging.Bilinear,
		Mean: [3]float64{0.5, 0.5, 0.5}, Std: [3]float64{0.5, 0.5, 0.5},
	}
}

// writeModel writes a tiny backbone: the mean colour in 0..1 of the left and of
// the right half, times scale: 6 numbers. batch 0 leaves the batch open. Where
// poison is set, an image whose red is below 0.1 on the left embeds as NaN.
func writeModel(t testing.TB, batch int, scale float64, poison bool) string {
	t.Helper()
	g := onnx.New("tiny")
	x := g.Input(inputImage, onnx.Uint8, max(batch, 1), side, side, 3)
	f := g.Scale(g.Cast(x, onnx.Float), scale/255)
	halves := g.Split(f, 2, side/2, side/2)
	e := g.Concat(1, g.ReduceMean(halves[0], false, 1, 2), g.ReduceMean(halves[1], false, 1, 2))
	if poison {
		e = g.Add(e, g.Scale(g.Log(g.Sub(g.Slice(e, 1, 0, 1), g.Const(onnx.Float, 0.1))), 0))
	}
	g.Output(outputEmbedding, e)
	g.Output(outputTokens, g.Reshape(f, 0, side*side, 3))
	if batch == 0 {
		x.SetDimName(0, "N")
		for _, v := range g.Outputs() {
			v.SetDimName(0, "N")
		}
	}
	p, err := json.Marshal(preprocess())
	if err != nil {
		t.Fatal(err)
	}
	g.SetMetadata(metadataPreprocess, string(p))
	g.SetMetadata(metadataBackbone, `{"name":"tiny","family":"onnx"}`)
	path := filepath.Join(t.TempDir(), "tiny.onnx")
	if err := g.WriteFile(path); err != nil {
		t.Fatal(err)
	}
	return path
}

// halves is a PNG whose left and right halves have one colour each; want is
// its embedding under scale 1.
func halves(t testing.TB, left, right color.RGBA) (file []byte, want []float32) {
	t.Helper()
	m := image.NewRGBA(image.Rect(0, 0, side, side))
	for y := range side {
		for x := range side {
			c := left
			if x >= side/2 {
				c = right
			}
			m.SetRGBA(x, y, c)
		}
	}
	var b bytes.Buffer
	if err := png.Encode(&b, m); err != nil {
		t.Fatal(err)
	}
	for _, v := range []uint8{left.R, left.G, left.B, right.R, right.G, right.B} {
		want = append(want, float32(v)/255)
	}
	return b.Bytes(), want
}

// images draws n random files and their embeddings.
func images(t testing.TB, n int, seed uint64) (files [][]byte, want [][]float32) {
	t.Helper()
	r := rand.New(rand.NewPCG(seed, 1))
	c := func() color.RGBA {
		return color.RGBA{uint8(64 + r.IntN(128)), uint8(r.IntN(256)), uint8(r.IntN(256)), 255}
	}
	for range n {
		f, w := halves(t, c(), c())
		files, want = append(files, f), append(want, w)
	}
	return files, want
}

func newTestEmbedder(t testing.TB, path string, o EmbedOptions) *Embedder {
	t.Helper()
	e, err := NewEmbedder(path, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := e.Close(); err != nil {
			t.Error(err)
		}
	})
	return e
}

// newTestBank embeds files into a bank calibrated with others.
func newTestBank(t testing.TB, e *Embedder, files, heldOut [][]byte) *bank.Bank {
	t.Helper()
	ctx := context.Background()
	rows := func(files [][]byte) (out []float32) {
		embeddings, err := e.Embed(ctx, files)
		if err != nil {
			t.Fatal(err)
		}
		for _, x := range embeddings {
			if x.Err != nil {
				t.Fatal(x.Err)
			}
			out = append(out, x.Vector...)
		}
		return out
	}
	b, err := bank.New(bank.Options{Dim: e.Dim()})
	if err != nil {
		t.Fatal(err)
	}
	ids := make([]uint64, len(files))
	for i := range ids {
		ids[i] = uint64(i)
	}
	if err := b.AddBatch(ids, rows(files)); err != nil {
		t.Fatal(err)
	}
	if _, err := b.Calibrate(ctx, rows(heldOut), 0.1); err != nil {
		t.Fatal(err)
	}
	return b
}
