package finetune

import (
	"math"
	"math/rand/v2"

	"github.com/nearmiss/nearmiss/inference/onnx"
)

// Dropout masks are not fed: those of a ViT-B would be 150 MB a step. Go draws
// one random number for every row (token) of every place, and the graph
// multiplies it with a fixed odd number for every column. The products, modulo
// 2³², are evenly distributed in each column and independent in the sense of
// multiplicative hashing along a row; those beyond a threshold are dropped.
// Source of the scheme: Knuth, The Art of Computer Programming 3, 6.4.

// dropout is where a network drops, and which part of a row of noise belongs to
// which place.
type dropout struct {
	p      float64
	offset map[string]int
	rows   map[string]int
	width  int // of the noise of one image
}

// findDropout lists the places by building the forward pass once.
func findDropout(n *network, p float64) (dropout, error) {
	d := dropout{p: p, offset: map[string]int{}, rows: map[string]int{}}
	if p == 0 || n.own == nil {
		return d, nil
	}
	g := onnx.New("dropout")
	size := n.own.Spec.Size
	_, err := n.forward(g, g.Input("image", onnx.Uint8, 1, size, size, 3), func(name string) *onnx.Value {
		for _, w := range n.weights {
			if w.Name == name {
				return g.Initializer(w)
			}
		}
		return nil
	}, func(x *onnx.Value, site string) *onnx.Value {
		d.offset[site] = d.width
		d.rows[site] = x.Elements() / x.Dim(-1)
		d.width += d.rows[site]
		return x
	})
	return d, err
}

// active reports whether there is anything to drop.
func (d dropout) active() bool { return d.width > 0 }

// in returns the hook that drops in g, with noise int64 [N, width].
func (d dropout) in(g *onnx.Graph, noise *onnx.Value) func(x *onnx.Value, site string) *onnx.Value {
	if !d.active() {
		return nil
	}
	noise = g.Cast(noise, onnx.Int32)
	// keep·2³² of the values lie above the threshold.
	threshold := int32(math.MinInt32 + int64(d.p*(1<<32)))
	return func(x *onnx.Value, site string) *onnx.Value {
		defer g.Scope("dropout/" + site)()
		n, cols := noise.Dim(0), x.Dim(-1)
		rows := g.Reshape(g.Slice(noise, 1, d.offset[site], d.offset[site]+d.rows[site]), n*d.rows[site], 1)
		hash := g.Mul(rows, g.Initializer(onnx.FromInt32("", columnKeys(cols), 1, cols)))
		kept := g.Op("Greater", nil, hash, g.Initializer(onnx.FromInt32("", []int32{threshold}, 1)))
		mask := g.Scale(g.Cast(kept, onnx.Float), 1/(1-d.p)) // Where would be slower
		return g.Mul(x, g.Reshape(mask, x.Shape()...))
	}
}

// columnKeys are the fixed odd multipliers.
func columnKeys(n int) []int32 {
	r := rand.New(rand.NewPCG(0x9E3779B97F4A7C15, 0xD1B54A32D192ED03))
	out := make([]int32, n)
	for i := range out {
		out[i] = int32(r.Uint32() | 1)
	}
	return out
}
