package bank

import (
	"context"
	"math"
	"slices"
)

// codes are the rows with seven bits a number, a quarter of their size: a search
// of a graph that is larger than the caches waits for memory most of its time, and
// has a distance by codes in a half to a third of it (BenchmarkCodes). The nearest by
// their codes are compared in full then. The sum of the squares of two codes' differences ranks as the distance does:
// the offset, one for each dimension, cancels, and the scale is the same for all.
type codes struct {
	codeScale
	width int     // of a code: the dimension rounded up to whole blocks of codeBlock
	data  []uint8 // rows × width, each below 128
}

// codeScale says how numbers become codes: (v − mean)·scale + 64, rounded, within
// 0..127.
type codeScale struct {
	scale float32
	mean  []float32
}

const (
	codeBlock  = 32
	codeSample = 1024 // rows that the scale is chosen by
	// codeTail is the share of numbers that may lie beyond the codes' range.
	codeTail = 0.001
	// codeRank is how many of the nearest by their codes, beside those wanted, are
	// compared in full.
	codeRank = 30
	// codeLeast is the number of numbers from which on rows are coded: 2 MiB of
	// them, about what a core has of caches of its own.
	codeLeast = 512 << 10
)

func codeWidth(dim int) int { return (dim + codeBlock - 1) / codeBlock * codeBlock }

// newCodes codes all rows; nil where they are all alike. The caller keeps them from
// changing.
func newCodes(ctx context.Context, r *rows) *codes {
	c := &codes{codeScale: codeScale{mean: make([]float32, r.dim)}, width: codeWidth(r.dim)}
	n := r.len()
	step := max(1, n/codeSample)
	sums, count := make([]float64, r.dim), 0
	for i := 0; i < n; i += step {
		for j, v := range r.at(uint32(i)) {
			sums[j] += float64(v)
		}
		count++
	}
	for j := range sums {
		c.mean[j] = float32(sums[j] / float64(count))
	}
	var far []float32
	for i := 0; i < n; i += step {
		for j, v := range r.at(uint32(i)) {
			if (i/step+j)%4 == 0 { // a quarter tells as much
				far = append(far, float32(math.Abs(float64(v-c.mean[j]))))
			}
		}
	}
	slices.Sort(far)
	c.scale = 63 / far[len(far)-1-int(codeTail*float64(len(far)))]
	if !(c.scale > 0) || math.IsInf(float64(c.scale), 0) {
		return nil
	}
	c.data = make([]uint8, n*c.width)
	parallel(ctx, n, func() func(int) {
		return func(i int) { c.encode(c.at(uint32(i)), r.at(uint32(i))) }
	})
	return c
}

// encode writes the code of v, whose length is the dimension.
func (c *codes) encode(to []uint8, v []float32) {
	mean := c.mean[:len(v)]
	for j, x := range v {
		to[j] = uint8(max(0, min((x-mean[j])*c.scale+64.5, 127)))
	}
	clear(to[len(v):])
}

func (c *codes) at(i uint32) []uint8 {
	return c.data[int(i)*c.width : (int(i)+1)*c.width]
}

func (c *codes) add(v []float32) {
	c.data = append(c.data, make([]uint8, c.width)...)
	c.encode(c.data[len(c.data)-c.width:], v)
}

// remove takes row i out; the last one takes its place.
func (c *codes) remove(i uint32) {
	last := len(c.data) - c.width
	copy(c.at(i), c.data[last:])
	c.data = c.data[:last]
}

// rankFull gives the nearest of candidates that a search found by codes with their
// distances, nearest first. It overwrites them.
func (s *searcher) rankFull(q []float32, found []candidate) []candidate {
	s.scratch = s.scratch[:0]
	for _, c := range found {
		s.scratch = append(s.scratch, c.row)
	}
	for i, d := range s.measure(q, s.scratch) {
		found[i].distance = d
	}
	sortCandidates(found)
	return found
}

// codeRowsPlain is codeRows in plain loops, for the comparison.
func codeRowsPlain(q, base []uint8, list []uint32, out []float32) {
	for i, r := range list {
		sum := int32(0)
		for j, v := range base[int(r)*len(q) : (int(r)+1)*len(q)] {
			d := int32(q[j]) - int32(v)
			sum += d * d
		}
		out[i] = float32(sum)
	}
}
