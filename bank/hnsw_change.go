package bank

import (
	"cmp"
	"context"
	"slices"
)

// Add links a new vector in. Searches go on while its links are chosen.
func (h *hnsw) Add(id uint64, v []float32) error {
	h.writer.Lock()
	defer h.writer.Unlock()
	if err := h.rows.checkNew(id, v); err != nil {
		return err
	}
	p := h.plan(v, layerOf(h.o.Seed, id, h.o.M), nil)
	node := uint32(h.graph.len())
	backs := h.planBacks(p.backs(node, nil), h.place(&freshRow{node: node, vector: v}))
	h.rows.mu.Lock()
	defer h.rows.mu.Unlock()
	h.rows.add(id, v)
	if h.codes != nil {
		h.codes.add(v)
	}
	h.graph.extend(p.layer)
	h.commit(node, p)
	for _, b := range backs {
		h.graph.setLinks(b.node, b.layer, b.links)
	}
	return nil
}

// placement is where a new node goes: its highest layer and its links on each.
type placement struct {
	layer int
	links [][]candidate // by layer, nearest first
}

// peer is a node that is being placed at the same time.
type peer struct {
	candidate
	layer int
}

// plan is the search half of the paper's algorithm 1: it chooses links for v
// from the graph as it is and from peers, and changes nothing.
func (h *hnsw) plan(v []float32, layer int, peers []peer) placement {
	p := placement{layer: layer, links: make([][]candidate, layer+1)}
	s := h.searcher()
	defer h.pool.Put(s)
	s.by(h.codes, v)
	top := h.graph.top
	var at candidate
	if top >= 0 {
		at = s.descend(v, top, layer)
	}
	for l := layer; l >= 0; l-- {
		var found []candidate
		if l <= top {
			found = s.layer(v, at, h.o.EfConstruction, l)
			at = found[0]
		}
		if reached := len(found); len(peers) > 0 {
			for _, q := range peers {
				if q.layer >= l && (reached < h.o.EfConstruction || q.distance < found[reached-1].distance) {
					found = append(found, q.candidate)
				}
			}
			sortCandidates(found)
			found = found[:min(len(found), h.o.EfConstruction)]
		}
		p.links[l] = h.choose(s, found, h.o.M, nil)
	}
	return p
}

// choose is the paper's algorithm 4, its diversity heuristic: going outwards, a
// candidate is taken if it is nearer to the new node than to every candidate
// taken before it. Candidates are sorted, nearest first. A duplicate of one
// taken before is never taken: many equal vectors (a camera looking at a still
// scene) would else link only to each other and be lost to the rest.
func (h *hnsw) choose(s *searcher, sorted []candidate, m int, fresh *freshRow) []candidate {
	out, rows := make([]candidate, 0, min(m, len(sorted))), make([]uint32, 0, min(m, len(sorted)))
next:
	for _, c := range sorted {
		if len(out) == m {
			break
		}
		// A few at a time: the first of them that is nearer ends it, and those taken
		// first are the likeliest.
		for i := 0; i < len(rows); i += chooseStep {
			for _, d := range h.between(s, c.row, rows[i:min(i+chooseStep, len(rows))], fresh) {
				if d < c.distance || d == 0 {
					continue next
				}
			}
		}
		out, rows = append(out, c), append(rows, c.row)
	}
	return out
}

// chooseStep is how many distances the kernels sum side by side.
const chooseStep = 4

// freshRow is a row that is planned but not yet stored.
type freshRow struct {
	node   uint32
	vector []float32
	code   []uint8 // where the graph has codes
}

// place codes a fresh row where the graph has codes.
func (h *hnsw) place(f *freshRow) *freshRow {
	if h.codes != nil {
		f.code = make([]uint8, h.codes.width)
		h.codes.encode(f.code, f.vector)
	}
	return f
}

// between gives the squared distances, by codes where there are any, of a row to others,
// one of which may be fresh; valid until s measures again.
func (h *hnsw) between(s *searcher, from uint32, to []uint32, fresh *freshRow) []float32 {
	out := s.room(len(to))
	if fresh == nil {
		h.distances(from, to, out)
		return out
	}
	for i, n := range to {
		switch fresh.node {
		case from:
			h.toFresh(fresh, n, out[i:i+1])
		case n:
			h.toFresh(fresh, from, out[i:i+1])
		default:
			h.distances(from, to[i:i+1], out[i:i+1])
		}
	}
	return out
}

// distances puts the squared distances of a row to others into out.
func (h *hnsw) distances(from uint32, to []uint32, out []float32) {
	if c := h.codes; c != nil {
		codeRows(c.at(from), c.data, to, out)
	} else {
		squaredL2Rows(h.rows.at(from), h.rows.data, to, out)
	}
}

func (h *hnsw) toFresh(f *freshRow, node uint32, out []float32) {
	if f.node == node {
		out[0] = 0
	} else if c := h.codes; c != nil {
		codeRows(f.code, c.data, []uint32{node}, out)
	} else {
		squaredL2Rows(f.vector, h.rows.data, []uint32{node}, out)
	}
}

// back is a link from an old node to a new one that wants to be made.
type back struct {
	node  uint32 // from
	layer int
	to    candidate // the new node, and how far it is from node
}

func (p placement) backs(node uint32, out []back) []back {
	for l, links := range p.links {
		for _, c := range links {
			out = append(out, back{c.row, l, candidate{c.distance, node}})
		}
	}
	return out
}

// newList is a list to be written.
type newList struct {
	node  uint32
	layer int
	links []uint32
}

// planBacks gives the lists of old nodes after one new node, the fresh one, has been
// linked back.
func (h *hnsw) planBacks(backs []back, fresh *freshRow) []newList {
	out := make([]newList, len(backs))
	for i, b := range backs {
		links := h.withBacks(b.node, b.layer, []candidate{b.to}, fresh)
		out[i] = newList{b.node, b.layer, links}
	}
	return out
}

// withBacks adds links to a node's list, and where they do not fit keeps a
// diverse choice.
func (h *hnsw) withBacks(node uint32, layer int, add []candidate, fresh *freshRow) []uint32 {
	links := slices.Clone(h.graph.links(node, layer))
	for _, c := range add {
		if !slices.Contains(links, c.row) {
			links = append(links, c.row)
		}
	}
	if len(links) > h.graph.capacity(layer) {
		links = h.diverse(node, links, layer, fresh)
	}
	return links
}

// diverse cuts a node's links down to what its layer holds.
func (h *hnsw) diverse(node uint32, links []uint32, layer int, fresh *freshRow) []uint32 {
	s := h.searcher()
	defer h.pool.Put(s)
	all := make([]candidate, len(links))
	for i, d := range h.between(s, node, links, fresh) {
		all[i] = candidate{d, links[i]}
	}
	sortCandidates(all)
	out := links[:0]
	for _, c := range h.choose(s, all, h.graph.capacity(layer), fresh) {
		out = append(out, c.row)
	}
	return out
}

// commit writes a placed node's own links.
func (h *hnsw) commit(node uint32, p placement) {
	links := make([]uint32, 0, h.o.M)
	for l, chosen := range p.links {
		links = links[:0]
		for _, c := range chosen {
			links = append(links, c.row)
		}
		h.graph.setLinks(node, l, links)
	}
	if p.layer > h.graph.top {
		h.graph.top, h.graph.entry = p.layer, node
	}
}

// build links all stored rows into the empty graph, on all cores. Nodes are
// placed in rounds: those of one round are planned side by side against the
// graph of the rounds before and against each other, so the result depends on
// neither the number of cores nor on timing. Rounds grow with the graph, so
// that a round is always a small share of it. Nothing else may use h.
func (h *hnsw) build(ctx context.Context) error {
	n := h.rows.len()
	h.graph = graph{m: h.o.M, top: -1}
	h.graph.layer = slices.Grow(h.graph.layer, n)
	h.graph.upper = slices.Grow(h.graph.upper, n)
	h.graph.base = slices.Grow(h.graph.base, n*(2*h.o.M+1))
	for done := 0; done < n; {
		if err := ctx.Err(); err != nil {
			return err
		}
		size := min(max(1, done/32), 256, n-done)
		h.round(ctx, done, size)
		done += size
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	h.connect()
	return nil
}

// round places rows first..first+size−1.
func (h *hnsw) round(ctx context.Context, first, size int) {
	layers, list := make([]int, size), make([]uint32, size)
	for i := range layers {
		list[i] = uint32(first + i)
		layers[i] = layerOf(h.o.Seed, h.rows.ids[first+i], h.o.M)
	}
	placed := make([]placement, size)
	parallel(ctx, size, func() func(int) {
		peers, squares := make([]peer, 0, size), make([]float32, size)
		return func(i int) {
			v := h.rows.at(uint32(first + i))
			h.distances(uint32(first+i), list, squares)
			peers = peers[:0]
			for j, d := range squares {
				if j != i {
					peers = append(peers, peer{candidate{d, list[j]}, layers[j]})
				}
			}
			placed[i] = h.plan(v, layers[i], peers)
		}
	})
	if ctx.Err() != nil {
		return
	}
	var backs []back
	for i, p := range placed {
		h.graph.extend(p.layer)
		backs = p.backs(uint32(first+i), backs)
	}
	for i, p := range placed {
		h.commit(uint32(first+i), p)
	}
	// Each list that gets links back is written by one goroutine.
	slices.SortStableFunc(backs, func(a, b back) int {
		return cmp.Or(cmp.Compare(a.layer, b.layer), cmp.Compare(a.node, b.node))
	})
	var groups [][]back
	for i := 0; i < len(backs); {
		j := i + 1
		for j < len(backs) && backs[j].node == backs[i].node && backs[j].layer == backs[i].layer {
			j++
		}
		groups = append(groups, backs[i:j])
		i = j
	}
	// Not interrupted by ctx: a half-linked round would be no graph.
	parallel(context.WithoutCancel(ctx), len(groups), func() func(int) {
		var add []candidate
		return func(i int) {
			add = add[:0]
			for _, b := range groups[i] {
				add = append(add, b.to)
			}
			node, layer := groups[i][0].node, groups[i][0].layer
			h.graph.setLinks(node, layer, h.withBacks(node, layer, add, nil))
		}
	})
}

// connect makes every node of layer 0 reachable from the entry point: choosing
// diverse links can drop a node's last incoming one. A lost node is linked
// from the nearest found node that has room, or else in place of that node's
// farthest link whose target has other ways in.
func (h *hnsw) connect() {
	n := h.graph.len()
	if n == 0 {
		return
	}
	reached := make([]bool, n)
	queue := []uint32{h.graph.entry}
	reached[h.graph.entry] = true
	spread := func() {
		for len(queue) > 0 {
			c := queue[len(queue)-1]
			queue = queue[:len(queue)-1]
			for _, l := range h.graph.links(c, 0) {
				if !reached[l] {
					reached[l] = true
					queue = append(queue, l)
				}
			}
		}
	}
	spread()
	for i := range uint32(n) {
		if reached[i] {
			continue
		}
		h.linkTo(i)
		reached[i] = true
		queue = append(queue, i)
		spread()
	}
}

// linkTo gives node an incoming link on layer 0 from the nearest node with room
// that a search reaches. It only ever adds links, so nothing gets lost by it.
func (h *hnsw) linkTo(node uint32) {
	s := h.searcher()
	defer h.pool.Put(s)
	v := h.rows.at(node)
	s.by(h.codes, v)
	at := s.descend(v, h.graph.top, 0)
	for ef := h.o.EfConstruction; ; ef *= 4 {
		found := s.layer(v, at, ef, 0)
		for _, c := range found {
			if l := h.graph.list(c.row, 0); c.row != node && int(l[0]) < h.graph.capacity(0) {
				l[0]++
				l[l[0]] = node
				return
			}
		}
		if len(found) < ef { // everything reachable is full
			break
		}
	}
}

// Remove takes a node out and closes the gap: whoever linked to it chooses new
// links among its old ones and the removed node's.
func (h *hnsw) Remove(id uint64) error {
	h.writer.Lock()
	defer h.writer.Unlock()
	gone, err := h.rows.find(id)
	if err != nil {
		return err
	}
	g := &h.graph
	last := uint32(g.len() - 1)

	// Plan, beside running searches. One pass over all lists finds who links
	// to the removed node, who links to the last one (which will get the
	// removed one's number), and who else links to the removed node's targets.
	incoming := make(map[uint32]int)
	for _, n := range g.links(gone, 0) {
		incoming[n] = 0
	}
	var changed []newList
	for n := range uint32(g.len()) {
		if n == gone {
			continue
		}
		for l := 0; l <= int(g.layer[n]); l++ {
			links := g.links(n, l)
			hit, moved := slices.Contains(links, gone), slices.Contains(links, last)
			if hit {
				links = h.without(n, gone, l)
			}
			if hit || moved {
				changed = append(changed, newList{n, l, slices.Clone(links)})
			}
			if l == 0 {
				for _, t := range links {
					if _, ok := incoming[t]; ok {
						incoming[t]++
					}
				}
			}
		}
	}
	entry, top := h.newEntry(gone)

	h.rows.mu.Lock()
	defer h.rows.mu.Unlock()
	for _, c := range changed {
		g.setLinks(c.node, c.layer, c.links)
	}
	g.entry, g.top = entry, top
	var lost []uint32
	for n, in := range incoming {
		if in == 0 {
			lost = append(lost, n)
		}
	}
	slices.Sort(lost)
	h.rows.remove(gone)
	if h.codes != nil {
		h.codes.remove(gone)
	}
	if gone != last {
		for _, c := range changed {
			links := g.links(c.node, c.layer)
			for i, t := range links {
				if t == last {
					links[i] = gone
				}
			}
		}
		for i, n := range lost {
			if n == last {
				lost[i] = gone
			}
		}
		copy(g.list(gone, 0), g.list(last, 0))
		g.upper[gone], g.layer[gone] = g.upper[last], g.layer[last]
		if g.entry == last {
			g.entry = gone
		}
	}
	g.upper[last] = nil
	g.upper, g.layer = g.upper[:last], g.layer[:last]
	g.base = g.base[:int(last)*(2*g.m+1)]
	for _, n := range lost {
		h.linkTo(n)
	}
	return nil
}

// without gives a node's links once gone is gone: its others and gone's, a
// diverse choice of them.
func (h *hnsw) without(node, gone uint32, layer int) []uint32 {
	var links []uint32
	for _, from := range [][]uint32{h.graph.links(node, layer), h.graph.links(gone, layer)} {
		for _, t := range from {
			if t != gone && t != node && !slices.Contains(links, t) {
				links = append(links, t)
			}
		}
	}
	if len(links) > h.graph.capacity(layer) {
		links = h.diverse(node, links, layer, nil)
	}
	return links
}

// newEntry is the entry point and top layer once gone is gone.
func (h *hnsw) newEntry(gone uint32) (entry uint32, top int) {
	if gone != h.graph.entry {
		return h.graph.entry, h.graph.top
	}
	top = -1
	for n, l := range h.graph.layer {
		if uint32(n) != gone && int(l) > top {
			entry, top = uint32(n), int(l)
		}
	}
	return entry, top
}
