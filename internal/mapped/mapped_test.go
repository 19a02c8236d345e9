package mapped

import (
	"os"
	"path/filepath"
	"testing"
)

// What is mapped stays readable after its file is replaced and after it is gone.
func TestDataOutlivesTheFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "x")
	write := func(name, content string) {
		t.Helper()
		if err := os.WriteFile(name, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	write(path, "the first")
	f, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	write(path+".new", "another")
	if err := os.Rename(path+".new", path); err != nil {
		t.Fatal(err)
	}
	if string(f.Data) != "the first" {
		t.Errorf("after it was replaced: %q", f.Data)
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if string(f.Data) != "the first" {
		t.Errorf("after it was removed: %q", f.Data)
	}
	for range 2 {
		if err := f.Close(); err != nil || f.Data != nil {
			t.Error(err, f.Data)
		}
	}
}

func TestOnlyFilesAreMapped(t *testing.T) {
	dir := t.TempDir()
	if _, err := Open(dir); err == nil {
		t.Error("a folder was mapped")
	}
	if _, err := Open(filepath.Join(dir, "missing")); !os.IsNotExist(err) {
		t.Error(err)
	}
	empty := filepath.Join(dir, "empty")
	if err := os.WriteFile(empty, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	f, err := Open(empty)
	if err != nil || len(f.Data) != 0 {
		t.Fatal(f, err)
	}
	if err := f.Close(); err != nil {
		t.Error(err)
	}
}
