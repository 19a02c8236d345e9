package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"

	"github.com/nearmiss/nearmiss/bank"
	"github.com/nearmiss/nearmiss/stream"
	"github.com/nearmiss/nearmiss/training"
)

type fitCmd struct {
	Normals  []string `required:"" type:"existingpath" placeholder:"DIR" help:"Normal images to learn from: folders (with their sub-folders) or files; may be repeated."`
	Backbone string   `required:"" type:"existingfile" placeholder:"FILE.onnx" help:"Pretrained model, from nearmiss backbone import."`
	Out      string   `short:"o" required:"" type:"path" placeholder:"DIR" help:"Release folder that is written; it must not exist."`
	Detector string   `placeholder:"NAME" help:"Name of the inspection task (default: the release folder's)."`
	Method   string   `enum:"knn" default:"knn" help:"How to learn: ${enum}."`
	K        int      `default:"2" help:"Nearest normals whose squared distances make the score."`
	Alpha    float64  `placeholder:"RATE" help:"False-alarm rate that the threshold promises, 0..1 (default 0.01, or else the smallest that the held-out images can promise)."`
	HeldOut  float64  `name:"held-out" default:"0.2" help:"Share of the normals that sets the threshold and stays out of the bank."`
	Seed     *uint64  `placeholder:"N" help:"Draws the held-out images (default: another one every time; the release records it)."`
	Index    string   `enum:"auto,exact,hnsw,coder" default:"auto" help:"The bank's index: ${enum}; auto is exact for fewer than 50,000 images."`
	JSON     bool     `name:"json" help:"Print one JSON object."`
	deviceFlags
}

func (*fitCmd) Help() string {
	return "A share of the normals is held out of the bank; their scores set the threshold. n held-out images can promise no " +
		"false-alarm rate below 1/(n+1): with the default share, 1 % needs 493 different images and 5 % needs 93.\n\n" +
		examples(
			"nearmiss fit --normals good/ --backbone vit_b.onnx --out releases/bolts",
			"nearmiss fit --normals good/ --backbone vit_b.onnx --out releases/bolts --alpha 0.05 --seed 1 --json",
		)
}

func (c *fitCmd) Run(ctx context.Context, o *output) error {
	if c.Detector == "" {
		c.Detector = filepath.Base(c.Out)
	}
	if err := stream.CheckToken("detector", c.Detector); err != nil {
		return usageError{fmt.Errorf("%w (set it with --detector)", err)}
	}
	embed, err := c.options()
	if err != nil {
		return err
	}
	paths, err := listImages(c.Normals)
	if err != nil {
		return err
	}
	normals := make([]training.Image, len(paths))
	for i, p := range paths {
		normals[i] = training.Image{Name: p, Read: func() ([]byte, error) { return os.ReadFile(p) }}
	}
	seed := rand.Uint64() >> 11 // fits a JSON number
	if c.Seed != nil {
		seed = *c.Seed
	}
	bar := o.progress("embedding")
	res, err := training.Fit(ctx, training.Plan{
		Detector: c.Detector, Method: training.Method(c.Method), Normals: normals, Backbone: c.Backbone, Out: c.Out,
		K: c.K, Alpha: c.Alpha, Settle: c.Alpha == 0, HeldOut: c.HeldOut, Seed: seed, Index: bank.Kind(c.Index),
		Device: embed.Device, Threads: embed.Threads, Tool: "nearmiss " + version, Log: o.Log,
		Progress: func(_ string, done, total int) { bar.report(int64(done), int64(total)) },
	})
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
	_, err = fmt.Fprintf(o.Out, "%s: %d normals in the bank, %d held out, %.1f s\nscores above %.4g are anomalous (false-alarm rate %.3g %%)\nrelease %s\n",
		res.Release, res.Bank, res.HeldOut, res.Seconds, res.Threshold, 100*res.Alpha, res.Digest)
	return err
}
