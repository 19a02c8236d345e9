package heatmap

import (
	"bytes"
	"fmt"
	"image"
	"image/color"
	"image/png"
	"math"

	"github.com/nearmiss/nearmiss/inference/imaging"
)

// Gray16 is the raw map, as large as the frame: 0 where a pixel has no value,
// else 1 + 65534·I, rounded.
func (m *Map) Gray16() *image.Gray16 {
	out := image.NewGray16(image.Rect(0, 0, m.Width, m.Height))
	line := make([]float32, m.Width)
	for y := range m.Height {
		m.row(line, y, -1)
		row := out.Pix[y*out.Stride:]
		for x, v := range line {
			if v >= 0 {
				level := uint16(1 + math.Round(65534*min(float64(v), 1)))
				row[2*x], row[2*x+1] = byte(level>>8), byte(level)
			}
		}
	}
	return out
}

// PNG16 is Gray16 as a PNG file.
func (m *Map) PNG16() ([]byte, error) {
	var buf bytes.Buffer
	if err := png.Encode(&buf, m.Gray16()); err != nil {
		return nil, fmt.Errorf("encode heatmap: %w", err)
	}
	return buf.Bytes(), nil
}

// sheetSide is the longer side of [Map.Sheet], pixels: about as many as there are patches.
const sheetSide = 64

// Sheet is the heat to be laid over its frame, stretched to the frame's size, by who
// wants to fade it: a small picture of the whole frame, in the overlay's colours and
// opacity. Its pixels are numbers too: 0 where a pixel has no value, which is
// painted half black, else 1 + 254·I, rounded. A pixel shows the hottest of what it
// stands for.
func (m *Map) Sheet() *image.Paletted {
	colours := color.Palette{color.NRGBA{A: 255 * 11 / 20}}
	for i := range 255 {
		c, a := m.paint(float32(i) / 254)
		colours = append(colours, color.NRGBA{c[0], c[1], c[2], uint8(math.Round(255 * a))})
	}
	w, h := fit(m.Width, m.Height, sheetSide)
	out := image.NewPaletted(image.Rect(0, 0, w, h), colours)
	const samples = 3 // a pixel, across and down
	for y := range h * samples {
		for x := range w * samples {
			v, ok := m.At((2*x+1)*m.Width/(2*w*samples), (2*y+1)*m.Height/(2*h*samples))
			if !ok {
				continue
			}
			p := &out.Pix[y/samples*out.Stride+x/samples]
			*p = max(*p, uint8(1+math.Round(254*min(float64(v), 1))))
		}
	}
	return out
}

// SheetPNG is Sheet as a PNG file of one or two KiB.
func (m *Map) SheetPNG() ([]byte, error) {
	var buf bytes.Buffer
	if err := png.Encode(&buf, m.Sheet()); err != nil {
		return nil, fmt.Errorf("encode heatmap: %w", err)
	}
	return buf.Bytes(), nil
}

// Heat's opacity rises from nothing at visible, that part of the threshold, to opaque
// at the threshold and above.
const (
	visible = 0.6
	opaque  = 0.65
	plain   = 0.3 // that part of opaque is seen at a glance
)

// Overlay paints the map over its frame, whose upright pixels are given, and
// draws the regions' boxes, of faint ones only where there is heat to see. The picture's longer side has at most side pixels;
// 0 leaves the frame's size. What is normal stays as it is, what the model does
// not see is dimmed.
func (m *Map) Overlay(frame *imaging.Image, regions []Region, side int) (*imaging.Image, error) {
	if !frame.Valid() || frame.Width != m.Width || frame.Height != m.Height {
		return nil, fmt.Errorf("heatmap: the map is of a frame of %d×%d pixels, not of this one", m.Width, m.Height)
	}
	out := Thumbnail(frame, side)
	if out == frame {
		out = frame.Clone()
	}
	sx, sy := float64(m.Width)/float64(out.Width), float64(m.Height)/float64(out.Height)
	for y := range out.Height {
		for x := range out.Width {
			p := out.Pix[3*(y*out.Width+x):][:3:3]
			v, ok := m.At(int((float64(x)+0.5)*sx), int((float64(y)+0.5)*sy))
			if !ok {
				for i := range p {
					p[i] = uint8(int(p[i]) * 9 / 20)
				}
				continue
			}
			c, a := m.paint(v)
			for i := range p {
				p[i] = uint8(math.Round((1-a)*float64(p[i]) + a*float64(c[i])))
			}
		}
	}
	thick := max(1, max(out.Width, out.Height)/256)
	for i := len(regions) - 1; i >= 0; i-- { // the hottest on top
		r := regions[i]
		if _, heat := m.paint(float32(r.Peak)); r.Faint && heat < plain*opaque {
			continue // nobody would see what is in it
		}
		box := image.Rect(
			int(math.Floor(float64(r.X)/sx)), int(math.Floor(float64(r.Y)/sy)),
			int(math.Ceil(float64(r.X+r.Width)/sx)), int(math.Ceil(float64(r.Y+r.Height)/sy)))
		dash := 0
		if r.Faint { // the hottest place of an image that has none: no finding
			dash = 4 * thick
		} else {
			frameBox(out, box.Inset(-2*thick), thick, 0, [3]uint8{0, 0, 0})
		}
		frameBox(out, box.Inset(-thick), thick, dash, boxColour)
	}
	return out, nil
}

// boxColour is a light cyan, of which the heat has none.
var boxColour = [3]uint8{90, 235, 255}

// paint is the colour of a value and how opaque it is, 0..1. The colours' range
// ends where one normal patch in 10^9 is, three quarters.
func (m *Map) paint(v float32) ([3]uint8, float64) {
	t := m.threshold
	if !(t > 0) {
		t = 0.5
	}
	i := float64(v)
	alpha := opaque * min(max((i-visible*t)/(t-visible*t), 0), 1)
	return colours[int(math.Round(255*min(max((i-visible*t)/(0.75-visible*t), 0), 1)))], alpha
}

// Picture is the map alone, without the frame, in the overlay's colours on light
// grey, and darker grey where there is no value; side is as in Overlay.
func (m *Map) Picture(side int) *imaging.Image {
	w, h := fit(m.Width, m.Height, side)
	blank := imaging.New(w, h)
	sx, sy := float64(m.Width)/float64(w), float64(m.Height)/float64(h)
	for y := range h {
		for x := range w {
			v, ok := m.At(int((float64(x)+0.5)*sx), int((float64(y)+0.5)*sy))
			if !ok {
				blank.SetRGB(x, y, 120, 120, 120)
				continue
			}
			c := m.onGrey(v)
			blank.SetRGB(x, y, c[0], c[1], c[2])
		}
	}
	return blank
}

// onGrey is a value's colour on light grey.
func (m *Map) onGrey(v float32) (c [3]uint8) {
	paint, a := m.paint(v)
	a = min(a/opaque, 1)
	for i := range c {
		c[i] = uint8(math.Round((1-a)*238 + a*float64(paint[i])))
	}
	return c
}

// Thumbnail scales an image down so that its longer side has at most side
// pixels; 0 sets no limit. An image that is small enough comes back itself.
func Thumbnail(img *imaging.Image, side int) *imaging.Image {
	w, h := fit(img.Width, img.Height, side)
	if w == img.Width && h == img.Height {
		return img
	}
	return imaging.Resize(img, w, h, imaging.Bilinear)
}

func fit(w, h, side int) (int, int) {
	long := max(w, h)
	if side <= 0 || long <= side {
		return w, h
	}
	return max(1, w*side/long), max(1, h*side/long)
}

// frameBox draws the border of a box, thick pixels inwards, with dashes of so many
// pixels, or whole.
func frameBox(img *imaging.Image, box image.Rectangle, thick, dash int, c [3]uint8) {
	inner := box.Inset(thick)
	clipped := box.Intersect(image.Rect(0, 0, img.Width, img.Height))
	for y := clipped.Min.Y; y < clipped.Max.Y; y++ {
		for x := clipped.Min.X; x < clipped.Max.X; x++ {
			if (image.Point{X: x, Y: y}).In(inner) {
				x = inner.Max.X - 1
				continue
			}
			if dash > 0 && (x-box.Min.X+y-box.Min.Y)/dash%2 == 1 {
				continue
			}
			img.SetRGB(x, y, c[0], c[1], c[2])
		}
	}
}

// colours go from light yellow over orange to a dark crimson. They are an even
// path in OKLCh (Ottosson 2020), whose lightness is near to what eyes see: it
// falls evenly, so that hotter is darker for the colour-blind and in print too.
var colours = func() (out [256][3]uint8) {
	for i := range out {
		t := float64(i) / 255
		out[i] = oklch(0.93-0.52*t, 0.13+0.05*math.Sin(math.Pi*t), (105-88*t)*math.Pi/180)
	}
	return out
}()

// oklch converts to sRGB; what lies outside is clipped.
func oklch(l, c, h float64) [3]uint8 {
	a, b := c*math.Cos(h), c*math.Sin(h)
	cube := func(v float64) float64 { return v * v * v }
	x := cube(l + 0.3963377774*a + 0.2158037573*b)
	y := cube(l - 0.1055613458*a - 0.0638541728*b)
	z := cube(l - 0.0894841775*a - 1.2914855480*b)
	gamma := func(v float64) uint8 {
		v = min(max(v, 0), 1)
		if v <= 0.0031308 {
			v *= 12.92
		} else {
			v = 1.055*math.Pow(v, 1/2.4) - 0.055
		}
		return uint8(math.Round(255 * v))
	}
	return [3]uint8{
		gamma(4.0767416621*x - 3.3077115913*y + 0.2309699292*z),
		gamma(-1.2684380046*x + 2.6097574011*y - 0.3413193965*z),
		gamma(-0.0041960863*x - 0.7034186147*y + 1.7076147010*z),
	}
}

// Bar is a legend of width × height pixels: the colours of the intensities from 0
// on the left to 0.75 on the right, as Picture shows them for a threshold.
func Bar(threshold float64, width, height int) *imaging.Image {
	m := &Map{threshold: threshold}
	out := imaging.New(width, height)
	for x := range width {
		c := m.onGrey(float32(0.75 * (float64(x) + 0.5) / float64(width)))
		for y := range height {
			out.SetRGB(x, y, c[0], c[1], c[2])
		}
	}
	return out
}
