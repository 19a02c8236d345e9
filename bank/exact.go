package bank

import (
	"context"
	"runtime"
	"sync"
	"sync/atomic"
)

// Index finds the nearest entries of a bank. All kinds may be searched from
// many goroutines at once, also while entries are added or removed.
type Index interface {
	// Kind names the index.
	Kind() Kind
	// Len is the number of entries.
	Len() int
	// Add puts a vector in. It fails with ErrDim, ErrNotFinite, ErrExists or,
	// for coder, ErrUnsupported.
	Add(id uint64, v []float32) error
	// Remove takes an entry out: ErrNotFound, or for coder ErrUnsupported.
	Remove(id uint64) error
	// SearchBatch returns the min(k, Len) nearest entries of each of m queries,
	// row-major m×Dim, nearest first, ties in the order of their ids. It uses all
	// cores.
	SearchBatch(ctx context.Context, queries []float32, k int) ([][]Neighbour, error)
}

// exact compares a query with every row.
type exact struct {
	rows *rows
}

func (x *exact) Kind() Kind { return Exact }

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
	i, err := x.rows.find(id)
	if err != nil {
		return err
	}
	x.rows.remove(i)
	return nil
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
	n.reset(k+slack, r.ids)
	r.scanBlock(q, n, 0, r.len())
	return r.settle(q, k, n.kept)
}

// settle picks the k nearest from at least min(k+slack, len) candidates of a
// scan. Where rounding leaves open which belong among them, it measures every
// row that might, so the result is the same with any kernel on any machine. Rows
// of a file that was not searched may have no distance: then it finds fewer.
func (r *rows) settle(q []float32, k int, found []candidate) []Neighbour {
	if len(found) < k {
		return r.finish(q, found, k)
	}
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

// scanBlock offers rows from..to−1 to n.
func (r *rows) scanBlock(q []float32, n *nearest, from, to int) {
	worst := n.worst()
	var squares [len(countUp)]float32
	for ; from < to; from += len(countUp) {
		count := min(len(countUp), to-from)
		squaredL2Rows(q, r.data[from*r.dim:], countUp[:count], squares[:count])
		for i, d := range squares[:count] {
			if d <= worst {
				n.offer(uint32(from+i), d)
				worst = n.worst()
			}
		}
	}
}

// countUp is 0, 1, 2, …: a list of rows that lie one after the other.
var countUp = func() (list [64]uint32) {
	for i := range list {
		list[i] = uint32(i)
	}
	return list
}()

// searchBatch is the exact batch search.
func (r *rows) searchBatch(ctx context.Context, queries []float32, k int) ([][]Neighbour, error) {
	r.mu.RLock()
	defer r.mu.RUnlock()
	if _, err := r.checkQueries(queries, k); err != nil {
		return nil, err
	}
	return r.searchChecked(ctx, queries, k)
}

// searchChecked is searchBatch of queries that were checked. The caller holds mu for
// reading.
func (r *rows) searchChecked(ctx context.Context, queries []float32, k int) ([][]Neighbour, error) {
	k = min(k, r.len())
	if r.engine != nil && len(queries) >= engineQueries*r.dim && k > 0 {
		out, err := r.engineBatch(ctx, queries, k)
		if err == nil || ctx.Err() != nil {
			return out, err
		}
		r.warn(err)
	}
	return r.loopBatch(ctx, queries, k)
}

// A group of queries is compared with one block of rows after the other, so
// that a block is read from memory once for the whole group.
const (
	groupQueries = 8
	blockBytes   = 128 << 10
)

// loopBatch is searchBatch on this package's own loops.
func (r *rows) loopBatch(ctx context.Context, queries []float32, k int) ([][]Neighbour, error) {
	m := len(queries) / r.dim
	out := make([][]Neighbour, m)
	if k == 0 {
		for i := range out {
			out[i] = []Neighbour{}
		}
		return out, ctx.Err()
	}
	group := min(max(1, m/runtime.GOMAXPROCS(0)), groupQueries)
	block := max(1, blockBytes/4/r.dim)
	parallel(ctx, (m+group-1)/group, func() func(int) {
		found := make([]nearest, group)
		return func(g int) {
			first, end := g*group, min((g+1)*group, m)
			for i := first; i < end; i++ {
				found[i-first].reset(k+slack, r.ids)
			}
			for from := 0; from < r.len() && ctx.Err() == nil; from += block {
				to := min(from+block, r.len())
				for i := first; i < end; i++ {
					r.scanBlock(queries[i*r.dim:(i+1)*r.dim], &found[i-first], from, to)
				}
			}
			if ctx.Err() != nil {
				return
			}
			for i := first; i < end; i++ {
				out[i] = r.settle(queries[i*r.dim:(i+1)*r.dim], k, found[i-first].kept)
			}
		}
	})
	return out, ctx.Err()
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
