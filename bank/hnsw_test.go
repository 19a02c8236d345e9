package bank

import (
	"context"
	"errors"
	"math"
	"math/rand/v2"
	"path/filepath"
	"runtime"
	"slices"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

// clustered makes n seeded vectors that resemble embeddings: 16 clusters, and a
// spectrum that falls off like 1/i.
func clustered(seed uint64, n, dim int) []float32 {
	r, rc := rand.New(rand.NewPCG(seed, 1)), rand.New(rand.NewPCG(42, 1))
	centres := make([]float64, 16*dim)
	for i := range centres {
		centres[i] = rc.NormFloat64() / math.Sqrt(float64(i%dim+1))
	}
	out := make([]float32, n*dim)
	for i := range n {
		c := centres[r.IntN(16)*dim:]
		for j := range dim {
			out[i*dim+j] = float32(c[j] + r.NormFloat64()/math.Sqrt(float64(j+1)))
		}
	}
	return out
}

func builtHNSW(t testing.TB, data []float32, dim int, o GraphOptions) *hnsw {
	t.Helper()
	r := newRows(dim)
	for i := range len(data) / dim {
		r.add(uint64(i), data[i*dim:(i+1)*dim])
	}
	h, err := newHNSW(r, o)
	if err != nil {
		t.Fatal(err)
	}
	if err := h.build(context.Background()); err != nil {
		t.Fatal(err)
	}
	return h
}

// recallOf compares an index with exact search over the same rows.
func recallOf(t testing.TB, x Index, r *rows, queries []float32, k int) float64 {
	t.Helper()
	want, err := r.searchBatch(context.Background(), queries, k)
	if err != nil {
		t.Fatal(err)
	}
	got, err := x.SearchBatch(context.Background(), queries, k)
	if err != nil {
		t.Fatal(err)
	}
	recall, _ := compare(want, got)
	return recall
}

// checkGraph verifies what the file reader and the searches rely on, and that
// every node can be reached.
func checkGraph(t interface{ Fatalf(string, ...any) }, h *hnsw, reachable bool) {
	if _, err := decodeHNSW(h.rows, h.encode()); err != nil {
		t.Fatalf("%v", err)
	}
	g := &h.graph
	if g.len() != h.rows.len() || len(g.upper) != g.len() || len(g.base) != g.len()*(2*g.m+1) {
		t.Fatalf("graph of %d nodes, %d rows", g.len(), h.rows.len())
	}
	for i := range uint32(g.len()) {
		for l := 0; l <= int(g.layer[i]); l++ {
			links := slices.Clone(g.links(i, l))
			slices.Sort(links)
			if len(slices.Compact(links)) != len(g.links(i, l)) {
				t.Fatalf("node %d links twice to one node on layer %d", i, l)
			}
		}
	}
	if !reachable || g.len() == 0 {
		return
	}
	seen := map[uint32]bool{g.entry: true}
	queue := []uint32{g.entry}
	for len(queue) > 0 {
		n := queue[0]
		queue = queue[1:]
		for _, l := range g.links(n, 0) {
			if !seen[l] {
				seen[l] = true
				queue = append(queue, l)
			}
		}
	}
	if len(seen) != g.len() {
		t.Fatalf("%d of %d nodes can be reached", len(seen), g.len())
	}
}

func TestHNSWRecall(t *testing.T) {
	for name, c := range map[string]struct{ n, dim int }{
		"small and narrow": {500, 16}, "issue size": {2000, 192}, "larger": {4000, 64},
	} {
		t.Run(name, func(t *testing.T) {
			h := builtHNSW(t, clustered(1, c.n, c.dim), c.dim, GraphOptions{EfConstruction: 100})
			checkGraph(t, h, true)
			if r := recallOf(t, h, h.rows, clustered(2, 200, c.dim), 2); r < 0.99 {
				t.Errorf("recall@2 is %.4f", r)
			}
		})
	}
}

func TestHNSWFindsDuplicates(t *testing.T) {
	// A camera that looked at a still scene: two vectors in a thousand copies,
	// and a few others.
	const dim = 8
	data := clustered(1, 2100, dim)
	for i := range 2000 {
		copy(data[i*dim:(i+1)*dim], data[(i%2)*dim:(i%2+1)*dim])
	}
	h := builtHNSW(t, data, dim, GraphOptions{})
	checkGraph(t, h, true)
	if r := recallOf(t, h, h.rows, data[1990*dim:], 2); r < 0.99 {
		t.Errorf("recall@2 is %.4f", r)
	}
}

func TestHNSWIsDeterministic(t *testing.T) {
	data := clustered(1, 800, 12)
	one := builtHNSW(t, data, 12, GraphOptions{Seed: 7})
	before := runtime.GOMAXPROCS(1)
	two := builtHNSW(t, data, 12, GraphOptions{Seed: 7})
	runtime.GOMAXPROCS(8)
	three := builtHNSW(t, data, 12, GraphOptions{Seed: 7})
	runtime.GOMAXPROCS(before)
	if !slices.Equal(one.encode(), two.encode()) || !slices.Equal(one.encode(), three.encode()) {
		t.Error("the graph depends on the number of cores")
	}
	if slices.Equal(one.encode(), builtHNSW(t, data, 12, GraphOptions{Seed: 8}).encode()) {
		t.Error("the graph does not depend on its seed")
	}
}

func TestHNSWAddsAndRemoves(t *testing.T) {
	// Half built at once, half added one by one; then two thirds removed, the
	// entry point each time it comes up among them.
	const dim, n = 16, 900
	data := clustered(1, n, dim)
	h := builtHNSW(t, data[:n/2*dim], dim, GraphOptions{M: 12, EfConstruction: 80})
	for i := n / 2; i < n; i++ {
		if err := h.Add(uint64(i), data[i*dim:(i+1)*dim]); err != nil {
			t.Fatal(err)
		}
	}
	checkGraph(t, h, false)
	queries := clustered(2, 200, dim)
	if r := recallOf(t, h, h.rows, queries, 2); r < 0.99 {
		t.Errorf("after adding: recall@2 is %.4f", r)
	}
	for i := range n * 2 / 3 {
		id := h.rows.ids[h.graph.entry]
		if i%3 > 0 {
			id = h.rows.ids[i*7919%h.rows.len()]
		}
		if err := h.Remove(id); err != nil {
			t.Fatal(err)
		}
		if err := h.Remove(id); !errors.Is(err, ErrNotFound) {
			t.Fatalf("removed twice: %v", err)
		}
	}
	checkGraph(t, h, false)
	if r := recallOf(t, h, h.rows, queries, 2); r < 0.99 {
		t.Errorf("after removing: recall@2 is %.4f", r)
	}
	for h.Len() > 0 {
		if err := h.Remove(h.rows.ids[h.rows.len()/2]); err != nil {
			t.Fatal(err)
		}
	}
	if got, err := searchOne(h, queries[:dim], 2); err != nil || len(got) != 0 {
		t.Errorf("search in an emptied index: %v, %v", got, err)
	}
	if err := h.Add(1, data[:dim]); err != nil {
		t.Fatal(err)
	}
	if got, _ := searchOne(h, data[:dim], 2); len(got) != 1 || got[0] != (Neighbour{ID: 1}) {
		t.Errorf("search after emptying and adding: %v", got)
	}
}

// Any sequence of additions and removals keeps exact and hnsw the same set, the
// graph valid, and every found distance true.
func TestIndexesAgreeUnderChanges(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		const dim = 3
		x := &exact{rows: newRows(dim)}
		h, err := newHNSW(newRows(dim), GraphOptions{M: rapid.IntRange(2, 6).Draw(t, "m"), EfConstruction: 40, EfSearch: 200})
		if err != nil {
			t.Fatal(err)
		}
		vector := rapid.SliceOfN(rapid.Float32Range(-3, 3), dim, dim)
		id := rapid.Uint64Range(0, 40)
		t.Repeat(map[string]func(*rapid.T){
			"add": func(t *rapid.T) {
				i, v := id.Draw(t, "id"), vector.Draw(t, "v")
				if a, b := x.Add(i, v), h.Add(i, v); (a == nil) != (b == nil) {
					t.Fatalf("exact: %v, hnsw: %v", a, b)
				}
			},
			"remove": func(t *rapid.T) {
				i := id.Draw(t, "id")
				if a, b := x.Remove(i), h.Remove(i); (a == nil) != (b == nil) {
					t.Fatalf("exact: %v, hnsw: %v", a, b)
				}
			},
			"": func(t *rapid.T) {
				checkGraph(t, h, false)
				if x.Len() != h.Len() {
					t.Fatalf("%d and %d entries", x.Len(), h.Len())
				}
				q := vector.Draw(t, "q")
				want, err := searchOne(x, q, 3)
				if err != nil {
					t.Fatal(err)
				}
				if len(want) != min(3, x.Len()) || !slices.IsSortedFunc(want, compareNeighbours) {
					t.Fatalf("exact found %v of %d", want, x.Len())
				}
				got, err := searchOne(h, q, 3)
				if err != nil {
					t.Fatal(err)
				}
				for i, n := range got {
					if n.Distance != squaredL2Exact(q, x.rows.at(x.rows.row[n.ID])) || n.Distance < want[i].Distance {
						t.Fatalf("hnsw found %v, exact %v", got, want)
					}
				}
			},
		})
	})
}

func TestSearchWhileChanging(t *testing.T) {
	const dim, n = 8, 400
	data, queries := clustered(1, 2*n, dim), clustered(2, 50, dim)
	for _, kind := range []Kind{Exact, HNSW} {
		t.Run(string(kind), func(t *testing.T) {
			b := newFilled(t, Options{Dim: dim, Kind: kind, Graph: GraphOptions{M: 6, EfConstruction: 30}}, data[:n*dim])
			if _, err := b.Build(context.Background(), queries); err != nil {
				t.Fatal(err)
			}
			if b.Index().Kind() != kind {
				t.Fatal(b.Report())
			}
			done := make(chan struct{})
			var wg sync.WaitGroup
			for w := range 3 {
				wg.Go(func() {
					for i := w; ; i++ {
						q := queries[i%50*dim : (i%50+1)*dim]
						if r, err := scoreOne(b, q); err != nil || !(r.Score >= 0) {
							t.Errorf("score: %v, %v", r, err)
							return
						}
						select {
						case <-done:
							return
						default:
						}
					}
				})
			}
			for i := range n {
				if err := b.Add(uint64(n+i), data[(n+i)*dim:(n+i+1)*dim]); err != nil {
					t.Error(err)
				}
				if err := b.Remove(uint64(i)); err != nil {
					t.Error(err)
				}
			}
			close(done)
			wg.Wait()
			if b.Len() != n {
				t.Errorf("%d entries", b.Len())
			}
		})
	}
}

func TestRecallGate(t *testing.T) {
	const dim, n = 24, 1200
	ctx := context.Background()
	data, queries := clustered(1, n, dim), clustered(2, 100, dim)
	build := func(t *testing.T, o Options, queries []float32) (*Bank, Report) {
		o.Dim = dim
		b := newFilled(t, o, data)
		r, err := b.Build(ctx, queries)
		if err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(r, b.Report()); d != "" {
			t.Error(d)
		}
		if b.Index().Kind() != r.Kind {
			t.Errorf("%s serves, the report says %s", b.Index().Kind(), r.Kind)
		}
		return b, r
	}
	t.Run("exact below the cut-off", func(t *testing.T) {
		if _, r := build(t, Options{}, nil); r.Wanted != Exact || r.Kind != Exact || r.Recall != 1 || r.Fallback != "" {
			t.Error(r)
		}
	})
	t.Run("hnsw from the cut-off on", func(t *testing.T) {
		_, r := build(t, Options{Cutoff: n}, queries)
		if r.Kind != HNSW || r.Recall < 0.99 || r.Queries != 50 || r.FirstExcess < 0 || r.FirstExcess > 0.01 {
			t.Error(r)
		}
	})
	t.Run("the search width is raised until it is good enough", func(t *testing.T) {
		_, r := build(t, Options{Kind: HNSW, Graph: GraphOptions{EfSearch: 1}}, queries)
		if r.Kind != HNSW || r.EfSearch < 4 {
			t.Error(r)
		}
	})
	t.Run("a bad graph falls back", func(t *testing.T) {
		_, r := build(t, Options{Kind: HNSW, Graph: GraphOptions{M: 2, EfConstruction: 2}, Gate: Gate{MinRecall: 1}}, queries)
		if r.Wanted != HNSW || r.Kind != Exact || r.Fallback == "" || r.Recall >= 1 {
			t.Error(r)
		}
	})
	t.Run("coder is measured like the others", func(t *testing.T) {
		_, r := build(t, Options{Kind: Coder}, queries)
		if r.Wanted != Coder || (r.Kind == Coder) != (r.Recall >= 0.99) || r.Queries != 100 {
			t.Error(r)
		}
	})
	t.Run("coder that passes a lax gate serves and cannot be changed", func(t *testing.T) {
		b, r := build(t, Options{Kind: Coder, Gate: Gate{MinRecall: 1e-6}}, queries)
		if r.Kind != Coder {
			t.Fatal(r)
		}
		if err := b.Add(n, queries[:dim]); !errors.Is(err, ErrUnsupported) {
			t.Error(err)
		}
		if err := b.Remove(0); !errors.Is(err, ErrUnsupported) {
			t.Error(err)
		}
	})
	t.Run("nothing to measure with falls back", func(t *testing.T) {
		if _, r := build(t, Options{Kind: HNSW}, nil); r.Kind != Exact || r.Fallback == "" {
			t.Error(r)
		}
	})
	t.Run("loading measures again", func(t *testing.T) {
		b, want := build(t, Options{Kind: HNSW}, queries)
		path := filepath.Join(t.TempDir(), "bank.nmb")
		if err := b.WriteFile(path); err != nil {
			t.Fatal(err)
		}
		back, err := ReadFile(path, ReadOptions{})
		if err != nil {
			t.Fatal(err)
		}
		got := back.Report()
		got.BuildSeconds, got.BuildCPUSeconds = want.BuildSeconds, want.BuildCPUSeconds
		if d := cmp.Diff(want, got); d != "" {
			t.Error(d)
		}
		if err := back.Add(n, queries[:dim]); err != nil {
			t.Fatal(err)
		}
		if r, err := scoreOne(back, queries[:dim]); err != nil || r.Nearest[0] != (Neighbour{ID: n}) {
			t.Error(r, err)
		}
	})
}
