package training

import (
	"context"
	"fmt"
	"math"

	"github.com/nearmiss/nearmiss/inference"
	"github.com/nearmiss/nearmiss/training/finetune"
)

// linearProbe fits the head on the frozen backbone's embeddings, so that the
// fine-tune starts from a head that knows where to pull (linear probing, then
// fine-tuning: Kumar et al. 2022).
func (run *tuningRun) linearProbe(ctx context.Context) (*finetune.Head, error) {
	single := Model{} // single images are trained on, whatever the symmetry
	e, err := inference.NewEmbedder(run.plan.Model.Backbone, run.plan.Host.embed(run.plan.Data, single))
	if err != nil {
		return nil, err
	}
	defer e.Close()
	normals, err := embedSet(ctx, e, run.matched(run.fit))
	if err != nil {
		return nil, fmt.Errorf("fit the head: %w", err)
	}
	fakes, err := embedSet(ctx, e, run.fakes.fit)
	if err != nil {
		return nil, fmt.Errorf("fit the head: %w", err)
	}
	return logistic(normals, fakes, e.Dim(), run.plan.Tuning.Probe), nil
}

func embedSet(ctx context.Context, e *inference.Embedder, set finetune.Set) ([]float32, error) {
	const chunk = 32 // images in memory at a time
	var rows []float32
	for lo := 0; lo < set.Len(); lo += chunk {
		images, err := picturesOf(set, lo, min(lo+chunk, set.Len()))
		if err != nil {
			return nil, err
		}
		vectors, err := e.Vectors(ctx, images)
		if err != nil {
			return nil, err
		}
		for _, v := range vectors {
			rows = append(rows, v...)
		}
	}
	return rows, nil
}

// logistic fits a linear classifier, 0 for the rows of a and 1 for those of b,
// both sides weighing the same, with a penalty on the squared weights of
// embeddings that are centred and scaled to a mean squared norm of 1. It returns
// the head for embeddings as they are.
func logistic(a, b []float32, dim int, penalty float64) *finetune.Head {
	n, m := len(a)/dim, len(b)/dim
	rows := make([]float64, 0, len(a)+len(b))
	for _, part := range [][]float32{a, b} {
		for _, v := range part {
			rows = append(rows, float64(v))
		}
	}
	mean := make([]float64, dim)
	for i, v := range rows {
		mean[i%dim] += v / float64(n+m)
	}
	square := 0.0
	for i := range rows {
		rows[i] -= mean[i%dim]
		square += rows[i] * rows[i] / float64(n+m)
	}
	scale := 1 / math.Sqrt(max(square, 1e-12))
	w, gradient := make([]float64, dim), make([]float64, dim)
	bias := 0.0
	// The loss is smooth with a curvature of at most (1 + 1)/4 plus the penalty,
	// so this step size converges.
	rate := 1 / (0.5 + penalty)
	for range 500 {
		for j := range gradient {
			gradient[j] = penalty * w[j]
		}
		slope := 0.0
		for i := range n + m {
			z := bias
			row := rows[i*dim : (i+1)*dim]
			for j, v := range row {
				z += w[j] * v * scale
			}
			r := 1 / (1 + math.Exp(-z)) // probability of b
			weight := 0.5 / float64(n)
			if i >= n {
				r--
				weight = 0.5 / float64(m)
			}
			slope += weight * r
			for j, v := range row {
				gradient[j] += weight * r * v * scale
			}
		}
		for j, g := range gradient {
			w[j] -= rate * g
		}
		bias -= rate * slope
	}
	h := &finetune.Head{Weight: make([]float32, 2*dim), Bias: make([]float32, 2)}
	for j, v := range w {
		h.Weight[j], h.Weight[dim+j] = float32(-v*scale/2), float32(v*scale/2)
		bias -= v * scale * mean[j]
	}
	h.Bias[0], h.Bias[1] = float32(-bias/2), float32(bias/2)
	return h
}
