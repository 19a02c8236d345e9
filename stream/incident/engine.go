package incident

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/rs/zerolog"

	"github.com/nearmiss/nearmiss/stream"
	"github.com/nearmiss/nearmiss/stream/internal/kv"
	"github.com/nearmiss/nearmiss/stream/internal/wait"
)

// durable is the consumer that all engines share.
const durable = "incidents"

// Engine makes incidents of events. Several engines share the work: the state
// of a place changes by compare-and-set only.
type Engine struct {
	cfg   Config
	js    jetstream.JetStream
	log   zerolog.Logger
	clock clock
	*settings
}

// Config is what an engine needs.
type Config struct {
	stream.Names
	Rules
	// Now is the time by which incidents are over. Default the broker's clock, on which
	// engines of different machines agree; tests replace it.
	Now func() time.Time
}

// NewEngine prepares an engine; Run starts it.
func NewEngine(cfg Config, nc *nats.Conn, log zerolog.Logger) (*Engine, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	js, err := cfg.JetStreamOn(nc)
	if err != nil {
		return nil, err
	}
	return &Engine{
		cfg: cfg, js: js, log: log.With().Str("component", "incidents").Logger(),
		clock: clock{local: time.Now, instead: cfg.Now}, settings: newSettings(cfg.Rules),
	}, nil
}

// Run makes incidents, and takes people's verdicts on them, until ctx ends.
func (e *Engine) Run(ctx context.Context) error {
	var all sync.WaitGroup
	all.Go(func() {
		e.insist(ctx, "what detectors say of their incidents cannot be read", func(ctx context.Context) error {
			defer e.tried() // incidents are worth more than their settings
			return e.follow(ctx, e.cfg, e.js)
		})
	})
	all.Go(func() { e.insist(ctx, "incidents wait for the broker", e.work) })
	all.Go(func() { e.insist(ctx, "verdicts do not reach incidents", e.judge) })
	all.Wait()
	return nil
}

// insist does something again until ctx ends.
func (e *Engine) insist(ctx context.Context, trouble string, do func(context.Context) error) {
	for ctx.Err() == nil {
		if err := do(ctx); err != nil && ctx.Err() == nil {
			e.log.Warn().Err(err).Msg(trouble)
			wait.Pause(ctx, time.Second)
		}
	}
}

// checkInterval is how often open incidents are checked while no event comes.
const checkInterval = time.Second

func (e *Engine) work(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return nil
	case <-e.ready:
	}
	states, err := e.states(ctx)
	if err != nil {
		return err
	}
	asked := e.clock.local()
	cons, err := e.js.CreateOrUpdateConsumer(ctx, e.cfg.EventsStream(), jetstream.ConsumerConfig{
		Durable: durable, Description: "makes incidents of events",
		FilterSubjects: []string{e.cfg.Events("*", "*", stream.KindAnomaly), e.cfg.Events("*", "*", stream.KindRejected)},
		DeliverPolicy:  jetstream.DeliverNewPolicy, AckPolicy: jetstream.AckExplicitPolicy,
		AckWait: 30 * time.Second, MaxDeliver: -1, MaxAckPending: 1, // in order
	})
	if err != nil {
		return err
	}
	e.clock.set(asked, cons.CachedInfo().TimeStamp)
	if err := e.sweep(ctx, states, func(*State, Rules, runs) bool { return false }); err != nil { // what a process before left untold
		return err
	}
	var counted time.Time // when the event happened that was counted last
	for checked := time.Now(); ctx.Err() == nil; {
		err := next(ctx, cons, func(m jetstream.Msg) error {
			happened, err := e.event(ctx, states, m)
			if err == nil {
				counted = happened
			}
			return err
		})
		if err != nil {
			return err
		}
		if time.Since(checked) < checkInterval {
			continue
		}
		checked = time.Now()
		asked := e.clock.local()
		info, err := cons.Info(ctx)
		if err != nil {
			return err
		}
		e.clock.set(asked, info.TimeStamp)
		waits := info.NumPending > 0 || info.NumAckPending > 0
		err = e.sweep(ctx, states, func(s *State, r Rules, good runs) bool { return e.over(s, r, good, waits, counted) })
		if err != nil {
			return err
		}
	}
	return nil
}

// states are those of all places.
func (e *Engine) states(ctx context.Context) (kv.Store[State], error) {
	bucket, err := e.js.KeyValue(ctx, e.cfg.IncidentsBucket())
	return kv.Store[State]{Bucket: bucket, Decode: ParseState}, err
}

// next hands on the message that comes within the check interval, which comes again when
// it is not taken.
func next(ctx context.Context, cons jetstream.Consumer, take func(jetstream.Msg) error) error {
	batch, err := cons.Fetch(1, jetstream.FetchMaxWait(checkInterval))
	if err != nil {
		return err
	}
	for m := range batch.Messages() {
		if err := take(m); err != nil {
			_ = m.NakWithDelay(time.Second)
			return err
		}
	}
	if err := batch.Error(); err != nil && !errors.Is(err, nats.ErrTimeout) && ctx.Err() == nil {
		return err
	}
	return nil
}

// setBack is by how much the clock has to have been set back since an event was counted for
// its incident to end: it would be open for as long again, and have every alarm for its own.
const setBack = 5 * time.Minute

// over ends what is over. While events wait, which have times of their own, that is
// only what has had none for so long also by the clock, and by the time of the event
// that was counted last: a backlog's incidents are not cut into pieces, and one
// camera's flood keeps no other's open.
func (e *Engine) over(s *State, r Rules, good runs, waits bool, counted time.Time) bool {
	now := e.clock.now()
	if s.Open != nil && s.CountedAt.Sub(now) > setBack {
		s.end(s.Open.LastAt, ByQuiet)
		return true
	}
	if !waits {
		return s.Quiet(r, now) || s.Good(r, good)
	}
	if now.Sub(s.CountedAt) <= r.withDefaults().Quiet {
		return false
	}
	if counted.Before(now) {
		now = counted
	}
	return s.Quiet(r, now)
}

// event counts one event and acknowledges it. It says when it happened.
func (e *Engine) event(ctx context.Context, states kv.Store[State], m jetstream.Msg) (happened time.Time, err error) {
	meta, err := m.Metadata()
	if err != nil {
		return happened, m.Term()
	}
	ev, err := stream.ParseEvent(e.cfg.Names, m.Subject(), m.Headers(), m.Data())
	if err != nil || ev.ID == "" || !stream.ValidToken(ev.Camera) {
		return happened, m.Term() // no event: the watch of the events says so
	}
	rules := e.of(ev.Detector)
	err = e.change(ctx, states, e.key(ev.Detector, ev.Camera), func(s *State) bool {
		added := s.Add(rules, ev, meta.Sequence.Stream)
		if added {
			s.CountedAt = e.clock.now().UTC()
		}
		return added
	})
	if err != nil {
		return happened, err
	}
	return at(ev), m.DoubleAck(ctx)
}

// sweep tells what is untold, and ends what is over.
func (e *Engine) sweep(ctx context.Context, states kv.Store[State], over func(*State, Rules, runs) bool) error {
	entries, _, err := states.List(ctx)
	if err != nil {
		return err
	}
	for _, entry := range entries {
		detector, _, _ := strings.Cut(entry.Key, ".")
		rules, good := e.of(detector), e.good(detector)
		try := func(s *State) bool { return over(s, rules, good) }
		if tried := entry.Value; len(tried.Outbox) == 0 && !try(&tried) {
			continue
		}
		if err := e.change(ctx, states, entry.Key, try); err != nil {
			return err
		}
	}
	return nil
}

// change stores what f makes of a place's state, together with what has to be
// published; then it publishes that, and notes that it has. A state that cannot
// be read begins anew.
func (e *Engine) change(ctx context.Context, states kv.Store[State], key string, f func(*State) bool) error {
	for {
		entry, err := states.Get(ctx, key)
		if err != nil && !errors.Is(err, jetstream.ErrKeyNotFound) && !errors.Is(err, kv.ErrUnreadable) {
			return err
		}
		s := entry.Value
		if f(&s) {
			entry.Head, err = states.Put(ctx, key, s, entry.Head)
			if kv.Conflict(err) {
				continue
			}
			if err != nil {
				return err
			}
		}
		if len(s.Outbox) == 0 {
			return nil
		}
		for _, i := range s.Outbox {
			if err := e.publish(ctx, i); err != nil {
				return err
			}
		}
		s.Outbox = nil
		if _, err := states.Put(ctx, key, s, entry.Head); !kv.Conflict(err) {
			return err
		}
		f = func(*State) bool { return false } // another engine has gone on; its outbox is published
	}
}

// Message is the incident as a CloudEvent in binary mode.
func (i Incident) Message(n stream.Names) (*nats.Msg, error) {
	when := i.LastAt
	if !i.EndedAt.IsZero() {
		when = i.EndedAt
	}
	m, err := stream.CloudEvent(n, n.Incidents(i.Detector, i.Camera, i.Phase), fmt.Sprintf("%s/%d", i.ID, i.N), i.Detector, Type, when, i)
	if err != nil {
		return nil, fmt.Errorf("encode incident %s: %w", i.ID, err)
	}
	m.Header.Set("ce-subject", i.Camera+"/"+i.ID)
	if i.Trace != "" {
		m.Header.Set(stream.HeaderTrace, i.Trace)
	}
	return m, nil
}

// Parse reads an incident's message.
func Parse(data []byte) (Incident, error) {
	var i Incident
	if err := json.Unmarshal(data, &i); err != nil {
		return i, fmt.Errorf("incident: %w", err)
	}
	if i.ID == "" || !stream.ValidToken(i.Detector) || !stream.ValidToken(i.Camera) {
		return i, errors.New("incident without id, detector or camera")
	}
	return i, nil
}

func (e *Engine) publish(ctx context.Context, i Incident) error {
	m, err := i.Message(e.cfg.Names)
	if err != nil {
		return err
	}
	if _, err := e.js.PublishMsg(ctx, m); err != nil {
		return fmt.Errorf("publish incident %s/%d: %w", i.ID, i.N, err)
	}
	e.log.Debug().Str("incident", i.ID).Str("phase", i.Phase).Int("n", i.N).Msg("told")
	return nil
}
