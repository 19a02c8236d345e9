package bank

import (
	"cmp"
	"math"
	"slices"
)

// ranked is a candidate as one number, which orders candidates by distance, ties by
// row: the bits of a float that is not negative order as it does.
type ranked uint64

func (c candidate) ranked() ranked {
	return ranked(math.Float32bits(c.distance))<<32 | ranked(c.row)
}

func (r ranked) distance() float32 { return math.Float32frombits(uint32(r >> 32)) }
func (r ranked) row() uint32       { return uint32(r) }

func sortCandidates(c []candidate) {
	slices.SortFunc(c, func(a, b candidate) int { return cmp.Compare(a.ranked(), b.ranked()) })
}

// heap has the least on top: the nearest candidate, or of complements (^ranked) the
// farthest. container/heap would cost an interface call per comparison in the innermost
// loop of a search.
type heap []ranked

func (h *heap) push(c ranked) {
	*h = append(*h, c)
	s := *h
	i := len(s) - 1
	for i > 0 {
		p := (i - 1) / 2
		if c >= s[p] {
			break
		}
		s[i] = s[p]
		i = p
	}
	s[i] = c
}

func (h *heap) pop() ranked {
	s := *h
	top, c := s[0], s[len(s)-1]
	*h = s[:len(s)-1]
	if len(*h) > 0 {
		h.replaceTop(c)
	}
	return top
}

// replaceTop takes the top out and puts c in.
func (h heap) replaceTop(c ranked) {
	i := 0
	for {
		j := 2*i + 1
		if j >= len(h) {
			break
		}
		if j+1 < len(h) && h[j+1] < h[j] {
			j++
		}
		if h[j] >= c {
			break
		}
		h[i] = h[j]
		i = j
	}
	h[i] = c
}
