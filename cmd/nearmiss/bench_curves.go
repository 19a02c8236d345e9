package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/rs/zerolog"

	"github.com/nearmiss/nearmiss/inference/backbone"
	"github.com/nearmiss/nearmiss/inference/imaging"
	"github.com/nearmiss/nearmiss/internal/bench"
	"github.com/nearmiss/nearmiss/internal/synthetic"
)

// benchCurvesCmd prints what a frame costs as one thing grows and all else stays.
type benchCurvesCmd struct {
	Cameras []int         `placeholder:"N" default:"1,10,50,200" help:"Cameras that send frames (default: ${default})."`
	Frames  int           `default:"1000" help:"Frames of all cameras together."`
	Entries []int         `placeholder:"N" default:"1000,10000,100000,1000000" help:"Entries of the bank, of 192 numbers (default: ${default})."`
	Graphs  int           `default:"100000" help:"Most entries for which a graph is built, too."`
	Sides   []int         `placeholder:"N" default:"256,512,1024,2048,4096" help:"Sides of square JPEG pictures, in pixels (default: ${default})."`
	Time    time.Duration `default:"5s" help:"How long each point is measured."`
	JSON    bool          `name:"json" help:"Print one JSON object a line."`
}

func (*benchCurvesCmd) Help() string {
	return "Milliseconds a frame, by processor time where it is known, which a busy machine disturbs less.\n\n" +
		examples("nearmiss bench curves", "nearmiss bench curves --entries 1000 --sides 256 --cameras 1 --cameras 200 --json")
}

// curvePoint is one point of a curve.
type curvePoint struct {
	Curve string `json:"curve"` // what grows: cameras, entries, side
	At    int    `json:"at"`
	What  string `json:"what"` // what is measured
	// Milliseconds a frame; CPU is of processor time, 0 where it is unknown.
	Milliseconds float64 `json:"ms"`
	CPU          float64 `json:"cpu_ms"`
}

func (c *benchCurvesCmd) Run(ctx context.Context, o *output) error {
	for _, n := range slices.Concat(c.Cameras, c.Sides, []int{c.Frames}) {
		if n < 1 || n > 1<<14 {
			return usageError{fmt.Errorf("%d is no number of cameras, frames or pixels: use 1 to %d", n, 1<<14)}
		}
	}
	put := func(p curvePoint) error {
		return o.result(c.JSON, p, fmt.Sprintf("%-8s %8d  %-34s %10.3f %10.3f", p.Curve, p.At, p.What, p.Milliseconds, p.CPU))
	}
	if !c.JSON {
		fmt.Fprintln(o.Out, "curve          at  what                               ms a frame     cpu ms")
	}
	for _, curve := range []func(context.Context, *output, func(curvePoint) error) error{c.sides, c.entries, c.cameras} {
		if err := curve(ctx, o, put); err != nil {
			return err
		}
	}
	return nil
}

// perFrame is the inverse of a rate, in milliseconds.
func perFrame(rate float64) float64 {
	if rate > 0 {
		return 1e3 / rate
	}
	return 0
}

// sides is the way of a picture from its file to its embedding by ViT-Ti.
func (c *benchCurvesCmd) sides(ctx context.Context, _ *output, put func(curvePoint) error) error {
	if len(c.Sides) == 0 {
		return nil
	}
	model, remove, err := orRandom("", backbone.Tiny)
	if err != nil {
		return err
	}
	defer remove()
	for _, side := range c.Sides {
		s, err := synthetic.New(synthetic.Cells, 1, synthetic.Options{})
		if err != nil {
			return err
		}
		var files [][]byte
		for range 8 {
			img, _ := s.Next()
			b, err := imaging.Resize(img, side, side, imaging.Bicubic).JPEG(90)
			if err != nil {
				return err
			}
			files = append(files, b)
		}
		r, err := bench.Embed(ctx, bench.EmbedOptions{Model: model, Files: files, Time: c.Time, Rounds: 3})
		if err != nil {
			return err
		}
		for _, p := range []struct {
			what     string
			all, cpu float64
		}{
			{"decode", r.Decode.Median, r.Decode.PerCPU},
			{"resize", r.Preprocess.Median, r.Preprocess.PerCPU},
			{"the model alone", r.Inference.Median, r.BestCPU()},
			{"file to embedding", r.Whole.Median, r.Whole.PerCPU},
		} {
			if err := put(curvePoint{"side", side, p.what, perFrame(p.all), perFrame(p.cpu)}); err != nil {
				return err
			}
		}
	}
	return nil
}

// entries is a search of the bank by one embedding.
func (c *benchCurvesCmd) entries(ctx context.Context, _ *output, put func(curvePoint) error) error {
	for _, n := range c.Entries {
		indexes := []string{"exact"}
		if n <= c.Graphs {
			indexes = append(indexes, "hnsw")
		}
		err := bench.Bank(ctx, bench.BankOptions{
			Cases: []bench.BankCase{{Count: n, Dim: 192}}, Indexes: indexes, Queries: 128, MinTime: c.Time, Log: zerolog.Nop(),
		}, func(r bench.BankResult) error {
			what := fmt.Sprintf("%s, recall %.3f, loaded in %.1f ms", r.Index, r.Recall, 1e3*r.LoadSeconds)
			return put(curvePoint{"entries", n, what, perFrame(r.QueriesPerSecond), perFrame(r.QueriesPerCPU)})
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// cameras is the way of a frame of 150 KiB through a broker and two workers with a
// scorer that does nothing.
func (c *benchCurvesCmd) cameras(ctx context.Context, o *output, put func(curvePoint) error) error {
	for _, n := range c.Cameras {
		r, err := benchStream(ctx, o, bench.StreamConfig{Frames: c.Frames, Workers: 2, Cameras: n})
		if err != nil {
			return err
		}
		if err := errors.Join(
			put(curvePoint{"cameras", n, "sent and stored", perFrame(r.PublishFPS), 0}),
			put(curvePoint{"cameras", n, "taken and acknowledged", perFrame(r.ScoreFPS), 0}),
		); err != nil {
			return err
		}
	}
	return nil
}
