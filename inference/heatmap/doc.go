// Package heatmap turns one image's grid of patch distances into what a person
// can look at: intensities on the frame's own geometry, the regions where they
// are high, and pictures of both. It is arithmetic on small grids and knows
// neither models nor banks.
//
//	grid ─smooth─▶ distances ─Scale─▶ intensities ─Geometry─▶ Map ─▶ Regions, Overlay, Gray16, Sheet
//
// # The scale of intensities
//
// An intensity says how rare a distance is among the normals. With p the share
// of held-out normals' smoothed patch distances that are at least as large,
//
//	L = −log10 p          decades of rarity, 0 and above
//	I = L / (L + 3)       the intensity, 0 ≤ I < 1
//	p = 10^(−3·I/(1−I))   and back
//
// so that I = 0.5 is what one normal patch in a thousand shows, 0.4 one in a
// hundred, 0.25 one in ten. Above the largest held-out distances p goes on
// falling by as many decades a unit of distance as it did before: hotter stays
// hotter, and no intensity is cut off. See [Scale].
//
// In 16-bit maps 0 is a pixel without a value, which the model does not see, and
// v from 1 to 65535 is I = (v−1)/65534; in 8-bit ones v from 1 to 255 is
// I = (v−1)/254. See [Map.Gray16] and [Map.Sheet].
package heatmap
