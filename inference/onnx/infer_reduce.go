package onnx

import "slices"

func init() {
	register(reduce, 1, 2, "ReduceSum", "ReduceMean", "ReduceMax", "ReduceMin", "ReduceProd",
		"ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceSumSquare")
	register(argReduce, 1, 1, "ArgMax", "ArgMin")
	register(topK, 2, 2, "TopK")
	register(crossEntropy, 2, 3, "SoftmaxCrossEntropyLoss")
	register(likelihoodLoss, 2, 3, "NegativeLogLikelihoodLoss")
}

// ReducedAxes returns the axes, in ascending order, that a Reduce node whose
// shapes have been inferred reduces, and whether it keeps them as 1.
func ReducedAxes(n *Node) (axes []int, keep bool) { return (&inference{n}).reduced() }

// reduced: axes are an attribute or, from operator set 13 (ReduceSum) or 18
// (the others) on, input 1. No axes means all, unless noop_with_empty_axes.
func (c *inference) reduced() (axes []int, keep bool) {
	rank := len(c.in(0).shape)
	keep = c.attrs().Int("keepdims", 1) != 0
	list := c.attrs().Ints("axes")
	if c.opt(1) != nil {
		list = c.constInts(1, "axes")
	}
	if len(list) == 0 {
		if c.attrs().Int("noop_with_empty_axes", 0) != 0 {
			return nil, keep
		}
		return Axes(0, rank), keep
	}
	axes = c.axes(list, rank)
	slices.Sort(axes)
	return axes, keep
}

func reducedShape(shape, axes []int, keep bool) []int {
	out := []int{}
	next := 0
	for i, d := range shape {
		if next < len(axes) && axes[next] == i {
			next++
			if keep {
				out = append(out, 1)
			}
			continue
		}
		out = append(out, d)
	}
	return out
}

func reduce(c *inference) {
	axes, keep := c.reduced()
	c.out(0, c.in(0).typ, reducedShape(c.in(0).shape, axes, keep))
}

func argReduce(c *inference) {
	x := c.rankAtLeast(0, 1)
	axis := c.axis(c.attrs().Int("axis", 0), len(x.shape))
	c.out(0, Int64, reducedShape(x.shape, []int{axis}, c.attrs().Int("keepdims", 1) != 0))
}

func topK(c *inference) {
	x := c.rankAtLeast(0, 1)
	axis := c.axis(c.attrs().Int("axis", -1), len(x.shape))
	k := c.constInts(1, "k")
	if len(k) != 1 || k[0] < 0 || k[0] > x.shape[axis] {
		c.failf("k %v of dimension %d of %v", k, axis, x.shape)
	}
	shape := cloneShape(x.shape)
	shape[axis] = k[0]
	c.out(0, x.typ, shape)
	c.out(1, Int64, shape)
}

// lossShape: scores [N,C,d...], labels [N,d...].
func (c *inference) lossShape() []int {
	scores, labels := c.rankAtLeast(0, 2), c.in(1)
	if !slices.Equal(labels.shape, append(cloneShape(scores.shape[:1]), scores.shape[2:]...)) {
		c.failf("labels %v do not fit scores %v", labels.shape, scores.shape)
	}
	if w := c.opt(2); w != nil && !slices.Equal(w.shape, scores.shape[1:2]) {
		c.failf("weights %v do not fit scores %v", w.shape, scores.shape)
	}
	if c.attrs().String("reduction", "mean") == "none" {
		return labels.shape
	}
	return nil
}

// crossEntropy: output 1 is the log probability.
func crossEntropy(c *inference) {
	c.out(0, c.in(0).typ, c.lossShape())
	c.out(1, c.in(0).typ, c.in(0).shape)
}

func likelihoodLoss(c *inference) { c.out(0, c.in(0).typ, c.lossShape()) }
