package sink

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"strconv"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/rs/zerolog"
	"golang.org/x/sync/errgroup"

	"github.com/nearmiss/nearmiss/stream"
)

// Delivery of one sink.
const (
	// ackWait is after how long another engine gets what a dead one had in hand.
	ackWait  = 10 * time.Second
	sendTime = 30 * time.Second // for one try; senders have shorter limits of their own
	parallel = 8                // tries under way, unless the sink is ordered
	// maxPending counts what waits for its next try, too: it lies in the broker,
	// and a few events that a receiver does not like must not keep the others.
	maxPending = 1000
	breakAfter = 5 // failures in a row that open the breaker
)

// schedule is how long after each try the next one follows: that of Standard
// Webhooks, shortened at its head. The last goes on until the sink gives up.
var schedule = []time.Duration{5 * time.Second, 30 * time.Second, 5 * time.Minute, 30 * time.Minute, 2 * time.Hour, 5 * time.Hour}

// Headers of a sink's dead letter, besides those of every dead letter.
const HeaderDeadSink = "Nearmiss-Dead-Sink"

// Codes of a sink's dead letters.
const (
	CodeRefused = "sink_refused" // the receiver will not take it
	CodeGaveUp  = "sink_gave_up" // the receiver could not be reached for too long
)

// durable is the name of a sink's consumer.
func durable(sink string) string { return "sink-" + sink }

// delivery is one sink at work.
type delivery struct {
	names  stream.Names
	nc     *nats.Conn
	js     jetstream.JetStream
	log    zerolog.Logger
	sink   Sink
	sender Sender
	hider  hider
	judge  *judge
	delays []time.Duration
	// lossCheckInterval is how often to check whether something was lost.
	lossCheckInterval time.Duration
	tracer            stream.Tracer // nil: nobody follows events
	// off is called when the receiver says that it is no more.
	off func(error)

	breaker breaker
	stats   counters
	// collecting leads to the digest, where the sender makes one.
	collecting chan collected

	mu sync.Mutex
	// fails counts the tries of what waits for another one while the receiver took
	// other events; at most maxPending of each stream.
	fails     map[spot]int
	fresh     map[spot]bool       // what came for the first time since the last check
	positions map[string]position // at the last check, by stream
}

// run delivers until ctx ends.
func (l *delivery) run(ctx context.Context) error {
	live := Live{
		Names: l.names, Sink: l.sink, NC: l.nc, Failed: func(err error) { l.stats.failed(l.hider.hide(err)) }, Delivered: l.stats.delivered,
		Count: func(result, why string) { l.stats.add(result, why, 1) },
	}
	if w, ok := l.sender.(Watcher); ok {
		return w.Watch(ctx, live)
	}
	all, err := l.consumers(ctx)
	if err != nil {
		return err
	}
	tries := new(errgroup.Group)
	tries.SetLimit(parallel)
	if l.sink.Ordered {
		tries.SetLimit(1)
	}
	g, own := errgroup.WithContext(ctx)
	l.collecting = nil
	if d, ok := l.sender.(Digester); ok && d.Every() > 0 {
		l.collecting = make(chan collected)
		g.Go(func() error { l.digest(own, d, l.collecting); return nil })
	}
	for _, c := range all {
		g.Go(func() error { return l.pull(own, c, tries) })
		g.Go(func() error { return l.watchLosses(own, c) })
	}
	g.Go(func() error { l.summaries(own); return nil })
	if f, ok := l.sender.(Follower); ok {
		g.Go(func() error { return f.Follow(own, live) })
	}
	err = g.Wait()
	_ = tries.Wait()
	if n, ok := l.judge.summary(time.Now(), true); ok {
		end, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
		defer cancel()
		l.sendSummary(end, n)
	}
	return err
}

// pull takes messages of one consumer until ctx ends.
func (l *delivery) pull(ctx context.Context, c source, tries *errgroup.Group) error {
	// One at a time: what lies in a queue here would be another engine's turn
	// before it is tried, and be sent twice.
	it, err := c.Messages(jetstream.PullMaxMessages(1))
	if err != nil {
		return fmt.Errorf("sink %s: %w", l.sink.Name, err)
	}
	defer it.Stop()
	for {
		probe, ok := l.breaker.wait(ctx)
		if !ok {
			break
		}
		m, err := it.Next(jetstream.NextContext(ctx))
		if ctx.Err() != nil {
			if err == nil {
				_ = m.Nak()
			}
			break
		}
		if errors.Is(err, jetstream.ErrNoHeartbeat) {
			continue // the broker is away; the iterator asks again
		}
		if err != nil {
			return fmt.Errorf("sink %s: %w", l.sink.Name, err)
		}
		release := hold(m)
		if probe {
			l.deliver(ctx, m, c.stream, release) // nothing else is pulled until it is known what becomes of this one
			continue
		}
		tries.Go(func() error {
			l.deliver(ctx, m, c.stream, release)
			return nil
		})
	}
	giveBack(it)
	return nil
}

// giveBack returns the messages that were pulled and not begun: the broker
// would wait for them, and the next engine with it.
func giveBack(it jetstream.MessagesContext) {
	it.Drain()
	for {
		m, err := it.Next()
		if err != nil {
			return
		}
		_ = m.Nak()
	}
}

// source is a sink's place in a stream. It keeps its place when the filter
// changes.
type source struct {
	jetstream.Consumer
	stream string
}

// consumers are the sink's places in the events and the incidents, as far as it
// wants any.
func (l *delivery) consumers(ctx context.Context) ([]source, error) {
	events, incidents := l.sink.filters(l.names)
	var all []source
	for name, filters := range map[string][]string{l.names.EventsStream(): events, l.names.IncidentsStream(): incidents} {
		if len(filters) == 0 {
			// What it wanted before must not wait for ever.
			if err := l.js.DeleteConsumer(ctx, name, durable(l.sink.Name)); err != nil && !errors.Is(err, jetstream.ErrConsumerNotFound) {
				return nil, fmt.Errorf("sink %s: remove its consumer: %w", l.sink.Name, err)
			}
			continue
		}
		cfg := jetstream.ConsumerConfig{
			Durable: durable(l.sink.Name), Description: "for sink " + l.sink.Name,
			FilterSubjects: filters, DeliverPolicy: jetstream.DeliverNewPolicy,
			AckPolicy: jetstream.AckExplicitPolicy, AckWait: ackWait, MaxDeliver: -1, MaxAckPending: maxPending,
		}
		if l.sink.Ordered {
			cfg.MaxAckPending = 1
		}
		c, err := l.js.CreateOrUpdateConsumer(ctx, name, cfg)
		if err != nil {
			return nil, fmt.Errorf("sink %s: make its consumer: %w", l.sink.Name, err)
		}
		all = append(all, source{c, name})
	}
	return all, nil
}

// deliver brings one message to its end: acknowledged, given back, dead, or in a
// digest, which then has it in hand.
func (l *delivery) deliver(ctx context.Context, m jetstream.Msg, from string, release func()) {
	handed := false
	defer func() {
		if !handed {
			release()
		}
	}()
	meta, err := m.Metadata()
	if err != nil {
		_ = m.Term()
		return
	}
	if meta.NumDelivered == 1 {
		l.came(from, meta.Sequence.Stream)
	}
	n, err := parse(l.names, m.Subject(), m.Headers(), m.Data(), meta.Timestamp)
	if err != nil {
		l.stats.add(ResultForeign, "", 1)
		_ = m.Term()
		return
	}
	result, why := l.judge.decide(n, time.Now())
	if result == busy {
		_ = m.NakWithDelay(time.Second)
		return
	}
	if result != ResultSent {
		l.stats.add(result, why, 1)
		l.ack(ctx, m)
		return
	}
	if l.collecting != nil {
		select {
		case l.collecting <- collected{m, n, meta, from, release}:
			handed = true
		case <-ctx.Done():
			l.judge.delivered(n, false, time.Now())
			_ = m.Nak()
		}
		return
	}
	err = l.traced(m, n, func() error { return l.try(ctx, n) })
	now := time.Now()
	l.judge.delivered(n, err == nil, now)
	if err == nil {
		l.breaker.succeeded()
		l.stats.add(ResultSent, "", 1)
		l.stats.delivered(now, now.Sub(meta.Timestamp))
		l.ack(ctx, m)
		return
	}
	l.failed(ctx, m, meta, n, from, err)
}

// hold keeps a message in hand until release is called.
func hold(m jetstream.Msg) (release func()) {
	done := make(chan struct{})
	go func() {
		tick := time.NewTicker(ackWait / 3)
		defer tick.Stop()
		for {
			select {
			case <-done:
				return
			case <-tick.C:
				_ = m.InProgress()
			}
		}
	}()
	return func() { close(done) }
}

// traced has a try be a span of the trace that its message is of.
func (l *delivery) traced(m jetstream.Msg, n Notice, try func() error) error {
	if l.tracer == nil {
		return try()
	}
	span := l.tracer.Start(stream.Span{
		Name: "deliver " + l.sink.Name, Kind: stream.SpanClient, Parent: m.Headers().Get(stream.HeaderTrace),
		Attributes: []stream.SpanAttribute{
			{Key: "nearmiss.sink", Value: l.sink.Name},
			{Key: "nearmiss.sink.kind", Value: l.sink.Kind},
			{Key: "messaging.system", Value: "nats"},
			{Key: "messaging.destination.name", Value: m.Subject()},
			{Key: "messaging.message.id", Value: n.ID},
		},
	})
	err := try()
	span.End(time.Time{}, err)
	return err
}

// try sends one notice.
func (l *delivery) try(ctx context.Context, n Notice) error {
	// What is under way when the program ends may finish: the receiver may
	// already have it.
	step, cancel := context.WithTimeout(context.WithoutCancel(ctx), sendTime)
	defer cancel()
	return l.hider.hide(l.sender.Send(step, n))
}

// failed decides what a failed try means.
func (l *delivery) failed(ctx context.Context, m jetstream.Msg, meta *jetstream.MsgMetadata, n Notice, from string, err error) {
	l.stats.failed(err)
	var permanent *Permanent
	var gone *Gone
	var later *Later
	switch {
	case errors.As(err, &gone):
		l.log.Error().Err(err).Msg("the sink is switched off")
		_ = m.NakWithDelay(l.delays[0])
		l.off(err)
		return
	case errors.As(err, &permanent):
		l.breaker.succeeded() // it answers
		l.deadLetter(ctx, m, meta, from, CodeRefused, err)
		return
	case time.Since(meta.Timestamp) > cmp.Or(time.Duration(l.sink.GiveUp), defaultGiveUp):
		l.deadLetter(ctx, m, meta, from, CodeGaveUp, err)
		return
	}
	delay := l.delay(from, meta.Sequence.Stream)
	if errors.As(err, &later) && later.After > 0 {
		delay = min(later.After, l.delays[len(l.delays)-1])
	}
	delay += time.Duration(float64(delay) * 0.4 * (rand.Float64() - 0.5))
	l.stats.add(ResultFailed, "", 1)
	if l.breaker.failed(l.delays[0]) {
		l.log.Warn().Err(err).Msg("the receiver does not take events: they wait in the broker")
	}
	l.log.Debug().Err(err).Str("event", n.ID).Dur("again", delay).Msg("not delivered")
	_ = m.NakWithDelay(delay)
}

// delay is how long after a failure the next try follows. While the receiver
// takes nothing at all, that is no fault of the event's: it must not come hours
// after the receiver is back.
func (l *delivery) delay(from string, seq uint64) time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.fails == nil {
		l.fails = map[spot]int{}
	}
	key := spot{from, seq}
	if l.breaker.open() {
		l.fails[key] += 0
		return l.delays[0]
	}
	l.fails[key]++
	return l.delays[min(l.fails[key], len(l.delays))-1]
}

// done forgets the tries of an event that is done with.
func (l *delivery) done(m jetstream.Msg) {
	meta, err := m.Metadata()
	if err != nil {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.fails, spot{meta.Stream, meta.Sequence.Stream})
}

// ack tells the broker that the message is done with; one whose acknowledgement
// is lost comes again, with the same id.
func (l *delivery) ack(ctx context.Context, m jetstream.Msg) {
	l.done(m)
	step, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
	defer cancel()
	if err := m.DoubleAck(step); err != nil {
		_ = m.Ack()
	}
}

// deadLetter moves a message to the dead letters; while they cannot be stored it
// comes again.
func (l *delivery) deadLetter(ctx context.Context, m jetstream.Msg, meta *jetstream.MsgMetadata, from, code string, err error) {
	d := nats.NewMsg(l.names.Dead(from))
	maps.Copy(d.Header, m.Headers())
	d.Data = m.Data()
	d.Header.Set(nats.MsgIdHdr, fmt.Sprintf("%s/%s/%s/%d", l.sink.Name, code, from, meta.Sequence.Stream))
	d.Header.Set(HeaderDeadSink, l.sink.Name)
	d.Header.Set(stream.HeaderDeadCode, code)
	d.Header.Set(stream.HeaderDeadReason, headerLine(err.Error()))
	d.Header.Set(stream.HeaderDeadSubject, m.Subject())
	d.Header.Set(stream.HeaderDeadStream, from)
	d.Header.Set(stream.HeaderDeadSequence, strconv.FormatUint(meta.Sequence.Stream, 10))
	d.Header.Set(stream.HeaderDeadDeliveries, strconv.FormatUint(meta.NumDelivered, 10))
	step, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
	defer cancel()
	if _, err := l.js.PublishMsg(step, d); err != nil {
		l.log.Warn().Err(err).Msg("a dead letter cannot be stored: its event will be retried")
		_ = m.NakWithDelay(l.delays[0])
		return
	}
	l.stats.add(ResultDead, code, 1)
	l.log.Warn().Err(err).Str("code", code).Msg("event is in the dead letters")
	l.ack(ctx, m)
}

// summaries tells what was held back, at the end of each period.
func (l *delivery) summaries(ctx context.Context) {
	per := time.Duration(l.sink.Rate.Per)
	if per == 0 {
		return
	}
	tick := time.NewTicker(max(per/4, 10*time.Millisecond))
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			if n, ok := l.judge.summary(time.Now(), false); ok {
				l.sendSummary(ctx, n)
			}
		}
	}
}

func (l *delivery) sendSummary(ctx context.Context, n Notice) {
	step, cancel := context.WithTimeout(ctx, sendTime)
	defer cancel()
	if err := l.hider.hide(l.sender.Send(step, n)); err != nil {
		l.stats.failed(err)
		l.log.Warn().Err(err).Int("events", n.Summary).Msg("a summary was not delivered")
		return
	}
	l.stats.add(ResultSummaries, "", 1)
}
