package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/google/renameio/v2"

	"github.com/nearmiss/nearmiss/inference/backbone"
	"github.com/nearmiss/nearmiss/inference/backbone/starter"
	"github.com/nearmiss/nearmiss/inference/ort"
	"github.com/nearmiss/nearmiss/training/pretrain"
)

type backboneStarterCmd struct {
	Out  string `short:"o" required:"" type:"path" placeholder:"FILE.onnx" help:"The backbone that is written."`
	JSON bool   `name:"json" help:"Print one JSON object."`
}

func (*backboneStarterCmd) Help() string {
	return "The starter backbone is a small ViT, trained on drawn pictures only, for the demo and for first trials. For real work import a " +
		"model that was pretrained on photographs.\n\n" +
		examples("nearmiss backbone starter --out starter.onnx")
}

func (c *backboneStarterCmd) Run(o *output) error {
	if err := writable("--out", c.Out); err != nil {
		return err
	}
	info, err := starter.Write(c.Out, backbone.Options{})
	if err != nil {
		return err
	}
	return printBackbone(o, c.JSON, c.Out, info)
}

type backboneTrainStarterCmd struct {
	Out     string  `short:"o" required:"" type:"path" placeholder:"FILE" help:"Where it goes: .safetensors (half precision) or .onnx."`
	Steps   int     `placeholder:"N" help:"Training steps (default: those of the starter backbone)."`
	Designs int     `placeholder:"N" help:"Things to inspect that are drawn before the training (default: those of the starter backbone)."`
	Rate    float64 `placeholder:"R" help:"Learning rate."`
	Seed    uint64  `default:"1" help:"Draws the pictures and the first weights."`
	Work    string  `type:"path" placeholder:"DIR" help:"Folder of the checkpoint, from which the same command goes on (default: FILE.work; removed at the end)."`
	Device  string  `default:"cpu" placeholder:"D" help:"Where it is trained: cpu, cuda or cuda:1."`
	Threads int     `placeholder:"N" help:"CPU threads to compute on (default: all cores). Another number gives slightly other weights."`
	JSON    bool    `name:"json" help:"Print one JSON object a report, and one at the end."`
}

func (*backboneTrainStarterCmd) Help() string {
	return "Train a small ViT from nothing on drawn pictures, as the starter backbone was that comes with the program.\n\n" +
		examples(
			"nearmiss backbone train-starter --out starter.safetensors --threads 1",
			"nearmiss backbone train-starter --out trial.onnx --steps 200 --designs 60 --seed 2",
		)
}

func (c *backboneTrainStarterCmd) Run(ctx context.Context, o *output) error {
	ext := filepath.Ext(c.Out)
	if ext != ".safetensors" && ext != ".onnx" {
		return usageError{fmt.Errorf("--out %s: the name must end in .safetensors or .onnx", c.Out)}
	}
	for _, err := range []error{writable("--out", c.Out), writableFolder("--work", c.Work)} {
		if err != nil {
			return err
		}
	}
	device, err := ort.ParseDevice(c.Device)
	if err != nil {
		return usageError{err}
	}
	conf := pretrain.Starter()
	set(&conf.Steps, c.Steps)
	set(&conf.Designs, c.Designs)
	set(&conf.LearningRate, c.Rate)
	set(&conf.Seed, c.Seed)
	conf.Session = ort.Options{Device: device, IntraOpThreads: c.Threads}
	if conf.Work = c.Work; conf.Work == "" {
		conf.Work = c.Out + ".work"
	}
	bar := o.progress("draw")
	reported := 0
	conf.Progress = func(p pretrain.Progress) {
		what := p.Stage
		if p.Stage == pretrain.StageTrain {
			what = fmt.Sprintf("train, loss %.3f", p.Loss)
		}
		bar.stage(what, int64(p.Done), int64(p.Total))
		if c.JSON && p.Stage == pretrain.StageTrain && (p.Done-reported >= 50 || p.Done == p.Total) {
			reported = p.Done
			_ = o.JSON(map[string]any{"step": p.Done, "steps": p.Total, "loss": p.Loss, "parts": p.Parts, "seconds_left": p.Left.Seconds()})
		}
	}
	res, err := pretrain.Train(ctx, conf)
	bar.close()
	if errors.Is(err, pretrain.ErrConfig) {
		return usageError{err}
	}
	if err != nil {
		if ctx.Err() != nil && fileExists(filepath.Join(conf.Work, pretrain.CheckpointFile)) {
			fmt.Fprintln(o.Err, "note: the same command goes on from where it was")
		}
		return err
	}
	if err := writeTrained(res.Model, conf, c.Out); err != nil {
		return err
	}
	if c.Work == "" {
		if err := os.RemoveAll(conf.Work); err != nil {
			return err
		}
	}
	return printBackbone(o, c.JSON, c.Out, res.Model.Info())
}

// writeTrained writes the model and, in half precision, how it was trained.
func writeTrained(m *backbone.Model, conf pretrain.Config, path string) error {
	if !strings.HasSuffix(path, ".safetensors") {
		_, err := m.Write(path, backbone.Options{})
		return err
	}
	how, err := json.Marshal(conf)
	if err != nil {
		return err
	}
	b, err := m.EncodeHalf(map[string]string{"nearmiss.training": string(how)})
	if err != nil {
		return err
	}
	return renameio.WriteFile(path, b, 0o644)
}
