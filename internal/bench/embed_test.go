package bench

import (
	"context"
	"encoding/json"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/nearmiss/nearmiss/inference"
	"github.com/nearmiss/nearmiss/inference/imaging"
	"github.com/nearmiss/nearmiss/inference/onnx"
	"github.com/nearmiss/nearmiss/inference/ort"
	"github.com/nearmiss/nearmiss/internal/synthetic"
)

// model writes one that averages the colours of 8 × 8 pixels.
func model(t *testing.T) string {
	t.Helper()
	g := onnx.New("tiny")
	x := g.Input("image", onnx.Uint8, 1, 8, 8, 3)
	e := g.ReduceMean(g.Cast(x, onnx.Float), false, 1, 2)
	g.Output("embedding", e)
	x.SetDimName(0, "N")
	e.SetDimName(0, "N")
	prepare, err := json.Marshal(imaging.Preprocess{
		Resize: 8, Crop: 8, Interpolation: imaging.Bilinear, Mean: [3]float64{0.5, 0.5, 0.5}, Std: [3]float64{0.5, 0.5, 0.5},
	})
	if err != nil {
		t.Fatal(err)
	}
	g.SetMetadata("nearmiss.preprocess", string(prepare))
	path := filepath.Join(t.TempDir(), "tiny.onnx")
	if err := g.WriteFile(path); err != nil {
		t.Fatal(err)
	}
	return path
}

// The figures themselves are for `nearmiss bench embed`; here only that they
// are taken, and belong together.
func TestEmbed(t *testing.T) {
	s, err := synthetic.New(synthetic.Cells, 1, synthetic.Options{})
	if err != nil {
		t.Fatal(err)
	}
	var files [][]byte
	for range 5 {
		img, _ := s.Next()
		b, err := img.JPEG(90)
		if err != nil {
			t.Fatal(err)
		}
		files = append(files, b)
	}
	path := model(t)
	r, err := Embed(context.Background(), EmbedOptions{
		Model: path, Files: files, Time: time.Millisecond, Rounds: 2, Embed: inference.EmbedOptions{Threads: 2},
	})
	if err != nil {
		t.Fatal(err)
	}
	for name, rate := range map[string]Rate{"decode": r.Decode, "preprocess": r.Preprocess, "inference": r.Inference, "whole": r.Whole, "prepared": r.Prepared} {
		if !(rate.Min > 0 && rate.Min <= rate.Median && rate.Median <= rate.Max) {
			t.Errorf("%s: %+v", name, rate)
		}
	}
	if r.Share != r.Whole.Median/r.Inference.Median || r.Device != "cpu" || r.Threads != 2 || len(r.Raw) != 4 || !(r.Limit > 0 && r.Limit < r.Decode.Median) {
		t.Errorf("%+v", r)
	}
	captured, err := Embed(context.Background(), EmbedOptions{
		Model: path, Files: files, Time: time.Millisecond, Rounds: 1, Alone: true,
		Embed: inference.EmbedOptions{Threads: 1, Batch: 2, Device: ort.Device{Graph: true}},
	})
	if err != nil {
		t.Fatal(err)
	}
	if captured.Device != "cpu+graph" || !slices.Equal(captured.Captured, []int{1, 2}) || captured.CapturedWhy != "" || !(captured.Inference.Median > 0) {
		t.Errorf("%+v", captured)
	}
	if _, err := Embed(context.Background(), EmbedOptions{Model: path}); err == nil {
		t.Error("no images were accepted")
	}
}
