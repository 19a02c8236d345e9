package main

import (
	"context"
	"fmt"
	"strings"

	"github.com/nearmiss/nearmiss/inference/ort"
)

// runtimeCmd looks after the ONNX Runtime library.
type runtimeCmd struct {
	Install runtimeInstallCmd `cmd:"" help:"Get the ONNX Runtime library into this user's cache."`
	Info    runtimeInfoCmd    `cmd:"" help:"Print the library's place, version and execution providers."`
}

type runtimeInstallCmd struct {
	From  string `placeholder:"FILE" type:"existingfile" help:"Take this library, or this tarball of the npm package, instead of downloading it."`
	Force bool   `help:"Install again even when the library is in place."`
	JSON  bool   `name:"json" help:"Print one JSON object."`
}

func (*runtimeInstallCmd) Help() string {
	return examples(
		"nearmiss runtime install",
		"nearmiss runtime install --from /opt/onnxruntime/lib/libonnxruntime.so.1",
	)
}

func (c *runtimeInstallCmd) Run(ctx context.Context, o *output) error {
	bar := o.download("ONNX Runtime " + ort.Version)
	path, err := ort.Install(ctx, ort.InstallOptions{From: c.From, Force: c.Force, Progress: bar.stage})
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
	_, err = fmt.Fprintf(o.Out, "ONNX Runtime %s\n%s\nexecution providers: %s\n", version, path, strings.Join(providers, ", "))
	return err
}
