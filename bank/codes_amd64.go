package bank

import "golang.org/x/sys/cpu"

//go:noescape
func codeRowsAVX2(q, base *uint8, rows *uint32, n, width int, out *float32)

//go:noescape
func codeRowsVNNI(q, base *uint8, rows *uint32, n, width int, out *float32)

// dotsOfBytes says whether codeRowsVNNI may be called.
var dotsOfBytes = wide && cpu.X86.HasAVX512VNNI

// codeRows puts the sum of the squared differences of q and each listed row of base,
// row-major ?×len(q), codes all of them, into out. It is for accelerated machines
// only: on others codes are no faster.
func codeRows(q, base []uint8, list []uint32, out []float32) {
	switch {
	case len(list) == 0:
	case dotsOfBytes:
		codeRowsVNNI(&q[0], &base[0], &list[0], len(list), len(q), &out[0])
	default:
		codeRowsAVX2(&q[0], &base[0], &list[0], len(list), len(q), &out[0])
	}
}
