package heatmap

import (
	"fmt"
	"slices"
)

// Grid is one image's patches, rows first: the value of column x and row y is
// at Values[y*Width+x]. It holds squared patch distances (≥ 0), or intensities.
type Grid struct {
	Width, Height int // patches across and down
	Values        []float32
}

// NewGrid returns a grid of width × height zeros.
func NewGrid(width, height int) Grid {
	return Grid{Width: width, Height: height, Values: make([]float32, width*height)}
}

// Excess is by how much each value is above the grid's median, and 0 where it is
// not: what a place has that most of the picture has not.
func (g Grid) Excess() Grid {
	out := NewGrid(g.Width, g.Height)
	middle := slices.Sorted(slices.Values(g.Values))[len(g.Values)/2]
	for i, v := range g.Values {
		if v > middle {
			out.Values[i] = v - middle
		}
	}
	return out
}

// Validate checks that the sizes are positive and fit the values.
func (g Grid) Validate() error {
	if g.Width < 1 || g.Height < 1 || len(g.Values) != g.Width*g.Height {
		return fmt.Errorf("heatmap: a grid of %d×%d patches has %d values", g.Width, g.Height, len(g.Values))
	}
	return nil
}
