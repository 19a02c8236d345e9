// Package incident gives alarms a beginning and an end. A camera that shows the
// same defect for a minute raises hundreds of events; people want to be notified
// once that it began, perhaps that it grew worse, and once that it is over.
//
// An incident ([Incident]) is all that went wrong at one camera without a pause.
// What happens to it is decided by [State.Add], [State.Quiet] and [State.Good] alone,
// from events, good frames and their times, and by [State.Judge] from what people say; the engine ([Engine]) reads events, keeps the open
// incidents in the bucket NM_INCIDENTS, and publishes each phase on
// nearmiss.incidents.<detector>.<camera>.<phase>.
//
// Nothing is reported twice and nothing is left out, whenever a process dies: a new
// state is stored together with what it has to tell, only then that is published,
// under an id made of the incident's and a number, and only then is the event
// acknowledged.
package incident

import (
	"cmp"
	_ "embed" // the schema
	"encoding/json"
	"fmt"
	"slices"
	"time"

	"github.com/nearmiss/nearmiss/stream"
)

// Schema is the JSON Schema (draft 2020-12) of an incident.
//
//go:embed incident.schema.json
var Schema []byte

// Phases of an incident: the last token of its subject.
const (
	New    = "new"
	Update = "update"
	End    = "end"
)

// Type is the CloudEvents type of incidents.
const Type = "dev.nearmiss.incident.v1"

// Rules say when an incident ends and when it is reported again.
type Rules struct {
	// Quiet is how long nothing may go wrong until it is over. Default 30 s.
	Quiet time.Duration
	// QuietFrames is how many good frames in a row end it sooner; of several cameras,
	// of each that is in it. 0: time alone does.
	QuietFrames int
	// Group makes one incident of all cameras of a detector.
	Group bool
	// Every is how long an incident that goes on stays untold. Default 60 s.
	Every time.Duration
	// Rise is by how much the worst score must grow to be reported at once, as a
	// share. Default 0.2.
	Rise float64
	// Flood is how many events of one minute are too many to be defects: the
	// camera or the light has failed, and updates stop. Default 60.
	Flood int
}

func (r Rules) withDefaults() Rules {
	r.Quiet = cmp.Or(r.Quiet, 30*time.Second)
	r.Every = cmp.Or(r.Every, time.Minute)
	r.Rise = cmp.Or(r.Rise, 0.2)
	r.Flood = cmp.Or(r.Flood, 60)
	return r
}

// Of are the rules of a detector, where it says something, and r's otherwise.
func (r Rules) Of(d stream.Detector) Rules {
	if d.Quiet > 0 {
		r.Quiet = time.Duration(d.Quiet)
	}
	r.QuietFrames, r.Group = d.QuietFrames, d.Group == stream.GroupDetector
	return r
}

// Incident is an alarm with a beginning and an end.
type Incident struct {
	ID       string `json:"id"`    // of its first event
	Phase    string `json:"phase"` // new, update or end
	N        int    `json:"n"`     // number of this message, from 0 without a gap
	Detector string `json:"detector"`
	Camera   string `json:"camera"` // of its first event
	// Cameras are those in it, in the order in which they appeared, where all cameras
	// of the detector are one incident; at most 64.
	Cameras []string `json:"cameras,omitempty"`

	OpenedAt time.Time `json:"opened_at"`         // of the first event, UTC
	LastAt   time.Time `json:"last_at"`           // of the latest event, UTC
	EndedAt  time.Time `json:"ended_at,omitzero"` // when it was over, UTC
	// EndedBy is why: [ByQuiet], [ByFrames] or [ByRelease].
	EndedBy string `json:"ended_by,omitempty"`

	Anomalies int `json:"anomalies"` // frames that were not normal
	Rejected  int `json:"rejected"`  // frames that could not be read
	// Peak is the worst of them.
	Peak Peak `json:"peak"`
	// Releases that judged, in the order in which they appeared; at most 8.
	Releases []string `json:"releases,omitempty"`
	// Flood is true from the minute on in which there were too many events to be
	// defects.
	Flood bool `json:"flood,omitempty"`
	// Verdict is the last that a person gave on one of its events; nil: none, or it
	// was taken back. It ends nothing.
	Verdict *Verdict `json:"verdict,omitempty"`
	// Trace is the W3C trace context of its first event, which its messages carry on.
	Trace string `json:"trace,omitempty"`
}

// Why an incident is over.
const (
	ByQuiet   = "quiet"   // nothing went wrong for long enough
	ByFrames  = "frames"  // there were enough good frames in a row
	ByRelease = "release" // another release judges: what it finds is another incident
)

// Places are the cameras that are in it.
func (i Incident) Places() []string {
	if len(i.Cameras) > 0 {
		return i.Cameras
	}
	return []string{i.Camera}
}

// States of an incident for people.
const (
	Open       = "open" // nobody has said anything
	Seen       = "seen"
	Confirmed  = "confirmed"   // there is something wrong
	FalseAlarm = "false_alarm" // there is not
)

// Verdict is what a person says of an incident.
type Verdict struct {
	State  string    `json:"state"` // [Seen], [Confirmed] or [FalseAlarm]
	By     string    `json:"by,omitempty"`
	At     time.Time `json:"at"`
	Reason string    `json:"reason,omitempty"`
}

// State is how the incident is for people: [Open] or what its verdict says.
func (i Incident) State() string {
	if i.Verdict == nil {
		return Open
	}
	return i.Verdict.State
}

// Peak is the event with the highest score, as a multiple of its threshold; of
// rejected frames alone it is the first.
type Peak struct {
	ID        string        `json:"id"`               // of the event
	Camera    string        `json:"camera,omitempty"` // its camera, where the incident has several
	FrameID   string        `json:"frame_id,omitempty"`
	At        time.Time     `json:"at"`
	Score     *float64      `json:"score,omitempty"`
	Threshold *float64      `json:"threshold,omitempty"`
	PValue    *float64      `json:"p_value,omitempty"`
	Ratio     float64       `json:"ratio,omitempty"` // score as a multiple of the threshold
	Regions   []stream.Spot `json:"regions,omitzero"`
	Pictures  string        `json:"pictures,omitempty"`
	Code      string        `json:"code,omitempty"`   // of a rejected frame
	Reason    string        `json:"reason,omitempty"` // of a rejected frame
}

// MarshalJSON writes the id also under the name that it had once, event, for who
// reads that still.
func (p Peak) MarshalJSON() ([]byte, error) {
	type fields Peak // without this method
	return json.Marshal(struct {
		fields
		Before string `json:"event"`
	}{fields(p), p.ID})
}

// UnmarshalJSON reads what is written now, and what was before the id was called id
// here too.
func (p *Peak) UnmarshalJSON(b []byte) error {
	type fields Peak
	v := struct {
		*fields
		Before string `json:"event"`
	}{fields: (*fields)(p)}
	if err := json.Unmarshal(b, &v); err != nil {
		return err
	}
	p.ID = cmp.Or(p.ID, v.Before)
	return nil
}

// Bounds of [Incident.Releases] and [Incident.Cameras].
const (
	maxReleases = 8
	maxCameras  = 64
)

// overlap is how long workers may go on with the release before, while others have
// the new one: what they find belongs to the incident that goes on.
const overlap = time.Minute

// State is what is kept of a place, detector and camera, between two events.
// The zero value has no incident.
type State struct {
	// Open is the incident that goes on; nil: there is none.
	Open *Incident `json:"open,omitempty"`
	// PublishedRatio is the worst ratio that has been published, and PublishedAt when.
	PublishedRatio float64   `json:"told,omitempty"`
	PublishedAt    time.Time `json:"told_at,omitzero"`
	// Minute and InMinute count the events of the current minute.
	Minute   time.Time `json:"minute,omitzero"`
	InMinute int       `json:"in_minute,omitempty"`
	// Release judges; Before is the one before it, and ChangedAt when it was replaced.
	Release   string    `json:"release,omitempty"`
	Before    string    `json:"before,omitempty"`
	ChangedAt time.Time `json:"changed_at,omitzero"`
	// CountedAt is when the last event was counted, by the engines' clock, the broker's.
	CountedAt time.Time `json:"counted_at,omitzero"`
	// LastSequence is the sequence of the last event that was counted: one that comes
	// again changes nothing.
	LastSequence uint64 `json:"seen"`
	// Outbox is what has to be published still.
	Outbox []Incident `json:"outbox,omitempty"`
}

// at is when an event happened.
func at(e stream.Event) time.Time {
	if !e.ScoredAt.IsZero() {
		return e.ScoredAt.UTC()
	}
	return e.CapturedAt.UTC()
}

// Add counts an event, whose sequence in the broker is seq, and puts what must
// be published into the outbox. It says whether anything has changed.
func (s *State) Add(r Rules, e stream.Event, seq uint64) bool {
	r = r.withDefaults()
	if seq <= s.LastSequence {
		return false
	}
	s.LastSequence = seq
	t := at(e)
	if s.Open != nil && t.Sub(s.Open.LastAt) > r.Quiet {
		s.end(s.Open.LastAt.Add(r.Quiet), ByQuiet)
	}
	s.judgedBy(e.Release, t)
	first := s.Open == nil
	if first {
		s.Open = &Incident{ID: e.ID, Detector: e.Detector, Camera: e.Camera, OpenedAt: t, LastAt: t, Trace: e.Trace}
		s.PublishedRatio, s.PublishedAt, s.Minute, s.InMinute = 0, t, t, 0
	}
	o := s.Open
	if t.After(o.LastAt) {
		o.LastAt = t
	}
	if r.Group && !slices.Contains(o.Cameras, e.Camera) && len(o.Cameras) < maxCameras {
		o.Cameras = append(slices.Clip(o.Cameras), e.Camera)
	}
	if e.Kind == stream.KindRejected {
		o.Rejected++
	} else {
		o.Anomalies++
	}
	if e.Release != "" && !slices.Contains(o.Releases, e.Release) && len(o.Releases) < maxReleases {
		o.Releases = append(slices.Clip(o.Releases), e.Release)
	}
	p := peakOf(e)
	if r.Group {
		p.Camera = e.Camera
	}
	if first || p.Ratio > o.Peak.Ratio {
		o.Peak = p
	}
	if t.Sub(s.Minute) >= time.Minute {
		s.Minute, s.InMinute = t, 0
	}
	s.InMinute++
	flooded := !o.Flood && s.InMinute > r.Flood
	o.Flood = o.Flood || flooded
	switch {
	case first:
		s.announce(New, t)
	case flooded:
		s.announce(Update, t)
	case o.Flood: // nothing more until it ends
	case o.Peak.Ratio > s.PublishedRatio*(1+r.Rise), t.Sub(s.PublishedAt) >= r.Every:
		s.announce(Update, t)
	}
	return true
}

// judgedBy takes note of the release that judged at t. When another one has taken
// over, the incident is over: whether what it found goes on is for the new release
// to find.
func (s *State) judgedBy(release string, t time.Time) {
	if s.Release == "" && s.Open != nil && len(s.Open.Releases) > 0 { // stored before it was noted
		s.Release = s.Open.Releases[len(s.Open.Releases)-1]
	}
	switch {
	case release == "" || release == s.Release:
		return
	case release == s.Before && t.Sub(s.ChangedAt) < overlap:
		return
	case s.Release != "":
		if o := s.Open; o != nil {
			over := t
			if o.LastAt.After(over) {
				over = o.LastAt
			}
			s.end(over, ByRelease)
		}
		s.Before, s.ChangedAt = s.Release, t
	}
	s.Release = release
}

// verdicts are what feedback means for an incident.
var verdicts = map[string]string{
	stream.FeedbackNormal: FalseAlarm, stream.FeedbackAnomalous: Confirmed, stream.FeedbackSeen: Seen, stream.FeedbackWithdrawn: Open,
}

// Judge takes note of what a person says of an event of the incident that is
// open; of another one's it changes nothing. Who says what was said already
// changes nothing, either: all events of an incident may be marked one by one. It
// says whether anything has changed.
func (s *State) Judge(f stream.Feedback, about stream.Event) bool {
	o, state := s.Open, verdicts[f.Verdict]
	if o == nil || state == "" || state == o.State() || at(about).Before(o.OpenedAt) || at(about).After(o.LastAt) {
		return false
	}
	o.Verdict = nil
	if state != Open {
		o.Verdict = &Verdict{State: state, By: f.By, At: f.At.UTC(), Reason: f.Note}
	}
	s.announce(Update, o.LastAt) // in a flood, too: somebody waits for it
	return true
}

// Quiet ends the incident if nothing has gone wrong for long enough at now. It
// says whether anything has changed.
func (s *State) Quiet(r Rules, now time.Time) bool {
	r = r.withDefaults()
	if s.Open == nil || now.Sub(s.Open.LastAt) <= r.Quiet {
		return false
	}
	s.end(s.Open.LastAt.Add(r.Quiet), ByQuiet)
	return true
}

// Due is when the incident ends if nothing more happens; zero without one.
func (s *State) Due(r Rules) time.Time {
	if s.Open == nil {
		return time.Time{}
	}
	return s.Open.LastAt.Add(r.withDefaults().Quiet)
}

// runs have the cameras' latest good frames; see [State.Good].
type runs = func(camera string) (from, to time.Time, ok bool)

// Good ends the incident when all its cameras have had enough good frames in a row
// since the last event. from and to are the times of the first and the last of the
// latest [Rules.QuietFrames] good frames of a camera, where it has had so many and
// nothing else since the first of them. It says whether anything has changed.
func (s *State) Good(r Rules, run runs) bool {
	if s.Open == nil || r.QuietFrames <= 0 {
		return false
	}
	over := s.Open.LastAt
	for _, c := range s.Open.Places() {
		from, to, ok := run(c)
		if !ok || !from.After(s.Open.LastAt) {
			return false
		}
		if to.After(over) {
			over = to
		}
	}
	s.end(over, ByFrames)
	return true
}

func (s *State) end(t time.Time, why string) {
	s.Open.EndedAt, s.Open.EndedBy = t.UTC(), why
	s.announce(End, t)
	s.Open = nil
}

func (s *State) announce(phase string, t time.Time) {
	o := s.Open
	o.Phase = phase
	s.Outbox = append(s.Outbox, *o)
	o.N++
	s.PublishedRatio, s.PublishedAt = o.Peak.Ratio, t
}

func peakOf(e stream.Event) Peak {
	p := Peak{
		ID: e.ID, FrameID: e.FrameID, At: at(e), Score: e.Score, Threshold: e.Threshold, PValue: e.PValue,
		Regions: e.Regions, Pictures: e.Pictures,
	}
	if e.Kind == stream.KindRejected {
		p.Code, p.Reason = e.Code, e.Reason
	}
	p.Ratio, _ = e.Ratio()
	return p
}

// ParseState reads what is stored of a place.
func ParseState(key string, value []byte) (State, error) {
	var s State
	if err := json.Unmarshal(value, &s); err != nil {
		return s, fmt.Errorf("incidents of %q: %w", key, err)
	}
	all := slices.Clone(s.Outbox)
	if s.Open != nil {
		all = append(all, *s.Open)
	}
	for _, i := range all {
		if !stream.ValidToken(i.Detector) || !stream.ValidToken(i.Camera) || i.ID == "" || i.N < 0 {
			return s, fmt.Errorf("incidents of %q: an incident without id, detector or camera", key)
		}
	}
	return s, nil
}
