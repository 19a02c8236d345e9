package stream

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/rs/zerolog"

	"github.com/nearmiss/nearmiss/stream/internal/pull"
	"github.com/nearmiss/nearmiss/stream/internal/wait"
)

// WatchConfig says which events are wanted.
type WatchConfig struct {
	Names
	Detector string // empty: of all detectors
	Kind     string // [KindAnomaly] and so on; empty: of all kinds
	// Durable names a subscription that the broker remembers: events that come
	// while nobody watches are delivered at the next watch, and each is
	// delivered until it has been handled. Empty: events from now on, or from
	// Since, to this watch only.
	Durable string
	// Since is the time of the first event that is wanted; zero: now.
	Since time.Time
	// Live takes events as they are published, without the broker's store: no
	// Durable, no Since, and what comes while the connection is away is missed.
	// It needs no more than the right to subscribe.
	Live bool
}

// Durable says which events a durable subscription is for.
type Durable struct {
	Names
	Name     string
	Detector string   // empty: of all detectors
	Kinds    []string // empty: of all kinds
}

// EnsureDurable makes the consumer of [Watch]'s durable subscription for a
// client that may not make it itself. It begins with the events that come next.
func EnsureDurable(ctx context.Context, js jetstream.JetStream, d Durable) error {
	filters := []string{d.Events(cmp.Or(d.Detector, "*"), "*", "*")}
	if len(d.Kinds) > 0 {
		filters = nil
		for _, k := range d.Kinds {
			filters = append(filters, d.Events(cmp.Or(d.Detector, "*"), "*", k))
		}
	}
	_, err := js.CreateConsumer(ctx, d.EventsStream(), durableConfig(d.Name, filters, jetstream.DeliverNewPolicy, nil))
	if errors.Is(err, jetstream.ErrConsumerExists) {
		return nil // with another start or filter: its reader's place must not be lost
	}
	if err != nil {
		return fmt.Errorf("make the durable subscription %s: %w", d.Name, err)
	}
	return nil
}

func durableConfig(name string, filters []string, policy jetstream.DeliverPolicy, start *time.Time) jetstream.ConsumerConfig {
	return jetstream.ConsumerConfig{
		Durable: "watch-" + name, FilterSubjects: filters, DeliverPolicy: policy, OptStartTime: start,
		AckPolicy: jetstream.AckExplicitPolicy, AckWait: durableWait, MaxAckPending: 1,
	}
}

// Watch calls handle for every event, in order, until ctx ends, which is no
// error. With a durable subscription, an event for which handle returns an error
// comes again; without one the error ends the watch. Messages that are no
// events are logged and skipped.
func Watch(ctx context.Context, nc *nats.Conn, cfg WatchConfig, log zerolog.Logger, handle func(context.Context, Event) error) error {
	if err := cfg.Validate(); err != nil {
		return err
	}
	for what, s := range map[string]string{"detector": cfg.Detector, "kind": cfg.Kind, "subscription": cfg.Durable} {
		if s != "" {
			if err := CheckToken(what, s); err != nil {
				return err
			}
		}
	}
	subject := cfg.Events(cmp.Or(cfg.Detector, "*"), "*", cmp.Or(cfg.Kind, "*"))
	if cfg.Live {
		return watchLive(ctx, nc, cfg, subject, log, handle)
	}
	js, err := cfg.JetStreamOn(nc)
	if err != nil {
		return err
	}
	if cfg.Since.IsZero() {
		cfg.Since = time.Now()
	}
	policy, start := jetstream.DeliverByStartTimePolicy, &cfg.Since
	var cons jetstream.Consumer
	err = Retry(ctx, wait.Patient(), func() (err error) {
		step, cancel := context.WithTimeout(ctx, 10*time.Second)
		defer cancel()
		if cfg.Durable == "" {
			cons, err = js.OrderedConsumer(step, cfg.EventsStream(), jetstream.OrderedConsumerConfig{
				FilterSubjects: []string{subject}, DeliverPolicy: policy, OptStartTime: start,
			})
			return err
		}
		cons, err = js.Consumer(step, cfg.EventsStream(), "watch-"+cfg.Durable)
		if errors.Is(err, jetstream.ErrConsumerNotFound) {
			cons, err = js.CreateConsumer(step, cfg.EventsStream(), durableConfig(cfg.Durable, []string{subject}, policy, start))
		}
		return err
	})
	if ctx.Err() != nil {
		return nil
	}
	if err != nil {
		return fmt.Errorf("watch %s: %w", subject, err)
	}
	it, err := cons.Messages(jetstream.PullMaxMessages(64))
	if err != nil {
		return fmt.Errorf("watch %s: %w", subject, err)
	}
	defer it.Stop()
	for {
		m, err := it.Next(jetstream.NextContext(ctx))
		if ctx.Err() != nil {
			return nil
		}
		if errors.Is(err, jetstream.ErrNoHeartbeat) {
			continue // the broker is away; the iterator asks again
		}
		if err != nil {
			return fmt.Errorf("watch %s: %w", subject, err)
		}
		e, err := ParseEvent(cfg.Names, m.Subject(), m.Headers(), m.Data())
		if err != nil {
			log.Warn().Err(err).Msg("skipped what is no event")
			if cfg.Durable != "" {
				_ = m.Term()
			}
			continue
		}
		if meta, err := m.Metadata(); err == nil {
			e.Sequence = meta.Sequence.Stream
		}
		if cfg.Durable == "" {
			if err := handle(ctx, e); err != nil {
				return err
			}
			continue
		}
		beat := pull.Beat(durableWait/3, []jetstream.Msg{m})
		err = handle(ctx, e)
		beat.Stop()
		switch {
		case err != nil && ctx.Err() != nil: // the watch ends: at once for the next one
			_ = m.NakWithDelay(time.Millisecond)
			return nil
		case err != nil:
			log.Warn().Err(err).Str("event", e.ID).Msg("event not handled: it will be retried")
			_ = m.NakWithDelay(time.Second)
		default:
			_ = m.Ack()
		}
	}
}

// durableWait is after how long an event that nobody has handled comes again.
const durableWait = 30 * time.Second

// watchLive is [Watch] on core NATS.
func watchLive(ctx context.Context, nc *nats.Conn, cfg WatchConfig, subject string, log zerolog.Logger, handle func(context.Context, Event) error) error {
	return Subscribe(ctx, nc, subject, func(m *nats.Msg) error {
		e, err := ParseEvent(cfg.Names, m.Subject, m.Header, m.Data)
		if err != nil {
			log.Warn().Err(err).Msg("skipped what is no event")
			return nil
		}
		return handle(ctx, e)
	})
}

// WatchScores calls handle for every score that is sent on core NATS from now
// on, until ctx ends, which is no error. Scores that come faster than handle
// takes them are dropped by the connection, which says so.
func WatchScores(ctx context.Context, nc *nats.Conn, n Names, detector string, handle func(Event)) error {
	return Subscribe(ctx, nc, n.Scores(cmp.Or(detector, "*"), "*"), func(m *nats.Msg) error {
		if e, err := ParseScore(m.Data, m.Header); err == nil {
			handle(e)
		}
		return nil
	})
}

// Subscribe calls handle for every message until ctx ends, which is no error, or
// handle returns one.
func Subscribe(ctx context.Context, nc *nats.Conn, subject string, handle func(*nats.Msg) error) error {
	sub, err := nc.SubscribeSync(subject)
	if err != nil {
		return fmt.Errorf("watch %s: %w", subject, err)
	}
	defer func() { _ = sub.Unsubscribe() }()
	for {
		m, err := sub.NextMsgWithContext(ctx)
		if ctx.Err() != nil {
			return nil
		}
		if errors.Is(err, nats.ErrSlowConsumer) {
			continue
		}
		if err != nil {
			return fmt.Errorf("watch %s: %w", subject, err)
		}
		if err := handle(m); err != nil {
			return err
		}
	}
}
