package main

import (
	"bytes"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/alecthomas/kong"
)

var (
	readmeCommand = regexp.MustCompile("bin/nearmiss ([^`\n]*)")
	makeTarget    = regexp.MustCompile(`(?m)^make ([a-z-]+)`)
)

// TestReadmeCommandsAreAccepted parses every command of the README, in a folder
// that has the files it names.
func TestReadmeCommandsAreAccepted(t *testing.T) {
	readme, err := os.ReadFile("../../README.md")
	if err != nil {
		t.Fatal(err)
	}
	makefile, err := os.ReadFile("../../Makefile")
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range makeTarget.FindAllSubmatch(readme, -1) {
		if !bytes.Contains(makefile, []byte("\n"+string(m[1])+":")) {
			t.Errorf("make %s: the Makefile has no such target", m[1])
		}
	}

	dir := t.TempDir()
	for _, sub := range []string{"work/good", "work/new", "work/releases/bolts", "shared/data/wbc", "shared/data/magnetic-tile", "work/cifar10"} {
		if err := os.MkdirAll(filepath.Join(dir, sub), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for _, file := range []string{"work/model.safetensors", "work/model.onnx", "work/vit_ti.onnx", "shared/data/vit_tiny_patch16_224.safetensors"} {
		write(t, filepath.Join(dir, file), "")
	}
	t.Chdir(filepath.Join(dir, "work"))
	commands := readmeCommand.FindAllSubmatch(readme, -1)
	if len(commands) < 15 {
		t.Fatalf("only %d commands found", len(commands))
	}
	for _, m := range commands {
		line, _, _ := strings.Cut(string(m[1]), "#")
		args := strings.Fields(strings.TrimSuffix(strings.TrimSpace(line), "&"))
		parser, err := newParser(new(cli), kong.Exit(func(int) {}))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := parser.Parse(args); err != nil {
			t.Errorf("nearmiss %s: %v", strings.Join(args, " "), err)
		}
	}
}
