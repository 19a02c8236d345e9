package trainer

import (
	"archive/tar"
	"bytes"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
)

func TestFolderComesBackAsItWasPacked(t *testing.T) {
	from, to := t.TempDir(), filepath.Join(t.TempDir(), "new")
	files := map[string]string{"a": "1", "deep/er/b": "22", "empty": ""}
	for name, content := range files {
		p := filepath.Join(from, name)
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(p, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	var b bytes.Buffer
	if err := packFolder(&b, io.Discard, from); err != nil {
		t.Fatal(err)
	}
	if err := unpackFolder(&b, to); err != nil {
		t.Fatal(err)
	}
	got := map[string]string{}
	err := fs.WalkDir(os.DirFS(to), ".", func(p string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			c, err := os.ReadFile(filepath.Join(to, p))
			if err != nil {
				return err
			}
			got[p] = string(c)
		}
		return err
	})
	if err != nil || len(got) != len(files) {
		t.Fatalf("%v, %v", got, err)
	}
	for name, want := range files {
		if got[name] != want {
			t.Errorf("%s is %q, want %q", name, got[name], want)
		}
	}
}

// FuzzUnpackFolder: whatever a checkpoint holds, nothing is written outside its
// folder.
func FuzzUnpackFolder(f *testing.F) {
	for _, name := range []string{"a", "../a", "/a", "a/../../b", "."} {
		var b bytes.Buffer
		w := tar.NewWriter(&b)
		if err := w.WriteHeader(&tar.Header{Name: name, Size: 1, Mode: 0o600}); err != nil {
			f.Fatal(err)
		}
		if _, err := w.Write([]byte("x")); err != nil {
			f.Fatal(err)
		}
		f.Add(b.Bytes())
	}
	f.Fuzz(func(t *testing.T, archive []byte) {
		outer := t.TempDir()
		_ = unpackFolder(bytes.NewReader(archive), filepath.Join(outer, "in"))
		entries, err := os.ReadDir(outer)
		if err != nil || len(entries) != 1 {
			t.Fatalf("%v, %v", entries, err)
		}
	})
}
