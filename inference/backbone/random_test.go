package backbone

import (
	"math"
	"path/filepath"
	"slices"
	"testing"
)

// TestRandom: every family gives finite embeddings that depend on the image,
// the same for the same seed.
func TestRandom(t *testing.T) {
	for _, s := range []Spec{
		{Family: ViT, Dim: 64, Depth: 3, Heads: 1, Hidden: 128, Patch: 8, Size: 32, ClassPos: true, NormEps: 1e-6},
		{Family: ResNet, Blocks: []int{1, 1, 2, 1}, Widths: []int{64, 64, 128, 128}, Dim: 128, Size: 64, NormEps: 1e-5},
		{Family: ResNet, Basic: true, Blocks: []int{1, 2, 1, 1}, Widths: []int{16, 32, 64, 64}, Dim: 64, Size: 64, NormEps: 1e-5},
		{Family: ConvNeXt, Blocks: []int{1, 1, 2, 1}, Widths: []int{16, 32, 48, 64}, Hidden: 4, Dim: 64, Size: 64, NormEps: 1e-6},
		{Family: Hybrid, Blocks: []int{1, 1}, Widths: []int{128, 128}, Dim: 64, Depth: 1, Heads: 1, Hidden: 64, Patch: 1, Size: 32, ClassPos: true, NormEps: 1e-6, GroupEps: 1e-5, StdEps: 1e-8},
	} {
		t.Run(s.Name(), func(t *testing.T) {
			embed := func(seed uint64) []float32 {
				m, err := Random(s, seed)
				if err != nil {
					t.Fatal(err)
				}
				path := filepath.Join(t.TempDir(), "m.onnx")
				if _, err := m.Write(path, Options{}); err != nil {
					t.Fatal(err)
				}
				return slices.Clone(run(t, path, testImages(2, s.Size), 2, s.Size)[OutputEmbedding].Float32s())
			}
			a, b, c := embed(1), embed(1), embed(2)
			if !slices.Equal(a, b) {
				t.Error("one seed gives two models")
			}
			if slices.Equal(a, c) {
				t.Error("two seeds give one model")
			}
			norm, apart := 0.0, 0.0
			for i := range s.Dim {
				norm += float64(a[i] * a[i])
				apart += float64((a[i] - a[s.Dim+i]) * (a[i] - a[s.Dim+i]))
			}
			if !(norm < math.Inf(1) && apart > 1e-4*norm) {
				t.Errorf("two images of squared norm %.3g are %.3g apart", norm, apart)
			}
		})
	}
	if _, err := Random(Spec{Family: ViT}, 1); err == nil {
		t.Error("an empty specification is accepted")
	}
}
