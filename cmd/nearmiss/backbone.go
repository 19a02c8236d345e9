package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/nearmiss/nearmiss/inference"
	"github.com/nearmiss/nearmiss/inference/backbone"
	"github.com/nearmiss/nearmiss/inference/imaging"
	"github.com/nearmiss/nearmiss/inference/ort"
	"github.com/nearmiss/nearmiss/training/pretrain"
)

// backboneCmd brings pretrained models in.
type backboneCmd struct {
	List         backboneListCmd         `cmd:"" help:"List the published weights that a name is enough to get."`
	Pull         backbonePullCmd         `cmd:"" help:"Get published weights by their name in the catalogue, ready to use."`
	Import       backboneImportCmd       `cmd:"" help:"Turn weights (safetensors, npz, pth) or a foreign ONNX model into a backbone."`
	Random       backboneRandomCmd       `cmd:"" help:"Make a backbone with seeded random weights, for trials and measurements."`
	Starter      backboneStarterCmd      `cmd:"" help:"Write the starter backbone that comes with the program."`
	TrainStarter backboneTrainStarterCmd `cmd:"" name:"train-starter" help:"Train the starter backbone anew, from drawn pictures."`
	Inspect      backboneInspectCmd      `cmd:"" help:"Say what a file of weights or an ONNX model is."`
}

// weightFlags say of a file of weights what its tensors do not.
type weightFlags struct {
	Size          *int      `placeholder:"PX" help:"Side of the square input (default: what the weights were made for)."`
	Arch          string    `placeholder:"NAME" help:"Which publication the weights are from, where several have the same tensors: timm's name or a part of it, such as deit, dino, mae, miil, augreg or tf_efficientnet_lite0 (default: what config.json beside the file or the file's name says)."`
	Heads         *int      `placeholder:"N" help:"Attention heads of a ViT (default: those of the published networks of the same width)."`
	Prefix        string    `placeholder:"TEXT" help:"Which of several networks in the file: the start of its tensors' names."`
	Resize        *int      `placeholder:"PX" help:"Shorter side before the crop (default: that of the weights' publication)."`
	Squash        bool      `help:"See the whole image, squeezed into the square, instead of the square in its middle: for defects at the edges of long images."`
	Interpolation string    `enum:",bilinear,bicubic" default:"" help:"How images are resized: bilinear or bicubic (default: that of the weights' publication)."`
	Mean          []float64 `placeholder:"R,G,B" help:"Mean of the samples, 0..1 (default: that of the weights' publication; an ONNX model has none)."`
	Std           []float64 `placeholder:"R,G,B" help:"Standard deviation of the samples, 0..1."`
}

func (c weightFlags) options() (o backbone.LoadOptions, err error) {
	o = backbone.LoadOptions{Arch: c.Arch, Prefix: c.Prefix}
	give(&o.Size, c.Size)
	give(&o.Heads, c.Heads)
	for _, n := range []struct {
		flag  string
		value *int
	}{{"--size", c.Size}, {"--heads", c.Heads}, {"--resize", c.Resize}} {
		if n.value != nil && *n.value < 1 {
			return o, usageError{fmt.Errorf("%s %d: give a number above 0, or leave it out", n.flag, *n.value)}
		}
	}
	if o.Mean, err = triple(c.Mean); err != nil {
		return o, usageError{fmt.Errorf("--mean: %w", err)}
	}
	if o.Std, err = triple(c.Std); err != nil {
		return o, usageError{fmt.Errorf("--std: %w", err)}
	}
	if c.Squash && c.Resize != nil {
		return o, usageError{errors.New("--squash has no use for --resize")}
	}
	return o, nil
}

// geometry changes how images are resized.
func (c weightFlags) geometry(file string, o *backbone.ImportOptions) error {
	if c.Resize == nil && c.Interpolation == "" && !c.Squash {
		return nil
	}
	r, err := backbone.Inspect(file, *o)
	if err != nil {
		return err
	}
	pre := r.Preprocess
	give(&pre.Resize, c.Resize)
	if c.Squash {
		pre.Squash, pre.Resize = true, 0
	}
	if c.Interpolation != "" {
		pre.Interpolation = imaging.Interpolation(c.Interpolation)
	}
	o.Preprocess = &pre
	return nil
}

type backboneImportCmd struct {
	File string `arg:"" type:"existingfile" help:"Weights (.safetensors, .npz, .pth) with the names of timm, Hugging Face or the original publication, or an ONNX model."`
	Out  string `short:"o" required:"" type:"path" placeholder:"FILE.onnx" help:"The backbone that is written."`
	weightFlags
	Tokens bool     `help:"Also export the patch tokens (ViT)."`
	Input  string   `help:"ONNX: name of the image input."`
	Output string   `help:"ONNX: name of the value that becomes the embedding."`
	Pool   string   `enum:",class,mean,none" default:"" help:"ONNX: how it becomes one vector: class, mean or none."`
	Layer  []string `placeholder:"NAME" help:"ONNX: values whose vectors the score may use, in order of depth (default: the blocks that are found by their structure)."`
	JSON   bool     `name:"json" help:"Print one JSON object."`
}

func (*backboneImportCmd) Help() string {
	return examples(
		"nearmiss backbone import vit_tiny_patch16_224.safetensors --out vit_ti.onnx",
		"nearmiss backbone import deit_small.pth --out deit_s.onnx --arch deit",
		"nearmiss backbone import ViT-B_16.npz --out vit_b.onnx --mean 0.485,0.456,0.406 --std 0.229,0.224,0.225",
		"nearmiss backbone import model.onnx --out backbone.onnx --output features --pool mean --mean 0.485,0.456,0.406 --std 0.229,0.224,0.225",
	)
}

func (c *backboneImportCmd) Run(o *output) error {
	if err := writable("--out", c.Out); err != nil {
		return err
	}
	load, err := c.options()
	if err != nil {
		return err
	}
	opts := backbone.ImportOptions{
		LoadOptions: load, Tokens: c.Tokens, Input: c.Input, Output: c.Output, Pool: backbone.Pooling(c.Pool), Layers: c.Layer,
		Note: func(text string) { fmt.Fprintln(o.Err, "note:", text) },
	}
	if err := ort.Load(); err == nil { // without it the model is not tried
		opts.Run = runOnce
	}
	if err := c.geometry(c.File, &opts); err != nil {
		return err
	}
	info, err := backbone.Import(c.File, c.Out, opts)
	if err != nil {
		return err
	}
	return printBackbone(o, c.JSON, c.Out, info)
}

// runOnce tries a model that is imported.
func runOnce(path string, images int) (map[string]backbone.Output, error) {
	tried, err := inference.RunOnce(path, images)
	out := map[string]backbone.Output{}
	for name, t := range tried {
		out[name] = backbone.Output(t)
	}
	return out, err
}

// triple is one number for all channels, or three; nil where there is none.
func triple(in []float64) (*[3]float64, error) {
	switch len(in) {
	case 0:
		return nil, nil
	case 1:
		return &[3]float64{in[0], in[0], in[0]}, nil
	case 3:
		return new([3]float64(in)), nil
	}
	return nil, errors.New("give one number, or three for red, green and blue")
}

type backboneRandomCmd struct {
	Out  string `short:"o" required:"" type:"path" placeholder:"FILE.onnx" help:"The backbone that is written."`
	Arch string `enum:"tiny,small,base,large,starter" default:"tiny" help:"Size of the ViT: ${enum} (that of the starter backbone)."`
	Size int    `placeholder:"PX" help:"Side of the square input (default 224)."`
	Seed uint64 `default:"1" help:"Draws the weights."`
	JSON bool   `name:"json" help:"Print one JSON object."`
}

func (*backboneRandomCmd) Help() string {
	return "It has learnt nothing: use it to try the commands or to measure speed, not to inspect parts.\n\n" +
		examples("nearmiss backbone random --out random.onnx")
}

func (c *backboneRandomCmd) Run(o *output) error {
	if err := writable("--out", c.Out); err != nil {
		return err
	}
	spec := map[string]backbone.Spec{
		"tiny": backbone.Tiny, "small": backbone.Small, "base": backbone.Base, "large": backbone.Large,
		"starter": pretrain.Starter().Spec,
	}[c.Arch]
	set(&spec.Size, c.Size)
	info, err := writeRandomBackbone(spec, c.Seed, c.Out)
	if err != nil {
		return err
	}
	return printBackbone(o, c.JSON, c.Out, info)
}

// orRandom is the model in a file or, where none is named, one with random weights,
// which is as fast as a trained one; remove takes that away.
func orRandom(model string, spec backbone.Spec) (file string, remove func(), err error) {
	if model != "" {
		return model, func() {}, nil
	}
	dir, err := os.MkdirTemp("", "nearmiss-bench-")
	if err != nil {
		return "", nil, err
	}
	remove = func() { os.RemoveAll(dir) }
	file = filepath.Join(dir, "model.onnx")
	if _, err = writeRandomBackbone(spec, 1, file); err != nil {
		remove()
	}
	return file, remove, err
}

func writeRandomBackbone(spec backbone.Spec, seed uint64, out string) (backbone.Info, error) {
	m, err := backbone.Random(spec, seed)
	if err != nil {
		return backbone.Info{}, err
	}
	return m.Write(out, backbone.Options{})
}

func printBackbone(o *output, asJSON bool, file string, info backbone.Info) error {
	return o.result(asJSON, struct {
		Path string `json:"path"`
		backbone.Info
	}{file, info}, fmt.Sprintf("%s: %s, %d × %d pixels in, embeddings of %d dimensions, %.1f million parameters",
		file, info.Name, info.Size, info.Size, info.Dim, float64(info.Params)/1e6))
}

type backboneInspectCmd struct {
	File string `arg:"" type:"existingfile" help:"Weights (safetensors, npz, pth) or an ONNX model."`
	weightFlags
	JSON bool `name:"json" help:"Print one JSON object."`
}

func (*backboneInspectCmd) Help() string {
	return examples("nearmiss backbone inspect vit_tiny_patch16_224.safetensors")
}

func (c *backboneInspectCmd) Run(o *output) error {
	load, err := c.options()
	if err != nil {
		return err
	}
	opts := backbone.ImportOptions{LoadOptions: load}
	if err := c.geometry(c.File, &opts); err != nil {
		return err
	}
	r, err := backbone.Inspect(c.File, opts)
	if err != nil {
		return err
	}
	if c.JSON {
		return o.JSON(r)
	}
	var b strings.Builder
	fmt.Fprintf(&b, "%s (%s, family %s, %.1f million parameters)\n", r.Name, r.Format, r.Family, float64(r.Params)/1e6)
	fmt.Fprintf(&b, "embedding of %d dimensions from %d × %d pixels\n", r.Dim, r.Size, r.Size)
	pre, err := json.Marshal(r.Preprocess)
	if err != nil {
		return err
	}
	fmt.Fprintf(&b, "images are prepared as %s\n", pre)
	if r.PreprocessFrom != "" {
		fmt.Fprintf(&b, "  (%s)\n", r.PreprocessFrom)
	}
	if r.HeadsFrom != "" {
		fmt.Fprintf(&b, "%d attention heads (%s)\n", r.Spec.Heads, r.HeadsFrom)
	}
	switch r.Format {
	case backbone.FormatRandom:
		fmt.Fprintf(&b, "the weights are random (seed %d): it has learnt nothing\n", r.Seed)
	case backbone.FormatStarter:
		fmt.Fprintf(&b, "trained on drawn pictures only: for the demo and for first trials\n")
	}
	if len(r.Ignored) > 0 {
		fmt.Fprintf(&b, "not used: %s\n", strings.Join(r.Ignored, ", "))
	}
	if !r.Imported {
		fmt.Fprintf(&b, "to use it: nearmiss backbone import %s --out FILE.onnx\n", c.File)
	}
	return o.printf("%s", b.String())
}
