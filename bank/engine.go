package bank

import (
	"context"
	"fmt"
	"math"
	"slices"
)

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

// engineQueries is the number of queries from which on a batch goes to the
// engine.
const engineQueries = 8

// engineExtra is how many candidates more than k are asked of the engine: the
// last one's distance bounds from below what the engine did not return.
const engineExtra = 14

// prepared is a searcher over the first count rows. What was added after them, the
// tail, is compared one by one.
type prepared struct {
	searcher BatchSearcher
	count    int
	longest  float64 // the largest norm of a row
}

// longTail says whether so many rows behind those that an engine has are worth
// preparing it anew.
func longTail(count, now int) bool { return now-count > max(256, count/8) }

// engineBatch answers a batch through the engine. The caller holds rows.mu for
// reading and has checked the queries; 1 ≤ k ≤ len.
func (r *rows) engineBatch(ctx context.Context, queries []float32, k int) ([][]Neighbour, error) {
	p, err := r.prepare()
	if err != nil {
		return nil, fmt.Errorf("prepare the batch engine: %w", err)
	}
	m, ask := len(queries)/r.dim, min(k+engineExtra, p.count)
	found, distances, err := p.searcher.Search(ctx, queries, ask)
	if err != nil {
		return nil, fmt.Errorf("search with the batch engine: %w", err)
	}
	if len(found) != m*ask || len(distances) != m*ask {
		return nil, fmt.Errorf("search with the batch engine: got %d rows and %d distances, want %d×%d",
			len(found), len(distances), m, ask)
	}
	for _, i := range found {
		if i < 0 || i >= int64(p.count) {
			return nil, fmt.Errorf("search with the batch engine: got row %d of %d", i, p.count)
		}
	}
	out := make([][]Neighbour, m)
	parallel(ctx, m, func() func(int) {
		var n nearest
		candidates := make([]candidate, ask)
		return func(i int) {
			q := queries[i*r.dim : (i+1)*r.dim]
			for j := range candidates {
				candidates[j].row = uint32(found[i*ask+j])
			}
			near := r.finish(q, r.withTail(q, candidates, p.count, k, &n), k)
			// ‖q‖² − 2q·v + ‖v‖² in float32: each of its terms, and any
			// partial sum, is at most (‖q‖ + ‖v‖)², and there are about
			// dim+3 roundings of 2⁻²⁴ in each.
			length := math.Sqrt(norm2(q)) + p.longest
			rounding := float64(2*(r.dim+8)) / (1 << 24) * length * length
			last := float64(distances[(i+1)*ask-1])
			if ask < p.count && !(last-rounding > float64(near[k-1].Distance)) {
				near = r.search(q, k, &n)
			}
			out[i] = near
		}
	})
	return out, ctx.Err()
}

// prepare hands the rows to the engine unless it has them. The caller holds
// rows.mu for reading.
func (r *rows) prepare() (*prepared, error) {
	r.preparing.Lock()
	defer r.preparing.Unlock()
	if r.prepared != nil {
		return r.prepared, nil
	}
	s, err := r.engine.Prepare(r.data, r.dim)
	if err != nil {
		return nil, err
	}
	p := &prepared{searcher: s, count: r.len()}
	for i := range uint32(r.len()) {
		p.longest = max(p.longest, norm2(r.at(i)))
	}
	p.longest = math.Sqrt(p.longest)
	r.prepared = p
	return p, nil
}

// withTail adds the nearest of the rows from count on to candidates among those
// before.
func (r *rows) withTail(q []float32, candidates []candidate, count, k int, n *nearest) []candidate {
	if count == r.len() {
		return candidates
	}
	tail := r.len() - count
	n.reset(min(k+slack, tail), r.ids)
	r.scanBlock(q, n, count, r.len())
	if found := len(n.kept); found < tail && n.kept[found-1].distance <= reach(n.kept[k-1].distance, r.dim) {
		far := reach(n.kept[k-1].distance, r.dim) // near ties: every row that might be among them, as in settle
		out := slices.Clone(candidates)
		for i := count; i < r.len(); i++ {
			if d := squaredL2(q, r.at(uint32(i))); d <= far {
				out = append(out, candidate{d, uint32(i)})
			}
		}
		return out
	}
	return append(slices.Clone(candidates), n.kept...)
}

// dropShort takes the rows back from the engine where those that it has are too
// few of the now that there will be. Rows are only ever added behind those that
// it has: these stay as they are. The caller holds rows.mu for writing.
func (r *rows) dropShort(now int) {
	for x := range r.sketches {
		if x.made != nil && longTail(x.made.count, now) {
			r.forget(x)
		}
	}
	if r.prepared != nil && longTail(r.prepared.count, now) {
		r.dropSearcher()
	}
}

// forget closes what an engine holds for a sketch. The caller holds rows.mu for
// writing.
func (r *rows) forget(x *sketched) {
	if err := x.drop(); err != nil {
		r.warn(fmt.Errorf("close the batch engine's sketches: %w", err))
	}
	delete(r.sketches, x)
}

// dropPrepared takes the rows back from the engine. The caller holds rows.mu
// for writing, so no search is using the searcher.
func (r *rows) dropPrepared() {
	for x := range r.sketches {
		r.forget(x)
	}
	if r.prepared != nil {
		r.dropSearcher()
	}
}

func (r *rows) dropSearcher() {
	if err := r.prepared.searcher.Close(); err != nil {
		r.warn(fmt.Errorf("close the batch engine's searcher: %w", err))
	}
	r.prepared = nil
}
