package finetune

import (
	"context"
	"fmt"
	"math/rand/v2"
	"runtime"
	"sync"

	"golang.org/x/sync/errgroup"

	"github.com/nearmiss/nearmiss/inference/imaging"
	"github.com/nearmiss/nearmiss/training/optim"
)

// Set is a number of images. Image is called from several goroutines and must
// give the same picture for the same index; the caller does not change it.
type Set interface {
	Len() int
	Image(i int) (*imaging.Image, error)
}

// Pictures is a Set in memory.
type Pictures []*imaging.Image

// Len is the number of pictures.
func (p Pictures) Len() int { return len(p) }

// Image returns picture i.
func (p Pictures) Image(i int) (*imaging.Image, error) { return p[i], nil }

// cacheRoom is memory that several sets share.
type cacheRoom struct {
	mu   sync.Mutex
	left int // bytes
}

// take reserves n bytes, or says that they are not there.
func (c *cacheRoom) take(n int) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if n > c.left {
		return false
	}
	c.left -= n
	return true
}

// resized gives images as the crop wants them, and remembers as many as fit.
type resized struct {
	set  Set
	pre  imaging.Preprocess
	room *cacheRoom
	mu   sync.Mutex
	kept map[int]*imaging.Image
}

func (s *resized) image(i int) (*imaging.Image, error) {
	s.mu.Lock()
	m := s.kept[i]
	s.mu.Unlock()
	if m != nil {
		return m, nil
	}
	m, err := s.set.Image(i)
	if err != nil {
		return nil, err
	}
	if !m.Valid() {
		return nil, fmt.Errorf("image %d: its sizes do not fit its pixels", i)
	}
	if s.pre.Squash {
		m = imaging.Resize(m, s.pre.Crop, s.pre.Crop, s.pre.Interpolation)
	} else {
		m = imaging.ResizeShorter(m, s.pre.Resize, s.pre.Interpolation)
	}
	if s.room.take(len(m.Pix)) {
		s.mu.Lock()
		s.kept[i] = m
		s.mu.Unlock()
	}
	return m, nil
}

// example is one image of a batch.
type example struct {
	fake  bool
	index int
}

// feeder fills batches for training or, with middle set, for evaluation.
type feeder struct {
	pre            imaging.Preprocess
	normals, fakes *resized
	batch          int
	noise          int
	seed           uint64
	middle         bool // the middle crop, in order, no noise
	noCrop, noFlip bool

	mu    sync.Mutex
	epoch int
	order []example // of epoch; nil: not drawn yet
}

// examples is the number of images in an epoch: each normal and as many fakes.
func (f *feeder) examples() int {
	if f.middle {
		return f.normals.set.Len() + f.fakes.set.Len()
	}
	return 2 * f.normals.set.Len()
}

// steps is the number of batches in an epoch, the last one may be partial.
func (f *feeder) steps() int { return (f.examples() + f.batch - 1) / f.batch }

// stream is a generator for one purpose at one place of the run.
func (f *feeder) stream(purpose, place uint64) *rand.Rand {
	return rand.New(rand.NewPCG(f.seed^purpose*0x9E3779B97F4A7C15, place))
}

const (
	drawOrder = iota + 1
	drawFakes
	drawView
	drawNoise
)

// orderOf lists the examples of an epoch. Where there are more fakes than
// normals each epoch takes others of them; where there are fewer they repeat.
func (f *feeder) orderOf(epoch int) []example {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.order != nil && (f.epoch == epoch || f.middle) {
		return f.order
	}
	n, m := f.normals.set.Len(), f.fakes.set.Len()
	out := make([]example, 0, f.examples())
	for i := range n {
		out = append(out, example{false, i})
	}
	if f.middle {
		for i := range m {
			out = append(out, example{true, i})
		}
	} else {
		for len(out) < 2*n {
			perm := f.stream(drawFakes, uint64(epoch)<<32|uint64(len(out))).Perm(m)
			for _, i := range perm[:min(m, 2*n-len(out))] {
				out = append(out, example{true, i})
			}
		}
		r := f.stream(drawOrder, uint64(epoch))
		r.Shuffle(len(out), func(i, j int) { out[i], out[j] = out[j], out[i] })
	}
	f.epoch, f.order = epoch, out
	return out
}

// Fill implements optim.Source.
func (f *feeder) Fill(ctx context.Context, step int, b optim.Batch) error {
	epoch, at := step/f.steps(), step%f.steps()*f.batch
	order := f.orderOf(epoch)
	real := order[at:min(at+f.batch, len(order))]
	images, target := b.Uint8s(inputImage), b.Float32s(inputTarget)
	clear(target)
	size := f.pre.Bytes()
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(runtime.GOMAXPROCS(0))
	for i := range f.batch {
		dst := images[i*size : (i+1)*size]
		if i >= len(real) {
			clear(dst)
			continue
		}
		label := 0
		if real[i].fake {
			label = 1
		}
		target[2*i+label] = float32(f.batch) / float32(len(real))
		g.Go(func() error {
			if err := ctx.Err(); err != nil {
				return err
			}
			return f.view(dst, real[i], uint64(step)*uint64(f.batch)+uint64(i))
		})
	}
	if f.noise > 0 && !f.middle {
		r := f.stream(drawNoise, uint64(step))
		for i, noise := 0, b.Int64s(inputNoise); i < len(noise); i++ {
			noise[i] = int64(int32(r.Uint32()))
		}
	}
	return g.Wait()
}

// view writes one image into dst as the model takes it: a crop, maybe mirrored.
func (f *feeder) view(dst []uint8, e example, place uint64) error {
	set, kind := f.normals, "normal"
	if e.fake {
		set, kind = f.fakes, "fake"
	}
	m, err := set.image(e.index)
	if err != nil {
		return fmt.Errorf("read %s image %d: %w", kind, e.index, err)
	}
	c := f.pre.Crop
	r := f.stream(drawView, place)
	mid := m.CenterCrop(c, c)
	if !f.middle && !f.noCrop {
		// As torchvision's RandomCrop: every position with the crop inside.
		mid = m.Crop(r.IntN(max(m.Width-c, 0)+1), r.IntN(max(m.Height-c, 0)+1), c, c)
	}
	if !f.middle && !f.noFlip && r.IntN(2) == 1 {
		mid = mid.FlipHorizontal()
	}
	copy(dst, mid.Pix)
	return nil
}
