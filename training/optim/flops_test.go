package optim

import (
	"testing"

	"github.com/nearmiss/nearmiss/inference/onnx"
)

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
