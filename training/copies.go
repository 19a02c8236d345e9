package training

import (
	"context"
	"fmt"
	"hash/fnv"
	"slices"

	"github.com/nearmiss/nearmiss/inference"
	"github.com/nearmiss/nearmiss/inference/imaging"
	"github.com/nearmiss/nearmiss/inference/release"
	"github.com/nearmiss/nearmiss/training/corrupt"
	"github.com/nearmiss/nearmiss/training/evaluate"
)

// copying is which copies of a normal join the banks with it, so that what only
// looks different is near something normal.
type copying struct {
	// turned are ways that a square can lie, bits as in imaging.Symmetry.Expand.
	turned []int
	// lit is how many copies are in another light, each in its own.
	lit int
	// blurred is how many copies are slightly out of focus, the sharpest first, and whole says
	// that their patches join no bank, where they would take room from sharp ones.
	blurred int
	whole   bool
	// spoilt makes one with a slight defect, for no bank.
	spoilt bool
}

// mostCopied bounds the pictures in a bank, copies included, beyond which none is
// made: with so many normals there is little that a copy adds.
const mostCopied = 2_000

// orientations are the ways to lie that are the same to a symmetry, the most useful first:
// a half turn, the quarter orientations, and the mirror images.
func orientations(s imaging.Symmetry) []int {
	switch s {
	case imaging.Flip:
		return []int{1}
	case imaging.Dihedral:
		return []int{3, 5, 6, 1, 2, 4, 7}
	}
	return nil
}

// copyingOf is the copies of n normals each that a bank has room for: all of the
// turned ones or their most useful, and two in other light and two that are blurred, where that
// is what is done about light and blur. Pictures in other rows than columns of tiles are not
// turned to the side.
func copyingOf(n int, m Model, light, sharpness string) (c copying) {
	room := mostCopied/max(n, 1) - 1
	if light == LightVaried && room > 0 {
		c.lit = min(2, room)
	}
	if (sharpness == SharpnessWhole || sharpness == SharpnessVaried) && room > c.lit {
		c.blurred, c.whole = min(2, room-c.lit), sharpness == SharpnessWhole
	}
	all := slices.DeleteFunc(orientations(m.turned), func(way int) bool {
		return m.tiles.Count() > 0 && !imaging.Preprocess{Tiles: &m.tiles}.Turnable(way)
	})
	for _, some := range []int{7, 3, 1} {
		if some <= len(all) && some <= room {
			c.turned = all[:some]
			break
		}
	}
	return c
}

func (c copying) count() int { return len(c.turned) + c.changed() }

// changed is how many look different, the spoilt one last.
func (c copying) changed() int {
	if c.spoilt {
		return c.lit + c.blurred + 1
	}
	return c.lit + c.blurred
}

// spoilt is a picture with a slight defect, which its name draws.
func spoilt(m *imaging.Image, name string) (*imaging.Image, error) {
	h := fnv.New64a()
	_, _ = h.Write([]byte(name))
	seed := h.Sum64()
	return corrupt.Apply(spoiltBy[seed%uint64(len(spoiltBy))], m, m, slightly, seed)
}

// vary shows f what the model gives of the images' copies, all of one image after
// the other.
func (m *model) vary(ctx context.Context, data Data, images []Image, c copying, f func(e *inference.Embedding) error) error {
	const chunk = 4 // images whose copies are in memory at a time
	prepare := m.e.Preprocess()
	as := make([]uint8, prepare.Bytes())
	for some := range slices.Chunk(images, chunk) {
		var turned [][]uint8
		var changed []*imaging.Image
		for _, img := range some {
			file, err := img.Read()
			if err != nil {
				return fmt.Errorf("read normal image %s: %w", img.Name, err)
			}
			if len(c.turned) > 0 {
				if _, err := prepare.Apply(file, data.Limits, as); err != nil {
					return fmt.Errorf("prepare normal image %s: %w", img.Name, err)
				}
				for _, way := range c.turned {
					pix := make([]uint8, len(as))
					prepare.Turn(as, way, pix)
					turned = append(turned, pix)
				}
			}
			if c.changed() == 0 {
				continue
			}
			usual, err := data.View.Decode(file, data.Limits)
			if err != nil {
				return fmt.Errorf("normal image %s: %w", img.Name, err)
			}
			for k := range c.changed() {
				if k == c.lit+c.blurred {
					one, err := spoilt(usual, img.Name)
					if err != nil {
						return fmt.Errorf("spoil normal image %s: %w", img.Name, err)
					}
					changed = append(changed, one)
					continue
				}
				name := img.Name
				if !c.spoilt { // other draws than of the one that is tested
					name = fmt.Sprintf("%s, copy %d", img.Name, k+1)
				}
				if k >= c.lit {
					changed = append(changed, evaluate.Blur(usual, name, k-c.lit, c.blurred))
					continue
				}
				one := usual.Clone()
				evaluate.Relight(one, name)
				changed = append(changed, one)
			}
		}
		byWay, err := m.e.EmbedPixels(ctx, turned)
		if err != nil {
			return err
		}
		byChange, err := m.e.EmbedImages(ctx, changed)
		if err != nil {
			return err
		}
		for i, img := range some {
			for _, e := range slices.Concat(byWay[i*len(c.turned):(i+1)*len(c.turned)], byChange[i*c.changed():(i+1)*c.changed()]) {
				if e.Err != nil {
					return fmt.Errorf("embed a copy of image %s: %w", img.Name, e.Err)
				}
				if err := f(&e); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// copied are the normals with copies of each.
func (n *normals) copied(ctx context.Context, c copying, seed uint64) (*normals, error) {
	if c.count() == 0 || n.vary == nil {
		return n, nil
	}
	out := *n
	out.copies = &normals{dim: n.dim}
	for _, p := range n.patches {
		out.copies.patches = append(out.copies.patches, patchSample{dim: p.dim})
	}
	which := make([]int, n.size())
	for i := range which {
		which[i] = i
	}
	done, most := 0, mostNumbers/(n.size()*c.count())
	err := n.vary(ctx, which, c, func(e *inference.Embedding) error {
		id := release.CopyID(n.ids[done/c.count()], 1+done%c.count())
		if c.whole && done%c.count() >= len(c.turned)+c.lit {
			e = &inference.Embedding{Vector: e.Vector, Patches: make([][]float32, len(n.patches))}
		}
		done++
		return out.copies.add(ctx, id, e, most, seed)
	})
	if err != nil {
		return nil, fmt.Errorf("make copies of the normals: %w", err)
	}
	return &out, nil
}

// uncopied are the normals alone.
func (n *normals) uncopied() *normals {
	if n == nil {
		return nil
	}
	out := *n
	out.copies = nil
	return &out
}

// unpatched are the normals without the patches of those of their copies c that are blurred.
func (n *normals) unpatched(c copying) *normals {
	if n == nil || n.copies == nil {
		return n
	}
	out, copies := *n, *n.copies
	copies.patches = nil
	for _, p := range n.copies.patches {
		p.rows, p.places = slices.Clone(p.rows), slices.Clone(p.places)
		for i := range p.rows {
			if i%c.count() >= len(c.turned)+c.lit {
				p.rows[i], p.places[i] = nil, nil
			}
		}
		copies.patches = append(copies.patches, p)
	}
	out.copies = &copies
	return &out
}

// banked are the rows of a part of one vector that join its bank, copies too, and
// their ids.
func (n *normals) banked(a release.Part) (ids []uint64, rows []float32) {
	ids, rows = n.ids, n.part(a)
	if n.copies != nil {
		ids, rows = slices.Concat(ids, n.copies.ids), append(rows, n.copies.part(a)...)
	}
	return ids, rows
}
