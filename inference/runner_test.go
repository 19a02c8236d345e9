package inference

import (
	"math/rand/v2"
	"path/filepath"
	"slices"
	"sync"
	"testing"

	"github.com/nearmiss/nearmiss/inference/backbone"
	"github.com/nearmiss/nearmiss/inference/ort"
)

// TestOutputsInMemoryOfTheirOwn: what a model writes to memory that is given to it is bit
// for bit what it gives in memory that it allocates, for batches of changing sizes and
// from several goroutines at a time, and no run writes to what an earlier one gave.
func TestOutputsInMemoryOfTheirOwn(t *testing.T) {
	m, err := backbone.Random(backbone.Spec{Family: backbone.ViT, Dim: 64, Depth: 2, Heads: 1, Hidden: 128, Patch: 8, Size: 32, ClassPos: true, NormEps: 1e-6}, 1)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "m.onnx")
	if _, err := m.Write(path, backbone.Options{Tokens: true}); err != nil {
		t.Fatal(err)
	}
	e := newTestEmbedder(t, path, EmbedOptions{Threads: 2, Patches: []string{backbone.OutputTokens}})
	own, err := e.expected(2)
	if err != nil {
		t.Fatal(err)
	}
	if own[e.embedding] == nil || own[e.patches[0].at] == nil {
		t.Error("ONNX Runtime allocates what is asked for")
	}
	ort.CloseAll(own...)
	size := e.Preprocess().InputBytes()
	r := rand.New(rand.NewPCG(1, 1))
	pixels := make([]uint8, 6*size)
	for i := range pixels {
		pixels[i] = uint8(r.IntN(256))
	}
	// plain is a run whose outputs ONNX Runtime allocates.
	plain := func(n int) (out [2][]float32, err error) {
		in, err := ort.NewTensor([]int{n, 32, 32, 3}, pixels[:n*size])
		if err != nil {
			return out, err
		}
		defer in.Close()
		got := make([]*ort.Tensor, len(e.session.Outputs()))
		if err := e.session.RunInto(t.Context(), []*ort.Tensor{in}, got); err != nil {
			return out, err
		}
		defer ort.CloseAll(got...)
		return [2][]float32{slices.Clone(got[e.embedding].Float32s()), slices.Clone(got[e.patches[0].at].Float32s())}, nil
	}
	var wg sync.WaitGroup
	for w := range 3 {
		wg.Go(func() {
			one := &runner{Embedder: e}
			var earlier outputs
			var kept [2][]float32
			for i := range 12 {
				n := 1 + (5*i+w)%6
				want, err := plain(n)
				if err != nil {
					t.Error(err)
					return
				}
				got, err := one.once(pixels[:n*size])
				if err != nil {
					t.Error(err)
					return
				}
				if !slices.Equal(got.vectors, want[0]) || !slices.Equal(got.patches[0], want[1]) {
					t.Errorf("goroutine %d, %d images: the outputs differ", w, n)
				}
				if i > 0 && (!slices.Equal(earlier.vectors, kept[0]) || !slices.Equal(earlier.patches[0], kept[1])) {
					t.Errorf("goroutine %d, %d images: the outputs before have changed", w, n)
				}
				earlier, kept = got, want
			}
		})
	}
	wg.Wait()
}
