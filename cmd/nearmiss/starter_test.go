package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/nearmiss/nearmiss/inference/backbone"
	"github.com/nearmiss/nearmiss/inference/backbone/starter"
	"github.com/nearmiss/nearmiss/inference/release"
	"github.com/nearmiss/nearmiss/internal/synthetic"
	"github.com/nearmiss/nearmiss/training/evaluate"
	"github.com/nearmiss/nearmiss/training/pretrain"
)

// The demo's two tasks, learnt and scored offline with the starter backbone.
// Neither the things nor some of the kinds of defect were in its training. How
// many defects are found is logged; here it need only do better than chance.
func TestStarterFindsDefectsOfTheDemo(t *testing.T) {
	needRuntime(t)
	model, err := starter.File(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	for _, task := range demoTasks {
		t.Run(task.detector, func(t *testing.T) {
			if a := demoAUROC(t, task, model); !(a > 0.7) {
				t.Errorf("AUROC %.3f", a)
			}
		})
	}
}

// demoAUROC learns the task as the demo does and logs how many defects are found.
func demoAUROC(t *testing.T, task demoTask, model string) float64 {
	t.Helper()
	draw := func(n int, rate float64, from uint64) (files [][]byte, truths []synthetic.Truth) {
		subtle := demoSubtle
		s, err := synthetic.New(task.kind, 1, synthetic.Options{
			Size: demoSize, Variation: 0.1, Defects: task.defects, DefectRate: rate, SubtleShare: &subtle,
		})
		if err != nil {
			t.Fatal(err)
		}
		for i := range n {
			img, truth := s.At(from + uint64(i))
			b, err := img.PNG()
			if err != nil {
				t.Fatal(err)
			}
			files, truths = append(files, b), append(truths, truth)
		}
		return files, truths
	}
	normals, dir := t.TempDir(), filepath.Join(t.TempDir(), "release")
	files, _ := draw(demoLearn, 0, 0)
	for i, b := range files {
		if err := os.WriteFile(filepath.Join(normals, fmt.Sprintf("%03d.png", i)), b, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	program(t, 0, "fit", "--normals", normals, "--backbone", model, "--out", dir, "--alpha", fmt.Sprint(demoAlpha), "--seed", "1", "--no-advice")
	files, truths := draw(300, 0.5, 10_000)
	var good, bad []float64
	var found, alarms int
	for i, s := range scoresBy(t, dir, files) {
		switch {
		case truths[i].Anomalous:
			bad = append(bad, s.Score)
			if s.Anomalous {
				found++
			}
		default:
			good = append(good, s.Score)
			if s.Anomalous {
				alarms++
			}
		}
	}
	a := evaluate.AUROC(good, bad)
	t.Logf("AUROC %.3f, %d of %d defects found, %d false alarms in %d", a, found, len(bad), alarms, len(good))
	return a
}

func TestReleaseSaysThatItsBackboneIsTheStarter(t *testing.T) {
	needRuntime(t)
	dir := t.TempDir()
	normals, model, out := filepath.Join(dir, "normals"), filepath.Join(dir, "starter.onnx"), filepath.Join(dir, "release")
	drawImages(t, normals, 20, 0)
	program(t, 0, "backbone", "starter", "--out", model)
	if text, _ := program(t, 0, "backbone", "inspect", model); !strings.Contains(text, "drawn pictures only") {
		t.Errorf("inspect says %s", text)
	}
	_, errs := program(t, 0, "fit", "--normals", normals, "--backbone", model, "--out", out, "--seed", "1")
	if !strings.Contains(errs, "backbone pull") {
		t.Errorf("fit does not say what to use for real work: %s", errs)
	}
	r, err := release.Open(out)
	if err != nil {
		t.Fatal(err)
	}
	if !r.Manifest.Model.StarterWeights || r.Manifest.Model.RandomWeights {
		t.Errorf("manifest: %+v", r.Manifest.Model)
	}
	same := filepath.Join(dir, "same")
	files, err := os.ReadDir(normals)
	if err := errors.Join(err, os.Mkdir(same, 0o755)); err != nil {
		t.Fatal(err)
	}
	picture, err := os.ReadFile(filepath.Join(normals, files[0].Name()))
	if err != nil {
		t.Fatal(err)
	}
	for i := range 5 {
		write(t, filepath.Join(same, fmt.Sprint(i, ".png")), string(picture))
	}
	_, errs = program(t, exitFailed, "fit", "--normals", same, "--backbone", model, "--out", out+"2")
	if !strings.Contains(errs, "4 of the 5 images are copies of others") {
		t.Errorf("of one picture five times: %s", errs)
	}
}

func TestTrainStarterIsInterruptedAndGoesOn(t *testing.T) {
	needRuntime(t)
	dir := t.TempDir()
	args := func(name string) []string {
		return []string{"backbone", "train-starter", "--out", filepath.Join(dir, name), "--steps", "4", "--designs", "12", "--threads", "1", "--json"}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	var out, errs bytes.Buffer
	if code := run(ctx, args("cut.safetensors"), &out, &errs); code != exitInterrupted {
		t.Fatalf("exit code %d: %s", code, errs.String())
	}
	text, _ := program(t, 0, args("cut.safetensors")...)
	var last struct {
		Path string `json:"path"`
		backbone.Info
	}
	lines := strings.Split(strings.TrimSpace(text), "\n")
	if err := json.Unmarshal([]byte(lines[len(lines)-1]), &last); err != nil || last.Format != backbone.FormatStarter || last.Path == "" {
		t.Errorf("%v: %s", err, text)
	}
	b, err := os.ReadFile(last.Path)
	if err != nil {
		t.Fatal(err)
	}
	w, err := backbone.ReadWeights(b)
	if err != nil {
		t.Fatal(err)
	}
	var how pretrain.Config
	if err := json.Unmarshal([]byte(w.Metadata["nearmiss.training"]), &how); err != nil || how.Steps != 4 || how.Seed != 1 {
		t.Errorf("the file says of its training: %s", w.Metadata["nearmiss.training"])
	}
	if _, err := os.Stat(last.Path + ".work"); !os.IsNotExist(err) {
		t.Errorf("the work folder is still there: %v", err)
	}
	if _, errs := program(t, 2, "backbone", "train-starter", "--out", "model.pth"); !strings.Contains(errs, ".safetensors") {
		t.Errorf("another kind of file: %s", errs)
	}
}
