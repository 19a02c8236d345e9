// Package heatmap turns one image's grid of patch distances into what a person
// can look at: intensities on the frame's own geometry, the regions where they
// are high, and pictures of both. It is pure arithmetic on small grids and knows
// neither models nor banks.
package heatmap
