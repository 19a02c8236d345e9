package console

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/nearmiss/nearmiss/stream"
)

// alarms are events and incidents, and what people say of them.
type alarms struct {
	backend *backend
	feed    *feed
	index   *index
	hub     *hub
	holder  *holder
	gallery *gallery
}

// events is a page of events.
type events struct {
	listing[alarm]
	Open  int `json:"open"`  // alarms of which nobody has said anything
	Total int `json:"total"` // events stored
}

// filter reads which events, or incidents, are wanted.
func (p *params) filter() filter {
	f := filter{detector: p.Get("detector"), camera: p.Get("camera"), state: p.Get("state")}
	if f.state != "" && !slices.Contains(states, f.state) {
		p.fail("state %q: use %s", f.state, strings.Join(states, ", "))
	}
	if s := p.Get("since"); s != "" {
		var err error
		if f.since, err = time.Parse(time.RFC3339, s); err != nil {
			p.fail("since %q: give a time as RFC 3339 has it", s)
		}
	}
	return f
}

func (l *alarms) listEvents(q *request) (any, error) {
	v := q.params("kind", "detector", "camera", "state", "since", "cursor", "limit")
	f := v.filter()
	limit, before := v.paging(100)
	if v.err != nil {
		return nil, v.err
	}
	if k := v.Get("kind"); k != "" {
		f.kinds = strings.Split(k, ",")
	}
	items, next := l.index.list(f, before, limit)
	switch {
	case next > 0:
	case len(items) == limit: // the page is full, and the index at its end
		if l.index.oldest() > 1 {
			next = items[limit-1].Sequence
		}
	default:
		older, from, err := l.olderEvents(q.ctx, f, before, limit-len(items))
		if err != nil {
			return nil, err
		}
		items, next = append(items, older...), from
	}
	return events{listing[alarm]{items, nextCursor(next)}, l.index.open(""), l.index.count()}, nil
}

// olderEvents pages on in the stream, where the index ends.
func (l *alarms) olderEvents(ctx context.Context, f filter, before uint64, limit int) (items []alarm, next uint64, err error) {
	ctx, cancel := context.WithTimeout(ctx, 15*time.Second)
	defer cancel()
	oldest := l.index.oldest()
	if before == 0 || before > oldest {
		before = oldest
	}
	if before <= 1 {
		return nil, 0, nil
	}
	one := stream.EventFilter{Detector: f.detector, Camera: f.camera}
	if len(f.kinds) == 1 {
		one.Kind = f.kinds[0]
	}
	for range 10 { // pages that the filter empties
		p, err := l.backend.in.Events(ctx, one, before, limit)
		if err != nil {
			return nil, 0, err
		}
		for _, e := range p.Events {
			x := newEntry(e)
			if a := (alarm{x, l.index.of(x.ID)}); f.takes(a) {
				items = append(items, a)
			}
			if e.ScoredAt.Before(f.since) {
				return items, 0, nil
			}
		}
		next, before = p.Next, p.Next
		if next == 0 || len(items) > 0 {
			break
		}
	}
	return items, next, nil
}

// event is one with everything.
type event struct {
	Sequence uint64 `json:"sequence"`
	ID       string `json:"id"`
	Kind     string `json:"kind"`
	Truth    string `json:"truth,omitempty"`
	stream.Event
	judged
	Incident uint64           `json:"incident,omitempty"` // sequence of the first event of its incident
	Files    []stream.Picture `json:"files"`              // pictures that are kept
	Job      *stream.Job      `json:"job,omitempty"`
}

func (l *alarms) getEvent(q *request) (any, error) {
	e, err := l.backend.stored(q.ctx, q)
	if err != nil {
		return nil, err
	}
	out := event{Sequence: e.Sequence, ID: e.ID, Kind: e.Kind, Truth: e.Truth, Event: e, judged: l.index.of(e.ID), Files: []stream.Picture{}}
	if a, ok := l.index.find(e.Sequence); ok {
		out.Incident = a.Incident
	}
	if e.Pictures != "" {
		v, err := l.gallery.evidenceOf(q.ctx, e)
		switch {
		case errors.Is(err, stream.ErrNotFound):
			out.NoPictures = cmp.Or(out.NoPictures, "expired")
		case err != nil:
			return nil, err
		}
		out.Files = append(out.Files, v.Pictures...)
	}
	if out.State == stateFalse && !out.Pending {
		// The job that took it into the bank began after the verdict.
		if jobs, err := l.backend.client.Jobs(q.ctx, e.Detector); err == nil {
			for i := range jobs {
				if len(jobs[i].Extend) > 0 && !jobs[i].At.Before(out.At) {
					out.Job = &jobs[i]
					break
				}
			}
		}
	}
	return out, nil
}

// scoreAgain has the frame of an event scored by what serves now; nothing is stored.
func (l *alarms) scoreAgain(q *request) (any, error) {
	e, err := l.backend.stored(q.ctx, q)
	if err != nil {
		return nil, err
	}
	b, err := l.backend.in.EventImage(q.ctx, e)
	if err != nil {
		return nil, err
	}
	return l.backend.client.ScoreNow(q.ctx, e.Detector, b)
}

// followEvents reads what is stored and what comes.
func (l *alarms) followEvents(ctx context.Context) {
	since := time.Now().Add(-indexFor)
	l.backend.repeat(ctx, "events", func(ctx context.Context) error {
		w := stream.WatchConfig{Names: l.backend.Names, Since: since}
		return stream.Watch(ctx, l.backend.nc, w, l.backend.log, func(_ context.Context, e stream.Event) error {
			if at := e.ScoredAt.Add(-time.Minute); at.After(since) && at.Before(time.Now()) {
				since = at // where another watch begins
			}
			if x, ok := l.index.add(newEntry(e)); ok {
				if e.Camera != stream.NoCamera && time.Since(e.ScoredAt) < ringFor {
					l.feed.know(cameraName{e.Detector, e.Camera})
				}
				l.hub.send(message{event: "event", id: x.Sequence, data: x})
			}
			return nil
		})
	})
}

// followFeedback reads the verdicts, whoever sent them.
func (l *alarms) followFeedback(ctx context.Context) {
	l.backend.repeat(ctx, "verdicts", func(ctx context.Context) error {
		start := time.Now().Add(-indexFor)
		cons, err := l.backend.js.OrderedConsumer(ctx, l.backend.FeedbackStream(), jetstream.OrderedConsumerConfig{
			FilterSubjects: []string{l.backend.Feedback("*")}, DeliverPolicy: jetstream.DeliverByStartTimePolicy, OptStartTime: &start,
		})
		if err != nil {
			return fmt.Errorf("read the verdicts: %w", err)
		}
		it, err := cons.Messages()
		if err != nil {
			return fmt.Errorf("read the verdicts: %w", err)
		}
		defer it.Stop()
		for {
			m, err := it.Next(jetstream.NextContext(ctx))
			if ctx.Err() != nil {
				return nil
			}
			if err != nil {
				return fmt.Errorf("read the verdicts: %w", err)
			}
			f, err := stream.ParseFeedback(m.Data())
			meta, err2 := m.Metadata()
			if err != nil || err2 != nil || f.Event == "" {
				continue // a trainer finds out which event is meant, or refuses it
			}
			v := judged{State: stateOf(f.Verdict), By: f.By, Note: f.Note, At: f.At, order: meta.Sequence.Stream}
			if l.index.judge(f.Event, v) {
				l.holder.announce(f.Event)
			}
		}
	})
}
