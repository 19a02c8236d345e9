package main

import (
	"path/filepath"
	"strings"
	"testing"

	"github.com/nearmiss/nearmiss/stream"
)

// TestPublishingMakesADetectorWhole: with its configuration and its normals, so
// that every command works on it.
func TestPublishingMakesADetectorWhole(t *testing.T) {
	needRuntime(t)
	normals, release := t.TempDir(), filepath.Join(t.TempDir(), "release")
	drawImages(t, normals, 30, 0)
	program(t, 0, "fit", "--normals", normals, "--backbone", randomModel(t), "--out", release, "--alpha", "0.2", "--seed", "1")
	at := "--server=" + startBroker(t)
	_, errs := program(t, 0, "releases", "pub", "publish", release, "--promote", at)
	if !strings.Contains(errs, "created detector pub") || !strings.Contains(errs, "30 normals came with the release") {
		t.Errorf("publish says %s", errs)
	}
	out, _ := program(t, 0, "detector", "show", "pub", "--json", at)
	if d := readLines[stream.Detector](t, out)[0]; d.FalseAlarmRate != 0.2 || d.K != 2 || d.Method != "knn" {
		t.Errorf("configured as %s", out)
	}
	out, _ = program(t, 0, "normals", "list", "pub", "--json", at)
	if all := readLines[stream.Normal](t, out); len(all) != 30 || all[0].Origin != "came with a release" {
		t.Errorf("%d normals", len(all))
	}
	if out, _ := program(t, 0, "releases", "pub", at); !strings.HasPrefix(out, "* ") {
		t.Errorf("releases of pub: %q", out)
	}
	// Again, and for another detector whose images are elsewhere.
	if _, errs := program(t, 0, "releases", "pub", "publish", release, at); strings.Contains(errs, "normals came") {
		t.Errorf("its normals came twice: %s", errs)
	}
	if _, errs := program(t, 0, "releases", "other", "publish", release, "--normals", normals, at); !strings.Contains(errs, "30 normals came") {
		t.Errorf("publish says %s", errs)
	}
	if out, _ := program(t, 0, "releases", "other", at); !strings.HasPrefix(out, "  ") || len(strings.Fields(out)) == 0 {
		t.Errorf("releases of other: %q", out)
	}
	program(t, 0, "train", "pub", at)
	program(t, 0, "detector", "delete", "pub", at)
}
