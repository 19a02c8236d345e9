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
	// One truth of the rate, wherever it is asked for.
	if out, _ := program(t, 0, "detector", "show", "pub", at); !strings.Contains(out, "asked for 20 %; release ") || !strings.Contains(out, "promises 20 % false alarms with ") {
		t.Errorf("detector show: %s", out)
	}
	if out, _ := program(t, 0, "status", "--workers=10ms", at); !strings.Contains(out, "asked for 20 %; release ") {
		t.Errorf("status: %s", out)
	}
	out, _ = program(t, 0, "detector", "set", "pub", "--false-alarm-rate", "0.001", "--margin", "2", "--json", at)
	in := readLines[force](t, out)[0]
	if in.FalseAlarmRate != 0.001 || in.Promised != nil || in.ThresholdBy != stream.ThresholdByMargin || in.InForce == nil || in.SmallestRate < 0.001 {
		t.Errorf("detector set: %s", out)
	}
	out, _ = program(t, 0, "detector", "set", "pub", "--margin", "0", at)
	if !strings.Contains(out, "asked for 0.1 %; release ") || !strings.Contains(out, "promises 20 %") {
		t.Errorf("detector set: %s", out)
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
	// And in another installation, once and again.
	there := "--server=" + startBroker(t)
	for range 2 {
		program(t, 0, "releases", "pub", "copy", "--to", strings.TrimPrefix(there, "--server="), "--promote", at)
	}
	if here, copied := activeRelease(t, "pub", at), activeRelease(t, "pub", there); copied != here {
		t.Errorf("release %s was copied, %s is active there", here, copied)
	}
	program(t, 0, "train", "pub", at)
	program(t, 0, "detector", "delete", "pub", at)
}

func TestWhatAPromiseMeansAtACamera(t *testing.T) {
	rate, threshold := 0.0244, 12.3
	in := force{Detector: stream.Detector{Name: "bolts", FalseAlarmRate: 0.001}, Release: strings.Repeat("a", 64), Promised: &rate, InForce: &threshold, HeldOut: 40, understood: true}
	in.expect([]stream.WorkerStatus{
		{Cameras: []stream.CameraRate{{Detector: "bolts", Camera: "line1", PerSecond: 0.25}, {Detector: "nuts", Camera: "x", PerSecond: 9}}},
		{Cameras: []stream.CameraRate{{Detector: "bolts", Camera: "line1", PerSecond: 0.25}}},
	})
	want := "in force   asked for 0.1 %; release aaaaaaaaaaaa promises 2.44 % false alarms with 40 held-out normals, threshold 12.3\n" +
		"camera     line1: 0.5 frames a second, up to 43.9 false alarms an hour when all is normal\n"
	if got := in.text(""); got != want {
		t.Errorf("%s\nwant\n%s", got, want)
	}
}
