package bank

import (
	"context"
	"fmt"
	"testing"
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
				if _, err := x.Search(queries[i%m*c.dim:(i%m+1)*c.dim], 2); err != nil {
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
