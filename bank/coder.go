package bank

import (
	"cmp"
	"context"
	"fmt"
	"math/rand"

	coder "github.com/coder/hnsw"
)

// coderIndex is github.com/coder/hnsw behind Index, for those who ask for it.
// It is built once from the bank's rows: the library's deletes leave ghosts that
// later panic, adding a key again panics, and its import panics on crafted
// files, so none of these is used and the graph is never written to a file.
// Its recall is low (see nearmiss bench bank), so the recall gate mostly turns
// it down.
type coderIndex struct {
	rows  *rows
	graph *coder.Graph[uint32] // keys are row numbers
}

func buildCoder(ctx context.Context, r *rows, o GraphOptions) (x *coderIndex, err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("coder/hnsw panicked while its graph was built: %v", p)
		}
	}()
	g := coder.NewGraph[uint32]()
	g.M, g.EfSearch = o.M, o.EfSearch
	g.Distance = squaredL2
	g.Rng = rand.New(rand.NewSource(int64(o.Seed))) // its type is math/rand's
	for i := range r.ids {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		g.Add(coder.MakeNode(uint32(i), r.at(uint32(i))))
	}
	return &coderIndex{r, g}, nil
}

func (x *coderIndex) Kind() Kind { return Coder }

// Len needs no lock: the rows never change.
func (x *coderIndex) Len() int { return x.rows.len() }

func (x *coderIndex) Add(id uint64, _ []float32) error {
	return fmt.Errorf("add %d: %w: coder is built once; build an exact or hnsw index", id, ErrUnsupported)
}

func (x *coderIndex) Remove(id uint64) error {
	return fmt.Errorf("remove %d: %w: coder is built once; build an exact or hnsw index", id, ErrUnsupported)
}

func (x *coderIndex) SearchBatch(ctx context.Context, queries []float32, k int) ([][]Neighbour, error) {
	m, err := x.rows.checkQueries(queries, k)
	if err != nil {
		return nil, err
	}
	out, errs := make([][]Neighbour, m), make([]error, m)
	parallel(ctx, m, func() func(int) {
		return func(i int) { out[i], errs[i] = x.search(queries[i*x.rows.dim:][:x.rows.dim:x.rows.dim], k) }
	})
	return out, cmp.Or(append(errs, ctx.Err())...) // one error says what all of them do
}

func (x *coderIndex) search(q []float32, k int) (out []Neighbour, err error) {
	defer func() {
		if p := recover(); p != nil {
			out, err = nil, fmt.Errorf("search: coder/hnsw panicked: %v", p)
		}
	}()
	nodes := x.graph.Search(q, k)
	found := make([]candidate, len(nodes))
	for i, n := range nodes {
		found[i].row = n.Key
	}
	return x.rows.finish(q, found, k), nil
}
