//go:build !amd64

package bank

// accelerated says whether codes are faster than rows here.
const accelerated = false

func codeRows(q, base []uint8, list []uint32, out []float32) { codeRowsPlain(q, base, list, out) }
