package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"path"
	"strings"

	"github.com/nearmiss/nearmiss/inference/backbone"
	"github.com/nearmiss/nearmiss/inference/imaging"
	"github.com/nearmiss/nearmiss/training/pretrain"
)

// backboneCmd brings pretrained models in.
type backboneCmd struct {
	Pull         backbonePullCmd         `cmd:"" help:"Download a file of weights; an interrupted download is resumed."`
	Import       backboneImportCmd       `cmd:"" help:"Turn weights (safetensors, npz) or a foreign ONNX model into a backbone."`
	Random       backboneRandomCmd       `cmd:"" help:"Make a backbone with seeded random weights, for trials and measurements."`
	Starter      backboneStarterCmd      `cmd:"" help:"Write the starter backbone that comes with the program."`
	TrainStarter backboneTrainStarterCmd `cmd:"" name:"train-starter" help:"Train the starter backbone anew, from drawn pictures."`
	Inspect      backboneInspectCmd      `cmd:"" help:"Say what a file of weights or an ONNX model is."`
}

type backbonePullCmd struct {
	URL    string `arg:"" name:"url" help:"Where the file is (http or https)."`
	Out    string `short:"o" type:"path" placeholder:"FILE" help:"Where it goes (default: the last part of the URL, in this folder)."`
	SHA256 string `name:"sha256" placeholder:"HEX" help:"Refuse a file with another digest."`
	JSON   bool   `name:"json" help:"Print one JSON object."`
}

func (*backbonePullCmd) Help() string {
	return "Without --sha256 the digest of what came is printed, so that the next download can be checked against it.\n\n" +
		examples("nearmiss backbone pull https://example.org/vit_base_patch16_224.safetensors --out vit_b.safetensors")
}

func (c *backbonePullCmd) Run(ctx context.Context, o *output) error {
	out := c.Out
	if out == "" {
		u, err := url.Parse(c.URL)
		if err != nil {
			return usageError{err}
		}
		if out = path.Base(u.Path); out == "." || out == "/" {
			return usageError{fmt.Errorf("%s does not end in a file name: say where the file goes with --out", c.URL)}
		}
	}
	bar := o.download(path.Base(out))
	digest, err := backbone.Pull(ctx, c.URL, out, backbone.PullOptions{SHA256: c.SHA256, Progress: bar.report})
	bar.close()
	if err != nil {
		return err
	}
	if c.JSON {
		return o.JSON(map[string]string{"path": out, "sha256": digest})
	}
	_, err = fmt.Fprintf(o.Out, "%s\nSHA-256 %s\n", out, digest)
	return err
}

type backboneImportCmd struct {
	File          string    `arg:"" type:"existingfile" help:"Weights with timm names (.safetensors), the original ViT weights (.npz), or an ONNX model."`
	Out           string    `short:"o" required:"" type:"path" placeholder:"FILE.onnx" help:"The backbone that is written."`
	Size          int       `placeholder:"PX" help:"Side of the square input (default: what the weights were made for)."`
	Resize        int       `placeholder:"PX" help:"Shorter side before the crop (default: the family's)."`
	Squash        bool      `help:"See the whole image, squeezed into the square, instead of the square in its middle: for defects at the edges of long images."`
	Interpolation string    `enum:",bilinear,bicubic" default:"" help:"How images are resized: bilinear or bicubic (default: the family's)."`
	Mean          []float64 `placeholder:"R,G,B" help:"Mean of the samples, 0..1 (default: the family's)."`
	Std           []float64 `placeholder:"R,G,B" help:"Standard deviation of the samples."`
	Tokens        bool      `help:"Also export the patch tokens (ViT)."`
	Input         string    `help:"ONNX: name of the image input."`
	Output        string    `help:"ONNX: name of the value that becomes the embedding."`
	Pool          string    `enum:",class,mean,none" default:"" help:"ONNX: how it becomes one vector: class, mean or none."`
	JSON          bool      `name:"json" help:"Print one JSON object."`
}

func (*backboneImportCmd) Help() string {
	return examples(
		"nearmiss backbone import vit_tiny_patch16_224.safetensors --out vit_ti.onnx",
		"nearmiss backbone import ViT-B_16.npz --out vit_b.onnx --mean 0.485,0.456,0.406 --std 0.229,0.224,0.225",
		"nearmiss backbone import model.onnx --out backbone.onnx --output features --pool mean",
	)
}

func (c *backboneImportCmd) Run(o *output) error {
	opts := backbone.ImportOptions{
		LoadOptions: backbone.LoadOptions{Size: c.Size},
		Tokens:      c.Tokens, Input: c.Input, Output: c.Output, Pool: backbone.Pooling(c.Pool),
	}
	if err := triple(c.Mean, &opts.Mean); err != nil {
		return usageError{fmt.Errorf("--mean: %w", err)}
	}
	if err := triple(c.Std, &opts.Std); err != nil {
		return usageError{fmt.Errorf("--std: %w", err)}
	}
	if c.Squash && c.Resize != 0 {
		return usageError{errors.New("--squash has no use for --resize")}
	}
	if c.Resize != 0 || c.Interpolation != "" || c.Squash {
		r, err := backbone.Inspect(c.File)
		if err != nil {
			return err
		}
		pre := r.Preprocess
		if c.Size != 0 {
			pre.Resize = pre.Resize * c.Size / pre.Crop
			pre.Crop = c.Size
		}
		if c.Resize != 0 {
			pre.Resize = c.Resize
		}
		if c.Squash {
			pre.Squash, pre.Resize = true, 0
		}
		if c.Interpolation != "" {
			pre.Interpolation = imaging.Interpolation(c.Interpolation)
		}
		opts.Preprocess = &pre
	}
	info, err := backbone.Import(c.File, c.Out, opts)
	if err != nil {
		return err
	}
	return printBackbone(o, c.JSON, c.Out, info)
}

func triple(in []float64, out *[3]float64) error {
	switch len(in) {
	case 0:
		return nil
	case 1:
		*out = [3]float64{in[0], in[0], in[0]}
	case 3:
		*out = [3]float64(in)
	default:
		return errors.New("give one number, or three for red, green and blue")
	}
	return nil
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
	spec := map[string]backbone.Spec{
		"tiny": backbone.Tiny, "small": backbone.Small, "base": backbone.Base, "large": backbone.Large,
		"starter": pretrain.Starter().Spec,
	}[c.Arch]
	if c.Size != 0 {
		spec.Size = c.Size
	}
	info, err := writeRandomBackbone(spec, c.Seed, c.Out)
	if err != nil {
		return err
	}
	return printBackbone(o, c.JSON, c.Out, info)
}

func writeRandomBackbone(spec backbone.Spec, seed uint64, out string) (backbone.Info, error) {
	m, err := backbone.Random(spec, seed)
	if err != nil {
		return backbone.Info{}, err
	}
	defer m.Close()
	return m.Write(out, backbone.Options{})
}

func printBackbone(o *output, asJSON bool, file string, info backbone.Info) error {
	if asJSON {
		return o.JSON(struct {
			Path string `json:"path"`
			backbone.Info
		}{file, info})
	}
	_, err := fmt.Fprintf(o.Out, "%s: %s, %d × %d pixels in, embeddings of %d dimensions, %.1f million parameters\n",
		file, info.Name, info.Size, info.Size, info.Dim, float64(info.Params)/1e6)
	return err
}

type backboneInspectCmd struct {
	File string `arg:"" type:"existingfile" help:"Weights (safetensors, npz) or an ONNX model."`
	JSON bool   `name:"json" help:"Print one JSON object."`
}

func (*backboneInspectCmd) Help() string {
	return examples("nearmiss backbone inspect vit_tiny_patch16_224.safetensors")
}

func (c *backboneInspectCmd) Run(o *output) error {
	r, err := backbone.Inspect(c.File)
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
	_, err = fmt.Fprint(o.Out, b.String())
	return err
}
