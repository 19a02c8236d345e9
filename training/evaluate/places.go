package evaluate

import (
	"context"
	"fmt"
	"maps"
	"slices"

	"github.com/nearmiss/nearmiss/inference/heatmap"
	"github.com/nearmiss/nearmiss/inference/imaging"
	"github.com/nearmiss/nearmiss/training/dataset"
)

// pixelsOf are the pixels of images by their label; nil measures nothing.
type pixelsOf map[string]*Pixels

// figures are those of each label against the normal one, and of all labels. They
// are nil where no map came with a mask.
func (p pixelsOf) figures(normal string) (map[string]PixelFigures, error) {
	out := map[string]PixelFigures{}
	good := p[normal]
	if good == nil {
		return nil, nil
	}
	for _, label := range slices.Sorted(maps.Keys(p)) {
		if label == normal || p[label].Regions() == 0 {
			continue
		}
		f, err := measurePixels(good, p[label])
		if err != nil {
			return nil, fmt.Errorf("pixels of %s: %w", label, err)
		}
		out[label] = f
	}
	if len(out) == 0 {
		return nil, nil
	}
	var groups pixelGroups // in the order of their names: sums do not depend on chance
	for _, label := range slices.Sorted(maps.Keys(p)) {
		groups = append(groups, p[label])
	}
	all, err := measurePixels(groups...)
	if err != nil {
		return nil, err
	}
	out[All] = all
	return out, nil
}

// meanFigures averages over repeats.
func meanFigures(repeats []map[string]PixelFigures) map[string]PixelFigures {
	var out map[string]PixelFigures
	for _, r := range repeats {
		for label, f := range r {
			if out == nil {
				out = map[string]PixelFigures{}
			}
			n := float64(len(repeats))
			m := out[label]
			m.AUROC, m.PRO, m.Regions = m.AUROC+f.AUROC/n, m.PRO+f.PRO/n, f.Regions
			m.Covered, m.CoveredAUROC, m.CoveredPRO = m.Covered+f.Covered/n, m.CoveredAUROC+f.CoveredAUROC/n, m.CoveredPRO+f.CoveredPRO/n
			out[label] = m
		}
	}
	return out
}

// add takes the map of one image.
func (p pixelsOf) add(s Scored, scores []float32, w, h int) error {
	mask, mw, mh, err := s.Item.ReadMask()
	if err != nil {
		return err
	}
	if mask != nil && (mw != w || mh != h) {
		return fmt.Errorf("map of %s has %d×%d pixels, its mask %d×%d", s.Item.Name, w, h, mw, mh)
	}
	if mask != nil && !slices.ContainsFunc(mask, func(v uint8) bool { return v != 0 }) {
		return nil // it says nothing of an anomaly: its pixels are not normal ones
	}
	if p[s.Item.Label] == nil {
		p[s.Item.Label] = &Pixels{}
	}
	if err := p[s.Item.Label].Add(scores, mask, w, h); err != nil {
		return fmt.Errorf("map of %s: %w", s.Item.Name, err)
	}
	return nil
}

// locate asks where the images are strange, and collects the pixels in px. An
// anomaly without a mask counts for nothing there.
func (r *Run) locate(ctx context.Context, where Localizer, px pixelsOf) error {
	items := make([]dataset.Item, len(r.Scored))
	for i, s := range r.Scored {
		items[i] = s.Item
	}
	grids, err := where.Maps(ctx, items)
	if err != nil {
		return fmt.Errorf("maps of %d images: %w", len(items), err)
	}
	if grids == nil {
		return nil
	}
	if len(grids) != len(items) {
		return fmt.Errorf("%d maps for %d images", len(grids), len(items))
	}
	places := &Places{Preprocess: where.Preprocess()}
	var normals []heatmap.Grid
	for i := range grids {
		r.Scored[i].Grid = &grids[i]
		if !r.Scored[i].Anomalous {
			normals = append(normals, grids[i])
		}
	}
	if len(normals) > 0 {
		if places.Scale, err = heatmap.NewScale(normals); err != nil {
			return fmt.Errorf("maps of %d normal images: %w", len(normals), err)
		}
	}
	r.Places = places
	for _, s := range r.Scored {
		if px == nil || s.Anomalous && len(s.Item.Masks) == 0 {
			continue
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		b, err := s.Item.Read()
		if err != nil {
			return fmt.Errorf("map of %s: %w", s.Item.Name, err)
		}
		h, err := imaging.Inspect(b, imaging.Limits{})
		if err != nil {
			return fmt.Errorf("map of %s: %w", s.Item.Name, err)
		}
		// Pixels are ranked by distances: a scale would only change their values.
		m, err := heatmap.New(*s.Grid, nil, heatmap.GeometryOf(places.Preprocess, h.Width, h.Height))
		if err != nil {
			return fmt.Errorf("map of %s: %w", s.Item.Name, err)
		}
		if err := px.add(s, m.Pixels(Uncovered), h.Width, h.Height); err != nil {
			return err
		}
	}
	return nil
}
