package bank

import (
	"cmp"
	"fmt"
	"math"
	"slices"
	"sync"
)

// Neighbour is one entry of the bank near a query.
type Neighbour struct {
	// ID is the entry's id, as it was added.
	ID uint64 `json:"id"`
	// Distance is the squared Euclidean distance, ≥ 0.
	Distance float32 `json:"distance"`
}

func compareNeighbours(a, b Neighbour) int {
	return cmp.Or(cmp.Compare(a.Distance, b.Distance), cmp.Compare(a.ID, b.ID))
}

// rows is the storage that every index of one bank shares: a dense row-major
// matrix, the id of each row, and the lock that guards both and whatever graph
// lies over them. Row numbers are stable except that a removal moves the last
// row into the hole.
type rows struct {
	mu   sync.RWMutex
	dim  int
	data []float32 // len(ids) × dim
	ids  []uint64
	row  map[uint64]uint32 // id → row number; may be nil while inFile
	// inFile: data and ids are a file's and cannot be written to.
	inFile bool
	closed bool // there was a file, and it was closed

	engine    BatchEngine // for large batches; nil for none
	preparing sync.Mutex  // guards prepared while mu is held for reading
	prepared  *prepared
	warn      func(error) // of an engine that failed
	// sketches are the indexes for which an engine holds something.
	sketches map[*sketched]struct{}
}

func newRows(dim int) *rows {
	return &rows{dim: dim, row: map[uint64]uint32{}, sketches: map[*sketched]struct{}{}, warn: func(error) {}}
}

func (r *rows) len() int { return len(r.ids) }

func (r *rows) at(i uint32) []float32 {
	o := int(i) * r.dim
	return r.data[o : o+r.dim : o+r.dim]
}

// add appends a checked vector.
func (r *rows) add(id uint64, v []float32) {
	r.dropShort(len(r.ids) + 1)
	r.data = append(r.data, v...)
	r.row[id] = uint32(len(r.ids))
	r.ids = append(r.ids, id)
}

// grow makes room for n more rows, so that a batch is copied once.
func (r *rows) grow(n int) {
	r.data = slices.Grow(r.data, n*r.dim)
	r.ids = slices.Grow(r.ids, n)
}

// remove deletes row i; the last row takes its place.
func (r *rows) remove(i uint32) {
	r.dropPrepared()
	last := uint32(len(r.ids) - 1)
	delete(r.row, r.ids[i])
	if i != last {
		copy(r.at(i), r.at(last))
		r.ids[i] = r.ids[last]
		r.row[r.ids[i]] = i
	}
	r.data = r.data[:int(last)*r.dim]
	r.ids = r.ids[:last]
}

// check looks through rows that come from elsewhere: it says which of them no bank
// has, and makes the map of their ids.
func (r *rows) check() error {
	row := make(map[uint64]uint32, len(r.ids))
	for i, id := range r.ids {
		if err := checkVector(r.at(uint32(i)), r.dim); err != nil {
			return fmt.Errorf("%w: entry %d: %w", ErrCorrupt, id, err)
		}
		if _, ok := row[id]; ok {
			return corrupt("id %d appears twice", id)
		}
		row[id] = uint32(i)
	}
	r.row = row
	return nil
}

// changeable says why entries can be neither added nor removed.
func (r *rows) changeable() error {
	if r.closed {
		return ErrClosed
	}
	if r.inFile {
		return fmt.Errorf("%w: it is in a file; change the bank", ErrUnsupported)
	}
	return nil
}

// checkNew says why a vector cannot be added.
func (r *rows) checkNew(id uint64, v []float32) error {
	if err := r.changeable(); err != nil {
		return fmt.Errorf("add %d: %w", id, err)
	}
	if err := checkVector(v, r.dim); err != nil {
		return fmt.Errorf("add %d: %w", id, err)
	}
	if _, ok := r.row[id]; ok {
		return fmt.Errorf("add %d: %w", id, ErrExists)
	}
	return nil
}

// find gives the row of an entry that is to be removed.
func (r *rows) find(id uint64) (uint32, error) {
	if err := r.changeable(); err != nil {
		return 0, fmt.Errorf("remove %d: %w", id, err)
	}
	i, ok := r.row[id]
	if !ok {
		return 0, fmt.Errorf("remove %d: %w", id, ErrNotFound)
	}
	return i, nil
}

// checkQueries counts the queries of a search, row-major m×dim, or says why they
// cannot be answered.
func (r *rows) checkQueries(queries []float32, k int) (m int, err error) {
	switch {
	case r.closed:
		return 0, fmt.Errorf("search: %w", ErrClosed)
	case k < 1:
		return 0, fmt.Errorf("search: k is %d, must be at least 1", k)
	case len(queries)%r.dim != 0:
		return 0, fmt.Errorf("search: %w: %d numbers are not whole queries of dimension %d", ErrDim, len(queries), r.dim)
	}
	m = len(queries) / r.dim
	for i := range m {
		if err := checkVector(queries[i*r.dim:(i+1)*r.dim], r.dim); err != nil {
			return 0, fmt.Errorf("query %d of %d: search: %w", i, m, err)
		}
	}
	return m, nil
}

// finish turns candidate row numbers into at most k neighbours with distances
// computed again, nearest first, ties by id.
func (r *rows) finish(q []float32, candidates []candidate, k int) []Neighbour {
	out := make([]Neighbour, len(candidates))
	for i, c := range candidates {
		out[i] = Neighbour{ID: r.ids[c.row], Distance: squaredL2Exact(q, r.at(c.row))}
	}
	slices.SortFunc(out, compareNeighbours)
	if len(out) > k {
		out = out[:k:k]
	}
	return out
}

// slack is how many candidates more than k a search keeps, because the float32
// kernel's rounding may swap near ties.
const slack = 4

// reach is how large a float32 distance may have come out for a row that truly
// belongs among the nearest, when the last of these came out as d. Squares are
// summed, so the error is relative: at most dim+3 roundings of 2⁻²⁴ on either
// side, whatever the order of the sum; the constant covers underflow.
func reach(d float32, dim int) float32 {
	return d + d*float32(4*(dim+16))/(1<<24) + 1e-35
}

// candidate is a row and its float32 squared distance to the query at hand.
type candidate struct {
	distance float32
	row      uint32
}

// nearest keeps the k nearest candidates seen so far, sorted, ties by id. k is
// small (2 in nearly all use), so insertion beats a heap.
type nearest struct {
	k    int
	ids  []uint64
	kept []candidate
}

func (n *nearest) reset(k int, ids []uint64) {
	k = min(k, len(ids))
	n.k, n.ids = k, ids
	if cap(n.kept) < k+1 {
		n.kept = make([]candidate, 0, k+1)
	}
	n.kept = n.kept[:0]
}

// worst is the distance above which an offer is in vain.
func (n *nearest) worst() float32 {
	if len(n.kept) < n.k {
		return math.MaxFloat32
	}
	return n.kept[n.k-1].distance
}

// offer considers one row.
func (n *nearest) offer(row uint32, d float32) {
	if len(n.kept) == n.k && d > n.kept[n.k-1].distance {
		return
	}
	i := len(n.kept)
	for i > 0 {
		p := n.kept[i-1]
		if p.distance < d || (p.distance == d && n.ids[p.row] < n.ids[row]) {
			break
		}
		i--
	}
	if i == n.k {
		return
	}
	n.kept = slices.Insert(n.kept, i, candidate{d, row})
	if len(n.kept) > n.k {
		n.kept = n.kept[:n.k]
	}
}
