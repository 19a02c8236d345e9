package main

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/nearmiss/nearmiss/inference/imaging"
	"github.com/nearmiss/nearmiss/training/dataset"
)

// greyFolder holds n small pictures.
func greyFolder(t *testing.T, n int) string {
	t.Helper()
	dir := t.TempDir()
	for i := range n {
		im := imaging.New(20, 24)
		for j := range im.Pix {
			im.Pix[j] = uint8(40*i + j%7)
		}
		raw, err := im.PNG()
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, string(rune('a'+i))+".png"), raw, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func TestFakesWritesAFolder(t *testing.T) {
	out, set := filepath.Join(t.TempDir(), "fakes"), filepath.Join(t.TempDir(), "set")
	var stdout, stderr bytes.Buffer
	code := run(t.Context(), []string{
		"fakes", "--normals", greyFolder(t, 5), "--out", out, "-n", "3", "--stop", "steps=2", "--preset", "nano", "--grey", "--train-batch", "2",
		"--sampler-steps", "2", "--edit", "0.4", "--edit-from", "0.2", "--detail", "residual", "--seed", "7", "--threads", "1", "--json",
		"--dataset", set,
	}, &stdout, &stderr)
	if code != 0 {
		t.Fatalf("exit code %d: %s", code, stderr.String())
	}
	if d, err := dataset.MVTec(set); err != nil || len(d.Select(dataset.Train, "")) != 4 || len(d.Select(dataset.Test, dataset.Fake)) != 3 {
		t.Errorf("data set %+v: %v", d, err)
	}
	kinds := map[string]int{}
	for line := range strings.Lines(stdout.String()) {
		var v struct{ Kind string }
		if err := json.Unmarshal([]byte(line), &v); err != nil {
			t.Fatalf("line %q: %v", line, err)
		}
		kinds[v.Kind]++
	}
	if kinds["step"] == 0 || kinds["probe"] == 0 || kinds["outcome"] != 1 {
		t.Errorf("lines by kind: %v", kinds)
	}
	var m struct {
		Options struct{ Seed uint64 }
		Fakes   []struct{ File, From string }
	}
	raw, err := os.ReadFile(filepath.Join(out, "manifest.json"))
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(raw, &m); err != nil || m.Options.Seed != 7 || len(m.Fakes) != 3 {
		t.Fatalf("manifest: %v, %+v", err, m)
	}
	for _, f := range m.Fakes {
		raw, err := os.ReadFile(filepath.Join(out, f.File))
		if err != nil {
			t.Fatal(err)
		}
		im, err := imaging.Decode(raw, imaging.DefaultLimits())
		if err != nil || im.Width != 20 || im.Height != 24 {
			t.Errorf("%s: %v, %+v; want the size of the normals", f.File, err, im)
		}
		if !strings.HasSuffix(f.From, ".png") {
			t.Errorf("%s was made from %q", f.File, f.From)
		}
	}
}

func TestFakesRefuses(t *testing.T) {
	dir := greyFolder(t, 4)
	for name, c := range map[string]struct {
		args []string
		code int
		want string
	}{
		"a target that needs a backbone": {[]string{"--stop", "r=0.2"}, exitUsage, "need a feature extractor"},
		"a target that is none":          {[]string{"--stop", "soon"}, exitUsage, "stopping target"},
		"an unknown network":             {[]string{"--preset", "huge", "--stop", "steps=1"}, exitUsage, "take one of"},
		"a size that does not halve":     {[]string{"--size", "30", "--stop", "steps=1"}, exitUsage, "multiple of"},
		"detail without a start":         {[]string{"--detail", "residual", "--stop", "steps=1"}, exitUsage, "set edit"},
	} {
		var stdout, stderr bytes.Buffer
		args := append([]string{"fakes", "--normals", dir, "--out", filepath.Join(t.TempDir(), "x")}, c.args...)
		if code := run(t.Context(), args, &stdout, &stderr); code != c.code || !strings.Contains(stderr.String(), c.want) {
			t.Errorf("%s: exit code %d, %s", name, code, stderr.String())
		}
	}
}
