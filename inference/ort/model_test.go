package ort

import "github.com/nearmiss/nearmiss/inference/onnx/wire"

// Tiny ONNX models, encoded by hand so that these tests need no builder.

func field(num wire.Number, b []byte) []byte {
	return wire.AppendBytes(nil, num, b)
}

func number(num wire.Number, v int64) []byte {
	return wire.AppendInt(nil, num, v)
}

func join(parts ...[]byte) []byte {
	var out []byte
	for _, p := range parts {
		out = append(out, p...)
	}
	return out
}

// valueInfo encodes a ValueInfoProto; a dimension of -1 is left open.
func valueInfo(name string, t Type, dims ...int) []byte {
	var shape []byte
	for _, d := range dims {
		if d < 0 {
			shape = append(shape, field(1, field(2, []byte("n")))...)
		} else {
			shape = append(shape, field(1, number(1, int64(d)))...)
		}
	}
	return join(field(1, []byte(name)), field(2, field(1, join(number(1, int64(t)), field(2, shape)))))
}

func node(op string, in, out []string, attrs ...[]byte) []byte {
	var b []byte
	for _, s := range in {
		b = append(b, field(1, []byte(s))...)
	}
	for _, s := range out {
		b = append(b, field(2, []byte(s))...)
	}
	b = append(b, field(4, []byte(op))...)
	for _, a := range attrs {
		b = append(b, field(5, a)...)
	}
	return b
}

func graph(nodes, in, out [][]byte, extra ...[]byte) []byte {
	b := field(2, []byte("test"))
	for _, n := range nodes {
		b = append(b, field(1, n)...)
	}
	for _, v := range in {
		b = append(b, field(11, v)...)
	}
	for _, v := range out {
		b = append(b, field(12, v)...)
	}
	return append(b, join(extra...)...)
}

func model(graph []byte) []byte {
	return join(number(1, 8), field(7, graph), field(8, number(2, 17)))
}

// addModel computes z = x + y over float32 of the given shape.
func addModel(dims ...int) []byte {
	return model(graph(
		[][]byte{node("Add", []string{"x", "y"}, []string{"z"})},
		[][]byte{valueInfo("x", Float, dims...), valueInfo("y", Float, dims...)},
		[][]byte{valueInfo("z", Float, dims...)},
	))
}

// spinModel runs a Loop of "trips" additions on v; it takes long for large trips.
func spinModel() []byte {
	body := graph(
		[][]byte{
			node("Identity", []string{"c"}, []string{"c2"}),
			node("Add", []string{"v", "v"}, []string{"v2"}),
		},
		[][]byte{valueInfo("i", Int64), valueInfo("c", Bool), valueInfo("v", Float, 4)},
		[][]byte{valueInfo("c2", Bool), valueInfo("v2", Float, 4)},
	)
	attr := join(field(1, []byte("body")), field(6, body), number(20, 5))
	return model(graph(
		[][]byte{node("Loop", []string{"trips", "", "x"}, []string{"z"}, attr)},
		[][]byte{valueInfo("trips", Int64), valueInfo("x", Float, 4)},
		[][]byte{valueInfo("z", Float, 4)},
	))
}
