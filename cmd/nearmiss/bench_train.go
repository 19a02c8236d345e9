package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/nearmiss/nearmiss/inference/backbone"
	"github.com/nearmiss/nearmiss/inference/ort"
	"github.com/nearmiss/nearmiss/internal/bench"
	"github.com/nearmiss/nearmiss/training/finetune"
	"github.com/nearmiss/nearmiss/training/optim"
	"github.com/nearmiss/nearmiss/training/sde"
)

type benchTrainCmd struct {
	Backbone   string `type:"backbone" placeholder:"FILE|NAME" help:"Backbone to fine-tune (default: a ViT-S/16 at 224 px with random weights, which is as fast as a trained one)."`
	Network    string `placeholder:"NAME" help:"Train a score network instead of a backbone: ddpm++, ncsn++, medium, small, tiny, nano and others."`
	Size       int    `default:"32" help:"Side of the score network's images in pixels."`
	Batch      int    `placeholder:"N" help:"Images in a step (default: 16, for a score network 32)."`
	Micro      int    `placeholder:"N" help:"Images that are in memory at once; their gradients are summed up to a step's."`
	Freeze     int    `default:"0" help:"Freeze so many blocks from the front, and what lies before them."`
	Embeddings bool   `help:"Train what lies before the frozen blocks all the same, as the paper does: gradients then cross the frozen blocks."`
	Recompute  bool   `help:"Compute the activations of each block again for its gradients instead of keeping them: less memory, more time."`
	Rounds     int    `default:"5" help:"How often forward pass and step alternate."`
	Steps      int    `default:"2" help:"Steps in one Loop."`
	Single     bool   `help:"Also measure steps as single calls, without a Loop."`
	State      string `enum:"auto,host,device" default:"auto" help:"Where weights and the optimiser's state are between calls: ${enum} (auto: on the device, unless it is the CPU)."`
	Profile    bool   `help:"Also show where the time goes, by operator."`
	Device     string `default:"cpu" placeholder:"D" help:"Where the model runs: cpu, cuda, cuda:1 or tensorrt."`
	Threads    int    `placeholder:"N" help:"CPU threads (default: all cores)."`
	JSON       bool   `name:"json" help:"Print one JSON object."`
}

func (*benchTrainCmd) Help() string {
	return "A step is forward pass, loss, gradients and update; it is compared with the forward pass as it is served.\n\n" +
		examples("nearmiss bench train --backbone vit_s.onnx --batch 16 --freeze 6 --json",
			"nearmiss bench train --network tiny --size 32 --batch 32 --profile")
}

func (c *benchTrainCmd) Run(ctx context.Context, o *output) error {
	device, err := ort.ParseDevice(c.Device)
	if err != nil {
		return usageError{err}
	}
	session := ort.Options{Device: device, IntraOpThreads: c.Threads}
	bar := o.progress("")
	opts := bench.TrainOptions{
		Rounds: c.Rounds, Steps: c.Steps, Single: c.Single, Profile: c.Profile, State: optim.State(strings.TrimPrefix(c.State, "auto")),
		Progress: func(part string) { bar.stage(part, 0, -1) },
	}
	var r bench.TrainResult
	if c.Network != "" {
		r, err = c.network(ctx, session, opts)
	} else {
		r, err = c.backbone(ctx, session, opts)
	}
	bar.close()
	if err != nil {
		return err
	}
	if c.JSON {
		return o.JSON(r)
	}
	return c.print(o, r)
}

func (c *benchTrainCmd) network(ctx context.Context, session ort.Options, o bench.TrainOptions) (bench.TrainResult, error) {
	n, err := sde.Preset(c.Network, c.Size, 3)
	if err != nil {
		return bench.TrainResult{}, usageError{err}
	}
	s, err := sde.New("vp", c.Size)
	if err != nil {
		return bench.TrainResult{}, err
	}
	c.Batch = cmp.Or(c.Batch, 32)
	spec, src, err := sde.Step(s, n, sde.TrainOptions{Batch: c.Batch, Session: session})
	if err != nil {
		return bench.TrainResult{}, err
	}
	return bench.Train(ctx, spec, src, o)
}

func (c *benchTrainCmd) backbone(ctx context.Context, session ort.Options, o bench.TrainOptions) (bench.TrainResult, error) {
	model, remove, err := orRandom(c.Backbone, backbone.Small)
	if err != nil {
		return bench.TrainResult{}, err
	}
	defer remove()
	recipe := finetune.Paper()
	recipe.Dropout, recipe.MicroBatch, recipe.FreezeBlocks = 0, c.Micro, c.Freeze
	if c.Batch > 0 {
		recipe.Batch = c.Batch
	}
	if c.Freeze > 0 && !c.Embeddings {
		recipe.Freeze = []string{"patch_embed.*", "cls_token", "reg_token", "pos_embed"}
	}
	spec, src, closeStep, err := finetune.Step(finetune.Config{Backbone: model, Recipe: recipe, Session: session, Recompute: c.Recompute})
	if err != nil {
		return bench.TrainResult{}, err
	}
	r, err := bench.Train(ctx, spec, src, o)
	return r, errors.Join(err, closeStep())
}

func (c *benchTrainCmd) print(o *output, r bench.TrainResult) error {
	var b strings.Builder
	fmt.Fprintf(&b, `training step of %s, batch %d, device %s, state on %s, %d parameters trained, %d frozen:
  forward      %8.3f s  %8.1f GFLOP/s
  step         %8.3f s  %8.1f GFLOP/s
`, r.Name, r.Batch, r.Device, r.State, r.Trained, r.Frozen, r.Forward.Median, r.ForwardGFLOPPerS, r.Step.Median, r.StepGFLOPPerS)
	if r.StateWhy != "" {
		fmt.Fprintf(&b, "  the state is not on the device: %s\n", r.StateWhy)
	}
	if r.SingleStep.Median > 0 {
		fmt.Fprintf(&b, "  single step  %8.3f s\n", r.SingleStep.Median)
	}
	fmt.Fprintf(&b, "  step ÷ forward  %.2f (%.2f by processor time; by arithmetic %.2f)\n", r.Ratio, r.RatioCPU, r.RatioGFLOP)
	if r.PeakMemoryBytes > 0 {
		fmt.Fprintf(&b, "  peak memory  %8.0f MiB\n", float64(r.PeakMemoryBytes)/(1<<20))
	}
	if len(r.Operators) > 0 {
		fmt.Fprintf(&b, "  of a step: forward %.0f %%, gradients %.0f %%, update %.0f %%\n", 100*r.ForwardShare, 100*r.BackwardShare, 100*r.UpdateShare)
		for _, op := range r.Operators[:min(10, len(r.Operators))] {
			fmt.Fprintf(&b, "    %-24s %5.1f %%\n", op.Operator, 100*op.Share)
		}
	}
	return o.printf("%s", b.String())
}
