package inference

import (
	"math"
	"math/rand/v2"
	"path/filepath"
	"testing"

	"github.com/nearmiss/nearmiss/inference/backbone"
	"github.com/nearmiss/nearmiss/inference/imaging"
	"github.com/nearmiss/nearmiss/inference/ort"
	"github.com/nearmiss/nearmiss/inference/release"
)

// TestSixteenBitsAgreeWithThirtyTwo: of every family the embeddings in 16 bits are those
// in 32 to within a few of their roundings, 2⁻¹¹ each, whatever the batch.
func TestSixteenBitsAgreeWithThirtyTwo(t *testing.T) {
	for _, s := range []backbone.Spec{
		{Family: backbone.ViT, Dim: 64, Depth: 4, Heads: 2, Hidden: 128, Patch: 8, Size: 32, ClassPos: true, NormEps: 1e-6},
		{Family: backbone.ResNet, Basic: true, Blocks: []int{1, 2, 1, 1}, Widths: []int{16, 32, 64, 64}, Dim: 64, Size: 64, NormEps: 1e-5},
		{Family: backbone.ConvNeXt, Blocks: []int{1, 1, 2, 1}, Widths: []int{16, 32, 48, 64}, Hidden: 4, Dim: 64, Size: 64, NormEps: 1e-6},
		{Family: backbone.Hybrid, Blocks: []int{1, 1}, Widths: []int{128, 128}, Dim: 64, Depth: 1, Heads: 1, Hidden: 64, Patch: 1, Size: 32, ClassPos: true, NormEps: 1e-6, GroupEps: 1e-5, StdEps: 1e-8},
	} {
		t.Run(s.Name(), func(t *testing.T) {
			t.Parallel()
			m, err := backbone.Random(s, 5)
			if err != nil {
				t.Fatal(err)
			}
			path := filepath.Join(t.TempDir(), "m.onnx")
			if _, err := m.Write(path, backbone.Options{}); err != nil {
				t.Fatal(err)
			}
			if err := CheckPrecision(path, release.Half, ort.Device{Kind: "cuda"}); err != nil {
				t.Error(err)
			}
			r := rand.New(rand.NewPCG(1, 1))
			images := make([]*imaging.Image, 9)
			for i := range images {
				images[i] = imaging.New(s.Size, s.Size)
				for j := range images[i].Pix {
					images[i].Pix[j] = uint8(r.IntN(100 + 10*i))
				}
			}
			embed := func(o EmbedOptions) [][]float32 {
				o.Threads = 1
				e := newTestEmbedder(t, path, o)
				if sizes, why := e.Captured(); (len(sizes) > 0) != o.Device.Graph || why != nil {
					t.Errorf("captured are %v: %v", sizes, why)
				}
				out, err := e.Vectors(t.Context(), images)
				if err != nil {
					t.Fatal(err)
				}
				return out
			}
			want := embed(EmbedOptions{})
			for name, got := range map[string][][]float32{
				"one at a time": embed(EmbedOptions{Precision: release.Half, Batch: 1}),
				"in batches":    embed(EmbedOptions{Precision: release.Half, Batch: 4}),
				"captured":      embed(EmbedOptions{Precision: release.Half, Batch: 4, Device: ort.Device{Graph: true}}),
			} {
				for i := range got {
					off, all := 0.0, 0.0
					for j, v := range want[i] {
						off, all = off+math.Pow(float64(got[i][j]-v), 2), all+math.Pow(float64(v), 2)
					}
					if e := math.Sqrt(off / all); !(e > 0 && e < 8.0/2048) {
						t.Errorf("%s: picture %d is off by %.3g of its length", name, i, e)
					}
				}
			}
		})
	}
}
