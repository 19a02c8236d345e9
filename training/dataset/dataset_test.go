package dataset

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/nearmiss/nearmiss/inference/imaging"
)

// tree writes files; images get distinct pixels.
func tree(t *testing.T, names ...string) string {
	t.Helper()
	dir := t.TempDir()
	for i, name := range names {
		p := filepath.Join(dir, filepath.FromSlash(name))
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			t.Fatal(err)
		}
		b := []byte("text")
		if strings.HasSuffix(name, ".png") {
			m := imaging.New(4, 3)
			m.SetRGB(0, 0, uint8(i), uint8(i>>8), 200)
			var err error
			if b, err = m.PNG(); err != nil {
				t.Fatal(err)
			}
		}
		if err := os.WriteFile(p, b, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func names(items []Item) []string {
	var out []string
	for _, it := range items {
		out = append(out, it.Name)
	}
	return out
}

func TestFolderIsListedRecursivelyAndSorted(t *testing.T) {
	dir := tree(t, "b.png", "a/2.png", "a/deep/1.png", "notes.txt", "raw.dng", ".hidden.png", ".git/x.png", "a/Thumbs.db")
	s, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff([]string{"a/2.png", "a/deep/1.png", "b.png"}, names(s.Items)); d != "" {
		t.Error(d)
	}
	if d := cmp.Diff([]string{"raw.dng"}, s.Ignored); d != "" {
		t.Error(d)
	}
	if s.Layout != LayoutFolder || s.Name != filepath.Base(dir) {
		t.Errorf("layout %s, name %s", s.Layout, s.Name)
	}
	b, err := s.Items[0].Read()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := imaging.Decode(b, imaging.Limits{}); err != nil {
		t.Error(err)
	}
}

func TestMVTecLayout(t *testing.T) {
	dir := tree(t,
		"train/good/0.png", "train/good/1.png", "test/good/0.png", "test/crack/0.png", "test/crack/1.png", "test/hole/7.png",
		"ground_truth/crack/0_mask.png", "ground_truth/hole/7.png", "license.txt")
	s, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	if s.Layout != LayoutMVTec {
		t.Fatalf("layout %s", s.Layout)
	}
	if d := cmp.Diff([]string{"train/good/0.png", "train/good/1.png"}, names(s.Select(Train, ""))); d != "" {
		t.Error(d)
	}
	if d := cmp.Diff([]string{"crack", "good", "hole"}, s.Labels()); d != "" {
		t.Error(d)
	}
	masks := map[string]bool{}
	for _, it := range s.Select(Test, "") {
		masks[it.Name] = len(it.Masks) > 0
		if (it.Defect == "") != (it.Label == Good) {
			t.Errorf("%s: defect %q", it.Name, it.Defect)
		}
	}
	if d := cmp.Diff(map[string]bool{"test/good/0.png": false, "test/crack/0.png": true, "test/crack/1.png": false, "test/hole/7.png": true}, masks); d != "" {
		t.Error(d)
	}
	mask, w, h, err := s.Select(Test, "hole")[0].ReadMask()
	if err != nil || w != 4 || h != 3 || len(mask) != 12 {
		t.Errorf("mask of %d×%d with %d bytes: %v", w, h, len(mask), err)
	}
	if mask, _, _, err := s.Select(Test, Good)[0].ReadMask(); mask != nil || err != nil {
		t.Errorf("a good image has mask %v, %v", mask, err)
	}
}

func TestClassesLayout(t *testing.T) {
	dir := tree(t, "train/cat/0.png", "train/dog/0.png", "test/cat/1.png", "test/dog/1.png", "test/dog/2.png")
	s, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	if s.Layout != LayoutClasses {
		t.Fatalf("layout %s", s.Layout)
	}
	if d := cmp.Diff([]string{"test/dog/1.png", "test/dog/2.png"}, names(s.Select(Test, "dog"))); d != "" {
		t.Error(d)
	}
}

func TestFoldersThatAreNoDataSets(t *testing.T) {
	if _, err := Open(filepath.Join(t.TempDir(), "missing")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a missing folder gave %v", err)
	}
	if _, err := Open(tree(t, "a.txt", "b.dng")); !errors.Is(err, ErrNoImages) {
		t.Errorf("a folder without images gave %v", err)
	}
	for _, c := range []struct{ what, word, dir string }{
		{"a file", "is a file", filepath.Join(tree(t, "a.png"), "a.png")},
		{"mvtec without normal test images", "test/good", tree(t, "train/good/0.png", "test/crack/0.png")},
		{"a class without test images", "class dog", tree(t, "train/cat/0.png", "train/dog/0.png", "test/cat/0.png")},
		{"no classes", "no folders", tree(t, "train/0.png", "test/0.png")},
	} {
		if _, err := Open(c.dir); err == nil || !strings.Contains(err.Error(), c.word) {
			t.Errorf("%s gave %v", c.what, err)
		}
	}
}

func classes(t *testing.T, train, test int) *Set {
	t.Helper()
	s := &Set{Root: "memory", Layout: LayoutClasses}
	for _, label := range []string{"a", "b"} {
		for i := range train + test {
			split := Train
			if i >= train {
				split = Test
			}
			s.Items = append(s.Items, FromBytes(fmt.Sprintf("%s/%03d", label, i), split, label, []byte{label[0], byte(i)}))
		}
	}
	return s
}

func TestResplitIsStratifiedAndRepeatable(t *testing.T) {
	s := classes(t, 41, 12) // as the lymphocytes of WBC: 80 % of 53 are 42
	a, err := s.Resplit(0.8, 1)
	if err != nil {
		t.Fatal(err)
	}
	b, err := s.Resplit(0.8, 1)
	if err != nil {
		t.Fatal(err)
	}
	c, err := s.Resplit(0.8, 2)
	if err != nil {
		t.Fatal(err)
	}
	for _, label := range s.Labels() {
		if n, m := len(a.Select(Train, label)), len(a.Select(Test, label)); n != 42 || m != 11 {
			t.Errorf("%s: %d and %d", label, n, m)
		}
	}
	if !slices.Equal(names(a.Select(Train, "")), names(b.Select(Train, ""))) {
		t.Error("one seed gave two splits")
	}
	if slices.Equal(names(a.Select(Train, "")), names(c.Select(Train, ""))) {
		t.Error("two seeds gave one split")
	}
	if len(s.Select(Train, "a")) != 41 {
		t.Error("the original set was changed")
	}
	for _, share := range []float64{0, 1, -1} {
		if _, err := s.Resplit(share, 1); err == nil {
			t.Errorf("share %v was accepted", share)
		}
	}
	if _, err := classes(t, 1, 0).Resplit(0.8, 1); err == nil {
		t.Error("a class of one image was split")
	}
}

func TestResplitLeavesAnomaliesInTheTest(t *testing.T) {
	s, err := Open(tree(t, "train/good/0.png", "train/good/1.png", "train/good/2.png", "test/good/3.png", "test/crack/0.png", "test/crack/1.png"))
	if err != nil {
		t.Fatal(err)
	}
	for seed := range uint64(5) {
		r, err := s.Resplit(0.5, seed)
		if err != nil {
			t.Fatal(err)
		}
		if len(r.Select(Train, "crack")) != 0 || len(r.Select(Train, Good)) != 2 {
			t.Errorf("seed %d: train %v", seed, names(r.Select(Train, "")))
		}
	}
}

func TestLimit(t *testing.T) {
	s := classes(t, 20, 10)
	l := s.Limit(5, 3, 1)
	for _, label := range s.Labels() {
		if n, m := len(l.Select(Train, label)), len(l.Select(Test, label)); n != 5 || m != 3 {
			t.Errorf("%s: %d and %d", label, n, m)
		}
	}
	if got := s.Limit(0, 0, 1); len(got.Items) != len(s.Items) {
		t.Error("no limit dropped items")
	}
	if d := cmp.Diff(names(l.Items), names(s.Limit(5, 3, 1).Items)); d != "" {
		t.Error(d)
	}
	if slices.Equal(names(l.Items), names(s.Limit(5, 3, 2).Items)) {
		t.Error("two seeds gave the same items")
	}
}

func TestDigestIsOfTheContents(t *testing.T) {
	s := classes(t, 3, 2)
	a, err := Digest(s.Items)
	if err != nil {
		t.Fatal(err)
	}
	reversed := slices.Clone(s.Items)
	slices.Reverse(reversed)
	reversed[0].Name = "renamed"
	if b, _ := Digest(reversed); a != b {
		t.Error("order or names changed the digest")
	}
	reversed[0].Label = "other"
	if b, _ := Digest(reversed); a == b {
		t.Error("another label left the digest")
	}
	if _, err := Digest([]Item{{Name: "x", Path: filepath.Join(t.TempDir(), "gone")}}); err == nil {
		t.Error("a missing file has a digest")
	}
	if _, err := (Item{Name: "nothing"}).Read(); err == nil {
		t.Error("an item of nothing was read")
	}
}
