package envelope

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestCheckName(t *testing.T) {
	for _, name := range []string{"a", "bank.nmb", "check/0.png", "deep/er/x", "backbone.onnx.data", "a..b"} {
		if err := CheckName(name); err != nil {
			t.Errorf("%q is refused: %v", name, err)
		}
	}
	for _, name := range []string{
		"", ".", "..", "/a", "../a", "a/../b", "a//b", "a/", "./a", ".hidden", "a/.hidden", `a\b`, "c:a", "a\x00", ManifestName, strings.Repeat("x", 256),
	} {
		if err := CheckName(name); err == nil {
			t.Errorf("%q is taken", name)
		}
	}
}

// write makes a file whose last change is old enough to be remembered.
func write(t *testing.T, path, content string, at time.Time) Entry {
	t.Helper()
	if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Chtimes(path, at, at); err != nil {
		t.Fatal(err)
	}
	f, err := Sum(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	return Entry{filepath.Base(path), f}
}

func TestCheckedReadsAFileOnce(t *testing.T) {
	old := time.Now().Add(-time.Hour)
	path := filepath.Join(t.TempDir(), "model")
	e := write(t, path, "weights", old)
	var c Checked
	if err := c.Check(t.Context(), path, e); err != nil {
		t.Fatal(err)
	}
	// A context that has ended shows whether the file is read.
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if err := c.Check(ended, path, e); err != nil {
		t.Errorf("it is read again: %v", err)
	}
	t.Run("but for another digest", func(t *testing.T) {
		other := e
		other.SHA256 = strings.Repeat("0", 64)
		if err := c.Check(t.Context(), path, other); !errors.Is(err, ErrCorrupt) {
			t.Error(err)
		}
	})
	t.Run("not where nothing is remembered", func(t *testing.T) {
		var none *Checked
		if err := none.Check(ended, path, e); !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
	})
	for name, change := range map[string]func(){
		"after a change":                    func() { write(t, path, "wEights", old.Add(time.Minute)) },
		"after another file took its place": func() { _ = os.Remove(path); write(t, path, "wEights", old) },
	} {
		t.Run(name, func(t *testing.T) {
			write(t, path, "weights", old)
			if err := c.Check(t.Context(), path, e); err != nil {
				t.Fatal(err)
			}
			// Keep the old inode taken, so that the new file cannot get it.
			keep, err := os.Open(path)
			if err != nil {
				t.Fatal(err)
			}
			defer keep.Close()
			change()
			if err := c.Check(t.Context(), path, e); !errors.Is(err, ErrCorrupt) {
				t.Error(err)
			}
		})
	}
	t.Run("and again while its time is not settled", func(t *testing.T) {
		write(t, path, "weights", time.Now().Add(time.Hour)) // nor will it be, however long this takes
		var c Checked
		if err := c.Check(t.Context(), path, e); err != nil {
			t.Fatal(err)
		}
		if err := c.Check(ended, path, e); !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
	})
}

func TestEnvelopesThatCannotBeAreRefused(t *testing.T) {
	dir := t.TempDir()
	for name, manifest := range map[string]string{
		"no JSON":        `{`,
		"no files":       `{"schema_version":1}`,
		"a name outside": `{"files":{"../a":{"sha256":"` + strings.Repeat("a", 64) + `","size":1}}}`,
		"no digest":      `{"files":{"a":{"sha256":"x","size":1}}}`,
		"upper case":     `{"files":{"a":{"sha256":"` + strings.Repeat("A", 64) + `","size":1}}}`,
		"a size below 0": `{"files":{"a":{"sha256":"` + strings.Repeat("a", 64) + `","size":-1}}}`,
		"too large":      `{"files":{}}` + strings.Repeat(" ", MaxManifest),
	} {
		if err := os.WriteFile(filepath.Join(dir, ManifestName), []byte(manifest), 0o644); err != nil {
			t.Fatal(err)
		}
		if _, err := Read(dir); !errors.Is(err, ErrManifest) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := Read(t.TempDir()); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no manifest: %v", err)
	}
}

// FuzzParse: the files of any manifest lie in its folder, or it is refused.
func FuzzParse(f *testing.F) {
	f.Add([]byte(`{"files":{"a":{"sha256":"e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855","size":0}}}`))
	f.Add([]byte(`{"files":{"../a":{"sha256":"","size":-1}}}`))
	f.Add([]byte(`{`))
	f.Fuzz(func(t *testing.T, manifest []byte) {
		files, err := Parse(manifest)
		if err != nil {
			if !errors.Is(err, ErrManifest) {
				t.Fatal(err)
			}
			return
		}
		for _, e := range files {
			if rel, err := filepath.Rel("x", Path("x", e.Name)); err != nil || rel == "." || rel[0] == '.' {
				t.Fatalf("file %q leaves its folder", e.Name)
			}
		}
	})
}
