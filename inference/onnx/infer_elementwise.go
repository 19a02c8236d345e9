package onnx

import "slices"

func init() {
	register(unary, 1, 1,
		"Identity", "Abs", "Neg", "Exp", "Log", "Sqrt", "Reciprocal", "Erf", "Sign",
		"Sin", "Cos", "Tan", "Asin", "Acos", "Atan", "Sinh", "Cosh", "Tanh", "Asinh", "Acosh", "Atanh",
		"Floor", "Ceil", "Round", "Sigmoid", "Relu", "LeakyRelu", "Elu", "Selu", "Celu", "ThresholdedRelu",
		"HardSigmoid", "HardSwish", "Softplus", "Softsign", "Gelu", "Mish", "Swish", "Shrink",
		"Not", "BitwiseNot", "com.microsoft:Gelu", "com.microsoft:QuickGelu")
	register(unary, 1, 3, "Clip")
	register(unary, 1, 2, "com.microsoft:FastGelu")
	register(predicate, 1, 1, "IsNaN", "IsInf")
	register(elementwise, 2, 2, "Add", "Sub", "Mul", "Div", "Mod", "And", "Or", "Xor",
		"BitShift", "BitwiseAnd", "BitwiseOr", "BitwiseXor", "com.microsoft:BiasGelu")
	register(power, 2, 2, "Pow")
	register(prelu, 2, 2, "PRelu")
	register(comparison, 2, 2, "Equal", "Greater", "Less", "GreaterOrEqual", "LessOrEqual")
	register(variadic, 1, many, "Min", "Max", "Sum", "Mean")
	register(where, 3, 3, "Where")
	register(cast, 1, 1, "Cast")
	register(castLike, 2, 2, "CastLike")
	register(dropout, 1, 3, "Dropout")
	register(random, 0, 0, "RandomNormal", "RandomUniform")
	register(randomLike, 1, 1, "RandomNormalLike", "RandomUniformLike", "Bernoulli")
	register(quantize, 2, 3, "QuantizeLinear")
	register(dequantize, 2, 3, "DequantizeLinear")
}

// unary: the output is like the first input.
func unary(c *inference) { c.out(0, c.in(0).typ, c.in(0).shape) }

func predicate(c *inference) { c.out(0, Bool, c.in(0).shape) }

func elementwise(c *inference) {
	c.out(0, c.sameType(0, 1), c.broadcast(c.in(0).shape, c.in(1).shape))
}

// power: the exponent may have another type than the base.
func power(c *inference) { c.out(0, c.in(0).typ, c.broadcast(c.in(0).shape, c.in(1).shape)) }

// prelu: the slope broadcasts to the input, not the other way round.
func prelu(c *inference) {
	if x := c.in(0); !slices.Equal(c.broadcast(x.shape, c.in(1).shape), x.shape) {
		c.failf("slope %v does not broadcast to %v", c.in(1).shape, x.shape)
	}
	c.out(0, c.sameType(0, 1), c.in(0).shape)
}

func comparison(c *inference) {
	c.sameType(0, 1)
	c.out(0, Bool, c.broadcast(c.in(0).shape, c.in(1).shape))
}

func variadic(c *inference) {
	shape := c.in(0).shape
	for i := 1; i < len(c.node.Inputs); i++ {
		c.sameType(0, i)
		shape = c.broadcast(shape, c.in(i).shape)
	}
	c.out(0, c.in(0).typ, shape)
}

func where(c *inference) {
	if c.in(0).typ != Bool {
		c.failf("condition has type %s, wants bool", c.in(0).typ)
	}
	c.out(0, c.sameType(1, 2), c.broadcast(c.in(0).shape, c.broadcast(c.in(1).shape, c.in(2).shape)))
}

// typeAttr returns an attribute that is an element type.
func (c *inference) typeAttr(name string, def DataType) DataType {
	t := DataType(c.attrs().Int(name, int(def)))
	if t.Size() == 0 {
		c.failf("%s: element type %s is not supported", name, t)
	}
	return t
}

func cast(c *inference) { c.out(0, c.typeAttr("to", Undefined), c.in(0).shape) }

func castLike(c *inference) { c.out(0, c.in(1).typ, c.in(0).shape) }

// dropout: output 1 is the mask.
func dropout(c *inference) {
	c.out(0, c.in(0).typ, c.in(0).shape)
	c.out(1, Bool, c.in(0).shape)
}

func random(c *inference) { c.out(0, c.typeAttr("dtype", Float), c.attrs().Ints("shape")) }

func randomLike(c *inference) { c.out(0, c.typeAttr("dtype", c.in(0).typ), c.in(0).shape) }

func quantize(c *inference) {
	t := c.typeAttr("output_dtype", Uint8)
	if z := c.opt(2); z != nil {
		t = z.typ
	}
	c.out(0, t, c.in(0).shape)
}

func dequantize(c *inference) { c.out(0, c.in(1).typ, c.in(0).shape) }
