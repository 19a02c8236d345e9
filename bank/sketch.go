package bank

import (
	"context"
	"fmt"
	"math"
	"slices"
	"sync"

	"github.com/viterin/vek/vek32"
)

// BlockEngine is a BatchEngine that can also tell which blocks of rows are worth
// a look, by one matrix product of short rows. The Sketch index needs one.
type BlockEngine interface {
	BatchEngine
	// PrepareBlocks takes n rows, row-major n×dim, n a multiple of block. They do
	// not change until the searcher is closed.
	PrepareBlocks(rows []float32, dim, block int) (BlockSearcher, error)
}

// BlockSearcher answers over the rows it was prepared with. It must be safe for
// concurrent use.
type BlockSearcher interface {
	// Best gives, for each of m queries (row-major m×dim), the largest inner product
	// with a row of each block: row-major m×(n/block).
	Best(ctx context.Context, queries []float32) ([]float32, error)
	Close() error
}

// sketched finds the nearest of many queries at once, for banks of patches. Every
// row and query is described by a sketch: coordinates along the rows' main axes
// and the length of what these leave over, from which an engine estimates all
// distances in a third of the time that they take. Only the blocks of rows with
// the least estimates are then compared in full. What is found is exact where the
// nearest row lies in one of these blocks; the recall gate measures how often.
//
// Without an engine, and for single queries, it searches exactly.
type sketched struct {
	*exact
	blocks int // that are searched in full

	making sync.Mutex // guards what follows while rows.mu is held for reading
	axes   *axes      // of the rows as they once were, which is as good; nil: not found yet
	made   *sketch
}

// Numbers of a sketch: axes, the length of the rest, and a constant that carries
// the rows' norms into the inner product.
const (
	blockRows    = 16
	blockAxes    = 62
	fewestBlocks = 8
	mostBlocks   = 32
)

// What the axes leave over of a query and of a row near it has about this cosine:
// measured on patch tokens of ViT-Ti (bank of 20,000, 62 axes, 16 blocks), recall
// 0.997 and 0.999 with 0.5, 0.990 and 0.998 with 0, 0.993 and 0.998 with 1, which
// would make the estimate a lower bound.
const restCosine = 0.5

// looseness is how far the estimate of a block may be above the nearest distance
// found so far for the block to be worth a look.
const looseness = 1.3

// sketch describes the first count rows; those added after them are compared one
// by one.
type sketch struct {
	*axes
	searcher BlockSearcher
	count    int
	dim      int
}

// axes are what sketches are taken along.
type axes struct {
	mean  []float32
	along [][]float32
}

// axesOf says how many axes rows of dim numbers are described by. A sketch of all
// dimensions is the vector itself, turned.
func axesOf(dim int) int { return min(blockAxes, dim) }

// newAxes takes a mean and axes, row-major.
func newAxes(numbers []float32, dim int) *axes {
	a := &axes{mean: numbers[:dim]}
	for i := dim; i < len(numbers); i += dim {
		a.along = append(a.along, numbers[i:i+dim])
	}
	return a
}

func newSketched(r *rows) *sketched { return &sketched{exact: &exact{rows: r}, blocks: fewestBlocks} }

func (x *sketched) Kind() Kind { return Sketch }

// SearchBatch implements Index.
func (x *sketched) SearchBatch(ctx context.Context, queries []float32, k int) ([][]Neighbour, error) {
	r := x.rows
	r.mu.RLock()
	defer r.mu.RUnlock()
	m, err := r.checkQueries(queries, k)
	if err != nil {
		return nil, err
	}
	engine, ok := r.engine.(BlockEngine)
	// Where as many rows are searched as there are, exact search is as fast.
	if !ok || m < engineQueries || min(k, r.len()) < 1 || min(k, r.len()) > blockRows || 2*x.blocks*blockRows >= r.len() {
		return r.searchChecked(ctx, queries, k)
	}
	out, err := x.search(ctx, engine, queries, min(k, r.len()))
	if err == nil || ctx.Err() != nil {
		return out, err
	}
	r.warn(err)
	return r.loopBatch(ctx, queries, k)
}

// search answers through the engine. The caller holds rows.mu for reading.
func (x *sketched) search(ctx context.Context, engine BlockEngine, queries []float32, k int) ([][]Neighbour, error) {
	s, err := x.prepare(ctx, engine)
	if err != nil {
		return nil, fmt.Errorf("sketch the bank: %w", err)
	}
	r := x.rows
	m := len(queries) / r.dim
	sketches, lengths := make([]float32, m*s.dim), make([]float32, m)
	parallel(ctx, m, func() func(int) {
		scratch := make([]float32, r.dim)
		return func(i int) {
			to := sketches[i*s.dim : (i+1)*s.dim]
			lengths[i] = s.describe(to, queries[i*r.dim:(i+1)*r.dim], scratch)
			to[s.dim-2] *= restCosine
			to[s.dim-1] = 1
		}
	})
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	best, err := s.searcher.Best(ctx, sketches)
	if err != nil {
		return nil, fmt.Errorf("search the sketches: %w", err)
	}
	blocks := (s.count + blockRows - 1) / blockRows
	if len(best) != m*blocks {
		return nil, fmt.Errorf("search the sketches: got %d products, want %d×%d", len(best), m, blocks)
	}
	out := make([][]Neighbour, m)
	parallel(ctx, m, func() func(int) {
		var n nearest
		top := make([]candidate, 0, x.blocks+1)
		var squares [blockRows]float32
		return func(i int) {
			top = largest(top[:0], best[i*blocks:(i+1)*blocks], x.blocks)
			q := queries[i*r.dim : (i+1)*r.dim]
			n.reset(k+1, r.ids)
			for _, b := range top {
				// The estimates of the blocks after it are no less.
				if len(n.kept) >= k && lengths[i]-2*b.distance > looseness*n.kept[k-1].distance {
					break
				}
				from := int(b.row) * blockRows
				count := min(blockRows, s.count-from)
				squaredL2Rows(q, r.data[from*r.dim:], countUp[:count], squares[:count])
				for j, d := range squares[:count] {
					if d <= n.worst() {
						n.offer(uint32(from+j), d)
					}
				}
			}
			r.scanBlock(q, &n, s.count, r.len())
			out[i] = r.finish(q, n.kept, k)
		}
	})
	return out, ctx.Err()
}

// largest puts the places of the most largest values into top, largest first.
func largest(top []candidate, values []float32, most int) []candidate {
	const chunk = 64 // that are dismissed together
	least := float32(math.Inf(-1))
	for from := 0; from < len(values); from += chunk {
		some := values[from:min(from+chunk, len(values))]
		if len(top) == most && vek32.Max(some) <= least {
			continue
		}
		for j, v := range some {
			if len(top) == most && v <= least {
				continue
			}
			i := len(top)
			if i < most {
				top = append(top, candidate{})
			} else {
				i--
			}
			for i > 0 && top[i-1].distance < v {
				top[i] = top[i-1]
				i--
			}
			top[i] = candidate{distance: v, row: uint32(from + j)}
			least = top[len(top)-1].distance
		}
	}
	return top
}

// prepare sketches the rows unless that is done. The caller holds rows.mu for
// reading.
func (x *sketched) prepare(ctx context.Context, engine BlockEngine) (*sketch, error) {
	x.making.Lock()
	defer x.making.Unlock()
	r := x.rows
	if x.made != nil {
		return x.made, nil
	}
	x.find(ctx)
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	s := &sketch{axes: x.axes, count: r.len(), dim: axesOf(r.dim) + 2}
	blocks := (r.len() + blockRows - 1) / blockRows
	sketches := make([]float32, blocks*blockRows*s.dim)
	parallel(ctx, blocks*blockRows, func() func(int) {
		scratch := make([]float32, r.dim)
		return func(i int) {
			to := sketches[i*s.dim : (i+1)*s.dim]
			if i >= r.len() {
				to[s.dim-1] = -math.MaxFloat32 / 4 // no row
				return
			}
			// ‖q − v‖² ≈ ‖q‖² + ‖v‖² − 2 (sketch of q)·(sketch of v), of which the part that
			// depends on v is −2 times the product.
			norm := s.describe(to, r.at(uint32(i)), scratch)
			to[s.dim-1] = -norm / 2
		}
	})
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	var err error
	if s.searcher, err = engine.PrepareBlocks(sketches, s.dim, blockRows); err != nil {
		return nil, err
	}
	x.made = s
	r.preparing.Lock()
	defer r.preparing.Unlock()
	r.sketches[x] = struct{}{}
	return s, nil
}

// find finds the axes unless that is done, which takes most of the time of a sketch.
// The caller holds rows.mu for reading, and making.
func (x *sketched) find(ctx context.Context) {
	if x.axes != nil {
		return
	}
	r := x.rows
	mean, q := mainAxes(ctx, r.data, r.dim, axesOf(r.dim), 0)
	numbers := make([]float32, 0, (1+len(q))*r.dim)
	for _, a := range append([][]float64{mean}, q...) {
		for _, v := range a {
			numbers = append(numbers, float32(v))
		}
	}
	if ctx.Err() == nil {
		x.axes = newAxes(numbers, r.dim)
	}
}

// stored is the axes as a file keeps them. Without rows there are none.
func (x *sketched) stored() []float32 {
	x.rows.mu.RLock()
	defer x.rows.mu.RUnlock()
	x.making.Lock()
	defer x.making.Unlock()
	if x.rows.len() == 0 {
		return nil
	}
	x.find(context.Background())
	return append(slices.Clone(x.axes.mean), slices.Concat(x.axes.along...)...)
}

// describe writes the sketch of v but its last number, and returns the squared
// length of v − mean.
func (s *sketch) describe(to, v, scratch []float32) float32 {
	vek32.Sub_Into(scratch, v, s.mean)
	all := vek32.Dot(scratch, scratch)
	rest := all
	for j, a := range s.along {
		y := vek32.Dot(scratch, a)
		to[j] = y
		rest -= y * y
	}
	to[len(s.along)] = float32(math.Sqrt(float64(max(0, rest))))
	return all
}

// drop gives back what the engine holds, and forgets the axes, since the rows are
// about to be others. The caller holds rows.mu for writing.
func (x *sketched) drop() error {
	s := x.made
	x.made, x.axes = nil, nil
	return s.searcher.Close()
}
