package bank

import (
	"cmp"
	"context"
	"fmt"
	"math"
	"slices"
	"sync"
)

// GraphOptions shape an HNSW graph. The zero value of a field means its default.
type GraphOptions struct {
	// M is the number of links a new node asks for on each layer, 2..128; a
	// node keeps at most M links above layer 0 and 2M on it. Default 16.
	M int `json:"m"`
	// EfConstruction is the number of candidates a new node's links are chosen
	// from, at least M. Default 200.
	EfConstruction int `json:"ef_construction"`
	// EfSearch is the number of candidates a search keeps; more is slower and
	// finds more. Default 64; Build raises it until the recall gate is content.
	EfSearch int `json:"ef_search"`
	// Seed decides on which layers nodes live. Equal seeds and equal entries in
	// equal order make equal graphs, on any number of cores.
	Seed uint64 `json:"seed"`
}

const (
	maxM     = 128
	maxEf    = 1 << 16
	maxLayer = 24
)

func (o GraphOptions) withDefaults() (GraphOptions, error) {
	o.M = cmp.Or(o.M, 16)
	o.EfConstruction = cmp.Or(o.EfConstruction, max(200, o.M))
	o.EfSearch = cmp.Or(o.EfSearch, 64)
	if o.M < 2 || o.M > maxM {
		return o, fmt.Errorf("hnsw: M is %d, must be in 2..%d", o.M, maxM)
	}
	if o.EfConstruction < o.M || o.EfConstruction > maxEf {
		return o, fmt.Errorf("hnsw: ef_construction is %d, must be in %d..%d", o.EfConstruction, o.M, maxEf)
	}
	if o.EfSearch < 1 || o.EfSearch > maxEf {
		return o, fmt.Errorf("hnsw: ef_search is %d, must be in 1..%d", o.EfSearch, maxEf)
	}
	return o, nil
}

// hnsw is a hierarchical navigable small world graph over the bank's rows, after
// Malkov & Yashunin, "Efficient and robust approximate nearest neighbor search
// using Hierarchical Navigable Small World graphs" (arXiv 1603.09320): algorithm
// numbers in this package are that paper's.
//
// Searches hold rows.mu for reading. A change first plans under writer alone,
// beside running searches, which takes nearly all of its time, and then writes
// the planned lists under rows.mu. Nothing but writer's holder changes rows or
// graph, so the plan may read both without rows.mu.
type hnsw struct {
	rows   *rows
	writer sync.Mutex
	o      GraphOptions
	graph  graph
	codes  *codes    // of the rows, or nil; guarded as they are
	pool   sync.Pool // *searcher
}

// graph is the links. Node numbers are row numbers.
type graph struct {
	m     int
	entry uint32 // a node of the top layer; meaningless while the graph is empty
	top   int    // the highest layer, −1 while empty
	layer []uint8
	// base holds layer 0: for each node a count and room for 2m links.
	base []uint32
	// upper holds layers 1..layer[node], each a count and room for m links;
	// nil for most nodes.
	upper [][]uint32
}

func (g *graph) len() int { return len(g.layer) }

func (g *graph) capacity(layer int) int {
	if layer == 0 {
		return 2 * g.m
	}
	return g.m
}

// list is the count and links of a node on a layer it lives on.
func (g *graph) list(node uint32, layer int) []uint32 {
	if layer == 0 {
		stride := 2*g.m + 1
		return g.base[int(node)*stride : (int(node)+1)*stride]
	}
	stride := g.m + 1
	return g.upper[node][(layer-1)*stride : layer*stride]
}

func (g *graph) links(node uint32, layer int) []uint32 {
	l := g.list(node, layer)
	return l[1 : 1+l[0]]
}

// follow puts the links of a node on a layer into to, without those that lead
// nowhere: a graph in a file may not have been looked through.
func (g *graph) follow(node uint32, layer int, to []uint32) []uint32 {
	to = to[:0]
	if int(node) >= len(g.layer) || layer > int(g.layer[node]) {
		return to
	}
	l := g.list(node, layer)
	for _, n := range l[1 : 1+min(l[0], uint32(len(l)-1))] {
		if int(n) < len(g.layer) {
			to = append(to, n)
		}
	}
	return to
}

func (g *graph) setLinks(node uint32, layer int, links []uint32) {
	l := g.list(node, layer)
	l[0] = uint32(copy(l[1:], links))
}

// extend adds a node without links.
func (g *graph) extend(layer int) {
	g.layer = append(g.layer, uint8(layer))
	g.base = append(g.base, make([]uint32, 2*g.m+1)...)
	var up []uint32
	if layer > 0 {
		up = make([]uint32, layer*(g.m+1))
	}
	g.upper = append(g.upper, up)
}

// layerOf draws a node's highest layer from its id, geometric with ratio 1/M
// (the paper's mL = 1/ln M), so that it does not depend on the order of things.
func layerOf(seed, id uint64, m int) int {
	// splitmix64's finaliser (Steele, Lea & Flood 2014), twice to mix the seed in
	x := mix(mix(seed+0x9e3779b97f4a7c15) ^ id)
	u := (float64(x>>11) + 1) / (1 << 53) // (0, 1]
	return min(int(-math.Log(u)/math.Log(float64(m))), maxLayer)
}

func mix(x uint64) uint64 {
	x += 0x9e3779b97f4a7c15
	x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9
	x = (x ^ (x >> 27)) * 0x94d049bb133111eb
	return x ^ (x >> 31)
}

func newHNSW(r *rows, o GraphOptions) (*hnsw, error) {
	o, err := o.withDefaults()
	if err != nil {
		return nil, err
	}
	return &hnsw{rows: r, o: o, graph: graph{m: o.M, top: -1}}, nil
}

func (h *hnsw) Kind() Kind { return HNSW }

func (h *hnsw) Len() int {
	h.rows.mu.RLock()
	defer h.rows.mu.RUnlock()
	return h.rows.len()
}

func (h *hnsw) SearchBatch(ctx context.Context, queries []float32, k int) ([][]Neighbour, error) {
	h.rows.mu.RLock()
	defer h.rows.mu.RUnlock()
	m, err := h.rows.checkQueries(queries, k)
	if err != nil {
		return nil, err
	}
	out := make([][]Neighbour, m)
	parallel(ctx, m, func() func(int) {
		return func(i int) { out[i] = h.search(queries[i*h.rows.dim:(i+1)*h.rows.dim], k, h.o.EfSearch) }
	})
	return out, ctx.Err()
}

// search is the paper's algorithm 5. The caller holds rows.mu.
func (h *hnsw) search(q []float32, k, ef int) []Neighbour {
	if h.graph.top < 0 {
		return nil
	}
	k = min(k, h.rows.len())
	s := h.searcher()
	defer h.pool.Put(s)
	s.by(h.codes, q)
	at := s.descend(q, h.graph.top, 0)
	found := s.layer(q, at, max(ef, k), 0)
	if s.codes != nil {
		s.codes = nil
		found = s.rankFull(q, found[:min(len(found), k+codeRank)])
	}
	return h.rows.finish(q, found[:min(len(found), k+slack)], k)
}

func (h *hnsw) searcher() *searcher {
	s, _ := h.pool.Get().(*searcher)
	if s == nil {
		s = &searcher{}
	}
	s.rows, s.graph, s.codes = h.rows, &h.graph, nil
	return s
}

// searcher is the scratch memory of one search.
type searcher struct {
	rows    *rows
	graph   *graph
	visited []uint32 // epoch in which a node was last visited
	epoch   uint32
	open    heap // nodes whose links are to be followed, the nearest on top
	found   heap // the ef nearest so far: their complements, the farthest on top
	sorted  []candidate
	scratch []uint32
	squares []float32
	codes   *codes  // that distances are measured by; nil: by the rows
	code    []uint8 // of the query
}

// by has distances to q measured by codes, where there are any.
func (s *searcher) by(c *codes, q []float32) {
	if s.codes = c; c == nil {
		return
	}
	if len(s.code) != c.width {
		s.code = make([]uint8, c.width)
	}
	c.encode(s.code, q)
}

// measure gives the squared distances of rows to q; valid until the next call.
func (s *searcher) measure(q []float32, list []uint32) []float32 {
	out := s.room(len(list))
	if s.codes != nil {
		codeRows(s.code, s.codes.data, list, out)
	} else {
		squaredL2Rows(q, s.rows.data, list, out)
	}
	return out
}

func (s *searcher) room(n int) []float32 {
	if len(s.squares) < n {
		s.squares = make([]float32, 2*n)
	}
	return s.squares[:n]
}

func (s *searcher) begin() {
	if n := s.graph.len(); len(s.visited) < n {
		s.visited = make([]uint32, n+n/8)
		s.epoch = 0
	}
	s.epoch++
	if s.epoch == 0 {
		clear(s.visited)
		s.epoch = 1
	}
	s.open, s.found = s.open[:0], s.found[:0]
}

// fresh gives the links of a node on a layer that this search has not seen, and marks
// them as visited. It is follow and the check of visited in one pass without a branch on
// what it sees, which no processor can foretell.
func (s *searcher) fresh(node uint32, layer int) []uint32 {
	g := s.graph
	if int(node) >= len(g.layer) || layer > int(g.layer[node]) {
		return nil
	}
	l := g.list(node, layer)
	links := l[1 : 1+min(l[0], uint32(len(l)-1))]
	if cap(s.scratch) < len(links) {
		s.scratch = make([]uint32, g.capacity(0))
	}
	visited, epoch, to, n := s.visited[:len(g.layer)], s.epoch, s.scratch[:len(links)], 0
	for _, t := range links {
		if int(t) >= len(visited) {
			continue
		}
		to[n] = t
		was := visited[t]
		visited[t] = epoch
		if was != epoch {
			n++
		}
	}
	return to[:n]
}

// descend walks greedily from the entry point on layer from down to just above
// layer to, and returns where it arrives.
func (s *searcher) descend(q []float32, from, to int) candidate {
	at := candidate{s.measure(q, []uint32{s.graph.entry})[0], s.graph.entry}
	for l := from; l > to; l-- {
		for moved := true; moved; {
			moved = false
			links := s.graph.follow(at.row, l, s.scratch)
			s.scratch = links
			for i, d := range s.measure(q, links) {
				if d < at.distance {
					at, moved = candidate{d, links[i]}, true
				}
			}
		}
	}
	return at
}

// layer is the paper's algorithm 2: the ef nearest nodes of a layer that the
// search reaches, nearest first. The result is valid until the next call.
func (s *searcher) layer(q []float32, start candidate, ef, layer int) []candidate {
	s.begin()
	s.visited[start.row] = s.epoch
	s.open.push(start.ranked())
	s.found.push(^start.ranked())
	for len(s.open) > 0 {
		c := s.open.pop()
		if c.distance() > (^s.found[0]).distance() && len(s.found) >= ef {
			break
		}
		fresh := s.fresh(c.row(), layer)
		for i, d := range s.measure(q, fresh) {
			n := candidate{d, fresh[i]}.ranked()
			if len(s.found) < ef {
				s.open.push(n)
				s.found.push(^n)
			} else if d < (^s.found[0]).distance() {
				s.open.push(n)
				s.found.replaceTop(^n)
			}
		}
	}
	slices.Sort(s.found)
	s.sorted = s.sorted[:0]
	for _, r := range slices.Backward(s.found) {
		s.sorted = append(s.sorted, candidate{(^r).distance(), (^r).row()})
	}
	return s.sorted
}
