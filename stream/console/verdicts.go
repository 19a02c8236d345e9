package console

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"sync"
	"time"

	"github.com/nearmiss/nearmiss/stream"
)

const (
	holdFor     = 4 * time.Second
	maxHold     = 60 * time.Second
	maxVerdicts = 500 // at once
)

// holder keeps verdicts for a while, so that they can be taken back without a
// trace, and then sends them.
type holder struct {
	backend *backend
	index   *index
	hub     *hub
	wake    chan struct{}

	mu   sync.Mutex
	held map[string]*heldVerdict // by token
}

// heldVerdict is what one press of a key says, of one event or of many.
type heldVerdict struct {
	token    string
	until    time.Time
	events   []stream.Event
	feedback stream.Feedback // without the event
	sent     int
}

// add takes a verdict over; it is the holder's from then on.
func (h *holder) add(v *heldVerdict) {
	for _, e := range v.events { // before it may be sent
		h.index.hold(e.ID, judged{State: stateOf(v.feedback.Verdict), By: v.feedback.By, Note: v.feedback.Note, At: v.feedback.At})
		h.announce(e.ID)
	}
	h.mu.Lock()
	h.held[v.token] = v
	h.mu.Unlock()
	select {
	case h.wake <- struct{}{}:
	default:
	}
}

// back takes a verdict back; false: it is not there any more.
func (h *holder) back(token string) bool {
	h.mu.Lock()
	v := h.held[token]
	if v == nil || v.until.IsZero() {
		h.mu.Unlock()
		return false
	}
	delete(h.held, token)
	h.mu.Unlock()
	h.settle(v)
	return true
}

// settle shows the events as the stream has them.
func (h *holder) settle(v *heldVerdict) {
	for _, e := range v.events {
		h.index.release(e.ID)
		h.announce(e.ID)
	}
}

// announce says on the live stream what is said of an event.
func (h *holder) announce(id string) {
	h.hub.send(message{event: "verdict", data: h.index.noticeOf(id)})
}

// due returns the verdicts whose time has come, which can no longer be taken back,
// and when to check again.
func (h *holder) due(now time.Time) (ready []*heldVerdict, next time.Duration) {
	h.mu.Lock()
	defer h.mu.Unlock()
	next = time.Hour
	for _, v := range h.held {
		switch left := v.until.Sub(now); {
		case v.until.IsZero(), left <= 0:
			v.until = time.Time{} // it is being sent
			ready = append(ready, v)
		default:
			next = min(next, left)
		}
	}
	slices.SortFunc(ready, func(a, b *heldVerdict) int { return a.feedback.At.Compare(b.feedback.At) })
	return ready, next
}

// run sends verdicts until ctx ends, and then those that are still held: for who
// gave them they are given.
func (h *holder) run(ctx context.Context) {
	for ctx.Err() == nil {
		ready, next := h.due(time.Now())
		for _, v := range ready {
			if err := h.send(ctx, v); err != nil {
				if ctx.Err() == nil {
					h.backend.log.Warn().Err(err).Msg("a verdict is sent again")
				}
				next = time.Second
			}
		}
		select {
		case <-ctx.Done():
		case <-h.wake:
		case <-time.After(next):
		}
	}
	last, cancel := context.WithTimeout(context.WithoutCancel(ctx), 3*time.Second)
	defer cancel()
	ready, _ := h.due(time.Now().Add(maxHold))
	for _, v := range ready {
		if err := h.send(last, v); err != nil {
			h.backend.log.Error().Err(err).Str("detector", v.feedback.Detector).Msg("a verdict is lost: give it again")
		}
	}
}

// send publishes a verdict on each of its events. What has been sent is not sent
// again, nor what is refused: the same would be.
func (h *holder) send(ctx context.Context, v *heldVerdict) error {
	for ; v.sent < len(v.events); v.sent++ {
		e, f := v.events[v.sent], v.feedback
		f.Detector, f.Event, f.Sequence = e.Detector, e.ID, e.Sequence
		read := h.index.newest()
		step, cancel := context.WithTimeout(ctx, 5*time.Second)
		err := h.backend.client.For(f.By).Feedback(step, f)
		cancel()
		switch {
		case err == nil:
			h.index.sent(e.ID, judged{State: stateOf(f.Verdict), By: f.By, Note: f.Note, At: f.At}, read)
		case errors.Is(err, stream.ErrBadMessage), errors.Is(err, stream.ErrNotFound):
			h.backend.log.Warn().Err(err).Str("event", e.ID).Msg("a verdict is refused")
		default:
			return fmt.Errorf("send the verdict on event %s: %w", e.ID, err)
		}
	}
	h.mu.Lock()
	delete(h.held, v.token)
	h.mu.Unlock()
	h.settle(v)
	return nil
}

// verdictRequest is what an operator says of events, and of all in incidents.
type verdictRequest struct {
	Events    []uint64 `json:"events,omitempty"`    // sequences
	Incidents []uint64 `json:"incidents,omitempty"` // sequences of their first events
	Verdict   string   `json:"verdict"`
	Reason    string   `json:"reason,omitempty"` // a stable word: why it was a false alarm
	Note      string   `json:"note,omitempty"`
	Hold      *float64 `json:"hold,omitempty"` // seconds in which it can be taken back; default 4
}

// reasons are those of a false alarm.
var reasons = []string{"", "reflection", "dirt", "other_product", "too_sensitive", "other"}

func (l *alarms) judge(q *request) (any, error) {
	var in verdictRequest
	if err := q.read(&in); err != nil {
		return nil, err
	}
	hold := holdFor
	if in.Hold != nil {
		hold = time.Duration(*in.Hold * float64(time.Second))
	}
	switch {
	case len(in.Events)+len(in.Incidents) == 0 || len(in.Events)+len(in.Incidents) > maxVerdicts:
		return nil, bad("%d events and incidents: give 1 to %d", len(in.Events)+len(in.Incidents), maxVerdicts)
	case stateOf(in.Verdict) == stateOpen && in.Verdict != stream.FeedbackWithdrawn:
		return nil, bad("verdict %q: use normal, anomalous, seen or withdrawn", clean(in.Verdict))
	case !slices.Contains(reasons, in.Reason):
		return nil, bad("reason %q: use reflection, dirt, other_product, too_sensitive or other", clean(in.Reason))
	case hold < 0 || hold > maxHold:
		return nil, bad("hold: use 0 to %.0f seconds", maxHold.Seconds())
	}
	v := &heldVerdict{token: secret(), until: time.Now().Add(hold), feedback: stream.Feedback{
		Verdict: in.Verdict, By: q.who.Name, Note: noteOf(in.Reason, in.Note), At: time.Now().UTC(),
	}}
	for _, n := range in.Events {
		e, err := l.alarmAt(q.ctx, n)
		if err != nil {
			return nil, err
		}
		v.events = append(v.events, e)
	}
	left := 0
	for _, n := range in.Incidents {
		events, more, ok := l.index.toJudge(n, in.Verdict == stream.FeedbackWithdrawn, maxVerdicts-len(v.events))
		if !ok {
			return nil, missing("no incident begins with event %d", n)
		}
		v.events, left = append(v.events, events...), left+more
	}
	if len(v.events) == 0 {
		return nil, problem{http.StatusConflict, stream.CodeConflict, "there is no alarm to judge: reload the page"}
	}
	for _, e := range v.events {
		f := v.feedback
		f.Detector, f.Event = e.Detector, e.ID
		if err := f.Validate(); err != nil {
			return nil, err
		}
	}
	answer := created{http.StatusAccepted, struct {
		Token  string    `json:"token"`
		Until  time.Time `json:"until"`
		Events int       `json:"events"` // of which it is said
		Left   int       `json:"left"`   // alarms of the incidents that were too many for one verdict
	}{v.token, v.until.UTC(), len(v.events), left}}
	l.holder.add(v)
	return answer, nil
}

// noteOf is what is kept with a verdict: the reason's word first, for who counts.
func noteOf(reason, note string) string {
	if reason == "" || note == "" {
		return reason + note
	}
	return reason + ": " + note
}

// alarmAt is the alarm at a sequence, with what feedback needs to know of it.
func (l *alarms) alarmAt(ctx context.Context, sequence uint64) (stream.Event, error) {
	if a, ok := l.index.find(sequence); ok {
		if a.Kind != stream.KindAnomaly {
			return stream.Event{}, bad("event %d is no alarm", sequence)
		}
		return stream.Event{ID: a.ID, Sequence: a.Sequence, Detector: a.Detector}, nil
	}
	e, err := l.backend.in.Event(ctx, sequence)
	if err == nil && e.Kind != stream.KindAnomaly {
		err = bad("event %d is no alarm", sequence)
	}
	return e, err
}

func (l *alarms) unjudge(q *request) (any, error) {
	if !l.holder.back(q.PathValue("token")) {
		return nil, problem{http.StatusConflict, stream.CodeConflict, "it has been sent: withdraw it with another verdict"}
	}
	return nil, nil
}
