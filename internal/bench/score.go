package bench

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/nearmiss/nearmiss/inference"
)

// ScoreResult is the speed of one release from file to verdict.
type ScoreResult struct {
	Release string   `json:"release"` // its folder
	Parts   []string `json:"parts"`   // of the score
	Banks   []int    `json:"entries"` // of each of its banks
	Recall  *float64 `json:"recall,omitempty"`
	Rate
	// Time and CPU are how much longer an image takes than with the first release,
	// by the wall clock and by processor time, which a busy machine disturbs less; 0
	// where that is unknown.
	Time float64 `json:"time_ratio"`
	CPU  float64 `json:"cpu_ratio"`
}

// Score measures releases in turns, so that a disturbance meets them all: in
// each of rounds every one scores the files, again and again, for a share of
// total.
func Score(ctx context.Context, dirs []string, files [][]byte, o inference.Options, total time.Duration, rounds int) (out []ScoreResult, err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("bench score: %w", err)
		}
	}()
	if len(dirs) == 0 || len(files) == 0 || rounds < 1 {
		return nil, errors.New("it takes releases, images and at least one round")
	}
	var parts []*part
	for _, dir := range dirs {
		d, err := inference.Open(ctx, dir, o)
		if err != nil {
			return nil, err
		}
		defer d.Close()
		b := ScoreResult{Release: dir, Parts: d.Info().Parts}
		for _, p := range d.Parts() {
			b.Banks = append(b.Banks, p.Bank.Len())
			if r := p.Bank.Report(); r.Queries > 0 {
				b.Recall = &r.Recall
			}
		}
		out = append(out, b)
		parts = append(parts, &part{name: dir, run: func(ctx context.Context, end <-chan struct{}) (int, error) {
			return parallel(2, end, func(i int64) (int, error) { // two callers, so that one's end is the other's middle
				n := 4 * d.Embedder().BatchSize()
				some := make([][]byte, n)
				for j := range some {
					some[j] = files[(int(i)*n+j)%len(files)]
				}
				scores, err := d.Score(ctx, some)
				for _, s := range scores {
					err = errors.Join(err, s.Err)
				}
				return n, err
			})
		}})
	}
	if err := interleave(ctx, parts, total, rounds, func(string) {}); err != nil {
		return nil, err
	}
	for i, p := range parts {
		out[i].Rate = p.rate()
		out[i].Time = out[0].Median / out[i].Median
		if out[i].PerCPU > 0 {
			out[i].CPU = out[0].PerCPU / out[i].PerCPU
		}
	}
	return out, nil
}
