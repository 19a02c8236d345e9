package bank

import (
	"fmt"
	"math"
	"testing"
)

// The kernels agree with the plain float64 sum for every length and offset.
func TestKernelsAgree(t *testing.T) {
	for dim := 1; dim <= 200; dim++ {
		const n = 9
		data, q := gauss(uint64(dim), n, dim), gauss(1000+uint64(dim), 1, dim)
		list := []uint32{3, 0, 8, 8, 1}
		for m := range len(list) + 1 {
			out := make([]float32, m+1)
			out[m] = -7
			squaredL2Rows(q, data, list[:m], out[:m])
			if out[m] != -7 {
				t.Fatalf("dimension %d: written past the end", dim)
			}
			for i, r := range list[:m] {
				v := data[int(r)*dim : int(r+1)*dim]
				want := squaredL2Exact(q, v)
				for name, got := range map[string]float32{"list": out[i], "single": squaredL2(q, v)} {
					if math.Abs(float64(got-want)) > 1e-5*float64(want) {
						t.Errorf("%s, dimension %d: %v, want %v", name, dim, got, want)
					}
				}
			}
		}
	}
}

func BenchmarkDistance(b *testing.B) {
	for _, dim := range []int{192, 768} {
		// 128 MiB: mostly outside the caches
		n := 32 << 20 / dim
		data, q := make([]float32, n*dim), gauss(1, 1, dim)
		list, out := make([]uint32, 32), make([]float32, 32)
		for name, kernel := range map[string]func(q, base []float32, list []uint32, out []float32){
			"one by one": squaredL2RowsPlain, "prefetched": squaredL2Rows,
		} {
			b.Run(fmt.Sprintf("%s/%d", name, dim), func(b *testing.B) {
				x := uint64(1)
				for range b.N {
					for i := range list {
						x = mix(x)
						list[i] = uint32(x % uint64(n))
					}
					kernel(q, data, list, out)
				}
				b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*len(list)), "ns/row")
			})
		}
	}
}
