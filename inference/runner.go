package inference

import (
	"fmt"
	"math"

	"github.com/nearmiss/nearmiss/inference/ort"
)

// runner is one thread of the model with its input memory.
type runner struct {
	*Embedder
	input []uint8
}

// run is a runner's loop.
func (e *Embedder) run(share int) {
	inputs := max(e.limit*e.preprocess.Symmetry.Count(), e.fixed)
	r := &runner{Embedder: e, input: make([]uint8, inputs*e.preprocess.Bytes())}
	for {
		batch := collect(e.ready, e.limit, share, e.o.Batch.Period)
		if batch == nil {
			return
		}
		r.embed(batch)
	}
}

func (r *runner) embed(batch []*job) {
	live := batch[:0]
	for _, j := range batch {
		if err := j.call.ctx.Err(); err != nil {
			r.release(j)
			j.call.finish(err)
			continue
		}
		live = append(live, j)
	}
	if len(live) == 0 {
		return
	}
	size := r.preprocess.Bytes()
	same := r.preprocess.Symmetry.Count()
	for i, j := range live {
		r.preprocess.Symmetry.Expand(*j.pixels, r.preprocess.Crop, r.input[i*same*size:])
		r.release(j)
	}
	n := len(live) * same
	if r.fixed > 0 {
		clear(r.input[n*size:])
		n = r.fixed
	}
	got, err := r.infer(n)
	part := func(all []float32, i, size int) []float32 { return all[i*size : (i+1)*size : (i+1)*size] }
	for i, j := range live {
		if err == nil {
			out := &j.call.out[j.index]
			v := mean(part(got.vectors, i, same*r.dim), same)
			good := finite(v)
			var patches [][]float32
			for k, p := range r.patches {
				patches = append(patches, part(got.patches[k], i*same, p.count*p.dim))
				good = good && finite(patches[k])
			}
			if !good {
				out.Err = ErrNotFinite
			} else {
				out.Vector, out.Patches = v, patches
				if r.o.Tokens {
					out.Tokens = part(got.tokens, i*same, r.tokens*r.dim)
				}
			}
		}
		j.call.finish(err)
	}
}

// outputs are what the model gave for a batch, in memory of their own.
type outputs struct {
	vectors, tokens []float32
	patches         [][]float32
	shapes          [][]int // of patches
}

// infer runs the model on the first n images of the input.
func (r *runner) infer(n int) (o outputs, err error) {
	side := r.preprocess.Crop
	in, err := ort.NewTensor([]int{n, side, side, 3}, r.input[:n*r.preprocess.Bytes()])
	if err != nil {
		return o, err
	}
	defer in.Close()
	out, err := r.session.Run(r.ctx, []*ort.Tensor{in})
	if err != nil {
		return o, err
	}
	defer ort.CloseAll(out...)
	o.vectors = out[r.embedding].Float32s()
	if r.o.Tokens {
		o.tokens = out[r.tokensAt].Float32s()
	}
	if r.dim > 0 && len(o.vectors) != n*r.dim {
		return o, fmt.Errorf("the model gave %d numbers for %d images of %d", len(o.vectors), n, r.dim)
	}
	for _, p := range r.patches {
		v := out[p.at].Float32s()
		if r.dim > 0 && len(v) != n*p.count*p.dim {
			return o, fmt.Errorf("the model gave %d numbers for %d images of %d×%d patches", len(v), n, p.count, p.dim)
		}
		o.patches, o.shapes = append(o.patches, v), append(o.shapes, out[p.at].Shape())
	}
	return o, nil
}

// mean is that of n vectors which stand one after the other; it overwrites the
// first of them.
func mean(all []float32, n int) []float32 {
	dim := len(all) / n
	v := all[:dim:dim]
	if n == 1 {
		return v
	}
	for i := range v {
		sum := float64(v[i])
		for k := 1; k < n; k++ {
			sum += float64(all[k*dim+i])
		}
		v[i] = float32(sum / float64(n))
	}
	return v
}

func finite(v []float32) bool {
	for _, x := range v {
		if math.IsNaN(float64(x)) || math.IsInf(float64(x), 0) {
			return false
		}
	}
	return true
}
