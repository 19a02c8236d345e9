package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"

	"github.com/nearmiss/nearmiss/inference"
	"github.com/nearmiss/nearmiss/inference/imaging"
	"github.com/nearmiss/nearmiss/training"
	"github.com/nearmiss/nearmiss/training/dataset"
	"github.com/nearmiss/nearmiss/training/frechet"
	"github.com/nearmiss/nearmiss/training/sde"
)

type fakesCmd struct {
	Normals []string `required:"" type:"existingpath" placeholder:"DIR" help:"Normal images to learn from: folders (with their sub-folders) or files; may be repeated."`
	Out     string   `short:"o" required:"" type:"path" placeholder:"DIR" help:"Folder for the fakes, the contact sheet, the curve, checkpoints and the manifest."`
	N       int      `short:"n" default:"1000" help:"Fakes to make."`
	Profile string   `enum:"cpu,gpu,paper,paper-high" default:"cpu" help:"Sizes and steps: ${enum}. paper takes days without a GPU; paper-high is for 256 pixels."`
	Size    int      `placeholder:"PIXELS" help:"Side of the images that the network makes: 32, 64, 128 or 256 (default 32; 256 for paper-high)."`
	Grey    bool     `help:"Make grey images."`

	Backbone string `type:"backbone" placeholder:"FILE|NAME" help:"Model whose embeddings tell how near fakes are: the detector's pretrained backbone, from nearmiss backbone import, or an Inception for fid targets."`
	Stop     string `default:"r=0.25" placeholder:"T" help:"When to stop training: r=R of the way from the normals (0) to noise (1), fid=F, or steps=N, which needs no backbone (default ${default})."`
	MaxSteps int    `name:"max-steps" placeholder:"N" help:"Most training steps (default: the profile's)."`
	Every    int    `placeholder:"N" help:"Training steps between two measurements of the generator (default: the profile's)."`
	Probes   int    `placeholder:"N" help:"Samples in each measurement, at most half the normals (default: the profile's)."`
	Best     bool   `help:"Sample from the one best checkpoint instead of a mix of those around the target."`

	SDE       string  `name:"sde" enum:"auto,vp,subvp,ve,edm" default:"auto" help:"Diffusion: ${enum}; auto is the profile's."`
	Preset    string  `placeholder:"P" help:"Network: ddpm++, ddpm++-deep, ncsn++, ncsn++-deep, ncsn++-256, medium, small, tiny or nano (default: the profile's)."`
	TrainSize int     `name:"train-batch" placeholder:"N" help:"Images in a training step (default: the profile's)."`
	Rate      float64 `placeholder:"R" help:"Learning rate (default: the profile's)."`
	Augment   string  `enum:"none,flip,dihedral" default:"flip" help:"Symmetries of training images: ${enum}; dihedral also turns by quarters, for what has no up."`

	Sampler  string  `enum:"auto,heun,euler-maruyama,pc,ode" default:"auto" help:"Way back from noise: ${enum}; auto is the profile's."`
	Steps    int     `name:"sampler-steps" placeholder:"N" help:"Steps of the sampler (default: 18 for heun, 1000 else)."`
	Edit     float64 `placeholder:"T" help:"Make fakes from normals by diffusing them to time T, 0..1, and back; small is near. 0.3 to 0.5 works with twenty images."`
	EditFrom float64 `name:"edit-from" placeholder:"T" help:"Lower end of the times that fakes are diffused to, with --edit as the upper end."`
	Detail   string  `enum:"none,residual" default:"none" help:"With --edit, residual gives fakes the normals' size and fine detail: ${enum}."`

	Resume  bool    `help:"Go on with an interrupted run in the same folder, with the same options; --stop may differ."`
	Dataset string  `type:"path" placeholder:"DIR" help:"Also write a data set for nearmiss eval: a fifth of the normals, which the generator then does not see, against the fakes."`
	Seed    *uint64 `placeholder:"N" help:"Of everything random (default: another one every time; the manifest records it)."`
	JSON    bool    `name:"json" help:"Print training steps, measurements and the outcome as JSON lines."`
	deviceFlags
}

func (*fakesCmd) Help() string {
	return "A score-based generative model learns the normal images and is stopped early on purpose: its samples are nearly normal. " +
		"With fewer than a hundred images, start from them (--edit), since a network that sees few images learns to copy them.\n\n" +
		examples(
			"nearmiss fakes --normals good/ --backbone vit.onnx --out fakes -n 500",
			"nearmiss fakes --normals good/ --backbone vit.onnx --out fakes --edit 0.45 --edit-from 0.3 --detail residual --seed 1",
			"nearmiss fakes --normals good/ --out fakes --stop steps=2000 --sde vp --preset tiny --json",
			"nearmiss fakes --normals good/ --backbone vit.onnx --out fakes --dataset faked   # then: nearmiss eval --data faked --protocol mvtec ...",
			"nearmiss fakes --normals good/ --backbone inception.onnx --out fakes --profile paper --stop fid=40 --device cuda",
		)
}

func (c *fakesCmd) Run(ctx context.Context, o *output) error {
	opt, err := c.options()
	if err != nil {
		return err
	}
	for flag, dir := range map[string]string{"--out": c.Out, "--dataset": c.Dataset} {
		if err := writableFolder(flag, dir); err != nil {
			return err
		}
	}
	paths, err := o.listNormals(c.Normals)
	if err != nil {
		return err
	}
	var test []string
	if c.Dataset != "" {
		if fileExists(c.Dataset) {
			return usageError{fmt.Errorf("--dataset %s: it exists already", c.Dataset)}
		}
		if paths, test, err = holdOut(paths, opt.Seed); err != nil {
			return err
		}
	}
	opt.Names = make([]string, len(paths))
	for i, p := range paths {
		opt.Names[i] = filepath.Base(p)
	}
	if c.Backbone != "" {
		embed, err := c.deviceFlags.options()
		if err != nil {
			return err
		}
		e, err := inference.NewEmbedder(c.Backbone, embed)
		if err != nil {
			return err
		}
		defer e.Close()
		if opt.Stop.Kind == frechet.FID {
			if err := training.CheckInception(e); err != nil {
				return usageError{fmt.Errorf("--backbone %s: %w", c.Backbone, err)}
			}
		}
		opt.Extractor = e
	}
	bar := o.progress("train")
	opt.Progress = func(p sde.Progress) { bar.stage(p.Stage, int64(p.Done), int64(p.Total)) }
	if c.JSON {
		opt.Log = o.Out
	}
	m, err := sde.Generate(ctx, imageFiles(paths), c.Out, opt)
	bar.close()
	if ctx.Err() != nil && err != nil {
		if fileExists(filepath.Join(c.Out, sde.CheckpointFile)) {
			fmt.Fprintf(o.Err, "note: the same command with --resume --seed %d goes on\n", opt.Seed)
		}
	}
	if errors.Is(err, sde.ErrOptions) {
		return usageError{err}
	}
	if err != nil {
		return err
	}
	if c.Dataset != "" {
		var fakes []string
		for _, f := range m.Fakes {
			fakes = append(fakes, filepath.Join(c.Out, filepath.FromSlash(f.File)))
		}
		if err := dataset.WriteFakes(c.Dataset, itemsOf(paths), itemsOf(test), itemsOf(fakes)); err != nil {
			return err
		}
	}
	if c.JSON {
		return nil
	}
	if !m.Reached {
		fmt.Fprintln(o.Err, "note:", m.Stop)
	}
	return o.printf("%s: %d fakes of %d×%d pixels from %d normals, %.0f s training, %.0f s measuring, %.0f s sampling\n%s\nsheet %s\n",
		filepath.Join(c.Out, sde.FakesFolder), len(m.Fakes), opt.Network.Size, opt.Network.Size, m.Normals, m.Seconds.Train, m.Seconds.Probe, m.Seconds.Sample,
		m.Stop, filepath.Join(c.Out, sde.SheetFile))
}

// holdOut keeps a fifth of the files from the generator.
func holdOut(paths []string, seed uint64) (train, test []string, err error) {
	a, b, err := training.Split(len(paths), 0.2, 1, seed)
	for _, i := range a {
		train = append(train, paths[i])
	}
	for _, i := range b {
		test = append(test, paths[i])
	}
	return train, test, err
}

func itemsOf(paths []string) []dataset.Item {
	out := make([]dataset.Item, len(paths))
	for i, p := range paths {
		out[i] = dataset.Item{Name: filepath.Base(p), Path: p}
	}
	return out
}

// options are the profile's, changed by the flags.
func (c *fakesCmd) options() (sde.Options, error) {
	usage := func(err error) (sde.Options, error) { return sde.Options{}, usageError{err} }
	channels := 3
	if c.Grey {
		channels = 1
	}
	name := c.SDE
	if name == "auto" {
		name = ""
	}
	opt, err := sde.Profile(c.Profile, name, c.Size, channels)
	if err != nil {
		return usage(err)
	}
	if c.Preset != "" {
		if opt.Network, err = sde.Preset(c.Preset, opt.Network.Size, channels); err != nil {
			return usage(err)
		}
	}
	if opt.Stop, err = frechet.ParseTarget(c.Stop); err != nil {
		return usage(err)
	}
	embed, err := c.deviceFlags.options()
	if err != nil {
		return sde.Options{}, err
	}
	opt.N, opt.Mix = c.N, !c.Best
	opt.Edit, opt.EditFrom, opt.Detail = c.Edit, c.EditFrom, sde.Detail(c.Detail)
	opt.Train.Augment = sde.Augment(c.Augment)
	opt.Train.Session.Device = embed.Device
	opt.Train.Session.IntraOpThreads = embed.Threads
	opt.Resume = c.Resume
	opt.Seed = rand.Uint64() >> 11 // fits a JSON number
	give(&opt.Seed, c.Seed)
	if c.Sampler != "auto" {
		opt.Sampler, opt.Steps = sde.Sampler(c.Sampler), 0
	}
	set(&opt.MaxSteps, c.MaxSteps)
	set(&opt.ProbeEvery, c.Every)
	set(&opt.Probes, c.Probes)
	set(&opt.Train.Batch, c.TrainSize)
	set(&opt.Steps, c.Steps)
	set(&opt.Train.LearningRate, c.Rate)
	return opt, nil
}

// imageFiles reads and decodes images when they are asked for.
type imageFiles []string

func (f imageFiles) Len() int { return len(f) }

func (f imageFiles) Image(i int) (*imaging.Image, error) {
	raw, err := os.ReadFile(f[i])
	if err != nil {
		return nil, err
	}
	im, err := imaging.Decode(raw, imaging.DefaultLimits())
	if err != nil {
		return nil, fmt.Errorf("%s: %w", f[i], err)
	}
	return im, nil
}

func fileExists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}
