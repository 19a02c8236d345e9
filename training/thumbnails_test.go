package training

import (
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"github.com/nearmiss/nearmiss/inference"
	"github.com/nearmiss/nearmiss/inference/release"
)

func TestReleasesShowTheirNormalsUnlessTheyMayNot(t *testing.T) {
	normals, model, dir := squares(t, 32), smallBackbone(t), t.TempDir()
	first, second, third, bare := filepath.Join(dir, "1"), filepath.Join(dir, "2"), filepath.Join(dir, "3"), filepath.Join(dir, "4")
	plan := Plan{Detector: "squares", Out: first, Seed: 5, Data: Data{Normals: normals[:30]}, Model: Model{Backbone: model}, Calibration: Calibration{Settle: true}, Score: Score{Groups: Class()}}
	res, err := Fit(t.Context(), plan)
	if err != nil {
		t.Fatal(err)
	}
	count := func(dir string) int {
		t.Helper()
		thumbs, err := release.ReadThumbnails(dir)
		if err != nil {
			t.Fatal(err)
		}
		return len(thumbs)
	}
	if n := count(first); n != res.Bank {
		t.Errorf("%d thumbnails of %d normals in the bank", n, res.Bank)
	}
	x := Extension{Derivation: Derivation{Release: first, Out: second}, Normals: normals[30:]}
	if _, err := Extend(t.Context(), x); err != nil {
		t.Fatal(err)
	}
	if n := count(second); n != res.Bank+2 {
		t.Errorf("%d thumbnails after two normals joined %d", n, res.Bank)
	}
	if n := copies(t, second, normals); n != checkImages {
		t.Errorf("%d normals to check the extended release with, want %d", n, checkImages)
	}

	x.Out, x.NoImages = third, true
	if _, err := Extend(t.Context(), x); err != nil {
		t.Fatal(err)
	}
	plan.Out, plan.Data.NoImages = bare, true
	if _, err := Fit(t.Context(), plan); err != nil {
		t.Fatal(err)
	}
	fourth := filepath.Join(dir, "5")
	if _, err := Readjust(t.Context(), Readjustment{Derivation: Derivation{Release: first, Out: fourth, NoImages: true}, K: 3, Alpha: 0.2}); err != nil {
		t.Fatal(err)
	}
	for _, out := range []string{third, bare, fourth} {
		if a, b := count(out), copies(t, out, normals); a != 0 || b != 0 {
			t.Errorf("%s: %d thumbnails and %d normals where none may be kept", out, a, b)
		}
		d, err := inference.Open(t.Context(), out, inference.Options{}) // which compares the scores of the check images
		if err != nil {
			t.Fatal(err)
		}
		if n := len(d.Release().Manifest.Check); n != checkImages {
			t.Errorf("%s: %d check images", out, n)
		}
		if err := d.Close(); err != nil {
			t.Error(err)
		}
	}
}

// copies is how many files of a release are normals, byte for byte.
func copies(t *testing.T, release string, normals []Image) (n int) {
	t.Helper()
	known := map[string]bool{}
	for _, m := range normals {
		b, err := m.Read()
		if err != nil {
			t.Fatal(err)
		}
		known[string(b)] = true
	}
	if err := filepath.WalkDir(release, func(path string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		b, err := os.ReadFile(path)
		if known[string(b)] {
			n++
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
	return n
}
