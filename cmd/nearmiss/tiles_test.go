package main

import (
	"math"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/nearmiss/nearmiss/inference/imaging"
	"github.com/nearmiss/nearmiss/internal/eventually"
	"github.com/nearmiss/nearmiss/stream"
	"github.com/nearmiss/nearmiss/stream/registry"
)

// TestATrainerLearnsInTilesThatTheDetectorAsksFor has a trainer make a release by a
// detector's tiles, by which a worker scores as a program without a broker does, and
// then one by a budget that no tiles fit in.
func TestATrainerLearnsInTilesThatTheDetectorAsksFor(t *testing.T) {
	t.Parallel()
	needRuntime(t)
	dir := t.TempDir()
	normals, shown, model := filepath.Join(dir, "normals"), filepath.Join(dir, "shown"), filepath.Join(dir, "models", "model.onnx")
	drawImages(t, normals, 30, 0)
	drawImages(t, shown, 5, 0.5)
	if err := os.MkdirAll(filepath.Dir(model), 0o755); err != nil { // where trainers look for names
		t.Fatal(err)
	}
	if _, err := writeRandomBackbone(tinySpec, 1, model); err != nil {
		t.Fatal(err)
	}
	url := startBroker(t)
	at := "--server=" + url
	l := listen(t, url)
	n := stream.Names{}
	f := &fakery{t: t}
	program(t, 0, "detector", "create", "cells", "--backbone", "model", "--score", "full", "--tiles", "2x3", "--false-alarm-rate", "0.2", at)
	reg, err := registry.Open(t.Context(), l.js, registry.Config{ActiveBucket: n.ActiveBucket(), ArtifactsBucket: n.ArtifactsBucket(), CacheDir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	trainer := start(t, "trainer", "--server", url, "--data", dir, "--threads", "1")
	learnt := func(args ...string) *imaging.Tiles {
		program(t, 0, append(args, at)...)
		p, err := reg.Active(t.Context(), "cells")
		if err != nil {
			t.Fatal(err)
		}
		return f.manifest(reg, p.Release).Model.Preprocess.Tiles
	}
	if got := learnt("train", "cells", "--normals", normals, "--wait"); got == nil || got.String() != "2x3" {
		t.Errorf("learnt in tiles %+v, want 2x3", got)
	}
	worker := start(t, "worker", "--server", url, "--data", t.TempDir(), "--threads", "1")
	program(t, 0, "camera", shown, "--detector", "cells", "--camera", "one", at)
	eventually.True(t, "the frames are scored", func() bool { return len(l.scoresOf("cells")) == 5 })
	worker.stop()
	var got, want []float64
	for _, e := range l.scoresOf("cells") {
		got = append(got, *e.Score)
	}
	p, err := reg.Active(t.Context(), "cells")
	if err != nil {
		t.Fatal(err)
	}
	folder, err := reg.Get(t.Context(), p.Release)
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range scoresBy(t, folder, readImages(t, shown)) {
		want = append(want, s.Score)
	}
	slices.Sort(got)
	slices.Sort(want)
	for i := range want {
		if math.Abs(got[i]-want[i]) > 1e-6*want[i] {
			t.Errorf("frames score %v, offline %v", got, want)
			break
		}
	}
	program(t, 0, "detector", "set", "cells", "--tiles", "", "--budget", "1ns", at)
	if got := learnt("train", "cells", "--wait", "--force"); got != nil {
		t.Errorf("within no time learnt in tiles %+v", got)
	}
	program(t, 1, "detector", "set", "cells", "--tiles", "1x1", at)
	trainer.stop()
}
