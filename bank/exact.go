package bank

import (
	"context"
	"fmt"
	"math"
	"runtime"
	"sync"
	"sync/atomic"
)

// Index finds the nearest entries of a bank. All kinds may be searched from
// many goroutines at once, also while entries are added or removed.
type Index interface {
	// Kind names the index.
	Kind() Kind
	// Dim is the length of its vectors.
	Dim() int
	// Len is the number of entries.
	Len() int
	// Add puts a vector in. It fails with ErrDim, ErrNotFinite, ErrExists or,
	// for coder, ErrUnsupported.
	Add(id uint64, v []float32) error
	// Remove takes an entry out: ErrNotFound, or for coder ErrUnsupported.
	Remove(id uint64) error
	// Search returns the min(k, Len) nearest entries, nearest first, ties in
	// the order of their ids.
	Search(q []float32, k int) ([]Neighbour, error)
	// SearchBatch does the same for m queries, row-major m×Dim, on all cores.
	SearchBatch(ctx context.Context, queries []float32, k int) ([][]Neighbour, error)
}

// BatchEngine makes searchers that answer many queries at once, for example by
// one matrix product on ONNX Runtime. The bank trusts its choice of rows up to
// rounding, computes the distances of the chosen rows again, and falls back to
// its own loops where rounding could have changed the choice.
type BatchEngine interface {
	// Prepare takes n rows, row-major n×dim. They do not change, and must not
	// be changed, until the searcher is closed.
	Prepare(rows []float32, dim int) (BatchSearcher, error)
}

// BatchSearcher answers batches over the rows it was prepared with. It must be
// safe for concurrent use.
type BatchSearcher interface {
	// Search takes m queries, row-major m×dim, and returns for each the k rows
	// (0 ≤ k ≤ n) of smallest squared Euclidean distance, nearest first: row
	// numbers and approximate squared distances, both row-major m×k. Its
	// distances may carry the rounding of ‖q‖² − 2q·v + ‖v‖² in float32.
	Search(ctx context.Context, queries []float32, k int) (rows []int64, distances []float32, err error)
	Close() error
}

// exact compares a query with every row.
type exact struct {
	rows *rows
}

// NewExact makes an empty exact index over vectors of length dim.
func NewExact(dim int) (Index, error) {
	if dim < 1 || dim > maxDim {
		return nil, fmt.Errorf("exact index: dimension %d is not in 1..%d", dim, maxDim)
	}
	return &exact{rows: newRows(dim)}, nil
}

func (x *exact) Kind() Kind { return Exact }
func (x *exact) Dim() int   { return x.rows.dim }

func (x *exact) Len() int {
	x.rows.mu.RLock()
	defer x.rows.mu.RUnlock()
	return x.rows.len()
}

func (x *exact) Add(id uint64, v []float32) error {
	x.rows.mu.Lock()
	defer x.rows.mu.Unlock()
	if err := x.rows.checkNew(id, v); err != nil {
		return err
	}
	x.rows.add(id, v)
	return nil
}

func (x *exact) Remove(id uint64) error {
	x.rows.mu.Lock()
	defer x.rows.mu.Unlock()
	i, ok := x.rows.row[id]
	if !ok {
		return fmt.Errorf("remove %d: %w", id, ErrNotFound)
	}
	x.rows.remove(i)
	return nil
}

func (x *exact) Search(q []float32, k int) ([]Neighbour, error) {
	x.rows.mu.RLock()
	defer x.rows.mu.RUnlock()
	if err := x.rows.checkQuery(q, k); err != nil {
		return nil, err
	}
	var n nearest
	return x.rows.search(q, k, &n), nil
}

func (x *exact) SearchBatch(ctx context.Context, queries []float32, k int) ([][]Neighbour, error) {
	return x.rows.searchBatch(ctx, queries, k)
}

// search is the exact search. The caller holds the lock and checked q and k.
func (r *rows) search(q []float32, k int, n *nearest) []Neighbour {
	k = min(k, r.len())
	if k == 0 {
		return []Neighbour{}
	}
	r.scan(q, k+slack, n)
	return r.settle(q, k, n.items)
}

// settle picks the k nearest from at least min(k+slack, len) candidates of a
// scan. Where rounding leaves open which belong among them, it looks at every
// row that might, so the result is the same with any kernel on any machine.
func (r *rows) settle(q []float32, k int, found []candidate) []Neighbour {
	far := reach(found[k-1].distance, r.dim)
	if last := len(found) - 1; last+1 < r.len() && found[last].distance <= far {
		found = found[:0:0]
		for i := range uint32(r.len()) {
			if d := squaredL2(q, r.at(i)); d <= far {
				found = append(found, candidate{d, i})
			}
		}
	}
	return r.finish(q, found, k)
}

// scan offers every row to n, which keeps the min(k, len) nearest.
func (r *rows) scan(q []float32, k int, n *nearest) {
	n.reset(k, r.ids)
	worst := float32(math.Inf(1))
	for i := range r.ids {
		if d := squaredL2(q, r.at(uint32(i))); d <= worst {
			n.offer(uint32(i), d)
			if len(n.items) == n.k {
				worst = n.items[n.k-1].distance
			}
		}
	}
}

// searchBatch is the exact batch search.
func (r *rows) searchBatch(ctx context.Context, queries []float32, k int) ([][]Neighbour, error) {
	r.mu.RLock()
	defer r.mu.RUnlock()
	return eachQuery(ctx, queries, r.dim, func(q []float32, n *nearest) ([]Neighbour, error) {
		if err := r.checkQuery(q, k); err != nil {
			return nil, err
		}
		return r.search(q, k, n), nil
	})
}

// eachQuery answers m queries on all cores; the error is that of the first
// query that failed.
func eachQuery(ctx context.Context, queries []float32, dim int,
	search func(q []float32, n *nearest) ([]Neighbour, error),
) ([][]Neighbour, error) {
	if len(queries)%dim != 0 {
		return nil, fmt.Errorf("%w: %d numbers are not whole queries of dimension %d", ErrDim, len(queries), dim)
	}
	m := len(queries) / dim
	out := make([][]Neighbour, m)
	errs := make([]error, m)
	parallel(ctx, m, func() func(int) {
		var n nearest
		return func(i int) { out[i], errs[i] = search(queries[i*dim:(i+1)*dim:(i+1)*dim], &n) }
	})
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	for i, err := range errs {
		if err != nil {
			return nil, fmt.Errorf("query %d of %d: %w", i, m, err)
		}
	}
	return out, nil
}

// parallel calls do(0..n−1) on all cores until ctx ends; worker makes one
// goroutine's do with its own scratch memory.
func parallel(ctx context.Context, n int, worker func() func(i int)) {
	workers := min(runtime.GOMAXPROCS(0), n)
	if workers <= 1 {
		do := worker()
		for i := range n {
			if ctx.Err() != nil {
				return
			}
			do(i)
		}
		return
	}
	var next atomic.Int64
	var wg sync.WaitGroup
	for range workers {
		wg.Go(func() {
			do := worker()
			for ctx.Err() == nil {
				i := int(next.Add(1) - 1)
				if i >= n {
					return
				}
				do(i)
			}
		})
	}
	wg.Wait()
}
