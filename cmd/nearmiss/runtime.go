package main

import (
	"context"
	"fmt"

	"github.com/nearmiss/nearmiss/inference/ort"
)

// runtimeCmd looks after the ONNX Runtime library.
type runtimeCmd struct {
	Install runtimeInstallCmd `cmd:"" help:"Get the ONNX Runtime library into this user's cache."`
	Info    runtimeInfoCmd    `cmd:"" help:"Print the library's place, version and execution providers."`
}

type runtimeInstallCmd struct {
	CUDA  bool   `name:"cuda" help:"Get the build for NVIDIA's accelerators (Linux on amd64; 220 MB, with pip). It needs CUDA 13 and cuDNN 9 on the machine."`
	From  string `placeholder:"FILE" type:"existingfile" help:"Take this library, this tarball of the npm package or this wheel of onnxruntime-gpu instead of downloading it."`
	Force bool   `help:"Install again even when the library is in place."`
	JSON  bool   `name:"json" help:"Print one JSON object."`
}

func (*runtimeInstallCmd) Help() string {
	return examples(
		"nearmiss runtime install",
		"nearmiss runtime install --from /opt/onnxruntime/lib/libonnxruntime.so.1",
		"nearmiss runtime install --cuda",
	)
}

func (c *runtimeInstallCmd) Run(ctx context.Context, o *output) error {
	bar := o.download("ONNX Runtime " + ort.Version)
	path, err := ort.Install(ctx, ort.InstallOptions{From: c.From, CUDA: c.CUDA, Force: c.Force, Progress: bar.stage})
	bar.close()
	if err != nil {
		return err
	}
	if c.JSON {
		return o.JSON(map[string]string{"path": path, "version": ort.Version})
	}
	_, err = fmt.Fprintf(o.Out, "ONNX Runtime %s is at %s\n", ort.Version, path)
	return err
}

type runtimeInfoCmd struct {
	JSON bool `name:"json" help:"Print one JSON object."`
}

func (c *runtimeInfoCmd) Run(o *output) error {
	if err := ort.Load(); err != nil {
		return err
	}
	version, path, err := ort.Loaded()
	if err != nil {
		return err
	}
	providers, err := ort.Providers()
	if err != nil {
		return err
	}
	if c.JSON {
		return o.JSON(map[string]any{"path": path, "version": version, "providers": providers})
	}
	if _, err := fmt.Fprintf(o.Out, "ONNX Runtime %s\n%s\n", version, path); err != nil {
		return err
	}
	for _, p := range providers {
		state := "usable"
		if !p.Usable {
			state = "not usable: " + p.Why
		}
		if _, err := fmt.Fprintf(o.Out, "%-9s %s\n", p.Device, state); err != nil {
			return err
		}
	}
	return nil
}
