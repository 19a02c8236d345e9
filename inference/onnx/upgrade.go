package onnx

import "fmt"

// convert adapts a node that was copied from a graph of another operator set to
// the one of its own graph. Between 13 and 23 only a few operators changed in
// ways that matter here; source: the version lists of onnx/docs/Changelog.md.
func (n *Node) convert(from int) error {
	to := n.graph.opset
	if from == to || n.Domain != "" {
		return nil
	}
	switch n.OpType {
	case "ReduceMean", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceL1", "ReduceL2",
		"ReduceLogSum", "ReduceLogSumExp", "ReduceSumSquare":
		// 18: axes moved from an attribute to an input, as 13 did for ReduceSum.
		axes := n.Attrs.Ints("axes")
		switch {
		case from < 18 && to >= 18 && n.Attrs.Has("axes"):
			delete(n.Attrs, "axes")
			n.Inputs = append(n.Inputs[:1:1], n.graph.Ints(axes...))
		case from >= 18 && to < 18 && n.Input(1) != nil:
			axes, keep := ReducedAxes(n)
			n.Attrs["axes"], n.Attrs["keepdims"] = asInt64(axes), int64(0)
			if keep {
				n.Attrs["keepdims"] = int64(1)
			}
			n.Inputs = n.Inputs[:1]
		}
	case "Split":
		// 18: without sizes the number of parts is an attribute.
		switch {
		case from < 18 && to >= 18 && n.Input(1) == nil:
			n.Attrs["num_outputs"] = int64(len(n.Outputs))
		case from >= 18 && to < 18:
			delete(n.Attrs, "num_outputs")
		}
	case "GroupNormalization": // 21: scale and bias for each channel, not each group
		if (from < 21) != (to < 21) {
			return n.refuse(from)
		}
	case "GridSample": // 20: other names of the modes
		if (from < 20) != (to < 20) {
			return n.refuse(from)
		}
	default:
		if since := introduced[n.OpType]; to < since {
			return n.refuse(from)
		}
	}
	return nil
}

// introduced has the operator set that brought an operator, where that is later
// than 13.
var introduced = map[string]int{
	"HardSwish": 14, "Trilu": 14,
	"LayerNormalization": 17, "Mish": 18, "CenterCropPad": 18,
	"Gelu": 20, "RegexFullMatch": 20, "RMSNormalization": 23, "RotaryEmbedding": 23, "Attention": 23,
}

func (n *Node) refuse(from int) error {
	return fmt.Errorf("%s: it cannot be converted from operator set %d to %d", n, from, n.graph.opset)
}

func asInt64(v []int) []int64 {
	out := make([]int64, len(v))
	for i, x := range v {
		out[i] = int64(x)
	}
	return out
}
