package heatmap

import (
	"cmp"
	"slices"
)

// Region is a connected part of a frame that is hot.
type Region struct {
	X      int     `json:"x"`      // left column of the box
	Y      int     `json:"y"`      // top row of the box
	Width  int     `json:"width"`  // of the box, pixels
	Height int     `json:"height"` // of the box, pixels
	Area   int     `json:"area"`   // pixels that belong to it
	Peak   float64 `json:"peak"`   // its highest intensity
	// Faint marks a region that is no hotter than what many normals show: the
	// hottest place of an image that has no other.
	Faint bool `json:"faint,omitempty"`
}

// Regions are the connected parts, over edges and corners, whose pixels are all
// above the threshold, hottest first.
func (m *Map) Regions(threshold float64) []Region {
	type run struct{ from, to, parent int } // columns from..to-1 of one row
	var runs []run
	var found []Region // by the run that is its root
	root := func(i int) int {
		for runs[i].parent != i {
			runs[i].parent = runs[runs[i].parent].parent
			i = runs[i].parent
		}
		return i
	}
	line := make([]float32, m.Width)
	above := 0 // first run of the row above
	for y := m.rect.Min.Y; y < m.rect.Max.Y; y++ {
		m.row(line, y, -1)
		here := len(runs)
		touch := above
		for x := 0; x < m.Width; x++ {
			if !(float64(line[x]) > threshold) || line[x] < 0 {
				continue
			}
			from, peak := x, line[x]
			for ; x < m.Width && float64(line[x]) > threshold && line[x] >= 0; x++ {
				peak = max(peak, line[x])
			}
			i := len(runs)
			runs = append(runs, run{from, x, i})
			found = append(found, Region{X: from, Y: y, Width: x - from, Height: 1, Area: x - from, Peak: float64(peak)})
			for touch < here && runs[touch].to < from { // a corner at to == from touches
				touch++
			}
			for j := touch; j < here && runs[j].from <= x; j++ {
				a, b := root(j), root(i)
				if a != b {
					runs[b].parent = a
					found[a] = union(found[a], found[b])
				}
			}
		}
		above = here
	}
	var out []Region
	for i := range runs {
		if runs[i].parent == i {
			out = append(out, found[i])
		}
	}
	slices.SortStableFunc(out, func(a, b Region) int {
		return cmp.Or(cmp.Compare(b.Peak, a.Peak), cmp.Compare(b.Area, a.Area))
	})
	return out
}

func union(a, b Region) Region {
	x, y := min(a.X, b.X), min(a.Y, b.Y)
	return Region{
		X: x, Y: y, Width: max(a.X+a.Width, b.X+b.Width) - x, Height: max(a.Y+a.Height, b.Y+b.Height) - y,
		Area: a.Area + b.Area, Peak: max(a.Peak, b.Peak),
	}
}

// Find are at most limit regions above the scale's threshold. Where there is
// none it is the hottest place, as far as nine tenths of its peak reach, marked
// as faint: an image may be called anomalous as a whole.
func (m *Map) Find(limit int) []Region {
	all := m.Regions(m.threshold)
	if len(all) == 0 {
		if peak, _, _, ok := m.Peak(); ok && peak > 0 {
			all = m.Regions(0.9 * float64(peak))[:1]
			all[0].Faint = true
		}
	}
	return all[:min(limit, len(all))]
}
