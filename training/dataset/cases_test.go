package dataset

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/nearmiss/nearmiss/internal/evaldata"
)

// The masks of the case mark the same pixels in each form, and none is left over.
func TestCasesOfMasks(t *testing.T) {
	examples := filepath.Join(evaldata.Cases(t, "eval-masks"), "examples")
	const images = 6
	masks := func(t *testing.T, form string) (all [images][]byte) {
		t.Helper()
		names := []string{"train/good/0.png", "test/good/0.png"}
		for i := range images {
			names = append(names, fmt.Sprintf("test/spot/%03d.png", i))
		}
		dir := tree(t, names...)
		if err := os.CopyFS(dir, os.DirFS(filepath.Join(examples, form))); err != nil {
			t.Fatal(err)
		}
		s, err := Open(dir)
		if err != nil {
			t.Fatal(err)
		}
		items := s.Select(Test, "spot")
		if len(items) != images || len(s.Notes) > 0 {
			t.Fatalf("%d images, notes %q", len(items), s.Notes)
		}
		for i, item := range items {
			var w, h int
			if all[i], w, h, err = item.ReadMask(); err != nil || w != 224 || h != 224 {
				t.Fatalf("image %d: %d×%d, %v", i, w, h, err)
			}
		}
		return all
	}
	want := masks(t, "ref255")
	forms, err := os.ReadDir(examples)
	if err != nil {
		t.Fatal(err)
	}
	for _, form := range forms {
		t.Run(form.Name(), func(t *testing.T) {
			for i, got := range masks(t, form.Name()) {
				if !bytes.Contains(got, []byte{255}) || !bytes.Equal(got, want[i]) {
					t.Errorf("image %d: other pixels are marked", i)
				}
			}
		})
	}
}
