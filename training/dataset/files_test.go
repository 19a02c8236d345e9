package dataset

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func relative(t *testing.T, dir string, paths []string) []string {
	t.Helper()
	var out []string
	for _, p := range paths {
		rel, err := filepath.Rel(dir, p)
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, filepath.ToSlash(rel))
	}
	return out
}

func TestNormalsOfADataSet(t *testing.T) {
	set := tree(t, "bottle/train/good/0.png", "bottle/train/good/1.png", "bottle/test/good/2.png", "bottle/test/crack/3.png", "bottle/test/rip/5.png",
		"bottle/ground_truth/crack/3_mask.png", "pairs/OK/0.png", "pairs/NG/1.png", "classes/train/cat/0.png", "classes/test/cat/1.png",
		"parts/m6/0.png", "parts/m8/1.png", "good/0.png", "good/more/1.png", "masked/0.png", "masked/ground_truth/0.png")
	for _, c := range []struct {
		dir   string
		list  func([]string) (Files, error)
		want  []string
		note  string
		fails string
	}{
		{dir: "bottle", list: Normals, want: []string{"bottle/train/good/0.png", "bottle/train/good/1.png"}, note: "train/good is taken"},
		{dir: "bottle", list: Anomalies, want: []string{"bottle/test/crack/3.png", "bottle/test/rip/5.png"}, note: "test/crack and test/rip are taken"},
		{dir: "bottle/train/good", list: Normals, want: []string{"bottle/train/good/0.png", "bottle/train/good/1.png"}},
		{dir: "bottle/test", list: Normals, fails: "holds several kinds of images (crack, good, rip)"},
		{dir: "pairs", list: Normals, fails: "name the folders of normal images only"},
		{dir: "pairs", list: Anomalies, fails: "name the folders of anomalies only"},
		{dir: "pairs/OK", list: Normals, want: []string{"pairs/OK/0.png"}},
		{dir: "classes", list: Normals, fails: "several kinds"},
		{dir: "masked", list: Normals, fails: "several kinds"},
		{dir: "parts", list: Normals, want: []string{"parts/m6/0.png", "parts/m8/1.png"}}, // two kinds of one's own
		{dir: "good", list: Normals, want: []string{"good/0.png", "good/more/1.png"}},
	} {
		got, err := c.list([]string{filepath.Join(set, c.dir)})
		if c.fails != "" {
			if err == nil || !strings.Contains(err.Error(), c.fails) {
				t.Errorf("%s: %v, %v", c.dir, got, err)
			}
			continue
		}
		if err != nil {
			t.Errorf("%s: %v", c.dir, err)
			continue
		}
		if diff := cmp.Diff(c.want, relative(t, set, got.Paths)); diff != "" {
			t.Errorf("%s: %s", c.dir, diff)
		}
		if notes := strings.Join(got.Notes, "\n"); (notes != "") != (c.note != "") || !strings.Contains(notes, c.note) {
			t.Errorf("%s: notes %q", c.dir, notes)
		}
	}
}

func TestLinksAreFollowed(t *testing.T) {
	dir := tree(t, "real/sub/a.png", "real/sub/b.png", "day/c.png")
	for name, to := range map[string]string{"today": "real", "day/monday": "../real", "day/a1.png": "/gone/x.png", "real/sub/round": "../..", "real/sub/d.png": "a.png"} {
		if err := os.Symlink(to, filepath.Join(dir, filepath.FromSlash(name))); err != nil {
			t.Skip("no links here:", err)
		}
	}
	all, err := List([]string{filepath.Join(dir, "today")})
	if err != nil {
		t.Fatal(err)
	}
	// The link round leads to the folder of the link itself, which is another way to the same.
	if diff := cmp.Diff([]string{"today/sub/a.png", "today/sub/b.png", "today/sub/d.png"}, relative(t, dir, all.Paths)[:3]); diff != "" {
		t.Error(diff)
	}
	all, err = List([]string{filepath.Join(dir, "day")})
	if err != nil {
		t.Fatal(err)
	}
	got := relative(t, dir, all.Paths)
	for _, want := range []string{"day/c.png", "day/monday/sub/a.png"} {
		if !strings.Contains(strings.Join(got, "\n"), want) {
			t.Errorf("%s is not in %v", want, got)
		}
	}
	if notes := strings.Join(all.Notes, "\n"); !strings.Contains(notes, "could not be looked at") {
		t.Errorf("notes %q", notes)
	}
	s, err := Folder(filepath.Join(dir, "day"))
	if err != nil || !strings.Contains(strings.Join(s.Notes, "\n"), "a1.png cannot be looked at") {
		t.Errorf("%v, %+v", err, s)
	}
}

func TestPicturesOfOtherFormatsAreTold(t *testing.T) {
	dir := tree(t, "a.png", "b.pgm", "c.HEIC", "d.jfif", "notes.txt")
	all, err := List([]string{dir})
	if err != nil || len(all.Paths) != 2 || len(all.Notes) != 1 || !strings.Contains(all.Notes[0], "2 pictures of other formats are left out, first "+filepath.Join(dir, "b.pgm")) {
		t.Errorf("%+v, %v", all, err)
	}
	if _, err := List([]string{tree(t, "b.pgm")}); !errors.Is(err, ErrNoImages) || !strings.Contains(err.Error(), "b.pgm") {
		t.Error(err)
	}
}
