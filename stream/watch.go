package stream

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/rs/zerolog"
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
	js, err := jetstream.New(nc)
	if err != nil {
		return err
	}
	star := func(s string) string {
		if s == "" {
			return "*"
		}
		return s
	}
	subject := cfg.Events(star(cfg.Detector), "*", star(cfg.Kind))
	if cfg.Since.IsZero() {
		cfg.Since = time.Now()
	}
	policy, start := jetstream.DeliverByStartTimePolicy, &cfg.Since
	var cons jetstream.Consumer
	err = retry(ctx, patient(), func() (err error) {
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
			cons, err = js.CreateConsumer(step, cfg.EventsStream(), jetstream.ConsumerConfig{
				Durable: "watch-" + cfg.Durable, FilterSubject: subject, DeliverPolicy: policy, OptStartTime: start,
				AckPolicy: jetstream.AckExplicitPolicy, AckWait: 30 * time.Second, MaxAckPending: 1,
			})
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
		err = handle(ctx, e)
		switch {
		case cfg.Durable == "" && err != nil:
			return err
		case err != nil:
			log.Warn().Err(err).Str("event", e.ID).Msg("event not handled: it comes again")
			_ = m.NakWithDelay(time.Second)
		case cfg.Durable != "":
			_ = m.Ack()
		}
	}
}

// WatchScores calls handle for every score that is sent on core NATS from now
// on, until ctx ends, which is no error. Scores that come faster than handle
// takes them are dropped by the connection, which says so.
func WatchScores(ctx context.Context, nc *nats.Conn, n Names, detector string, handle func(Event)) error {
	if detector == "" {
		detector = "*"
	}
	sub, err := nc.SubscribeSync(n.Scores(detector, "*"))
	if err != nil {
		return fmt.Errorf("watch scores: %w", err)
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
			return fmt.Errorf("watch scores: %w", err)
		}
		if e, err := ParseScore(m.Data, m.Header); err == nil {
			handle(e)
		}
	}
}
