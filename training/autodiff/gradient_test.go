package autodiff

import (
	"fmt"
	"math"
	"slices"
	"strings"
	"testing"

	"github.com/nearmiss/nearmiss/inference/onnx"
)

func TestFrozenPartsGetNoGradientNodes(t *testing.T) {
	g := onnx.New("frozen")
	x := g.Input("x", onnx.Float, 4, 3)
	weight := func(name string) *onnx.Value {
		return g.Initializer(onnx.FromFloat32(name, make([]float32, 9), 3, 3))
	}
	frozen, trained, last := weight("frozen"), weight("trained"), weight("last")
	func() {
		defer g.Scope("first")()
		x = g.Op("Tanh", nil, g.MatMul(x, frozen))
	}()
	x = g.MatMul(g.Op("Tanh", nil, g.MatMul(x, trained)), last)
	loss := g.ReduceSum(g.Mul(x, x), false)
	before := len(g.Nodes())
	if _, err := Gradient(g, loss, []*onnx.Value{trained}); err != nil {
		t.Fatal(err)
	}
	products := 0
	for _, n := range g.Nodes()[before:] {
		if strings.Contains(n.Name, "first/") {
			t.Errorf("node %s differentiates the frozen part", n)
		}
		if n.OpType == "Gemm" {
			products++
		}
	}
	// dX of the last layer and dW of the trained one; no dX of the latter, no
	// dW of the former.
	if products != 2 {
		t.Errorf("%d matrix products, want 2", products)
	}
}

func TestErrorsNameTheNode(t *testing.T) {
	for name, c := range map[string]struct {
		build func(g *onnx.Graph, x *onnx.Value) *onnx.Value
		want  string
	}{
		"no rule": {func(g *onnx.Graph, x *onnx.Value) *onnx.Value {
			return g.ReduceSum(g.Op("Hardmax", nil, x), false)
		}, `Hardmax "Hardmax"`},
		"mode of a rule": {func(g *onnx.Graph, x *onnx.Value) *onnx.Value {
			return g.ReduceSum(g.Op("Pad", onnx.Attrs{"mode": "reflect"}, x, g.Ints(0, 1, 0, 1)), false)
		}, `Pad "Pad": mode "reflect" is not supported`},
		"no scalar": {func(_ *onnx.Graph, x *onnx.Value) *onnx.Value { return x }, "is not a scalar"},
	} {
		t.Run(name, func(t *testing.T) {
			g := onnx.New("g")
			x := g.Input("x", onnx.Float, 3, 4)
			_, err := Gradient(g, c.build(g, x), []*onnx.Value{x})
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, want %q in it", err, c.want)
			}
		})
	}
}

func TestParameterWithoutInfluenceGetsZeros(t *testing.T) {
	g := onnx.New("g")
	x, idle := g.Input("x", onnx.Float, 2), g.Input("idle", onnx.Float, 3)
	grads, err := Gradient(g, g.ReduceSum(x, false), []*onnx.Value{x, idle})
	if err != nil {
		t.Fatal(err)
	}
	got, err := evaluate(g, map[*onnx.Value]array{x: newArray(2), idle: newArray(3)}, grads...)
	if err != nil || !slices.Equal(got[0].data, []float64{1, 1}) || !slices.Equal(got[1].data, []float64{0, 0, 0}) {
		t.Errorf("gradients %v, %v", got, err)
	}
}

// TestTrainingInsideALoop minimises ‖tanh(x·A)·W − t‖² by plain gradient
// descent in one ONNX Loop whose body holds forward pass, gradient and update,
// reads the frozen A of the graph around it, and compares the losses with the
// same steps done here in float64.
func TestTrainingInsideALoop(t *testing.T) {
	const steps, rate = 8, 0.1
	a := []float32{0.5, -0.3, 0.8, 0.1, 0.2, -0.7}
	w := []float32{0.3, -0.2, 0.1, 0.4}
	xs := []float32{1, 2, 3, -1, 0.5, 0.25}
	target := []float32{0.5, -1, 1, 0.3}

	g := onnx.New("descent")
	frozen := g.Initializer(onnx.FromFloat32("a", a, 3, 2))
	start := g.Input("w", onnx.Float, 2, 2)
	x := g.Initializer(onnx.FromFloat32("x", xs, 2, 3))
	want := g.Initializer(onnx.FromFloat32("t", target, 2, 2))
	final, losses := g.Loop(g.Const(onnx.Int64, steps), []*onnx.Value{start},
		func(b *onnx.Graph, _ *onnx.Value, carried []*onnx.Value) (next, stacked []*onnx.Value) {
			d := b.Sub(b.MatMul(b.Op("Tanh", nil, b.MatMul(x, frozen)), carried[0]), want)
			loss := b.ReduceSum(b.Mul(d, d), false)
			grads, err := Gradient(b, loss, carried)
			if err != nil {
				t.Fatal(err)
			}
			return []*onnx.Value{b.Sub(carried[0], b.Scale(grads[0], rate))}, []*onnx.Value{loss}
		})
	if err := g.Err(); err != nil {
		t.Fatal(err)
	}
	data := make([]float64, len(w))
	for i, v := range w {
		data[i] = float64(v)
	}
	got := runGraph(t, g, map[*onnx.Value]array{start: {[]int{2, 2}, data}}, losses[0], final[0])

	var h [4]float64
	for i := range 2 {
		for j := range 2 {
			for k := range 3 {
				h[2*i+j] += float64(xs[3*i+k]) * float64(a[2*k+j])
			}
			h[2*i+j] = math.Tanh(h[2*i+j])
		}
	}
	for step := range steps {
		loss := 0.0
		var grad [4]float64
		for i := range 2 {
			for j := range 2 {
				d := h[2*i]*data[j] + h[2*i+1]*data[2+j] - float64(target[2*i+j])
				loss += d * d
				for k := range 2 {
					grad[2*k+j] += 2 * d * h[2*i+k]
				}
			}
		}
		if math.Abs(got[0][step]-loss) > 1e-5 {
			t.Errorf("step %d: loss %v, want %v", step, got[0][step], loss)
		}
		for i := range data {
			data[i] -= rate * grad[i]
		}
	}
	for i, v := range data {
		if math.Abs(got[1][i]-v) > 1e-5 {
			t.Errorf("final weight %d is %v, want %v", i, got[1][i], v)
		}
	}
}

func TestDecomposeLeavesNothingThatCUDALacks(t *testing.T) {
	g := onnx.NewOpset("g", 23)
	x := g.Input("x", onnx.Float, 2, 4, 3, 3)
	h := g.Op("GroupNormalization", onnx.Attrs{"num_groups": 2}, x, g.Floats(1, 1, 1, 1), g.Floats(0, 0, 0, 0))
	h = g.Op("Attention", nil, h, h, h)
	scores := g.Reshape(h, 2, -1)
	y := g.Op("SoftmaxCrossEntropyLoss", nil, scores, g.Ints(1, 2))
	g.Output("loss", y)
	for _, n := range slices.Clone(g.Nodes()) {
		if err := decomposeNode(g, n); err != nil {
			t.Fatal(err)
		}
	}
	for _, n := range g.Nodes() {
		if decompositions[n.OpType] != nil {
			t.Errorf("%s is still there", n)
		}
	}
	if g.Outputs()[0] != y || y.Name() != "loss" {
		t.Errorf("the output has changed: %v", g.Outputs()[0])
	}
	if _, err := evaluate(g, map[*onnx.Value]array{x: newArray(2, 4, 3, 3)}, y); err != nil {
		t.Error(err)
	}
}

// ExampleGradient fits a line: the graph's outputs are the loss and its
// gradients.
func ExampleGradient() {
	g := onnx.New("line")
	x, y := g.Input("x", onnx.Float, 16, 1), g.Input("y", onnx.Float, 16, 1)
	slope, offset := g.Input("slope", onnx.Float, 1, 1), g.Input("offset", onnx.Float, 1)
	d := g.Sub(g.Linear(x, slope, offset), y)
	loss := g.ReduceMean(g.Mul(d, d), false)
	grads, err := Gradient(g, loss, []*onnx.Value{slope, offset})
	if err != nil {
		fmt.Println(err)
		return
	}
	g.Output("loss", loss)
	g.Output("slope_gradient", grads[0])
	g.Output("offset_gradient", grads[1])
	for _, v := range g.Outputs() {
		fmt.Println(v)
	}
	// Output:
	// loss float[]
	// slope_gradient float[1 1]
	// offset_gradient float[1]
}
