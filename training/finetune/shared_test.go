package finetune

import (
	"context"
	"encoding/json"
	"math"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/nearmiss/nearmiss/inference/backbone"
	"github.com/nearmiss/nearmiss/inference/imaging"
	"github.com/nearmiss/nearmiss/inference/onnx"
	"github.com/nearmiss/nearmiss/inference/ort"
	"github.com/nearmiss/nearmiss/internal/evaldata"
	"github.com/nearmiss/nearmiss/training/autodiff"
	"github.com/nearmiss/nearmiss/training/optim"
)

// TestViTTinySGD reproduces twenty steps of SGD on real weights: every loss,
// every gradient's norm at the first step, every weight's way.
func TestViTTinySGD(t *testing.T) {
	dir := evaldata.Dir(t)
	b, err := os.ReadFile(filepath.Join(dir, "golden", "vit_tiny_sgd.json"))
	if err != nil {
		t.Fatal(err)
	}
	var golden struct {
		Images    []string
		Labels    []int
		Losses    []float64          `json:"loss_before_step"`
		Last      float64            `json:"loss_after_20_steps"`
		Gradients map[string]float64 `json:"gradient_l2_at_step_0"`
		Updates   map[string]float64 `json:"update_l2_after_20_steps"`
	}
	if err := json.Unmarshal(b, &golden); err != nil {
		t.Fatal(err)
	}
	if len(golden.Losses) != 20 || len(golden.Updates) == 0 || len(golden.Gradients) == 0 {
		t.Fatalf("the golden has %d losses, %d gradients, %d updates", len(golden.Losses), len(golden.Gradients), len(golden.Updates))
	}
	path := filepath.Join(t.TempDir(), "vit.onnx")
	if _, err := backbone.Import(filepath.Join(dir, "data", "vit_tiny_patch16_224.safetensors"), path, backbone.ImportOptions{}); err != nil {
		t.Fatal(err)
	}
	n := len(golden.Images)
	recipe := Paper()
	recipe.Batch, recipe.Dropout, recipe.FreezeBlocks = n, 0, 6
	recipe.Optimizer.LearningRate = 1e-3
	top := []onnx.Tensor{onnx.FromFloat32(HeadWeight, make([]float32, 2*192), 2, 192), onnx.FromFloat32(HeadBias, make([]float32, 2), 2)}
	for j := range 2 {
		for i := range 192 {
			top[0].Float32s()[j*192+i] = float32(0.01 * math.Sin(0.1*float64(i+1)*float64(j+1)))
		}
	}
	r := &runner{Config: Config{Recipe: recipe, head: top, Backbone: path, Chunk: 5}, part: recipe.Batch}
	if r.net, err = openNetwork(path, n); err != nil {
		t.Fatal(err)
	}
	defer r.close()
	spec, err := r.spec()
	if err != nil {
		t.Fatal(err)
	}
	pixels := make([]uint8, n*r.net.pre.Bytes())
	target := make([]float32, 2*n)
	for i, f := range golden.Images {
		file, err := os.ReadFile(filepath.Join(dir, "data", f))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := r.net.pre.Apply(file, imaging.Limits{}, pixels[i*r.net.pre.Bytes():][:r.net.pre.Bytes()]); err != nil {
			t.Fatal(err)
		}
		target[2*i+golden.Labels[i]] = 1
	}
	goldenName := func(name string) string {
		switch name {
		case HeadWeight:
			return "new_head.weight"
		case HeadBias:
			return "new_head.bias"
		}
		return name
	}
	within := func(what string, got, want, tol float64) {
		t.Helper()
		if !(math.Abs(got-want) <= tol*math.Abs(want)) {
			t.Errorf("%s: %v, want %v within %v relative", what, got, want, tol)
		}
	}

	if r.trainer, err = optim.New(spec); err != nil {
		t.Fatal(err)
	}
	norms := gradientNorms(t, r, spec, pixels, target)
	worst := 0.0
	for name, want := range golden.Gradients {
		for _, w := range spec.Weights {
			if goldenName(w.Name) == name {
				within("gradient of "+name, norms[w.Name], want, 1e-3)
				worst = max(worst, math.Abs(norms[w.Name]/want-1))
			}
		}
	}
	if len(norms) != len(golden.Gradients) {
		t.Errorf("%d weights have gradients, want %d", len(norms), len(golden.Gradients))
	}
	t.Logf("gradients: off by %.2g at most", worst)

	src := optim.SourceFunc(func(_ context.Context, _ int, b optim.Batch) error {
		copy(b.Uint8s(inputImage), pixels)
		copy(b.Float32s(inputTarget), target)
		return nil
	})
	var losses []float64
	ctx := context.Background()
	if err := r.trainer.Run(ctx, src, 20, optim.RunOptions{Progress: func(_ context.Context, p optim.Progress) error {
		losses = append(losses, p.Losses...)
		return nil
	}}); err != nil {
		t.Fatal(err)
	}
	worst = 0
	for i, want := range golden.Losses {
		within("loss before a step", losses[i], want, 1e-3)
		worst = max(worst, math.Abs(losses[i]/want-1))
	}
	last, _, err := r.trainer.Evaluate(ctx, src, 1)
	if err != nil {
		t.Fatal(err)
	}
	within("loss after 20 steps", last, golden.Last, 1e-3)
	t.Logf("losses: off by %.2g at most", worst)

	worst = 0
	after, err := r.trainer.Weights()
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range golden.Updates {
		i := slices.IndexFunc(spec.Weights, func(w onnx.Tensor) bool { return goldenName(w.Name) == name })
		if i < 0 {
			t.Fatalf("no weight %s", name)
		}
		sum := 0.0
		before := spec.Weights[i].Float32s()
		for j, v := range after[i].Float32s() {
			d := float64(v) - float64(before[j])
			sum += d * d
		}
		within("update of "+name, math.Sqrt(sum), want, 2e-3)
		worst = max(worst, math.Abs(math.Sqrt(sum)/want-1))
	}
	t.Logf("updates: off by %.2g at most", worst)
}

// gradientNorms runs the differentiated loss once, weights as inputs.
func gradientNorms(t *testing.T, r *runner, spec optim.Spec, pixels []uint8, target []float32) map[string]float64 {
	t.Helper()
	g := onnx.New("gradients")
	n, side := r.Recipe.Batch, r.net.pre.Crop
	batch := []*onnx.Value{g.Input(inputImage, onnx.Uint8, n, side, side, 3), g.Input(inputTarget, onnx.Float, n, 2)}
	trained := r.trainer.Trained()
	values := map[string]*onnx.Value{}
	x, err := ort.NewTensor([]int{n, side, side, 3}, pixels)
	if err != nil {
		t.Fatal(err)
	}
	y, err := ort.NewTensor([]int{n, 2}, target)
	if err != nil {
		t.Fatal(err)
	}
	in := []*ort.Tensor{x, y}
	defer func() { ort.CloseAll(in...) }()
	var params []*onnx.Value
	for _, w := range spec.Weights {
		if !slices.Contains(trained, w.Name) {
			continue
		}
		values[w.Name] = g.Input(w.Name, onnx.Float, w.Shape...)
		params = append(params, values[w.Name])
		v, err := ort.NewTensor(w.Shape, w.Float32s())
		if err != nil {
			t.Fatal(err)
		}
		in = append(in, v)
	}
	loss, err := spec.Loss(g, batch, func(name string) *onnx.Value {
		if values[name] == nil {
			i := slices.IndexFunc(spec.Weights, func(w onnx.Tensor) bool { return w.Name == name })
			values[name] = g.Initializer(spec.Weights[i])
		}
		return values[name]
	})
	if err != nil {
		t.Fatal(err)
	}
	grads, err := autodiff.Gradient(g, loss.Value, params)
	if err != nil {
		t.Fatal(err)
	}
	for i, v := range grads {
		g.Output("gradient/"+params[i].Name(), v)
	}
	model, err := g.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	s, err := ort.OpenBytes(model, ort.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	out, err := s.Run(context.Background(), in)
	if err != nil {
		t.Fatal(err)
	}
	defer ort.CloseAll(out...)
	norms := map[string]float64{}
	for i, v := range out {
		sum := 0.0
		for _, x := range v.Float32s() {
			sum += float64(x) * float64(x)
		}
		norms[params[i].Name()] = math.Sqrt(sum)
	}
	return norms
}
