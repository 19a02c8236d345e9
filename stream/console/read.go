package console

import (
	"cmp"
	"context"
	"errors"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/nearmiss/nearmiss/stream"
	"github.com/nearmiss/nearmiss/stream/registry"
)

func (c *Console) cameraScores(q *request) (any, error) {
	v := q.params("for")
	age := v.duration("for", 10*time.Minute)
	if v.err != nil {
		return nil, v.err
	}
	s, ok := c.feed.series(cameraName{q.PathValue("detector"), q.PathValue("camera")}, time.Now().Add(-age))
	if !ok {
		return nil, missing("nothing is known of that camera")
	}
	return s, nil
}

func (p *params) duration(name string, def time.Duration) time.Duration {
	s := p.Get(name)
	if s == "" {
		return def
	}
	d, err := time.ParseDuration(s)
	if err != nil || d <= 0 {
		p.fail("%q is no time such as 10m", s)
	}
	return d
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

func (c *Console) listEvents(q *request) (any, error) {
	v := q.params("kind", "detector", "camera", "state", "since", "cursor", "limit")
	f := v.filter()
	limit, before := v.paging(100)
	if v.err != nil {
		return nil, v.err
	}
	if k := v.Get("kind"); k != "" {
		f.kinds = strings.Split(k, ",")
	}
	items, next := c.index.list(f, before, limit)
	switch {
	case next > 0:
	case len(items) == limit: // the page is full, and the index at its end
		if c.index.oldest() > 1 {
			next = items[limit-1].Sequence
		}
	default:
		older, from, err := c.olderEvents(q.ctx, f, before, limit-len(items))
		if err != nil {
			return nil, err
		}
		items, next = append(items, older...), from
	}
	return events{listing[alarm]{items, nextCursor(next)}, c.index.open(""), c.index.count()}, nil
}

// olderEvents pages on in the stream, where the index ends.
func (c *Console) olderEvents(ctx context.Context, f filter, before uint64, limit int) (items []alarm, next uint64, err error) {
	ctx, cancel := context.WithTimeout(ctx, 15*time.Second)
	defer cancel()
	oldest := c.index.oldest()
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
		p, err := c.in.Events(ctx, one, before, limit)
		if err != nil {
			return nil, 0, err
		}
		for _, e := range p.Events {
			x := newEntry(e)
			if a := (alarm{x, c.index.of(x.ID)}); f.takes(a) {
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
	Incident uint64      `json:"incident,omitempty"` // sequence of the first event of its incident
	Files    []eventFile `json:"files"`              // pictures that are kept
	Job      *stream.Job `json:"job,omitempty"`
}

type eventFile struct {
	Name  string `json:"name"`
	About string `json:"about"`
}

func (c *Console) getEvent(q *request) (any, error) {
	e, err := c.stored(q.ctx, q)
	if err != nil {
		return nil, err
	}
	out := event{Sequence: e.Sequence, ID: e.ID, Kind: e.Kind, Truth: e.Truth, Event: e, judged: c.index.of(e.ID), Files: []eventFile{}}
	if a, ok := c.index.find(e.Sequence); ok {
		out.Incident = a.Incident
	}
	if e.Pictures != "" {
		v, err := c.evidenceOf(q.ctx, e)
		switch {
		case errors.Is(err, stream.ErrNotFound):
			out.NoPictures = cmp.Or(out.NoPictures, "expired")
		case err != nil:
			return nil, err
		}
		for _, p := range v.Pictures {
			out.Files = append(out.Files, eventFile{p.Name, p.About})
		}
	}
	if out.State == stateFalse && !out.Pending {
		// The job that took it into the bank began after the verdict.
		if jobs, err := c.client.Jobs(q.ctx, e.Detector); err == nil {
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

// detector is one with what is in force.
type detector struct {
	stream.Detector
	Revision  uint64                 `json:"revision"`
	Set       map[string]bool        `json:"set"` // fields that are not the defaults
	Status    *stream.DetectorStatus `json:"status,omitempty"`
	Facts     *Facts                 `json:"facts,omitempty"` // of the active release
	Threshold *float64               `json:"threshold_in_force,omitempty"`
	By        string                 `json:"threshold_by,omitempty"`
	Low       float64                `json:"rate_low,omitempty"` // of the promise, with 95 % confidence
	High      float64                `json:"rate_high,omitempty"`
	PerSecond float64                `json:"frames_per_second"`
	Open      int                    `json:"open"`
}

func (c *Console) listDetectors(q *request) (any, error) {
	all, _, err := c.detectors.Check(q.ctx)
	if err != nil {
		return nil, err
	}
	o, err := c.getOverview()
	if err != nil {
		return nil, err
	}
	out := listing[detector]{Items: []detector{}}
	for _, d := range all {
		out.Items = append(out.Items, c.describe(q.ctx, d, o))
	}
	return out, nil
}

func (c *Console) getDetector(q *request) (any, error) {
	d, err := c.detectors.Get(q.ctx, q.PathValue("detector"))
	if err != nil {
		return nil, err
	}
	return c.described(q, d)
}

// described is a detector with what is in force now.
func (c *Console) described(q *request, d stream.Detector) (any, error) {
	o, err := c.getOverview()
	if err != nil {
		return nil, err
	}
	return c.describe(q.ctx, d, o), nil
}

// describe adds what is in force to a configuration.
func (c *Console) describe(ctx context.Context, conf stream.Detector, o overview) detector {
	d := detector{Detector: conf.WithDefaults(), Revision: conf.Revision, Set: setFields(conf), Open: c.index.open(conf.Name)}
	for i := range o.Detectors {
		if o.Detectors[i].Detector == conf.Name {
			d.Status = &o.Detectors[i]
		}
	}
	for _, cam := range o.Cams {
		if cam.Detector == conf.Name {
			d.PerSecond += cam.PerSecond
		}
	}
	p, err := c.registry.Active(ctx, conf.Name)
	if err != nil {
		return d // none, or none that can be read: the status says so
	}
	f, err := c.factsOf(p.Release)
	if err != nil {
		return d
	}
	d.Facts, d.Threshold = &f, f.Threshold
	switch {
	case conf.Threshold > 0:
		d.Threshold, d.By = &conf.Threshold, stream.ThresholdByHand
	case conf.Margin > 0 && f.Threshold != nil:
		d.Threshold, d.By = new(*f.Threshold*conf.Margin), stream.ThresholdByMargin
	default:
		d.Low, d.High = c.cfg.FalseAlarms(f.HeldOut, f.Promised)
	}
	return d
}

// factsOf reads a release's manifest, which never changes.
func (c *Console) factsOf(digest string) (Facts, error) {
	return c.facts.get(c.base, digest, 24*time.Hour, func(ctx context.Context) (Facts, error) {
		rel, err := c.registry.Show(ctx, digest)
		if err != nil {
			return Facts{}, err
		}
		f, err := c.cfg.Describe(rel.Manifest)
		if err != nil {
			return f, problem{http.StatusUnprocessableEntity, "corrupt", "the release's manifest cannot be read: " + err.Error()}
		}
		for _, e := range rel.Files {
			f.Bytes += e.Size
		}
		return f, nil
	})
}

// shownRelease is one with its facts.
type shownRelease struct {
	registry.Release
	Candidate bool   `json:"candidate"`
	Facts     *Facts `json:"facts,omitempty"`
	Problem   string `json:"problem,omitempty"`
}

type releases struct {
	listing[shownRelease]
	History []registry.Pointer    `json:"history"` // newest first
	Shadows []stream.ShadowReport `json:"shadows"`
}

func (c *Console) listReleases(q *request) (any, error) {
	name := q.PathValue("detector")
	all, err := c.registry.List(q.ctx, name)
	if err != nil {
		return nil, err
	}
	candidate, err := c.registry.Shadow(q.ctx, name)
	if err != nil && !errors.Is(err, registry.ErrNoRelease) {
		return nil, err
	}
	out := releases{listing[shownRelease]{Items: []shownRelease{}}, []registry.Pointer{}, []stream.ShadowReport{}}
	for _, r := range slices.Backward(all) {
		s := shownRelease{Release: r, Candidate: r.Digest == candidate.Release}
		if f, err := c.factsOf(r.Digest); err == nil {
			s.Facts = &f
		} else {
			s.Problem = err.Error()
		}
		out.Items = append(out.Items, s)
	}
	history, err := c.registry.History(q.ctx, name)
	if err != nil && !errors.Is(err, registry.ErrNoRelease) {
		return nil, err
	}
	out.History = append(out.History, history...)
	if o, err := c.getOverview(); err == nil {
		for _, w := range o.Workers {
			for _, s := range w.Shadows {
				if s.Detector == name {
					out.Shadows = append(out.Shadows, s)
				}
			}
		}
	}
	return out, nil
}

func (c *Console) listJobs(q *request) (any, error) {
	v := q.params("detector")
	if v.err != nil {
		return nil, v.err
	}
	jobs, err := c.in.Jobs(q.ctx)
	if err != nil {
		return nil, err
	}
	all, err := jobs.List(q.ctx, v.Get("detector"))
	if err != nil {
		return nil, err
	}
	slices.Reverse(all)
	return listing[stream.Job]{Items: append([]stream.Job{}, all[:min(len(all), 500)]...)}, nil
}

// jobHistory is what the trainer has kept, and then what came since.
func (c *Console) jobHistory(q *request) (any, error) {
	live := c.curves.of(q.PathValue("job"))
	kept, err := c.in.History(q.ctx, q.PathValue("job"))
	if err != nil {
		return nil, err
	}
	if len(live) > 0 {
		i, _ := slices.BinarySearchFunc(kept, live[0].At, func(p stream.Progress, at time.Time) int { return p.At.Compare(at) })
		kept = kept[:i]
	}
	return listing[stream.Progress]{Items: append(append([]stream.Progress{}, kept...), live...)}, nil
}

// jobSheet is the picture that the trainer has kept of a job.
func (c *Console) jobSheet(q *request) (any, error) {
	b, err := c.in.JobFile(q.ctx, q.PathValue("job"), stream.JobSheet)
	if err != nil {
		return nil, err
	}
	return picture(b, forNow)
}

// normalPage is a page of a training set.
type normalPage struct {
	listing[stream.Normal]
	Total int `json:"total"`
}

func (c *Console) listNormals(q *request) (any, error) {
	v := q.params("anomalies", "cursor", "limit")
	limit, before := v.paging(200)
	if v.err != nil {
		return nil, v.err
	}
	all, err := c.normals.List(q.ctx, q.PathValue("detector"), v.yes("anomalies"))
	if err != nil {
		return nil, err
	}
	out := normalPage{listing[stream.Normal]{Items: []stream.Normal{}}, len(all)}
	for _, n := range slices.Backward(all) {
		if before > 0 && n.Sequence >= before {
			continue
		}
		if len(out.Items) == limit {
			out.Next = nextCursor(out.Items[limit-1].Sequence)
			break
		}
		out.Items = append(out.Items, n)
	}
	return out, nil
}
