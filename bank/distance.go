package bank

import (
	"math"

	"github.com/viterin/vek/vek32"
)

// squaredL2 is ‖a−b‖² in float32, for ranking. a and b have equal, non-zero length.
func squaredL2(a, b []float32) float32 {
	d := vek32.Distance(a, b)
	return d * d
}

// squaredL2Exact is ‖a−b‖² summed in float64 and rounded once, for every
// distance that leaves the package.
func squaredL2Exact(a, b []float32) float32 {
	var s0, s1, s2, s3 float64
	b = b[:len(a)]
	i := 0
	for ; i+4 <= len(a); i += 4 {
		d0 := float64(a[i]) - float64(b[i])
		d1 := float64(a[i+1]) - float64(b[i+1])
		d2 := float64(a[i+2]) - float64(b[i+2])
		d3 := float64(a[i+3]) - float64(b[i+3])
		s0 += d0 * d0
		s1 += d1 * d1
		s2 += d2 * d2
		s3 += d3 * d3
	}
	for ; i < len(a); i++ {
		d := float64(a[i]) - float64(b[i])
		s0 += d * d
	}
	return float32((s0 + s1) + (s2 + s3))
}

// norm2 is ‖v‖² in float64; NaN or +Inf where v is not finite.
func norm2(v []float32) float64 {
	var s0, s1, s2, s3 float64
	i := 0
	for ; i+4 <= len(v); i += 4 {
		x0, x1, x2, x3 := float64(v[i]), float64(v[i+1]), float64(v[i+2]), float64(v[i+3])
		s0 += x0 * x0
		s1 += x1 * x1
		s2 += x2 * x2
		s3 += x3 * x3
	}
	for ; i < len(v); i++ {
		s0 += float64(v[i]) * float64(v[i])
	}
	return (s0 + s1) + (s2 + s3)
}

func isBad(f float64) bool { return math.IsNaN(f) || math.IsInf(f, 0) }

func squaredL2RowsPlain(q, base []float32, list []uint32, out []float32) {
	for i, r := range list {
		o := int(r) * len(q)
		out[i] = squaredL2(q, base[o:o+len(q)])
	}
}
