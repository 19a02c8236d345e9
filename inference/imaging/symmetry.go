package imaging

import "fmt"

// Symmetry is the group of changes of a frame that mean nothing to the
// inspection: embeddings are averaged over all of them, in the bank and in
// scoring alike, so that how an object happens to lie adds nothing to its
// distance (test-time augmentation). The model runs once for each.
type Symmetry string

const (
	// NoSymmetry takes each image as it is.
	NoSymmetry Symmetry = ""
	// Flip is the image and its mirror image, left to right.
	Flip Symmetry = "flip"
	// Dihedral is the eight turns and mirror images of a square: for what may
	// lie in any orientation, such as cells under a microscope.
	Dihedral Symmetry = "dihedral"
)

// ParseSymmetry reads "none" (or nothing), "flip" or "dihedral".
func ParseSymmetry(text string) (Symmetry, error) {
	s := Symmetry(text)
	if text == "none" {
		s = NoSymmetry
	}
	return s, s.Validate()
}

// Validate says whether there is such a symmetry.
func (s Symmetry) Validate() error {
	switch s {
	case NoSymmetry, Flip, Dihedral:
		return nil
	}
	return fmt.Errorf("symmetry %q: take none, flip or dihedral", string(s))
}

// Count is the number of images that Expand makes of one.
func (s Symmetry) Count() int {
	switch s {
	case Flip:
		return 2
	case Dihedral:
		return 8
	}
	return 1
}

// Expand writes the images that an image is equal to into dst, itself first: pix
// has side × side pixels, RGB, rows first; dst holds Count of these.
func (s Symmetry) Expand(pix []uint8, side int, dst []uint8) {
	size := side * side * 3
	for i := range s.Count() {
		turn(pix, side, i, dst[i*size:(i+1)*size])
	}
}

// turn writes a square of side × side pixels in one of the eight ways that it can lie.
func turn(pix []uint8, side, way int, dst []uint8) {
	if way == 0 {
		copy(dst, pix)
		return
	}
	for y := range side {
		for x := range side {
			u, v := turned(x, y, side, side, way)
			copy(dst[(y*side+x)*3:(y*side+x)*3+3], pix[(v*side+u)*3:])
		}
	}
}

// turned is where what a turned picture of w × h shows at (x, y) was before. Bits of
// way: mirror columns, mirror rows, swap both.
func turned(x, y, w, h, way int) (u, v int) {
	if way&4 != 0 {
		x, y = y, x
	}
	if way&1 != 0 {
		x = w - 1 - x
	}
	if way&2 != 0 {
		y = h - 1 - y
	}
	return x, y
}
