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
	Fetch   runtimeFetchCmd   `cmd:"" help:"Write the library for another platform to a file, for archives."`
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
	return o.result(c.JSON, map[string]string{"path": path, "version": ort.Version}, fmt.Sprintf("ONNX Runtime %s is at %s", ort.Version, path))
}

type runtimeInfoCmd struct {
	JSON bool `name:"json" help:"Print one JSON object."`
}

func (*runtimeInfoCmd) Help() string { return examples("nearmiss runtime info --json") }

func (c *runtimeInfoCmd) Run(o *output) error {
	version, path, providers, err := loadedRuntime()
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
		} else if p.Device == "cuda" {
			state += ", also as cuda+graph"
		}
		if _, err := fmt.Fprintf(o.Out, "%-9s %s\n", p.Device, state); err != nil {
			return err
		}
	}
	return nil
}

type runtimeFetchCmd struct {
	Platform string `arg:"" help:"linux/amd64, linux/arm64 or darwin/arm64."`
	Out      string `short:"o" required:"" type:"path" placeholder:"FILE" help:"The library that is written."`
}

func (*runtimeFetchCmd) Help() string {
	return "A library beside the program is used where none is installed.\n\n" + examples("nearmiss runtime fetch linux/arm64 --out dist/libonnxruntime.so.1")
}

func (c *runtimeFetchCmd) Run(ctx context.Context, o *output) error {
	if err := writable("--out", c.Out); err != nil {
		return err
	}
	bar := o.download("ONNX Runtime " + ort.Version)
	err := ort.Fetch(ctx, c.Platform, c.Out, bar.stage)
	bar.close()
	if err != nil {
		return err
	}
	return o.printf("ONNX Runtime %s for %s is at %s\n", ort.Version, c.Platform, c.Out)
}

func loadedRuntime() (version, path string, providers []ort.Provider, err error) {
	if err := ort.Load(); err != nil {
		return "", "", nil, err
	}
	if version, path, err = ort.Loaded(); err != nil {
		return "", "", nil, err
	}
	providers, err = ort.Providers()
	return version, path, providers, err
}
