// Package onnx reads, builds and writes ONNX models.
//
// A [Graph] is built operator by operator: [Graph.Op] appends a node, infers
// the static shape of its output and checks it, so a mistake is reported where
// it is made, with the name of the node. The first error sticks: later calls
// do nothing, and [Graph.Err], [Graph.Encode] or [Graph.WriteFile] report it.
//
//	g := onnx.New("two_layers")
//	x := g.Input("x", onnx.Float, 16, 192)
//	h := g.Gelu(g.Linear(x, w1, b1))
//	g.Output("y", g.Linear(h, w2, b2))
//	err := g.WriteFile("model.onnx")
//
// [Decode] and [ReadFile] take models of other tools (operator sets 13 to 23
// of the default domain) and infer every shape anew, folding the integer
// arithmetic that exporters wrap around Reshape, Slice and Expand. Shapes are
// static: a dimension that the file leaves open must be bound with [BindBatch].
//
// Weights are not copied: a [Tensor] may alias the caller's memory or a mapped
// file, is written as it is, and goes to an external data file when the model
// would not fit the 2 GiB of one protobuf message. Package wire has the messages of the
// format.
//
// Shapes, attributes and defaults follow the ONNX operator specification
// (onnx/docs/Operators.md); where versions of an operator differ, the operator
// set of the graph decides. The package knows nothing of ONNX Runtime.
package onnx
