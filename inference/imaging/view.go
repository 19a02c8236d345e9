package imaging

import (
	"errors"
	"fmt"
	"image"
	"math"
)

// Rect is a rectangle in fractions of an image's width and height, 0..1 from
// the upper left corner.
type Rect struct {
	X      float64 `json:"x"`
	Y      float64 `json:"y"`
	Width  float64 `json:"width"`
	Height float64 `json:"height"`
}

func (r Rect) validate(what string) error {
	if !(r.X >= 0 && r.Y >= 0 && r.Width > 0 && r.Height > 0 && r.X+r.Width <= 1+1e-9 && r.Y+r.Height <= 1+1e-9) {
		return fmt.Errorf("view: %s %g,%g,%g,%g: x, y, width and height are fractions within 0 and 1", what, r.X, r.Y, r.Width, r.Height)
	}
	return nil
}

// pixels rounds outwards to the pixels of a w × h image: x0, y0 are inside,
// x1, y1 just outside.
func (r Rect) pixels(w, h int) (x0, y0, x1, y1 int) {
	x0, x1 = outwards(r.X, r.Width, w)
	y0, y1 = outwards(r.Y, r.Height, h)
	return x0, y0, x1, y1
}

// outwards rounds at …at+size, in fractions of n pixels. What is off by less
// than a thousandth of a pixel is a rounded fraction, and the pixel is meant.
func outwards(at, size float64, n int) (from, to int) {
	const eps = 1e-3
	from = min(max(int(math.Floor(at*float64(n)+eps)), 0), n-1)
	to = min(max(int(math.Ceil((at+size)*float64(n)-eps)), from+1), n)
	return from, to
}

// View says which part of a frame counts: what is outside Region is cut off,
// and what lies in Ignore is painted in middle grey, before anything else is
// done with the image. Both are of the upright frame. Bits says what white is. The same view is used for
// learning and for scoring, and travels with the release.
type View struct {
	Region *Rect  `json:"region,omitempty"` // nil: all of the frame
	Ignore []Rect `json:"ignore,omitempty"`
	// Bits is how many bits of 16-bit samples (and longer ones) are used: 12 for
	// a camera that stores 0 to 4095. What is above is white. 0: nobody says.
	Bits int `json:"bits,omitempty"`
}

func (v *View) bits() int {
	if v == nil {
		return 0
	}
	return v.Bits
}

// grey is what ignored parts are painted with: neither bright nor dark.
const grey = 128

// Validate reports every rectangle that makes no sense.
func (v *View) Validate() error {
	if v == nil {
		return nil
	}
	var errs []error
	if v.Region != nil {
		errs = append(errs, v.Region.validate("region"))
	}
	for _, r := range v.Ignore {
		errs = append(errs, r.validate("ignored part"))
	}
	if v.Bits != 0 && (v.Bits < 8 || v.Bits > 32) {
		errs = append(errs, fmt.Errorf("view: %d bits of a sample: 8 to 32, or 0", v.Bits))
	}
	return errors.Join(errs...)
}

// region is what is kept of a w × h frame.
func (v *View) region(w, h int) (x0, y0, x1, y1 int) {
	if v == nil || v.Region == nil {
		return 0, 0, w, h
	}
	return v.Region.pixels(w, h)
}

// Ignored are the pixels of a w × h frame that are painted over.
func (v *View) Ignored(w, h int) []image.Rectangle {
	if v == nil {
		return nil
	}
	var out []image.Rectangle
	for _, r := range v.Ignore {
		out = append(out, image.Rect(r.pixels(w, h)))
	}
	return out
}

// Apply returns what counts of img, which stays as it is. A nil view keeps
// everything.
func (v *View) Apply(img *Image) *Image {
	if v == nil || v.Region == nil && len(v.Ignore) == 0 {
		return img
	}
	x0, y0, x1, y1 := v.region(img.Width, img.Height)
	out := img.Crop(x0, y0, x1-x0, y1-y0)
	for y := range out.Height {
		v.paint(out.row(y), y0+y, x0, img.Width, img.Height)
	}
	return out
}

// paint paints over what is ignored of row y of a w × h frame, of which row has
// the pixels from x0 on.
func (v *View) paint(row []uint8, y, x0, w, h int) {
	if v == nil {
		return
	}
	for _, r := range v.Ignore {
		left, top, right, bottom := r.pixels(w, h)
		if y < top || y >= bottom {
			continue
		}
		for i := 3 * max(left-x0, 0); i < min(3*(right-x0), len(row)); i++ {
			row[i] = grey
		}
	}
}

// Decode decodes a frame that is judged or learned from, and applies the view.
// See [Decode].
func (v *View) Decode(b []byte, l Limits) (*Image, error) {
	img, err := decodeWhole(b, l, v.bits(), false)
	if err != nil {
		return nil, err
	}
	return v.Apply(img), nil
}
