package inference

import (
	"fmt"
	"math"

	"github.com/nearmiss/nearmiss/inference/imaging"
	"github.com/nearmiss/nearmiss/inference/release"
)

// patchOutput is an output of patch vectors.
type patchOutput struct {
	at         int // index of the output
	count, dim int // of one input of the model
	all        int // patches of an image
}

// tile finds out how the patches of tiles are put together.
func (e *Embedder) tile() error {
	t := e.preprocess.Tiles
	if t == nil {
		return nil
	}
	var grids []int
	for i, p := range e.patches {
		side := int(math.Round(math.Sqrt(float64(p.count))))
		if side*side != p.count {
			return fmt.Errorf("its output %q has %d patches, which are no square, and tiles of those are not put together: take no tiles", e.o.Patches[i], p.count)
		}
		grids = append(grids, side)
	}
	if e.o.Tiles.Count() > 0 {
		of := t.Overlapping(e.preprocess.Crop, grids)
		e.preprocess.Tiles = &of
	}
	for i, side := range grids {
		if err := e.preprocess.Tiles.Fit(side, e.preprocess.Crop); err != nil {
			return err
		}
		w, h := e.preprocess.Grid(side, side)
		e.patches[i].all = w * h
	}
	return nil
}

// whole are the patches of an image: those of its one input, or of its tiles, one
// after the other, put together to one grid.
func (p patchOutput) whole(inputs []float32, t *imaging.Tiles, crop int) []float32 {
	if t == nil {
		return inputs
	}
	side := int(math.Round(math.Sqrt(float64(p.count))))
	w, h := t.Cells(t.Columns, side, crop), t.Cells(t.Rows, side, crop)
	out := make([]float32, 0, w*h*p.dim)
	for y := range h {
		row, v := t.Cell(y, t.Rows, side, crop)
		for x := 0; x < w; {
			column, u := t.Cell(x, t.Columns, side, crop)
			n := 1 // patches that lie side by side in the tile
			for x+n < w {
				if next, _ := t.Cell(x+n, t.Columns, side, crop); next != column {
					break
				}
				n++
			}
			at := ((row*t.Columns+column)*p.count + v*side + u) * p.dim
			out = append(out, inputs[at:at+n*p.dim]...)
			x += n
		}
	}
	return out
}

// run is how many inputs, from one on, the model is given at once.
func (e *Embedder) run(from int) int {
	same := e.preprocess.Symmetry.Count()
	switch {
	case e.fixed > 0:
		return e.fixed
	case e.o.Precision != release.Int8:
		return max(e.o.Batch, same)
	case from > 0: // the range of 8 bits is a tile's own
		return 1
	}
	return same
}
