package inference

import (
	"errors"
	"fmt"
	"math"
	"slices"

	"github.com/nearmiss/nearmiss/inference/ort"
	"github.com/nearmiss/nearmiss/inference/release"
)

// capture has runs on one image and on a whole batch captured, each by a copy of the
// model of its own, where they give what the model gives; other runs stay as they are.
func (e *Embedder) capture(path string, open opening) error {
	if e.row == nil {
		return errors.New("its outputs do not separate the images of a batch")
	}
	e.captured = map[int]*ort.Captured{}
	model := func(o ort.Options) (ort.Model, error) {
		return open(path, e.o.Precision, e.o.FloatProducts, o)
	}
	one, all := e.inputs, e.run(0)
	if one > all || e.fixed > 0 {
		one = all
	}
	for _, n := range []int{one, all} {
		if e.captured[n] == nil {
			if err := e.captureSize(n, model); err != nil {
				return fmt.Errorf("runs on %d images: %w", n, err)
			}
		}
	}
	return nil
}

// captureSize captures runs on n inputs and tries them on pictures that have nothing in
// common: a recording that read something else than its input would be found out.
func (e *Embedder) captureSize(n int, model func(ort.Options) (ort.Model, error)) error {
	side := e.preprocess.Crop
	trial := func(picture int) (in, out []*ort.Tensor, err error) {
		pixels := make([]uint8, n*e.preprocess.InputBytes())
		for i := range pixels {
			x, y, image := i/3%side*256/side, i/3/side%side*256/side, i/e.preprocess.InputBytes()
			switch picture {
			case 0: // stripes that grow finer, on dark
				pixels[i] = uint8((x*x/128 + 7*image) % 128)
			default: // a bright slope with a coarse chequerboard
				pixels[i] = uint8(255 - (y*3/8+7*image)%96 - 64*((x/32+y/32+i%3)%2))
			}
		}
		x, err := ort.NewTensor([]int{n, side, side, 3}, pixels)
		if err != nil {
			return nil, nil, err
		}
		out = make([]*ort.Tensor, len(e.session.Outputs()))
		err = e.session.RunInto(e.ctx, []*ort.Tensor{x}, out)
		return []*ort.Tensor{x}, out, err
	}
	var ins, wants [2][]*ort.Tensor
	defer func() { ort.CloseAll(slices.Concat(ins[0], ins[1], wants[0], wants[1])...) }()
	for i := range ins {
		var err error
		if ins[i], wants[i], err = trial(i); err != nil {
			return err
		}
	}
	c, err := ort.Capture(e.ctx, e.o.Session, model, ins[0], wants[0])
	if err != nil {
		return err
	}
	e.captured[n] = c
	allowed := defaultTolerance
	if e.o.Precision == release.Half {
		allowed = coarseTolerance
	}
	used := []int{e.embedding}
	for _, p := range e.patches {
		used = append(used, p.at)
	}
	for i := range 4 { // each twice, so that one follows the other
		got := make([]*ort.Tensor, len(wants[0]))
		for _, at := range used {
			if got[at] == nil {
				if got[at], err = ort.Zeros(ort.Float, wants[0][at].Shape()...); err != nil {
					return err
				}
				defer got[at].Close()
			}
		}
		if err := c.Run(e.ctx, ins[i%2], got); err != nil {
			return err
		}
		for _, at := range used {
			is, want, other := got[at].Float32s(), wants[i%2][at].Float32s(), wants[1-i%2][at].Float32s()
			if d := apart(is, want); !(d <= allowed) {
				return fmt.Errorf("output %q is %.2g off, relative, where %g is allowed", e.session.Outputs()[at].Name, d, allowed)
			}
			if d := apart(other, want); !(d > 4*allowed) {
				return fmt.Errorf("output %q is the same to %.2g whatever the picture: nothing can be said of it", e.session.Outputs()[at].Name, d)
			}
		}
	}
	return nil
}

// apart is the distance of two vectors in lengths of the second.
func apart(a, b []float32) float64 {
	var d, l float64
	for i := range b {
		d += (float64(a[i]) - float64(b[i])) * (float64(a[i]) - float64(b[i]))
		l += float64(b[i]) * float64(b[i])
	}
	return math.Sqrt(d / l)
}

// uncapture gives up captured runs, for a reason.
func (e *Embedder) uncapture(why error) error {
	errs := []error{why}
	for _, c := range e.captured {
		errs = append(errs, c.Close())
	}
	e.captured = nil
	return errors.Join(errs...)
}

// Captured are the sizes of the batches whose runs are captured, as the device asks, and
// the reason where there are none all the same.
func (e *Embedder) Captured() (sizes []int, why error) {
	for n := range e.captured {
		sizes = append(sizes, n)
	}
	slices.Sort(sizes)
	return sizes, e.uncaptured
}
