package sde

import (
	"fmt"

	"github.com/nearmiss/nearmiss/inference/imaging"
	"github.com/nearmiss/nearmiss/training/optim"
)

// Step is a training step of a network and its batches, of black images, for
// those who measure what it costs. Nothing is written.
func Step(s SDE, n Network, o TrainOptions) (optim.Spec, optim.Source, error) {
	fail := func(err error) (optim.Spec, optim.Source, error) {
		return optim.Spec{}, nil, fmt.Errorf("step of a score network: %w", err)
	}
	o, err := o.withDefaults(s)
	if err != nil {
		return fail(err)
	}
	set, err := newSet(Pictures{imaging.New(n.Size, n.Size)}, n.Size, n.Channels)
	if err != nil {
		return fail(err)
	}
	t := &Trainer{sde: s, net: n, o: o, data: set}
	if t.fixed, err = n.Init(o.Seed); err != nil {
		return fail(err)
	}
	return t.spec(), newFeed(t), nil
}
