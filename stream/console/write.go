package console

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	"github.com/nearmiss/nearmiss/stream"
	"github.com/nearmiss/nearmiss/stream/internal/kv"
)

// setFields are those of a configuration that somebody has set.
func setFields(d stream.Detector) map[string]bool {
	b, err := json.Marshal(d)
	m := map[string]json.RawMessage{}
	if err != nil || json.Unmarshal(b, &m) != nil {
		return nil
	}
	set := map[string]bool{}
	for k := range m {
		set[k] = k != "name" && k != "created_at"
	}
	return set
}

// fixed are the fields that nobody changes by hand: what the store itself knows.
var fixed = []string{"name", "created_at"}

// patch reads a change of a configuration, a JSON merge patch (RFC 7396): a field is
// set, or with null brought back to its default. It is tried on d.
func patch(d stream.Detector, b []byte) (stream.SetRequest, error) {
	q := stream.SetRequest{Detector: d.Name}
	if err := kv.Object(b, &q.Set, false); err != nil {
		return q, bad("the change: %v", err)
	}
	for _, f := range fixed {
		if _, ok := q.Set[f]; ok {
			return q, bad("%s cannot be changed here", f)
		}
	}
	if err := q.Apply(&d); err != nil {
		return q, bad("the change: %v", err)
	}
	if err := d.Validate(); err != nil {
		return q, problem{http.StatusUnprocessableEntity, stream.CodeBadRequest, err.Error()}
	}
	return q, nil
}

func (t *tuning) createDetector(q *request) (any, error) {
	b, err := q.body()
	if err != nil {
		return nil, err
	}
	var d stream.Detector
	if err := kv.Object(b, &d, true); err != nil {
		return nil, bad("the detector: %v", err)
	}
	if !d.CreatedAt.IsZero() {
		return nil, bad("created_at cannot be given here")
	}
	if err := d.Validate(); err != nil {
		return nil, problem{http.StatusUnprocessableEntity, stream.CodeBadRequest, err.Error()}
	}
	a, err := t.backend.control(q).CreateDetector(q.ctx, d)
	if err != nil {
		return nil, err
	}
	t.wall.overview.forget("")
	t.backend.logAction(q, "created detector", d.Name)
	return created{http.StatusCreated, detector{Detector: a.WithDefaults(), Revision: a.Revision, Set: setFields(a.Detector)}}, nil
}

func (t *tuning) changeDetector(q *request) (any, error) {
	name := q.PathValue("detector")
	b, err := q.body()
	if err != nil {
		return nil, err
	}
	want, err := q.ifMatch()
	if err != nil {
		return nil, err
	}
	d, err := t.backend.detectors.Get(q.ctx, name)
	if err != nil {
		return nil, err
	}
	change, err := patch(d, b)
	if err != nil {
		return nil, err
	}
	change.Revision = want
	a, err := t.backend.control(q).Set(q.ctx, change)
	if want > 0 && errors.Is(err, stream.ErrConflict) {
		return nil, problem{http.StatusPreconditionFailed, codeStale, "somebody else has changed the detector meanwhile: read it again"}
	}
	if err != nil {
		return nil, err
	}
	d = a.Detector
	d.Revision = a.Revision
	t.wall.overview.forget("")
	t.backend.logAction(q, "changed detector", name)
	return t.described(q, d)
}

func (t *tuning) deleteDetector(q *request) (any, error) {
	name := q.PathValue("detector")
	v := q.params("everything")
	if v.err != nil {
		return nil, v.err
	}
	if err := t.backend.control(q).DeleteDetector(q.ctx, name, v.yes("everything")); err != nil {
		return nil, err
	}
	t.wall.overview.forget("")
	t.backend.logAction(q, "deleted detector", name)
	return nil, nil
}

// tune is what the slider of false alarms needs.
type tune struct {
	*stream.Calibration
	Recent []float64 `json:"recent"` // last scores since the console started
	// Ranges are, for one, two, … held-out scores above the threshold, between which
	// rates false alarms lie with 95 % confidence.
	Ranges [][2]float64 `json:"ranges"`
}

// maxRanges bounds them: a larger share of false alarms nobody wants.
const maxRanges = 400

func (t *tuning) calibration(q *request) (any, error) {
	name := q.PathValue("detector")
	a, err := t.backend.client.Calibration(q.ctx, stream.ReleaseRequest{Detector: name})
	if err != nil {
		return nil, err
	}
	out := tune{Calibration: &a, Recent: t.wall.feed.recentScores(name), Ranges: [][2]float64{}}
	for i := range min(len(a.HeldOut), maxRanges) {
		low, high := t.cfg.FalseAlarms(len(a.HeldOut), float64(i+1)/float64(len(a.HeldOut)+1))
		out.Ranges = append(out.Ranges, [2]float64{low, high})
	}
	return out, nil
}

// addNormals takes the files of a form. Each is checked before it is stored; what
// is wrong with one is its own matter.
func (t *tuning) addNormals(q *request) (any, error) {
	v := q.params("anomalies")
	if v.err != nil {
		return nil, v.err
	}
	name := q.PathValue("detector")
	if _, err := t.backend.detectors.Get(q.ctx, name); err != nil {
		return nil, err
	}
	parts, err := q.MultipartReader()
	if err != nil {
		return nil, problem{http.StatusUnsupportedMediaType, stream.CodeBadRequest, "send the images as multipart/form-data"}
	}
	out := struct {
		Added   int            `json:"added"`
		Refused []rejectedFile `json:"refused"`
	}{Refused: []rejectedFile{}}
	for {
		p, err := parts.NextPart()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, bad("read the images: %v", err)
		}
		file := p.FileName()
		if file == "" {
			continue
		}
		b, err := readAll(p, maxUpload, clean(file))
		if err != nil {
			return nil, err
		}
		if err := t.cfg.Check(b); err != nil {
			out.Refused = append(out.Refused, rejectedFile{clean(file), err.Error()})
			continue
		}
		if _, err := t.backend.normals.Add(q.Context(), stream.Normal{
			Detector: name, Origin: "uploaded by " + q.who.Name, Source: clean(file), Anomaly: v.yes("anomalies"), Image: b,
		}); err != nil {
			return nil, err
		}
		out.Added++
	}
	t.wall.overview.forget("")
	t.backend.record(q, "add-normals", "detector/"+name, map[string]any{"added": out.Added, "anomalies": v.yes("anomalies")})
	return out, nil
}

type rejectedFile struct {
	File   string `json:"file"`
	Reason string `json:"reason"`
}

// takeFrames makes normals of the next frames. It goes on when the page is closed.
func (t *tuning) takeFrames(q *request) (any, error) {
	var in struct {
		Frames int `json:"frames"`
	}
	name, err := t.backend.about(q, &in)
	if err != nil {
		return nil, err
	}
	if in.Frames < 1 || in.Frames > 10_000 {
		return nil, bad("frames: take 1 to 10000")
	}
	if !t.tasks.start(func(ctx context.Context) {
		ctx, cancel := context.WithTimeout(ctx, time.Hour)
		defer cancel()
		if err := t.backend.normals.FromFrames(ctx, name, in.Frames, nil); err != nil && ctx.Err() == nil {
			t.backend.log.Warn().Err(err).Str("detector", name).Msg("no more frames are taken as normals")
		}
	}) {
		return nil, problem{http.StatusServiceUnavailable, "busy", "frames are taken already for as many detectors as can be at once: wait"}
	}
	t.backend.record(q, "take-normals", "detector/"+name, in)
	return created{http.StatusAccepted, in}, nil
}

func (t *tuning) removeNormal(q *request) (any, error) {
	name := q.PathValue("detector")
	n, err := q.sequence()
	if err != nil {
		return nil, err
	}
	if err := t.backend.control(q).RemoveNormals(q.ctx, name, []uint64{n}); err != nil {
		return nil, err
	}
	t.wall.overview.forget("")
	t.backend.logAction(q, fmt.Sprintf("removed image %d", n), name)
	return nil, nil
}

func (t *tuning) train(q *request) (any, error) {
	var in struct {
		Method  string `json:"method,omitempty"`
		Profile string `json:"profile,omitempty"`
		Seed    int64  `json:"seed,omitempty"`
		Promote *bool  `json:"promote,omitempty"`
		Force   bool   `json:"force,omitempty"`
		Reason  string `json:"reason,omitempty"`
	}
	name, err := t.backend.about(q, &in)
	if err != nil {
		return nil, err
	}
	// The job waits in the queue when no trainer runs.
	j, err := t.backend.control(q).Train(q.ctx, stream.TrainRequest{
		Detector: name, Method: in.Method, Profile: in.Profile, Seed: in.Seed,
		Promote: in.Promote == nil || *in.Promote, Force: in.Force, Reason: cmp.Or(in.Reason, "asked for on the page"),
	})
	if err != nil {
		return nil, err
	}
	t.wall.overview.forget("")
	return created{http.StatusAccepted, j}, nil
}

// choice is a change of a detector's release.
type choice struct {
	Release string `json:"release,omitempty"`
	Expect  string `json:"expect,omitempty"` // release that must be active
	Reason  string `json:"reason"`
}

// choose makes a change; a reason is asked for, since others will ask.
func (t *tuning) choose(q *request, what string, do func(stream.PromoteRequest) (any, error)) (any, error) {
	var in choice
	if err := q.read(&in); err != nil {
		return nil, err
	}
	if strings.TrimSpace(in.Reason) == "" {
		return nil, bad("say why: the reason is kept with the change")
	}
	name := q.PathValue("detector")
	a, err := do(stream.PromoteRequest{Detector: name, Release: in.Release, Expect: in.Expect, Reason: in.Reason})
	if err != nil {
		return nil, err
	}
	t.wall.overview.forget("")
	t.backend.logAction(q, what, name)
	return a, nil
}

func (t *tuning) promote(q *request) (any, error) {
	return t.choose(q, "promoted a release", func(r stream.PromoteRequest) (any, error) { return t.backend.control(q).Promote(q.ctx, r) })
}

func (t *tuning) rollback(q *request) (any, error) {
	return t.choose(q, "rolled back", func(r stream.PromoteRequest) (any, error) { return t.backend.control(q).Rollback(q.ctx, r) })
}

func (t *tuning) shadow(q *request) (any, error) {
	return t.choose(q, "changed the candidate", func(r stream.PromoteRequest) (any, error) { return nil, t.backend.control(q).Shadow(q.ctx, r) })
}

// pin keeps a release from being collected, or lets it go; the registry keeps no
// reason for that.
func (t *tuning) pin(q *request) (any, error) {
	var in struct {
		Release string `json:"release"`
		Unpin   bool   `json:"unpin,omitempty"`
	}
	if err := q.read(&in); err != nil {
		return nil, err
	}
	name := q.PathValue("detector")
	if err := t.backend.control(q).Pin(q.ctx, stream.PinRequest{Detector: name, Release: in.Release, Unpin: in.Unpin}); err != nil {
		return nil, err
	}
	t.backend.logAction(q, "changed a pin", name)
	return nil, nil
}
