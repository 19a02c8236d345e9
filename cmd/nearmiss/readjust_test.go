package main

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/nearmiss/nearmiss/internal/eventually"
)

// TestKAndTheFalseAlarmRateActWithoutTraining changes them while a worker and a
// trainer run: frames are soon judged by them, with the same model and normals.
func TestKAndTheFalseAlarmRateActWithoutTraining(t *testing.T) {
	t.Parallel()
	needRuntime(t)
	dir := t.TempDir()
	m := material{backbone: filepath.Join(dir, "models", "model.onnx"), normals: filepath.Join(dir, "normals")}
	drawImages(t, m.normals, 60, 0)
	if err := os.MkdirAll(filepath.Dir(m.backbone), 0o755); err != nil { // where trainers look for names
		t.Fatal(err)
	}
	if _, err := writeRandomBackbone(tinySpec, 1, m.backbone); err != nil {
		t.Fatal(err)
	}
	url := startBroker(t)
	at := "--server=" + url
	l := listen(t, url)
	reg := openRegistry(t, l.js)
	f := &fakery{t: t}
	program(t, 0, "detector", "create", "cells", "--backbone", "model", "--score", "class", "--false-alarm-rate", "0.2", at)
	trainer := start(t, "trainer", "--server", url, "--data", dir, "--threads", "1")
	worker := start(t, "worker", "--server", url, "--data", t.TempDir(), "--threads", "1")
	program(t, 0, "train", "cells", "--normals", m.normals, "--wait", at)
	active := func() string {
		p, err := reg.Active(t.Context(), "cells")
		if err != nil {
			t.Fatal(err)
		}
		return p.Release
	}
	first := active()

	_, note := program(t, 0, "detector", "set", "cells", "--k", "3", "--false-alarm-rate", "0.1", "--region", "0,0,0.5,0.5", at)
	for _, want := range []string{"k 3 and false-alarm rate 0.1 act", "region: the active release stays", "nearmiss train cells"} {
		if !strings.Contains(note, want) {
			t.Errorf("%q is not in the answer:\n%s", want, note)
		}
	}
	eventually.True(t, "another release is active", func() bool { return active() != first })
	was, is := f.manifest(reg, first), f.manifest(reg, active())
	if is.Bank.K != 3 || is.Calibration.Alpha != 0.1 || is.ModelDigest() != was.ModelDigest() || is.Bank.Count != was.Bank.Count {
		t.Errorf("k %d, rate %g, %d entries, model %.12s", is.Bank.K, is.Calibration.Alpha, is.Bank.Count, is.ModelDigest())
	}
	// A frame that comes before the worker has it is scored by the release before.
	eventually.True(t, "the other release is in service", func() bool {
		return regexp.MustCompile(`"release":"` + active()[:12] + `[^\n]*release is in service`).MatchString(worker.stderr())
	})
	program(t, 0, "camera", m.normals, "--detector", "cells", "--camera", "one", at)
	eventually.True(t, "a frame is scored with k = 3", func() bool {
		all := l.scoresOf("cells")
		return len(all) > 0 && all[len(all)-1].Release == active() && all[len(all)-1].K == 3
	})
	worker.stop()
	trainer.stop()
}
