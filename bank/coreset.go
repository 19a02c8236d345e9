package bank

import (
	"context"
	"fmt"
	"math"
	"math/rand/v2"
	"runtime"
	"slices"
	"sync"
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
	// its nearest chosen one, Mean the mean of these distances.
	Radius float64 `json:"radius"`
	Mean   float64 `json:"mean"`
	// Distances is how many whole distances were computed; plain greedy
	// selection computes From×To.
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
// Each choice compares all vectors with the new centre, in a sketch of 32
// numbers first: coordinates along the main axes of the vectors, and the length
// of what these leave over. The distance of two sketches is never more than
// that of their vectors, so most vectors are dismissed by it and the choice is
// still the plain algorithm's.
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
	next := rand.New(rand.NewPCG(seed, 0)).IntN(n)
	var chosen []int
	for {
		chosen = append(chosen, next)
		far := t.take(next)
		if err := ctx.Err(); err != nil {
			return nil, CoresetReport{}, err
		}
		if len(chosen) == want || t.near[far] == 0 {
			break
		}
		next = far
	}
	r := CoresetReport{From: n, To: len(chosen)}
	for _, d := range t.near {
		r.Radius = max(r.Radius, float64(d))
		r.Mean += float64(d) / float64(n)
	}
	for _, p := range t.parts {
		r.Distances += p.distances
	}
	r.Seconds = time.Since(start).Seconds()
	return chosen, r, nil
}

// traversal is the state of a farthest-first traversal.
type traversal struct {
	vectors []float32
	dim     int
	near    []float32 // distance of each vector to the nearest chosen one
	sketch  []float32 // n×sketchDim; nil where dim is hardly larger
	error   float32   // by how much rounding may enlarge sketches' distances
	parts   []part
}

// part is a range of rows that one goroutine looks at.
type part struct {
	from, to  int
	farthest  int
	distances int64
	_         [4]int64 // a cache line each
}

const (
	sketchDim    = 32
	sketchSample = 2048
)

func newTraversal(ctx context.Context, vectors []float32, dim int, seed uint64) *traversal {
	n := len(vectors) / dim
	t := &traversal{vectors: vectors, dim: dim, near: make([]float32, n)}
	for i := range t.near {
		t.near[i] = math.MaxFloat32
	}
	// At least 2,000 rows for a goroutine to be worth starting.
	count := max(1, min(runtime.GOMAXPROCS(0), n/2000))
	for i := range count {
		t.parts = append(t.parts, part{from: i * n / count, to: (i + 1) * n / count})
	}
	if dim >= 2*sketchDim {
		t.makeSketch(ctx, seed)
	}
	return t
}

func (t *traversal) at(i int) []float32 { return t.vectors[i*t.dim : (i+1)*t.dim] }

// take adds a row to the chosen ones and returns the row that is now farthest,
// the first of equals.
func (t *traversal) take(row int) int {
	if len(t.parts) == 1 {
		t.takePart(row, &t.parts[0])
		return t.parts[0].farthest
	}
	var wg sync.WaitGroup
	for i := range t.parts {
		wg.Go(func() { t.takePart(row, &t.parts[i]) })
	}
	wg.Wait()
	far := t.parts[0].farthest
	for _, p := range t.parts[1:] {
		if t.near[p.farthest] > t.near[far] {
			far = p.farthest
		}
	}
	return far
}

func (t *traversal) takePart(row int, p *part) {
	v := t.at(row)
	far, distances := p.from, int64(0)
	if t.sketch == nil {
		for i := p.from; i < p.to; i++ {
			t.near[i] = min(t.near[i], vek32.Distance(v, t.at(i)))
			if t.near[i] > t.near[far] {
				far = i
			}
		}
		p.farthest, p.distances = far, p.distances+int64(p.to-p.from)
		return
	}
	s := t.sketch[row*sketchDim : (row+1)*sketchDim]
	for i := p.from; i < p.to; i++ {
		near := t.near[i]
		if vek32.Distance(s, t.sketch[i*sketchDim:(i+1)*sketchDim]) < near+near*1e-4+t.error {
			distances++
			if d := vek32.Distance(v, t.at(i)); d < near {
				near = d
				t.near[i] = d
			}
		}
		if near > t.near[far] {
			far = i
		}
	}
	p.farthest, p.distances = far, p.distances+distances
}

// makeSketch projects all rows on their main axes.
func (t *traversal) makeSketch(ctx context.Context, seed uint64) {
	const axes = sketchDim - 1
	mean, q := mainAxes(ctx, t.vectors, t.dim, axes, seed)
	t.sketch = make([]float32, len(t.near)*sketchDim)
	longest := make([]float64, len(t.parts))
	parallel(ctx, len(t.parts), func() func(int) {
		x := make([]float64, t.dim)
		return func(p int) {
			for i := t.parts[p].from; i < t.parts[p].to; i++ {
				all := project(t.sketch[i*sketchDim:(i+1)*sketchDim], t.at(i), mean, q, x)
				longest[p] = max(longest[p], all)
			}
		}
	})
	// Rounding to float32 moves a sketch by 2⁻²⁴ of its length or less, the
	// float64 sums before by less than the square root of 2⁻⁴⁰ of it.
	t.error = float32(4 * math.Sqrt(slices.Max(longest)) / (1 << 20))
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
