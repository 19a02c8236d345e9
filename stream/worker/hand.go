package worker

import (
	"context"
	"encoding/json"
	"errors"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/nearmiss/nearmiss/stream"
	"github.com/nearmiss/nearmiss/stream/internal/pull"
)

// Workers write down which frames they have in hand, and ask each other whether
// they are still there. The frames of one that is gone are given back at once, by
// whoever notices first: a death costs a second, not the broker's AckWait.

// inHand are the frames that a detector's runner has in hand.
type inHand struct {
	mu   sync.Mutex
	acks map[string]struct{} // reply subjects, by which the broker knows a delivery
}

// heldKey names the record of a runner's frames.
func (l *detectorRunner) heldKey() string { return "held." + l.w.id + "." + l.name }

// hold adds messages to what is in hand and writes it down. Nothing waits for the
// record: a death before it is stored costs an AckWait.
func (l *detectorRunner) hold(msgs []jetstream.Msg) {
	l.hands.mu.Lock()
	defer l.hands.mu.Unlock()
	if l.hands.acks == nil {
		l.hands.acks = map[string]struct{}{}
	}
	for _, m := range msgs {
		l.hands.acks[m.Reply()] = struct{}{}
	}
	if b, err := json.Marshal(slices.AppendSeq([]string{}, maps.Keys(l.hands.acks))); err == nil {
		_, _ = l.w.js.PublishAsync("$KV."+l.w.cfg.WorkBucket()+"."+l.heldKey(), b)
	}
}

// letGo takes an answered message out of what is in hand. The record is left as
// it is: giving an answered frame back does nothing.
func (l *detectorRunner) letGo(m jetstream.Msg) {
	l.hands.mu.Lock()
	delete(l.hands.acks, m.Reply())
	l.hands.mu.Unlock()
}

// beat keeps frames in hand until each is answered.
func (l *detectorRunner) beat(msgs []jetstream.Msg) *pull.Heartbeat {
	h := pull.Beat(l.w.cfg.AckWait/3, msgs)
	h.Closed = l.letGo
	return h
}

// aliveSubject is where a worker answers that it is there.
func aliveSubject(n stream.Names, worker string) string { return n.API() + ".worker.alive." + worker }

// adoptFrames looks after the frames of workers that are gone, until ctx ends.
func (w *Worker) adoptFrames(ctx context.Context) {
	sub, err := w.nc.Subscribe(aliveSubject(w.cfg.Names, w.id), func(m *nats.Msg) { _ = m.Respond(nil) })
	if err != nil {
		w.log.Warn().Err(err).Msg("other workers cannot see that this one is there")
		return
	}
	defer func() { _ = sub.Unsubscribe() }()
	w.follow(ctx, "frames in hand", w.inherit)
}

// aliveEvery is how often workers look after each other, and aliveTries how often
// in a row one must not be there to be gone.
const (
	aliveEvery = 300 * time.Millisecond
	aliveTries = 3
)

// inherit follows the records of other workers and gives back the frames of those
// that are gone.
func (w *Worker) inherit(ctx context.Context) error {
	watch, err := w.work.Watch(ctx, "held.>", jetstream.IgnoreDeletes())
	if err != nil {
		return err
	}
	defer func() { _ = watch.Stop() }()
	held := map[string]map[string]jetstream.KeyValueEntry{} // worker → key → record
	absent := map[string]int{}
	tick := time.Tick(aliveEvery)
	for {
		select {
		case <-ctx.Done():
			return nil
		case e, ok := <-watch.Updates():
			if !ok {
				return errors.New("the watch ended")
			}
			if e == nil {
				continue
			}
			parts := strings.Split(e.Key(), ".")
			if len(parts) != 3 || parts[1] == w.id {
				continue
			}
			if held[parts[1]] == nil {
				held[parts[1]] = map[string]jetstream.KeyValueEntry{}
			}
			held[parts[1]][e.Key()] = e
			continue
		case <-tick:
		}
		for worker, records := range held {
			if w.isThere(ctx, worker) {
				delete(absent, worker)
				continue
			}
			if absent[worker]++; absent[worker] < aliveTries {
				continue
			}
			for _, e := range records {
				w.giveBackFor(ctx, worker, e)
			}
			delete(held, worker)
			delete(absent, worker)
		}
	}
}

// isThere asks whether a worker is connected. Only the broker's word that nobody
// listens counts as no.
func (w *Worker) isThere(ctx context.Context, worker string) bool {
	step, cancel := context.WithTimeout(ctx, aliveEvery)
	defer cancel()
	_, err := w.nc.RequestWithContext(step, aliveSubject(w.cfg.Names, worker), nil)
	return !errors.Is(err, nats.ErrNoResponders)
}

// giveBackFor gives back what a record says that a worker had in hand. Of several
// workers that notice, the one that removes the record does it.
func (w *Worker) giveBackFor(ctx context.Context, worker string, e jetstream.KeyValueEntry) {
	step, cancel := context.WithTimeout(ctx, stream.PublishWait)
	defer cancel()
	if err := w.work.Delete(step, e.Key(), jetstream.LastRevision(e.Revision())); err != nil {
		return
	}
	var acks []string
	if json.Unmarshal(e.Value(), &acks) != nil {
		return
	}
	about := "." + w.cfg.FramesStream() + "." + stream.FramesConsumer("")
	n := 0
	for _, a := range acks {
		if !strings.HasPrefix(a, "$JS.ACK.") || !strings.Contains(a, about) || strings.ContainsAny(a, " *>\r\n\t") {
			continue
		}
		if err := w.nc.Publish(a, []byte("-NAK")); err == nil {
			n++
		}
	}
	w.log.Info().Str("worker", worker).Int("frames", n).Msg("a worker is gone: what it had in hand is given back")
}

// leave removes the records of this worker when it ends in order.
func (w *Worker) leave(ctx context.Context) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, l := range w.runners {
		_ = w.work.Purge(ctx, l.heldKey())
	}
}
