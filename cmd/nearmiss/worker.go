package main

import (
	"context"
	"path/filepath"

	"github.com/nats-io/nats.go"

	"github.com/nearmiss/nearmiss/inference"
	"github.com/nearmiss/nearmiss/inference/imaging"
	"github.com/nearmiss/nearmiss/inference/ort"
	budget "github.com/nearmiss/nearmiss/internal/memory"
	"github.com/nearmiss/nearmiss/stream/worker"
)

type workerCmd struct {
	Detectors []string `name:"detector" placeholder:"NAME" help:"Serve this detector only; may be repeated (default: all that the broker knows)."`
	Server    string   `placeholder:"URL" help:"NATS server (default nats://127.0.0.1:4222)."`
	credentialFlags
	Data string `type:"path" placeholder:"DIR" help:"Folder for the releases in use (default nearmiss-data)."`
	modelFlags
	Batch int `placeholder:"N" help:"Most frames scored at once (default 16)."`
	configFlag
}

func (*workerCmd) Help() string {
	return "It serves until Ctrl-C, finishes the frames under way and leaves the others to the next worker. " +
		"Any number of workers, on any number of machines, share the frames.\n\n" +
		examples(
			"nearmiss worker",
			"nearmiss worker --server nats://line3.example.org:4222 --detector bolts --device cuda",
		)
}

func (c *workerCmd) Run(ctx context.Context, o *output) error {
	conf, err := c.load(func(conf *config) {
		set(&conf.Server, c.Server)
		conf.JetStreamAPI = c.jetStreamAPI()
		set(&conf.Data, c.Data)
		c.modelFlags.override(conf)
		set(&conf.Worker.Batch, c.Batch)
	})
	if err != nil {
		return err
	}
	if err := ort.Load(); err != nil { // now, and not at the first release
		return err
	}
	server := serverFlags{Server: conf.Server, credentialFlags: c.credentialFlags}
	return server.serve(ctx, "worker", conf.observed(), o, func(ctx context.Context, nc *nats.Conn, v *observer) error {
		return runWorker(ctx, conf, c.Detectors, nc, v, o)
	})
}

// runWorker runs the worker that conf describes until ctx ends.
func runWorker(ctx context.Context, conf config, detectors []string, nc *nats.Conn, v *observer, o *output) error {
	d, err := ort.ParseDevice(conf.Worker.Device)
	if err != nil {
		return err
	}
	limits := imaging.Limits{MaxBytes: conf.Images.MaxBytes, MaxPixels: conf.Images.MaxPixels}
	// Two halves, since a frame is held as a file while it waits for room for its
	// pixels.
	files, pixels := budget.New(conf.Images.Memory/2), budget.New(conf.Images.Memory/2)
	w, err := worker.New(worker.Config{
		Names: conf.names(), Detectors: detectors, CacheDir: filepath.Join(conf.Data, "releases"),
		BatchSize: conf.Worker.Batch, MaxImage: conf.Images.MaxBytes, Memory: files, Inspect: inspect(limits),
		Meter: v.Worker(), Tracer: v.tracer(),
	}, nc, loader(inference.Options{
		Embed: inference.EmbedOptions{Device: d, Threads: conf.Worker.Threads, Limits: limits, Memory: pixels},
		Log:   o.Log,
	}), o.Log)
	if err != nil {
		return usageError{oneLine(err)}
	}
	v.Connection(nc)
	v.begun("worker", w.Ready)
	return w.Run(ctx)
}
