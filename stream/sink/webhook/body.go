package webhook

import (
	"bytes"
	"cmp"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"text/template"
	"time"

	"github.com/nearmiss/nearmiss/stream"
	"github.com/nearmiss/nearmiss/stream/incident"
	"github.com/nearmiss/nearmiss/stream/sink"
)

// body makes the bodies of requests.
type body struct {
	cfg  Config
	tmpl *template.Template // nil: a CloudEvent
}

// maxTemplate bounds a template, in bytes.
const maxTemplate = 64 << 10

// errTooLong ends a template whose result grows without end.
var errTooLong = fmt.Errorf("webhook: the template makes more than %d bytes", maxBody)

func newBody(cfg Config) (*body, error) {
	text := cfg.Template
	if cfg.Preset != "" {
		if text != "" {
			return nil, errors.New("webhook: give a preset or a template, not both")
		}
		var ok bool
		if text, ok = Presets[cfg.Preset]; !ok {
			return nil, fmt.Errorf("webhook: there is no preset %q: use one of %s", cfg.Preset, strings.Join(slices.Sorted(maps.Keys(Presets)), ", "))
		}
	}
	b := &body{cfg: cfg}
	if text == "" {
		return b, nil
	}
	if len(text) > maxTemplate {
		return nil, fmt.Errorf("webhook: a template of %d bytes: at most %d are read", len(text), maxTemplate)
	}
	t, err := template.New("body").Option("missingkey=error").Funcs(new(meter).functions()).Parse(text)
	if err == nil {
		err = countSteps(t)
	}
	if err != nil {
		return nil, fmt.Errorf("webhook: %w", err)
	}
	b.tmpl = t
	for _, n := range samples() { // what cannot work says so now
		for _, with := range []shown{{}, {link: sampleLink(cfg)}} {
			if _, _, _, err := b.make(stream.Names{}, n, with); err != nil {
				return nil, err
			}
		}
	}
	return b, nil
}

// shown is a picture in the body, and the address of one.
type shown struct {
	picture []byte
	link    string
}

// make returns the body, its content type, and headers.
func (b *body) make(names stream.Names, n sink.Notice, with shown) (text []byte, contentType string, extra map[string]string, err error) {
	if b.tmpl == nil {
		c := n.Cloud(names)
		c.Picture, c.PictureURL = with.picture, with.link
		if b.cfg.Mode == "binary" {
			text, err = json.Marshal(c.Data)
			extra = map[string]string{
				"ce-specversion": c.SpecVersion, "ce-id": c.ID, "ce-source": c.Source, "ce-type": c.Type,
				"ce-time": c.Time.Format(time.RFC3339Nano),
			}
			if c.Subject != "" {
				extra["ce-subject"] = c.Subject
			}
			if n.Test {
				extra["ce-test"] = "true"
			}
			if with.link != "" {
				extra["ce-pictureurl"] = with.link
			}
			return text, "application/json", extra, err
		}
		text, err = json.Marshal(c)
		return text, "application/cloudevents+json", nil, err
	}
	contentType = b.cfg.ContentType
	contentType = cmp.Or(contentType, "application/json")
	var out limited
	run, err := b.tmpl.Clone()
	if err == nil {
		err = run.Funcs(new(meter).functions()).Execute(&out, b.data(names, n, with))
	}
	if err != nil {
		return nil, "", nil, fmt.Errorf("webhook: %w", err)
	}
	if strings.Contains(contentType, "json") && !json.Valid(out.Bytes()) {
		return nil, "", nil, errors.New("webhook: the template's result is not JSON (print texts with {{json .Title}})")
	}
	return out.Bytes(), contentType, nil, nil
}

// limited stops a template that writes too much, and by that one that loops.
type limited struct{ bytes.Buffer }

func (l *limited) Write(p []byte) (int, error) {
	if l.Len()+len(p) > maxBody {
		return 0, errTooLong
	}
	return l.Buffer.Write(p)
}

// view is what a template sees. Groups are embedded: a template names their fields as
// it names the others.
type view struct {
	subject
	wording
	measure
	Reason   string
	Code     string
	Release  string
	Severity string // info, warning, critical
	Test     bool
	Summary  int
	Event    stream.Event
	Incident *incident.Incident // nil: an event
	Cloud    sink.Cloud
	Picture  string // JPEG in base64, where pictures is inline and there is one
	// PictureURL is the picture's address, where pictures is link and there is one.
	PictureURL string
}

// subject is what an event is about.
type subject struct {
	ID       string
	Kind     string
	Detector string
	Camera   string
	Time     time.Time
}

// wording is what people read.
type wording struct {
	Title string // one line
	Text  string // what is known besides
	Link  string // a page about it, where one is configured
}

// measure is how strange a frame is; 0 where nothing was measured.
type measure struct {
	Score  float64
	Limit  float64 // threshold
	Ratio  float64 // score as a multiple of the threshold
	PValue float64
}

func (b *body) data(names stream.Names, n sink.Notice, with shown) view {
	e := n.Event
	v := view{
		subject: subject{n.ID, e.Kind, e.Detector, e.Camera, e.ScoredAt.UTC()}, measure: measure{Ratio: n.Ratio()},
		Reason: e.Reason, Code: e.Code, Release: e.Release, Test: n.Test, Summary: n.Summary,
		Event: e, Incident: n.Incident, Cloud: n.Cloud(names), Severity: "warning",
		Picture: base64.StdEncoding.EncodeToString(with.picture), PictureURL: with.link,
	}
	for to, from := range map[*float64]*float64{&v.Score: e.Score, &v.Limit: e.Threshold, &v.PValue: e.PValue} {
		if from != nil {
			*to = *from
		}
	}
	v.Title, v.Text = n.Words()
	switch e.Kind {
	case stream.KindAnomaly, sink.IncidentPrefix + incident.New, sink.IncidentPrefix + incident.Update:
		v.Severity = "critical"
	case sink.IncidentPrefix + incident.End:
		v.Severity = "info"
	}
	v.Link = n.Link(b.cfg.Link)
	return v
}

// sampleLink stands for a picture's address where a new template is tried.
func sampleLink(cfg Config) string {
	if cfg.Pictures != "link" {
		return ""
	}
	return "https://nearmiss.example.org/picture?e=1&s=a"
}

// samples are the events on which a new template is tried.
func samples() []sink.Notice {
	at := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	score, threshold, p := 2.5, 1.0, 0.01
	full := stream.Event{
		ID: "0123456789abcdef", Kind: stream.KindAnomaly, Detector: "bolts", Camera: "line1", FrameID: `a "quoted" name`,
		CapturedAt: at, ScoredAt: at, Score: &score, Threshold: &threshold, PValue: &p, Release: "f00d",
	}
	rejected := stream.Event{ID: "1", Kind: stream.KindRejected, Detector: "bolts", Camera: "line1", ScoredAt: at, Code: "corrupt", Reason: "line\nbreak"}
	release := stream.Event{ID: "2", Kind: stream.KindRelease, Detector: "bolts", Camera: stream.NoCamera, ScoredAt: at, Code: stream.ReleaseRefused, Reason: "it does not fit"}
	drift := stream.Event{ID: "3", Kind: stream.KindDrift, Detector: "bolts", Camera: "line1", ScoredAt: at, Drift: &stream.DriftStatus{Drifted: true}}
	life := incident.Incident{ID: full.ID, Phase: incident.End, N: 2, Detector: "bolts", Camera: "line1", OpenedAt: at, LastAt: at, EndedAt: at, Anomalies: 3}
	over := full
	over.Kind = sink.IncidentPrefix + incident.End
	return []sink.Notice{
		{ID: full.ID + "/2", Event: over, Incident: &life, At: at},
		{ID: full.ID, Event: full, At: at},
		{ID: full.ID, Event: full, At: at, Summary: 3},
		{ID: rejected.ID, Event: rejected, At: at, Test: true},
		{ID: release.ID, Event: release, At: at},
		{ID: drift.ID, Event: drift, At: at},
	}
}
