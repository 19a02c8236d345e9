package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/nearmiss/nearmiss/inference/imaging"
	"github.com/nearmiss/nearmiss/stream"
)

// TestNormalsCanBeLookedThrough adds images, lists them, looks at thumbnails and
// removes those that do not belong.
func TestNormalsCanBeLookedThrough(t *testing.T) {
	at := "--server=" + startBroker(t)
	dir := t.TempDir()
	good, bad := filepath.Join(dir, "good"), filepath.Join(dir, "bad")
	drawImages(t, good, 4, 0)
	drawImages(t, bad, 2, 1)
	write(t, filepath.Join(good, "notes.png"), "this is no image")
	if out, _ := program(t, 0, "normals", "add", "bolts", good, at); !strings.Contains(out, "added 4 images to the normals of bolts, skipped 1") {
		t.Error(out)
	}
	program(t, 0, "normals", "add", "bolts", "--anomaly", bad, at)
	list := func(args ...string) []stream.Normal {
		out, _ := program(t, 0, append([]string{"normals", "list", "bolts", "--json", at}, args...)...)
		return readLines[stream.Normal](t, out)
	}
	all := list()
	if len(all) != 4 || len(list("--anomalies")) != 2 || !strings.HasSuffix(all[0].Source, "000.png") {
		t.Fatalf("%+v", all)
	}

	look := filepath.Join(dir, "look")
	program(t, 0, "normals", "export", "bolts", look, "--thumbnail", "32", at)
	for _, n := range all {
		b, err := os.ReadFile(filepath.Join(look, fmt.Sprintf("%08d.jpg", n.Sequence)))
		if err != nil {
			t.Fatal(err)
		}
		if img, err := imaging.Decode(b, imaging.Limits{}); err != nil || max(img.Width, img.Height) != 32 {
			t.Errorf("%v, %v", img, err)
		}
	}
	one := filepath.Join(dir, "one")
	program(t, 0, "normals", "export", "bolts", one, fmt.Sprint(all[2].Sequence), at)
	was := readImages(t, good)[2]
	if got := readImages(t, one); len(got) != 1 || string(got[0]) != string(was) {
		t.Errorf("%d images", len(got))
	}

	program(t, 0, "normals", "remove", "bolts", fmt.Sprint(all[1].Sequence), fmt.Sprint(all[2].Sequence), at)
	if left := list(); len(left) != 2 || left[0].Sequence != all[0].Sequence || left[1].Sequence != all[3].Sequence {
		t.Errorf("%+v", left)
	}
	if _, errs := program(t, 1, "normals", "remove", "bolts", fmt.Sprint(all[1].Sequence), at); errs == "" {
		t.Error("what is gone can be removed")
	}
}
