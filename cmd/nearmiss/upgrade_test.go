package main

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"

	"github.com/nearmiss/nearmiss/internal/eventually"
	"github.com/nearmiss/nearmiss/stream"
)

// unpack writes a tar.zst of testdata into a folder.
func unpack(t *testing.T, name string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("testdata", name))
	if err != nil {
		t.Fatal(err)
	}
	z, err := zstd.NewReader(bytes.NewReader(b))
	if err != nil {
		t.Fatal(err)
	}
	defer z.Close()
	dir := t.TempDir()
	root, err := os.OpenRoot(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	for r := tar.NewReader(z); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return dir
		}
		if err != nil {
			t.Fatal(err)
		}
		switch h.Typeflag {
		case tar.TypeDir:
			err = root.MkdirAll(filepath.Clean(h.Name), 0o755)
		case tar.TypeLink:
			err = root.Link(h.Linkname, h.Name)
		case tar.TypeReg:
			var content []byte
			if content, err = io.ReadAll(r); err == nil {
				err = root.WriteFile(h.Name, content, 0o644)
			}
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

// TestADataFolderOfAnEarlierVersion goes on with the folder that "nearmiss up" of
// commit e7c20b3 left: a detector that learnt from 30 frames of 32 × 32 drawn
// cells (a random ViT of 32 dimensions), a false alarm and a true one marked, a
// release trained anew that scores alongside, pictures of four alarms, a dead
// letter, and five frames that wait. Its releases lie in the store and in the
// folder. That version kept everything for a hundred years (nearmiss.yaml in the
// archive), or the frames would be too old for every later run of this test.
func TestADataFolderOfAnEarlierVersion(t *testing.T) {
	needRuntime(t)
	dir := unpack(t, "e7c20b3.tar.zst")
	var want struct {
		Releases []string           // in the order in which they were made
		Active   string             // one of them
		Scores   map[string]float64 // of the waiting frames' images, by the active one
	}
	b, err := os.ReadFile(filepath.Join(dir, "expected.json"))
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(b, &want); err != nil {
		t.Fatal(err)
	}
	data, config := filepath.Join(dir, "data"), filepath.Join(dir, "nearmiss.yaml")

	broker, url := runBroker(t, "--data", data, "--config", config)
	at := "--server=" + url
	l := listen(t, url)
	if n := l.waiting(t); n != 5 {
		t.Fatalf("%d frames wait, want 5", n)
	}

	worker := start(t, "worker", "--data", data, at)
	eventually.True(t, "the waiting frames are scored", func() bool { return len(l.scoresOf("cells")) == 5 && l.waiting(t) == 0 })
	for _, e := range l.scoresOf("cells") {
		score := want.Scores[e.Source]
		// The frames are JPEG files, which that version decoded otherwise.
		if e.Release != want.Active || e.Score == nil || math.Abs(*e.Score-score) > 0.02*score {
			got := math.NaN()
			if e.Score != nil {
				got = *e.Score
			}
			t.Errorf("%s was scored %v by %.12s, want %v by %.12s", e.Source, got, e.Release, score, want.Active)
		}
	}

	t.Run("it knows what was set, kept and marked", func(t *testing.T) {
		text, _ := program(t, 0, "detector", "list", "--json", at)
		if all := readLines[stream.Detector](t, text); len(all) != 1 || all[0].Name != "cells" || all[0].FalseAlarmRate != 0.2 || all[0].Description != "made by e7c20b3" {
			t.Errorf("detectors:\n%s", text)
		}
		text, _ = program(t, 0, "releases", "cells", "--json", at)
		all := readLines[struct{ Release string }](t, text)
		if len(all) != len(want.Releases) {
			t.Fatalf("releases:\n%s", text)
		}
		for i, r := range all {
			if r.Release != want.Releases[i] {
				t.Errorf("release %d is %.12s, want %.12s", i, r.Release, want.Releases[i])
			}
		}
		text, _ = program(t, 0, "normals", "list", "cells", "--json", at)
		if n := strings.Count(text, "\n"); n != 31 {
			t.Errorf("%d normals, want 31:\n%s", n, text)
		}
		text, _ = program(t, 0, "status", "--dead", "5", at)
		for _, part := range []string{"31 normals, 1 labelled anomalies", "candidate " + want.Releases[2][:12], "1 dead letters"} {
			if !strings.Contains(text, part) {
				t.Errorf("status says nothing of %q:\n%s", part, text)
			}
		}
		if text, _ = program(t, 0, "jobs", "cells", at); strings.Count(text, " done ") != 3 {
			t.Errorf("jobs:\n%s", text)
		}
		eventually.True(t, "the pictures of the new alarms", func() bool {
			text, _ = program(t, 0, "evidence", "list", "cells", "--json", at)
			return strings.Count(text, "\n") == 9
		})
		old := readLines[stream.EvidenceInfo](t, text)
		for _, e := range []stream.EvidenceInfo{old[0], old[8]} {
			program(t, 0, "evidence", "get", "cells", e.Event, "--out", t.TempDir(), at)
		}
	})

	t.Run("it learns on and goes back", func(t *testing.T) {
		trainer := start(t, "trainer", "--data", data, "--backbone", filepath.Join(data, "releases", "releases", want.Active, "backbone.onnx"), at)
		falseAlarm := l.scoresOf("cells")[0]
		program(t, 0, "mark", "cells", "normal", "--camera", falseAlarm.Camera, "--frame", falseAlarm.FrameID, at)
		eventually.True(t, "a release with the false alarm in its bank", func() bool { return activeRelease(t, "cells", at) != want.Active })
		extended := activeRelease(t, "cells", at)
		eventually.True(t, "it is in service", func() bool { return serves(t, "cells", at, extended) })
		program(t, 0, "train", "cells", "--wait", at)
		trained := activeRelease(t, "cells", at)
		if trained == extended || trained == want.Active {
			t.Fatalf("release %.12s is active after the training", trained)
		}
		program(t, 0, "releases", "cells", "promote", want.Releases[0], at)
		eventually.True(t, "the first release of the earlier version serves", func() bool { return serves(t, "cells", at, want.Releases[0]) })
		trainer.stop()
	})
	worker.stop()
	broker.stop()
	if n := len(l.scoresOf("cells")); n != 5 {
		t.Errorf("%d scores of 5 frames", n)
	}
}
