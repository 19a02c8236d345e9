package onnx

import (
	"fmt"
	"maps"
)

// Inline copies the nodes of a model's graph into g and returns what has become
// of its outputs. Each input of src must be in replace; initialisers may be,
// which turns weights into computed values or inputs. Initialisers that are
// not replaced are added to the outermost graph around g, once, without a copy
// of their data, so that a Loop body shares them. Shapes are inferred again: a
// replacement may have another batch size where the graph allows it. Nodes of
// another operator set are converted where the sets differ.
//
// Inline also returns the value in g of every value of src.
func (g *Graph) Inline(src *Graph, replace map[*Value]*Value) (outputs []*Value, values map[*Value]*Value, err error) {
	if g.Err() != nil {
		return nil, nil, g.Err()
	}
	if src.Err() != nil {
		return nil, nil, src.Err()
	}
	values = map[*Value]*Value{}
	maps.Copy(values, replace)
	for _, v := range src.inputs {
		if values[v] == nil {
			return nil, nil, fmt.Errorf("inline %q: input %q is not replaced", src.name, v.name)
		}
	}
	live := src.liveValues()
	if err := g.copyInitializers(src, g.root(), values, live); err != nil {
		return nil, nil, err
	}
	if err := g.copyNodes(src, values, live); err != nil {
		return nil, nil, err
	}
	for _, v := range src.outputs {
		outputs = append(outputs, values[v])
	}
	return outputs, values, nil
}

func (g *Graph) copyInitializers(src, into *Graph, values map[*Value]*Value, live map[*Value]bool) error {
	for _, v := range src.initializers {
		if values[v] != nil || !live[v] {
			continue
		}
		t := *v.constant
		t.Name = g.unique(v.name)
		values[v] = into.addInitializer(&t)
	}
	return g.Err()
}

// copyNodes copies the live nodes of src, whose other values are in values.
func (g *Graph) copyNodes(src *Graph, values map[*Value]*Value, live map[*Value]bool) error {
	for _, n := range src.nodes {
		if !n.isLive(live) {
			continue
		}
		c := &Node{Name: g.unique(g.scope + n.Name), OpType: n.OpType, Domain: n.Domain, Attrs: Attrs{}, graph: g}
		for i, v := range n.Inputs {
			if v != nil && values[v] == nil {
				return fmt.Errorf("inline %q: %s: input %d (%s) is not part of it", src.name, n, i, v.name)
			}
			c.Inputs = append(c.Inputs, values[v])
		}
		for name, a := range n.Attrs {
			body, ok := a.(*Graph)
			if !ok {
				c.Attrs[name] = a
				continue
			}
			b := g.subgraph(g.unique(body.name))
			if err := b.copyBody(body, c, values, live); err != nil {
				return err
			}
			c.Attrs[name] = b
		}
		for i, v := range n.Outputs {
			w := &Value{producer: c, index: i, graph: g}
			if v.name != "" {
				w.name = g.unique(g.scope + v.name)
			}
			c.Outputs = append(c.Outputs, w)
			values[v] = w
		}
		if err := c.convert(src.opset); err != nil {
			return fmt.Errorf("inline %q: %w", src.name, err)
		}
		if err := g.append(c); err != nil {
			return err
		}
	}
	return nil
}

// copyBody copies a subgraph; the inputs of a Loop body take the shapes of what
// the copied node gives it.
func (g *Graph) copyBody(src *Graph, owner *Node, values map[*Value]*Value, live map[*Value]bool) error {
	for i, v := range src.inputs {
		name := g.unique(v.name)
		w := &Value{name: name, typ: v.typ, shape: v.shape, graph: g, kind: input}
		if given := owner.Input(i); given != nil && owner.OpType == "Loop" && i >= 2 {
			w.typ, w.shape = given.typ, given.shape
		}
		g.inputs = append(g.inputs, w)
		g.values[name] = w
		values[v] = w
	}
	if err := g.copyInitializers(src, g, values, live); err != nil {
		return err
	}
	if err := g.copyNodes(src, values, live); err != nil {
		return err
	}
	for _, v := range src.outputs {
		w := values[v]
		if w == nil {
			return fmt.Errorf("inline %q: output %s is not part of it", src.name, v.name)
		}
		g.outputs = append(g.outputs, w)
		g.outputNames[w] = w.name
	}
	return nil
}
