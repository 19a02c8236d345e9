package finetune

import (
	"context"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"

	"github.com/nearmiss/nearmiss/inference/backbone"
	"github.com/nearmiss/nearmiss/inference/onnx"
	"github.com/nearmiss/nearmiss/inference/ort"
)

// export writes the trained weights into a copy of the backbone's file and
// checks that it serves what was trained, before it gets its name.
func (r *runner) export(ctx context.Context) error {
	trained := map[string]bool{}
	for _, name := range r.trainer.Trained() {
		trained[name] = true
	}
	all, err := r.trainer.Weights()
	if err != nil {
		return err
	}
	var tuned []onnx.Tensor
	for _, w := range all {
		switch w.Name {
		case HeadWeight:
			r.result.Head.Weight = w.Float32s()
		case HeadBias:
			r.result.Head.Bias = w.Float32s()
		default:
			if trained[w.Name] {
				tuned = append(tuned, w)
			}
		}
	}
	// In the folder of Out, since external data must lie beside the model.
	next := r.Out + ".next"
	defer os.Remove(next)
	if err := backbone.ReplaceWeights(r.Backbone, next, tuned); err != nil {
		return err
	}
	images, err := r.checkImages()
	if err != nil {
		return err
	}
	want, err := r.trainedEmbeddings(ctx, images, all, trained)
	if err != nil {
		return err
	}
	got, err := r.embed(ctx, next, images, nil)
	if err != nil {
		return err
	}
	r.result.ServedDifference = scoreDifference(want, got, len(images))
	if !(r.result.ServedDifference <= MaxDifference) {
		return fmt.Errorf("%w: scores differ by %.2g relative, more than %.0g", ErrServed, r.result.ServedDifference, MaxDifference)
	}
	return os.Rename(next, r.Out)
}

// checkImages are middle crops of normals and fakes.
func (r *runner) checkImages() ([][]uint8, error) {
	const each = 8
	f := feeder{pre: r.net.pre, normals: r.feed.normals, fakes: r.feed.fakes, middle: true}
	var out [][]uint8
	for _, fake := range []bool{false, true} {
		n := f.normals.set.Len()
		if fake {
			n = f.fakes.set.Len()
		}
		for i := range min(each, n) {
			dst := make([]uint8, f.pre.Bytes())
			if err := f.view(dst, example{fake, i * n / min(each, n)}, 0); err != nil {
				return nil, err
			}
			out = append(out, dst)
		}
	}
	return out, nil
}

// trainedEmbeddings runs the forward pass as in training: trained weights are
// inputs of the graph.
func (r *runner) trainedEmbeddings(ctx context.Context, images [][]uint8, weights []onnx.Tensor, trained map[string]bool) ([]float32, error) {
	n, side := r.part, r.net.pre.Crop
	g := onnx.New("check")
	image := g.Input(inputImage, onnx.Uint8, n, side, side, 3)
	values := map[string]*onnx.Value{}
	var in []*ort.Tensor
	defer func() { ort.CloseAll(in...) }()
	for _, w := range weights {
		if !trained[w.Name] || w.Name == HeadWeight || w.Name == HeadBias {
			continue
		}
		values[w.Name] = g.Input(w.Name, onnx.Float, w.Shape...)
		t, err := ort.NewTensor(w.Shape, w.Float32s())
		if err != nil {
			return nil, err
		}
		in = append(in, t)
	}
	f, err := r.net.forward(g, image, func(name string) *onnx.Value {
		if v := values[name]; v != nil {
			return v
		}
		i := slices.IndexFunc(weights, func(w onnx.Tensor) bool { return w.Name == name })
		values[name] = g.Initializer(weights[i])
		return values[name]
	}, nil)
	if err != nil {
		return nil, err
	}
	g.Output(backbone.OutputEmbedding, f)
	dir, err := os.MkdirTemp("", "nearmiss-check-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	path := filepath.Join(dir, "check.onnx")
	if err := g.WriteFile(path); err != nil {
		return nil, err
	}
	return r.embed(ctx, path, images, in)
}

// embed runs a model over the images in batches of the training's size.
func (r *runner) embed(ctx context.Context, path string, images [][]uint8, weights []*ort.Tensor) ([]float32, error) {
	s, err := ort.Open(path, r.Session)
	if err != nil {
		return nil, err
	}
	defer s.Close()
	at := slices.IndexFunc(s.Outputs(), func(o ort.Info) bool { return o.Name == backbone.OutputEmbedding })
	n, side := r.part, r.net.pre.Crop
	var out []float32
	for i := 0; i < len(images); i += n {
		batch := make([]uint8, n*r.net.pre.Bytes())
		count := min(n, len(images)-i)
		for j := range count {
			copy(batch[j*r.net.pre.Bytes():], images[i+j])
		}
		x, err := ort.NewTensor([]int{n, side, side, 3}, batch)
		if err != nil {
			return nil, err
		}
		y, err := s.Run(ctx, append([]*ort.Tensor{x}, weights...))
		x.Close()
		if err != nil {
			return nil, err
		}
		f := y[at].Float32s()
		out = append(out, f[:count*len(f)/n]...)
		ort.CloseAll(y...)
	}
	return out, nil
}

// scoreDifference compares the scores of n images, each against the others as
// its bank (k = 2, sum of squared distances), under two sets of embeddings: the
// largest difference, relative to the score or, for images that nearly are
// copies of others, to the median score.
func scoreDifference(a, b []float32, n int) float64 {
	if n < 2 || len(a) != len(b) || len(a)%n != 0 {
		return math.Inf(1)
	}
	worst := 0.0
	x, y := scores(a, n), scores(b, n)
	sorted := slices.Sorted(slices.Values(x))
	median := sorted[n/2]
	for i := range x {
		if x[i] == y[i] {
			continue
		}
		// NaN compares as different.
		if d := math.Abs(x[i]-y[i]) / max(x[i], median); !(d <= worst) {
			worst = d
		}
	}
	return worst
}

func scores(rows []float32, n int) []float64 {
	dim := len(rows) / n
	out := make([]float64, n)
	for i := range out {
		var ds []float64
		for j := range n {
			if j == i {
				continue
			}
			d := 0.0
			for k := range dim {
				v := float64(rows[i*dim+k]) - float64(rows[j*dim+k])
				d += v * v
			}
			ds = append(ds, d)
		}
		slices.Sort(ds)
		for _, d := range ds[:min(2, len(ds))] {
			out[i] += d
		}
	}
	return out
}
