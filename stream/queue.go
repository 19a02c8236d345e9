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

// EnsureJobsConsumer is [Installation.EnsureFramesConsumer] for trainers.
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

// WaitingFrames counts the frames of a detector's camera ("*": of all) in the queue.
func (in *Installation) WaitingFrames(ctx context.Context, detector, camera string) (uint64, error) {
	n, err := perDetector(ctx, in.js, in.names.FramesStream(), in.names.Frames(detector, camera), func(string) (string, bool) { return "", true })
	if err != nil {
		return 0, fmt.Errorf("count the frames of %s: %w", detector, err)
	}
	return n[""], nil
}

// Shed drops the oldest waiting frames of a detector's camera ("*": of all) until
// keep are left, and returns how many went.
func (in *Installation) Shed(ctx context.Context, detector, camera string, keep int) (uint64, error) {
	s, err := in.js.Stream(ctx, in.names.FramesStream())
	if err != nil {
		return 0, fmt.Errorf("find stream %s: %w", in.names.FramesStream(), err)
	}
	before, err := in.WaitingFrames(ctx, detector, camera)
	if err != nil || before <= uint64(keep) {
		return 0, err
	}
	if err := s.Purge(ctx, jetstream.WithPurgeSubject(in.names.Frames(detector, camera)), jetstream.WithPurgeKeep(uint64(keep))); err != nil {
		return 0, fmt.Errorf("drop old frames of %s: %w", detector, err)
	}
	after, err := in.WaitingFrames(ctx, detector, camera)
	if err != nil || after >= before {
		return 0, err
	}
	return before - after, nil
}
