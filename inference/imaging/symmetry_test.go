package imaging

import (
	"bytes"
	"math/rand/v2"
	"testing"
)

// TestSymmetriesAreGroups: expanding any member of the group gives the same
// images, in another order.
func TestSymmetriesAreGroups(t *testing.T) {
	const side = 5
	r := rand.New(rand.NewPCG(1, 2))
	pix := make([]uint8, side*side*3)
	for i := range pix {
		pix[i] = uint8(r.IntN(256))
	}
	for _, s := range []Symmetry{NoSymmetry, Flip, Dihedral} {
		expand := func(p []uint8) [][]uint8 {
			dst := make([]uint8, s.Count()*len(p))
			s.Expand(p, side, dst)
			var out [][]uint8
			for i := range s.Count() {
				out = append(out, dst[i*len(p):(i+1)*len(p)])
			}
			return out
		}
		all := expand(pix)
		if !bytes.Equal(all[0], pix) {
			t.Errorf("%q: the first image is not the image itself", s)
		}
		for i, a := range all {
			for j, b := range all {
				if i != j && bytes.Equal(a, b) {
					t.Errorf("%q: images %d and %d are equal", s, i, j)
				}
			}
			for _, b := range expand(a) {
				found := false
				for _, c := range all {
					found = found || bytes.Equal(b, c)
				}
				if !found {
					t.Errorf("%q: image %d, expanded, leaves the group", s, i)
				}
			}
		}
	}
	if _, err := ParseSymmetry("sixfold"); err == nil {
		t.Error("an unknown symmetry passes")
	}
	if s, err := ParseSymmetry("none"); err != nil || s != NoSymmetry {
		t.Errorf("none: %q, %v", s, err)
	}
}
