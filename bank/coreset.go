package bank

import (
	"context"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"sync/atomic"
	"time"

	"github.com/viterin/vek"
	"github.com/viterin/vek/vek32"
)

// CoresetReport says what a coreset keeps of the vectors it was chosen from.
type CoresetReport struct {
	// From and To are the numbers of vectors before and after.
	From int `json:"from"`
	To   int `json:"to"`
	// Radius is the largest Euclidean distance (not squared) of any vector to
	// its nearest chosen one.
	Radius float64 `json:"radius"`
	// Compared is how many pairs of vectors were compared, and Distances how many of
	// these in full; plain greedy selection computes From×To distances.
	Compared  int64 `json:"compared"`
	Distances int64 `json:"distances"`
	// Seconds is how long it took.
	Seconds float64 `json:"seconds"`
}

// Coreset chooses at most want of n vectors, row-major n×dim, by greedy
// k-centre selection: starting from one drawn with seed, it takes the vector
// farthest from all chosen ones, again and again (Gonzalez 1985; its Radius is
// at most twice the best possible). It returns row numbers in the order of
// choice, so any prefix is the coreset of that size. Fewer than want come back
// where the rest are duplicates of chosen ones.
//
// What comes back is the plain algorithm's, with less work. A vector that was found
// near a chosen one is compared again only when no other is farther from what it
// was compared with: until then it cannot be the farthest. And two vectors are
// compared in a sketch of 32 numbers first: coordinates along the main axes of the
// vectors, and the length of what these leave over. The distance of two sketches is
// never more than that of their vectors, so most pairs are dismissed by it.
func Coreset(ctx context.Context, vectors []float32, dim, want int, seed uint64) ([]int, CoresetReport, error) {
	start := time.Now()
	if dim < 1 || dim > maxDim || len(vectors)%dim != 0 {
		return nil, CoresetReport{}, fmt.Errorf("coreset: %w: %d numbers are not whole vectors of dimension %d", ErrDim, len(vectors), dim)
	}
	n := len(vectors) / dim
	if want < 1 {
		return nil, CoresetReport{}, fmt.Errorf("coreset: %d vectors wanted, must be at least 1", want)
	}
	for i := range n {
		if err := checkVector(vectors[i*dim:(i+1)*dim], dim); err != nil {
			return nil, CoresetReport{}, fmt.Errorf("coreset: vector %d of %d: %w", i, n, err)
		}
	}
	if n == 0 {
		return nil, CoresetReport{}, nil
	}
	t := newTraversal(ctx, vectors, dim, seed)
	t.take(rand.New(rand.NewPCG(seed, 0)).IntN(n))
	for len(t.chosen) < want {
		far, ok := t.farthest(ctx)
		if err := ctx.Err(); err != nil {
			return nil, CoresetReport{}, err
		}
		if !ok {
			break
		}
		t.take(far)
	}
	r := CoresetReport{From: n, To: len(t.chosen)}
	if far, ok := t.farthest(ctx); ok {
		r.Radius = float64(t.near[far])
	}
	r.Compared, r.Distances = t.compared.Load(), t.distances.Load()
	r.Seconds = time.Since(start).Seconds()
	return t.chosen, r, ctx.Err()
}

// traversal is the state of a farthest-first traversal.
type traversal struct {
	vectors []float32
	dim     int
	sketch  []float32 // n×sketchDim; nil where dim is hardly larger
	error   float32   // by how much rounding may enlarge sketches' distances

	chosen   []int
	sketches []float32 // of the chosen rows, one after the other
	padded   []float32 // where there are sketches, the chosen rows with zeros up to wide numbers each
	wide     int
	// near is the distance of each row to the nearest of those that were chosen when
	// it was last compared: the first comparedTo of them.
	near       []float32
	comparedTo []int
	// far are the rows that are more than level from all chosen ones, in order; they
	// have seen all. No other row is.
	far   []uint32
	level float32

	compared, distances atomic.Int64
}

const (
	sketchDim    = 32
	sketchSample = 2048
	// levelStep is the share of the level before that a level is: a smaller one has
	// more rows compared with each choice, a larger one has them compared more often.
	levelStep = 0.97
)

func newTraversal(ctx context.Context, vectors []float32, dim int, seed uint64) *traversal {
	n := len(vectors) / dim
	t := &traversal{vectors: vectors, dim: dim, near: make([]float32, n), comparedTo: make([]int, n), level: math.MaxFloat32}
	for i := range t.near {
		t.near[i] = math.MaxFloat32
	}
	if dim >= 2*sketchDim {
		t.wide = (dim + 31) / 32 * 32 // which squaredL2Rows is fast with
		t.makeSketch(ctx, seed)
	}
	return t
}

func (t *traversal) at(i int) []float32 { return t.vectors[i*t.dim : (i+1)*t.dim] }

func (t *traversal) sketchOf(i int) []float32 { return t.sketch[i*sketchDim : (i+1)*sketchDim] }

// take adds a row to the chosen ones.
func (t *traversal) take(row int) {
	t.chosen = append(t.chosen, row)
	if t.sketch != nil {
		t.sketches = append(t.sketches, t.sketchOf(row)...)
		t.padded = append(append(t.padded, t.at(row)...), make([]float32, t.wide-t.dim)...)
	}
}

// farthest is the row that is farthest from all chosen ones, the first of equals;
// false where every row is one of them, or the same.
func (t *traversal) farthest(ctx context.Context) (int, bool) {
	t.refresh(ctx)
	for len(t.far) == 0 {
		// Of distances that are not of now, the largest is no less than that of now.
		top := slices.Max(t.near)
		if top == 0 || ctx.Err() != nil {
			return 0, false
		}
		t.level = min(t.level, top) * levelStep
		for i, d := range t.near {
			if d > t.level {
				t.far = append(t.far, uint32(i))
			}
		}
		t.refresh(ctx)
	}
	best := t.far[0]
	for _, i := range t.far {
		if t.near[i] > t.near[best] {
			best = i
		}
	}
	return int(best), true
}

// refresh compares the far rows with what was chosen since they were last compared, and
// keeps those that are still far.
func (t *traversal) refresh(ctx context.Context) {
	const chunk = 256
	parallel(ctx, (len(t.far)+chunk-1)/chunk, func() func(int) {
		x := &scratch{row: make([]float32, t.wide)}
		return func(i int) {
			var compared, distances int64
			for _, row := range t.far[i*chunk : min((i+1)*chunk, len(t.far))] {
				c, d := t.update(int(row), x)
				compared, distances = compared+c, distances+d
			}
			t.compared.Add(compared)
			t.distances.Add(distances)
		}
	})
	t.far = slices.DeleteFunc(t.far, func(row uint32) bool { return t.near[row] <= t.level })
}

// scratch is memory in which one row at a time is compared.
type scratch struct {
	row     []float32 // padded
	squares [len(countUp)]float32
	near    [len(countUp)]uint32 // chosen rows that may be nearer
}

// update compares a row with chosen ones until it is not far, or none is left. Those that
// their sketches do not dismiss are compared in one batch, and those that may still be nearer
// once more, with the rounding of the plain algorithm.
func (t *traversal) update(row int, x *scratch) (compared, distances int64) {
	near, next := t.near[row], t.comparedTo[row]
	v := t.at(row)
	copy(x.row, v)
	for next < len(t.chosen) && near > t.level {
		count := min(len(countUp), len(t.chosen)-next)
		if t.sketch == nil {
			for _, c := range t.chosen[next : next+count] {
				near = min(near, vek32.Distance(t.at(c), v))
			}
			next, compared, distances = next+count, compared+int64(count), distances+int64(count)
			continue
		}
		squaredL2Rows(t.sketchOf(row), t.sketches[next*sketchDim:], countUp[:count], x.squares[:count])
		within, nearer := t.within(near), x.near[:0]
		for i, s := range x.squares[:count] {
			if s < within {
				nearer = append(nearer, uint32(next+i))
			}
		}
		squaredL2Rows(x.row, t.padded, nearer, x.squares[:len(nearer)])
		for i, s := range x.squares[:len(nearer)] {
			if s >= within {
				continue
			}
			if d := vek32.Distance(t.at(t.chosen[nearer[i]]), v); d < near {
				near, within = d, t.within(d)
			}
		}
		next, compared, distances = next+count, compared+int64(count), distances+int64(len(nearer))
	}
	t.near[row], t.comparedTo[row] = near, next
	return compared, distances
}

// within is the square that those of sketches are below where vectors may be nearer
// than near.
func (t *traversal) within(near float32) float32 {
	d := near + near*1e-4 + t.error
	return d * d
}

// makeSketch projects all rows on their main axes.
func (t *traversal) makeSketch(ctx context.Context, seed uint64) {
	const axes = sketchDim - 1
	mean, q := mainAxes(ctx, t.vectors, t.dim, axes, seed)
	t.sketch = make([]float32, len(t.near)*sketchDim)
	var longest atomic.Uint64 // of non-negative numbers, whose bits are in their order
	parallel(ctx, len(t.near), func() func(int) {
		x := make([]float64, t.dim)
		return func(i int) {
			all := math.Float64bits(project(t.sketchOf(i), t.at(i), mean, q, x))
			for was := longest.Load(); was < all && !longest.CompareAndSwap(was, all); was = longest.Load() {
			}
		}
	})
	// Rounding to float32 moves a sketch by 2⁻²⁴ of its length or less, the
	// float64 sums before by less than the square root of 2⁻⁴⁰ of it.
	t.error = float32(4 * math.Sqrt(math.Float64frombits(longest.Load())) / (1 << 20))
}

// mainAxes are the mean of row-major ?×d vectors and their main axes, found by
// orthogonal iteration on a sample. They need not be exact: any orthonormal axes
// give a lower bound of distances.
func mainAxes(ctx context.Context, vectors []float32, d, axes int, seed uint64) (mean []float64, q [][]float64) {
	n := len(vectors) / d
	r := rand.New(rand.NewPCG(seed, 1))
	sample := make([][]float64, min(n, sketchSample))
	mean = make([]float64, d)
	for i := range sample {
		sample[i] = make([]float64, d)
		at := i * n / len(sample)
		for j, v := range vectors[at*d : (at+1)*d] {
			sample[i][j] = float64(v)
			mean[j] += float64(v) / float64(len(sample))
		}
	}
	for _, x := range sample {
		vek.Sub_Inplace(x, mean)
	}
	q = make([][]float64, axes)
	for i := range q {
		q[i] = make([]float64, d)
		for j := range q[i] {
			q[i][j] = r.NormFloat64()
		}
	}
	orthonormalise(q)
	for range 3 {
		parallel(ctx, axes, func() func(int) {
			return func(i int) {
				next, x1 := make([]float64, d), make([]float64, d)
				for _, x := range sample {
					vek.MulNumber_Into(x1, x, vek.Dot(x, q[i]))
					vek.Add_Inplace(next, x1)
				}
				q[i] = next
			}
		})
		orthonormalise(q)
	}
	return mean, q
}

// project writes the coordinates of v−mean along the axes to to, and behind them
// the length of what they leave over. It returns the square of the length of
// v−mean; x is scratch memory as long as v.
func project(to, v []float32, mean []float64, axes [][]float64, x []float64) float64 {
	for j, v := range v {
		x[j] = float64(v) - mean[j]
	}
	all := vek.Dot(x, x)
	rest := all
	for j, axis := range axes {
		y := vek.Dot(x, axis)
		to[j] = float32(y)
		rest -= y * y
	}
	to[len(axes)] = float32(math.Sqrt(max(0, rest)))
	return all
}

// orthonormalise is modified Gram–Schmidt, twice for accuracy. Vectors that the
// others span become zero, which keeps projections on them a lower bound.
func orthonormalise(q [][]float64) {
	if len(q) == 0 {
		return
	}
	along := make([]float64, len(q[0]))
	for i := range q {
		before := vek.Norm(q[i])
		for range 2 {
			for _, o := range q[:i] {
				vek.Sub_Inplace(q[i], vek.MulNumber_Into(along, o, vek.Dot(o, q[i])))
			}
		}
		if l := vek.Norm(q[i]); l > 1e-9*before && l > 0 {
			vek.MulNumber_Inplace(q[i], 1/l)
		} else {
			clear(q[i])
		}
	}
}
