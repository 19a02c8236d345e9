package console

import (
	"cmp"
	"context"
	"slices"
	"time"

	"github.com/nearmiss/nearmiss/stream"
	"github.com/nearmiss/nearmiss/stream/incident"
)

// place is what goes on at a camera: its events become incidents by the rules that
// sinks go by, so that both mean the same by one.
type place struct {
	state incident.State
	first uint64 // sequence of the first event of the one that goes on
}

// groupLocked finds out which incident an event belongs to.
func (x *index) groupLocked(e *entry) {
	if e.Kind != stream.KindAnomaly && e.Kind != stream.KindRejected {
		return
	}
	n := x.placeOf(e)
	p := x.places[n]
	if p == nil {
		p = &place{}
		x.places[n] = p
	}
	before := p.state.Open
	p.state.Add(x.rules[e.Detector], stream.Event{
		ID: e.ID, Kind: e.Kind, Detector: e.Detector, Camera: e.Camera, ScoredAt: e.ScoredAt, Score: e.Score, Threshold: e.Threshold, Release: e.Release,
	}, e.Sequence)
	p.state.Outbox = nil // nothing is published from here
	if p.state.Open != before {
		p.first = e.Sequence
	}
	e.Incident = p.first
	e.ratio, _ = stream.Event{Score: e.Score, Threshold: e.Threshold}.Ratio()
}

// placeOf is where an event's incidents are: its camera, or all of its detector.
func (x *index) placeOf(e *entry) cameraName {
	if x.rules[e.Detector].Group {
		return cameraName{e.Detector, stream.NoCamera}
	}
	return cameraName{e.Detector, e.Camera}
}

// govern takes over what detectors say of their incidents. What is grouped stays so.
func (x *index) govern(all []stream.Detector) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.rules = map[string]incident.Rules{}
	for _, d := range all {
		x.rules[d.Name] = incident.Rules{}.Of(d)
	}
}

// readRules asks detectors what they say of their incidents.
func (l *alarms) readRules(ctx context.Context) error {
	all, _, err := l.backend.detectors.Check(ctx)
	if err == nil {
		l.index.govern(all)
	}
	return err
}

// followDetectors reads it again when one changes.
func (l *alarms) followDetectors(ctx context.Context) {
	l.backend.repeat(ctx, "detectors", func(ctx context.Context) error {
		return l.backend.detectors.Watch(ctx, func() {
			if err := l.readRules(ctx); err != nil && ctx.Err() == nil {
				l.backend.log.Warn().Err(err).Msg("what detectors say of their incidents is not known")
			}
		})
	})
}

// shownIncident is all that went wrong at a camera without a pause, as a row.
type shownIncident struct {
	Sequence uint64    `json:"sequence"` // of its first event; names it on this page
	ID       string    `json:"id"`       // of its first event, and what sinks call it
	Detector string    `json:"detector"`
	Camera   string    `json:"camera"`
	OpenedAt time.Time `json:"opened_at"`
	LastAt   time.Time `json:"last_at"` // of its latest event
	Ongoing  bool      `json:"ongoing"` // it is not over yet
	Alarms   int       `json:"alarms"`
	Rejected int       `json:"rejected"` // frames that could not be read
	Open     int       `json:"open"`     // alarms of which nobody has said anything
	Peak     alarm     `json:"peak"`     // the alarm with the highest score, as a multiple of its threshold
	judged             // open while one of its alarms is; then what was said last
}

// sum is what a pass over the events finds out of an incident.
type sum struct {
	first, last, peak      int // places of entries
	ratio                  float64
	alarms, rejected, open int
	verdict                judged // last
}

// sumsLocked adds up the incidents of the entries from one on, in the order of their
// latest events; only: the one that begins with that event, 0: all.
func (x *index) sumsLocked(from int, only uint64) []sum {
	var all []sum
	at := map[uint64]int{}
	for i := len(x.entries) - 1; i >= from; i-- {
		e := &x.entries[i]
		if e.Incident == 0 || only > 0 && e.Incident != only {
			continue
		}
		n, ok := at[e.Incident]
		if !ok {
			n = len(all)
			at[e.Incident] = n
			all = append(all, sum{last: i, peak: -1})
		}
		s := &all[n]
		s.first = i
		if e.Kind == stream.KindRejected {
			s.rejected++
			continue
		}
		s.alarms++
		if s.peak < 0 || e.ratio >= s.ratio { // of equal ones the first
			s.peak, s.ratio = i, e.ratio
		}
		v := x.stateLocked(e.ID)
		if v.State == stateOpen {
			s.open++
		} else if s.verdict.State == "" || !s.verdict.Pending && (v.Pending || v.order > s.verdict.order) {
			s.verdict = v
		}
	}
	return all
}

func (s sum) judged() judged {
	if s.open > 0 {
		return judged{State: stateOpen}
	}
	return s.verdict
}

func (x *index) shownLocked(s sum, now time.Time) shownIncident {
	a, z, peak := x.entries[s.first], x.entries[s.last], x.entries[s.peak]
	r := shownIncident{
		Sequence: a.Incident, ID: a.ID, Detector: a.Detector, Camera: a.Camera, OpenedAt: a.ScoredAt, LastAt: z.ScoredAt,
		Alarms: s.alarms, Rejected: s.rejected, Open: s.open, Peak: alarm{peak, x.stateLocked(peak.ID)}, judged: s.judged(),
	}
	if p := x.places[x.placeOf(&a)]; p != nil && p.first == a.Incident {
		r.Ongoing = !now.After(p.state.Due(x.rules[a.Detector]))
	}
	return r
}

// incidents returns up to limit incidents that have an alarm, with the latest event
// first, of those whose latest event is before a sequence (0: all); where the next
// page begins (0: there is none); and how many incidents and alarms are open.
func (x *index) incidents(f filter, before uint64, limit int, now time.Time) (items []shownIncident, next uint64, open, alarms int) {
	x.mu.Lock()
	defer x.mu.Unlock()
	items = []shownIncident{}
	var last uint64
	for _, s := range x.sumsLocked(0, 0) {
		if s.alarms == 0 {
			continue
		}
		if alarms += s.open; s.open > 0 {
			open++
		}
		z := x.entries[s.last]
		if before > 0 && z.Sequence >= before || !f.takes(alarm{x.entries[s.peak], s.judged()}) && !f.takes(alarm{z, s.judged()}) {
			continue
		}
		if len(items) < limit {
			items, last = append(items, x.shownLocked(s, now)), z.Sequence
		} else {
			next = last
		}
	}
	return items, next, open, alarms
}

// incident returns the one whose first event has a sequence, and its events, newest
// first and at most so many.
func (x *index) incident(first uint64, most int, now time.Time) (r shownIncident, events []alarm, ok bool) {
	x.mu.Lock()
	defer x.mu.Unlock()
	from, _ := slices.BinarySearchFunc(x.entries, first, func(e entry, s uint64) int { return cmp.Compare(e.Sequence, s) })
	for _, s := range x.sumsLocked(from, first) {
		if s.alarms == 0 {
			continue
		}
		for i := s.last; i >= from && len(events) < most; i-- {
			if e := x.entries[i]; e.Incident == first {
				events = append(events, alarm{e, x.stateLocked(e.ID)})
			}
		}
		return x.shownLocked(s, now), events, true
	}
	return r, nil, false
}

// toJudge are the alarms of an incident that a verdict is about, newest first: the
// open ones, or where there are none all; of a verdict that is taken back those that
// have one. At most so many; more says how many others there are; false: no incident
// begins there.
func (x *index) toJudge(first uint64, withdraw bool, most int) (events []stream.Event, more int, ok bool) {
	_, all, ok := x.incident(first, indexMost, time.Time{})
	all = slices.DeleteFunc(all, func(a alarm) bool { return a.Kind != stream.KindAnomaly })
	isOpen := func(a alarm) bool { return a.State == stateOpen }
	if withdraw {
		all = slices.DeleteFunc(all, isOpen)
	} else if slices.ContainsFunc(all, isOpen) {
		all = slices.DeleteFunc(all, func(a alarm) bool { return !isOpen(a) })
	}
	for _, a := range all[:min(len(all), most)] {
		events = append(events, stream.Event{ID: a.ID, Sequence: a.Sequence, Detector: a.Detector})
	}
	return events, len(all) - len(events), ok
}

// incidentPage is a page of incidents.
type incidentPage struct {
	listing[shownIncident]
	Open   int `json:"open"`        // incidents with an open alarm
	Alarms int `json:"open_alarms"` // alarms of which nobody has said anything
}

func (l *alarms) listIncidents(q *request) (any, error) {
	v := q.params("detector", "camera", "state", "since", "cursor", "limit")
	f := v.filter()
	limit, before := v.paging(100)
	if v.err != nil {
		return nil, v.err
	}
	items, next, open, alarms := l.index.incidents(f, before, limit, time.Now())
	return incidentPage{listing[shownIncident]{items, nextCursor(next)}, open, alarms}, nil
}

// incidentEvents is how many of an incident's events the page gets.
const incidentEvents = 200

func (l *alarms) getIncident(q *request) (any, error) {
	n, err := q.sequence()
	if err != nil {
		return nil, err
	}
	r, events, ok := l.index.incident(n, incidentEvents, time.Now())
	if !ok {
		return nil, missing("no incident begins with event %d", n)
	}
	return struct {
		shownIncident
		Events []alarm `json:"events"`
	}{r, events}, nil
}
