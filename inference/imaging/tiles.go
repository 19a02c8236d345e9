package imaging

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
)

// Tiles cut a picture into overlapping squares, each of which is an input of the
// model of its own, beside the whole picture squeezed into one. Small defects of a
// large frame need the pixels.
//
// The picture is resized to a canvas that Rows × Columns inputs of Crop pixels cover,
// of which neighbours share Overlap. What the model gives for patches of the tiles is
// put together to one grid over all of the picture: where two tiles have a patch, that
// of the tile in whose middle it lies deeper counts, since a patch at the edge of an
// input has seen one side of it only.
type Tiles struct {
	Rows    int `json:"rows"`
	Columns int `json:"columns"`
	Overlap int `json:"overlap"` // pixels of the model's input, 0 to half its side
}

// MostTiles bounds the tiles down, and across, of a picture.
const MostTiles = 8

// ParseTiles reads rows and columns, as in "2x3", or "none" (or nothing), which is the
// zero value.
func ParseTiles(text string) (Tiles, error) {
	if text == "" || text == "none" {
		return Tiles{}, nil
	}
	rows, columns, ok := strings.Cut(text, "x")
	t := Tiles{}
	var errs [2]error
	t.Rows, errs[0] = strconv.Atoi(rows)
	t.Columns, errs[1] = strconv.Atoi(columns)
	if !ok || errors.Join(errs[:]...) != nil || t.Validate(1) != nil {
		return Tiles{}, fmt.Errorf("tiles %q: give rows and columns, as in 2x2, each at most %d and not both 1, or none", text, MostTiles)
	}
	return t, nil
}

// String is rows and columns as ParseTiles reads them.
func (t Tiles) String() string {
	if t.Rows == 0 {
		return "none"
	}
	return fmt.Sprintf("%dx%d", t.Rows, t.Columns)
}

// Validate reports what makes no sense for inputs of crop pixels. The zero value does
// not.
func (t *Tiles) Validate(crop int) error {
	if t == nil {
		return nil
	}
	if t.Rows < 1 || t.Columns < 1 || t.Rows > MostTiles || t.Columns > MostTiles || t.Rows*t.Columns < 2 || t.Overlap < 0 || t.Overlap > crop/2 {
		return fmt.Errorf("tiles: %d×%d with %d of %d pixels in common: at most %d×%d, at least 2, and up to half of the pixels",
			t.Rows, t.Columns, t.Overlap, crop, MostTiles, MostTiles)
	}
	return nil
}

// Count is how many tiles there are; 0 of nil.
func (t *Tiles) Count() int {
	if t == nil {
		return 0
	}
	return t.Rows * t.Columns
}

// Canvas is the size of the picture that the tiles are cut from, in pixels.
func (t Tiles) Canvas(crop int) (width, height int) {
	step := crop - t.Overlap
	return crop + (t.Columns-1)*step, crop + (t.Rows-1)*step
}

// Overlapping are the tiles with the overlap that suits a model: of an input's side
// about a seventh, so that it is whole patches of every one of the model's grids of
// patches, of so many a side. None is shared where these have no such part in common.
func (t Tiles) Overlapping(crop int, grids []int) Tiles {
	common := 0
	for _, n := range grids {
		common = gcd(common, n)
	}
	t.Overlap = 0
	for k := 1; k <= common/2; k++ {
		share := crop * k / common
		if crop*k%common == 0 && (t.Overlap == 0 || off(7*share, crop) < off(7*t.Overlap, crop)) {
			t.Overlap = share
		}
	}
	if 4*t.Overlap > crop { // a grid of few patches: most would be computed twice
		t.Overlap = 0
	}
	return t
}

func gcd(a, b int) int {
	for b != 0 {
		a, b = b, a%b
	}
	return a
}

func off(a, b int) int { return max(a-b, b-a) }

// Cells is how many patches a side of the whole picture has where an input has n.
func (t Tiles) Cells(tiles, n, crop int) int { return n + (tiles-1)*(n-t.Overlap*n/crop) }

// Cell is where the patch at a place along a side of the whole picture is: the tile,
// and the place in it.
func (t Tiles) Cell(at, tiles, n, crop int) (tile, place int) {
	shared := t.Overlap * n / crop
	step := n - shared
	tile = min(max(at-shared/2, 0)/step, tiles-1)
	return tile, at - tile*step
}

// Fit says whether a grid of n patches a side of an input can be put together.
func (t Tiles) Fit(n, crop int) error {
	if t.Overlap*n%crop != 0 {
		return fmt.Errorf("tiles: %d pixels in common are no whole patches, of which an input of %d pixels has %d a side", t.Overlap, crop, n)
	}
	return nil
}

// cut is an input of the model: a window of the resized picture.
type cut struct {
	outW, outH int
	win        window
}

// cuts are the inputs that are made of a picture of w × h pixels: the whole, and then
// its tiles, row by row.
func (p Preprocess) cuts(w, h int) []cut {
	var all cut
	all.outW, all.outH, all.win = p.geometry(w, h)
	out := []cut{all}
	if p.Tiles == nil {
		return out
	}
	width, height := p.Tiles.Canvas(p.Crop)
	step := p.Crop - p.Tiles.Overlap
	for r := range p.Tiles.Rows {
		for c := range p.Tiles.Columns {
			out = append(out, cut{width, height, window{c * step, r * step, p.Crop, p.Crop}})
		}
	}
	return out
}

// Inputs is how many inputs of the model Apply makes of a picture: the whole, and its
// tiles.
func (p Preprocess) Inputs() int { return 1 + p.Tiles.Count() }

// Grid is the size of the whole picture's grid of patches, where an input of the model
// has one of across × down.
func (p Preprocess) Grid(across, down int) (width, height int) {
	if p.Tiles == nil {
		return across, down
	}
	return p.Tiles.Cells(p.Tiles.Columns, across, p.Crop), p.Tiles.Cells(p.Tiles.Rows, down, p.Crop)
}

// Turnable says whether pictures that Apply made can be turned in a way, as
// Symmetry.Expand counts them: tiles of other rows than columns cannot be turned to
// the side.
func (p Preprocess) Turnable(way int) bool {
	return p.Tiles == nil || way&4 == 0 || p.Tiles.Rows == p.Tiles.Columns
}

// Turn writes what Apply would have made of the picture, had it been turned in a way
// that is Turnable; pix and dst have Bytes each.
func (p Preprocess) Turn(pix []uint8, way int, dst []uint8) {
	size := p.InputBytes()
	turn(pix[:size], p.Crop, way, dst[:size])
	if p.Tiles == nil {
		return
	}
	for r := range p.Tiles.Rows {
		for c := range p.Tiles.Columns {
			u, v := turned(c, r, p.Tiles.Columns, p.Tiles.Rows, way)
			from, to := 1+v*p.Tiles.Columns+u, 1+r*p.Tiles.Columns+c
			turn(pix[from*size:(from+1)*size], p.Crop, way, dst[to*size:(to+1)*size])
		}
	}
}
