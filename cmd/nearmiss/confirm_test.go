package main

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/nearmiss/nearmiss/internal/synthetic"
	"github.com/nearmiss/nearmiss/training"
	"github.com/nearmiss/nearmiss/training/evaluate"
)

// TestConfirmedNormalsDoNotBlunt marks every false alarm of a set of good images
// normal: none of them is an anomaly any more. Images that nobody has marked are
// told apart no worse: on one task the AUROC may move a little either way, as
// chance has it, and on the mean of the tasks it does not fall.
func TestConfirmedNormalsDoNotBlunt(t *testing.T) {
	needRuntime(t)
	model := randomModel(t)
	var gain float64
	tasks := 0
	for seed := range uint64(3) {
		for _, task := range demoTasks {
			t.Run(fmt.Sprint(task.kind, seed+1), func(t *testing.T) {
				was, is := confirm(t, task, seed+1, model)
				gain += is - was
				tasks++
			})
		}
	}
	if tasks == 0 {
		t.Fatal("no task was tried")
	}
	t.Logf("the AUROC moved by %+.4f on the mean of %d tasks", gain/float64(tasks), tasks)
	if gain < 0 {
		t.Error("it fell")
	}
}

// confirm learns a task, confirms its false alarms, and returns the AUROC on
// held-out images before and after.
func confirm(t *testing.T, task demoTask, seed uint64, model string) (was, is float64) {
	t.Helper()
	subtle := 0.0
	draw := func(n int, from uint64, rate float64) (files [][]byte) {
		s, err := synthetic.New(task.kind, seed, synthetic.Options{
			Size: 96, DefectRate: rate, SubtleShare: &subtle, Variation: 0.1, Defects: task.defects,
		})
		if err != nil {
			t.Fatal(err)
		}
		for i := range n {
			img, _ := s.At(from + uint64(i))
			b, err := img.PNG()
			if err != nil {
				t.Fatal(err)
			}
			files = append(files, b)
		}
		return files
	}
	normals, dir := t.TempDir(), filepath.Join(t.TempDir(), "release")
	for i, b := range draw(80, 0, 0) {
		if err := os.WriteFile(filepath.Join(normals, fmt.Sprintf("%03d.png", i)), b, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	program(t, 0, "fit", "--normals", normals, "--backbone", model, "--out", dir, "--alpha", "0.2", "--seed", "1")

	watched := draw(60, 1000, 0)
	var alarms [][]byte
	var confirmed []training.Image
	for i, s := range scoresBy(t, dir, watched) {
		if s.Anomalous {
			alarms = append(alarms, watched[i])
			confirmed = append(confirmed, training.Image{Name: fmt.Sprint(i), Read: func() ([]byte, error) { return watched[i], nil }})
		}
	}
	if len(alarms) == 0 {
		t.Fatal("no false alarm to confirm")
	}
	more := filepath.Join(t.TempDir(), "more")
	if _, err := training.Extend(t.Context(), training.Extension{Derivation: training.Derivation{Release: dir, Out: more}, Normals: confirmed}); err != nil {
		t.Fatal(err)
	}
	for i, s := range scoresBy(t, more, alarms) {
		if s.Anomalous {
			t.Errorf("confirmed normal %d: score %v over %v", i, s.Score, s.Threshold)
		}
	}
	good, bad := draw(100, 2000, 0), draw(100, 3000, 1)
	measure := func(dir string) float64 {
		of := func(files [][]byte) (all []float64) {
			for _, s := range scoresBy(t, dir, files) {
				all = append(all, s.Score)
			}
			return all
		}
		return evaluate.AUROC(of(good), of(bad))
	}
	was, is = measure(dir), measure(more)
	t.Logf("%d of 60 good images were false alarms; AUROC on 100 good and 100 bad others %.4f, then %.4f", len(alarms), was, is)
	return was, is
}
