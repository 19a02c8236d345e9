package backbone

import (
	"fmt"
	"math"
	"slices"

	"github.com/nearmiss/nearmiss/inference/onnx"
)

// Resize fits a ViT or Hybrid to another square input by resampling its
// position embeddings as the weights' own code does, and the preprocessing to that
// size. ResNet and ConvNeXt take any size as they are.
func (m *Model) Resize(size int) error {
	old := m.Spec
	s := old
	s.Size = size
	if err := s.Validate(); err != nil {
		return fmt.Errorf("resize %s to %d px: %w", old.Name(), size, err)
	}
	weights := bicubicWeights
	switch {
	case m.Format == "npz":
		weights = linearWeights
	case m.dialect == dialectHFViT, m.dialect == dialectHFDINOv2:
		weights = plainWeights
	}
	if pos, ok := m.tensors["pos_embed"]; ok && s.grid() != old.grid() {
		m.put(resamplePositions(pos, s.posLead(), old.grid(), s.grid(), weights(old.grid(), s.grid())))
	}
	m.Spec = s
	usual, p := defaultPreprocess(old, m.Format), m.Preprocess
	if p.Resize == usual.Resize && !p.Squash {
		p.Resize = defaultPreprocess(s, m.Format).Resize
	} else {
		p.Resize = p.Resize * size / old.Size
	}
	p.Crop = size
	m.Preprocess = p
	return nil
}

// resamplePositions maps [1, lead + from², D] to [1, lead + to², D] by separable
// weights; the lead rows are kept.
func resamplePositions(t onnx.Tensor, lead, from, to int, weights []taps) onnx.Tensor {
	d := t.Shape[2]
	src := t.Float32s()
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

// bicubicWeights are timm's: those of torch's antialiased bicubic interpolation,
// which follows Pillow: a = −0.5, half-pixel centres, the support grows with the
// scale when shrinking, and weights outside the image are dropped and the rest
// normalised.
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
			t.w[j] = cubic((float64(lo+j)-center+0.5)/stretch, -0.5)
			sum += t.w[j]
		}
		for j := range t.w {
			t.w[j] /= sum
		}
		out[i] = t
	}
	return out
}

// plainWeights are those of Hugging Face's and DINOv2's code, torch's bicubic
// interpolation: a = −0.75, half-pixel centres, four taps, the border repeated.
func plainWeights(from, to int) []taps {
	out := make([]taps, to)
	for i := range out {
		center := (float64(i)+0.5)*float64(from)/float64(to) - 0.5
		base := int(math.Floor(center))
		lo, hi := max(0, base-1), min(from-1, base+2)
		t := taps{first: lo, w: make([]float64, hi-lo+1)}
		for j := base - 1; j <= base+2; j++ {
			t.w[min(max(j, lo), hi)-lo] += cubic(center-float64(j), -0.75)
		}
		out[i] = t
	}
	return out
}

// cubic is Keys' kernel.
func cubic(x, a float64) float64 {
	x = math.Abs(x)
	switch {
	case x < 1:
		return ((a+2)*x-(a+3))*x*x + 1
	case x < 2:
		return (((x-5)*x+8)*x - 4) * a
	}
	return 0
}

// linearWeights are those of the original ViT code for .npz files: linear between
// grids whose end points coincide (scipy's zoom of order 1).
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
