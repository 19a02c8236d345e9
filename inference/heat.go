package inference

import (
	"errors"
	"fmt"

	"github.com/nearmiss/nearmiss/inference/heatmap"
)

// ErrNoPlaces: a release cannot tell where an image is strange.
var ErrNoPlaces = errors.New("the release has no bank of patches and cannot tell where an image is strange: fit it again, with a backbone that has patches")

// Heatmap is where the image of a score is strange, on the frame's own geometry.
// The score must be this Detector's and have a Map. It is [ErrNoPlaces] where the
// release has no bank of patches, or none that was measured on held-out normals.
func (d *Detector) Heatmap(s Score) (*heatmap.Map, error) {
	if !d.HasHeatmaps() {
		return nil, ErrNoPlaces
	}
	switch {
	case s.Err != nil:
		return nil, s.Err
	case s.Map == nil:
		return nil, fmt.Errorf("heatmap of an image of %d×%d pixels: its score has no map, because Options.Maps asks for none", s.Width, s.Height)
	}
	return heatmap.New(*s.Map, d.patch().Heat, heatmap.GeometryOf(d.e.Preprocess(), s.Width, s.Height))
}

// HasHeatmaps says whether Heatmap gives any.
func (d *Detector) HasHeatmaps() bool {
	p := d.patch()
	return p != nil && p.Heat != nil
}
