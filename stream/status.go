package stream

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sort"
	"strings"
	"time"
	"unicode"

	"github.com/nats-io/nats.go/jetstream"
)

// Status is the state of a whole installation, as the broker knows it.
type Status struct {
	Detectors []DetectorStatus `json:"detectors"`
	// Unserved counts the frames of detectors that have neither a configuration
	// nor a release, by detector: nobody will take them.
	Unserved map[string]uint64 `json:"unserved,omitempty"`
	// Full says why no frames are taken, while the disk or the store is full.
	Full string `json:"full,omitempty"`
	// Lost is what was published and not stored, since the broker started.
	Lost        []Lost `json:"lost,omitempty"`
	Events      uint64 `json:"events"`       // stored
	DeadLetters uint64 `json:"dead_letters"` // stored
	Jobs        int    `json:"jobs"`         // queued or running
	// Cameras are those that have sent frames within the last week.
	Cameras []CameraStatus `json:"cameras,omitempty"`
	// Unreadable are configurations, pointers and records that cannot be read. What
	// they had before is used, or they are left out.
	Unreadable []Unreadable `json:"unreadable,omitempty"`
}

// DetectorStatus is the state of one detector.
type DetectorStatus struct {
	Detector   string    `json:"detector"`
	Release    string    `json:"release,omitempty"` // active
	PromotedAt time.Time `json:"promoted_at,omitzero"`
	Candidate  string    `json:"candidate,omitempty"` // scores alongside
	Waiting    uint64    `json:"waiting"`             // frames in the queue, those under way included
	Normals    int       `json:"normals"`
	// Learning says how far it is, while there is no release and the first frames
	// are taken to be normal.
	Learning  *Learning `json:"learning,omitempty"`
	Anomalies int       `json:"anomalies"`          // labelled
	LastJob   *Job      `json:"last_job,omitempty"` // newest
	// Retrain says why retraining is advised, one sentence a reason.
	Retrain []string `json:"retrain,omitempty"`
}

// Learning is how far a detector is that learns from its first frames.
type Learning struct {
	Normals int `json:"normals"` // that it has
	Frames  int `json:"frames"`  // that it wants; with so many, training begins
}

// Status reads the state of an installation.
func (in *Installation) Status(ctx context.Context) (Status, error) {
	var st Status
	fail := func(err error) (Status, error) { return st, fmt.Errorf("read the status: %w", err) }
	s, err := in.Stores(ctx)
	if err != nil {
		return fail(err)
	}
	list, unread, err := s.Detectors.Check(ctx)
	if err != nil {
		return fail(err)
	}
	active, shadow, bad, err := s.Registry.Pointers(ctx)
	if err != nil {
		return fail(err)
	}
	all, lost, err := s.Jobs.Check(ctx, "")
	if err != nil {
		return fail(err)
	}
	st.Unreadable = slices.Concat(unread, bad, lost)
	st.Full = in.refusal(ctx)
	if st.Cameras, err = in.Cameras(ctx); err != nil {
		return fail(err)
	}
	byName := map[string]*DetectorStatus{}
	for _, d := range list {
		byName[d.Name] = &DetectorStatus{Detector: d.Name}
		if d.LearnFrames > 0 && active[d.Name].Release == "" {
			byName[d.Name].Learning = &Learning{Frames: d.LearnFrames}
		}
	}
	for name := range active {
		if byName[name] == nil {
			byName[name] = &DetectorStatus{Detector: name}
		}
	}
	waiting, err := in.waiting(ctx)
	if err != nil {
		return fail(err)
	}
	for name, count := range waiting {
		if d := byName[name]; d != nil {
			d.Waiting = count
			continue
		}
		if st.Unserved == nil {
			st.Unserved = map[string]uint64{}
		}
		st.Unserved[name] = count
	}
	drifts, err := in.js.Stream(ctx, in.names.EventsStream())
	if err != nil {
		return fail(err)
	}
	st.Events = drifts.CachedInfo().State.Msgs
	dead, err := perDetector(ctx, in.js, in.names.DeadStream(), in.names.Dead("*"), func(string) (string, bool) { return "", true })
	if err != nil {
		return fail(err)
	}
	st.DeadLetters = dead[""]
	if st.Lost, err = in.LostFrames(ctx); err != nil {
		return fail(err)
	}
	normals := in.Normals()
	for name, d := range byName {
		p := active[name]
		d.Release, d.PromotedAt, d.Candidate = p.Release, p.PromotedAt, shadow[name].Release
		if d.Normals, err = normals.count(ctx, in.names.Normals(name)); err != nil {
			return fail(err)
		}
		if d.Learning != nil {
			d.Learning.Normals = min(d.Normals, d.Learning.Frames)
		}
		if d.Anomalies, err = normals.count(ctx, in.names.Anomalies(name)); err != nil {
			return fail(err)
		}
		if d.Retrain, err = in.driftsOf(ctx, drifts, name, p.Release); err != nil {
			return fail(err)
		}
		st.Detectors = append(st.Detectors, *d)
	}
	sort.Slice(st.Detectors, func(a, b int) bool { return st.Detectors[a].Detector < st.Detectors[b].Detector })
	for i := range all {
		j := &all[i]
		if !j.Finished() {
			st.Jobs++
		}
		for k := range st.Detectors {
			if st.Detectors[k].Detector == j.Detector {
				st.Detectors[k].LastJob = j // they come oldest first
			}
		}
	}
	return st, nil
}

// refusal asks the steward beside an embedded broker why no frames are taken. It is
// nothing where there is none.
func (in *Installation) refusal(ctx context.Context) string {
	step, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	m, err := in.js.Conn().RequestWithContext(step, in.names.Steward(), nil)
	if err != nil {
		return ""
	}
	return strings.Map(func(r rune) rune { // anybody may have answered
		if !unicode.IsPrint(r) {
			return ' '
		}
		return r
	}, strings.ToValidUTF8(string(m.Data[:min(len(m.Data), 400)]), ""))
}

// perDetector counts the messages of a stream by what key makes of their
// subjects.
func perDetector(ctx context.Context, js jetstream.JetStream, stream, filter string, key func(subject string) (string, bool)) (map[string]uint64, error) {
	s, err := js.Stream(ctx, stream)
	if err != nil {
		return nil, err
	}
	info, err := s.Info(ctx, jetstream.WithSubjectFilter(filter))
	if err != nil {
		return nil, err
	}
	counts := map[string]uint64{}
	for subject, c := range info.State.Subjects {
		if k, ok := key(subject); ok {
			counts[k] += c
		}
	}
	return counts, nil
}

// waiting counts the frames in the queue by detector.
func (in *Installation) waiting(ctx context.Context) (map[string]uint64, error) {
	return perDetector(ctx, in.js, in.names.FramesStream(), in.names.Frames("*", "*"), func(s string) (string, bool) {
		d, _, ok := in.names.ParseFrames(s)
		return d, ok
	})
}

// driftsOf returns the reasons for retraining that workers have found since the
// active release came into service.
func (in *Installation) driftsOf(ctx context.Context, events jetstream.Stream, detector, release string) ([]string, error) {
	if release == "" {
		return nil, nil
	}
	info, err := events.Info(ctx, jetstream.WithSubjectFilter(in.names.Events(detector, "*", KindDrift)))
	if err != nil {
		return nil, err
	}
	var all []string
	for subject := range info.State.Subjects {
		m, err := events.GetLastMsgForSubject(ctx, subject)
		if errors.Is(err, jetstream.ErrMsgNotFound) {
			continue
		}
		if err != nil {
			return nil, err
		}
		if e, err := ParseEvent(in.names, m.Subject, m.Header, m.Data); err == nil && e.Release == release {
			all = append(all, e.Reason)
		}
	}
	sort.Strings(all)
	return all, nil
}
