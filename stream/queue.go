package stream

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

// framesConsumerConfig is the durable consumer from which every worker of a detector
// pulls. Tries are counted where frames are scored: a delivery is none.
func framesConsumerConfig(n Names, detector string, ackWait time.Duration) jetstream.ConsumerConfig {
	return jetstream.ConsumerConfig{
		Durable: framesConsumer(detector), Description: "workers of detector " + detector,
		FilterSubject: n.Frames(detector, "*"),
		AckPolicy:     jetstream.AckExplicitPolicy, AckWait: ackWait, MaxDeliver: -1,
		MaxAckPending: 10_000,
	}
}

// frameAckWait is how long a worker may be silent about a frame that it has in hand.
const frameAckWait = 10 * time.Second

// jobsConsumerConfig is the durable consumer from which every trainer pulls. Each
// takes one job at a time; the limit of unacknowledged messages is the limit of
// trainers at work, so it is not 1.
func jobsConsumerConfig(ackWait time.Duration) jetstream.ConsumerConfig {
	return jetstream.ConsumerConfig{
		Durable: "trainers", Description: "trainers",
		AckPolicy: jetstream.AckExplicitPolicy, AckWait: ackWait,
		// A job may lose its trainer as often as it gets on in between; the
		// attempts that count are in its record.
		MaxDeliver: -1, MaxAckPending: 1000,
	}
}

// jobAckWait is how long a trainer may be silent about its job.
const jobAckWait = 30 * time.Second

// ensureJobsConsumer is ensureFramesConsumer for trainers.
func (in *Installation) ensureJobsConsumer(ctx context.Context) error {
	_, err := in.js.CreateConsumer(ctx, in.names.TrainingStream(), jobsConsumerConfig(jobAckWait))
	if err != nil && !errors.Is(err, jetstream.ErrConsumerExists) {
		return fmt.Errorf("make the consumer of jobs: %w", err)
	}
	return nil
}

// ensureFramesConsumer makes a detector's consumer of frames where there is none, so
// that what waits for workers can be seen, and workers be started for it, before the
// first of them comes. One that is there stays as its workers want it.
func (in *Installation) ensureFramesConsumer(ctx context.Context, detector string) error {
	_, err := in.js.CreateConsumer(ctx, in.names.FramesStream(), framesConsumerConfig(in.names, detector, frameAckWait))
	if err != nil && !errors.Is(err, jetstream.ErrConsumerExists) {
		return fmt.Errorf("make the consumer of frames of detector %s: %w", detector, err)
	}
	return nil
}

// keepConsumers makes the consumers that [Control.create] could not, those of
// detectors that came with a backup or from an earlier version, and that of jobs,
// until ctx ends.
func (c *Control) keepConsumers(ctx context.Context) {
	made := map[string]bool{} // detectors; what is false is to be made
	jobs := false
	again := patient()
	told := false
	for ctx.Err() == nil {
		step, cancel := context.WithTimeout(ctx, requestTime)
		err := c.makeConsumers(step, made)
		if !jobs {
			failed := c.in.ensureJobsConsumer(step)
			jobs, err = failed == nil, errors.Join(err, failed)
		}
		cancel()
		wait := consumersEvery
		if err == nil {
			again.Reset()
			told = false
		} else {
			wait = again.NextBackOff()
			if ctx.Err() == nil && !told {
				told = true
				c.log.Warn().Err(oneLine(err)).Msg("workers and trainers make their consumers themselves: until then nobody sees what waits for them")
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

func (c *Control) makeConsumers(ctx context.Context, made map[string]bool) error {
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
		err := c.in.ensureFramesConsumer(ctx, d.Name)
		failed = errors.Join(failed, err)
		made[d.Name] = err == nil
	}
	for name := range made {
		if !there[name] {
			delete(made, name)
		}
	}
	return failed
}
