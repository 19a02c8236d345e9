package sde

import (
	"context"
	"fmt"

	"github.com/nearmiss/nearmiss/inference/imaging"
	"github.com/nearmiss/nearmiss/training/optim"
)

// Bench measures what a training step of a network costs, on black images.
// Nothing is written.
func Bench(ctx context.Context, s SDE, n Network, o TrainOptions, b optim.BenchOptions) (optim.BenchResult, error) {
	o, err := o.withDefaults(s)
	if err != nil {
		return optim.BenchResult{}, err
	}
	set, err := NewSet(Pictures{imaging.New(n.Size, n.Size)}, n.Size, n.Channels)
	if err != nil {
		return optim.BenchResult{}, fmt.Errorf("bench score network: %w", err)
	}
	t := &Trainer{sde: s, net: n, o: o, data: set}
	if t.fixed, err = n.Init(o.Seed); err != nil {
		return optim.BenchResult{}, err
	}
	return optim.Bench(ctx, t.spec(), newFeed(t), b)
}
