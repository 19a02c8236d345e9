package inference

import (
	"image/color"
	"math"
	"testing"

	"github.com/nearmiss/nearmiss/inference/imaging"
)

// TestEmbeddingsAreAveragedOverSymmetries: the tiny model gives the mean colours
// of the left and right halves, which their mirror image swaps.
func TestEmbeddingsAreAveragedOverSymmetries(t *testing.T) {
	red, blue := color.RGBA{R: 200, A: 255}, color.RGBA{B: 100, A: 255}
	file, want := halves(t, red, blue)
	mirror, _ := halves(t, blue, red)
	path := writeModel(t, 0, 1, false)
	for _, s := range []imaging.Symmetry{imaging.Flip, imaging.Dihedral} {
		e, err := NewEmbedder(path, EmbedOptions{Symmetry: s, Patches: []string{outputTokens}, Batch: 16})
		if err != nil {
			t.Fatal(err)
		}
		if got := e.Preprocess().Symmetry; got != s {
			t.Errorf("the preprocessing says %q, want %q", got, s)
		}
		all, err := e.Embed(t.Context(), [][]byte{file, mirror, file, mirror, file})
		if err != nil {
			t.Fatal(err)
		}
		for i, a := range all {
			for k, v := range a.Vector {
				half := (float64(want[k%3]) + float64(want[3+k%3])) / 2
				if math.Abs(float64(v)-half) > 1e-6 {
					t.Errorf("%s, image %d: %v, want %v in both halves", s, i, a.Vector, half)
					break
				}
			}
			left := []uint8{200, 100}[i%2] // red or blue
			if got := a.Patches[0][[]int{0, 2}[i%2]]; math.Abs(float64(got)-float64(left)/255) > 1e-6 {
				t.Errorf("%s, image %d: its first token is %v, want that of the image as it is, %v", s, i, got, float64(left)/255)
			}
		}
		if err := e.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := NewEmbedder(writeModel(t, 2, 1, false), EmbedOptions{Symmetry: imaging.Flip}); err == nil {
		t.Error("a model with a batch of its own passes")
	}
}
