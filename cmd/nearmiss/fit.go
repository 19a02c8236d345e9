package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"path/filepath"

	"github.com/nearmiss/nearmiss/bank"
	"github.com/nearmiss/nearmiss/inference/imaging"
	"github.com/nearmiss/nearmiss/stream"
	"github.com/nearmiss/nearmiss/training"
)

type fitCmd struct {
	Normals  []string `required:"" type:"existingpath" placeholder:"DIR" help:"Normal images to learn from: folders (with their sub-folders) or files; may be repeated."`
	Backbone string   `required:"" type:"backbone" placeholder:"FILE|NAME" help:"Pretrained model: a name of nearmiss backbone list, or a file from nearmiss backbone import."`
	Out      string   `short:"o" required:"" type:"path" placeholder:"DIR" help:"Release folder that is written; it must not exist."`
	Detector string   `placeholder:"NAME" help:"Name of the inspection task (default: the release folder's)."`
	Method   string   `enum:"knn,fitymi" default:"knn" help:"How to learn: ${enum}. fitymi first tunes the backbone to tell normals from fakes."`
	K        int      `default:"2" help:"Nearest normals whose squared distances make the score."`
	Alpha    float64  `name:"false-alarm-rate" aliases:"alpha" placeholder:"SHARE" help:"Share of normal images that may be called anomalous, as 0.01 or 1% (default 1%, or else the smallest that the held-out images can promise)."`
	HeldOut  float64  `name:"held-out" placeholder:"SHARE" help:"Share of the normals that is kept out of the bank and alone sets the threshold, which then keeps its promise exactly (default: 0.2 are kept out; with a score of several parts, all normals set the threshold by cross-validation)."`
	Seed     *uint64  `placeholder:"N" help:"Draws the held-out images (default: another one every time; the release records it)."`
	Advice   bool     `negatable:"" help:"Also report whether the normals' orientation matters, to choose --symmetry by: it embeds up to 60 normals eight times."`
	Index    string   `enum:"auto,exact,hnsw,coder" default:"auto" help:"The bank's index: ${enum}; auto is exact for fewer than 50,000 images."`
	Bits     int      `placeholder:"N" help:"How many bits of 16-bit images are used, 8 to 32, as by a camera of 12 bits (default: what the normals need)."`
	NoImages bool     `name:"no-images" help:"Keep no image of a normal in the release: neither thumbnails of what is nearest nor images to check it with."`
	JSON     bool     `name:"json" help:"Print one JSON object."`
	tuneFlags
	deviceFlags
	Anomalies []string `group:"With --method fitymi:" type:"existingpath" placeholder:"DIR" help:"Real anomalies that fitymi's gate is to judge by; nothing is learnt from them."`
}

func (*fitCmd) Help() string {
	return "The threshold is set by the scores of normals that are not in the bank: a fifth of them, or with a score of several parts, " +
		"such as the default, all of them by cross-validation. n scores can promise no false-alarm rate below 1/(n+1): 1 % needs 99 different images, " +
		"or 493 where a fifth alone sets the threshold (--held-out 0.2, --score class, --method fitymi, frames that resemble those before them).\n\n" +
		examples(
			"nearmiss fit --normals good/ --backbone vit_b.onnx --out releases/bolts",
			"nearmiss fit --normals good/ --backbone vit_b.onnx --out releases/bolts --false-alarm-rate 5% --seed 1 --json",
			"nearmiss fit --normals good/ --backbone vit_ti.onnx --out releases/bolts --method fitymi --seed 1 --work /tmp/bolts",
			"nearmiss fit --normals good/ --backbone vit_b.onnx --out releases/bolts --method fitymi --profile paper-high --inception inception.onnx --device cuda",
		)
}

func (c *fitCmd) Run(ctx context.Context, o *output) error {
	c.Detector = cmp.Or(c.Detector, filepath.Base(c.Out))
	if err := stream.CheckToken("detector", c.Detector); err != nil {
		return usageError{fmt.Errorf("%w (set it with --detector)", err)}
	}
	embed, err := c.options()
	if err != nil {
		return err
	}
	paths, err := o.listNormals(c.Normals)
	if err != nil {
		return err
	}
	work := cmp.Or(c.Work, training.WorkFolder(c.Out))
	seed := rand.Uint64() >> 11 // fits a JSON number
	if c.Seed != nil {
		seed = *c.Seed
	} else if before, ok := training.WorkSeed(work); ok {
		seed = before
		fmt.Fprintf(o.Err, "note: going on with what is in %s (seed %d)\n", work, seed)
	}
	plan, err := c.plan(c.Method)
	if err != nil {
		return err
	}
	if len(c.Anomalies) > 0 {
		found, err := o.listAnomalies(c.Anomalies)
		if err != nil {
			return err
		}
		plan.Data.Anomalies = imagePaths(found)
	}
	bar := o.progress("embedding")
	plan.Detector, plan.Out, plan.Seed = c.Detector, c.Out, seed
	plan.Data.Normals, plan.Data.NoImages = imagePaths(paths), c.NoImages
	if c.Bits != 0 {
		plan.Data.View = &imaging.View{Bits: c.Bits}
	}
	plan.Model.Backbone, plan.Model.Advise = c.Backbone, c.Advice
	plan.Score.K, plan.Score.Index = c.K, bank.Kind(c.Index)
	plan.Calibration = training.Calibration{Alpha: c.Alpha, Settle: c.Alpha == 0, HeldOut: c.HeldOut}
	plan.Host.Device, plan.Host.Threads, plan.Host.Batch, plan.Host.Tool, plan.Host.Log = embed.Device, embed.Threads, embed.Batch, "nearmiss "+version, o.Log
	plan.Host.Progress = bar.learning
	res, err := training.Fit(ctx, plan)
	bar.close()
	if errors.Is(err, training.ErrPlan) {
		return usageError{err}
	}
	if err != nil {
		return err
	}
	if c.JSON {
		return o.JSON(res)
	}
	for _, w := range res.Warnings {
		fmt.Fprintln(o.Err, "note:", w)
	}
	if res.Published == "tuned" {
		fmt.Fprintln(o.Err, "the fine-tuned backbone is published:", res.Reason)
	}
	o.printOrientation(res)
	printFound(o, "frame", res.Framing)
	printFound(o, "resolution", res.Resolution)
	printFound(o, "light", res.Light)
	printFound(o, "sharpness", res.Sharpness)
	printFound(o, "precision", res.Precision)
	how := "held out"
	if res.Folded > 0 {
		how = "calibrate by cross-validation"
	}
	return o.printf("%s: %d normals in the bank, %d %s, %.1f s\nscore %s: %.0f ms an image, banks of %.0f MiB; scores above %.4g are anomalous\nfalse-alarm rate %.3g %%: at most, in the mean; 19 of 20 such thresholds have %.2g to %.2g %%, and more normals bring them closer\nrelease %s\n",
		res.Release, res.Bank, res.HeldOut, how, res.Seconds, res.Score, res.Cost.Milliseconds, float64(res.Cost.Banks)/(1<<20), res.Threshold, 100*res.Alpha, 100*res.Low, 100*res.High, res.Digest)
}

// printFound prints what was found about a subject, if anything was.
func printFound[T any](o *output, about string, found *T) {
	if found != nil {
		fmt.Fprintf(o.Err, "%s: %v\n", about, found)
	}
}
