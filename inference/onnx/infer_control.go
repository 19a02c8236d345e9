package onnx

import "slices"

func init() {
	register(loop, 2, many, "Loop")
	register(ifOp, 1, 1, "If")
}

// loop (Loop-13): inputs are the trip count, the condition and the carried
// values; the body takes iteration, condition and carried values, and gives
// condition, carried values and the values to stack along a new first axis.
// The body is inferred already; its carried shapes must not change.
func loop(c *inference) {
	body := c.attrs().Graph("body")
	if body == nil {
		c.failf("has no body")
	}
	carried := len(c.node.Inputs) - 2
	if len(body.inputs) != carried+2 {
		c.failf("body takes %d inputs, the node gives it %d", len(body.inputs), carried+2)
	}
	scans := len(body.outputs) - 1 - carried
	if scans < 0 {
		c.failf("body has %d outputs, needs the condition and %d carried values", len(body.outputs), carried)
	}
	for i := range carried {
		from, in, out := c.in(i+2), body.inputs[i+2], body.outputs[i+1]
		if !slices.Equal(from.shape, in.shape) || from.typ != in.typ {
			c.failf("carried value %d is %s%v, the body takes %s%v", i, from.typ, from.shape, in.typ, in.shape)
		}
		if !slices.Equal(in.shape, out.shape) || in.typ != out.typ {
			c.failf("carried value %d is %s%v, the body returns %s%v", i, in.typ, in.shape, out.typ, out.shape)
		}
		c.out(i, in.typ, in.shape)
	}
	if scans == 0 {
		return
	}
	if c.opt(0) == nil {
		c.failf("has no trip count: the shapes of what it stacks need it")
	}
	trips := c.constInts(0, "trip count")
	if len(trips) != 1 || trips[0] < 0 {
		c.failf("trip count %v is not one number", trips)
	}
	for i := range scans {
		v := body.outputs[1+carried+i]
		c.out(carried+i, v.typ, append([]int{trips[0]}, v.shape...))
	}
}

// ifOp: both branches must give the same types and shapes.
func ifOp(c *inference) {
	yes, no := c.attrs().Graph("then_branch"), c.attrs().Graph("else_branch")
	if yes == nil || no == nil || len(yes.outputs) != len(no.outputs) {
		c.failf("needs two branches with as many outputs")
	}
	if t := c.in(0).constant; t != nil && t.Type == Bool && t.Elements() == 1 {
		// A known condition decides; exporters leave such nodes behind.
		if t.Data[0] != 0 {
			no = yes
		} else {
			yes = no
		}
	}
	for i, v := range yes.outputs {
		w := no.outputs[i]
		if v.typ != w.typ || !slices.Equal(v.shape, w.shape) {
			c.failf("output %d is %s%v in one branch and %s%v in the other", i, v.typ, v.shape, w.typ, w.shape)
		}
		c.out(i, v.typ, v.shape)
	}
}
