package bank

import "slices"

// graphHeader is the length of what precedes the lists in the "hnsw" section,
// which is all uint32: version, M, ef_construction, ef_search, seed (low, high),
// entry point, top layer + 1, number of nodes; then each node's highest layer;
// then layer 0, per node a count and room for 2M links; then for each node in
// turn its layers 1 and up, each a count and room for M links.
const (
	graphHeader  = 9
	graphVersion = 1
)

func (h *hnsw) encode() []uint32 {
	g := &h.graph
	out := make([]uint32, 0, graphHeader+g.len()+len(g.base)+g.len()/8*(g.m+1))
	out = append(out, graphVersion, uint32(g.m), uint32(h.o.EfConstruction), uint32(h.o.EfSearch),
		uint32(h.o.Seed), uint32(h.o.Seed>>32), g.entry, uint32(g.top+1), uint32(g.len()))
	for _, l := range g.layer {
		out = append(out, uint32(l))
	}
	out = append(out, g.base...)
	for _, u := range g.upper {
		out = append(out, u...)
	}
	return out
}

// decodeHNSW checks everything but the links that a search relies on, so that no
// file makes it panic or run forever. Searches bear wrong links, changes do not:
// see checkLinks. The graph's lists are in's own memory.
func decodeHNSW(r *rows, in []uint32) (*hnsw, error) {
	if len(in) < graphHeader || in[0] != graphVersion {
		return nil, corrupt("the graph's header is not one this program reads")
	}
	n := r.len()
	o := GraphOptions{
		M: int(in[1]), EfConstruction: int(in[2]), EfSearch: int(in[3]),
		Seed: uint64(in[4]) | uint64(in[5])<<32,
	}
	if o.M == 0 || o.EfConstruction == 0 || o.EfSearch == 0 {
		return nil, corrupt("the graph's options are zero")
	}
	h, err := newHNSW(r, o)
	if err != nil {
		return nil, corrupt("the graph's options: %v", err)
	}
	g := &h.graph
	if in[6] >= uint32(max(n, 1)) || in[7] > maxLayer+1 || uint64(in[8]) != uint64(n) || (n == 0) != (in[7] == 0) {
		return nil, corrupt("the graph has %d nodes, %d layers and entry point %d; the bank has %d entries",
			in[8], in[7], in[6], n)
	}
	g.entry, g.top = in[6], int(in[7])-1
	in = in[graphHeader:]
	if len(in) < n*(1+2*g.m+1) {
		return nil, corrupt("the graph is cut off")
	}
	g.layer = make([]uint8, n)
	upper := 0
	for i, l := range in[:n] {
		if int(l) > g.top {
			return nil, corrupt("node %d is on layer %d of %d", i, l, g.top)
		}
		g.layer[i] = uint8(l)
		upper += int(l)
	}
	if n > 0 && int(g.layer[g.entry]) != g.top {
		return nil, corrupt("the entry point is not on the top layer")
	}
	in = in[n:]
	base := n * (2*g.m + 1)
	if len(in) != base+upper*(g.m+1) {
		return nil, corrupt("the graph's lists have the wrong length")
	}
	g.base, in = in[:base:base], in[base:]
	g.upper = make([][]uint32, n)
	for i, l := range g.layer {
		if size := int(l) * (g.m + 1); size > 0 {
			g.upper[i], in = in[:size:size], in[size:]
		}
	}
	return h, nil
}

// checkLinks says which link no graph has.
func (g *graph) checkLinks() error {
	n := uint32(g.len())
	for i := range n {
		for l := 0; l <= int(g.layer[i]); l++ {
			if c := g.list(i, l)[0]; int64(c) > int64(g.capacity(l)) {
				return corrupt("node %d has %d links on layer %d", i, c, l)
			}
			for _, t := range g.links(i, l) {
				if t >= n || t == i || int(g.layer[t]) < l {
					return corrupt("node %d links to node %d on layer %d", i, t, l)
				}
			}
		}
	}
	return nil
}

// own gives the graph memory of its own.
func (g *graph) own() {
	g.base = slices.Clone(g.base)
	for i, u := range g.upper {
		g.upper[i] = slices.Clone(u)
	}
}
