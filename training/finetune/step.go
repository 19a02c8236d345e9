package finetune

import (
	"errors"
	"fmt"
	"math/rand/v2"

	"github.com/nearmiss/nearmiss/inference/imaging"
	"github.com/nearmiss/nearmiss/training/optim"
)

// Step is a step of the fine-tune of cfg and its batches, of noise where cfg has
// no images, for those who measure what it costs. Of cfg, Backbone, Recipe,
// Session and Recompute count; nothing is written. The step is valid until
// closed.
func Step(cfg Config) (spec optim.Spec, src optim.Source, closeAll func() error, err error) {
	r := &runner{Config: cfg}
	if spec, src, err = r.step(); err != nil {
		return optim.Spec{}, nil, nil, errors.Join(fmt.Errorf("step of the fine-tune of %s: %w", cfg.Backbone, err), r.close())
	}
	return spec, src, r.close, nil
}

func (r *runner) step() (spec optim.Spec, src optim.Source, err error) {
	if err := r.Recipe.Validate(); err != nil {
		return spec, nil, err
	}
	if err := r.openNetwork(); err != nil {
		return spec, nil, err
	}
	if r.drop, err = findDropout(r.net, r.Recipe.Dropout); err != nil {
		return spec, nil, err
	}
	if spec, err = r.spec(); err != nil {
		return spec, nil, err
	}
	normals, fakes := r.Normals, r.Fakes
	if normals == nil {
		normals, fakes = noise(r.net.pre.Crop, r.Recipe.Batch), noise(r.net.pre.Crop, r.Recipe.Batch)
	}
	return spec, r.newFeeder(normals, fakes, false), nil
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
