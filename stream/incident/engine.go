package incident

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/rs/zerolog"

	"github.com/nearmiss/nearmiss/stream"
	"github.com/nearmiss/nearmiss/stream/internal/kv"
)

// durable is the consumer that all engines share.
const durable = "incidents"

// Engine makes incidents of events. Several engines share the work: the state
// of a place changes by compare-and-set only.
type Engine struct {
	cfg Config
	js  jetstream.JetStream
	log zerolog.Logger
}

// Config is what an engine needs.
type Config struct {
	stream.Names
	Rules
	// Now is the time at which incidents are over. Default time.Now; tests replace it.
	Now func() time.Time
}

// NewEngine prepares an engine; Run starts it.
func NewEngine(cfg Config, nc *nats.Conn, log zerolog.Logger) (*Engine, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	js, err := cfg.JetStreamOn(nc)
	if err != nil {
		return nil, err
	}
	return &Engine{cfg: cfg, js: js, log: log.With().Str("component", "incidents").Logger()}, nil
}

// Run makes incidents, and takes people's verdicts on them, until ctx ends.
func (e *Engine) Run(ctx context.Context) error {
	var both sync.WaitGroup
	both.Go(func() { e.insist(ctx, "incidents wait for the broker", e.work) })
	both.Go(func() { e.insist(ctx, "verdicts do not reach incidents", e.judge) })
	both.Wait()
	return nil
}

// insist does something again until ctx ends.
func (e *Engine) insist(ctx context.Context, trouble string, do func(context.Context) error) {
	for ctx.Err() == nil {
		if err := do(ctx); err != nil && ctx.Err() == nil {
			e.log.Warn().Err(err).Msg(trouble)
			t := time.NewTimer(time.Second)
			select {
			case <-ctx.Done():
			case <-t.C:
			}
			t.Stop()
		}
	}
}

// lookEvery is how often open incidents are looked at while no event comes.
const lookEvery = time.Second

func (e *Engine) work(ctx context.Context) error {
	bucket, err := e.js.KeyValue(ctx, e.cfg.IncidentsBucket())
	if err != nil {
		return err
	}
	states := kv.Store[State]{Bucket: bucket, Decode: ParseState}
	cons, err := e.js.CreateOrUpdateConsumer(ctx, e.cfg.EventsStream(), jetstream.ConsumerConfig{
		Durable: durable, Description: "makes incidents of events",
		FilterSubjects: []string{e.cfg.Events("*", "*", stream.KindAnomaly), e.cfg.Events("*", "*", stream.KindRejected)},
		DeliverPolicy:  jetstream.DeliverNewPolicy, AckPolicy: jetstream.AckExplicitPolicy,
		AckWait: 30 * time.Second, MaxDeliver: -1, MaxAckPending: 1, // in order
	})
	if err != nil {
		return err
	}
	if err := e.sweep(ctx, states, time.Time{}); err != nil { // what a process before left untold
		return err
	}
	for looked := time.Now(); ctx.Err() == nil; {
		batch, err := cons.Fetch(1, jetstream.FetchMaxWait(lookEvery))
		if err != nil {
			return err
		}
		got := false
		for m := range batch.Messages() {
			got = true
			if err := e.event(ctx, states, m); err != nil {
				_ = m.NakWithDelay(time.Second)
				return err
			}
		}
		if err := batch.Error(); err != nil && !errors.Is(err, nats.ErrTimeout) && ctx.Err() == nil {
			return err
		}
		// Time passes for incidents only when all events have been counted: a
		// backlog has times of its own.
		if now := time.Now(); !got && now.Sub(looked) >= lookEvery {
			looked = now
			info, err := cons.Info(ctx)
			if err != nil {
				return err
			}
			if info.NumPending > 0 || info.NumAckPending > 0 {
				continue
			}
			if err := e.sweep(ctx, states, e.cfg.Now()); err != nil {
				return err
			}
		}
	}
	return nil
}

func key(detector, camera string) string { return detector + "." + camera }

// event counts one event and acknowledges it.
func (e *Engine) event(ctx context.Context, states kv.Store[State], m jetstream.Msg) error {
	meta, err := m.Metadata()
	if err != nil {
		return m.Term()
	}
	ev, err := stream.ParseEvent(e.cfg.Names, m.Subject(), m.Headers(), m.Data())
	if err != nil || ev.ID == "" || !stream.ValidToken(ev.Camera) {
		return m.Term() // no event: the watch of the events says so
	}
	err = e.change(ctx, states, key(ev.Detector, ev.Camera), func(s *State) bool {
		return s.Add(e.cfg.Rules, ev, meta.Sequence.Stream)
	})
	if err != nil {
		return err
	}
	return m.DoubleAck(ctx)
}

// sweep tells what is untold, and ends what is over at now.
func (e *Engine) sweep(ctx context.Context, states kv.Store[State], now time.Time) error {
	all, _, err := states.List(ctx)
	if err != nil {
		return err
	}
	for _, entry := range all {
		s := entry.Value
		due := s.Due(e.cfg.Rules)
		if len(s.Outbox) == 0 && (due.IsZero() || !now.After(due)) {
			continue
		}
		err := e.change(ctx, states, entry.Key, func(s *State) bool { return s.Quiet(e.cfg.Rules, now) })
		if err != nil {
			return err
		}
	}
	return nil
}

// change stores what f makes of a place's state, together with what has to be
// told; then it tells that, and takes note that it is told. A state that cannot
// be read begins anew.
func (e *Engine) change(ctx context.Context, states kv.Store[State], key string, f func(*State) bool) error {
	for {
		entry, err := states.Get(ctx, key)
		if err != nil && !errors.Is(err, jetstream.ErrKeyNotFound) && !errors.Is(err, kv.ErrUnreadable) {
			return err
		}
		s := entry.Value
		if f(&s) {
			entry.Head, err = e.put(ctx, states.Bucket, key, s, entry.Head)
			if isConflict(err) {
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
		if _, err := e.put(ctx, states.Bucket, key, s, entry.Head); err != nil && !isConflict(err) {
			return err
		} else if isConflict(err) {
			f = func(*State) bool { return false } // another engine has gone on; its outbox is looked at
			continue
		}
		return nil
	}
}

func (e *Engine) put(ctx context.Context, b jetstream.KeyValue, key string, s State, head uint64) (uint64, error) {
	value, err := json.Marshal(s)
	if err != nil {
		return 0, fmt.Errorf("encode the incidents of %s: %w", key, err)
	}
	return b.Update(ctx, key, value, head) // head 0: it must not be there
}

func isConflict(err error) bool {
	return errors.Is(err, jetstream.ErrKeyExists) || errors.Is(err, jetstream.ErrKeyRevisionMismatch)
}

// Message is the incident as a CloudEvent in binary mode.
func (i Incident) Message(n stream.Names) (*nats.Msg, error) {
	data, err := json.Marshal(i)
	if err != nil {
		return nil, fmt.Errorf("encode incident %s: %w", i.ID, err)
	}
	m := nats.NewMsg(n.Incidents(i.Detector, i.Camera, i.Phase))
	id := fmt.Sprintf("%s/%d", i.ID, i.N)
	m.Header.Set("ce-specversion", "1.0")
	m.Header.Set("ce-id", id)
	m.Header.Set("ce-source", "/"+n.Root()+"/"+i.Detector)
	m.Header.Set("ce-type", Type)
	when := i.LastAt
	if !i.EndedAt.IsZero() {
		when = i.EndedAt
	}
	m.Header.Set("ce-time", when.UTC().Format(time.RFC3339Nano))
	m.Header.Set("ce-subject", i.Camera+"/"+i.ID)
	m.Header.Set("ce-datacontenttype", "application/json")
	m.Header.Set("content-type", "application/json")
	m.Header.Set(nats.MsgIdHdr, id)
	m.Data = data
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
