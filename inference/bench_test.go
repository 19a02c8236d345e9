package inference

import (
	"context"
	"testing"
	"time"
)

// The figures themselves are for `nearmiss bench embed`; here only that they
// are taken, and belong together.
func TestBenchEmbed(t *testing.T) {
	files, _ := images(t, 5, 20)
	r, err := BenchEmbed(context.Background(), BenchOptions{
		Model: writeModel(t, 0, 1, false), Files: files, Time: time.Millisecond, Rounds: 2, Embed: EmbedOptions{Threads: 2},
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
	if _, err := BenchEmbed(context.Background(), BenchOptions{Model: writeModel(t, 0, 1, false)}); err == nil {
		t.Error("no images were accepted")
	}
}
