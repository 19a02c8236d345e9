package control

import (
	"context"
	"errors"
	"maps"
	"time"

	"github.com/nearmiss/nearmiss/stream"
	"github.com/nearmiss/nearmiss/stream/internal/text"
	"github.com/nearmiss/nearmiss/stream/internal/wait"
)

// keepConsumers makes the consumers that [Service.create] could not, those of
// detectors that came with a backup or from an earlier version, and that of jobs,
// until ctx ends.
func (c *Service) keepConsumers(ctx context.Context) {
	made := map[string]bool{} // detectors; what is false is to be made
	jobs := false
	again := wait.Patient()
	logged := false
	for ctx.Err() == nil {
		step, cancel := context.WithTimeout(ctx, stream.RequestTime)
		err := c.makeConsumers(step, made)
		if !jobs {
			failed := c.in.EnsureJobsConsumer(step)
			jobs, err = failed == nil, errors.Join(err, failed)
		}
		cancel()
		wait := consumersEvery
		if err == nil {
			again.Reset()
			logged = false
		} else {
			wait = again.NextBackOff()
			if ctx.Err() == nil && !logged {
				logged = true
				c.log.Warn().Err(text.OneLine(err)).Msg("workers and trainers make their consumers themselves: until then what waits for them is not shown")
			}
		}
		select {
		case <-ctx.Done():
		case <-c.unmade:
		case <-time.After(wait):
		}
	}
}

// consumersEvery is how often detectors without a consumer are looked for.
const consumersEvery = 30 * time.Second

func (c *Service) makeConsumers(ctx context.Context, made map[string]bool) error {
	s, err := c.in.Detectors(ctx)
	if err != nil {
		return err
	}
	all, err := s.List(ctx)
	if err != nil {
		return err
	}
	there := map[string]bool{}
	var failed error
	for _, d := range all {
		there[d.Name] = true
		if made[d.Name] || ctx.Err() != nil {
			continue
		}
		err := c.in.EnsureFramesConsumer(ctx, d.Name)
		failed = errors.Join(failed, err)
		made[d.Name] = err == nil
	}
	maps.DeleteFunc(made, func(name string, _ bool) bool { return !there[name] })
	return failed
}
