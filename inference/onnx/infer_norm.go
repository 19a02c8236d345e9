package onnx

import "slices"

func init() {
	register(softmax, 1, 1, "Softmax", "LogSoftmax", "Hardmax", "LpNormalization")
	register(unary, 1, 1, "LRN", "MeanVarianceNormalization")
	register(layerNorm, 2, 3, "LayerNormalization")
	register(rmsNorm, 2, 2, "RMSNormalization")
	register(channelNorm, 3, 3, "InstanceNormalization", "GroupNormalization")
	register(batchNorm, 5, 5, "BatchNormalization")
}

func softmax(c *inference) {
	x := c.rankAtLeast(0, 1)
	c.axis(c.attrs().Int("axis", -1), len(x.shape))
	c.out(0, x.typ, x.shape)
}

// layerNorm: outputs 1 and 2 are the mean and the inverse standard deviation,
// in the stash type, with the normalised dimensions reduced to 1.
func layerNorm(c *inference) {
	x := c.rankAtLeast(0, 1)
	axis := c.axis(c.attrs().Int("axis", -1), len(x.shape))
	for i := 1; i < len(c.node.Inputs); i++ {
		c.unidirectional(i, x.shape)
	}
	c.out(0, x.typ, x.shape)
	stats := cloneShape(x.shape)
	for i := axis; i < len(stats); i++ {
		stats[i] = 1
	}
	stash := c.typeAttr("stash_type", Float)
	if x.typ == Double {
		stash = Double
	}
	c.out(1, stash, stats)
	c.out(2, stash, stats)
}

// unidirectional fails unless input i broadcasts to shape.
func (c *inference) unidirectional(i int, shape []int) {
	v := c.opt(i)
	if v == nil {
		return
	}
	if s, ok := Broadcast(v.shape, shape); !ok || !slices.Equal(s, shape) {
		c.failf("input %d has shape %v, which does not broadcast to %v", i, v.shape, shape)
	}
}

func rmsNorm(c *inference) {
	x := c.rankAtLeast(0, 1)
	c.axis(c.attrs().Int("axis", -1), len(x.shape))
	c.unidirectional(1, x.shape)
	c.out(0, x.typ, x.shape)
}

// channelNorm: scale and bias have one number a channel; GroupNormalization of
// operator sets below 21 has one a group.
func channelNorm(c *inference) {
	x := c.rankAtLeast(0, 3)
	want := x.shape[1]
	if c.node.OpType == "GroupNormalization" {
		groups := c.attrs().Int("num_groups", 0)
		if groups <= 0 || x.shape[1]%groups != 0 {
			c.failf("%d channels do not split into %d groups", x.shape[1], groups)
		}
		if c.opset() < 21 {
			want = groups
		}
	}
	for i := 1; i <= 2; i++ {
		if s := c.in(i).shape; len(s) != 1 || s[0] != want {
			c.failf("input %d has shape %v, wants [%d]", i, s, want)
		}
	}
	c.out(0, x.typ, x.shape)
}

// batchNorm: in training mode outputs 1 and 2 are the running statistics.
func batchNorm(c *inference) {
	x := c.rankAtLeast(0, 2)
	for i := 1; i <= 4; i++ {
		if s := c.in(i).shape; len(s) != 1 || s[0] != x.shape[1] {
			c.failf("input %d has shape %v, wants [%d]", i, s, x.shape[1])
		}
	}
	c.out(0, x.typ, x.shape)
	if c.attrs().Int("training_mode", 0) != 0 {
		c.out(1, c.in(3).typ, c.in(3).shape)
		c.out(2, c.in(4).typ, c.in(4).shape)
	}
}
