package imaging

import (
	"errors"
	"fmt"
	"math"
)

// Preprocess says how an image becomes a model's input. It travels with the
// model, because a model that is fed otherwise gives other embeddings.
//
// The image is resized so that its shorter side has Resize pixels, the longer
// one rounded to the nearest, and the Crop × Crop square in its middle is kept,
// half a pixel going to the upper left: the reference embeddings and figures
// were made so. Torchvision's transforms round otherwise, which moved the AUROC
// of a set of small, long images by 0.3 points. Mean and Std normalise samples that
// were scaled to 0..1; exported models do that themselves, so Apply gives bytes.
type Preprocess struct {
	Resize        int           `json:"resize"`                // pixels of the shorter side, ≥ Crop
	Crop          int           `json:"crop"`                  // pixels of the model's square input
	Squash        bool          `json:"squash,omitempty"`      // resize both sides to Crop, aspect ignored; Resize is not used
	Torchvision   bool          `json:"torchvision,omitempty"` // torchvision's roundings: the longer side truncated, half pixels of the crop to the even side
	Interpolation Interpolation `json:"interpolation"`
	Mean          [3]float64    `json:"mean"`               // red, green, blue; samples in 0..1
	Std           [3]float64    `json:"std"`                // as Mean, > 0
	Decoder       string        `json:"decoder,omitempty"`  // DecoderName of the program that filled the bank
	View          *View         `json:"view,omitempty"`     // part of the frame that counts; nil: all of it
	Tone          *Tone         `json:"tone,omitempty"`     // how bright pictures are made; nil: as they are
	Symmetry      Symmetry      `json:"symmetry,omitempty"` // what embeddings are averaged over
	Tiles         *Tiles        `json:"tiles,omitempty"`    // that patches are taken from, with Squash; nil: from the whole picture
}

// mostBytes bounds what a picture and its tiles become.
const mostBytes = 256 << 20

// Validate reports every field that makes no sense.
func (p Preprocess) Validate() error {
	var errs []error
	if p.Crop < 1 || p.Crop > 1<<14 {
		errs = append(errs, fmt.Errorf("preprocess: crop %d is not between 1 and %d", p.Crop, 1<<14))
	}
	if !p.Squash && (p.Resize < p.Crop || p.Resize > 1<<14) {
		errs = append(errs, fmt.Errorf("preprocess: resize %d is not between the crop %d and %d", p.Resize, p.Crop, 1<<14))
	}
	if !p.Interpolation.Valid() {
		errs = append(errs, fmt.Errorf("preprocess: interpolation %q is neither bilinear nor bicubic", p.Interpolation))
	}
	for i := range 3 {
		if !(p.Std[i] > 0) || p.Mean[i] != p.Mean[i] {
			errs = append(errs, fmt.Errorf("preprocess: mean %v and std %v do not normalise", p.Mean, p.Std))
			break
		}
	}
	if err := p.View.Validate(); err != nil {
		errs = append(errs, err)
	}
	if err := p.Tone.Validate(); err != nil {
		errs = append(errs, err)
	}
	if err := p.Symmetry.Validate(); err != nil {
		errs = append(errs, err)
	}
	if err := p.Tiles.Validate(p.Crop); err != nil {
		errs = append(errs, err)
	}
	if p.Tiles != nil && p.Tiles.Validate(p.Crop) == nil && p.Bytes() > mostBytes {
		errs = append(errs, fmt.Errorf("preprocess: %d tiles of %d×%d pixels take more than %d MiB", p.Tiles.Count(), p.Crop, p.Crop, mostBytes>>20))
	}
	if p.Tiles != nil && !p.Squash {
		errs = append(errs, errors.New("preprocess: tiles are cut from the whole picture, and the model is to see the middle of it: have both sides resized"))
	}
	return errors.Join(errs...)
}

// InputBytes is the length of one of the model's inputs: Crop × Crop × 3.
func (p Preprocess) InputBytes() int { return p.Crop * p.Crop * 3 }

// Bytes is the length of one preprocessed image: that of its Inputs.
func (p Preprocess) Bytes() int { return p.Inputs() * p.InputBytes() }

// Apply checks and decodes the file b and writes the model's input into dst:
// Crop × Crop pixels, RGB, rows first (one NHWC image), and behind it the tiles, if
// any, in the same form. The header it returns
// has the size of the upright frame. What cannot be used is a *RejectError.
//
// Rows are resized as they are decoded, so that most files take memory for a few
// rows and the model's input only: see Memory.
func (p Preprocess) Apply(b []byte, l Limits, dst []uint8) (Header, error) {
	h, err := p.applyFile(b, l, dst)
	if err == nil {
		p.tone(dst)
	}
	return h, err
}

func (p Preprocess) applyFile(b []byte, l Limits, dst []uint8) (Header, error) {
	h, err := Inspect(b, l)
	if err != nil {
		return h, err
	}
	if err := p.fits(dst); err != nil {
		return h, err
	}
	if h.Orientation >= 5 { // its rows are columns
		img, err := p.View.Decode(b, l)
		if err != nil {
			return h, err
		}
		return h, p.apply(img, img.Width, img.Height, dst)
	}
	r := newReducer(p, h)
	defer r.release()
	if err := decodeRows(b, h, p.View.bits(), false, r); err != nil {
		return h, err
	}
	size := p.InputBytes()
	for i, passes := range r.passes {
		passes.finish(dst[i*size : (i+1)*size])
	}
	return h, nil
}

// tone evens out how bright the inputs of a picture are.
func (p Preprocess) tone(dst []uint8) {
	if p.Tone == nil {
		return
	}
	if p.Tone.Grey {
		toGrey(dst)
	}
	size := p.InputBytes()
	for i := p.Inputs() - 1; i >= 0; i-- { // the whole, which says how, comes last
		p.Tone.applyAs(dst[:size], dst[i*size:(i+1)*size])
	}
}

// Memory bounds what Apply takes at its peak for a file with this header, in
// bytes, beside the file and the model's input.
func (p Preprocess) Memory(h Header) int64 {
	px := 3 * int64(h.Width) * int64(h.Height)
	x0, y0, x1, y1 := p.View.region(h.Width, h.Height)
	// Every input has coefficients, and rows between the two passes of its resize.
	// Tiles overlap by half at most, so that all of them have twice those of a canvas.
	inputs := func(across, more int64) int64 {
		return across*3*int64(p.Crop)*int64(y1-y0) + more*16*int64(x1-x0+y1-y0)
	}
	n := inputs(1, 1) + 64<<10
	tiles := int64(0)
	if t := p.Tiles; t != nil {
		tiles = inputs(2*int64(t.Columns), 2*int64(max(t.Rows, t.Columns))) + int64(t.Count())*(256*int64(p.Crop)+48<<10)
	}
	if h.Orientation >= 5 {
		if p.View != nil {
			px += px / 3
		}
		return h.Memory + px + tiles
	}
	n += h.work + 3*int64(h.Width) + tiles
	if h.whole {
		n += px
	}
	if h.Format == JPEG {
		n += turboMemory(h.Width, h.Height)
	}
	return n
}

// fits checks the settings and the destination.
func (p Preprocess) fits(dst []uint8) error {
	if err := p.Validate(); err != nil {
		return err
	}
	if len(dst) != p.Bytes() {
		return fmt.Errorf("preprocess: the destination has %d bytes, %d×%d RGB takes %d, %d times", len(dst), p.Crop, p.Crop, p.InputBytes(), p.Inputs())
	}
	return nil
}

// ApplyImage does what Apply does for pixels that are already at hand, and that
// are those of the view.
func (p Preprocess) ApplyImage(img *Image, dst []uint8) error {
	if !img.Valid() {
		return errors.New("preprocess: the image's sizes do not fit its pixels")
	}
	if err := p.apply(img, img.Width, img.Height, dst); err != nil {
		return err
	}
	p.tone(dst)
	return nil
}

// apply resizes img, which may be a reduced decoding of a frame of w × h
// pixels: the frame's own size decides the geometry.
func (p Preprocess) apply(img *Image, w, h int, dst []uint8) error {
	if err := p.fits(dst); err != nil {
		return err
	}
	// How much of img is frame: reductions round its sides up.
	reduced := math.Round(max(float64(w)/float64(img.Width), float64(h)/float64(img.Height)))
	size := p.InputBytes()
	for i, c := range p.cuts(w, h) {
		resampleExtent(dst[i*size:(i+1)*size], img, float64(w)/reduced, float64(h)/reduced, c.outW, c.outH, c.win, p.Interpolation)
	}
	return nil
}

// geometry gives the size after the resize and the window that the crop keeps.
func (p Preprocess) geometry(w, h int) (outW, outH int, win window) {
	if p.Squash {
		return p.Crop, p.Crop, window{0, 0, p.Crop, p.Crop}
	}
	outW, outH = shorterTo(w, h, p.Resize, p.Torchvision)
	return outW, outH, window{centerOffset(outW, p.Crop, p.Torchvision), centerOffset(outH, p.Crop, p.Torchvision), p.Crop, p.Crop}
}

// Region tells which part of a frame of w × h pixels the model sees: the
// rectangle from (x0, y0) to (x1, y1), in the frame's pixels and fractions of
// them. It undoes view, resize and crop, for heatmaps on the frame's own geometry.
func (p Preprocess) Region(w, h int) (x0, y0, x1, y1 float64) {
	left, top, right, bottom := p.View.region(w, h)
	w, h = right-left, bottom-top
	outW, outH, win := p.geometry(w, h)
	sx, sy := float64(w)/float64(outW), float64(h)/float64(outH)
	dx, dy := float64(left), float64(top)
	return dx + float64(win.x)*sx, dy + float64(win.y)*sy, dx + float64(win.x+win.w)*sx, dy + float64(win.y+win.h)*sy
}
