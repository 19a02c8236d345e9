package training

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math"
	"path/filepath"
	"slices"
	"time"

	"github.com/nearmiss/nearmiss/inference"
	"github.com/nearmiss/nearmiss/inference/backbone"
	"github.com/nearmiss/nearmiss/inference/imaging"
)

// Resolution says how finely a model samples frames, and what it can find in them.
type Resolution struct {
	// Size is the side of the model's square input, in pixels, Tiles are those
	// that patches come from, as imaging.ParseTiles reads them, and Passes how many
	// inputs a picture takes. Width and Height are the median normal's.
	Size   int    `json:"size"`
	Tiles  string `json:"tiles"`
	Passes int    `json:"passes"`
	Width  int    `json:"width"`
	Height int    `json:"height"`
	// Across and Down are the frame's pixels in one patch, or in one cell of a
	// convolutional network's map: a defect that is much smaller in both directions
	// changes little of what the model gives.
	Across float64 `json:"across"`
	Down   float64 `json:"down"`
	// Tried are input sizes and tiles that were in question, and what a picture takes with
	// each, in milliseconds.
	Tried []SizedTime `json:"tried,omitempty"`

	finer imaging.Tiles // that the frames have pixels for, the next step up; zero: none
	by    float64       // what part of the pixels of a patch is then one of these
}

// SizedTime is about what judging a picture takes at an input size, with tiles.
type SizedTime struct {
	Size         int     `json:"size"`
	Tiles        string  `json:"tiles,omitempty"` // none where it is empty
	Milliseconds float64 `json:"milliseconds"`
}

// String is the finding in a sentence, for people.
func (r Resolution) String() string {
	text := fmt.Sprintf("the model sees frames of %d×%d pixels at %d×%d", r.Width, r.Height, r.Size, r.Size)
	if r.Passes > 1 {
		text += fmt.Sprintf(" and in %s tiles of that size (%d inputs a picture, of which --tiles %s leaves 1)", r.Tiles, r.Passes, TilesNone)
	}
	if r.Across > 0 {
		text += fmt.Sprintf(", a patch is %.0f×%.0f pixels of the frame, and a defect of less than %.0f pixels is hard to find", r.Across, r.Down, r.visible())
		if t := r.finer; t.Count() > 0 && len(r.Tried) == 0 {
			text += fmt.Sprintf(": --tiles %s would bring that to %.0f for about %.0f times the time, and --budget 200ms takes what that time allows",
				t, r.visible()*r.by, float64(1+t.Count())/float64(r.Passes))
		}
	}
	for i, t := range r.Tried {
		if i == 0 {
			text += "; a picture takes about"
		} else {
			text += ","
		}
		text += fmt.Sprintf(" %.0f ms at %d", t.Milliseconds, t.Size)
		if t.Tiles != "" {
			text += " in tiles of " + t.Tiles
		}
	}
	return text
}

const (
	// sizeStep divides every input size that is chosen, so that patches of 14 and of 16
	// pixels fit, and mostSize is the largest.
	sizeStep, mostSize = 112, 672
	// mostTiles bounds the tiles down and across that are chosen, and mostCanvas the
	// picture that they are cut from: more patches than its cells of 8 pixels have no ids.
	mostTiles, mostCanvas = 4, 2000
	// largeFrame is how many pixels both sides of the part that counts have, at least, where
	// TilesFew takes tiles: smaller ones have hardly more than networks see of the whole.
	largeFrame = 400
	// sizeImages is how many normals say how large frames are.
	sizeImages = 100
	// fullCost is about what judging by the full score takes, as a multiple of the
	// network, which alone is timed: 1.3 to 1.4 was measured (RESULTS.md).
	fullCost = 1.5
	// muchFiner is how many pixels of the frame are in one of tiles, of those in one of a
	// larger input, where tiles are worth it: at as many, a larger input finds as much or
	// more, since the whole-picture group sees it, too (RESULTS.md).
	muchFiner = 0.8
	// timedRuns is how often an input size is timed; the median counts.
	timedRuns = 3
	// visibleShare is the diameter of the least defect that is not hard to find, of a
	// patch's side: about half of the dark spots of this size on drawn parts were found,
	// at every setting (RESULTS.md).
	visibleShare = 0.8
)

// fewTiles are what TilesFew takes: finer ones show more, but a frame takes the time of
// all of them.
var fewTiles = imaging.Tiles{Rows: 2, Columns: 2}

// visible is about the diameter of the least defect that can be seen, in pixels of the
// frame.
func (r Resolution) visible() float64 { return visibleShare * math.Sqrt(r.Across*r.Down) }

// inspect reads how large some of the normals are.
func (p Plan) inspect() (shapes []imaging.Header) {
	n := min(len(p.Data.Normals), sizeImages)
	for i := range n {
		b, err := p.Data.Normals[i*len(p.Data.Normals)/n].Read()
		if err != nil {
			continue // whoever learns from it says so
		}
		if h, err := imaging.Inspect(b, p.Data.Limits); err == nil {
			shapes = append(shapes, h)
		}
	}
	return shapes
}

// frameSize is the median normal's, of the part of it that counts.
func (p Plan) frameSize() (width, height int) {
	shapes := p.shapes
	if shapes == nil {
		shapes = p.inspect()
	}
	if len(shapes) == 0 {
		return 0, 0
	}
	all := imaging.Preprocess{Crop: 1, Squash: true, View: p.Data.View}
	var widths, heights []int
	for _, h := range shapes {
		x0, y0, x1, y1 := all.Region(h.Width, h.Height)
		widths, heights = append(widths, int(x1-x0)), append(heights, int(y1-y0))
	}
	slices.Sort(widths)
	slices.Sort(heights)
	return widths[len(widths)/2], heights[len(heights)/2]
}

// sampling is a way to sample frames: an input size and tiles.
type sampling struct {
	size  int
	tiles imaging.Tiles
	// pixels are the frame's in one of the input or, where there are tiles, of one of these.
	pixels float64
}

// at are the ways to sample frames of width × height pixels by inputs of a size: at the
// whole of them, and in tiles, all that the frames have pixels for.
func at(size, width, height int) []sampling {
	w, h := float64(width), float64(height)
	out := []sampling{{size: size, pixels: max(w, h) / float64(size)}}
	for rows := 1; rows <= mostTiles; rows++ {
		for columns := 1; columns <= mostTiles; columns++ {
			// What the model's patches make of the overlap is not known yet.
			t := imaging.Tiles{Rows: rows, Columns: columns}
			across, down := imaging.Tiles{Rows: rows, Columns: columns, Overlap: size / 7}.Canvas(size)
			if t.Count() > 1 && across <= min(width, mostCanvas) && down <= min(height, mostCanvas) {
				out = append(out, sampling{size, t, max(w/float64(across), h/float64(down))})
			}
		}
	}
	return out
}

// passes are the inputs of a picture.
func (l sampling) passes() int { return 1 + l.tiles.Count() }

// finer says whether l shows more of a frame than o, or the same by fewer passes.
func (l sampling) finer(o sampling) bool {
	if math.Abs(l.pixels-o.pixels) > 0.02*o.pixels {
		return l.pixels < o.pixels
	}
	return l.passes() < o.passes()
}

// finest is the finest of some ways that pass.
func finest(all []sampling, pass func(l sampling) bool) (best sampling, ok bool) {
	for _, l := range all {
		if pass(l) && (!ok || l.finer(best)) {
			best, ok = l, true
		}
	}
	return best, ok
}

// sized fits the plan's backbone to the input size that is asked for, and takes tiles
// that are asked for, or finds the finest sampling that the frames have pixels for
// and the budget has time for; a fitted model is written to the folder dir.
func (p *Plan) sized(ctx context.Context, dir string) ([]SizedTime, error) {
	auto, few := p.Model.choosesTiles(), p.Model.Tiles == TilesFew
	if auto || p.Model.Budget > 0 {
		p.shapes = p.inspect()
	}
	if few {
		width, height := p.frameSize()
		auto = min(width, height) >= largeFrame // of which less may count
	}
	if p.Model.Size == 0 && p.Model.Budget == 0 && !auto {
		return nil, nil
	}
	fail := func(err error) ([]SizedTime, error) {
		return nil, fmt.Errorf("choose how finely %s samples frames: %w", filepath.Base(p.Model.Backbone), err)
	}
	info, _, err := backbone.ReadMetadata(p.Model.Backbone)
	if err != nil {
		return fail(err)
	}
	if info.Spec == nil && p.Model.Size != 0 && p.Model.Size != info.Size {
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
	take := func(l sampling) (err error) {
		if auto {
			p.Model.tiles = l.tiles
		}
		p.Model.Backbone, err = fitted(l.size)
		return err
	}
	if auto {
		a, err := backbone.Dissect(original)
		if err != nil {
			return fail(err)
		}
		c, err := p.Score.compose(original, a, false)
		if err != nil {
			return fail(err)
		}
		auto = slices.ContainsFunc(c.parts, func(q placed) bool { return q.isPatch() }) && !(few && a.Oblong)
	}
	size := cmp.Or(p.Model.Size, info.Size)
	if p.Model.Size > 0 && !auto {
		if err := take(sampling{size: size}); err != nil {
			return fail(err)
		}
		return nil, nil
	}
	width, height := p.croppedFrameSize()
	waysOf := func(size int) []sampling {
		return slices.DeleteFunc(at(size, width, height), func(l sampling) bool {
			return few && l.tiles.Count() > 0 && (l.tiles != fewTiles || min(width, height) < largeFrame)
		})
	}
	if p.Model.Budget == 0 {
		best, _ := finest(waysOf(size), func(sampling) bool { return true })
		if err := take(best); err != nil {
			return fail(err)
		}
		return nil, nil
	}
	sizes, most := []int{size}, mostSize
	switch {
	case info.Spec == nil || p.Model.Size > 0:
		most = 0
	case (auto || few) && learntPositions(*info.Spec):
		most = size
	}
	for s := 2 * sizeStep; s <= most; s += sizeStep {
		sizes = append(sizes, s)
	}
	slices.Sort(sizes)
	var tried []SizedTime
	var inTime []sampling
	for _, s := range slices.Compact(sizes) {
		if len(tried) > 0 && s > size && s > min(width, height) {
			break // more pixels than the frame has
		}
		file, err := fitted(s)
		if err != nil {
			return fail(err)
		}
		ms, err := p.timeNetwork(ctx, file)
		if err != nil {
			return fail(err)
		}
		note := func(l sampling) {
			t := SizedTime{Size: s, Milliseconds: ms * float64(l.passes())}
			if l.tiles.Count() > 0 {
				t.Tiles = l.tiles.String()
			}
			tried = append(tried, t)
		}
		early := func(l sampling) bool { return ms*float64(l.passes()) <= float64(p.Model.Budget.Milliseconds()) }
		ways := waysOf(s)
		if !auto {
			ways = ways[:1]
			ways[0].tiles = p.Model.tiles
		}
		note(ways[0])
		if l, ok := finest(ways[1:], early); ok {
			note(l)
			inTime = append(inTime, l)
		}
		if early(ways[0]) || len(inTime) == 0 { // the smallest, where nothing is fast enough
			inTime = append(inTime, ways[0])
		}
		if !early(ways[0]) {
			break
		}
	}
	if err := take(best(inTime, auto)); err != nil {
		return fail(err)
	}
	return tried, nil
}

// learntPositions says whether a network has position embeddings that were learnt at one
// input size: larger inputs, between whose positions these are interpolated, found less
// than tiles and even than the input it has (ViT-Ti, RESULTS.md).
func learntPositions(s backbone.Spec) bool {
	return (s.Family == backbone.ViT || s.Family == backbone.Hybrid) && s.Rope == 0
}

// best is the finest of several ways: in tiles where those show much more than the
// largest input.
func best(all []sampling, tiles bool) sampling {
	whole, _ := finest(all, func(l sampling) bool { return !tiles || l.tiles.Count() == 0 })
	if l, ok := finest(all, func(l sampling) bool { return l.pixels < muchFiner*whole.pixels }); ok && tiles {
		return l
	}
	return whole
}

// croppedFrameSize is the size of the part of the median normal that will count.
func (p Plan) croppedFrameSize() (width, height int) {
	if p.frames() {
		frame(p.Data.Normals, p.Data).apply(&p)
	}
	return p.frameSize()
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
	r := &Resolution{Size: prepare.Crop, Tiles: TilesNone, Passes: prepare.Inputs(), Tried: tried}
	if prepare.Tiles != nil {
		r.Tiles = prepare.Tiles.String()
	}
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
	if p.tileable() {
		ways := at(prepare.Crop, int(x1-x0), int(y1-y0))
		now := ways[0]
		if t := prepare.Tiles; t != nil {
			across, down := t.Canvas(prepare.Crop)
			now.tiles, now.pixels = *t, max((x1-x0)/float64(across), (y1-y0)/float64(down))
		}
		// The next step up, not the last.
		next, ok := finest(ways, func(l sampling) bool { return l.passes() <= 2*now.passes()+3 && l.pixels < 0.75*now.pixels })
		if ok {
			r.finer, r.by = next.tiles, next.pixels/now.pixels
		}
	}
	return r
}
