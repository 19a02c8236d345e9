package training

import (
	"bytes"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"github.com/nearmiss/nearmiss/inference"
	"github.com/nearmiss/nearmiss/inference/imaging"
)

func TestThumbnailsShowTheNormalsInTheBank(t *testing.T) {
	m := imaging.New(300, 100)
	for i := range m.Pix {
		m.Pix[i] = 200
	}
	file, err := m.PNG()
	if err != nil {
		t.Fatal(err)
	}
	all := []Normal{{ID: 3, Use: UsedInBank}, {ID: 4, Use: UsedToHold}, {ID: 900, Use: UsedInBank}, {ID: 5, Use: NotUsedReject}}
	view := &imaging.View{Region: &imaging.Rect{X: 0, Y: 0, Width: 0.5, Height: 1}, Ignore: []imaging.Rect{{X: 0, Y: 0, Width: 0.1, Height: 1}}}
	made := Thumbnails{}
	if err := made.add(t.Context(), all, func(int) ([]byte, error) { return file, nil }, view, imaging.Limits{}); err != nil {
		t.Fatal(err)
	}
	b, err := made.archive()
	if err != nil {
		t.Fatal(err)
	}
	again, err := made.archive()
	if err != nil || !bytes.Equal(b, again) {
		t.Errorf("the same thumbnails give other bytes: %v", err)
	}
	dir := t.TempDir()
	if none, err := ReadThumbnails(dir); none != nil || err != nil {
		t.Errorf("%v, %v", none, err)
	}
	if err := os.WriteFile(filepath.Join(dir, ThumbnailsName), b, 0o644); err != nil {
		t.Fatal(err)
	}
	back, err := ReadThumbnails(dir)
	if err != nil || len(back) != 2 {
		t.Fatalf("%d thumbnails, %v", len(back), err)
	}
	img, err := imaging.Decode(back[900], imaging.Limits{})
	if err != nil || img.Width != 96 || img.Height != 64 {
		t.Fatalf("%+v, %v", img, err)
	}
	if hidden, _, _ := img.RGB(5, 30); hidden < 120 || hidden > 136 {
		t.Errorf("an ignored part is %d, not grey", hidden)
	}
	if shown, _, _ := img.RGB(80, 30); shown < 190 {
		t.Errorf("the normal is %d", shown)
	}
}

func TestThumbnailsAreBounded(t *testing.T) {
	many := Thumbnails{}
	for i := range uint64(60) {
		many[i] = make([]byte, 1<<20)
	}
	b, err := many.archive()
	if err != nil || len(b) > maxThumbnails+1<<16 {
		t.Fatalf("%d bytes, %v", len(b), err)
	}
	back, err := parseThumbnails(b)
	if err != nil || len(back) < 30 || back[0] == nil {
		t.Errorf("%d thumbnails, %v", len(back), err)
	}
}

func FuzzParseThumbnails(f *testing.F) {
	b, err := Thumbnails{7: []byte("x")}.archive()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Fuzz(func(_ *testing.T, b []byte) { _, _ = parseThumbnails(b) })
}

func TestReleasesShowTheirNormalsUnlessTheyMayNot(t *testing.T) {
	normals, model, dir := squares(t, 32), smallBackbone(t), t.TempDir()
	first, second, third, bare := filepath.Join(dir, "1"), filepath.Join(dir, "2"), filepath.Join(dir, "3"), filepath.Join(dir, "4")
	plan := Plan{Detector: "squares", Normals: normals[:30], Backbone: model, Out: first, Seed: 5, Settle: true}
	res, err := Fit(t.Context(), plan)
	if err != nil {
		t.Fatal(err)
	}
	count := func(release string) int {
		t.Helper()
		thumbs, err := ReadThumbnails(release)
		if err != nil {
			t.Fatal(err)
		}
		return len(thumbs)
	}
	if n := count(first); n != res.Bank {
		t.Errorf("%d thumbnails of %d normals in the bank", n, res.Bank)
	}
	x := Extension{Release: first, Normals: normals[30:], Out: second}
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
	plan.Out, plan.NoImages = bare, true
	if _, err := Fit(t.Context(), plan); err != nil {
		t.Fatal(err)
	}
	fourth := filepath.Join(dir, "5")
	if _, err := Readjust(t.Context(), Readjustment{Release: first, Out: fourth, K: 3, Alpha: 0.2, NoImages: true}); err != nil {
		t.Fatal(err)
	}
	for _, release := range []string{third, bare, fourth} {
		if a, b := count(release), copies(t, release, normals); a != 0 || b != 0 {
			t.Errorf("%s: %d thumbnails and %d normals where none may be kept", release, a, b)
		}
		d, err := inference.Open(t.Context(), release, inference.Options{}) // which compares the scores of the check images
		if err != nil {
			t.Fatal(err)
		}
		if n := len(d.Release().Manifest.Check); n != checkImages {
			t.Errorf("%s: %d check images", release, n)
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
