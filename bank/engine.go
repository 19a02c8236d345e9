package bank

import (
	"context"
	"fmt"
	"math"
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

// prepared is a searcher over the rows as they are.
type prepared struct {
	searcher BatchSearcher
	longest  float64 // the largest norm of a row
}

// engineBatch answers a batch through the engine. The caller holds rows.mu for
// reading and has checked the queries; 1 ≤ k ≤ len.
func (r *rows) engineBatch(ctx context.Context, queries []float32, k int) ([][]Neighbour, error) {
	p, err := r.prepare()
	if err != nil {
		return nil, fmt.Errorf("prepare the batch engine: %w", err)
	}
	m, ask := len(queries)/r.dim, min(k+engineExtra, r.len())
	found, distances, err := p.searcher.Search(ctx, queries, ask)
	if err != nil {
		return nil, fmt.Errorf("search with the batch engine: %w", err)
	}
	if len(found) != m*ask || len(distances) != m*ask {
		return nil, fmt.Errorf("search with the batch engine: got %d rows and %d distances, want %d×%d",
			len(found), len(distances), m, ask)
	}
	for _, i := range found {
		if i < 0 || i >= int64(r.len()) {
			return nil, fmt.Errorf("search with the batch engine: got row %d of %d", i, r.len())
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
			near := r.finish(q, candidates, k)
			// ‖q‖² − 2q·v + ‖v‖² in float32: each of its terms, and any
			// partial sum, is at most (‖q‖ + ‖v‖)², and there are about
			// dim+3 roundings of 2⁻²⁴ in each.
			length := math.Sqrt(norm2(q)) + p.longest
			rounding := float64(2*(r.dim+8)) / (1 << 24) * length * length
			last := float64(distances[(i+1)*ask-1])
			if ask < r.len() && !(last-rounding > float64(near[k-1].Distance)) {
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
	p := &prepared{searcher: s}
	for i := range uint32(r.len()) {
		p.longest = max(p.longest, norm2(r.at(i)))
	}
	p.longest = math.Sqrt(p.longest)
	r.prepared = p
	return p, nil
}

// dropPrepared takes the rows back from the engine. The caller holds rows.mu
// for writing, so no search is using the searcher.
func (r *rows) dropPrepared() {
	r.changes++
	if r.sketches != nil {
		if err := r.sketches.drop(); err != nil {
			r.warn(fmt.Errorf("close the batch engine's sketches: %w", err))
		}
		r.sketches = nil
	}
	if r.prepared == nil {
		return
	}
	if err := r.prepared.searcher.Close(); err != nil {
		r.warn(fmt.Errorf("close the batch engine's searcher: %w", err))
	}
	r.prepared = nil
}
