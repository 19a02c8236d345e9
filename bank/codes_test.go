package bank

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
)

func BenchmarkCodes(b *testing.B) {
	for _, dim := range []int{192, 768} {
		n := 32 << 20 / dim
		data, q := make([]float32, n*dim), gauss(1, 1, dim)
		for i := range data {
			data[i] = float32(i % 127)
		}
		codes, qc := make([]uint8, n*dim), make([]uint8, dim)
		for i := range codes {
			codes[i] = uint8(i % 127)
		}
		list, out := make([]uint32, 32), make([]float32, 32)
		x := uint64(1)
		pick := func() {
			for i := range list {
				x = mix(x)
				list[i] = uint32(x % uint64(n))
			}
		}
		b.Run(fmt.Sprintf("floats/%d", dim), func(b *testing.B) {
			for range b.N {
				pick()
				squaredL2Rows(q, data, list, out)
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*len(list)), "ns/row")
		})
		b.Run(fmt.Sprintf("codes/%d", dim), func(b *testing.B) {
			for range b.N {
				pick()
				codeRows(qc, codes, list, out)
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*len(list)), "ns/row")
		})
	}
}

func TestCodesKernelsAgree(t *testing.T) {
	if !accelerated {
		t.Skip("this machine searches by rows")
	}
	r := rand.New(rand.NewPCG(9, 9))
	for width := codeBlock; width <= 40*codeBlock; width += codeBlock {
		const n = 9
		base, q := make([]uint8, n*width), make([]uint8, width)
		for _, p := range [][]uint8{base, q} {
			for i := range p {
				p[i] = [...]uint8{0, 127, uint8(r.IntN(128))}[r.IntN(3)]
			}
		}
		clear(q)
		for i := range width { // the largest sum there is
			base[i] = 127
		}
		list := []uint32{3, 0, 8, 8, 1}
		for m := range len(list) + 1 {
			got, want := make([]float32, m+1), make([]float32, m+1)
			got[m], want[m] = -7, -7
			codeRows(q, base, list[:m], got[:m])
			codeRowsPlain(q, base, list[:m], want[:m])
			if !slices.Equal(got, want) {
				t.Fatalf("width %d: %v, want %v", width, got, want)
			}
		}
	}
}

// codedBank has a graph that is searched by codes, whatever its size.
func codedBank(t *testing.T, n, dim int) *Bank {
	t.Helper()
	b := newFilled(t, Options{Dim: dim, Kind: HNSW, Graph: GraphOptions{Seed: 1}}, clustered(1, n, dim))
	if r, err := b.Build(t.Context(), clustered(2, 64, dim)); err != nil || r.Kind != HNSW || r.Coded {
		t.Fatal(r, err)
	}
	h := b.Index().(*hnsw)
	h.codes = newCodes(t.Context(), b.rows)
	report, err := b.judgeIndex(t.Context(), HNSW, h, b.queries, 0)
	if err != nil || report.Recall < 0.99 || !report.Coded || report.Kind != HNSW {
		t.Fatal(report, err)
	}
	b.install(h, report, b.queries)
	return b
}

// A search by codes finds what an exact one does, at its exact distance, also after
// changes and out of a file.
func TestSearchByCodes(t *testing.T) {
	if !accelerated {
		t.Skip("this machine searches by rows")
	}
	const n, dim = 3000, 40 // not a whole number of blocks
	b := codedBank(t, n, dim)
	fresh := clustered(3, 200, dim)
	agree := func(when string, b *Bank) {
		t.Helper()
		hits := 0
		for i := range 200 {
			q := fresh[i*dim : (i+1)*dim]
			got, err := searchOne(b.Index(), q, 2)
			if err != nil {
				t.Fatal(err)
			}
			want, err := searchOne(&exact{rows: b.rows}, q, 2)
			if err != nil {
				t.Fatal(err)
			}
			if slices.Equal(got, want) {
				hits++
			}
		}
		if hits < 196 {
			t.Errorf("%s: the same as an exact search for %d of 200 queries", when, hits)
		}
	}
	agree("built", b)

	content := encoded(t, b)
	read, _ := written(t, content, ReadOptions{Verified: true})
	if h := read.Index().(*hnsw); h.codes == nil || !read.Report().Coded {
		t.Fatal("the file has lost the codes")
	}
	agree("from a file", read)
	if !bytes.Equal(encoded(t, read), content) {
		t.Error("reading and writing changes the file")
	}
	for _, b := range []*Bank{b, read} {
		for id := range uint64(300) {
			if err := b.Remove(id * 7); err != nil {
				t.Fatal(err)
			}
		}
		for i := range 100 {
			if err := b.Add(uint64(n+i), fresh[i*dim:(i+1)*dim]); err != nil {
				t.Fatal(err)
			}
		}
		agree("changed", b)
		h := b.Index().(*hnsw)
		want := &codes{codeScale: h.codes.codeScale, width: h.codes.width}
		for i := range b.Len() {
			want.add(b.rows.at(uint32(i)))
		}
		if !bytes.Equal(want.data, h.codes.data) {
			t.Error("codes are not those of the rows")
		}
	}
	if !bytes.Equal(encoded(t, read), encoded(t, b)) {
		t.Error("a bank read from a file changes otherwise than one in memory")
	}

	bad := bytes.Clone(content)
	at := sectionOffset(t, bad, "scal")
	copy(bad[at:], []byte{0, 0, 0xc0, 0x7f}) // NaN
	if _, err := decode(repair(bad), ReadOptions{Verified: true}); !errors.Is(err, ErrCorrupt) {
		t.Errorf("a scale that is none: %v", err)
	}
}

// Codes that do not tell the rows apart are dropped, not the graph.
func TestCodesBelowTheGateAreDropped(t *testing.T) {
	if !accelerated {
		t.Skip("this machine searches by rows")
	}
	const dim = 40
	b := codedBank(t, 2000, dim)
	h := b.Index().(*hnsw)
	width := h.o.EfSearch
	clear(h.codes.data)
	r, err := b.judgeIndex(t.Context(), HNSW, h, b.queries, 0)
	if err != nil {
		t.Fatal(err)
	}
	if r.Kind != HNSW || r.Coded || h.codes != nil || h.o.EfSearch < width || r.Recall < 0.99 {
		t.Errorf("%+v, width %d, was %d", r, h.o.EfSearch, width)
	}
}

// Where codes do not tell near rows apart, the graph is linked by the rows.
func TestAGraphThatCodesCannotLink(t *testing.T) {
	const n, dim, clusters = 13_200, 40, 3 // just enough to be coded
	data, r := make([]float32, n*dim), rand.New(rand.NewPCG(4, 4))
	centres := gauss(5, clusters, dim)
	near := func(to []float32) {
		c := centres[r.IntN(clusters)*dim:]
		for j := range to {
			to[j] = c[j] + float32(r.NormFloat64()/float64(j+1))*1e-3
		}
	}
	for i := range n {
		near(data[i*dim : (i+1)*dim])
	}
	queries := make([]float32, 64*dim)
	for i := range 64 {
		near(queries[i*dim : (i+1)*dim])
	}
	b := newFilled(t, Options{Dim: dim, Kind: HNSW, Graph: GraphOptions{Seed: 1, M: 12, EfConstruction: 80}}, data)
	report, err := b.Build(t.Context(), queries)
	if err != nil {
		t.Fatal(err)
	}
	if report.Kind != HNSW || report.Coded || report.Recall < 0.99 {
		t.Errorf("%+v", report)
	}
}
