package main

import (
	"github.com/nearmiss/nearmiss/inference"
	"github.com/nearmiss/nearmiss/inference/ort"
)

// deviceFlags say where the model runs.
type deviceFlags struct {
	Device  string `default:"cpu" placeholder:"D" help:"Where the model runs: cpu, cuda, cuda:1, cuda+graph or tensorrt."`
	Threads int    `placeholder:"N" help:"CPU threads that the model computes on (default: all cores)."`
	Batch   int    `placeholder:"N" help:"Most images in one run of the model (default: 4 on the CPU, 32 elsewhere)."`
}

func (f deviceFlags) options() (inference.EmbedOptions, error) {
	d, err := ort.ParseDevice(f.Device)
	if err != nil {
		return inference.EmbedOptions{}, usageError{err}
	}
	return inference.EmbedOptions{Device: d, Threads: f.Threads, Batch: f.Batch}, nil
}

// modelFlags say the same to a service, which may have it from its
// configuration.
type modelFlags struct {
	Device  string `placeholder:"D" help:"Where the model runs: cpu, cuda, cuda:1, cuda+graph or tensorrt (default cpu)."`
	Threads int    `placeholder:"N" help:"CPU threads that the model computes on (default: all cores)."`
}

func (f modelFlags) override(conf *config) {
	set(&conf.Worker.Device, f.Device)
	set(&conf.Worker.Threads, f.Threads)
}
