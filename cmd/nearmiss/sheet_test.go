package main

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/nearmiss/nearmiss/inference/imaging"
)

// Of what a generator draws the newest is kept, once, and no larger than people need.
func TestTheNewestSheetIsKeptOnce(t *testing.T) {
	s := sheets{work: t.TempDir()}
	if f := s.newest(); f != "" {
		t.Fatalf("without any there is %s", f)
	}
	draw := func(step int) string {
		dir := filepath.Join(s.work, "fakes-1")
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		b, err := imaging.New(2*sheetSide, 400).PNG()
		if err != nil {
			t.Fatal(err)
		}
		file := filepath.Join(dir, fmt.Sprintf("look-%06d.png", step))
		write(t, file, string(b))
		return file
	}
	draw(20)
	for _, step := range []int{100, 300} {
		file := draw(step)
		if got := s.newest(); got != file {
			t.Errorf("the newest is %q, want %s", got, file)
		}
		if got := s.newest(); got != "" {
			t.Errorf("%s comes again", got)
		}
	}
	b, err := sheetOf(draw(400))
	if err != nil {
		t.Fatal(err)
	}
	img, err := imaging.Decode(b, imaging.Limits{})
	if err != nil || img.Width != sheetSide || img.Height != 200 || string(b[:2]) != "\xff\xd8" {
		t.Errorf("%d×%d, %v", img.Width, img.Height, err)
	}
	write(t, filepath.Join(s.work, "fakes-1", "look-000500.png"), "no picture")
	if _, err := sheetOf(s.newest()); err == nil {
		t.Error("what is no picture was kept")
	}
}
