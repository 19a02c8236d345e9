package imagefolder

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// tree makes files, and links of the form "name -> target".
func tree(t *testing.T, entries ...string) string {
	t.Helper()
	root := t.TempDir()
	for _, e := range entries {
		name, target, link := strings.Cut(e, " -> ")
		path := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		var err error
		if link {
			err = os.Symlink(target, path)
		} else {
			err = os.WriteFile(path, []byte(name), 0o644)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return root
}

func TestLinksAreFollowedAndOddEntriesCostThemselves(t *testing.T) {
	root := tree(t,
		"real/sub/A.png", "real/sub/B.JPG", "day/C.jfif", "day/notes.txt", "day/D.pgm", "day/E.pgm", "day/.hidden.png", "day/.git/x.png",
		"today -> real", "day/monday -> ../real/sub", "day/A1.png -> /gone/x.png", "day/round -> ../day", "day/again -> ../real/sub",
		"day/F.png -> ../real/sub/A.png", "10:00:00.png",
	)
	for _, c := range []struct {
		in    string
		files []string
		odd   int
	}{
		{"today", []string{"today/sub/A.png", "today/sub/B.JPG"}, 0},
		{"today/", []string{"today/sub/A.png", "today/sub/B.JPG"}, 0},
		{"day", []string{"day/C.jfif", "day/F.png", "day/again/A.png", "day/again/B.JPG", "day/monday/A.png", "day/monday/B.JPG"}, 2},
		{"10:00:00.png", []string{"10:00:00.png"}, 0},
	} {
		l, err := List(filepath.Join(root, c.in))
		if err != nil {
			t.Errorf("%s: %v", c.in, err)
			continue
		}
		var got []string
		for _, f := range l.Files {
			rel, err := filepath.Rel(root, f)
			if err != nil {
				t.Fatal(err)
			}
			got = append(got, filepath.ToSlash(rel))
		}
		if diff := cmp.Diff(c.files, got); diff != "" {
			t.Errorf("%s: %s", c.in, diff)
		}
		if len(l.Odd) != c.odd {
			t.Errorf("%s: odd entries %v", c.in, l.Odd)
		}
	}
	l, err := List(filepath.Join(root, "day"))
	if err != nil {
		t.Fatal(err)
	}
	notes := strings.Join(l.Notes(), "\n")
	for _, want := range []string{"2 .pgm", "1 .txt", "A1.png"} {
		if !strings.Contains(notes, want) {
			t.Errorf("the notes do not say %q:\n%s", want, notes)
		}
	}
	if _, err := List(filepath.Join(root, "nothing")); err == nil {
		t.Error("a folder that is not there was listed")
	}
}
