package stream

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

// FramesConsumerConfig is the durable consumer from which every worker of a detector
// pulls. Tries are counted where frames are scored: a delivery is none.
func FramesConsumerConfig(n Names, detector string, ackWait time.Duration) jetstream.ConsumerConfig {
	return jetstream.ConsumerConfig{
		Durable: FramesConsumer(detector), Description: "workers of detector " + detector,
		FilterSubject: n.Frames(detector, "*"),
		AckPolicy:     jetstream.AckExplicitPolicy, AckWait: ackWait, MaxDeliver: -1,
		MaxAckPending: 10_000,
	}
}

// FrameAckWait is how long a worker may be silent about a frame that it has in hand.
const FrameAckWait = 10 * time.Second

// JobsConsumerConfig is the durable consumer from which every trainer pulls. Each
// takes one job at a time; the limit of unacknowledged messages is the limit of
// trainers at work, so it is not 1.
func JobsConsumerConfig(ackWait time.Duration) jetstream.ConsumerConfig {
	return jetstream.ConsumerConfig{
		Durable: "trainers", Description: "trainers",
		AckPolicy: jetstream.AckExplicitPolicy, AckWait: ackWait,
		// A job may lose its trainer as often as it gets on in between; the
		// attempts that count are in its record.
		MaxDeliver: -1, MaxAckPending: 1000,
	}
}

// JobAckWait is how long a trainer may be silent about its job.
const JobAckWait = 30 * time.Second

// EnsureJobsConsumer is ensureFramesConsumer for trainers.
func (in *Installation) EnsureJobsConsumer(ctx context.Context) error {
	_, err := in.js.CreateConsumer(ctx, in.names.TrainingStream(), JobsConsumerConfig(JobAckWait))
	if err != nil && !errors.Is(err, jetstream.ErrConsumerExists) {
		return fmt.Errorf("make the consumer of jobs: %w", err)
	}
	return nil
}

// EnsureFramesConsumer makes a detector's consumer of frames where there is none, so
// that what waits for workers can be seen, and workers be started for it, before the
// first of them comes. One that is there stays as its workers want it.
func (in *Installation) EnsureFramesConsumer(ctx context.Context, detector string) error {
	_, err := in.js.CreateConsumer(ctx, in.names.FramesStream(), FramesConsumerConfig(in.names, detector, FrameAckWait))
	if err != nil && !errors.Is(err, jetstream.ErrConsumerExists) {
		return fmt.Errorf("make the consumer of frames of detector %s: %w", detector, err)
	}
	return nil
}

// Leaderless is how long a request waits for an answer that a cluster without a
// leader does not give.
const Leaderless = 2 * time.Second
