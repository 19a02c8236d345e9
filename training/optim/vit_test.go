package optim_test

import (
	"context"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/nearmiss/nearmiss/inference/backbone"
	"github.com/nearmiss/nearmiss/inference/onnx"
	"github.com/nearmiss/nearmiss/inference/ort"
	"github.com/nearmiss/nearmiss/training/optim"
)

// binary is the loss of the paper's fine-tune: a linear head with two outputs
// on the embedding, cross entropy.
func binary(m *backbone.Model) optim.LossFunc {
	return func(g *onnx.Graph, batch []*onnx.Value, w optim.Weights) (optim.Loss, error) {
		f, err := m.Forward(g, batch[0], backbone.ForwardOptions{Param: w.Param})
		if err != nil {
			return optim.Loss{}, err
		}
		n := batch[0].Dim(0)
		logits := g.Linear(f.Embedding, w("new_head.weight"), w("new_head.bias"))
		picked := g.Op("GatherElements", onnx.Attrs{"axis": 1}, g.LogSoftmax(logits, 1), g.Reshape(batch[1], n, 1))
		return optim.Loss{Value: g.Neg(g.ReduceMean(picked, false))}, nil
	}
}

// tinyViT is a fine-tune of a small random ViT; the batch is eight noisy images
// in two classes that differ in brightness.
func tinyViT(t *testing.T) (optim.Spec, optim.Source) {
	t.Helper()
	arch := backbone.Tiny
	arch.Dim, arch.Heads, arch.Hidden, arch.Depth, arch.Size, arch.Patch = 64, 1, 128, 3, 32, 8
	m, err := backbone.Random(arch, 3)
	if err != nil {
		t.Fatal(err)
	}
	const n = 8
	spec := optim.Spec{
		Name: "tiny",
		Weights: append(m.Tensors(),
			onnx.FromFloat32("new_head.weight", make([]float32, 2*arch.Dim), arch.Dim, 2),
			onnx.FromFloat32("new_head.bias", make([]float32, 2), 2)),
		Inputs: []optim.Input{
			{Name: "image", Type: onnx.Uint8, Shape: []int{n, arch.Size, arch.Size, 3}},
			{Name: "label", Type: onnx.Int64, Shape: []int{n}},
		},
		Groups:    []optim.Group{{Pattern: "blocks.0.*", Freeze: true}},
		Loss:      binary(m),
		Optimizer: optim.Optimizer{Kind: optim.AdamW, LearningRate: 1e-3, WeightDecay: 1e-3, Clip: 1, EMA: 0.9},
		Session:   ort.Options{IntraOpThreads: 1},
	}
	source := optim.SourceFunc(func(_ context.Context, step int, b optim.Batch) error {
		r := rand.New(rand.NewPCG(9, uint64(step)))
		pixels, labels := b.Uint8s("image"), b.Int64s("label")
		for i := range labels {
			labels[i] = int64(i % 2)
			size := len(pixels) / n
			for j := range size {
				pixels[i*size+j] = uint8(60*(i%2) + r.IntN(120))
			}
		}
		return nil
	})
	return spec, source
}

func lossesOf(t *testing.T, spec optim.Spec, source optim.Source, steps int) (losses []float64, weights []onnx.Tensor) {
	t.Helper()
	trainer, err := optim.New(spec)
	if err != nil {
		t.Fatal(err)
	}
	defer trainer.Close()
	if err := trainer.Run(context.Background(), source, steps, optim.RunOptions{Progress: func(_ context.Context, p optim.Progress) error {
		losses = append(losses, p.Losses...)
		return nil
	}}); err != nil {
		t.Fatal(err)
	}
	if weights, err = trainer.Weights(); err != nil {
		t.Fatal(err)
	}
	return losses, weights
}

// TestViTLearns trains the same network in every arrangement.
func TestViTLearns(t *testing.T) {
	spec, source := tinyViT(t)
	want, weights := lossesOf(t, spec, source, 12)
	if first, last := want[0], want[len(want)-1]; !(last < first/2) {
		t.Errorf("the loss went from %v to %v", first, last)
	}
	for i, w := range weights {
		changed := !slices.Equal(w.Float32s(), spec.Weights[i].Float32s())
		frozen := len(w.Name) > 9 && w.Name[:9] == "blocks.0."
		if changed == frozen {
			t.Errorf("%s: frozen %v, changed %v", w.Name, frozen, changed)
		}
	}
	t.Run("steps as single calls, bit for bit", func(t *testing.T) {
		spec := spec
		spec.SingleSteps = true
		if got, _ := lossesOf(t, spec, source, 12); !slices.Equal(got, want) {
			t.Errorf("losses %v, want %v", got, want)
		}
	})
	t.Run("weights that stay in the device's memory, bit for bit", func(t *testing.T) {
		for _, single := range []bool{false, true} {
			spec := spec
			spec.State, spec.SingleSteps = optim.OnDevice, single
			got, there := lossesOf(t, spec, source, 12)
			same := slices.EqualFunc(there, weights, func(a, b onnx.Tensor) bool { return slices.Equal(a.Float32s(), b.Float32s()) })
			if !same || !slices.Equal(got, want) {
				t.Errorf("losses %v, want %v", got, want)
			}
		}
	})
	t.Run("gradients gathered from four parts of the batch", func(t *testing.T) {
		spec := spec
		spec.Accumulate = 4
		got, _ := lossesOf(t, spec, source, 12)
		for i := range want {
			if math.Abs(got[i]-want[i]) > 1e-3*(1e-2+want[i]) {
				t.Errorf("loss %d is %v, want %v", i, got[i], want[i])
			}
		}
	})
	t.Run("activations computed again for the gradients", func(t *testing.T) {
		spec := spec
		spec.Recompute = func(node string) string {
			_, block, _ := strings.Cut(node, "blocks.")
			block, _, _ = strings.Cut(block, "/")
			return block
		}
		got, _ := lossesOf(t, spec, source, 12)
		for i := range want {
			if math.Abs(got[i]-want[i]) > 1e-3*(1e-2+want[i]) {
				t.Errorf("loss %d is %v, want %v", i, got[i], want[i])
			}
		}
	})
}
