//go:build !amd64

package bank

// squaredL2Rows puts ‖q − row‖² of each listed row of base, row-major ?×len(q),
// into out, which is as long as the list.
func squaredL2Rows(q, base []float32, list []uint32, out []float32) {
	squaredL2RowsPlain(q, base, list, out)
}
