package sde

import (
	"fmt"
	"testing"

	"github.com/nearmiss/nearmiss/inference/imaging"
	"github.com/nearmiss/nearmiss/inference/ort"
	"github.com/nearmiss/nearmiss/internal/cputime"
)

type benchCase struct {
	preset      string
	size, batch int
}

func (c benchCase) String() string { return fmt.Sprintf("%s/%dpx/batch%d", c.preset, c.size, c.batch) }

var benchCases = []benchCase{{"nano", 32, 32}, {"tiny", 32, 32}, {"small", 32, 32}, {"nano", 64, 16}, {"medium", 64, 8}, {"ddpm++", 32, 8}}

// report gives images per second, and per second of one core's time, which
// other load on the machine changes less.
func report(b *testing.B, images int, flops int64, began float64) {
	per := func(s float64) float64 { return float64(images) / s }
	cpu := cputime.Seconds() - began
	b.ReportMetric(per(b.Elapsed().Seconds()), "images/s")
	b.ReportMetric(per(cpu), "images/core-s")
	b.ReportMetric(per(cpu)*float64(flops)/1e9, "GFLOP/core-s")
}

func (c benchCase) network(b *testing.B) (Network, int64) {
	n, err := Preset(c.preset, c.size, 3)
	if err != nil {
		b.Fatal(err)
	}
	n.Dropout = 0
	_, flops, err := n.Cost()
	if err != nil {
		b.Fatal(err)
	}
	return n, flops
}

// What a network call costs, alone and within sampling, and what a training
// step costs: each image of a step counts once.
func BenchmarkForward(b *testing.B) { benchmarkModel(b, false) }
func BenchmarkSample(b *testing.B)  { benchmarkModel(b, true) }

func benchmarkModel(b *testing.B, sample bool) {
	for _, c := range benchCases {
		b.Run(c.String(), func(b *testing.B) {
			n, flops := c.network(b)
			ps, err := n.Init(1)
			if err != nil {
				b.Fatal(err)
			}
			s := testSDE(b, "edm")
			m, err := newNetworkModel(s, n, ps, c.batch, ort.Options{IntraOpThreads: 1})
			if err != nil {
				b.Fatal(err)
			}
			defer m.Close()
			x := make([]float32, c.batch*3*c.size*c.size)
			y := make([]float32, len(x))
			began, images := cputime.Seconds(), 0
			for b.Loop() {
				if sample {
					_, st, err := Sample(b.Context(), s, m, SampleOptions{N: c.batch, Channels: 3, Height: c.size, Width: c.size, Steps: 3, Batch: c.batch})
					if err != nil {
						b.Fatal(err)
					}
					images += st.Images
					continue
				}
				if err := m.Score(b.Context(), y, x, c.batch, 1); err != nil {
					b.Fatal(err)
				}
				images += c.batch
			}
			report(b, images, flops, began)
		})
	}
}

func BenchmarkTrain(b *testing.B) {
	for _, c := range benchCases {
		b.Run(c.String(), func(b *testing.B) {
			n, flops := c.network(b)
			set, err := newSet(Pictures{imaging.New(c.size, c.size)}, c.size, 3)
			if err != nil {
				b.Fatal(err)
			}
			tr, err := newTrainer(testSDE(b, "edm"), n, set, TrainOptions{Batch: c.batch, Session: ort.Options{IntraOpThreads: 1}})
			if err != nil {
				b.Fatal(err)
			}
			defer tr.Close()
			began, images := cputime.Seconds(), 0
			for b.Loop() {
				if err := tr.Run(b.Context(), 2, nil); err != nil {
					b.Fatal(err)
				}
				images += 2 * c.batch
			}
			report(b, images, flops, began)
		})
	}
}
