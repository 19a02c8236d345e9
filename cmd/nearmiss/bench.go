package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/rs/zerolog"

	"github.com/nearmiss/nearmiss/inference"
	"github.com/nearmiss/nearmiss/inference/backbone"
	"github.com/nearmiss/nearmiss/inference/ort"
	"github.com/nearmiss/nearmiss/internal/bench"
	"github.com/nearmiss/nearmiss/internal/synthetic"
	"github.com/nearmiss/nearmiss/stream/broker"
)

// benchCmd measures speed on this machine. Nothing in the tests depends on it.
type benchCmd struct {
	Embed  benchEmbedCmd  `cmd:"" help:"Images a second: decode, preprocess, the model alone, and the whole way."`
	Score  benchScoreCmd  `cmd:"" help:"Images a second from file to verdict, of one release against others."`
	Bank   benchBankCmd   `cmd:"" help:"Recall, queries a second and build time of the bank's indexes."`
	Stream benchStreamCmd `cmd:"" help:"Frames a second through a broker with a scorer that does nothing."`
	Curves benchCurvesCmd `cmd:"" help:"Milliseconds a frame against cameras, entries of the bank and size of the picture."`
	Train  benchTrainCmd  `cmd:"" help:"Seconds of a training step, against those of its forward pass."`
}

type benchEmbedCmd struct {
	Backbone  string        `type:"backbone" placeholder:"FILE|NAME" help:"Model (default: a ViT-Ti/16 at 224 px with random weights, which is as fast as a trained one)."`
	Images    []string      `type:"existingpath" placeholder:"DIR" help:"Images (default: 64 synthetic JPEG files of 256 × 256)."`
	Time      time.Duration `default:"5s" help:"How long each part is measured."`
	Precision string        `enum:"fp32,fp16,int8" default:"fp32" help:"Of the model's arithmetic: ${enum}."`
	Alone     bool          `help:"Measure the model alone."`
	JSON      bool          `name:"json" help:"Print one JSON object."`
	deviceFlags
}

func (*benchEmbedCmd) Help() string {
	return examples("nearmiss bench embed", "nearmiss bench embed --backbone vit_b.onnx --images good/ --device cuda --json")
}

func (c *benchEmbedCmd) Run(ctx context.Context, o *output) error {
	embed, err := c.options()
	if err != nil {
		return err
	}
	embed.Precision = c.Precision
	files, err := c.files(o)
	if err != nil {
		return err
	}
	model, remove, err := orRandom(c.Backbone, backbone.Tiny)
	if err != nil {
		return err
	}
	defer remove()
	bar := o.progress("")
	r, err := bench.Embed(ctx, bench.EmbedOptions{
		Model: model, Embed: embed, Files: files, Time: c.Time, Alone: c.Alone,
		Progress: func(part string) { bar.stage(part, 0, -1) },
	})
	bar.close()
	if err != nil {
		return err
	}
	if c.JSON {
		return o.JSON(r)
	}
	if r.CapturedWhy != "" {
		if err := o.printf("runs are not captured in graphs: %s\n", r.CapturedWhy); err != nil {
			return err
		}
	}
	if c.Alone {
		return o.printf("images a second, device %s, %d threads: model alone %.1f\n", r.Device, r.Threads, r.Inference.Median)
	}
	return o.printf(`images a second, device %s, %d threads, decoder %s:
  decode       %8.1f
  preprocess   %8.1f
  model alone  %8.1f
  whole way    %8.1f  %.0f %% of the model alone (%.0f %% by processor time)
`, r.Device, r.Threads, r.Decoder, r.Decode.Median, r.Preprocess.Median, r.Inference.Median, r.Whole.Median, 100*r.Share, 100*r.ShareCPU)
}

func (c benchEmbedCmd) files(o *output) ([][]byte, error) {
	var files [][]byte
	if len(c.Images) == 0 {
		s, err := synthetic.New(synthetic.Cells, 1, synthetic.Options{})
		if err != nil {
			return nil, err
		}
		for range 64 {
			img, _ := s.Next()
			b, err := img.JPEG(90)
			if err != nil {
				return nil, err
			}
			files = append(files, b)
		}
		return files, nil
	}
	paths, err := o.listImages(c.Images)
	if err != nil {
		return nil, err
	}
	for _, p := range paths[:min(len(paths), 256)] {
		b, err := os.ReadFile(p)
		if err != nil {
			return nil, err
		}
		files = append(files, b)
	}
	return files, nil
}

type benchBankCmd struct {
	Size    []string `placeholder:"NxD" help:"Bank of N entries of D dimensions, for instance 20000x192; may be repeated (default: 2k, 20k and 100k × 192 and 768)."`
	Index   []string `placeholder:"KIND" help:"Index to measure; may be repeated (default: exact, hnsw and coder)."`
	Queries int      `default:"512" help:"Held-out queries."`
	Engine  bool     `default:"true" negatable:"" help:"Answer batches by a matrix product on ONNX Runtime."`
	JSON    bool     `name:"json" help:"Print one JSON object a line."`
}

func (*benchBankCmd) Help() string {
	return "The embeddings are made up: clusters in about 30 directions. The largest graphs take minutes to build.\n\n" +
		examples("nearmiss bench bank --size 2000x192 --size 20000x192 --json")
}

func (c *benchBankCmd) Run(ctx context.Context, o *output) error {
	opts := bench.BankOptions{Queries: c.Queries, Indexes: c.Index, Log: zerolog.Nop()}
	for _, s := range c.Size {
		n, d, ok := strings.Cut(s, "x")
		count, err1 := strconv.Atoi(n)
		dim, err2 := strconv.Atoi(d)
		if !ok || err1 != nil || err2 != nil || count < 1 || dim < 1 {
			return usageError{fmt.Errorf("--size %s: write entries x dimensions, for instance 20000x192", s)}
		}
		opts.Cases = append(opts.Cases, bench.BankCase{Count: count, Dim: dim})
	}
	if c.Engine {
		engine, err := inference.NewBatchEngine(ort.Options{})
		if err != nil {
			return err
		}
		defer engine.Close()
		opts.Batch = engine
	}
	if !c.JSON {
		fmt.Fprintln(o.Out, "index      entries   dim  recall@2  excess  queries/s  in batches/s  build s  served")
	}
	return bench.Bank(ctx, opts, func(r bench.BankResult) error {
		return o.result(c.JSON, r, fmt.Sprintf("%-8s %9d %5d    %.4f  %6.4f %10.0f %13.0f %8.1f  %v",
			r.Index, r.Count, r.Dim, r.Recall, r.FirstExcess, r.QueriesPerSecond, r.BatchPerSecond, r.BuildSeconds, r.Served))
	})
}

type benchStreamCmd struct {
	Frames  int  `default:"2000" help:"Frames to send."`
	Bytes   int  `default:"153600" help:"Size of a frame in bytes."`
	Workers int  `default:"2" help:"Workers that share them."`
	JSON    bool `name:"json" help:"Print one JSON object."`
}

func (*benchStreamCmd) Help() string {
	return examples("nearmiss bench stream", "nearmiss bench stream --bytes 20480 --workers 4 --json")
}

// benchStream measures a broker of its own.
func benchStream(ctx context.Context, o *output, c bench.StreamConfig) (r bench.StreamResult, err error) {
	dir, err := os.MkdirTemp("", "nearmiss-bench-")
	if err != nil {
		return r, err
	}
	defer os.RemoveAll(dir)
	conf := defaultConfig()
	conf.Data, conf.Broker.Port = dir, -1
	quiet := &output{Out: o.Out, Err: o.Err, Log: o.Log.Level(zerolog.ErrorLevel)}
	b, err := broker.New(conf.broker(), quiet.Log)
	if err != nil {
		return r, err
	}
	err = withBroker(ctx, b, conf, quiet, func(ctx context.Context, connect dial) error {
		c.Dir, c.Connect = filepath.Join(dir, "work"), connect
		r, err = bench.Stream(ctx, c, quiet.Log)
		return err
	})
	if err == nil {
		err = ctx.Err() // an interrupted measurement has no result
	}
	return r, err
}

func (c *benchStreamCmd) Run(ctx context.Context, o *output) error {
	r, err := benchStream(ctx, o, bench.StreamConfig{Frames: c.Frames, FrameBytes: c.Bytes, Workers: c.Workers})
	if err != nil {
		return err
	}
	return o.result(c.JSON, r, fmt.Sprintf(`frames a second through the broker, %d frames of %d bytes, %d workers, a scorer that does nothing:
  published and stored       %8.0f
  taken and acknowledged     %8.0f  shared %v
  both at the same time      %8.0f`, r.Frames, r.FrameBytes, r.Workers, r.PublishFPS, r.ScoreFPS, r.Share, r.BothFPS))
}
