package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/nearmiss/nearmiss/inference"
	"github.com/nearmiss/nearmiss/inference/ort"
	"github.com/nearmiss/nearmiss/stream"
	"github.com/nearmiss/nearmiss/stream/backup"
	"github.com/nearmiss/nearmiss/stream/registry"
	"github.com/nearmiss/nearmiss/stream/worker"
)

type backupCmd struct {
	Out  string `required:"" type:"path" placeholder:"DIR|FILE.tar" help:"New folder, or a file that ends in .tar."`
	What string `enum:"config,models,all" default:"models" help:"What to keep: ${enum}. config: detectors, active releases, sinks; models: also releases, normals, jobs, verdicts; all: also events, pictures, incidents, dead letters, the audit."`
	JSON bool   `name:"json" help:"Print what was kept as one JSON object."`
	serverFlags
}

func (*backupCmd) Help() string {
	return "It works while everything runs. Waiting frames and training requests are not kept. A locked broker asks for an identity with role setup. " +
		"Users' keys and certificates are files of the data folder: copy its auth and tls folders, too.\n\n" +
		examples("nearmiss backup --out nightly.tar", "nearmiss backup --what all --out /backup/monday --nkey setup.nk")
}

func (c *backupCmd) Run(ctx context.Context, o *output) error {
	nc, err := c.connect("backup", o)
	if err != nil {
		return err
	}
	defer nc.Close()
	dir, file := c.Out, ""
	if strings.HasSuffix(c.Out, ".tar") {
		file = c.Out
		if dir, err = os.MkdirTemp(filepath.Dir(file), ".nearmiss-backup-"); err != nil {
			return err
		}
		defer os.RemoveAll(dir)
	}
	m, err := backup.Source{Conn: nc, Names: c.names(), Tool: "nearmiss " + version}.Save(ctx, dir, c.What)
	if err != nil {
		return err
	}
	if file != "" {
		if err := backup.Pack(dir, file); err != nil {
			return err
		}
	}
	var messages uint64
	var size int64
	for _, e := range m.Streams {
		messages, size = messages+e.Messages, size+e.Bytes
	}
	return o.result(c.JSON, m, fmt.Sprintf("%s: %d streams, %d messages, %.1f MB", c.Out, len(m.Streams), messages, float64(size)/1e6))
}

type restoreCmd struct {
	From     string `arg:"" type:"path" help:"Folder or .tar file of nearmiss backup."`
	Replicas int    `default:"1" placeholder:"N" help:"Copies of each stream, in a cluster of servers."`
	JSON     bool   `name:"json" help:"Print what was restored as one JSON object."`
	serverFlags
}

func (*restoreCmd) Help() string {
	return "It refuses to overwrite: each stream of the backup must be missing or empty, as in a broker that has just been set up. " +
		"Stop workers, trainers and sinks first. In the end each active release is fetched and loaded.\n\n" +
		examples("nearmiss restore nightly.tar", "nearmiss restore /backup/monday --server nats://new.example.org:4222 --replicas 3")
}

func (c *restoreCmd) Run(ctx context.Context, o *output) error {
	if err := ort.Load(); err != nil {
		return err
	}
	dir := c.From
	if info, err := os.Stat(c.From); err != nil {
		return err
	} else if !info.IsDir() {
		if dir, err = os.MkdirTemp(filepath.Dir(c.From), ".nearmiss-restore-"); err != nil {
			return err
		}
		defer os.RemoveAll(dir)
		if err := backup.Unpack(c.From, dir); err != nil {
			return err
		}
	}
	js, err := c.streams(c.connect("restore", o))
	if err != nil {
		return err
	}
	defer js.Conn().Close()
	m, err := backup.Source{Conn: js.Conn(), Names: c.names()}.Restore(ctx, dir, c.Replicas)
	if err != nil {
		return err
	}
	releases := 0
	if m.What != backup.Config {
		if releases, err = loadActive(ctx, js, c.names(), o); err != nil {
			return fmt.Errorf("everything is restored, but: %w", err)
		}
	}
	return o.result(c.JSON, m, fmt.Sprintf("restored %d streams of %s; %s; nearmiss broker --setup creates what the backup lacks", len(m.Streams), m.CreatedAt.Format(time.RFC3339), counted(releases, "active release loads", "active releases load")))
}

// loadActive fetches and opens each active release, and returns how many there are.
func loadActive(ctx context.Context, js jetstream.JetStream, n stream.Names, o *output) (int, error) {
	cache, err := os.MkdirTemp("", "nearmiss-restore-")
	if err != nil {
		return 0, err
	}
	defer os.RemoveAll(cache)
	reg, err := registry.Open(ctx, js, registry.Config{ActiveBucket: n.ActiveBucket(), ArtifactsBucket: n.ArtifactsBucket(), CacheDir: cache})
	if err != nil {
		return 0, err
	}
	active, _, bad, err := reg.Pointers(ctx)
	if err != nil {
		return 0, err
	}
	var errs []error
	for _, b := range bad {
		errs = append(errs, fmt.Errorf("pointer %s cannot be read", b.Key))
	}
	load := loader(inference.Options{Log: o.Log})
	for _, name := range slices.Sorted(maps.Keys(active)) {
		dir, err := reg.Get(ctx, active[name].Release)
		if err == nil {
			var s worker.Scorer
			if s, err = load(ctx, dir); err == nil {
				err = s.Close()
			}
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("release %.12s of detector %s: %w", active[name].Release, name, err))
		}
	}
	return len(active), errors.Join(errs...)
}
