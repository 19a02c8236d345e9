package sde

import (
	"testing"

	"github.com/nearmiss/nearmiss/inference/onnx"
	"github.com/nearmiss/nearmiss/inference/ort"
)

// blank makes every weight a graph input.
func blank(g *onnx.Graph) source {
	return func(name string, shape []int, _ initial) *onnx.Value { return g.Input(name, onnx.Float, shape...) }
}

// runGraph runs a graph of float inputs once and returns copies of its outputs.
func runGraph(t testing.TB, g *onnx.Graph, inputs ...[]float32) [][]float32 {
	t.Helper()
	model, err := g.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	s, err := ort.OpenBytes(model, ort.Options{IntraOpThreads: 1})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	var in []*ort.Tensor
	for i, data := range inputs {
		x, err := ort.NewTensor(g.Inputs()[i].Shape(), data)
		if err != nil {
			t.Fatal(err)
		}
		defer x.Close()
		in = append(in, x)
	}
	out, err := s.Run(t.Context(), in)
	if err != nil {
		t.Fatal(err)
	}
	defer ort.CloseAll(out...)
	var copies [][]float32
	for _, o := range out {
		copies = append(copies, append([]float32(nil), o.Float32s()...))
	}
	return copies
}
