package stream

import (
	"cmp"
	"context"
	"errors"
	"fmt"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/nearmiss/nearmiss/stream/internal/scan"
	"github.com/nearmiss/nearmiss/stream/internal/text"
)

// EventFilter says which stored events are wanted. An empty field means all.
type EventFilter struct {
	Detector string
	Camera   string
	Kind     string // [KindAnomaly] and so on
}

func (f EventFilter) subject(n Names) (string, error) {
	var errs []error
	token := func(what, s string) string {
		if s != "" {
			errs = append(errs, CheckToken(what, s))
		}
		return cmp.Or(s, "*")
	}
	subject := n.Events(token("detector", f.Detector), token("camera", f.Camera), token("kind", f.Kind))
	return subject, errors.Join(errs...)
}

// EventPage is a part of the stored events.
type EventPage struct {
	Events []Event // newest first
	// Next is what [Installation.Events] takes as before for the next page; 0: there is none.
	Next uint64
}

// maxPage bounds a page of events.
const maxPage = 1000

// Events returns up to limit stored events, newest first, of those before the
// sequence before in the events stream; 0: of all. Its cost is that of the page and of what
// lies between its events, not of the history.
func (in *Installation) Events(ctx context.Context, f EventFilter, before uint64, limit int) (EventPage, error) {
	subject, err := f.subject(in.names)
	if err != nil {
		return EventPage{}, err
	}
	if limit < 1 || limit > maxPage {
		return EventPage{}, fmt.Errorf("a page of %d events: use 1 to %d: %w", limit, maxPage, ErrBadMessage)
	}
	var page EventPage
	err = scan.Back(ctx, in.js, in.names.EventsStream(), subject, before, false, func(m jetstream.Msg, seq uint64) bool {
		if len(page.Events) == limit {
			page.Next = page.Events[limit-1].Sequence
			return false
		}
		// What is no event is passed over: anybody may publish.
		if e, err := ParseEvent(in.names, m.Subject(), m.Headers(), m.Data()); err == nil {
			e.Sequence = seq
			page.Events = append(page.Events, e)
		}
		return true
	})
	if err != nil {
		return EventPage{}, fmt.Errorf("read events: %w", err)
	}
	return page, nil
}

// FindEvent returns the stored anomaly event with an id, or the newest one of a
// camera's frame, or [ErrNotFound]. An empty camera means any. Newer events are
// found faster; see [Installation.Event] where the sequence is known.
func (in *Installation) FindEvent(ctx context.Context, detector, camera, id, frame string) (Event, error) {
	subject, err := EventFilter{Detector: detector, Camera: camera, Kind: KindAnomaly}.subject(in.names)
	if err != nil {
		return Event{}, err
	}
	var seq uint64
	err = scan.Back(ctx, in.js, in.names.EventsStream(), subject, 0, true, func(m jetstream.Msg, at uint64) bool {
		h := m.Headers()
		if id != "" && h.Get(ceID) == id || id == "" && h.Get(ceSubject) == camera+"/"+frame {
			seq = at
		}
		return seq == 0
	})
	if err != nil {
		return Event{}, fmt.Errorf("find the event: %w", err)
	}
	what := fmt.Sprintf("event %s of detector %s", text.Clip(id), detector)
	if id == "" {
		what = fmt.Sprintf("an event of frame %s of camera %s of detector %s", text.Clip(frame), camera, detector)
	}
	if seq == 0 {
		return Event{}, fmt.Errorf("%s: %w", what, ErrNotFound)
	}
	e, err := in.Event(ctx, seq)
	if err != nil {
		return Event{}, fmt.Errorf("%s: %w", what, err)
	}
	return e, nil
}

// Event returns the event at a sequence of the events stream, or
// [ErrNotFound].
func (in *Installation) Event(ctx context.Context, sequence uint64) (Event, error) {
	if sequence == 0 {
		return Event{}, fmt.Errorf("event %d: %w", sequence, ErrNotFound)
	}
	return in.readEvent(ctx, fmt.Sprintf("event %d", sequence), func(s jetstream.Stream) (*jetstream.RawStreamMsg, error) {
		return s.GetMsg(ctx, sequence)
	})
}

// LastEvent returns the newest event of a subject, or [ErrNotFound].
func (in *Installation) LastEvent(ctx context.Context, subject string) (Event, error) {
	return in.readEvent(ctx, "an event of "+subject, func(s jetstream.Stream) (*jetstream.RawStreamMsg, error) {
		return s.GetLastMsgForSubject(ctx, subject)
	})
}

func (in *Installation) readEvent(ctx context.Context, what string, get func(jetstream.Stream) (*jetstream.RawStreamMsg, error)) (Event, error) {
	s, err := in.js.Stream(ctx, in.names.EventsStream())
	if err != nil {
		return Event{}, fmt.Errorf("read %s: %w", what, err)
	}
	raw, err := get(s)
	if errors.Is(err, jetstream.ErrMsgNotFound) {
		return Event{}, fmt.Errorf("%s: %w", what, ErrNotFound)
	}
	if err != nil {
		return Event{}, fmt.Errorf("read %s: %w", what, err)
	}
	e, err := ParseEvent(in.names, raw.Subject, raw.Header, raw.Data)
	e.Sequence = raw.Sequence
	return e, err
}

// StoreEvent stores an event.
func (in *Installation) StoreEvent(ctx context.Context, e *Event) error {
	m, err := e.Message(in.names)
	if err != nil {
		return err
	}
	step, cancel := context.WithTimeout(ctx, PublishWait)
	defer cancel()
	_, err = in.js.PublishMsg(step, m)
	return err
}
