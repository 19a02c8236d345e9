package sink

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/rs/zerolog"

	"github.com/nearmiss/nearmiss/internal/redact"
	"github.com/nearmiss/nearmiss/stream"
	"github.com/nearmiss/nearmiss/stream/internal/kv"
	"github.com/nearmiss/nearmiss/stream/internal/wait"
)

// Engine runs all sinks of an installation. Several engines share the work;
// each event goes to one of them.
type Engine struct {
	cfg   EngineConfig
	nc    *nats.Conn
	js    jetstream.JetStream
	log   zerolog.Logger
	mu    sync.Mutex
	lines map[string]*running
}

// EngineConfig is what an engine needs.
type EngineConfig struct {
	stream.Names
	Kinds Kinds
	// Delays between the tries of one event. Default: 5 s to 5 h.
	Delays []time.Duration
	// LossCheckInterval is how often to check whether something was lost. Default 1 min.
	LossCheckInterval time.Duration
	// Tracer makes spans of what is delivered. Default nil: nobody follows it.
	Tracer stream.Tracer
}

// running is a sink at work, or why it is not.
type running struct {
	line *delivery
	rev  uint64
	stop func()
	err  error // why it does not run
	sink Sink
}

// NewEngine prepares an engine; Run starts it.
func NewEngine(cfg EngineConfig, nc *nats.Conn, log zerolog.Logger) (*Engine, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	if len(cfg.Delays) == 0 {
		cfg.Delays = schedule
	}
	cfg.LossCheckInterval = cmp.Or(cfg.LossCheckInterval, time.Minute)
	js, err := cfg.JetStreamOn(nc)
	if err != nil {
		return nil, err
	}
	return &Engine{cfg: cfg, nc: nc, js: js, log: log.With().Str("component", "sinks").Logger(), lines: map[string]*running{}}, nil
}

// store reads sinks from their bucket.
func store(b jetstream.KeyValue) kv.Store[Sink] {
	return kv.Store[Sink]{Bucket: b, Decode: Parse}
}

// Run delivers until ctx ends, then finishes what is under way.
func (e *Engine) Run(ctx context.Context) error {
	svc, err := e.serve(ctx)
	if err != nil {
		return err
	}
	defer func() { _ = svc.Stop() }()
	defer e.stopAll()
	e.log.Info().Msg("sinks are up")
	for ctx.Err() == nil {
		if err := e.follow(ctx); err != nil && ctx.Err() == nil {
			e.log.Warn().Err(err).Msg("the sinks' bucket cannot be read: trying again")
			wait.Pause(ctx, time.Second)
		}
	}
	return nil
}

// follow keeps the lines in step with the bucket.
func (e *Engine) follow(ctx context.Context) error {
	b, err := e.js.KeyValue(ctx, e.cfg.SinksBucket())
	if err != nil {
		return err
	}
	return kv.Follow(ctx, b, func() error { return e.reconcile(ctx, b) })
}

// reconcile starts, restarts and stops lines as the bucket says.
func (e *Engine) reconcile(ctx context.Context, b jetstream.KeyValue) error {
	all, bad, err := store(b).List(ctx)
	if err != nil {
		return err
	}
	for _, v := range bad {
		e.log.Error().Err(v).Msg("a sink's entry cannot be read")
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	wanted := map[string]bool{}
	for _, entry := range all {
		s := entry.Value
		wanted[s.Name] = true
		if have := e.lines[s.Name]; have != nil {
			if have.rev == entry.Revision {
				continue
			}
			have.stop()
		}
		e.lines[s.Name] = e.start(ctx, b, s, entry.Revision)
	}
	for name, r := range e.lines {
		if !wanted[name] {
			r.stop() // which may take long
			_, err := b.Get(ctx, name)
			if err != nil && !errors.Is(err, jetstream.ErrKeyNotFound) {
				return err // it is checked again
			}
			delete(e.lines, name)
			if err != nil { // else another engine has begun with a new one
				e.forget(ctx, name)
			}
		}
	}
	return nil
}

// forget removes the consumers of a sink that is no more.
func (e *Engine) forget(ctx context.Context, name string) {
	for _, s := range []string{e.cfg.EventsStream(), e.cfg.IncidentsStream()} {
		if err := e.js.DeleteConsumer(ctx, s, durable(name)); err != nil && !errors.Is(err, jetstream.ErrConsumerNotFound) {
			e.log.Warn().Err(err).Str("sink", name).Msg("its consumer could not be removed")
		}
	}
}

// start opens a sink's sender and runs its line; a sink that cannot be opened
// says why, and is tried again now and then: a secret may come later.
func (e *Engine) start(ctx context.Context, b jetstream.KeyValue, s Sink, rev uint64) *running {
	r := &running{rev: rev, sink: s, stop: func() {}}
	if !s.Enabled {
		return r
	}
	log := e.log.With().Str("sink", s.Name).Logger()
	own, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	r.stop = func() {
		cancel()
		<-done
	}
	j, err := newJudge(s)
	if err != nil {
		r.err = err
		close(done)
		return r
	}
	l := &delivery{
		sink: s, origin: origin{e.cfg.Names, e.nc, e.js}, judge: j, log: log,
		retries: retries{delays: e.cfg.Delays, fails: map[spot]int{}},
		losses:  lossCheck{interval: e.cfg.LossCheckInterval, fresh: map[spot]bool{}, positions: map[string]position{}},
		off:     func(why error) { e.switchOff(own, b, s.Name, rev, why) },
	}
	r.line = l
	go func() {
		defer close(done)
		logged := false
		for own.Err() == nil {
			sender, err := open(e.cfg.Kinds, s)
			if err == nil {
				l.receiver = receiver{sender, s.Name, s.Kind, e.cfg.Tracer}
				log.Info().Str("kind", s.Kind).Msg("sink is at work")
				err = sender.hide(l.run(own))
				_ = sender.Close()
			}
			if err != nil && own.Err() == nil {
				l.stats.failed(err)
				if !logged {
					log.Error().Err(err).Msg("the sink does not work: trying again")
					logged = true
				}
				wait.Pause(own, e.cfg.Delays[0])
			}
		}
	}()
	return r
}

// open makes a sink's sender.
func open(kinds Kinds, s Sink) (guarded, error) {
	opener, ok := kinds[s.Kind]
	if !ok {
		return guarded{}, fmt.Errorf("sink %s: there is no kind %q: use one of %s", s.Name, s.Kind, strings.Join(slices.Sorted(maps.Keys(kinds)), ", "))
	}
	secret, err := readSecret(s.Secret)
	if err != nil {
		return guarded{}, fmt.Errorf("sink %s: %w", s.Name, err)
	}
	h := newHider(secret)
	sender, err := opener(s, secret)
	if err != nil {
		return guarded{}, fmt.Errorf("sink %s: %w", s.Name, h.hide(err))
	}
	return guarded{sender, h}, nil
}

// switchOff disables a sink whose receiver said that it is no more, unless
// somebody has changed it meanwhile.
func (e *Engine) switchOff(ctx context.Context, b jetstream.KeyValue, name string, rev uint64, why error) {
	sinks := store(b)
	entry, err := sinks.Get(ctx, name)
	if err != nil || entry.Revision != rev {
		return
	}
	entry.Value.Enabled = false
	if _, err := sinks.Put(ctx, name, entry.Value, entry.Head); err != nil {
		e.log.Warn().Err(err).Str("sink", name).Msg("it could not be switched off")
		return
	}
	e.log.Error().Err(why).Str("sink", name).Msg("the receiver is gone: the sink is switched off")
}

func (e *Engine) stopAll() {
	e.mu.Lock()
	defer e.mu.Unlock()
	var wg sync.WaitGroup
	for _, r := range e.lines {
		wg.Go(r.stop)
	}
	wg.Wait()
	e.lines = map[string]*running{}
}

// Status is what a sink has done since this engine started it.
type Status struct {
	Name     string            `json:"name"`
	Kind     string            `json:"kind"`
	Enabled  bool              `json:"enabled"`
	Open     bool              `json:"breaker_open,omitempty"`  // the receiver takes nothing
	Error    string            `json:"error,omitempty"`         // the last failure
	Results  map[string]uint64 `json:"results,omitempty"`       // by result
	Reasons  map[string]uint64 `json:"reasons,omitempty"`       // "result: why" → how many
	Pending  uint64            `json:"pending"`                 // events that wait in the broker, as of the last look
	LastSent time.Time         `json:"last_sent,omitzero"`      // when something was delivered
	Delay    float64           `json:"delay_seconds,omitempty"` // of that delivery, from stored to received
	Secret   string            `json:"secret,omitempty"`        // "set" where one is named
}

// Statuses are the sinks in the order of their names.
func (e *Engine) Statuses() []Status {
	e.mu.Lock()
	defer e.mu.Unlock()
	var all []Status
	for _, name := range slices.Sorted(maps.Keys(e.lines)) {
		r := e.lines[name]
		s := Status{Name: name, Kind: r.sink.Kind, Enabled: r.sink.Enabled}
		if r.sink.Secret != "" {
			s.Secret = "set"
		}
		if r.err != nil {
			s.Error = r.err.Error()
		}
		if l := r.line; l != nil {
			s.Open = l.retries.breaker.open()
			l.stats.tell(&s)
		}
		all = append(all, s)
	}
	return all
}

// clip bounds what a receiver said, without what must not be shown.
func clip(s string) string {
	s = redact.Text(s)
	if len(s) > 400 {
		s = s[:400] + "…"
	}
	return s
}

// headerLine makes s fit into a header.
func headerLine(s string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return ' '
		}
		return r
	}, strings.ToValidUTF8(clip(s), "?"))
}
