package heatmap

import (
	"fmt"
	"image"
	"math"

	"github.com/nearmiss/nearmiss/inference/imaging"
)

// Geometry says where in a frame a grid lies. Coordinates are the upright
// frame's pixels: pixel (x, y) is the square from (x, y) to (x+1, y+1).
type Geometry struct {
	Width, Height  int     // of the frame
	X0, Y0, X1, Y1 float64 // the part that the grid covers
	// Ignored are parts that were painted over before the model saw them.
	Ignored []image.Rectangle
}

// GeometryOf undoes what p does to a frame of width × height pixels: view,
// resize and crop.
func GeometryOf(p imaging.Preprocess, width, height int) Geometry {
	g := Geometry{Width: width, Height: height, Ignored: p.View.Ignored(width, height)}
	g.X0, g.Y0, g.X1, g.Y1 = p.Region(width, height)
	return g
}

// maxFrame bounds a frame's pixels: far more than any image that is decoded.
const maxFrame = 1 << 30

// Validate checks that the grid's part is a part of the frame.
func (g Geometry) Validate() error {
	const eps = 1e-6
	w, h := float64(g.Width), float64(g.Height)
	if g.Width < 1 || g.Height < 1 || g.Width > maxFrame/g.Height ||
		!(g.X0 >= -eps && g.Y0 >= -eps && g.X1 <= w+eps && g.Y1 <= h+eps && g.X1 > g.X0 && g.Y1 > g.Y0) {
		return fmt.Errorf("heatmap: the part %g,%g to %g,%g is none of a frame of %d×%d pixels", g.X0, g.Y0, g.X1, g.Y1, g.Width, g.Height)
	}
	return nil
}

// Covered are the pixels that get a value: those whose centres the grid covers.
func (g Geometry) Covered() image.Rectangle {
	at := func(v float64, most int) int { return min(max(int(math.Ceil(v-0.5)), 0), most) }
	return image.Rect(at(g.X0, g.Width), at(g.Y0, g.Height), at(g.X1, g.Width), at(g.Y1, g.Height))
}

// Patch is the column and row, in a grid of columns × rows, of the patch that
// the middle of pixel (x, y) lies in. ok is false where the grid does not reach.
func (g Geometry) Patch(columns, rows, x, y int) (column, row int, ok bool) {
	if !(image.Point{X: x, Y: y}).In(g.Covered()) {
		return 0, 0, false
	}
	column = int((float64(x) + 0.5 - g.X0) / (g.X1 - g.X0) * float64(columns))
	row = int((float64(y) + 0.5 - g.Y0) / (g.Y1 - g.Y0) * float64(rows))
	return min(max(column, 0), columns-1), min(max(row, 0), rows-1), true
}

// Rect is the part of the frame that a patch of a grid of columns × rows covers.
func (g Geometry) Rect(columns, rows, column, row int) (x0, y0, x1, y1 float64) {
	w, h := (g.X1-g.X0)/float64(columns), (g.Y1-g.Y0)/float64(rows)
	x0, y0 = g.X0+float64(column)*w, g.Y0+float64(row)*h
	return x0, y0, x0 + w, y0 + h
}
