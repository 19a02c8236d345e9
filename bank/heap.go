package bank

import "slices"

// before orders candidates by distance, ties by row.
func (c candidate) before(d candidate) bool {
	return c.distance < d.distance || (c.distance == d.distance && c.row < d.row)
}

func sortCandidates(c []candidate) {
	slices.SortFunc(c, func(a, b candidate) int {
		switch {
		case a.before(b):
			return -1
		case b.before(a):
			return 1
		}
		return 0
	})
}

// minHeap has the nearest candidate on top. container/heap would cost an
// interface call per comparison in the innermost loop of a search.
type minHeap []candidate

func (h *minHeap) push(c candidate) {
	*h = append(*h, c)
	s := *h
	i := len(s) - 1
	for i > 0 {
		p := (i - 1) / 2
		if !c.before(s[p]) {
			break
		}
		s[i] = s[p]
		i = p
	}
	s[i] = c
}

func (h *minHeap) pop() candidate {
	s := *h
	top, c := s[0], s[len(s)-1]
	s = s[:len(s)-1]
	*h = s
	if len(s) == 0 {
		return top
	}
	i := 0
	for {
		j := 2*i + 1
		if j >= len(s) {
			break
		}
		if j+1 < len(s) && s[j+1].before(s[j]) {
			j++
		}
		if !s[j].before(c) {
			break
		}
		s[i] = s[j]
		i = j
	}
	s[i] = c
	return top
}

// maxHeap has the farthest candidate on top.
type maxHeap []candidate

func (h *maxHeap) push(c candidate) {
	*h = append(*h, c)
	s := *h
	i := len(s) - 1
	for i > 0 {
		p := (i - 1) / 2
		if !s[p].before(c) {
			break
		}
		s[i] = s[p]
		i = p
	}
	s[i] = c
}

// replaceTop takes the farthest out and puts c in.
func (h maxHeap) replaceTop(c candidate) {
	i := 0
	for {
		j := 2*i + 1
		if j >= len(h) {
			break
		}
		if j+1 < len(h) && h[j].before(h[j+1]) {
			j++
		}
		if !c.before(h[j]) {
			break
		}
		h[i] = h[j]
		i = j
	}
	h[i] = c
}
