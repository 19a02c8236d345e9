package bank

import (
	"bytes"
	"context"
	"errors"
	"path/filepath"
	"slices"
	"sync/atomic"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// blockProducts is a BlockEngine in plain loops.
type blockProducts struct {
	productEngine
	blocks atomic.Int32 // searchers at hand
	made   atomic.Int32 // searchers so far
	asked  atomic.Int32
	broken error
}

type blockProductSearcher struct {
	e          *blockProducts
	rows       []float32
	dim, block int
}

func (e *blockProducts) PrepareBlocks(rows []float32, dim, block int) (BlockSearcher, error) {
	e.blocks.Add(1)
	e.made.Add(1)
	return &blockProductSearcher{e, slices.Clone(rows), dim, block}, nil
}

func (s *blockProductSearcher) Close() error {
	s.e.blocks.Add(-1)
	return nil
}

func (s *blockProductSearcher) Best(_ context.Context, queries []float32) ([]float32, error) {
	s.e.asked.Add(1)
	if s.e.broken != nil {
		return nil, s.e.broken
	}
	var out []float32
	n := len(s.rows) / s.dim
	for ; len(queries) > 0; queries = queries[s.dim:] {
		for b := 0; b < n; b += s.block {
			best := dot32(queries[:s.dim], s.rows[b*s.dim:(b+1)*s.dim])
			for i := b + 1; i < b+s.block; i++ {
				best = max(best, dot32(queries[:s.dim], s.rows[i*s.dim:(i+1)*s.dim]))
			}
			out = append(out, best)
		}
	}
	return out, nil
}

func sketchBank(t *testing.T, e BatchEngine, data []float32, dim int) *Bank {
	t.Helper()
	b, err := New(Options{Dim: dim, K: 1, Kind: Sketch, Batch: e})
	if err != nil {
		t.Fatal(err)
	}
	ids := make([]uint64, len(data)/dim)
	for i := range ids {
		ids[i] = uint64(i)
	}
	if err := b.AddBatch(ids, data); err != nil {
		t.Fatal(err)
	}
	return b
}

func TestSketchFindsTheNearest(t *testing.T) {
	ctx := context.Background()
	for _, dim := range []int{8, 64, 192} {
		data, queries, fresh := clustered(1, 1505, dim), clustered(2, 80, dim), clustered(3, 100, dim)
		e := &blockProducts{}
		b := sketchBank(t, e, data, dim)
		r, err := b.Build(ctx, queries)
		if err != nil {
			t.Fatal(err)
		}
		if r.Kind != Sketch || r.Recall < 0.99 || r.Blocks < fewestBlocks || r.Queries == 0 {
			t.Fatalf("dim %d: %+v", dim, r)
		}
		asked := e.asked.Load()
		got, err := b.Index().SearchBatch(ctx, fresh, 1)
		if err != nil {
			t.Fatal(err)
		}
		if e.asked.Load() == asked {
			t.Fatal("the engine was not asked")
		}
		want, err := (&exact{rows: b.rows}).SearchBatch(ctx, fresh, 1)
		if err != nil {
			t.Fatal(err)
		}
		// Whatever is found is a row at its true distance.
		hits := 0
		for i := range got {
			d := squaredL2Exact(fresh[i*dim:(i+1)*dim], data[got[i][0].ID*uint64(dim):][:dim])
			if len(got[i]) != 1 || got[i][0].Distance != d {
				t.Fatalf("dim %d, query %d: %+v, which is at %v", dim, i, got[i], d)
			}
			if cmp.Equal(got[i], want[i]) {
				hits++
			}
		}
		if hits < 95 {
			t.Errorf("dim %d: %d of 100 nearest were found", dim, hits)
		}
		if err := b.Close(); err != nil || e.blocks.Load() != 0 {
			t.Errorf("%d searchers are left, %v", e.blocks.Load(), err)
		}
	}
}

func TestSketchSeesChanges(t *testing.T) {
	ctx := context.Background()
	const dim = 64
	e := &blockProducts{}
	b := sketchBank(t, e, clustered(1, 1000, dim), dim)
	queries := clustered(2, 20, dim)
	if _, err := b.Build(ctx, queries); err != nil {
		t.Fatal(err)
	}
	if s, err := b.Scores(ctx, queries); err != nil || s[3] == 0 {
		t.Fatalf("%v, %v", s, err)
	}
	if err := b.Add(5000, queries[3*dim:4*dim]); err != nil {
		t.Fatal(err)
	}
	if s, err := b.Scores(ctx, queries); err != nil || s[3] != 0 {
		t.Errorf("an entry that joined is not found: %v, %v", s, err)
	}
	if err := b.Remove(5000); err != nil {
		t.Fatal(err)
	}
	if s, err := b.Scores(ctx, queries); err != nil || s[3] == 0 {
		t.Errorf("an entry that left is found: %v, %v", s, err)
	}
	if n := e.blocks.Load(); n != 1 {
		t.Errorf("%d searchers are held", n)
	}
}

func TestSketchWithoutAnEngineIsExact(t *testing.T) {
	ctx := context.Background()
	const dim = 64
	data, queries := clustered(1, 1000, dim), clustered(2, 40, dim)
	for name, e := range map[string]BatchEngine{
		"none": nil, "one that knows no blocks": &productEngine{}, "one that fails": &blockProducts{broken: errors.New("out of order")},
	} {
		b := sketchBank(t, e, data, dim)
		if _, err := b.Build(ctx, queries); err != nil {
			t.Fatal(err)
		}
		got, err := b.Index().SearchBatch(ctx, queries, 1)
		if err != nil {
			t.Fatal(err)
		}
		want, err := (&exact{rows: b.rows}).SearchBatch(ctx, queries, 1)
		if err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(want, got); d != "" {
			t.Errorf("%s: %s", name, d)
		}
		if _, err := b.Index().SearchBatch(ctx, queries[:dim+1], 1); !errors.Is(err, ErrDim) {
			t.Errorf("%s: half a query: %v", name, err)
		}
	}
}

func TestSketchIsReadBackAndMeasured(t *testing.T) {
	ctx := context.Background()
	const dim = 64
	data, queries := clustered(1, 1200, dim), clustered(2, 60, dim)
	b := sketchBank(t, nil, data, dim)
	if _, err := b.Build(ctx, queries); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "b.nmb")
	if err := b.WriteFile(path); err != nil {
		t.Fatal(err)
	}
	e := &blockProducts{}
	read, err := ReadFile(path, ReadOptions{Batch: e})
	if err != nil {
		t.Fatal(err)
	}
	defer read.Close()
	if r := read.Report(); read.Index().Kind() != Sketch || r.Queries != 30 || r.Recall < 0.99 || e.asked.Load() == 0 {
		t.Errorf("%s, %+v", read.Index().Kind(), r)
	}
}

// A file keeps the axes of sketches; one of version 1, without them, does as well.
func TestSketchesAxesAreStored(t *testing.T) {
	const dim = 64
	data, queries := clustered(1, 1200, dim), clustered(2, 60, dim)
	b := sketchBank(t, &blockProducts{}, data, dim)
	if r, err := b.Build(t.Context(), queries); err != nil || r.Kind != Sketch {
		t.Fatal(r, err)
	}
	want, err := b.ScoreBatch(t.Context(), queries)
	if err != nil {
		t.Fatal(err)
	}
	content := encoded(t, b)
	table, err := readTable(content, false)
	if err != nil {
		t.Fatal(err)
	}
	var sections []section
	for _, tag := range []string{"meta", "ids ", "rows", "gate"} {
		p, err := table.section(tag, false)
		if err != nil {
			t.Fatal(err)
		}
		sections = append(sections, section{tag, p})
	}
	var old bytes.Buffer
	if err := encodeSections(&old, sections); err != nil {
		t.Fatal(err)
	}
	if v := [2]byte{content[8], old.Bytes()[8]}; v != [2]byte{2, 1} {
		t.Errorf("versions %v", v)
	}
	for name, p := range map[string][]byte{"with axes": content, "of version 1": old.Bytes()} {
		for _, verified := range []bool{true, false} {
			e := &blockProducts{}
			read, err := decode(p, ReadOptions{Verified: verified, Batch: e})
			if err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			x := read.Index().(*sketched)
			if has := x.axes != nil; has != (name == "with axes") && verified {
				t.Errorf("%s: there are axes: %v", name, has)
			}
			if asked := e.asked.Load() > 0; asked == verified {
				t.Errorf("%s: verified %v, but measured %v", name, verified, asked)
			}
			got, err := read.ScoreBatch(t.Context(), queries)
			if err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			if d := cmp.Diff(want, got); d != "" {
				t.Errorf("%s: %s", name, d)
			}
			if !bytes.Equal(encoded(t, read), content) {
				t.Errorf("%s: it is written differently", name)
			}
			if err := read.Close(); err != nil || e.blocks.Load() != 0 {
				t.Errorf("%s: %d searchers are left, %v", name, e.blocks.Load(), err)
			}
		}
	}
	short := slices.Clone(sections)
	axes, err := table.section("axes", false)
	if err != nil {
		t.Fatal(err)
	}
	for name, bad := range map[string][]byte{"cut": axes[4*dim:], "not numbers": bytes.Repeat([]byte{0xff}, len(axes))} {
		var p bytes.Buffer
		if err := encodeSections(&p, append(short[:len(short):len(short)], section{"axes", bad})); err != nil {
			t.Fatal(err)
		}
		if _, err := decode(p.Bytes(), ReadOptions{Verified: true}); !errors.Is(err, ErrCorrupt) {
			t.Errorf("axes that are %s: %v", name, err)
		}
	}
}

// TestSketchBelowTheGateIsDropped takes an engine that points at the wrong
// blocks.
func TestSketchBelowTheGateIsDropped(t *testing.T) {
	const dim = 64
	b := sketchBank(t, &wrongBlocks{}, clustered(1, 1500, dim), dim)
	r, err := b.Build(context.Background(), clustered(2, 60, dim))
	if err != nil {
		t.Fatal(err)
	}
	if r.Kind != Exact || r.Fallback == "" || b.Index().Kind() != Exact {
		t.Errorf("%+v", r)
	}
}

type wrongBlocks struct{ productEngine }

func (*wrongBlocks) PrepareBlocks(rows []float32, dim, block int) (BlockSearcher, error) {
	return wrongSearcher(len(rows) / dim / block), nil
}

type wrongSearcher int

func (n wrongSearcher) Best(_ context.Context, queries []float32) ([]float32, error) {
	out := make([]float32, len(queries)/(blockAxes+2)*int(n))
	for i := range out {
		out[i] = -float32(i % int(n)) // always the first blocks
	}
	return out, nil
}

func (wrongSearcher) Close() error { return nil }

func TestLargest(t *testing.T) {
	values := make([]float32, 300)
	for i := range values {
		values[i] = float32((i * 7919) % 307)
	}
	top := largest(nil, values, 9)
	sorted := slices.Sorted(slices.Values(values))
	for i, c := range top {
		if want := sorted[len(sorted)-1-i]; c.distance != want || values[c.row] != want {
			t.Errorf("place %d: %+v, want %v", i, c, want)
		}
	}
	if len(top) != 9 || len(largest(nil, values[:4], 9)) != 4 {
		t.Errorf("%d values", len(top))
	}
}

// TestSketchesAreClosed: building again, an index that is turned down, and a bank
// that is closed leave nothing with the engine.
func TestSketchesAreClosed(t *testing.T) {
	const dim = 64
	e := &blockProducts{}
	b := sketchBank(t, e, gauss(1, 4000, dim), dim)
	for range 3 {
		if _, err := b.Build(t.Context(), clustered(2, 64, dim)); err != nil {
			t.Fatal(err)
		}
		if n := e.blocks.Load(); n > 1 {
			t.Errorf("%d searchers are at hand", n)
		}
	}
	if _, _, err := b.Measure(t.Context(), clustered(2, 64, dim)); err != nil {
		t.Fatal(err)
	}
	if err := b.Close(); err != nil || e.blocks.Load() != 0 {
		t.Errorf("%d searchers are left, %v", e.blocks.Load(), err)
	}
}

// TestSketchesStayWhileTheBankGrows: a bank that is extended image by image is
// sketched once, and what was added is found.
func TestSketchesStayWhileTheBankGrows(t *testing.T) {
	const dim = 64
	data, queries := clustered(1, 4000, dim), clustered(2, 64, dim)
	e := &blockProducts{}
	b := sketchBank(t, e, data, dim)
	if r, err := b.Build(t.Context(), queries); err != nil || r.Kind != Sketch {
		t.Fatalf("%+v, %v", r, err)
	}
	made := e.made.Load()
	fresh := gauss(5, 1000, dim)
	for i := range 1000 {
		v := fresh[i*dim : (i+1)*dim]
		if err := b.Add(uint64(10_000+i), v); err != nil {
			t.Fatal(err)
		}
		if i%100 > 0 {
			continue
		}
		got, err := b.ScoreBatch(t.Context(), slices.Concat(queries, v))
		if err != nil {
			t.Fatal(err)
		}
		if last := got[len(got)-1]; last.Nearest[0].ID != uint64(10_000+i) || last.Score > 1e-9 {
			t.Fatalf("entry %d is not found: %+v", 10_000+i, last)
		}
	}
	if n := e.made.Load() - made; n != 1 { // one eighth more, once
		t.Errorf("sketched %d times for 1000 additions to 4000 entries", n)
	}
	if err := b.Remove(3); err != nil {
		t.Fatal(err)
	}
	if n := e.blocks.Load(); n != 0 {
		t.Errorf("%d searchers over rows that have moved", n)
	}
}
