package optim

import (
	"context"
	"math"
	"testing"

	"github.com/nearmiss/nearmiss/inference/onnx"
)

// The figures themselves are for `nearmiss bench train`; here only that they
// are taken, and belong together.
func TestBench(t *testing.T) {
	s := linear()
	r, err := Bench(context.Background(), s, source, BenchOptions{Rounds: 2, Single: true, Profile: true})
	if err != nil {
		t.Fatal(err)
	}
	for name, v := range map[string]Seconds{"forward": r.Forward, "step": r.Step, "single step": r.SingleStep} {
		if !(v.Min > 0 && v.Min <= v.Median && v.Median <= v.Max) {
			t.Errorf("%s: %+v", name, v)
		}
	}
	if r.Trained != inputs+1 || r.Frozen != 1 || r.Batch != examples {
		t.Errorf("%+v", r)
	}
	// x·w and xᵀ·e: the test's loss appends its gradients at once.
	if want := 4e-9 * examples * inputs; math.Abs(r.ForwardGFLOP-want) > 1e-12 || math.Abs(r.StepGFLOP-want) > 1e-12 {
		t.Errorf("%v and %v GFLOP, want %v", r.ForwardGFLOP, r.StepGFLOP, want)
	}
	var sum float64
	for _, o := range r.Operators {
		sum += o.Share
	}
	if len(r.Operators) == 0 || sum < 0.999 || sum > 1.001 || !(r.UpdateShare > 0 && r.ForwardShare > 0) {
		t.Errorf("operators %+v, update %v", r.Operators, r.UpdateShare)
	}
}

func TestFLOPs(t *testing.T) {
	g := onnx.New("f")
	a := g.Input("a", onnx.Float, 2, 3, 4)
	g.MatMul(a, g.Input("b", onnx.Float, 4, 5))                                                                          // 2·(2·3·5)·4
	g.Gemm(g.Input("c", onnx.Float, 6, 7), g.Input("d", onnx.Float, 8, 6), nil, onnx.Attrs{"transA": 1, "transB": 1})    // 2·(7·8)·6
	g.Conv(g.Input("x", onnx.Float, 1, 4, 8, 8), g.Input("w", onnx.Float, 6, 2, 3, 3), nil, onnx.ConvOptions{Group: 2})  // 2·(6·6·6)·(2·9)
	g.ConvTranspose(g.Input("y", onnx.Float, 1, 4, 8, 8), g.Input("v", onnx.Float, 4, 3, 2, 2), nil, onnx.ConvOptions{}) // 2·(4·64)·(3·4)
	g.Op("Einsum", onnx.Attrs{"equation": "bij,jk->bik"}, a, g.Input("e", onnx.Float, 4, 9))                             // 2·2·3·4·9
	if err := g.Err(); err != nil {
		t.Fatal(err)
	}
	if got, want := FLOPs(g), int64(240+672+7776+6144+432); got != want {
		t.Errorf("got %d, want %d", got, want)
	}
}
