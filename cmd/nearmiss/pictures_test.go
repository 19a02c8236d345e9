package main

import (
	"bytes"
	"encoding/base64"
	"fmt"
	"html"
	"image"
	_ "image/jpeg" // of pages
	_ "image/png"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// TestEveryPictureIsDrawn has the program make each kind of picture: heatmaps, a
// contact sheet and a page of an evaluation. None is empty, and
// none shows black where nothing is known. make pictures keeps them, to be looked
// at. Pictures of alarms are in TestAlarmsCarryEvidence.
func TestEveryPictureIsDrawn(t *testing.T) {
	model, dir := patchModel(t), t.TempDir()
	keep := os.Getenv("NEARMISS_PICTURES")
	if keep != "" {
		dir = keep
	}
	data := filepath.Join(dir, "plates")
	drawPlates(t, filepath.Join(data, "train/good"), 24, 1, false)
	drawPlates(t, filepath.Join(data, "test/good"), 6, 2, false)
	drawPlates(t, filepath.Join(data, "test/spot"), 4, 3, true)
	drawPlates(t, filepath.Join(data, "test/unmarked"), 3, 4, true) // of these nobody has drawn where
	drawTruth(t, filepath.Join(data, "ground_truth/spot"), 4)
	at := func(name string) string { return filepath.Join(dir, name) }
	program(t, 0, "eval", "--data", data, "--protocol", "mvtec", "--backbone", model, "--score", "patch", "--out", at("page.html"), "--sheet", at("sheet.png"))
	program(t, 0, "eval", "--data", data, "--protocol", "mvtec", "--backbone", model, "--score", "patch", "--sheet", at("bare.png"), "--sheet-without-images")
	release := filepath.Join(t.TempDir(), "release")
	program(t, 0, "fit", "--normals", filepath.Join(data, "train"), "--backbone", model, "--out", release, "--score", "patch", "--false-alarm-rate", "25%", "--seed", "1")
	program(t, 0, "score", "--release", release, filepath.Join(data, "test"), "--heatmap", at("heat"), "--heatmap-all")
	if keep != "" { // a quarter of a minute; its pictures are tested in training/frechet
		fakes := filepath.Join(t.TempDir(), "fakes")
		program(t, 0, "fakes", "--normals", filepath.Join(data, "train"), "--backbone", model, "--out", fakes, "-n", "4", "--preset", "nano", "--train-batch", "2",
			"--sampler-steps", "2", "--max-steps", "4", "--every", "2", "--probes", "4", "--seed", "1", "--threads", "1")
		for _, name := range []string{"sheet.png", "curve.png"} {
			b, err := os.ReadFile(filepath.Join(fakes, name))
			if err != nil {
				t.Fatal(err)
			}
			write(t, at("fakes-"+name), string(b))
		}
	}

	pictures := map[string][]byte{}
	for _, pattern := range []string{"*.png", "heat/*/*.overlay.png"} {
		files, err := filepath.Glob(at(pattern))
		if err != nil || len(files) < 2 {
			t.Fatal(pattern, files, err)
		}
		for _, f := range files {
			if pictures[f], err = os.ReadFile(f); err != nil {
				t.Fatal(err)
			}
		}
	}
	page, err := os.ReadFile(at("page.html"))
	if err != nil {
		t.Fatal(err)
	}
	for i, m := range regexp.MustCompile(`data:image/jpeg;base64,([A-Za-z0-9+/=]+)`).FindAllStringSubmatch(html.UnescapeString(string(page)), -1) {
		if pictures[fmt.Sprintf("page.html, picture %d", i)], err = base64.StdEncoding.DecodeString(m[1]); err != nil {
			t.Fatal(err)
		}
	}
	if len(pictures) < 40 {
		t.Fatalf("%d pictures", len(pictures))
	}
	for name, b := range pictures {
		img, _, err := image.Decode(bytes.NewReader(b))
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		// Plates are grey or brighter; text, boxes and the axes of a curve are dark.
		black, all, levels := 0, 0, map[uint32]bool{}
		for y := img.Bounds().Min.Y; y < img.Bounds().Max.Y; y++ {
			for x := img.Bounds().Min.X; x < img.Bounds().Max.X; x++ {
				r, g, b, _ := img.At(x, y).RGBA()
				levels[(r>>8)<<16|(g>>8)<<8|b>>8] = true
				all++
				if r|g|b < 10<<8 {
					black++
				}
			}
		}
		if strings.HasSuffix(name, "fakes-sheet.png") {
			black = 0 // of a network that has learnt nothing
		}
		if len(levels) < 3 || black*20 > all {
			t.Errorf("%s: %d colours, %d of %d pixels black", name, len(levels), black, all)
		}
	}
	for _, want := range []string{
		">50 %</text>", "false alarms", "threshold of the best F1", // axes that can be read
		"plate00.png", "unmarked 1 of 3", "unlike the normal ones (good)",
	} {
		if !bytes.Contains(page, []byte(want)) {
			t.Errorf("the page does not say %q", want)
		}
	}
}
