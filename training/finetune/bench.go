package finetune

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"

	"github.com/nearmiss/nearmiss/inference/imaging"
	"github.com/nearmiss/nearmiss/training/optim"
)

// Bench measures what a step of the fine-tune of cfg costs, on noise where cfg
// has no images. Of cfg, Backbone, Recipe and Session count; nothing is written.
func Bench(ctx context.Context, cfg Config, o optim.BenchOptions) (optim.BenchResult, error) {
	r := &runner{Config: cfg}
	res, err := r.bench(ctx, o)
	if err = errors.Join(err, r.close()); err != nil {
		return res, fmt.Errorf("bench the fine-tune of %s: %w", cfg.Backbone, err)
	}
	return res, nil
}

func (r *runner) bench(ctx context.Context, o optim.BenchOptions) (res optim.BenchResult, err error) {
	if err := r.Recipe.Validate(); err != nil {
		return res, err
	}
	if r.net, err = openNetwork(r.Backbone, r.Recipe.micro()); err != nil {
		return res, err
	}
	if r.drop, err = findDropout(r.net, r.Recipe.Dropout); err != nil {
		return res, err
	}
	spec, err := r.spec()
	if err != nil {
		return res, err
	}
	normals, fakes := r.Normals, r.Fakes
	if normals == nil {
		normals, fakes = noise(r.net.pre.Crop, r.Recipe.Batch), noise(r.net.pre.Crop, r.Recipe.Batch)
	}
	return optim.Bench(ctx, spec, r.newFeeder(normals, fakes, false), o)
}

// noise is n images of random pixels.
func noise(size, n int) Pictures {
	r := rand.New(rand.NewPCG(1, 2))
	out := make(Pictures, n)
	for i := range out {
		out[i] = imaging.New(size, size)
		for j := range out[i].Pix {
			out[i].Pix[j] = uint8(r.Uint32())
		}
	}
	return out
}
