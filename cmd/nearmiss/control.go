package main

import (
	"context"

	"github.com/nearmiss/nearmiss/stream/control"
)

type controlCmd struct {
	serverFlags
	httpFlag
}

func (*controlCmd) Help() string {
	return "All that people change goes through it: detectors, verdicts, training, which release is active. " +
		"nearmiss up and nearmiss broker do this, too: it is for a NATS server of your own. Several may run.\n\n" +
		examples("nearmiss control --server nats://nats.example.org:4222")
}

func (c *controlCmd) Run(ctx context.Context, o *output) error {
	return observe(ctx, httpConfig{Listen: c.HTTP}, o, []string{"control"}, func(ctx context.Context, v *observer) error {
		nc, err := c.await("control", o)
		if err != nil {
			return err
		}
		defer nc.Close()
		s, err := control.New(nc, c.names(), o.Log)
		if err != nil {
			return usageError{oneLine(err)}
		}
		v.Connection(nc)
		v.begun("control", linked(nc))
		return s.Run(ctx)
	})
}
