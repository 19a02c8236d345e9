package inference

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/nearmiss/nearmiss/bank"
	"github.com/nearmiss/nearmiss/inference/onnx"
	"github.com/nearmiss/nearmiss/inference/ort"
)

// BatchEngine answers many queries to a bank at once by exact search on ONNX
// Runtime: ‖q−v‖² = ‖q‖² − 2q·v + ‖v‖² as one matrix product, then TopK. It
// implements bank.BatchEngine.
type BatchEngine struct {
	o ort.Options

	closed atomic.Bool
	mu     sync.Mutex
	shared map[graphKey]*ort.Session // on the CPU, where the rows are an input
}

// graphKey names one search graph.
type graphKey struct{ dim, k int }

var _ bank.BlockEngine = (*BatchEngine)(nil)

// NewBatchEngine returns an engine for a device. On the CPU it reads the rows
// where the bank keeps them; elsewhere it holds a copy on the device.
func NewBatchEngine(o ort.Options) (*BatchEngine, error) {
	if err := ort.Load(); err != nil {
		return nil, err
	}
	o.Device.Kind = cmp.Or(o.Device.Kind, "cpu")
	if o.Device.Kind == "cpu" {
		o.IntraOpThreads = 0
	}
	o.NoSpinning = true // searches are short and come now and then
	return &BatchEngine{o: o, shared: map[graphKey]*ort.Session{}}, nil
}

// Close gives back the engine's sessions. Searchers must be closed before.
func (e *BatchEngine) Close() error {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.closed.Store(true)
	var errs []error
	for _, s := range e.shared {
		errs = append(errs, s.Close())
	}
	clear(e.shared)
	return errors.Join(errs...)
}

// Prepare takes n rows, row-major n×dim, for searching.
func (e *BatchEngine) Prepare(rows []float32, dim int) (bank.BatchSearcher, error) {
	if dim < 1 || len(rows)%dim != 0 {
		return nil, fmt.Errorf("prepare batch search: %d numbers are no rows of %d", len(rows), dim)
	}
	n := len(rows) / dim
	s := &batchSearcher{engine: e, rows: rows, dim: dim, n: n, norms: make([]float32, n), own: map[graphKey]*ort.Session{}}
	for i := range n {
		s.norms[i] = float32(norm2(rows[i*dim : (i+1)*dim]))
	}
	return s, nil
}

func norm2(v []float32) float64 {
	var sum float64
	for _, x := range v {
		sum += float64(x) * float64(x)
	}
	return sum
}

// searchGraph has the inputs queries [m, dim] and, unless rows are given,
// rows [n, dim] and norms [n]; the outputs are the k smallest values of
// ‖v‖² − 2q·v and their rows, [m, k].
func searchGraph(dim, k int, rows, norms []float32) ([]byte, error) {
	g := onnx.New("bank_search")
	const m = 3 // stand-ins: the dimensions are left open
	n := k + 5
	q := g.Input("queries", onnx.Float, m, dim)
	q.SetDimName(0, "m")
	var v, c *onnx.Value
	if rows == nil {
		v, c = g.Input("rows", onnx.Float, n, dim), g.Input("norms", onnx.Float, n)
		v.SetDimName(0, "n")
		c.SetDimName(0, "n")
	} else {
		v = g.Initializer(onnx.FromFloat32("rows", rows, len(norms), dim))
		c = g.Initializer(onnx.FromFloat32("norms", norms, len(norms)))
	}
	d := g.Op("Gemm", onnx.Attrs{"alpha": float32(-2), "transB": 1}, q, v, c)
	count := g.Initializer(onnx.FromInt64("k", []int64{int64(k)}, 1))
	top := g.OpN("TopK", 2, onnx.Attrs{"axis": 1, "largest": 0, "sorted": 1}, d, count)
	for i, name := range []string{"distances", "indices"} {
		g.Output(name, top[i])
		top[i].SetDimName(0, "m")
	}
	if err := g.Err(); err != nil {
		return nil, err
	}
	return g.Bytes()
}

// batchSearcher answers over the rows it was prepared with.
type batchSearcher struct {
	engine *BatchEngine
	rows   []float32
	norms  []float32
	dim, n int

	mu  sync.Mutex
	own map[graphKey]*ort.Session // off the CPU: the rows are in the session
}

// maxProduct bounds the matrix of distances that one run holds, in numbers.
const maxProduct = 16 << 20

// Search implements bank.BatchSearcher.
func (s *batchSearcher) Search(ctx context.Context, queries []float32, k int) ([]int64, []float32, error) {
	m := len(queries) / s.dim
	if m*s.dim != len(queries) {
		return nil, nil, fmt.Errorf("batch search: %d numbers are no queries of %d", len(queries), s.dim)
	}
	if k < 0 || k > s.n {
		return nil, nil, fmt.Errorf("batch search: %d neighbours among %d rows", k, s.n)
	}
	if k == 0 || m == 0 {
		return nil, nil, ctx.Err()
	}
	session, err := s.session(k)
	if err != nil {
		return nil, nil, fmt.Errorf("batch search: %w", err)
	}
	rows := make([]int64, m*k)
	distances := make([]float32, m*k)
	step := min(m, max(1, maxProduct/s.n))
	for from := 0; from < m; from += step {
		to := min(from+step, m)
		if err := s.search(ctx, session, queries[from*s.dim:to*s.dim], k, rows[from*k:to*k], distances[from*k:to*k]); err != nil {
			return nil, nil, fmt.Errorf("batch search: %w", err)
		}
	}
	for i := range m {
		q := float32(norm2(queries[i*s.dim : (i+1)*s.dim]))
		for j := range distances[i*k : (i+1)*k] {
			d := &distances[i*k+j]
			*d = float32(math.Max(0, float64(*d+q)))
		}
	}
	return rows, distances, nil
}

func (s *batchSearcher) search(ctx context.Context, session *ort.Session, queries []float32, k int, rows []int64, distances []float32) error {
	m := len(queries) / s.dim
	var tensors []*ort.Tensor
	defer func() { ort.CloseAll(tensors...) }()
	add := func(t *ort.Tensor, err error) error {
		tensors = append(tensors, t)
		return err
	}
	errs := []error{add(ort.NewTensor([]int{m, s.dim}, queries))}
	if s.engine.o.Device.Kind == "cpu" {
		errs = append(errs, add(ort.NewTensor([]int{s.n, s.dim}, s.rows)), add(ort.NewTensor([]int{s.n}, s.norms)))
	}
	inputs := len(tensors)
	errs = append(errs, add(ort.NewTensor([]int{m, k}, distances)), add(ort.NewTensor([]int{m, k}, rows)))
	if err := errors.Join(errs...); err != nil {
		return err
	}
	return session.RunInto(ctx, tensors[:inputs], slices.Clone(tensors[inputs:]))
}

// session returns the graph for k neighbours.
func (s *batchSearcher) session(k int) (*ort.Session, error) {
	key := graphKey{s.dim, k}
	mu, sessions := &s.mu, s.own
	var rows, norms []float32
	if s.engine.o.Device.Kind == "cpu" {
		mu, sessions = &s.engine.mu, s.engine.shared
	} else {
		rows, norms = s.rows, s.norms
	}
	mu.Lock()
	defer mu.Unlock()
	if session, ok := sessions[key]; ok {
		return session, nil
	}
	if s.engine.closed.Load() {
		return nil, ErrClosed
	}
	model, err := searchGraph(s.dim, k, rows, norms)
	if err != nil {
		return nil, err
	}
	session, err := ort.OpenBytes(model, s.engine.o)
	if err != nil {
		return nil, err
	}
	sessions[key] = session
	return session, nil
}

// Close gives back what the searcher holds on a device.
func (s *batchSearcher) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	var errs []error
	for _, session := range s.own {
		errs = append(errs, session.Close())
	}
	clear(s.own)
	return errors.Join(errs...)
}

// PrepareBlocks implements bank.BlockEngine. The rows become part of a session,
// which ONNX Runtime lays out once for its matrix product.
func (e *BatchEngine) PrepareBlocks(rows []float32, dim, block int) (bank.BlockSearcher, error) {
	if dim < 1 || block < 1 || len(rows) == 0 || len(rows)%(dim*block) != 0 {
		return nil, fmt.Errorf("prepare block search: %d numbers are no blocks of %d rows of %d", len(rows), block, dim)
	}
	n := len(rows) / dim
	across := make([]float32, len(rows))
	for i := range n {
		for j, v := range rows[i*dim : (i+1)*dim] {
			across[j*n+i] = v
		}
	}
	g := onnx.New("bank_blocks")
	q := g.Input("queries", onnx.Float, 3, dim)
	q.SetDimName(0, "m")
	x := g.MatMul(q, g.Initializer(onnx.FromFloat32("rows", across, dim, n)))
	x = g.Reduce("ReduceMax", g.Reshape(x, -1, n/block, block), false, 2)
	g.Output("best", x)
	x.SetDimName(0, "m")
	model, err := g.Bytes()
	if err == nil {
		err = g.Err()
	}
	if err != nil {
		return nil, fmt.Errorf("prepare block search: %w", err)
	}
	session, err := ort.OpenBytes(model, e.o)
	if err != nil {
		return nil, fmt.Errorf("prepare block search: %w", err)
	}
	return &blockSearcher{session: session, dim: dim, n: n, blocks: n / block}, nil
}

type blockSearcher struct {
	session        *ort.Session
	dim, n, blocks int
}

// mostProducts bounds the products that one run of a block search holds: 4 MiB,
// which the caches help with.
const mostProducts = 1 << 20

// Best implements bank.BlockSearcher.
func (s *blockSearcher) Best(ctx context.Context, queries []float32) ([]float32, error) {
	m := len(queries) / s.dim
	if m*s.dim != len(queries) {
		return nil, fmt.Errorf("block search: %d numbers are no queries of %d", len(queries), s.dim)
	}
	best := make([]float32, m*s.blocks)
	step := max(1, mostProducts/s.n)
	for from := 0; from < m; from += step {
		to := min(from+step, m)
		if err := s.search(ctx, queries[from*s.dim:to*s.dim], best[from*s.blocks:to*s.blocks]); err != nil {
			return nil, fmt.Errorf("block search: %w", err)
		}
	}
	return best, nil
}

func (s *blockSearcher) search(ctx context.Context, queries, best []float32) error {
	m := len(queries) / s.dim
	in, err := ort.NewTensor([]int{m, s.dim}, queries)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := ort.NewTensor([]int{m, s.blocks}, best)
	if err != nil {
		return err
	}
	defer out.Close()
	return s.session.RunInto(ctx, []*ort.Tensor{in}, []*ort.Tensor{out})
}

// Close implements bank.BlockSearcher.
func (s *blockSearcher) Close() error { return s.session.Close() }
