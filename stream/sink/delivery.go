package sink

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"strconv"
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
)

// Headers of a sink's dead letter, besides those of every dead letter.
const HeaderDeadSink = "Nearmiss-Dead-Sink"

// Codes of a sink's dead letters.
const (
	CodeRefused = "sink_refused" // the receiver will not take it
	CodeGaveUp  = "sink_gave_up" // the receiver could not be reached for too long
)

// delivery is one sink at work: its events come from the broker, the judge says
// which go to the receiver, and those that failed come again.
type delivery struct {
	sink     Sink
	origin   origin
	judge    *judge
	receiver receiver // set anew before each run
	retries  retries
	losses   lossCheck
	stats    counters
	log      zerolog.Logger
	// off is called when the receiver says that it is no more.
	off func(error)
	// collecting leads to the digest, where the sender makes one.
	collecting chan taken
}

// taken is a message in hand, and the notice that it carries.
type taken struct {
	jetstream.Msg
	meta    *jetstream.MsgMetadata
	stream  string // that it is of
	notice  Notice
	release func() // has it in hand no longer
}

func (t taken) spot() spot { return spot{t.stream, t.meta.Sequence.Stream} }

// run delivers until ctx ends.
func (l *delivery) run(ctx context.Context) error {
	live := Live{
		Names: l.origin.Names, Sink: l.sink, NC: l.origin.nc,
		Failed: func(err error) { l.stats.failed(l.receiver.hide(err)) }, Delivered: l.stats.delivered,
		Count: func(result, why string) { l.stats.add(result, why, 1) },
	}
	if w, ok := l.receiver.Sender.(Watcher); ok {
		return w.Watch(ctx, live)
	}
	all, err := l.origin.consumers(ctx, l.sink)
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
	if d, ok := l.receiver.Sender.(Digester); ok && d.Every() > 0 {
		l.collecting = make(chan taken)
		g.Go(func() error { l.digest(own, d, l.collecting); return nil })
	}
	for _, c := range all {
		g.Go(func() error { return l.pull(own, c, tries) })
		g.Go(func() error { return l.watchLosses(own, c) })
	}
	g.Go(func() error { l.summaries(own); return nil })
	if f, ok := l.receiver.Sender.(Follower); ok {
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
		probe, ok := l.retries.breaker.wait(ctx)
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
	t := taken{Msg: m, meta: meta, stream: from, release: release}
	if meta.NumDelivered == 1 {
		l.losses.came(t.spot())
	}
	t.notice, err = parse(l.origin.Names, m.Subject(), m.Headers(), m.Data(), meta.Timestamp)
	if err != nil {
		l.stats.add(ResultForeign, "", 1)
		_ = m.Term()
		return
	}
	result, why := l.judge.decide(t.notice, time.Now())
	if result == busy {
		_ = m.NakWithDelay(time.Second)
		return
	}
	if result != ResultSent {
		l.stats.add(result, why, 1)
		l.ack(ctx, t)
		return
	}
	if l.collecting != nil {
		select {
		case l.collecting <- t:
			handed = true
		case <-ctx.Done():
			l.judge.delivered(t.notice, false, time.Now())
			_ = m.Nak()
		}
		return
	}
	err = l.receiver.try(ctx, t)
	now := time.Now()
	l.judge.delivered(t.notice, err == nil, now)
	if err == nil {
		l.retries.breaker.succeeded()
		l.stats.add(ResultSent, "", 1)
		l.stats.delivered(now, now.Sub(meta.Timestamp))
		l.ack(ctx, t)
		return
	}
	l.failed(ctx, t, err)
}

// failed decides what a failed try means.
func (l *delivery) failed(ctx context.Context, t taken, err error) {
	l.stats.failed(err)
	var permanent *Permanent
	var gone *Gone
	switch {
	case errors.As(err, &gone):
		l.log.Error().Err(err).Msg("the sink is switched off")
		_ = t.NakWithDelay(l.retries.delays[0])
		l.off(err)
		return
	case errors.As(err, &permanent):
		l.retries.breaker.succeeded() // it answers
		l.deadLetter(ctx, t, CodeRefused, err)
		return
	case time.Since(t.meta.Timestamp) > cmp.Or(time.Duration(l.sink.GiveUp), defaultGiveUp):
		l.deadLetter(ctx, t, CodeGaveUp, err)
		return
	}
	delay, opened := l.retries.failed(t.spot(), err)
	l.stats.add(ResultFailed, "", 1)
	if opened {
		l.log.Warn().Err(err).Msg("the receiver does not take events: they wait in the broker")
	}
	l.log.Debug().Err(err).Str("event", t.notice.ID).Dur("again", delay).Msg("not delivered")
	_ = t.NakWithDelay(delay)
}

// ack tells the broker that the message is done with; one whose acknowledgement
// is lost comes again, with the same id.
func (l *delivery) ack(ctx context.Context, t taken) {
	l.retries.done(t.spot())
	step, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
	defer cancel()
	if err := t.DoubleAck(step); err != nil {
		_ = t.Ack()
	}
}

// deadLetter moves a message to the dead letters; while they cannot be stored it
// comes again.
func (l *delivery) deadLetter(ctx context.Context, t taken, code string, err error) {
	d := nats.NewMsg(l.origin.Dead(t.stream))
	maps.Copy(d.Header, t.Headers())
	d.Data = t.Data()
	d.Header.Set(nats.MsgIdHdr, fmt.Sprintf("%s/%s/%s/%d", l.sink.Name, code, t.stream, t.meta.Sequence.Stream))
	d.Header.Set(HeaderDeadSink, l.sink.Name)
	d.Header.Set(stream.HeaderDeadCode, code)
	d.Header.Set(stream.HeaderDeadReason, headerLine(err.Error()))
	d.Header.Set(stream.HeaderDeadSubject, t.Subject())
	d.Header.Set(stream.HeaderDeadStream, t.stream)
	d.Header.Set(stream.HeaderDeadSequence, strconv.FormatUint(t.meta.Sequence.Stream, 10))
	d.Header.Set(stream.HeaderDeadDeliveries, strconv.FormatUint(t.meta.NumDelivered, 10))
	step, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
	defer cancel()
	if _, err := l.origin.js.PublishMsg(step, d); err != nil {
		l.log.Warn().Err(err).Msg("a dead letter cannot be stored: its event will be retried")
		_ = t.NakWithDelay(l.retries.delays[0])
		return
	}
	l.stats.add(ResultDead, code, 1)
	l.log.Warn().Err(err).Str("code", code).Msg("event is in the dead letters")
	l.ack(ctx, t)
}

// summaries tells what was held back, at the end of each period.
func (l *delivery) summaries(ctx context.Context) {
	per := time.Duration(l.sink.Rate.Per)
	if per == 0 {
		return
	}
	tick := time.Tick(max(per/4, 10*time.Millisecond))
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick:
			if n, ok := l.judge.summary(time.Now(), false); ok {
				l.sendSummary(ctx, n)
			}
		}
	}
}

func (l *delivery) sendSummary(ctx context.Context, n Notice) {
	step, cancel := context.WithTimeout(ctx, sendTime)
	defer cancel()
	if err := l.receiver.Send(step, n); err != nil {
		l.stats.failed(err)
		l.log.Warn().Err(err).Int("events", n.Summary).Msg("a summary was not delivered")
		return
	}
	l.stats.add(ResultSummaries, "", 1)
}
