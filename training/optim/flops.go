package optim

import (
	"github.com/nearmiss/nearmiss/inference/onnx"
)

// FLOPs counts the floating-point operations of the matrix products and
// convolutions of a graph, 2 for each multiplication with addition. The body
// of a Loop counts once.
func FLOPs(g *onnx.Graph) int64 {
	var sum int64
	for _, n := range g.Nodes() {
		for _, a := range n.Attrs {
			if sub, ok := a.(*onnx.Graph); ok {
				sum += FLOPs(sub)
			}
		}
		if len(n.Outputs) == 0 {
			continue
		}
		out := int64(n.Outputs[0].Elements())
		switch n.OpType {
		case "MatMul", "FusedMatMul":
			a := n.Inputs[0]
			inner := a.Dim(-1)
			if n.Attrs.Int("transA", 0) != 0 {
				inner = a.Dim(-2)
			}
			sum += 2 * out * int64(inner)
		case "Gemm":
			inner := n.Inputs[0].Dim(1)
			if n.Attrs.Int("transA", 0) != 0 {
				inner = n.Inputs[0].Dim(0)
			}
			sum += 2 * out * int64(inner)
		case "Conv":
			w := n.Inputs[1] // [out, in/group, kernel…]
			sum += 2 * out * int64(w.Elements()/max(w.Dim(0), 1))
		case "ConvTranspose":
			w := n.Inputs[1] // [in, out/group, kernel…]
			sum += 2 * int64(n.Inputs[0].Elements()) * int64(w.Elements()/max(w.Dim(0), 1))
		case "Einsum":
			sum += einsumFLOPs(n)
		}
	}
	return sum
}

// einsumFLOPs is twice the product of all labels' sizes, for two operands.
func einsumFLOPs(n *onnx.Node) int64 {
	terms, _, problem := onnx.EinsumTerms(n.Attrs.String("equation", ""))
	if problem != "" || len(terms) != 2 {
		return 0
	}
	sizes := map[any]int{}
	for i, term := range terms {
		for j, l := range term {
			sizes[l] = n.Inputs[i].Dim(j)
		}
	}
	p := int64(2)
	for _, s := range sizes {
		p *= int64(s)
	}
	return p
}
