// Package evaldata finds the evaluation data and reference outputs that some
// tests need and the repository does not hold.
package evaldata

import (
	"os"
	"path/filepath"
	"testing"
)

// Dir is the folder that holds data/ and golden/: $NEARMISS_SHARED, or shared
// beside the checkout. Without it the test is skipped.
func Dir(t testing.TB) string {
	t.Helper()
	dir, ok := Find()
	if !ok {
		t.Skipf("no evaluation data in %s: set NEARMISS_SHARED to the folder that holds data/ and golden/", dir)
	}
	return dir
}

// Cases is the folder of one of the inputs that were wrong once, below cases/ of
// the same folder. Without it the test is skipped. `make cases` runs them all.
func Cases(t testing.TB, name string) string {
	t.Helper()
	shared, _ := Find()
	dir := filepath.Join(shared, "cases", name)
	if _, err := os.Stat(dir); err != nil {
		t.Skipf("no case in %s: set NEARMISS_SHARED to the folder that holds cases/", dir)
	}
	return dir
}

// Find is the same folder, and whether it is there.
func Find() (dir string, ok bool) {
	if dir = os.Getenv("NEARMISS_SHARED"); dir == "" {
		dir = filepath.Join(root(), "..", "shared")
	}
	for _, need := range []string{"golden", filepath.Join("data", "wbc", "train"), filepath.Join("data", "vit_tiny_patch16_224.safetensors")} {
		if _, err := os.Stat(filepath.Join(dir, need)); err != nil {
			return dir, false
		}
	}
	return dir, true
}

// root is the folder of go.mod: tests run in that of their package.
func root() string {
	dir, _ := os.Getwd()
	for dir != filepath.Dir(dir) {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			break
		}
		dir = filepath.Dir(dir)
	}
	return dir
}
