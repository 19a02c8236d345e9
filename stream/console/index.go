package console

import (
	"cmp"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/nearmiss/nearmiss/stream"
	"github.com/nearmiss/nearmiss/stream/incident"
)

const (
	indexFor  = 30 * 24 * time.Hour
	indexMost = 50_000
)

// States of an alarm, as its last verdict says.
const (
	stateOpen      = "open"
	stateConfirmed = "confirmed"
	stateFalse     = "false_alarm"
	stateSeen      = "seen"
)

var states = []string{stateOpen, stateConfirmed, stateFalse, stateSeen}

func stateOf(verdict string) string {
	switch verdict {
	case stream.FeedbackNormal:
		return stateFalse
	case stream.FeedbackAnomalous:
		return stateConfirmed
	case stream.FeedbackSeen:
		return stateSeen
	}
	return stateOpen
}

// entry is what the index knows of a stored event.
type entry struct {
	Sequence   uint64    `json:"sequence"` // in the events stream; names the event on this page
	ID         string    `json:"id"`
	Kind       string    `json:"kind"`
	Detector   string    `json:"detector"`
	Camera     string    `json:"camera"`
	ScoredAt   time.Time `json:"scored_at"`
	FrameID    string    `json:"frame_id,omitempty"`
	Score      *float64  `json:"score,omitempty"`
	Threshold  *float64  `json:"threshold,omitempty"`
	PValue     *float64  `json:"p_value,omitempty"`
	Release    string    `json:"release,omitempty"`
	Pictures   bool      `json:"pictures"` // there are some, or were
	NoPictures string    `json:"no_pictures,omitempty"`
	Code       string    `json:"code,omitempty"`
	Reason     string    `json:"reason,omitempty"`
	Drift      bool      `json:"drifted,omitempty"`
	Incident   uint64    `json:"incident,omitempty"` // sequence of the first event of the incident that it is part of

	ratio float64 // score as a multiple of the threshold; 0: there is none
}

func newEntry(e stream.Event) entry {
	return entry{
		Sequence: e.Sequence, ID: e.ID, Kind: e.Kind, Detector: e.Detector, Camera: e.Camera, ScoredAt: e.ScoredAt, FrameID: e.FrameID,
		Score: e.Score, Threshold: e.Threshold, PValue: e.PValue, Release: e.Release,
		Pictures: e.Pictures != "", NoPictures: e.NoPictures, Code: e.Code, Reason: e.Reason, Drift: e.Drift != nil && e.Drift.Drifted,
	}
}

// judged is the last verdict on an event.
type judged struct {
	State   string    `json:"state"`
	By      string    `json:"by,omitempty"`
	Note    string    `json:"note,omitempty"`
	At      time.Time `json:"at,omitzero"`
	Pending bool      `json:"pending,omitempty"` // it can still be taken back without a trace

	order uint64 // sequence in the feedback stream
}

// alarm is an event and what was said of it.
type alarm struct {
	entry
	judged
}

// index holds the newest events and the verdicts on them.
type index struct {
	mu       sync.Mutex
	entries  []entry           // in the order of their sequences
	at       map[string]uint64 // sequence, by event id
	places   map[cameraName]*place
	rules    map[string]incident.Rules // by detector
	verdicts map[string]judged         // by event id
	pending  map[string]judged
	last     uint64 // newest sequence that was seen
	feedback uint64 // newest verdict that was seen
}

func newIndex() *index {
	return &index{at: map[string]uint64{}, places: map[cameraName]*place{}, verdicts: map[string]judged{}, pending: map[string]judged{}}
}

// add takes in an event, and returns what is known of it; false: it has been there.
func (x *index) add(e entry) (alarm, bool) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if e.Sequence <= x.last {
		return alarm{}, false
	}
	x.last = e.Sequence
	x.groupLocked(&e)
	x.entries = append(x.entries, e)
	x.at[e.ID] = e.Sequence
	if len(x.entries) > indexMost { // their verdicts stay: they are still found in the stream
		cut := len(x.entries) - indexMost*9/10
		for _, old := range x.entries[:cut] {
			if x.at[old.ID] == old.Sequence {
				delete(x.at, old.ID)
			}
		}
		x.entries = slices.Clone(x.entries[cut:])
		maps.DeleteFunc(x.places, func(_ cameraName, p *place) bool { return p.state.LastSequence < x.entries[0].Sequence })
	}
	return alarm{e, x.stateLocked(e.ID)}, true
}

// judge takes in a verdict. In whatever order they come, the last one in the
// stream wins.
func (x *index) judge(event string, v judged) bool {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.feedback = max(x.feedback, v.order)
	if old, ok := x.verdicts[event]; ok && old.order >= v.order {
		return false
	}
	x.verdicts[event] = v
	return true
}

// newest is how far the feedback stream has been read.
func (x *index) newest() uint64 {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.feedback
}

// sent takes in a verdict that was sent when the stream had been read as far as
// read. It stands until the stream brings it, which is within a moment or has been.
func (x *index) sent(event string, v judged, read uint64) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.verdicts[event].order <= read {
		v.order = read
		x.verdicts[event] = v
	}
}

// hold shows a verdict that has not been sent; release takes that back.
func (x *index) hold(event string, v judged) {
	x.mu.Lock()
	defer x.mu.Unlock()
	v.Pending = true
	x.pending[event] = v
}

func (x *index) release(event string) {
	x.mu.Lock()
	defer x.mu.Unlock()
	delete(x.pending, event)
}

func (x *index) stateLocked(event string) judged {
	if len(x.pending) > 0 {
		if v, ok := x.pending[event]; ok {
			return v
		}
	}
	if v, ok := x.verdicts[event]; ok {
		return v
	}
	return judged{State: stateOpen}
}

// of returns what was said of an event.
func (x *index) of(event string) judged {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.stateLocked(event)
}

// noticeOf returns the verdict on an event, for the live stream.
func (x *index) noticeOf(event string) verdictNotice {
	x.mu.Lock()
	defer x.mu.Unlock()
	a, _ := x.findLocked(x.at[event])
	return verdictNotice{Event: event, Incident: a.Incident, judged: x.stateLocked(event)}
}

// find returns the entry at a sequence.
func (x *index) find(sequence uint64) (alarm, bool) {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.findLocked(sequence)
}

func (x *index) findLocked(sequence uint64) (alarm, bool) {
	i, ok := slices.BinarySearchFunc(x.entries, sequence, func(e entry, s uint64) int { return cmp.Compare(e.Sequence, s) })
	if !ok {
		return alarm{}, false
	}
	return alarm{x.entries[i], x.stateLocked(x.entries[i].ID)}, true
}

// filter says which events are wanted; empty fields mean all.
type filter struct {
	kinds            []string
	detector, camera string
	state            string
	since            time.Time
}

func (f filter) takes(a alarm) bool {
	return (len(f.kinds) == 0 || slices.Contains(f.kinds, a.Kind)) && (f.detector == "" || f.detector == a.Detector) &&
		(f.camera == "" || f.camera == a.Camera) && (f.state == "" || f.state == a.State && a.Kind == stream.KindAnomaly) &&
		!a.ScoredAt.Before(f.since)
}

// list returns up to limit events before a sequence (0: the newest), newest first,
// and where the next page begins; 0: the index has no more.
func (x *index) list(f filter, before uint64, limit int) (items []alarm, next uint64) {
	x.mu.Lock()
	defer x.mu.Unlock()
	items = []alarm{}
	for _, e := range slices.Backward(x.entries) {
		if before > 0 && e.Sequence >= before {
			continue
		}
		a := alarm{e, x.stateLocked(e.ID)}
		if !f.takes(a) {
			continue
		}
		if len(items) == limit {
			return items, items[limit-1].Sequence
		}
		items = append(items, a)
	}
	return items, 0
}

// after returns the events after a sequence, oldest first; false: there are more
// than most, or some are no longer known.
func (x *index) after(sequence uint64, most int) ([]alarm, bool) {
	x.mu.Lock()
	defer x.mu.Unlock()
	i, _ := slices.BinarySearchFunc(x.entries, sequence+1, func(e entry, s uint64) int { return cmp.Compare(e.Sequence, s) })
	if len(x.entries)-i > most || i == 0 && len(x.entries) > 0 && sequence > 0 {
		return nil, false
	}
	var out []alarm
	for _, e := range x.entries[i:] {
		out = append(out, alarm{e, x.stateLocked(e.ID)})
	}
	return out, true
}

// open counts the alarms of which nobody has said anything, of a detector or with
// an empty name of all.
func (x *index) open(detector string) int {
	x.mu.Lock()
	defer x.mu.Unlock()
	n := 0
	for _, e := range x.entries {
		if e.Kind == stream.KindAnomaly && (detector == "" || e.Detector == detector) && x.stateLocked(e.ID).State == stateOpen {
			n++
		}
	}
	return n
}

// count is how many events it has.
func (x *index) count() int {
	x.mu.Lock()
	defer x.mu.Unlock()
	return len(x.entries)
}

// oldest is the sequence before which the index knows nothing.
func (x *index) oldest() uint64 {
	x.mu.Lock()
	defer x.mu.Unlock()
	if len(x.entries) == 0 {
		return x.last + 1
	}
	return x.entries[0].Sequence
}

// verdictNotice is a verdict on the live stream.
type verdictNotice struct {
	Event    string `json:"event"` // its id
	Incident uint64 `json:"incident,omitempty"`
	judged
}
