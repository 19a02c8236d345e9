package inference

import (
	"math"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/nearmiss/nearmiss/inference/onnx/lower"
)

// TestNoiseIsComparedWithWhatTellsImagesApart: of products whose results have a known
// spread between images, and a range of what comes in that makes a known noise.
func TestNoiseIsComparedWithWhatTellsImagesApart(t *testing.T) {
	const runs, rows, out = 400, 40, 8
	r := rand.New(rand.NewPCG(1, 1))
	p := &probing{}
	add := func(name string, width, gain, spread float64) {
		p.products = append(p.products, lower.Product{Name: name, Out: out, Gain: gain})
		p.found = append(p.found, probed{})
		f := &p.found[len(p.found)-1]
		results := make([]float32, rows*out)
		for range runs {
			for j := range results { // each has a mean of its own, which tells nothing
				results[j] = float32(100*math.Sin(float64(j)) + spread*r.NormFloat64())
			}
			f.add(width, results, out)
		}
	}
	step := math.Sqrt(12) // a noise of 1
	add("quiet", 255*step*0.05, 1, 1)
	add("loud", 255*step*0.2, 1, 1)
	add("loud by its weights", 255*step*0.05, 25, 1)
	add("loud beside little", 255*step*0.05, 1, 0.1)
	for i := range 20 { // products of which nothing is to be said
		add("constant", 255, 1+float64(i), 0)
	}
	for i, want := range []float64{0.0025, 0.04, 0.0625, 0.25, 0} {
		if got := p.found[i].share(p.products[i].Gain); !(math.Abs(got-want) <= 0.1*want) {
			t.Errorf("%s: the noise is %v of the variance, want %v", p.products[i].Name, got, want)
		}
	}
	if got, want := p.spoilt(), []string{"loud beside little", "loud by its weights", "loud"}; !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
	p.products, p.found = p.products[1:9], p.found[1:9]
	if got, want := p.spoilt(), []string{"loud beside little"}; !slices.Equal(got, want) {
		t.Errorf("of eight products: %q, want %q", got, want)
	}
	one := probed{}
	one.add(1e6, make([]float32, out), out)
	if got := one.share(1); got != 0 {
		t.Errorf("of one run: %v", got)
	}
}
