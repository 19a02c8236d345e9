package sde

import (
	"fmt"
	"testing"

	"github.com/nearmiss/nearmiss/inference/ort"
)

// What one network call costs: the bound for sampling.
func BenchmarkForward(b *testing.B) {
	for _, c := range []struct {
		preset string
		size   int
		batch  int
	}{{"nano", 32, 32}, {"tiny", 32, 32}, {"small", 32, 32}, {"nano", 64, 32}, {"tiny", 64, 16}, {"medium", 64, 16}} {
		b.Run(fmt.Sprintf("%s/%dpx/batch%d", c.preset, c.size, c.batch), func(b *testing.B) {
			n, err := Preset(c.preset, c.size, 3)
			if err != nil {
				b.Fatal(err)
			}
			ps, err := n.Init(1)
			if err != nil {
				b.Fatal(err)
			}
			s := testSDE(b, "edm")
			m, err := NewNetworkModel(s, n, ps, c.batch, ort.Options{})
			if err != nil {
				b.Fatal(err)
			}
			defer m.Close()
			_, flops, err := n.Cost()
			if err != nil {
				b.Fatal(err)
			}
			x := make([]float32, c.batch*3*c.size*c.size)
			y := make([]float32, len(x))
			for b.Loop() {
				if err := m.Score(b.Context(), y, x, c.batch, 1); err != nil {
					b.Fatal(err)
				}
			}
			perS := float64(b.N*c.batch) / b.Elapsed().Seconds()
			b.ReportMetric(perS, "images/s")
			b.ReportMetric(perS*float64(flops)/1e9, "GFLOP/s")
		})
	}
}
