package onnx

import (
	"fmt"
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
// usual calls and returns what stands for the outputs of n, whose uses are
// redirected. Types and shapes must stay the same.
func (g *Graph) Replace(n *Node, build func() []*Value) error {
	if g.Err() != nil {
		return g.Err()
	}
	at := -1
	for i, m := range g.nodes {
		if m == n {
			at = i
		}
	}
	if at < 0 {
		return fmt.Errorf("%s: belongs to another graph", n)
	}
	tail := append([]*Node(nil), g.nodes[at+1:]...)
	g.nodes = g.nodes[:at:at]
	with := build()
	g.nodes = append(g.nodes, tail...)
	if g.Err() != nil {
		return g.Err()
	}
	if len(with) != len(n.Outputs) {
		return fmt.Errorf("%s: replaced by %d values, has %d outputs", n, len(with), len(n.Outputs))
	}
	swap := map[*Value]*Value{}
	for i, v := range n.Outputs {
		if with[i].typ != v.typ || !equalShapes(with[i].shape, v.shape) {
			return fmt.Errorf("%s: output %d is %s%v, its replacement %s%v", n, i, v.typ, v.shape, with[i].typ, with[i].shape)
		}
		swap[v] = with[i]
		delete(g.values, v.name)
	}
	redirect(tail, swap)
	for i, v := range g.outputs {
		w := swap[v]
		if w == nil {
			continue
		}
		// The graph output keeps its name.
		delete(g.values, w.name)
		w.name = v.name
		g.values[w.name] = w
		delete(g.outputNames, v)
		g.outputNames[w] = w.name
		g.outputs[i] = w
	}
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
