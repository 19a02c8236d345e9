package bench

import (
	"context"
	"fmt"
	"path/filepath"
	"testing"

	"github.com/nearmiss/nearmiss/inference/backbone"
	"github.com/nearmiss/nearmiss/training/finetune"
	"github.com/nearmiss/nearmiss/training/optim"
)

// fineTune is the paper's recipe on random weights.
func fineTune(t testing.TB, s backbone.Spec) finetune.Config {
	t.Helper()
	m, err := backbone.Random(s, 1)
	if err != nil {
		t.Fatal(err)
	}
	cfg := finetune.Config{Backbone: filepath.Join(t.TempDir(), "m.onnx"), Recipe: finetune.Paper()}
	if _, err := m.Write(cfg.Backbone, backbone.Options{}); err != nil {
		t.Fatal(err)
	}
	return cfg
}

func measure(t testing.TB, cfg finetune.Config, o TrainOptions) TrainResult {
	t.Helper()
	spec, src, closeStep, err := finetune.Step(cfg)
	if err != nil {
		t.Fatal(err)
	}
	r, err := Train(context.Background(), spec, src, o)
	if err != nil {
		t.Fatal(err)
	}
	if err := closeStep(); err != nil {
		t.Fatal(err)
	}
	return r
}

// The figures themselves are for `nearmiss bench train`; here only that they
// are taken, and belong together.
func TestTrain(t *testing.T) {
	cfg := fineTune(t, backbone.Spec{
		Family: backbone.ViT, Size: 16, Dim: 64, Depth: 2, Heads: 1, Hidden: 64, Patch: 8, ClassPos: true, NormEps: 1e-6,
	})
	cfg.Recipe.Batch, cfg.Recipe.MicroBatch, cfg.Recipe.FreezeBlocks, cfg.Recipe.Dropout = 8, 4, 1, 0
	r := measure(t, cfg, TrainOptions{Rounds: 2, Steps: 2, Single: true, Profile: true, State: optim.OnDevice})
	for name, v := range map[string]Seconds{"forward": r.Forward, "step": r.Step, "single step": r.SingleStep} {
		if !(v.Min > 0 && v.Min <= v.Median && v.Median <= v.Max) {
			t.Errorf("%s: %+v", name, v)
		}
	}
	if r.State != optim.OnDevice || r.StateWhy != "" {
		t.Errorf("the state is on %q: %s", r.State, r.StateWhy)
	}
	if r.Batch != 8 || r.Trained == 0 || r.Frozen == 0 || r.ForwardGFLOP <= 0 || r.StepGFLOP <= r.ForwardGFLOP ||
		r.RatioGFLOP != r.StepGFLOP/r.ForwardGFLOP || r.Ratio != r.Step.Median/r.Forward.Median {
		t.Errorf("%+v", r)
	}
	var sum float64
	for _, o := range r.Operators {
		sum += o.Share
	}
	if len(r.Operators) == 0 || sum < 0.999 || sum > 1.001 || !(r.UpdateShare > 0 && r.BackwardShare > 0 && r.ForwardShare > 0) {
		t.Errorf("operators %+v, update %v", r.Operators, r.UpdateShare)
	}
}

// BenchmarkStep measures steps of the paper's recipe on random weights:
//
//	go test -bench Step -benchtime 1x ./internal/bench
func BenchmarkStep(b *testing.B) {
	for _, s := range []backbone.Spec{backbone.Tiny, backbone.Small} {
		for _, freeze := range []int{0, 6} {
			for _, dropout := range []float64{0, 0.1} {
				b.Run(fmt.Sprintf("%s/freeze=%d/dropout=%v", s.Name(), freeze, dropout), func(b *testing.B) {
					cfg := fineTune(b, s)
					cfg.Recipe.FreezeBlocks, cfg.Recipe.Dropout = freeze, dropout
					for b.Loop() {
						r := measure(b, cfg, TrainOptions{Rounds: 3, Steps: 2})
						b.ReportMetric(r.Forward.Min, "forward-s")
						b.ReportMetric(r.Step.Min, "step-s")
						b.ReportMetric(r.Step.Min/r.Forward.Min, "ratio")
						b.ReportMetric(r.RatioGFLOP, "ratio-gflop")
						b.ReportMetric(float64(r.PeakMemoryBytes)/(1<<20), "peak-MiB")
					}
				})
			}
		}
	}
}
