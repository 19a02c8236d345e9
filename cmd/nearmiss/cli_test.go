package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/nearmiss/nearmiss/internal/evaldata"
	"github.com/nearmiss/nearmiss/training/evaluate"
	"github.com/nearmiss/nearmiss/training/evaluate/predictions"
)

func TestWrongUsageIsOneClearLineAndExitCode2(t *testing.T) {
	file := filepath.Join(t.TempDir(), "a.png")
	write(t, file, "x")
	config := filepath.Join(t.TempDir(), "c.yaml")
	write(t, config, "worker: {bach: 3}\n")
	for name, c := range map[string]struct {
		args []string
		says string
	}{
		"unknown command":         {[]string{"nonsense"}, "nonsense"},
		"unknown flag":            {[]string{"version", "--nope"}, "--nope"},
		"missing argument":        {[]string{"score", "--release", t.TempDir()}, "image"},
		"missing file":            {[]string{"backbone", "inspect", "/does/not/exist"}, "/does/not/exist"},
		"bad detector name":       {[]string{"releases", "a.b"}, "a.b"},
		"publish without folder":  {[]string{"releases", "bolts", "publish"}, "release folder"},
		"copy to nowhere":         {[]string{"releases", "bolts", "copy"}, "--to"},
		"promote without release": {[]string{"releases", "bolts", "promote"}, "digest"},
		"bad source of a camera":  {[]string{"camera", "synthetic:trees", "--detector", "d", "--camera", "c"}, "trees"},
		"no source of a camera":   {[]string{"camera", "/does/not/exist", "--detector", "d", "--camera", "c"}, "/does/not/exist is no file, folder"},
		"no such backbone":        {[]string{"fit", "--normals", file, "--out", file + "r", "--backbone", "zzzzzzz"}, "(nearmiss backbone list"},
		"bad size":                {[]string{"bench", "bank", "--size", "many"}, "many"},
		"bad configuration":       {[]string{"worker", "--config", config}, "bach"},
		"bad device":              {[]string{"score", "--release", t.TempDir(), "--device", "abacus", file}, "abacus"},
		"bad report":              {[]string{"eval", "--data", t.TempDir(), "--backbone", file, "--protocol", "mvtec", "--out", "r.pdf"}, ".html"},
	} {
		t.Run(name, func(t *testing.T) {
			_, errs := program(t, exitUsage, c.args...)
			if !strings.Contains(errs, c.says) || strings.Count(errs, "\n") != 1 {
				t.Errorf("it says: %s", errs)
			}
		})
	}
}

// TestWhatIsNotThereIsNamed, and what it was looked for as.
func TestWhatIsNotThereIsNamed(t *testing.T) {
	dir := t.TempDir()
	picture := filepath.Join(dir, "a.png")
	write(t, picture, "x")
	lost := filepath.Join(dir, "lost")
	for _, c := range []struct {
		args []string
		says string
	}{
		{[]string{"fit", "--normals", lost, "--backbone", picture, "--out", filepath.Join(dir, "r")}, "there is no file or folder " + lost},
		{[]string{"score", "--release", dir, picture}, "is no release, which nearmiss fit makes"},
	} {
		if _, errs := program(t, exitFailed, c.args...); !strings.Contains(errs, c.says) || strings.Count(errs, "\n") != 1 {
			t.Errorf("%s says: %s", c.args[0], errs)
		}
	}
}

// TestWhatCannotBeWrittenIsRefusedFirst: before anything is read, drawn or learnt.
func TestWhatCannotBeWrittenIsRefusedFirst(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	write(t, file, "kept")
	lost := filepath.Join(dir, "lost", "out.onnx") // in a folder that is not there
	junk := filepath.Join(dir, "junk.onnx")        // that nothing comes to read
	write(t, junk, "no model")
	for _, args := range [][]string{
		{"backbone", "import", junk, "--out", lost},
		{"backbone", "import", junk, "--out", dir},
		{"backbone", "random", "--out", lost},
		{"backbone", "starter", "--out", lost},
		{"backbone", "train-starter", "--out", lost},
		{"backbone", "train-starter", "--out", filepath.Join(dir, "a.onnx"), "--work", file},
		{"backbone", "pull", "https://192.0.2.1/w.safetensors", "--out", lost},
		{"fakes", "--normals", dir, "--out", file, "--stop", "steps=1"},
		{"fakes", "--normals", dir, "--out", filepath.Join(dir, "f"), "--dataset", filepath.Join(file, "set"), "--stop", "steps=1"},
		{"score", "--release", dir, junk, "--heatmap", file},
		{"score", "--release", dir, junk, "--out", filepath.Join(lost, "x.csv")},
		{"eval", "--data", dir, "--protocol", "mvtec", "--backbone", junk, "--out", filepath.Join(lost, "x.html")},
	} {
		if _, errs := program(t, exitUsage, args...); !strings.Contains(errs, "nothing can be written there") && !strings.Contains(errs, "name a f") {
			t.Errorf("%v: %s", args, errs)
		}
	}
	if all, err := os.ReadDir(dir); err != nil || len(all) != 2 {
		t.Errorf("%v, %v", all, err)
	}
	if b, err := os.ReadFile(file); string(b) != "kept" {
		t.Error(err)
	}
}

func TestEveryCommandExplainsItself(t *testing.T) {
	for _, command := range []string{
		"up", "fit", "score", "eval", "broker", "worker", "trainer", "camera", "watch", "evidence list", "evidence get", "releases", "bench embed", "bench score", "bench bank",
		"bench stream", "bench curves", "backbone pull", "backbone import", "backbone random", "backbone starter", "backbone train-starter", "backbone inspect", "runtime install", "runtime info", "version",
	} {
		help, _ := program(t, 0, append(strings.Fields(command), "--help")...)
		if !strings.Contains(help, "Usage: nearmiss "+command) {
			t.Errorf("%s --help: %s", command, help)
		}
	}
}

func TestInterruptedCommandSaysSo(t *testing.T) {
	m := newMaterial(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	var out, errs bytes.Buffer
	code := run(ctx, []string{"fit", "--normals", m.normals, "--backbone", m.backbone, "--out", filepath.Join(t.TempDir(), "r")}, &out, &errs)
	if code != exitInterrupted || errs.String() != "nearmiss: interrupted\n" {
		t.Errorf("exit code %d: %s", code, errs.String())
	}
}

func TestScoreNamesTheNearestNormalsAndWhatItCannotRead(t *testing.T) {
	needRuntime(t)
	dir := t.TempDir()
	normals := filepath.Join(dir, "normals")
	drawImages(t, normals, 30, 0)
	release := filepath.Join(dir, "release")
	text, _ := program(t, 0, "fit", "--normals", normals, "--backbone", randomModel(t), "--out", release, "--seed", "4", "--json")
	var fitted struct {
		Bank          int     `json:"bank"`
		HeldOut       int     `json:"held_out"`
		Alpha         float64 `json:"promised_rate"`
		SmallestAlpha float64 `json:"smallest_rate"`
		Warnings      []string
	}
	if err := json.Unmarshal([]byte(text), &fitted); err != nil {
		t.Fatal(err)
	}
	if fitted.Bank != 24 || fitted.HeldOut != 30 || fitted.Alpha != 1.0/31 || fitted.SmallestAlpha != 1.0/31 || len(fitted.Warnings) == 0 {
		t.Errorf("fit says %s", text)
	}
	if _, errs := program(t, 1, "fit", "--normals", normals, "--backbone", randomModel(t), "--out", release); !strings.Contains(errs, "exists") {
		t.Errorf("fit over a release: %s", errs)
	}

	broken := filepath.Join(dir, "broken.png")
	write(t, broken, "no image")
	var out, errs bytes.Buffer
	code := run(t.Context(), []string{"score", "--release", release, "--json", normals, broken}, &out, &errs)
	lines := readLines[scoreLine](t, out.String())
	if code != 1 || len(lines) != 31 || !strings.Contains(errs.String(), "1 of 31") {
		t.Fatalf("exit code %d, %d lines: %s", code, len(lines), errs.String())
	}
	named := 0
	for _, l := range lines[:30] {
		if l.Score == nil || len(l.Nearest) != 2 || l.Release == "" {
			t.Fatalf("%+v", l)
		}
		if l.Nearest[0].Name == l.Image {
			named++ // an image of the bank is nearest to itself
		}
	}
	if named != 24 {
		t.Errorf("%d images are their own nearest, want the bank's 24", named)
	}
	if last := lines[30]; last.Rejected != "unsupported" || last.Score != nil || last.Reason == "" {
		t.Errorf("the broken image: %+v", last)
	}
}

func TestEvalOnBothProtocols(t *testing.T) {
	needRuntime(t)
	model := randomModel(t)
	dir := t.TempDir()
	for class, defects := range map[string]float64{"clean": 0, "faulty": 1} {
		drawImages(t, filepath.Join(dir, "classes/train", class), 12, defects)
		drawImages(t, filepath.Join(dir, "classes/test", class), 6, defects)
	}
	drawImages(t, filepath.Join(dir, "mvtec/train/good"), 12, 0)
	drawImages(t, filepath.Join(dir, "mvtec/test/good"), 6, 0)
	drawImages(t, filepath.Join(dir, "mvtec/test/dent"), 6, 1)
	report := filepath.Join(dir, "report.html")
	for _, c := range []struct{ protocol, data, parts string }{
		{"one-vs-rest", "classes", "per_class"}, {"mvtec", "mvtec", "per_defect"},
	} {
		text, _ := program(t, 0, "eval", "--data", filepath.Join(dir, c.data), "--protocol", c.protocol, "--backbone", model, "--out", report, "--json")
		var r map[string]any
		if err := json.Unmarshal([]byte(text), &r); err != nil {
			t.Fatal(err)
		}
		auroc, ok := r["auroc"].(float64)
		if r["protocol"] != c.protocol || r["method"] != "knn full" || !ok || auroc < 0 || auroc > 1 || r[c.parts] == nil || r["seconds"] == nil {
			t.Errorf("%s: %s", c.protocol, text)
		}
		if page, err := os.ReadFile(report); err != nil || !bytes.Contains(page, []byte("<html")) {
			t.Errorf("%s: no report: %v", c.protocol, err)
		}
	}
}

func TestEvalVariesOptions(t *testing.T) {
	needRuntime(t)
	model := randomModel(t)
	dir := t.TempDir()
	for class, defects := range map[string]float64{"clean": 0, "faulty": 1, "mixed": 0.5} {
		drawImages(t, filepath.Join(dir, "train", class), 9, defects)
		drawImages(t, filepath.Join(dir, "test", class), 4, defects)
	}
	methods := func(args ...string) (out []string) {
		text, _ := program(t, 0, append([]string{"eval", "--data", dir, "--backbone", model, "--json", "--seed", "1"}, args...)...)
		for _, r := range readLines[evaluate.Result](t, text) {
			out = append(out, r.Method)
		}
		return out
	}
	if got, want := methods("--protocol", "near", "--vary", "k=1,3"), []string{"knn full k=1", "knn full k=3"}; !slices.Equal(got, want) {
		t.Errorf("methods %q, want %q", got, want)
	}
	got := methods("--protocol", "one-vs-rest", "--normal", "clean", "--method", "fitymi", "--members", "1", "--epochs", "1", "--least-steps", "0",
		"--work", t.TempDir(), "--vary", "fakes=warp", "--vary", "fakes=none", "--vary", "score=class")
	if want := []string{"fitymi fakes=warp score=class", "fitymi fakes=none score=class"}; !slices.Equal(got, want) {
		t.Errorf("methods %q, want %q", got, want)
	}
	for _, bad := range []string{"k=two", "colour=red", "k", "k="} {
		program(t, 2, "eval", "--data", dir, "--backbone", model, "--protocol", "one-vs-rest", "--vary", bad)
	}
}

func TestEvalMeasuresASuite(t *testing.T) {
	needRuntime(t)
	model, dir := randomModel(t), t.TempDir()
	for class, defects := range map[string]float64{"clean": 0, "faulty": 1} {
		drawImages(t, filepath.Join(dir, "classes/train", class), 12, defects)
		drawImages(t, filepath.Join(dir, "classes/test", class), 6, defects)
	}
	drawImages(t, filepath.Join(dir, "plates/train/good"), 12, 0)
	drawImages(t, filepath.Join(dir, "plates/test/good"), 6, 0)
	drawImages(t, filepath.Join(dir, "plates/test/dent"), 6, 1)
	file, table := filepath.Join(dir, "suite.yaml"), filepath.Join(dir, "table.md")
	write(t, file, "sets:\n- {data: classes, protocol: near}\n- {data: plates, protocol: mvtec, repeats: 2}\n")
	text, _ := program(t, 0, "eval", "--suite", file, "--backbone", model, "--vary", "score=class", "--vary", "score=full", "--light", "--json", "--out", table)
	rows := readLines[evaluate.SuiteRow](t, text)
	if len(rows) != 8 || rows[0].Set != "classes" || rows[0].Nearest == nil || rows[3].Set != "plates" || rows[3].Method != "knn full score=full" {
		t.Fatalf("%s", text)
	}
	for _, r := range rows[:4] {
		if r.Cost == nil || r.Cost.Milliseconds <= 0 || r.Light == nil || !(r.AUROC > 0.5) || !(r.Partial >= 0 && r.Partial <= 1) {
			t.Errorf("%+v", r)
		}
	}
	if full, class := rows[3].Cost, rows[2].Cost; full.Parts <= class.Parts || full.Banks <= class.Banks {
		t.Errorf("full costs %+v, class %+v", full, class)
	}
	if rows[6].Set != evaluate.SuiteMean || rows[7].Set != evaluate.SuiteWorst || rows[7].AUROC > rows[6].AUROC {
		t.Errorf("%+v", rows[4:])
	}
	if b, err := os.ReadFile(table); err != nil || strings.Count(string(b), "\n") != 10 {
		t.Errorf("%s, %v", b, err)
	}
	program(t, exitUsage, "eval", "--suite", file, "--data", dir, "--backbone", model)
	program(t, exitUsage, "eval", "--backbone", model, "--protocol", "near")
	program(t, exitUsage, "eval", "--data", dir, "--backbone", model)
}

func TestEvalReproducesTheKnownFigures(t *testing.T) {
	wbc := filepath.Join(evaldata.Dir(t), "data", "wbc")
	m := newMaterial(t)
	text, _ := program(t, 0, "eval", "--data", wbc, "--protocol", "one-vs-rest", "--backbone", m.backbone, "--score", "class", "--json")
	var r evaluate.Result
	if err := json.Unmarshal([]byte(text), &r); err != nil {
		t.Fatal(err)
	}
	if math.Abs(r.AUROC-0.945) > 0.003 {
		t.Errorf("mean AUROC %.4f, want 0.945", r.AUROC)
	}
	for class, want := range map[string]float64{"neutrophil": 0.920, "lymphocyte": 0.946, "monocyte": 0.954, "eosinophil": 0.960} {
		if got := r.PerClass[class]; math.Abs(got-want) > 0.003 {
			t.Errorf("%s: AUROC %.4f, want %.3f", class, got, want)
		}
	}
}

func TestABackboneMaySeeTheWholeImage(t *testing.T) {
	whole := filepath.Join(t.TempDir(), "whole.onnx")
	program(t, 0, "backbone", "import", randomModel(t), "--squash", "--out", whole)
	text, _ := program(t, 0, "backbone", "inspect", whole, "--json")
	var got struct{ Preprocess struct{ Squash bool } }
	if err := json.Unmarshal([]byte(text), &got); err != nil || !got.Preprocess.Squash {
		t.Errorf("%s, %v", text, err)
	}
	_, errs := program(t, exitUsage, "backbone", "import", whole, "--squash", "--resize", "300", "--out", whole+"2")
	if !strings.Contains(errs, "--squash") {
		t.Error(errs)
	}
}

func TestCamerasReadWhatTheirSourceNames(t *testing.T) {
	dir := t.TempDir()
	clip := filepath.Join(dir, "clip.mp4")
	write(t, clip, "")
	for source, want := range map[string]string{
		dir: "*camera.Folder", clip: "*camera.Video", "/dev/null": "*camera.Video", "-": "*camera.Pipe", "synthetic:cells": "*camera.Generated",
		"http://eye/snapshot.jpg": "*camera.Web", "https://eye/stream": "*camera.Web", "rtsp://eye/1": "*camera.Video",
	} {
		src, err := (&cameraCmd{Source: source}).source(&output{})
		if got := fmt.Sprintf("%T", src); err != nil || got != want {
			t.Errorf("%s: %s, %v", source, got, err)
		}
	}
	for _, source := range []string{filepath.Join(dir, "none"), filepath.Join(dir, "none.mp4"), "synthetic:cars"} {
		if _, err := (&cameraCmd{Source: source}).source(&output{}); !errors.As(err, new(usageError)) {
			t.Errorf("%s: %v", source, err)
		}
	}
}

// TestTablesForNotebooks: the AUROC that eval prints is the one of its table, and
// a table of score says what its lines say.
func TestTablesForNotebooks(t *testing.T) {
	needRuntime(t)
	dir := t.TempDir()
	set := filepath.Join(dir, "set")
	drawImages(t, filepath.Join(set, "train", "good"), 30, 0)
	drawImages(t, filepath.Join(set, "test", "good"), 12, 0)
	drawImages(t, filepath.Join(set, "test", "spot"), 12, 1)
	table := filepath.Join(dir, "eval.jsonl")
	text, _ := program(t, 0, "eval", "--data", set, "--protocol", "mvtec", "--backbone", randomModel(t), "--predictions", table, "--json")
	var r evaluate.Result
	if err := json.Unmarshal([]byte(text), &r); err != nil {
		t.Fatal(err)
	}
	rows := tableRows(t, table)
	var normal, anomalous []float64
	for _, row := range rows {
		if *row.Truth {
			anomalous = append(anomalous, *row.Score)
		} else {
			normal = append(normal, *row.Score)
		}
		if len(row.Parts) == 0 || row.P == nil || *row.P <= 0 || *row.P > 1 || row.Path == "" || *row.Truth != (row.Label == "spot") {
			t.Errorf("%+v", row)
		}
	}
	if len(normal) != 12 || len(anomalous) != 12 || evaluate.AUROC(normal, anomalous) != r.AUROC {
		t.Errorf("%d + %d rows with AUROC %g, printed %g", len(normal), len(anomalous), evaluate.AUROC(normal, anomalous), r.AUROC)
	}
	if c := r.Parts[0].Confusion; c == nil || *c != evaluate.BestF1(normal, anomalous) {
		t.Errorf("confusion %+v", c)
	}

	release, scored := filepath.Join(dir, "release"), filepath.Join(dir, "scores.jsonl")
	program(t, 0, "fit", "--normals", set, "--backbone", randomModel(t), "--out", release, "--seed", "4") // the category root
	text, _ = program(t, 0, "score", "--release", release, filepath.Join(set, "test"), "--out", scored, "--json")
	lines := readLines[scoreLine](t, text)
	rows = tableRows(t, scored)
	if len(lines) != 24 || len(rows) != 24 {
		t.Fatalf("%d lines, %d rows", len(lines), len(rows))
	}
	for i, l := range lines {
		row := rows[i]
		if row.Path != l.Image || *row.Score != *l.Score || *row.P != *l.PValue || *row.Anomalous != *l.Anomalous || len(row.Parts) == 0 || len(row.Parts) != len(l.Parts) || row.Truth != nil {
			t.Errorf("line %+v, row %+v", l, row)
		}
	}
	for _, args := range [][]string{
		{"score", "--release", release, set, "--out", "t.xlsx"},
		{"score", "--release", release, set, "--out", filepath.Join(dir, "no", "such", "t.csv")},
		{"eval", "--data", set, "--protocol", "mvtec", "--backbone", randomModel(t), "--predictions", dir + ".csv/x.csv"},
		{"eval", "--data", set, "--protocol", "alarms", "--backbone", randomModel(t), "--predictions", filepath.Join(dir, "t.csv")},
	} {
		program(t, exitUsage, args...)
	}
}

func tableRows(t *testing.T, file string) []predictions.Row {
	t.Helper()
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return readLines[predictions.Row](t, string(b))
}
