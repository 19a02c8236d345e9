package inference

import (
	"fmt"
	"math"
	"slices"

	"github.com/nearmiss/nearmiss/inference/ort"
)

// runner is one thread of the model with its input memory.
type runner struct {
	*Embedder
	input []uint8
}

// work is a runner's loop.
func (e *Embedder) work(share int) {
	r := &runner{Embedder: e, input: make([]uint8, e.limit*e.inputs*e.preprocess.InputBytes())}
	for {
		batch := collect(e.ready, e.limit, share)
		if batch == nil {
			return
		}
		r.embed(batch)
	}
}

// collect takes the first item, waiting for it, and those that are ready beside it,
// at most limit; it leaves the other collectors, share in all, their part of them. It
// returns nil when the channel is closed and empty.
func collect[T any](in <-chan T, limit, share int) []T {
	first, ok := <-in
	if !ok {
		return nil
	}
	batch := append(make([]T, 0, limit), first)
	fair := (1 + len(in) + share - 1) / share
	for len(batch) < min(limit, fair) {
		select {
		case x, ok := <-in:
			if !ok {
				return batch
			}
			batch = append(batch, x)
		default:
			return batch
		}
	}
	return batch
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
	size, same := r.preprocess.InputBytes(), r.preprocess.Symmetry.Count()
	n := 0
	at := make([]int, len(live)) // the first input of an image
	for i, j := range live {
		at[i] = n
		r.preprocess.Symmetry.Expand((*j.pixels)[:size], r.preprocess.Crop, r.input[n*size:])
		n += same
		if !j.whole {
			n += copy(r.input[n*size:], (*j.pixels)[size:]) / size
		}
		r.release(j)
	}
	got, err := r.infer(n)
	part := func(all []float32, i, n, size int) []float32 { return all[i*size : (i+n)*size : (i+n)*size] }
	for i, j := range live {
		if err == nil {
			out := &j.call.out[j.index]
			v := mean(part(got.vectors, at[i], same, r.dim), same)
			good := finite(v)
			var patches [][]float32
			first, count := at[i], 1 // where patches come from
			if r.preprocess.Tiles != nil {
				first, count = at[i]+same, r.preprocess.Tiles.Count()
			}
			for k, p := range r.patches {
				if j.whole {
					break
				}
				patches = append(patches, p.whole(part(got.patches[k], first, count, p.count*p.dim), r.preprocess.Tiles, r.preprocess.Crop))
				good = good && finite(patches[k])
			}
			if !good {
				out.Err = ErrNotFinite
			} else {
				out.Vector, out.Patches = v, patches
			}
		}
		j.call.finish(err)
	}
}

// outputs are what the model gave for a batch, in memory of their own.
type outputs struct {
	vectors []float32
	shape   []int // of vectors
	patches [][]float32
	shapes  [][]int // of patches
}

// infer runs the model on the first n inputs, as many at once as it is to be given.
func (r *runner) infer(n int) (o outputs, err error) {
	size := r.preprocess.InputBytes()
	for from := 0; from < n; {
		to := min(from+r.run(from), n)
		input := r.input[from*size : to*size]
		if r.fixed > to-from {
			input = append(make([]uint8, 0, r.fixed*size), input...)[:r.fixed*size]
		}
		got, err := r.once(input)
		if err != nil || from == 0 && to == n {
			return got, err
		}
		o.vectors = append(o.vectors, got.vectors[:(to-from)*r.dim]...)
		for i, p := range r.patches {
			if from == 0 {
				o.patches = append(o.patches, nil)
			}
			o.patches[i] = append(o.patches[i], got.patches[i][:(to-from)*p.count*p.dim]...)
		}
		from = to
	}
	return o, nil
}

// once runs the model on inputs.
func (r *runner) once(input []uint8) (o outputs, err error) {
	side, n := r.preprocess.Crop, len(input)/r.preprocess.InputBytes()
	in, err := ort.NewTensor([]int{n, side, side, 3}, input)
	if err != nil {
		return o, err
	}
	defer in.Close()
	out, err := r.expected(n)
	defer func() { ort.CloseAll(out...) }()
	if err != nil {
		return o, err
	}
	run := r.session.RunInto
	if c := r.captured[n]; c != nil {
		run = c.Run
	}
	if err := run(r.ctx, []*ort.Tensor{in}, out); err != nil {
		return o, err
	}
	o.vectors, o.shape = out[r.embedding].Float32s(), out[r.embedding].Shape()
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

// expected are the outputs of a run on n inputs, in memory of their own, which ONNX
// Runtime writes to: what it had to allocate itself would be copied once more. Those
// that nobody asks for are left to it. Inputs and outputs that are bound once for all runs
// (RunWithBinding) took the same time, and such a run cannot be stopped.
func (e *Embedder) expected(n int) (out []*ort.Tensor, err error) {
	out = make([]*ort.Tensor, len(e.session.Outputs()))
	expect := func(at int, shape ...int) {
		if err == nil {
			out[at], err = ort.Zeros(ort.Float, shape...)
		}
	}
	if e.dim == 0 { // before the probe
		return out, nil
	}
	if e.row != nil {
		expect(e.embedding, append([]int{n}, e.row...)...)
	}
	for _, p := range e.patches {
		if out[p.at] == nil {
			expect(p.at, n, p.count, p.dim)
		}
	}
	return out, err
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
	return !slices.ContainsFunc(v, func(x float32) bool { return math.IsNaN(float64(x)) || math.IsInf(float64(x), 0) })
}
