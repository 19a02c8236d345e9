package training

import (
	"fmt"
	"image"
	"math"
	"slices"

	"github.com/nearmiss/nearmiss/inference/imaging"
)

// Framing is the part of the frame that counts by the normals, and how dark it is there.
type Framing struct {
	// Box is the part of the frame where normals show anything; nil: all of it.
	Box *imaging.Rect `json:"box,omitempty"`
	// Brightness is the mean of the normals there, 0..1, Gamma the exponent that opens
	// their shadows; 1: there is no need.
	Brightness float64 `json:"brightness"`
	Gamma      float64 `json:"gamma"`
}

const (
	framingImages = 100 // normals that are read, evenly
	framingSide   = 224 // pixels that they are squeezed to
	framingCell   = 8   // pixels of a cell's side
	// framingTail is the share of what normals show that may lie outside the box at
	// either end of an axis, framingMargin what is added again, of the side.
	framingTail, framingMargin = 0.005, 0.03
	// framingMost is the largest box, of the frame's area, that is worth cutting out.
	framingMost = 0.95
	// framingDark is the brightness below which shadows are opened, framingGamma how
	// far at most.
	framingDark, framingGamma = 0.25, 0.5
)

// String is the finding in a sentence, for people.
func (f Framing) String() string {
	text := "normals show something everywhere in the frame"
	if b := f.Box; b != nil {
		text = fmt.Sprintf("normals show something from %.0f to %.0f %% of the frame's width and %.0f to %.0f %% of its height, and only that counts (--frame all takes all of it)",
			100*b.X, 100*(b.X+b.Width), 100*b.Y, 100*(b.Y+b.Height))
	}
	if f.Gamma < 1 {
		text += fmt.Sprintf("; they are dark there (%.0f %%), so shadows are opened by gamma %.2f", 100*f.Brightness, f.Gamma)
	}
	return text
}

// frame finds where normals show anything: it averages the energy of their
// gradients. Images that cannot be read are passed over.
func frame(images []Image, d Data) Framing {
	cells := framingSide / framingCell
	energy := make([]float64, cells*cells)
	light := make([]float64, framingSide*framingSide)
	read := 0
	count := min(len(images), framingImages)
	prepare := imaging.Preprocess{Crop: framingSide, Squash: true, Interpolation: imaging.Bilinear, Std: [3]float64{1, 1, 1}, View: d.View}
	square, grey := make([]uint8, prepare.Bytes()), make([]float64, framingSide*framingSide)
	for i := range count {
		b, err := images[i*len(images)/count].Read()
		if err != nil {
			continue
		}
		if _, err := prepare.Apply(b, d.Limits, square); err != nil {
			continue
		}
		read++
		for j := range grey {
			grey[j] = (float64(square[3*j]) + float64(square[3*j+1]) + float64(square[3*j+2])) / (3 * 255)
			light[j] += grey[j]
		}
		for y := 1; y < framingSide-1; y++ {
			for x := 1; x < framingSide-1; x++ {
				at := y*framingSide + x
				gx, gy := grey[at+1]-grey[at-1], grey[at+framingSide]-grey[at-framingSide]
				energy[y/framingCell*cells+x/framingCell] += gx*gx + gy*gy
			}
		}
	}
	f := Framing{Gamma: 1}
	if read == 0 {
		return f
	}
	floor := median(energy) // noise
	columns, rows := make([]float64, cells), make([]float64, cells)
	for i, e := range energy {
		e = max(e-floor, 0)
		columns[i%cells] += e
		rows[i/cells] += e
	}
	x0, x1 := extent(columns)
	y0, y1 := extent(rows)
	if (x1-x0)*(y1-y0) < framingMost {
		f.Box = &imaging.Rect{X: x0, Y: y0, Width: x1 - x0, Height: y1 - y0}
	}
	inside := image.Rect(int(x0*framingSide), int(y0*framingSide), int(math.Ceil(x1*framingSide)), int(math.Ceil(y1*framingSide)))
	for y := inside.Min.Y; y < inside.Max.Y; y++ {
		for x := inside.Min.X; x < inside.Max.X; x++ {
			f.Brightness += light[y*framingSide+x]
		}
	}
	f.Brightness /= float64(read * inside.Dx() * inside.Dy())
	if f.Brightness < framingDark {
		f.Gamma = max(framingGamma, math.Log(framingDark)/math.Log(max(f.Brightness, 1e-6)))
	}
	return f
}

// extent is the part of an axis, 0..1, that holds all but a little of the energy.
func extent(energy []float64) (from, to float64) {
	total := 0.0
	for _, e := range energy {
		total += e
	}
	if !(total > 0) {
		return 0, 1
	}
	n := float64(len(energy))
	end := func(e []float64) float64 { // where the tail ends, within a cell
		sum := 0.0
		for i, v := range e {
			if sum+v > framingTail*total {
				return (float64(i) + (framingTail*total-sum)/v) / n
			}
			sum += v
		}
		return 0
	}
	from = end(energy)
	back := slices.Clone(energy)
	slices.Reverse(back)
	to = 1 - end(back)
	return max(from-framingMargin, 0), min(to+framingMargin, 1)
}

// apply has a plan take that part. Where a region is given, it stays.
func (f Framing) apply(p *Plan) {
	if f.Box != nil {
		v := imaging.View{Region: f.Box}
		if p.Data.View != nil {
			v.Ignore = p.Data.View.Ignore
		}
		p.Data.View = &v
	}
	if f.Gamma < 1 {
		tone := imaging.Tone{Gamma: f.Gamma}
		if p.Model.tone != nil {
			tone.Grey = p.Model.tone.Grey
		}
		p.Model.tone = &tone
	}
}

// changes says whether frames are to be taken otherwise than whole and as they are.
func (f Framing) changes() bool { return f.Box != nil || f.Gamma < 1 }

// frames says whether the plan leaves open which part counts.
func (p Plan) frames() bool {
	return p.Data.Frame == FrameAuto && (p.Data.View == nil || p.Data.View.Region == nil)
}
