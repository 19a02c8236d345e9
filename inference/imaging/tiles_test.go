package imaging

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// tiled cuts pictures of a noisy scene in 2×3 tiles of 16 pixels.
func tiled() Preprocess {
	return Preprocess{Crop: 16, Squash: true, Interpolation: Bicubic, Std: [3]float64{1, 1, 1}, Tiles: &Tiles{Rows: 2, Columns: 3, Overlap: 4}}
}

func noisy(w, h int, seed uint64) *Image {
	m := pattern(w, h)
	r := rand.New(rand.NewPCG(seed, 1))
	for i := range m.Pix {
		m.Pix[i] = uint8(int(m.Pix[i])/2 + r.IntN(100))
	}
	return m
}

// The tiles are what a canvas of them shows, resized from what the view keeps, and
// the whole is what there is without them: read row by row, turned upright, or
// decoded before.
func TestTilesAreCutFromOneCanvas(t *testing.T) {
	for _, view := range []*View{nil, {Region: &Rect{X: 0.1, Y: 0.25, Width: 0.8, Height: 0.6}, Ignore: []Rect{{X: 0.4, Y: 0.4, Width: 0.2, Height: 0.1}}}} {
		p := tiled()
		p.View = view
		img := noisy(97, 61, 3)
		file, err := img.PNG()
		if err != nil {
			t.Fatal(err)
		}
		seen := view.Apply(img)
		canvas := Resize(seen, 40, 28, p.Interpolation)
		want := slices.Clone(Resize(seen, 16, 16, p.Interpolation).Pix)
		for _, at := range [][2]int{{0, 0}, {12, 0}, {24, 0}, {0, 12}, {12, 12}, {24, 12}} {
			want = append(want, canvas.Crop(at[0], at[1], 16, 16).Pix...)
		}
		got := make([]uint8, p.Bytes())
		if _, err := p.Apply(file, Limits{}, got); err != nil || !bytes.Equal(got, want) {
			t.Errorf("of a file, view %+v: %v, %d bytes of %d differ", view, err, differing(got, want), len(want))
		}
		if err := p.ApplyImage(seen, got); err != nil || !bytes.Equal(got, want) {
			t.Errorf("of an image, view %+v: %v, %d bytes differ", view, err, differing(got, want))
		}
	}
}

func differing(a, b []uint8) (n int) {
	for i := range a {
		if a[i] != b[i] {
			n++
		}
	}
	return n
}

// All parts of a picture are made brighter as the whole needs it.
func TestTilesGetTheGainOfTheWhole(t *testing.T) {
	dark := New(64, 64)
	for i := range dark.Pix {
		dark.Pix[i] = 40
		if i%(3*64) >= 3*32 { // the right half
			dark.Pix[i] = 80
		}
	}
	p := tiled()
	p.Tiles = &Tiles{Rows: 1, Columns: 2}
	p.Tone = &Tone{Brightness: 120.0 / 255}
	got := make([]uint8, p.Bytes())
	if err := p.ApplyImage(dark, got); err != nil {
		t.Fatal(err)
	}
	size := p.InputBytes()
	if left, right := got[size+3*5], got[2*size+3*10]; left != 80 || right != 160 {
		t.Errorf("the left tile has %d, want 80, the right %d, want 160", left, right)
	}
}

// What is turned after it was prepared is what a turned picture becomes, but for the
// rounding of one pass of the resize before the other.
func TestTilesTurnWithThePicture(t *testing.T) {
	for _, tiles := range []Tiles{{2, 2, 4}, {2, 3, 4}} {
		p := tiled()
		p.Tiles = &tiles
		img := Resize(noisy(20, 20, 5), 60, 60, Bilinear)
		plain, turnedPix, want := make([]uint8, p.Bytes()), make([]uint8, p.Bytes()), make([]uint8, p.Bytes())
		if err := p.ApplyImage(img, plain); err != nil {
			t.Fatal(err)
		}
		for way := range Dihedral.Count() {
			if can := p.Turnable(way); can != (way < 4 || tiles.Columns == 2) {
				t.Errorf("%v, way %d: turnable %v", tiles, way, can)
			} else if !can {
				continue
			}
			all := make([]uint8, Dihedral.Count()*len(img.Pix))
			Dihedral.Expand(img.Pix, 60, all)
			other := New(60, 60)
			copy(other.Pix, all[way*len(img.Pix):])
			if err := p.ApplyImage(other, want); err != nil {
				t.Fatal(err)
			}
			p.Turn(plain, way, turnedPix)
			for i := range want {
				if d := int(want[i]) - int(turnedPix[i]); d < -2 || d > 2 {
					t.Fatalf("%v, way %d: byte %d is %d, want %d", tiles, way, i, turnedPix[i], want[i])
				}
			}
		}
	}
}

// Every patch of the whole grid is one of the tile in whose middle it lies deepest.
func TestCellsOfTiles(t *testing.T) {
	for _, c := range []struct{ tiles, n, crop, overlap int }{{2, 14, 224, 32}, {3, 14, 224, 32}, {3, 7, 224, 32}, {4, 16, 224, 28}, {2, 5, 10, 0}} {
		o := Tiles{Rows: c.tiles, Columns: 1, Overlap: c.overlap}
		step := c.n - c.overlap*c.n/c.crop
		cells := o.Cells(c.tiles, c.n, c.crop)
		if want := c.n + (c.tiles-1)*step; cells != want {
			t.Errorf("%+v: %d cells, want %d", c, cells, want)
		}
		for at := range cells {
			tile, place := o.Cell(at, c.tiles, c.n, c.crop)
			depth := func(tile int) int { p := at - tile*step; return min(p, c.n-1-p) }
			if tile*step+place != at || place < 0 || place >= c.n {
				t.Errorf("%+v: patch %d is %d of tile %d", c, at, place, tile)
			}
			for other := range c.tiles {
				if depth(other) > depth(tile) {
					t.Errorf("%+v: patch %d is of tile %d, and deeper in tile %d", c, at, tile, other)
				}
			}
		}
	}
}

func TestOverlapIsWholePatches(t *testing.T) {
	for _, c := range []struct {
		crop  int
		grids []int
		want  int
	}{{224, []int{14}, 32}, {448, []int{28, 28}, 64}, {224, []int{28, 14, 7}, 32}, {224, []int{16}, 28}, {256, []int{32, 16}, 32}, {224, []int{14, 9}, 0}, {224, []int{2}, 0}, {224, nil, 0}} {
		if got := (Tiles{Rows: 2, Columns: 2}).Overlapping(c.crop, c.grids); got != (Tiles{2, 2, c.want}) {
			t.Errorf("%+v: %+v", c, got)
		}
	}
}

func TestTilesAreRead(t *testing.T) {
	for text, want := range map[string]Tiles{"": {}, "none": {}, "2x2": {Rows: 2, Columns: 2}, "1x8": {Rows: 1, Columns: 8}} {
		got, err := ParseTiles(text)
		if d := cmp.Diff(want, got); err != nil || d != "" {
			t.Errorf("%q: %v %s", text, err, d)
		}
		if text != "" && got.String() != text {
			t.Errorf("%q is written %q", text, got)
		}
	}
	for _, text := range []string{"1x1", "2", "2x", "x2", "0x3", "-1x2", "9x1", "2x2x2", "a", "2x2 "} {
		if got, err := ParseTiles(text); err == nil {
			t.Errorf("%q is %v", text, got)
		}
	}
}

func TestTilesThatMakeNoSense(t *testing.T) {
	for name, change := range map[string]func(p *Preprocess){
		"one tile":             func(p *Preprocess) { p.Tiles = &Tiles{Rows: 1, Columns: 1} },
		"too many":             func(p *Preprocess) { p.Tiles.Columns = MostTiles + 1 },
		"more than half":       func(p *Preprocess) { p.Tiles.Overlap = 9 },
		"less than nothing":    func(p *Preprocess) { p.Tiles.Overlap = -1 },
		"of the middle":        func(p *Preprocess) { p.Squash, p.Resize = false, 16 },
		"of more than is held": func(p *Preprocess) { p.Crop = 1 << 13 },
	} {
		p := tiled()
		change(&p)
		if p.Validate() == nil {
			t.Errorf("%s: %+v is valid", name, p.Tiles)
		}
	}
	p := tiled()
	if err := p.Validate(); err != nil {
		t.Error(err)
	}
}

func ExampleTiles_String() {
	t, _ := ParseTiles("2x3")
	fmt.Println(t, t.Count())
	// Output: 2x3 6
}
