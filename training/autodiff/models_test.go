package autodiff

import (
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"math"
	"os"
	"testing"

	"github.com/nearmiss/nearmiss/inference/onnx"
)

// golden is what testdata/generate.py writes about a model.
type golden struct {
	X         floats            `json:"x"`
	Shape     []int             `json:"shape"`
	Loss      float64           `json:"loss"`
	Gradients map[string]floats `json:"gradients"`
}

type floats []float64

func (f *floats) UnmarshalJSON(b []byte) error {
	var s string
	if err := json.Unmarshal(b, &s); err != nil {
		return err
	}
	raw, err := base64.StdEncoding.DecodeString(s)
	for ; len(raw) >= 4; raw = raw[4:] {
		*f = append(*f, float64(math.Float32frombits(binary.LittleEndian.Uint32(raw))))
	}
	return err
}

// TestModelsAgreeWithPyTorch differentiates models as PyTorch exported them and
// compares every parameter's gradient with that of PyTorch.
func TestModelsAgreeWithPyTorch(t *testing.T) {
	for _, name := range []string{"vit", "resnet", "convnext", "hybrid", "unet"} {
		for i := range 4 {
			target, again := Target(i%2), i >= 2
			t.Run(fmt.Sprintf("%s for target %d, recomputed %v", name, target, again), func(t *testing.T) {
				b, err := os.ReadFile("testdata/" + name + ".json")
				if err != nil {
					t.Fatal(err)
				}
				var want golden
				if err := json.Unmarshal(b, &want); err != nil {
					t.Fatal(err)
				}
				g, err := onnx.ReadFile("testdata/" + name + ".onnx")
				if err != nil {
					t.Fatal(err)
				}
				defer g.Close()
				y := g.Outputs()[0]
				var loss *onnx.Value
				if y.Rank() == 2 {
					labels := g.Initializer(onnx.FromInt64("labels", []int64{1, 2}, 2))
					loss = g.Op("SoftmaxCrossEntropyLoss", nil, y, labels)
				} else {
					loss = g.ReduceMean(g.Mul(y, y), false)
				}
				x := g.Inputs()[0]
				var names []string
				params := []*onnx.Value{}
				for name := range want.Gradients {
					names = append(names, name)
					p := g.Lookup(name)
					if p == nil {
						t.Fatalf("the model has no parameter %q", name)
					}
					params = append(params, p)
				}
				options := []Option{For(target)}
				if again {
					options = append(options, Recompute(thirds(g)))
				}
				grads, err := Gradient(g, loss, params, options...)
				if err != nil {
					t.Fatal(err)
				}
				got := runGraph(t, g, map[*onnx.Value]array{x: {want.Shape, want.X}}, append(grads, loss)...)
				for i, name := range names {
					compareScaled(t, name, got[i], want.Gradients[name])
				}
				if l := got[len(grads)][0]; math.Abs(l-want.Loss) > 1e-5*math.Abs(want.Loss) {
					t.Errorf("loss is %v, want %v", l, want.Loss)
				}
			})
		}
	}
}

// thirds labels runs of nodes so that two segments of a graph are recomputed and
// a stretch between them is not.
func thirds(g *onnx.Graph) func(string) string {
	label := map[string]string{}
	n := len(g.Nodes())
	for i, node := range g.Nodes() {
		label[node.Name] = []string{"first", "", "last"}[3*i/n]
	}
	return func(name string) string { return label[name] }
}

// compareScaled allows 2e-4 of the largest element.
func compareScaled(t *testing.T, name string, got, want []float64) {
	t.Helper()
	if len(got) != len(want) {
		t.Errorf("%s: %d elements, want %d", name, len(got), len(want))
		return
	}
	scale, worst := 1e-4, 0.0
	for i, w := range want {
		scale = math.Max(scale, math.Abs(w))
		worst = math.Max(worst, math.Abs(got[i]-w))
	}
	if !(worst <= 2e-4*scale) {
		t.Errorf("%s: off by %g, the largest element is %g", name, worst, scale)
	}
}
