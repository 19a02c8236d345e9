package main

import (
	"cmp"
	"context"
	"fmt"
	"slices"

	"github.com/nearmiss/nearmiss/inference/heatmap"
	"github.com/nearmiss/nearmiss/inference/imaging"
	"github.com/nearmiss/nearmiss/training/evaluate"
	"github.com/nearmiss/nearmiss/training/evaluate/predictions"
)

// writePredictions writes the test images of every run.
func writePredictions(ctx context.Context, file string, results []evaluate.Result) error {
	t, err := predictions.Create(file)
	if err != nil {
		return err
	}
	defer t.Abort()
	for _, r := range results {
		for _, run := range r.Runs {
			normals, _ := run.Split("")
			slices.Sort(normals)
			for _, s := range run.Scored {
				if err := ctx.Err(); err != nil {
					return err
				}
				row := predictions.Row{
					Path: s.Item.Path, Label: s.Item.Label, Score: &s.Score, Parts: s.Parts, Truth: &s.Anomalous,
					Method: r.Method, Normal: run.Normal, Seed: &run.Seed,
				}
				row.Path = cmp.Or(row.Path, s.Item.Name)
				row.P = shareAbove(normals, s)
				if row.Regions, err = regionsOf(run, s); err != nil {
					return err
				}
				if err := t.Write(row); err != nil {
					return err
				}
			}
		}
	}
	return t.Close()
}

// shareAbove is a p-value without held-out images: among the normal test images
// and the image itself, the share that scores as high or higher.
func shareAbove(sorted []float64, s evaluate.Scored) *float64 {
	below, _ := slices.BinarySearch(sorted, s.Score)
	count, n := len(sorted)-below, len(sorted)
	if s.Anomalous {
		count, n = count+1, n+1 // a normal one is among them
	}
	return new(float64(count) / float64(n))
}

func regionsOf(run evaluate.Run, s evaluate.Scored) ([]heatmap.Region, error) {
	if run.Places == nil || run.Places.Scale == nil || s.Grid == nil {
		return nil, nil
	}
	b, err := s.Item.Read()
	if err != nil {
		return nil, err
	}
	h, err := imaging.Inspect(b, imaging.Limits{})
	if err != nil {
		return nil, fmt.Errorf("regions of %s: %w", s.Item.Name, err)
	}
	m, err := run.Places.Map(s, h.Width, h.Height)
	if err != nil {
		return nil, err
	}
	return slices.DeleteFunc(m.Find(maxRegions), func(r heatmap.Region) bool { return r.Faint }), nil
}
