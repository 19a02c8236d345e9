package sde

import (
	"fmt"

	"github.com/nearmiss/nearmiss/inference/imaging"
	"github.com/nearmiss/nearmiss/training/optim"
)

// Step is a training step of a network and its batches, of black images, for
// those who measure what it costs. Nothing is written.
func Step(s SDE, n Network, o TrainOptions) (optim.Spec, optim.Source, error) {
	set, err := newSet(Pictures{imaging.New(n.Size, n.Size)}, n.Size, n.Channels)
	if err != nil {
		return optim.Spec{}, nil, fmt.Errorf("step of a score network: %w", err)
	}
	t, err := untrained(s, n, set, o)
	if err != nil {
		return optim.Spec{}, nil, fmt.Errorf("step of a score network: %w", err)
	}
	return t.spec(), newFeed(t), nil
}
