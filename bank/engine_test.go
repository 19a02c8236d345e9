package bank

import (
	"context"
	"errors"
	"slices"
	"sync/atomic"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/rs/zerolog"
)

// productEngine computes ‖q‖² − 2q·v + ‖v‖² naively in float32, as a matrix
// product would.
type productEngine struct {
	fail             error
	prepared, closed atomic.Int32
	searched         atomic.Int32
}

type productSearcher struct {
	e    *productEngine
	rows []float32
	dim  int
}

func (e *productEngine) Prepare(rows []float32, dim int) (BatchSearcher, error) {
	e.prepared.Add(1)
	return &productSearcher{e, rows, dim}, nil
}

func (s *productSearcher) Close() error {
	s.e.closed.Add(1)
	return nil
}

func dot32(a, b []float32) (s float32) {
	for i := range a {
		s += a[i] * b[i]
	}
	return s
}

func (s *productSearcher) Search(_ context.Context, queries []float32, k int) ([]int64, []float32, error) {
	s.e.searched.Add(1)
	if s.e.fail != nil {
		return nil, nil, s.e.fail
	}
	var rows []int64
	var distances []float32
	for ; len(queries) > 0; queries = queries[s.dim:] {
		q := queries[:s.dim]
		var all []candidate
		for i := range len(s.rows) / s.dim {
			v := s.rows[i*s.dim : (i+1)*s.dim]
			all = append(all, candidate{dot32(q, q) - 2*dot32(q, v) + dot32(v, v), uint32(i)})
		}
		sortCandidates(all)
		for _, c := range all[:k] {
			rows, distances = append(rows, int64(c.row)), append(distances, c.distance)
		}
	}
	return rows, distances, nil
}

func TestBatchEngine(t *testing.T) {
	ctx := context.Background()
	const dim, n = 12, 300
	near, queries := clustered(1, n, dim), clustered(2, 20, dim)
	// Far from the origin the product loses all digits of the distances.
	far, farQueries := slices.Clone(near), slices.Clone(queries)
	for i := range far {
		far[i] += 5e3
	}
	for i := range farQueries {
		farQueries[i] += 5e3
	}
	for name, c := range map[string]struct{ data, queries []float32 }{
		"near the origin": {near, queries}, "far from the origin": {far, farQueries}, "tiny bank": {near[:3*dim], queries},
	} {
		t.Run(name, func(t *testing.T) {
			e := &productEngine{}
			with := newFilled(t, Options{Dim: dim, Batch: e}, c.data)
			without := newFilled(t, Options{Dim: dim}, c.data)
			check := func() {
				t.Helper()
				got, err := with.ScoreBatch(ctx, c.queries)
				if err != nil {
					t.Fatal(err)
				}
				want, err := without.ScoreBatch(ctx, c.queries)
				if err != nil {
					t.Fatal(err)
				}
				if d := cmp.Diff(want, got); d != "" {
					t.Error(d)
				}
			}
			check()
			check()
			if e.prepared.Load() != 1 || e.searched.Load() != 2 {
				t.Errorf("prepared %d times, searched %d times", e.prepared.Load(), e.searched.Load())
			}
			for _, b := range []*Bank{with, without} {
				if err := b.Add(9999, c.queries[:dim]); err != nil {
					t.Fatal(err)
				}
				if err := b.Remove(0); err != nil {
					t.Fatal(err)
				}
			}
			check()
			if err := with.Close(); err != nil || e.prepared.Load() != 2 || e.closed.Load() != 2 {
				t.Errorf("prepared %d, closed %d: %v", e.prepared.Load(), e.closed.Load(), err)
			}
		})
	}
	t.Run("what is added later", func(t *testing.T) {
		e := &productEngine{}
		with, without := newFilled(t, Options{Dim: dim, Batch: e}, near), newFilled(t, Options{Dim: dim}, near)
		more := slices.Concat(clustered(3, 300, dim), near[:20*dim], near[:20*dim]) // copies, too
		for i := range len(more) / dim {
			for _, b := range []*Bank{with, without} {
				if err := b.Add(uint64(1000+i), more[i*dim:(i+1)*dim]); err != nil {
					t.Fatal(err)
				}
			}
			if i%17 > 0 {
				continue
			}
			for _, q := range [][]float32{queries, near[:10*dim]} {
				got, err := with.ScoreBatch(ctx, q)
				if err != nil {
					t.Fatal(err)
				}
				want, err := without.ScoreBatch(ctx, q)
				if err != nil {
					t.Fatal(err)
				}
				if d := cmp.Diff(want, got); d != "" {
					t.Fatalf("after %d additions: %s", i+1, d)
				}
			}
		}
		if n := e.prepared.Load(); n != 2 {
			t.Errorf("prepared %d times for 340 additions to 300 entries", n)
		}
		if err := with.Close(); err != nil || e.closed.Load() != 2 {
			t.Errorf("closed %d of 2, %v", e.closed.Load(), err)
		}
	})
	t.Run("failing", func(t *testing.T) {
		e := &productEngine{fail: errors.New("out of device memory")}
		var warned atomic.Int32
		log := zerolog.New(nil).Hook(zerolog.HookFunc(func(*zerolog.Event, zerolog.Level, string) { warned.Add(1) }))
		b := newFilled(t, Options{Dim: dim, Batch: e, Log: log}, near)
		if got, err := b.ScoreBatch(ctx, queries); err != nil || len(got) != 20 || warned.Load() != 1 {
			t.Errorf("%d results, %d warnings, %v", len(got), warned.Load(), err)
		}
	})
}
