package main

import (
	"context"

	"github.com/nats-io/nats.go"
	"golang.org/x/sync/errgroup"

	"github.com/nearmiss/nearmiss/stream/control"
	"github.com/nearmiss/nearmiss/stream/steward"
)

type controlCmd struct {
	serverFlags
	httpFlag
}

func (*controlCmd) Help() string {
	return "Every change that people make goes through it: detectors, verdicts, training, which release is active. " +
		"It also keeps one detector's frames from taking the others' share of the queue. nearmiss up and nearmiss broker include it; run it beside a NATS server of your own. Several may run.\n\n" +
		examples("nearmiss control --server nats://nats.example.org:4222")
}

func (c *controlCmd) Run(ctx context.Context, o *output) error {
	return c.serve(ctx, "control", c.observed(), o, func(ctx context.Context, nc *nats.Conn, v *observer) error {
		s, err := control.New(nc, c.names(), o.Log)
		if err != nil {
			return usageError{oneLine(err)}
		}
		v.Connection(nc)
		v.begun("control", linked(nc))
		shares, err := steward.New(steward.Config{Names: c.names(), Remote: true}, nc, o.Log)
		if err != nil {
			return err
		}
		all, ctx := errgroup.WithContext(ctx)
		all.Go(func() error { return s.Run(ctx) })
		all.Go(func() error { return shares.Run(ctx) })
		return all.Wait()
	})
}
