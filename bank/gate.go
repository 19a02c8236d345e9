package bank

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/nearmiss/nearmiss/internal/cputime"
)

// DefaultCutoff is the number of entries from which on Auto builds a graph. Up
// to there exact search costs a core less than a tenth of what embedding the
// image did: 50,000 × 192 takes about 1.4 ms beside some 15 ms of ViT-Ti, 50,000
// × 768 about 7 ms beside 200 ms of ViT-B. A bank that answers many queries an
// image (patches) gains from a graph at a fifth of that.
const DefaultCutoff = 50_000

// Gate says what an approximate index must reach to serve. The zero value of a
// field means its default.
type Gate struct {
	// MinRecall is the least recall@K, 0..1. Default 0.99.
	MinRecall float64 `json:"min_recall"`
	// Queries is how many of the queries given to Build are used, and kept in
	// the file for the check on loading. Default 256.
	Queries int `json:"queries"`
}

func (g Gate) withDefaults() (Gate, error) {
	g.MinRecall = cmp.Or(g.MinRecall, 0.99)
	g.Queries = cmp.Or(g.Queries, 256)
	if !(g.MinRecall > 0 && g.MinRecall <= 1) || g.Queries < 1 {
		return g, fmt.Errorf("recall gate: least recall %v must be in (0, 1] and queries %d at least 1",
			g.MinRecall, g.Queries)
	}
	return g, nil
}

// Report is what building or loading an index found out, for the manifest.
type Report struct {
	// Wanted is the kind asked for (or chosen by size), Kind the one that
	// serves: Exact where the recall gate turned Wanted down.
	Wanted Kind `json:"wanted"`
	Kind   Kind `json:"kind"`
	// Count entries of dimension Dim, searched for K neighbours.
	Count int `json:"count"`
	Dim   int `json:"dim"`
	K     int `json:"k"`
	// Queries is the number of held-out queries that Recall and FirstExcess
	// were measured with; 0 for an exact index that needed no measuring.
	Queries int `json:"queries"`
	// Recall is the mean share of the K nearest that Wanted found, 0..1.
	// Entries as near as the K-th nearest count as found.
	Recall float64 `json:"recall"`
	// FirstExcess is the mean of (d−d*)/d*, ≥ 0, where d is the squared
	// distance to the first neighbour Wanted found and d* to the nearest.
	FirstExcess float64 `json:"first_excess"`
	// EfSearch is HNSW's search width after tuning; 0 for other kinds.
	EfSearch int `json:"ef_search,omitempty"`
	// Blocks is how many blocks of 16 entries Sketch compares in full, after
	// tuning; 0 for other kinds.
	Blocks int `json:"blocks,omitempty"`
	// Coded says that HNSW finds candidates by codes of seven bits a number and
	// compares the nearest in full.
	Coded bool `json:"coded,omitempty"`
	// GraphBytes is the size of HNSW's graph, and codes, in memory and in the file,
	// without the vectors; 0 for other kinds.
	GraphBytes int64 `json:"graph_bytes,omitempty"`
	// BuildSeconds is how long building (or loading) Wanted took.
	BuildSeconds float64 `json:"build_seconds"`
	// BuildCPUSeconds is the processor time that this program used while Wanted was
	// built; 0 where that is not known, and out of a file.
	BuildCPUSeconds float64 `json:"-"`
	// Fallback says why Kind is not Wanted; empty where it is.
	Fallback string `json:"fallback,omitempty"`
}

// Build makes the index that the bank's options ask for and puts it to the
// recall gate with held-out queries, row-major n×Dim: embeddings of normals
// that are not in the bank. HNSW's search width is raised, as far as an eighth
// of the entries and 4096, until half of them are answered well enough; the
// report's figures come from the other half where there are at least two; likewise
// the blocks that Sketch compares in full, up to 32. An
// index below the gate is dropped and the bank goes on searching exactly, with
// a warning. Searches go on meanwhile; changes wait. Build may be called again
// after changes.
func (b *Bank) Build(ctx context.Context, queries []float32) (Report, error) {
	b.change.Lock()
	defer b.change.Unlock()
	index, report, queries, err := b.make(ctx, queries)
	if err != nil {
		return Report{}, err
	}
	b.install(index, report, queries)
	return report, nil
}

// Measure does what Build does up to the verdict, and returns the index that
// was measured whatever the verdict (exact search where it could not be built).
// The bank stays as it is. It is meant for comparisons: changes to the bank
// while the index is in use spoil it.
func (b *Bank) Measure(ctx context.Context, queries []float32) (Index, Report, error) {
	b.change.Lock()
	defer b.change.Unlock()
	index, report, _, err := b.make(ctx, queries)
	return index, report, err
}

// make builds and measures the index wanted. The caller holds b.change.
func (b *Bank) make(ctx context.Context, queries []float32) (Index, Report, []float32, error) {
	queries, err := b.applyAll(queries)
	if err != nil {
		return nil, Report{}, nil, fmt.Errorf("build index: %w", err)
	}
	kind := b.kind
	if kind == Auto {
		kind = Exact
		if b.rows.len() >= b.cutoff {
			kind = HNSW
		}
	}
	queries = slices.Clone(pick(queries, b.rows.dim, b.gate.Queries))
	start, cpu := time.Now(), cputime.Seconds()
	judge := func(index Index) (Report, error) {
		used := cputime.Seconds() - cpu
		report, err := b.judgeIndex(ctx, kind, index, queries, time.Since(start))
		report.BuildCPUSeconds = used
		return report, err
	}
	var index Index = &exact{rows: b.rows}
	switch {
	case kind == Exact:
	case len(queries) == 0:
		// nothing to measure with: judge turns it down before it is built
	case kind == Sketch:
		index = newSketched(b.rows)
	case kind == HNSW:
		var c *codes
		if accelerated && len(b.rows.data) >= codeLeast {
			c = newCodes(ctx, b.rows)
		}
		if index, err = b.makeGraph(ctx, c); err != nil {
			return nil, Report{}, nil, err
		}
		if c == nil {
			break
		}
		if report, err := judge(index); err != nil || report.Kind == kind {
			return index, report, queries, err
		}
		// Codes may not have separated near rows: linked by the rows themselves it may do.
		if index, err = b.makeGraph(ctx, nil); err != nil {
			return nil, Report{}, nil, err
		}
	case kind == Coder:
		if err := b.own(); err != nil { // its graph keeps the rows
			return nil, Report{}, nil, fmt.Errorf("build coder index: %w", err)
		}
		x, err := buildCoder(ctx, b.rows, b.graph)
		if err != nil && ctx.Err() != nil {
			return nil, Report{}, nil, fmt.Errorf("build coder index: %w", err)
		}
		if err != nil {
			b.log.Warn().Err(err).Msg("the coder index could not be built")
		} else {
			index = x
		}
	}
	report, err := judge(index)
	return index, report, queries, err
}

// makeGraph builds an HNSW graph by codes, or by the rows where c is nil.
func (b *Bank) makeGraph(ctx context.Context, c *codes) (Index, error) {
	h, err := newHNSW(b.rows, b.graph)
	if err == nil {
		h.codes = c
		err = h.build(ctx)
	}
	if err != nil {
		return nil, fmt.Errorf("build hnsw index: %w", err)
	}
	return h, nil
}

// judgeIndex puts an index to the recall gate.
func (b *Bank) judgeIndex(ctx context.Context, wanted Kind, index Index, queries []float32, took time.Duration) (Report, error) {
	r := Report{
		Wanted: wanted, Kind: Exact, Count: b.rows.len(), Dim: b.rows.dim, K: b.k,
		Recall: 1, BuildSeconds: took.Seconds(),
	}
	switch {
	case wanted == Exact:
	case len(queries) == 0:
		r.Fallback = "there were no held-out queries to measure its recall with"
	case index.Kind() != wanted:
		r.Fallback = "it could not be built"
	default:
		width := 0
		if w := searchWidth(index); w != nil {
			width = *w
		}
		if err := b.measure(ctx, index, queries, &r); err != nil {
			return Report{}, fmt.Errorf("measure recall of the %s index: %w", wanted, err)
		}
		if r.Recall >= b.gate.MinRecall {
			r.Kind = wanted
		} else if h, ok := index.(*hnsw); ok && h.codes != nil {
			h.codes, h.o.EfSearch = nil, width // by the rows it may find more
			return b.judgeIndex(ctx, wanted, index, queries, took)
		} else {
			r.Fallback = fmt.Sprintf("its recall@%d of %.4f is below %.4g", b.k, r.Recall, b.gate.MinRecall)
		}
	}
	return r, nil
}

// install puts the index that was judged to work, or exact search.
func (b *Bank) install(index Index, r Report, queries []float32) {
	if r.Kind == Exact {
		index = &exact{rows: b.rows}
	}
	if r.Fallback != "" {
		b.log.Warn().Str("wanted", string(r.Wanted)).Float64("recall", r.Recall).
			Float64("first_excess", r.FirstExcess).Int("entries", r.Count).
			Msg("the bank searches exactly instead: " + r.Fallback)
	}
	b.mu.Lock()
	b.index, b.report, b.queries = index, r, queries
	b.mu.Unlock()
	b.tidy()
}

// tidy closes what an engine holds for sketches that do not serve: of an index
// that was replaced, or turned down. A search that is under way with one makes it
// again, until the bank is closed or changes much.
func (b *Bank) tidy() {
	serves := b.Index()
	b.rows.mu.Lock()
	defer b.rows.mu.Unlock()
	for x := range b.rows.sketches {
		if Index(x) != serves {
			b.rows.forget(x)
		}
	}
}

// Report is what the last Build or ReadFile found out; zero before either.
func (b *Bank) Report() Report {
	b.mu.RLock()
	defer b.mu.RUnlock()
	return b.report
}

// measure fills in the report's measured fields, and for HNSW chooses its
// search width first.
func (b *Bank) measure(ctx context.Context, index Index, queries []float32, r *Report) error {
	dim := b.rows.dim
	truth, err := b.rows.searchBatch(ctx, queries, b.k)
	if err != nil {
		return err
	}
	tune, judge := 0, 0 // queries [0, tune) tune, [judge, n) judge
	n := len(truth)
	// widen raises how much is searched, from *width to at most widest.
	widen := func(width *int, widest int) error {
		if n >= 2 {
			tune, judge = n/2, n/2
		} else {
			tune = n
		}
		// Half of the allowed loss is kept as a margin for the judging half.
		want := 1 - (1-b.gate.MinRecall)/2
		enough := func() (bool, error) {
			found, err := index.SearchBatch(ctx, queries[:tune*dim], b.k)
			if err != nil {
				return false, err
			}
			recall, _ := compare(truth[:tune], found)
			return recall >= want, nil
		}
		least := *width
		for {
			if ok, err := enough(); err != nil {
				return err
			} else if ok {
				break
			}
			if *width >= widest {
				return nil
			}
			*width = min(2**width, widest)
		}
		// Twice as much may be more than is needed: the last step is halved thrice.
		for step, last := *width/4, max(1, *width/16); step >= last && *width-step > least; step /= 2 {
			*width -= step
			if ok, err := enough(); err != nil {
				return err
			} else if !ok {
				*width += step
			}
		}
		return nil
	}
	switch x := index.(type) {
	case *hnsw:
		if err := widen(searchWidth(x), max(x.o.EfSearch, min(4096, max(64, len(b.rows.ids)/8)))); err != nil {
			return err
		}
		r.EfSearch = x.o.EfSearch
		r.GraphBytes = int64(4 * len(x.encode()))
		if x.codes != nil {
			r.Coded = true
			r.GraphBytes += int64(len(x.codes.data))
		}
	case *sketched:
		if err := widen(searchWidth(x), mostBlocks); err != nil {
			return err
		}
		r.Blocks = x.blocks
	}
	found, err := index.SearchBatch(ctx, queries[judge*dim:], b.k)
	if err != nil {
		return err
	}
	r.Queries = n - judge
	r.Recall, r.FirstExcess = compare(truth[judge:], found)
	return nil
}

// searchWidth is how much an index searches, where that can be chosen, or nil.
func searchWidth(index Index) *int {
	switch x := index.(type) {
	case *hnsw:
		return &x.o.EfSearch
	case *sketched:
		return &x.blocks
	}
	return nil
}

// compare gives recall@k and the mean excess of the first distance.
func compare(truth, found [][]Neighbour) (recall, excess float64) {
	if len(truth) == 0 {
		return 1, 0
	}
	for i, want := range truth {
		if len(want) == 0 {
			recall++
			continue
		}
		last := want[len(want)-1].Distance
		hits := 0
		for _, n := range found[i] {
			if n.Distance <= last {
				hits++
			}
		}
		recall += float64(min(hits, len(want))) / float64(len(want))
		first := float64(want[0].Distance)
		switch {
		case len(found[i]) == 0:
			excess++ // nothing found: as bad as twice the distance
		case first > 0:
			excess += float64(found[i][0].Distance)/first - 1
		case found[i][0].Distance > 0:
			excess++
		}
	}
	n := float64(len(truth))
	return recall / n, excess / n
}

// pick takes at most want of the queries, evenly spread.
func pick(queries []float32, dim, want int) []float32 {
	n := len(queries) / dim
	if n <= want {
		return queries
	}
	out := make([]float32, 0, want*dim)
	for i := range want {
		j := i * n / want
		out = append(out, queries[j*dim:(j+1)*dim]...)
	}
	return out
}
