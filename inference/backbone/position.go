package backbone

import (
	"fmt"
	"math"
	"slices"

	"github.com/nearmiss/nearmiss/inference/onnx"
)

// PositionResample is how position embeddings are fitted to another grid.
type PositionResample string

const (
	// BicubicPositions is what timm does: separable bicubic (a = −0.5), half-pixel
	// centres, antialiased when the grid shrinks.
	BicubicPositions PositionResample = "bicubic"
	// LinearPositions is what the original ViT code does for .npz files: linear
	// with the corners of both grids aligned (scipy's zoom of order 1).
	LinearPositions PositionResample = "linear"
)

// Resize fits a ViT or Hybrid to another square input by resampling its
// position embeddings, and the preprocessing to the family's default for that
// size, keeping mean and standard deviation. ResNet and ConvNeXt take any size
// as they are. how "" chooses by the weights' format.
func (m *Model) Resize(size int, how PositionResample) error {
	old := m.Spec
	s := old
	s.Size = size
	if err := s.Validate(); err != nil {
		return fmt.Errorf("resize %s to %d px: %w", old.Name(), size, err)
	}
	if how == "" {
		how = BicubicPositions
		if m.Format == "npz" {
			how = LinearPositions
		}
	}
	if how != BicubicPositions && how != LinearPositions {
		return fmt.Errorf("resize %s: position resampling %q is neither bicubic nor linear", old.Name(), how)
	}
	if pos, ok := m.tensors["pos_embed"]; ok && s.grid() != old.grid() {
		lead := 0
		if s.ClassPos {
			lead = 1
		}
		m.put(resamplePositions(pos, lead, old.grid(), s.grid(), how))
	}
	m.Spec = s
	p := DefaultPreprocess(s, m.Format)
	p.Mean, p.Std = m.Preprocess.Mean, m.Preprocess.Std
	m.Preprocess = p
	return nil
}

// resamplePositions maps [1, lead + from², D] to [1, lead + to², D]; the lead
// rows are kept.
func resamplePositions(t onnx.Tensor, lead, from, to int, how PositionResample) onnx.Tensor {
	d := t.Shape[2]
	src := t.Float32s()
	weights := bicubicWeights(from, to)
	if how == LinearPositions {
		weights = linearWeights(from, to)
	}
	// Columns first, then rows; float64 in between.
	mid := make([]float64, from*to*d)
	for y := range from {
		for x, ws := range weights {
			row := mid[(y*to+x)*d:][:d]
			for i, w := range ws.w {
				for c, v := range src[(lead+y*from+ws.first+i)*d:][:d] {
					row[c] += w * float64(v)
				}
			}
		}
	}
	out := make([]float32, (lead+to*to)*d)
	copy(out, src[:lead*d])
	acc := make([]float64, d)
	for y, ws := range weights {
		for x := range to {
			clear(acc)
			for i, w := range ws.w {
				for c, v := range mid[((ws.first+i)*to+x)*d:][:d] {
					acc[c] += w * v
				}
			}
			row := out[(lead+y*to+x)*d:][:d]
			for c, v := range acc {
				row[c] = float32(v)
			}
		}
	}
	shape := slices.Clone(t.Shape)
	shape[1] = lead + to*to
	return onnx.FromFloat32(t.Name, out, shape...)
}

// taps are the source positions that one output position reads.
type taps struct {
	first int
	w     []float64
}

// bicubicWeights are those of torch's antialiased bicubic interpolation, which
// follows Pillow: a = −0.5, the support grows with the scale when shrinking, and
// weights outside the image are dropped and the rest normalised.
func bicubicWeights(from, to int) []taps {
	scale := float64(from) / float64(to)
	stretch := max(scale, 1)
	out := make([]taps, to)
	for i := range out {
		center := (float64(i) + 0.5) * scale
		lo := max(0, int(center-2*stretch+0.5))
		hi := min(from, int(center+2*stretch+0.5))
		t := taps{first: lo, w: make([]float64, hi-lo)}
		sum := 0.0
		for j := range t.w {
			t.w[j] = cubic((float64(lo+j) - center + 0.5) / stretch)
			sum += t.w[j]
		}
		for j := range t.w {
			t.w[j] /= sum
		}
		out[i] = t
	}
	return out
}

// cubic is Keys' kernel with a = −0.5.
func cubic(x float64) float64 {
	const a = -0.5
	x = math.Abs(x)
	switch {
	case x < 1:
		return ((a+2)*x-(a+3))*x*x + 1
	case x < 2:
		return (((x-5)*x+8)*x - 4) * a
	}
	return 0
}

// linearWeights interpolate between grids whose end points coincide.
func linearWeights(from, to int) []taps {
	out := make([]taps, to)
	for i := range out {
		x := 0.0
		if to > 1 {
			x = float64(i) * float64(from-1) / float64(to-1)
		}
		lo := min(int(x), from-1)
		f := x - float64(lo)
		if f == 0 || lo == from-1 {
			out[i] = taps{lo, []float64{1}}
			continue
		}
		out[i] = taps{lo, []float64{1 - f, f}}
	}
	return out
}
