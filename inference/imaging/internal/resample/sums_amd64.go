package resample

import "golang.org/x/sys/cpu"

//go:noescape
func pixelsAVX2(dst, src *uint8, at, k *int32, pairs, n int)

//go:noescape
func bytesAVX2(dst, src *uint8, stride int, k *int32, taps, blocks int)

// Available says whether this machine has the instructions. Where it has not,
// Pixels and Bytes write nothing.
var Available = cpu.X86.HasAVX2

// Pixels writes one RGB pixel for each of at: the sum of the 2·pairs pixels of src
// from byte at[i] on, each times its weight. k has eight numbers for two of them:
// three times the weight of the first, three times that of the second, and two
// zeros. It reads two bytes beyond the pixels, writes one beyond the last, and
// panics where src, dst or k are too short for that.
func Pixels(dst, src []uint8, at, k []int32, pairs int) {
	if !Available || len(at) == 0 || pairs == 0 {
		return
	}
	for _, from := range at {
		_, _ = src[from], src[int(from)+6*pairs+1]
	}
	_, _ = dst[3*len(at)], k[8*pairs*len(at)-1]
	pixelsAVX2(&dst[0], &src[0], &at[0], &k[0], pairs, len(at))
}

// Bytes writes the sum of the len(k) bytes of src below one another, stride apart,
// each times its weight, and returns how many it wrote: the first of dst, in blocks
// of 32. It panics where src is too short.
func Bytes(dst, src []uint8, stride int, k []int32) int {
	blocks := len(dst) / 32
	if !Available || blocks == 0 || len(k) == 0 {
		return 0
	}
	_ = src[(len(k)-1)*stride+32*blocks-1]
	bytesAVX2(&dst[0], &src[0], stride, &k[0], len(k), blocks)
	return 32 * blocks
}
