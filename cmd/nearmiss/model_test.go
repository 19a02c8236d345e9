package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestDetectorsNameModelsAndNoFiles: who may change a detector cannot have the
// trainer read any file of its disk.
func TestDetectorsNameModelsAndNoFiles(t *testing.T) {
	dir := t.TempDir()
	c := defaultConfig()
	c.Data = filepath.Join(dir, "data")
	for _, f := range []string{"data/models/vit_b.onnx", "data/models/plain", "own/tuned.onnx", "secret.onnx", "data/secret.onnx"} {
		file := filepath.Join(dir, f)
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte("model"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	c.Trainer.Backbone = filepath.Join(dir, "own", "tuned.onnx")
	for name, want := range map[string]string{
		"vit_b": "data/models/vit_b.onnx", "vit_b.onnx": "data/models/vit_b.onnx", "plain": "data/models/plain",
		"tuned": "own/tuned.onnx", "tuned.onnx": "own/tuned.onnx",
	} {
		if got, err := c.model(name); err != nil || got != filepath.Join(dir, want) {
			t.Errorf("model %s is %s, %v", name, got, err)
		}
	}
	for _, name := range []string{
		filepath.Join(dir, "secret.onnx"), "../secret.onnx", "../secret", "..", ".", "own/tuned.onnx", `..\secret`, "/etc/passwd", "secret.onnx", "secret", "",
	} {
		if got, err := c.model(name); err == nil {
			t.Errorf("model %q is %s", name, got)
		} else if strings.Contains(err.Error(), "no such file") {
			t.Errorf("model %q: %v, which says what is on the disk", name, err)
		}
	}
	c.Trainer.Models = filepath.Join(dir, "own")
	if got, err := c.model("tuned"); err != nil || got != c.Trainer.Backbone {
		t.Errorf("in a folder of its own: %s, %v", got, err)
	}
}
