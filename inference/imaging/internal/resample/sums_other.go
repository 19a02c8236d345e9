//go:build !amd64

package resample

// Available says whether this machine has the instructions. Where it has not,
// Pixels and Bytes write nothing.
const Available = false

// Pixels writes nothing here.
func Pixels(dst, src []uint8, at, k []int32, pairs int) {}

// Bytes writes nothing here.
func Bytes(dst, src []uint8, stride int, k []int32) int { return 0 }
