package inference

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math"
	"slices"

	"github.com/nearmiss/nearmiss/inference/onnx/lower"
	"github.com/nearmiss/nearmiss/inference/ort"
)

const (
	// mostNoise is how much of the variance that a product's results have between images
	// the noise of 8 bits may come to: a tenth of their spread. Of ViT-Ti's products one
	// is far above it (1.0 to 2.4 on four sets), since one of its 768 inputs is up to
	// forty times as large as the others; the next one has 0.013 on tires, and all others
	// are below 0.013 there and 0.007 on the other sets.
	mostNoise = 0.01
	// mostFloat is the share of the products that stay in 32 bits at most: so much
	// speed may be given up.
	mostFloat = 1.0 / 8
	// probedRows are the rows of a product's results, spread over all, that are compared.
	probedRows = 16
)

// SpoiltByInt8 finds the products of the backbone at path whose results 8 bits would
// spoil, as EmbedOptions.FloatProducts takes them, the worst first: where one number of
// all that comes in is far larger than the others, the 256 steps that they share are
// coarse for these, and their noise is no longer small beside what tells images apart.
// The noise of a step of 1 is 1/12. At least two images must be of use.
func SpoiltByInt8(ctx context.Context, path string, o EmbedOptions, images [][]byte) (names []string, err error) {
	p := &probing{}
	o.Precision, o.FloatProducts, o.Patches, o.Threads, o.Batch = "", nil, nil, 1, 1
	o.Device.Graph = false // p is one model
	e, err := newEmbedder(path, o, p.open)
	if err != nil {
		return nil, fmt.Errorf("find what 8 bits spoil in %s: %w", path, err)
	}
	defer func() { err = errors.Join(err, e.Close()) }()
	p.forget() // the probe with a black image
	if _, err := e.Embed(ctx, images); err != nil {
		return nil, err
	}
	return p.spoilt(), nil
}

// probing is a model that gathers what its products take in and give. One run at a time.
type probing struct {
	session
	products []lower.Product
	found    []probed
}

// probed is what was seen of a product.
type probed struct {
	runs        int
	noise       float64   // of what comes in, the sum over runs
	sum, square []float64 // of the results, over runs
}

func (p *probing) open(path, _ string, _ []string, o ort.Options) (_ session, err error) {
	model, products, err := lower.Int8Probe(path)
	if err != nil {
		return nil, err
	}
	p.products = products
	p.session, err = ort.OpenBytes(model, o)
	return p, err
}

func (p *probing) forget() { p.found = make([]probed, len(p.products)) }

// Outputs are the model's own.
func (p *probing) Outputs() []ort.Info {
	all := p.session.Outputs()
	return all[:len(all)-3*len(p.products)]
}

func (p *probing) RunInto(ctx context.Context, in, out []*ort.Tensor) error {
	all := append(slices.Clone(out), make([]*ort.Tensor, 3*len(p.products))...)
	if err := p.session.RunInto(ctx, in, all); err != nil {
		return err
	}
	copy(out, all)
	more := all[len(out):]
	defer ort.CloseAll(more...)
	if p.found == nil {
		p.forget()
	}
	for i, q := range p.products {
		least, largest := more[3*i].Float32s()[0], more[3*i+1].Float32s()[0]
		p.found[i].add(float64(max(largest, 0))-float64(min(least, 0)), more[3*i+2].Float32s(), q.Out)
	}
	return nil
}

// add counts a run: the range of what came in, and the results, rows of so many numbers.
func (f *probed) add(width float64, results []float32, out int) {
	rows := len(results) / out
	some := min(rows, probedRows)
	if f.sum == nil {
		f.sum, f.square = make([]float64, some*out), make([]float64, some*out)
	}
	f.runs++
	f.noise += math.Pow(width/255, 2) / 12
	for r := range some {
		for j, v := range results[r*rows/some*out:][:out] {
			f.sum[r*out+j] += float64(v)
			f.square[r*out+j] += float64(v) * float64(v)
		}
	}
}

// share is the noise of the results of a product in the variance that they have between
// runs.
func (f *probed) share(gain float64) float64 {
	n, variance, size := float64(f.runs), 0.0, 0.0
	for i, s := range f.sum {
		variance += f.square[i] - s*s/n
		size += f.square[i]
	}
	if n < 2 || !(variance > 1e-9*size) {
		return 0 // they do not differ
	}
	return f.noise / n * gain * float64(len(f.sum)) * (n - 1) / variance
}

// spoilt are the names of the products with too much noise.
func (p *probing) spoilt() (names []string) {
	type named struct {
		name  string
		share float64
	}
	var bad []named
	for i, q := range p.products {
		if share := p.found[i].share(q.Gain); share > mostNoise {
			bad = append(bad, named{q.Name, share})
		}
	}
	slices.SortStableFunc(bad, func(a, b named) int { return cmp.Compare(b.share, a.share) })
	for _, b := range bad[:min(len(bad), int(math.Ceil(mostFloat*float64(len(p.products)))))] {
		names = append(names, b.name)
	}
	return names
}
