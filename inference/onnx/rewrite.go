package onnx

import (
	"fmt"
	"slices"
	"strconv"
)

// Reads returns the values that a node depends on: its inputs and what its
// subgraphs use of the graphs around them.
func (n *Node) Reads() []*Value {
	var out []*Value
	for _, v := range n.Inputs {
		if v != nil {
			out = append(out, v)
		}
	}
	for _, a := range n.Attrs {
		body, ok := a.(*Graph)
		if !ok {
			continue
		}
		for _, v := range body.captured() {
			if n.graph.sees(v) {
				out = append(out, v)
			}
		}
	}
	return out
}

// captured returns the values that a subgraph and those inside it read.
func (g *Graph) captured() []*Value {
	out := append([]*Value(nil), g.outputs...)
	for _, n := range g.nodes {
		out = append(out, n.Reads()...)
	}
	return out
}

// Extend gives a node of g its optional outputs up to the given number and
// returns all of them, such as the Indices of a MaxPool or the Mean and
// InvStdDev of a LayerNormalization.
func (g *Graph) Extend(n *Node, outputs int) []*Value {
	if g.Err() == nil && n.graph != g {
		g.fail(fmt.Errorf("%s: belongs to another graph", n))
	}
	for i := len(n.Outputs); i < outputs; i++ {
		n.Outputs = append(n.Outputs, &Value{producer: n, index: i, graph: g, bad: g.Err() != nil})
	}
	for i, v := range n.Outputs {
		if v.name == "" {
			v.name = g.unique(n.Name + ":" + strconv.Itoa(i))
			g.values[v.name] = v
		}
	}
	if g.Err() == nil {
		g.fail(infer(n))
	}
	return append([]*Value(nil), n.Outputs...)
}

// Replace puts other nodes in the place of n: build appends them with the
// usual calls and returns what computes the outputs of n instead. The output
// values of n stay the same objects with the same names, types and shapes, and
// are outputs of the new nodes afterwards.
func (g *Graph) Replace(n *Node, build func() []*Value) error {
	if g.Err() != nil {
		return g.Err()
	}
	at := slices.Index(g.nodes, n)
	if at < 0 {
		return fmt.Errorf("%s: belongs to another graph", n)
	}
	tail := slices.Clone(g.nodes[at+1:])
	g.nodes = slices.Clone(g.nodes[:at])
	with := build()
	for i, v := range with {
		// Only a value that a new node computes, once, can change its identity.
		if v != nil && !v.bad && (slices.Index(g.nodes[at:], v.producer) < 0 || slices.Contains(with[:i], v)) {
			with[i] = g.Op("Identity", nil, v)
		}
	}
	added := g.nodes[at:]
	g.nodes = append(g.nodes, tail...)
	if g.Err() != nil {
		return g.Err()
	}
	if len(with) != len(n.Outputs) {
		return fmt.Errorf("%s: replaced by %d values, has %d outputs", n, len(with), len(n.Outputs))
	}
	swap := map[*Value]*Value{}
	for i, v := range n.Outputs {
		w := with[i]
		if w.typ != v.typ || !slices.Equal(w.shape, v.shape) {
			return fmt.Errorf("%s: output %d is %s%v, its replacement %s%v", n, i, v.typ, v.shape, w.typ, w.shape)
		}
		swap[w] = v
		delete(g.values, w.name)
		v.producer, v.index = w.producer, w.index
		v.producer.Outputs[v.index] = v
	}
	redirect(added, swap)
	return nil
}

// redirect replaces the inputs of nodes, also in their subgraphs.
func redirect(nodes []*Node, swap map[*Value]*Value) {
	for _, n := range nodes {
		for i, v := range n.Inputs {
			if w := swap[v]; w != nil {
				n.Inputs[i] = w
			}
		}
		for _, a := range n.Attrs {
			if body, ok := a.(*Graph); ok {
				redirect(body.nodes, swap)
			}
		}
	}
}
