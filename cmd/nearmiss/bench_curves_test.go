package main

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/rs/zerolog"
)

// Every point of the curves of cameras and entries is measured. That of pictures is
// bench.Embed, for which a backbone must be made: it has its own test.
func TestBenchCurves(t *testing.T) {
	var text bytes.Buffer
	c := benchCurvesCmd{Cameras: []int{1, 3}, Frames: 40, Entries: []int{300, 600}, Graphs: 300, Time: time.Millisecond, JSON: true}
	if err := c.Run(t.Context(), &output{Out: &text, Err: &text, Log: zerolog.Nop()}); err != nil {
		t.Fatal(err)
	}
	got := map[string]int{}
	for d := json.NewDecoder(&text); d.More(); {
		var p curvePoint
		if err := d.Decode(&p); err != nil {
			t.Fatal(err)
		}
		if got[p.Curve]++; p.Milliseconds <= 0 || p.At == 0 || p.What == "" {
			t.Errorf("%+v", p)
		}
	}
	if got["entries"] != 3 || got["cameras"] != 4 {
		t.Errorf("points %v", got)
	}
	if _, errs := program(t, exitUsage, "bench", "curves", "--sides=-1"); !strings.Contains(errs, "pixels") {
		t.Error(errs)
	}
}
