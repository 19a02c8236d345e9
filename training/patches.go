package training

import (
	"cmp"
	"context"
	"slices"

	"github.com/nearmiss/nearmiss/bank"
	"github.com/nearmiss/nearmiss/inference/release"
)

// mostNumbers bounds the patches of an output that a coreset is chosen from, in
// numbers: 156,000 patches of 192, 115 MiB. Of more, each image gives as many, which
// lie as far from each other as can be, so that none of the images is left out.
const mostNumbers = 30_000_000

// mostKept bounds what is kept of the patches of copies of normals for the next thing that is
// tried, in bytes: a ViT-Ti gives 600 kB of each.
const mostKept = 256 << 20

// room says whether the patches of so many images may be kept.
func (b *scoreBuilder) room(images int) bool {
	each := 0
	for _, p := range b.model.e.Outputs().Patches {
		each += 4 * p.Count * p.Dim
	}
	return images*each <= cmp.Or(b.most, mostKept)
}

// patchSample is some of the patch vectors of each image.
type patchSample struct {
	dim    int
	rows   [][]float32 // by image
	places [][]int     // of the patches in the image
}

// keep takes at most most of an image's patches: by greedy k-centre selection, so
// that what is rare in an image is not left to chance.
func (s *patchSample) keep(ctx context.Context, patches []float32, most int, seed uint64) error {
	dim := s.dim
	n := len(patches) / dim
	if n <= most {
		which := make([]int, n)
		for i := range which {
			which[i] = i
		}
		s.rows, s.places = append(s.rows, slices.Clone(patches)), append(s.places, which)
		return nil
	}
	which, _, err := bank.Coreset(ctx, patches, dim, most, seed+uint64(len(s.rows)))
	if err != nil {
		return err
	}
	slices.Sort(which)
	rows := make([]float32, 0, len(which)*dim)
	for _, i := range which {
		rows = append(rows, patches[i*dim:(i+1)*dim]...)
	}
	s.rows, s.places = append(s.rows, rows), append(s.places, which)
	return nil
}

// at are the patches of the images at which.
func (s patchSample) at(which []int) patchSample {
	out := patchSample{dim: s.dim}
	for _, i := range which {
		out.rows, out.places = append(out.rows, s.rows[i]), append(out.places, s.places[i])
	}
	return out
}

// all are the patches of all images, whose ids are given, and names of them.
func (s patchSample) all(ids []uint64) (rows []float32, names []uint64) {
	rows = slices.Concat(s.rows...)
	for i, id := range ids {
		for _, place := range s.places[i] {
			names = append(names, release.PatchID(id, place))
		}
	}
	return rows, names
}
