package finetune

import (
	"context"
	"fmt"
	"path/filepath"
	"testing"

	"github.com/nearmiss/nearmiss/inference/backbone"
	"github.com/nearmiss/nearmiss/training/optim"
)

func TestBench(t *testing.T) {
	cfg := config(t)
	res, err := Bench(context.Background(), cfg, optim.BenchOptions{Rounds: 1, Steps: 1})
	if err != nil {
		t.Fatal(err)
	}
	if res.Batch != 8 || res.StepGFLOP <= res.ForwardGFLOP || res.Step.Median <= 0 {
		t.Errorf("%+v", res)
	}
}

// BenchmarkStep measures steps of the paper's recipe on random weights:
//
//	go test -bench Step -benchtime 1x ./training/finetune
func BenchmarkStep(b *testing.B) {
	for _, s := range []backbone.Spec{backbone.Tiny, backbone.Small} {
		for _, freeze := range []int{0, 6} {
			for _, dropout := range []float64{0, 0.1} {
				b.Run(fmt.Sprintf("%s/freeze=%d/dropout=%v", s.Name(), freeze, dropout), func(b *testing.B) {
					m, err := backbone.Random(s, 1)
					if err != nil {
						b.Fatal(err)
					}
					cfg := Config{Backbone: filepath.Join(b.TempDir(), "m.onnx"), Recipe: Paper()}
					if _, err := m.Write(cfg.Backbone, backbone.Options{}); err != nil {
						b.Fatal(err)
					}
					cfg.Recipe.FreezeBlocks, cfg.Recipe.Dropout = freeze, dropout
					for b.Loop() {
						r, err := Bench(context.Background(), cfg, optim.BenchOptions{Rounds: 3, Steps: 2})
						if err != nil {
							b.Fatal(err)
						}
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
