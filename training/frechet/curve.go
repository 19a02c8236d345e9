package frechet

import (
	"errors"
	"fmt"
	"image"
	"image/color"
	"image/draw"
	"image/png"
	"io"
	"math"
	"strconv"

	"golang.org/x/image/font"
	"golang.org/x/image/font/basicfont"
	"golang.org/x/image/math/fixed"
	"golang.org/x/image/vector"
)

// The curve's size and margins in pixels.
const (
	curveWidth, curveHeight = 720, 440
	curveLeft, curveRight   = 76, 20
	curveTop, curveBottom   = 34, 52
)

// Colours that the colour-blind tell apart (Okabe and Ito).
var (
	curveColour  = color.RGBA{R: 0x00, G: 0x72, B: 0xb2, A: 255}
	targetColour = color.RGBA{R: 0xd5, G: 0x5e, B: 0x00, A: 255}
	chosenColour = color.RGBA{R: 0x00, G: 0x9e, B: 0x73, A: 255}
	copiesColour = color.RGBA{R: 0x80, G: 0x80, B: 0x80, A: 255}
	gridColour   = color.RGBA{R: 0xdd, G: 0xdd, B: 0xdd, A: 255}
)

// WriteCurve writes a PNG of the distance to the normals over training steps,
// with the target and the step that was chosen, 0 for none.
func WriteCurve(w io.Writer, title string, probes []Probe, t Target, chosen int) error {
	if len(probes) == 0 {
		return errors.New("plot the curve of early stopping: no probes")
	}
	value, name, label := func(q Probe) float64 { return q.FD }, "FD", "FD, distance to the normals"
	if t.Kind == Ratio {
		value, name, label = func(q Probe) float64 { return q.Ratio }, "r", "r, of the way from the normals to noise"
	}
	top, last := 0.0, 1.0
	for _, q := range probes {
		v := value(q)
		if math.IsNaN(v) || math.IsInf(v, 0) {
			return fmt.Errorf("plot the curve of early stopping: the distance at step %d is not finite", q.Step)
		}
		top, last = max(top, v), max(last, float64(q.Step)*1.03)
	}
	high := top
	if t.Kind != Steps {
		high = max(high, t.Value)
	}
	if high *= 1.05; high <= 0 {
		high = 1
	}
	c := newCanvas(last, high)
	c.axes(title, "training steps", label)
	var distance, copies [][2]float64
	for _, q := range probes {
		x := float64(q.Step)
		distance = append(distance, [2]float64{x, value(q)})
		copies = append(copies, [2]float64{x, q.Copies.Share * top})
	}
	c.line(copies, 1, 3, copiesColour)
	if t.Kind != Steps {
		c.line([][2]float64{{0, t.Value}, {last, t.Value}}, 1.5, 7, targetColour)
	}
	c.line(distance, 2, 0, curveColour)
	for i, p := range distance {
		c.dot(p, 3, curveColour)
		if probes[i].Step == chosen && chosen > 0 {
			c.dot(p, 6, chosenColour)
			c.legend(fmt.Sprintf("chosen: step %d", chosen), chosenColour)
		}
	}
	c.legend(name, curveColour)
	c.legend("copies, of all fakes (top of the axis: all)", copiesColour)
	if t.Kind != Steps {
		c.legend("target "+t.String(), targetColour)
	}
	return png.Encode(w, c.RGBA)
}

// canvas is a chart whose axes begin at 0.
type canvas struct {
	*image.RGBA
	xMax, yMax float64
	legends    int // lines written
}

func newCanvas(xMax, yMax float64) *canvas {
	c := &canvas{RGBA: image.NewRGBA(image.Rect(0, 0, curveWidth, curveHeight)), xMax: xMax, yMax: yMax}
	draw.Draw(c, c.Bounds(), image.White, image.Point{}, draw.Src)
	return c
}

// at is where a point lies in pixels.
func (c *canvas) at(p [2]float64) (x, y float64) {
	return curveLeft + p[0]/c.xMax*(curveWidth-curveLeft-curveRight),
		curveHeight - curveBottom - p[1]/c.yMax*(curveHeight-curveTop-curveBottom)
}

// axes draws the grid with its numbers, and the words around it.
func (c *canvas) axes(title, x, y string) {
	for v, step := 0.0, tick(c.xMax); v <= c.xMax; v += step {
		c.line([][2]float64{{v, 0}, {v, c.yMax}}, 1, 0, gridColour)
		px, py := c.at([2]float64{v, 0})
		c.text(number(v), px, py+16, 0.5)
	}
	for v, step := 0.0, tick(c.yMax); v <= c.yMax; v += step {
		c.line([][2]float64{{0, v}, {c.xMax, v}}, 1, 0, gridColour)
		px, py := c.at([2]float64{0, v})
		c.text(number(v), px-6, py+4, 1)
	}
	c.line([][2]float64{{0, c.yMax}, {0, 0}, {c.xMax, 0}}, 1, 0, color.Black)
	c.text(title, curveWidth/2, 14, 0.5)
	c.text(x, curveWidth/2, curveHeight-12, 0.5)
	c.text(y, 8, curveTop-8, 0)
}

// tick is the round number, 1, 2 or 5 times a power of ten, that divides an axis
// into four to ten parts.
func tick(length float64) float64 {
	p := math.Pow(10, math.Floor(math.Log10(length/4)))
	switch {
	case length/(5*p) >= 4:
		return 5 * p
	case length/(2*p) >= 4:
		return 2 * p
	}
	return p
}

// number writes a tick's value without the noise of adding up.
func number(v float64) string {
	s := strconv.FormatFloat(v, 'g', 6, 64)
	if f, err := strconv.ParseFloat(s, 64); err == nil && math.Abs(f) < 1e9 {
		return strconv.FormatFloat(f, 'f', -1, 64)
	}
	return s
}

// line draws a line through points, so many pixels wide; dash, if not 0, is the
// length of its dashes and of the gaps between them.
func (c *canvas) line(points [][2]float64, width, dash float64, colour color.Color) {
	r := vector.NewRasterizer(curveWidth, curveHeight)
	gone := 0.0 // pixels since the beginning
	for i := 1; i < len(points); i++ {
		x0, y0 := c.at(points[i-1])
		x1, y1 := c.at(points[i])
		length := math.Hypot(x1-x0, y1-y0)
		if length == 0 {
			continue
		}
		ux, uy := (x1-x0)/length, (y1-y0)/length
		for from := 0.0; from < length; {
			to, gap := length, false
			if dash > 0 {
				n := math.Floor((gone+from)/dash + 1e-6)
				to, gap = min(length, (n+1)*dash-gone), int(n)%2 == 1
			}
			if !gap {
				quad(r, x0+ux*from, y0+uy*from, x0+ux*to, y0+uy*to, -uy*width/2, ux*width/2)
			}
			from = to
		}
		gone += length
	}
	r.Draw(c, c.Bounds(), image.NewUniform(colour), image.Point{})
}

// quad adds the stretch from (x0, y0) to (x1, y1), (dx, dy) to either side.
func quad(r *vector.Rasterizer, x0, y0, x1, y1, dx, dy float64) {
	r.MoveTo(float32(x0+dx), float32(y0+dy))
	r.LineTo(float32(x1+dx), float32(y1+dy))
	r.LineTo(float32(x1-dx), float32(y1-dy))
	r.LineTo(float32(x0-dx), float32(y0-dy))
	r.ClosePath()
}

// dot draws a point, so many pixels in radius.
func (c *canvas) dot(p [2]float64, radius float64, colour color.Color) {
	const corners = 24
	x, y := c.at(p)
	r := vector.NewRasterizer(curveWidth, curveHeight)
	for i := range corners {
		sin, cos := math.Sincos(2 * math.Pi * float64(i) / corners)
		if px, py := float32(x+radius*cos), float32(y+radius*sin); i == 0 {
			r.MoveTo(px, py)
		} else {
			r.LineTo(px, py)
		}
	}
	r.ClosePath()
	r.Draw(c, c.Bounds(), image.NewUniform(colour), image.Point{})
}

// legend writes the next line of the legend, in the upper right corner.
func (c *canvas) legend(s string, colour color.Color) {
	y := curveTop + 14*(c.legends+1)
	c.legends++
	draw.Draw(c, image.Rect(curveWidth-curveRight-18, y-8, curveWidth-curveRight-4, y), image.NewUniform(colour), image.Point{}, draw.Src)
	c.text(s, curveWidth-curveRight-24, float64(y), 1)
}

// text writes s with its baseline at y; align is the part of it that lies before
// x: 0, 0.5 or 1.
func (c *canvas) text(s string, x, y, align float64) {
	d := font.Drawer{Dst: c, Src: image.Black, Face: basicfont.Face7x13}
	width := d.MeasureString(s).Round()
	d.Dot = fixed.P(int(x-align*float64(width)), int(y))
	d.DrawString(s)
}
