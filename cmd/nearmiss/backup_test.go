package main

import (
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/nearmiss/nearmiss/internal/brokertest"
	"github.com/nearmiss/nearmiss/stream"
	"github.com/nearmiss/nearmiss/stream/backup"
	"github.com/nearmiss/nearmiss/stream/registry"
)

// TestBackupAndRestore: what is backed up, wiped and restored knows the same
// normals by the same numbers and gives the same scores by ONNX Runtime.
func TestBackupAndRestore(t *testing.T) {
	needRuntime(t)
	t.Parallel()
	dir := t.TempDir()
	normals, more := filepath.Join(dir, "normals"), filepath.Join(dir, "more")
	drawImages(t, normals, 60, 0)
	drawImages(t, more, 4, 0.5)
	images := readImages(t, more)
	release, want := smallRelease(t, normals, 1, images, "--tiles", "2x2")

	from := startBroker(t)
	program(t, 0, "detector", "create", "cells", "--false-alarm-rate", "0.1", "--server", from)
	program(t, 0, "normals", "add", "cells", normals, "--server", from)
	program(t, 0, "normals", "remove", "cells", "3", "--server", from) // sequences have a gap
	program(t, 0, "releases", "cells", "publish", release, "--promote", "--server", from)
	file, folder := filepath.Join(dir, "b.tar"), filepath.Join(dir, "b")
	program(t, 0, "backup", "--out", file, "--server", from)
	program(t, 0, "backup", "--out", folder, "--what", "all", "--server", from)
	_, errs := program(t, 1, "backup", "--out", folder, "--server", from)
	if !strings.Contains(errs, "is not empty") {
		t.Errorf("a second backup into one folder: %s", errs)
	}

	said := func(server string) map[string]string {
		t.Helper()
		all := map[string]string{}
		for _, args := range [][]string{
			{"detector", "list", "--json"}, {"normals", "list", "cells", "--json"}, {"releases", "cells", "--json"},
		} {
			all[strings.Join(args, " ")], _ = program(t, 0, append(args, "--server", server)...)
		}
		return all
	}
	for _, b := range []string{file, folder} {
		to := startBroker(t)
		program(t, 0, "restore", b, "--server", to)
		program(t, 0, "broker", "--setup", to)
		if diff := cmp.Diff(said(from), said(to)); diff != "" {
			t.Errorf("%s (-before +after):\n%s", b, diff)
		}
		if b == folder { // which has all
			before, _ := program(t, 0, "audit", "--json", "--server", from)
			after, _ := program(t, 0, "audit", "--json", "--server", to)
			if before != after || !strings.Contains(before, "cells") {
				t.Errorf("the audit was\n%s\nand is\n%s", before, after)
			}
		}
		js, n := brokertest.Streams(t, to), stream.Names{}
		reg, err := registry.Open(t.Context(), js, registry.Config{ActiveBucket: n.ActiveBucket(), ArtifactsBucket: n.ArtifactsBucket(), CacheDir: t.TempDir()})
		if err != nil {
			t.Fatal(err)
		}
		p, err := reg.Active(t.Context(), "cells")
		if err != nil {
			t.Fatal(err)
		}
		back, err := reg.Get(t.Context(), p.Release)
		if err != nil {
			t.Fatal(err)
		}
		got := scoresBy(t, back, images)
		for i := range want {
			if math.Abs(got[i].Score-want[i].Score) > 1e-6 {
				t.Errorf("image %d: score %v, before %v", i, got[i].Score, want[i].Score)
			}
		}
		_, errs := program(t, 1, "restore", b, "--server", to)
		if !strings.Contains(errs, backup.ErrNotEmpty.Error()) {
			t.Errorf("a restore over what is there: %s", errs)
		}
		_, errs = program(t, 1, "restore", b, "--server", to, "--prefix", "other")
		if !strings.Contains(errs, "--prefix nearmiss") {
			t.Errorf("a restore under another prefix: %s", errs)
		}
	}

	// What is not as it was made is not restored.
	path := filepath.Join(folder, "NM_NORMALS.snapshot")
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	b[len(b)/2] ^= 1
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	_, errs = program(t, 1, "restore", folder, "--server", startBroker(t))
	if !strings.Contains(errs, "NM_NORMALS.snapshot is not what the manifest says") {
		t.Errorf("a damaged backup: %s", errs)
	}
}
