package bank

import (
	"context"
	"fmt"
	"testing"

	"github.com/nearmiss/nearmiss/internal/cputime"
)

func BenchmarkExact(b *testing.B) {
	for _, c := range []struct{ n, dim int }{{20_000, 192}, {20_000, 768}} {
		r := newRows(c.dim)
		for i, data := 0, clustered(1, c.n, c.dim); i < c.n; i++ {
			r.add(uint64(i), data[i*c.dim:(i+1)*c.dim])
		}
		const m = 64
		queries := clustered(2, m, c.dim)
		b.Run(fmt.Sprintf("single/%dx%d", c.n, c.dim), func(b *testing.B) {
			x := &exact{rows: r}
			for i := range b.N {
				if _, err := searchOne(x, queries[i%m*c.dim:(i%m+1)*c.dim], 2); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "queries/s")
		})
		b.Run(fmt.Sprintf("batch/%dx%d", c.n, c.dim), func(b *testing.B) {
			for range b.N {
				if _, err := r.searchBatch(context.Background(), queries, 2); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(b.N)*m/b.Elapsed().Seconds(), "queries/s")
		})
	}
}

// BenchmarkGraph measures, by processor time, the building of a graph and its searches
// by rows and by codes, on the same graph, at several widths, with their recall@2.
func BenchmarkGraph(b *testing.B) {
	for _, c := range []struct{ n, dim int }{{20_000, 192}, {20_000, 768}, {100_000, 192}, {100_000, 768}} {
		b.Run(fmt.Sprintf("%dx%d", c.n, c.dim), func(b *testing.B) {
			const m = 512
			r, queries := newRows(c.dim), clustered(2, m, c.dim)
			for i, data := 0, clustered(1, c.n, c.dim); i < c.n; i++ {
				r.add(uint64(i), data[i*c.dim:(i+1)*c.dim])
			}
			truth, err := r.searchBatch(b.Context(), queries, 2)
			if err != nil {
				b.Fatal(err)
			}
			coder := newCodes(b.Context(), r)
			for _, by := range []string{"rows", "codes"} {
				if by == "codes" && !accelerated {
					continue
				}
				var h *hnsw
				b.Run("build by "+by, func(b *testing.B) {
					cpu := cputime.Seconds()
					for range b.N {
						h, _ = newHNSW(r, GraphOptions{})
						if by == "codes" {
							h.codes = coder
						}
						if err := h.build(b.Context()); err != nil {
							b.Fatal(err)
						}
					}
					b.ReportMetric((cputime.Seconds()-cpu)/float64(b.N), "cpu-s/op")
				})
				if h == nil { // not among those asked for
					continue
				}
				for _, ef := range []int{32, 64, 128, 256} {
					for _, search := range []string{"rows", "codes"} {
						h.codes = nil
						if search == "codes" && accelerated {
							h.codes = coder
						}
						b.Run(fmt.Sprintf("built by %s, ef %d, search by %s", by, ef, search), func(b *testing.B) {
							h.o.EfSearch = ef
							found, err := h.SearchBatch(b.Context(), queries, 2)
							if err != nil {
								b.Fatal(err)
							}
							recall, _ := compare(truth, found)
							b.ResetTimer()
							cpu := cputime.Seconds()
							for i := range b.N {
								i %= m
								if _, err := searchOne(h, queries[i*c.dim:(i+1)*c.dim], 2); err != nil {
									b.Fatal(err)
								}
							}
							b.ReportMetric(1e6*(cputime.Seconds()-cpu)/float64(b.N), "cpu-µs/op")
							b.ReportMetric(recall, "recall")
						})
					}
				}
			}
		})
	}
}
