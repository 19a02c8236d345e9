package bank

import "golang.org/x/sys/cpu"

//go:noescape
func l2RowsAVX2(q, base *float32, rows *uint32, n, dim int, out *float32)

//go:noescape
func l2RowsAVX512(q, base *float32, rows *uint32, n, dim int, out *float32)

// accelerated says whether l2RowsAVX2 may be called, wide whether l2RowsAVX512.
var (
	accelerated = cpu.X86.HasAVX2 && cpu.X86.HasFMA
	wide        = accelerated && cpu.X86.HasAVX512F && cpu.X86.HasAVX512BW && cpu.X86.HasAVX512VL
)

// squaredL2Rows puts ‖q − row‖² of each listed row of base, row-major ?×len(q),
// into out, which is as long as the list. It is a batch so that one row is
// fetched from memory while another is summed.
func squaredL2Rows(q, base []float32, list []uint32, out []float32) {
	switch {
	case len(list) == 0:
	case !accelerated || len(q)%32 != 0:
		squaredL2RowsPlain(q, base, list, out)
	case wide:
		l2RowsAVX512(&q[0], &base[0], &list[0], len(list), len(q), &out[0])
	default:
		l2RowsAVX2(&q[0], &base[0], &list[0], len(list), len(q), &out[0])
	}
}
