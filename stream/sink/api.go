package sink

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/nats-io/nats.go/micro"

	"github.com/nearmiss/nearmiss/stream"
)

// Service is the name of the engine's micro service; it answers requests on
// <prefix>.api.sinks.{status,test,replay}.
const Service = "nearmiss-sinks"

// TestRequest asks for one event to be sent by a sink, past its filters,
// cool-down and rate, without another try.
type TestRequest struct {
	Sink  string `json:"sink"`
	Event string `json:"id,omitempty"` // of an event; empty: the last one, or a made-up one
}

// UnmarshalJSON reads a request, also one from before an event's id was called id
// here too.
func (q *TestRequest) UnmarshalJSON(b []byte) error {
	type fields TestRequest // without this method
	v := struct {
		*fields
		Before string `json:"event"`
	}{fields: (*fields)(q)}
	if err := json.Unmarshal(b, &v); err != nil {
		return err
	}
	q.Event = cmp.Or(q.Event, v.Before)
	return nil
}

// TestAnswer is what became of it.
type TestAnswer struct {
	OK      bool    `json:"ok"`
	Error   string  `json:"error,omitempty"`
	Seconds float64 `json:"seconds"`
	Event   string  `json:"id"`               // of the event
	Before  string  `json:"event"`            // the same, as it was called before
	Filter  string  `json:"filter,omitempty"` // what the sink would have done with it otherwise: filtered: kind, …
}

// ReplayRequest asks for events to be sent again.
type ReplayRequest struct {
	Sink  string    `json:"sink"`
	Dead  bool      `json:"dead,omitempty"` // those in the dead letters
	Since time.Time `json:"since,omitzero"` // those since then, whatever became of them
}

// ReplayAnswer says how many were sent, and how many failed.
type ReplayAnswer struct {
	Sent   int    `json:"sent"`
	Failed int    `json:"failed"`
	Error  string `json:"error,omitempty"` // the last failure
}

// Ask sends a request to the process that runs the sinks: status, test or replay. Its
// error is [stream.ErrNobody] where there is none, or a [stream.ServiceError].
func Ask(ctx context.Context, nc *nats.Conn, n stream.Names, what string, q, a any) error {
	b, err := json.Marshal(q)
	if err != nil {
		return err
	}
	err = stream.Ask(ctx, nc, &nats.Msg{Subject: n.API() + ".sinks." + what, Data: b}, a)
	if errors.Is(err, stream.ErrNobody) {
		err = fmt.Errorf("start nearmiss up, or nearmiss sinks: %w", err)
	}
	return err
}

// testTime bounds a test.
const testTime = 15 * time.Second

func (e *Engine) serve(ctx context.Context) (micro.Service, error) {
	s, err := micro.AddService(e.nc, micro.Config{Name: Service, Version: "1.0.0", Description: "brings events to people and machines"})
	if err != nil {
		return nil, fmt.Errorf("start service %s: %w", Service, err)
	}
	g := s.AddGroup(e.cfg.API() + ".sinks")
	err = errors.Join(
		g.AddEndpoint("status", micro.HandlerFunc(func(r micro.Request) { _ = r.RespondJSON(e.Statuses()) })),
		g.AddEndpoint("test", handler(ctx, e.test)),
		g.AddEndpoint("replay", handler(ctx, e.replay)),
	)
	if err != nil {
		_ = s.Stop()
		return nil, fmt.Errorf("start service %s: %w", Service, err)
	}
	return s, nil
}

func handler[Q, A any](ctx context.Context, f func(context.Context, Q) (A, error)) micro.Handler {
	return micro.HandlerFunc(func(r micro.Request) {
		go func() { // a receiver that hangs keeps no other request waiting
			var q Q
			if err := json.Unmarshal(r.Data(), &q); err != nil {
				_ = r.Error(stream.CodeBadRequest, headerLine("the request cannot be understood: "+err.Error()), nil)
				return
			}
			a, err := f(ctx, q)
			if err != nil {
				code := stream.CodeInternal
				if errors.Is(err, stream.ErrNotFound) {
					code = stream.CodeNotFound
				}
				_ = r.Error(code, headerLine(err.Error()), nil)
				return
			}
			_ = r.RespondJSON(a)
		}()
	})
}

// withSender opens a sink's sender for something besides its line.
func (e *Engine) withSender(name string, f func(Sink, Sender) error) error {
	e.mu.Lock()
	r := e.lines[name]
	e.mu.Unlock()
	if r == nil {
		return fmt.Errorf("sink %q: %w", name, stream.ErrNotFound)
	}
	sender, err := open(e.cfg.Kinds, r.sink)
	if err != nil {
		return err
	}
	defer func() { _ = sender.Close() }()
	return f(r.sink, sender)
}

func (e *Engine) test(ctx context.Context, q TestRequest) (TestAnswer, error) {
	var a TestAnswer
	err := e.withSender(q.Sink, func(s Sink, sender Sender) error {
		n, err := e.example(ctx, q.Event)
		if err != nil {
			return err
		}
		n.Test, a.Event, a.Before = true, n.ID, n.ID
		if j, err := newJudge(s); err == nil {
			if result, why := j.decide(n, time.Now()); result != ResultSent {
				a.Filter = result + ": " + why
			}
		}
		step, cancel := context.WithTimeout(ctx, testTime)
		defer cancel()
		began := time.Now()
		err = sender.Send(step, n)
		a.Seconds, a.OK = time.Since(began).Seconds(), err == nil
		if err != nil {
			a.Error = clip(err.Error())
		}
		return nil
	})
	return a, err
}

// example is the event of an id, the last anomaly, or a made-up one.
func (e *Engine) example(ctx context.Context, id string) (Notice, error) {
	if id != "" {
		ev, err := stream.NewInstallation(e.js, e.cfg.Names).FindEvent(ctx, "", "", id, "")
		if err != nil {
			return Notice{}, fmt.Errorf("event %q: %w", id, err)
		}
		return Notice{ID: ev.ID, Event: ev, At: ev.ScoredAt}, nil
	}
	s, err := e.js.Stream(ctx, e.cfg.EventsStream())
	if err != nil {
		return Notice{}, err
	}
	if m, err := s.GetLastMsgForSubject(ctx, e.cfg.Events("*", "*", stream.KindAnomaly)); err == nil {
		if ev, err := stream.ParseEvent(e.cfg.Names, m.Subject, m.Header, m.Data); err == nil {
			return Notice{ID: ev.ID, Event: ev, At: m.Time}, nil
		}
	}
	score, threshold, p, yes, now := 2.5, 1.0, 0.01, true, time.Now().UTC()
	ev := stream.Event{
		ID: "test-" + strconv.FormatInt(now.UnixNano(), 36), Kind: stream.KindAnomaly, Detector: "example", Camera: "example",
		FrameID: "1", CapturedAt: now, ScoredAt: now, Score: &score, Threshold: &threshold, PValue: &p, Anomalous: &yes,
	}
	return Notice{ID: ev.ID, Event: ev, At: now}, nil
}

// replay sends events again. Dead letters that arrive are removed.
func (e *Engine) replay(ctx context.Context, q ReplayRequest) (ReplayAnswer, error) {
	var a ReplayAnswer
	if q.Dead == !q.Since.IsZero() {
		return a, fmt.Errorf("say which: the dead letters, or all events since a time")
	}
	err := e.withSender(q.Sink, func(s Sink, sender Sender) error {
		send := func(n Notice) bool {
			step, cancel := context.WithTimeout(ctx, sendTime)
			defer cancel()
			if err := sender.Send(step, n); err != nil {
				a.Failed++
				a.Error = clip(err.Error())
				return false
			}
			a.Sent++
			return true
		}
		if q.Dead {
			return e.replayDead(ctx, s, send)
		}
		return e.replaySince(ctx, s, q.Since, send)
	})
	return a, err
}

func (e *Engine) replayDead(ctx context.Context, s Sink, send func(Notice) bool) error {
	all, err := stream.NewInstallation(e.js, e.cfg.Names).DeadLetters(ctx, 0)
	if err != nil {
		return err
	}
	dead, err := e.js.Stream(ctx, e.cfg.DeadStream())
	if err != nil {
		return err
	}
	for _, d := range all {
		if d.Header.Get(HeaderDeadSink) != s.Name {
			continue
		}
		n, err := parse(e.cfg.Names, d.Subject, d.Header, d.Data, d.At)
		if err != nil {
			continue
		}
		if n.Incident != nil { // its id was the broker's order, which a dead letter does not have
			n.ID = fmt.Sprintf("%s/%d", n.Incident.ID, n.Incident.N)
		}
		if !send(n) {
			continue
		}
		if err := dead.DeleteMsg(ctx, d.Sequence); err != nil {
			return fmt.Errorf("event %s was sent, and its dead letter stays: %w", n.ID, err)
		}
	}
	return nil
}

func (e *Engine) replaySince(ctx context.Context, s Sink, since time.Time, send func(Notice) bool) error {
	events, incidents := s.filters(e.cfg.Names)
	for name, filters := range map[string][]string{e.cfg.EventsStream(): events, e.cfg.IncidentsStream(): incidents} {
		if len(filters) == 0 {
			continue
		}
		if err := e.replayStream(ctx, name, filters, since, send); err != nil {
			return err
		}
	}
	return nil
}

func (e *Engine) replayStream(ctx context.Context, name string, filters []string, since time.Time, send func(Notice) bool) error {
	st, err := e.js.Stream(ctx, name)
	if err != nil {
		return err
	}
	last := st.CachedInfo().State.LastSeq
	cons, err := e.js.OrderedConsumer(ctx, name, jetstream.OrderedConsumerConfig{
		FilterSubjects: filters, DeliverPolicy: jetstream.DeliverByStartTimePolicy, OptStartTime: &since,
	})
	if err != nil {
		return err
	}
	for cons.CachedInfo().NumPending > 0 {
		batch, err := cons.FetchNoWait(64)
		if err != nil {
			return err
		}
		n := 0
		for m := range batch.Messages() {
			n++
			meta, err := m.Metadata()
			if err != nil {
				return err
			}
			if v, err := parse(e.cfg.Names, m.Subject(), m.Headers(), m.Data(), meta.Timestamp); err == nil {
				send(v)
			}
			if meta.Sequence.Stream >= last || meta.NumPending == 0 {
				return nil
			}
		}
		if batch.Error() != nil || n == 0 {
			return batch.Error()
		}
	}
	return nil
}
