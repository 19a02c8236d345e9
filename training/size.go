package training

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"time"

	"github.com/nearmiss/nearmiss/inference"
	"github.com/nearmiss/nearmiss/inference/backbone"
	"github.com/nearmiss/nearmiss/inference/imaging"
)

// Resolution says how fine a model looks, and what it can see of a frame.
type Resolution struct {
	// Size is the side of the model's square input, in pixels, and Width and Height
	// are the median normal's.
	Size   int `json:"size"`
	Width  int `json:"width"`
	Height int `json:"height"`
	// Across and Down are the frame's pixels in one patch, or in one cell of a
	// convolutional network's map: a defect that is much smaller in both directions
	// changes little of what the model gives.
	Across float64 `json:"across"`
	Down   float64 `json:"down"`
	// Tried are input sizes that a budget let in question, and what a picture takes at
	// each, in milliseconds.
	Tried []SizedTime `json:"tried,omitempty"`

	fixed bool // a foreign model takes no other size
}

// SizedTime is about what judging a picture takes at an input size.
type SizedTime struct {
	Size         int     `json:"size"`
	Milliseconds float64 `json:"milliseconds"`
}

// String is the finding in a sentence, for people.
func (r Resolution) String() string {
	text := fmt.Sprintf("the model sees frames of %d×%d pixels at %d×%d", r.Width, r.Height, r.Size, r.Size)
	if r.Across > 0 {
		text += fmt.Sprintf(", a patch is %.0f×%.0f pixels of the frame, and a defect that is much smaller is hard to find", r.Across, r.Down)
		if len(r.Tried) == 0 && !r.fixed && float64(min(r.Width, r.Height)) >= 2*float64(r.Size) {
			text += ": --budget 200ms takes as large an input as that time allows"
		}
	}
	for i, t := range r.Tried {
		if i == 0 {
			text += "; a picture takes about"
		} else {
			text += ","
		}
		text += fmt.Sprintf(" %.0f ms at %d", t.Milliseconds, t.Size)
	}
	return text
}

const (
	// sizeStep divides every input size that is chosen, so that patches of 14 and of 16
	// pixels fit, and mostSize is the largest.
	sizeStep, mostSize = 112, 672
	// sizeImages is how many normals say how large frames are.
	sizeImages = 100
	// fullCost is about what judging by the full score takes, as a multiple of the
	// network, which alone is timed: 1.3 to 1.4 was measured (RESULTS.md).
	fullCost = 1.5
	// timedRuns is how often an input size is timed; the median counts.
	timedRuns = 3
)

// frameSize is the median normal's, of the part of it that counts.
func (p Plan) frameSize() (width, height int) {
	var widths, heights []int
	n := min(len(p.Data.Normals), sizeImages)
	for i := range n {
		b, err := p.Data.Normals[i*len(p.Data.Normals)/n].Read()
		if err != nil {
			continue // whoever learns from it says so
		}
		if h, err := imaging.Inspect(b, p.Data.Limits); err == nil {
			all := imaging.Preprocess{Crop: 1, Squash: true, View: p.Data.View}
			x0, y0, x1, y1 := all.Region(h.Width, h.Height)
			widths, heights = append(widths, int(x1-x0)), append(heights, int(y1-y0))
		}
	}
	if len(widths) == 0 {
		return 0, 0
	}
	slices.Sort(widths)
	slices.Sort(heights)
	return widths[len(widths)/2], heights[len(heights)/2]
}

// sized fits the plan's backbone to the input size that is asked for, or to the
// largest that the frames have pixels for and the budget has time for; the fitted
// model is written to the folder dir.
func (p *Plan) sized(ctx context.Context, dir string) ([]SizedTime, error) {
	if p.Model.Size == 0 && p.Model.Budget == 0 {
		return nil, nil
	}
	fail := func(err error) ([]SizedTime, error) {
		return nil, fmt.Errorf("fit %s to another input size: %w", filepath.Base(p.Model.Backbone), err)
	}
	info, _, err := backbone.ReadMetadata(p.Model.Backbone)
	if err != nil {
		return fail(err)
	}
	if info.Spec == nil {
		if p.Model.Size == 0 || p.Model.Size == info.Size {
			return nil, nil // a foreign model has its size
		}
		return fail(fmt.Errorf("%w: a foreign model takes %d pixels only", ErrPlan, info.Size))
	}
	original := p.Model.Backbone
	sum, err := fileDigest(original)
	if err != nil {
		return fail(err)
	}
	fitted := func(size int) (string, error) {
		if size == info.Size {
			return original, nil
		}
		file := filepath.Join(dir, fmt.Sprintf("%.12s-at-%d.onnx", sum, size)) // a work folder may see several backbones
		if fileExists(file) {
			return file, nil
		}
		_, err := backbone.Import(original, file, backbone.ImportOptions{LoadOptions: backbone.LoadOptions{Size: size}})
		return file, err
	}
	if p.Model.Size > 0 {
		if p.Model.Backbone, err = fitted(p.Model.Size); err != nil {
			return fail(err)
		}
		return nil, nil
	}
	width, height := p.frameSize()
	var tried []SizedTime
	best := ""
	sizes := []int{info.Size}
	for size := 2 * sizeStep; size <= mostSize; size += sizeStep {
		sizes = append(sizes, size)
	}
	slices.Sort(sizes)
	for _, size := range slices.Compact(sizes) {
		if best != "" && size > info.Size && size > min(width, height) {
			break // more pixels than the frame has
		}
		file, err := fitted(size)
		if err != nil {
			return fail(err)
		}
		ms, err := p.timeNetwork(ctx, file)
		if err != nil {
			return fail(err)
		}
		tried = append(tried, SizedTime{size, ms})
		late := ms > float64(p.Model.Budget.Milliseconds())
		if !late || best == "" { // the smallest, where nothing is fast enough
			best = file
		}
		if late {
			break
		}
	}
	p.Model.Backbone = best
	return tried, nil
}

// timeNetwork is about what judging a picture by the model at path takes, in
// milliseconds.
func (p Plan) timeNetwork(ctx context.Context, path string) (ms float64, err error) {
	e, err := inference.NewEmbedder(path, p.Host.embed(Data{}, Model{See: SeeWhole, Symmetry: p.Model.Symmetry, Precision: p.Model.Precision}))
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, e.Close()) }()
	black := make([]uint8, e.Preprocess().Bytes())
	var times []float64
	for range timedRuns {
		began := time.Now()
		if _, err := e.EmbedPixels(ctx, [][]uint8{black}); err != nil {
			return 0, err
		}
		times = append(times, fullCost*1000*time.Since(began).Seconds())
	}
	return median(times), nil
}

// resolution is what a model sees of the plan's frames.
func (p Plan) resolution(m *model, tried []SizedTime) *Resolution {
	prepare := m.e.Preprocess()
	r := &Resolution{Size: prepare.Crop, Tried: tried, fixed: format(m) == ""}
	whole := p
	whole.Data.View = nil
	if r.Width, r.Height = whole.frameSize(); r.Width == 0 {
		return nil
	}
	x0, y0, x1, y1 := prepare.Region(r.Width, r.Height)
	for _, a := range m.parts {
		if a.IsPatch() {
			r.Across, r.Down = (x1-x0)/float64(a.Width), (y1-y0)/float64(a.Height)
			break
		}
	}
	return r
}
