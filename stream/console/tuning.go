package console

import (
	"archive/zip"
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"time"

	"github.com/nearmiss/nearmiss/stream"
	"github.com/nearmiss/nearmiss/stream/registry"
)

// tuning is what people do with detectors: their configurations, normals and
// releases.
type tuning struct {
	cfg     Config
	backend *backend
	tasks   *tasks
	wall    *wall
	facts   flight[Facts] // by release
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

func (t *tuning) listDetectors(q *request) (any, error) {
	all, _, err := t.backend.detectors.Check(q.ctx)
	if err != nil {
		return nil, err
	}
	o, err := t.wall.getOverview()
	if err != nil {
		return nil, err
	}
	out := listing[detector]{Items: []detector{}}
	for _, d := range all {
		out.Items = append(out.Items, t.describe(q.ctx, d, o))
	}
	return out, nil
}

func (t *tuning) getDetector(q *request) (any, error) {
	d, err := t.backend.detectors.Get(q.ctx, q.PathValue("detector"))
	if err != nil {
		return nil, err
	}
	return t.described(q, d)
}

// described is a detector with what is in force now.
func (t *tuning) described(q *request, d stream.Detector) (any, error) {
	o, err := t.wall.getOverview()
	if err != nil {
		return nil, err
	}
	return t.describe(q.ctx, d, o), nil
}

// describe adds what is in force to a configuration.
func (t *tuning) describe(ctx context.Context, conf stream.Detector, o overview) detector {
	d := detector{Detector: conf.WithDefaults(), Revision: conf.Revision, Set: setFields(conf), Open: t.wall.index.open(conf.Name)}
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
	p, err := t.backend.registry.Active(ctx, conf.Name)
	if err != nil {
		return d // none, or none that can be read: the status says so
	}
	f, err := t.factsOf(p.Release)
	if err != nil {
		return d
	}
	d.Facts = &f
	if d.Threshold, d.By = conf.InForce(f.Threshold); d.By == "" {
		d.Low, d.High = t.cfg.FalseAlarms(f.HeldOut, f.Promised)
	}
	return d
}

// factsOf reads a release's manifest, which never changes.
func (t *tuning) factsOf(digest string) (Facts, error) {
	return t.facts.get(t.tasks.base, digest, 24*time.Hour, func(ctx context.Context) (Facts, error) {
		rel, err := t.backend.registry.Show(ctx, digest)
		if err != nil {
			return Facts{}, err
		}
		f, err := t.cfg.Describe(rel.Manifest)
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

func (t *tuning) listReleases(q *request) (any, error) {
	name := q.PathValue("detector")
	all, err := t.backend.registry.List(q.ctx, name)
	if err != nil {
		return nil, err
	}
	candidate, err := t.backend.registry.Shadow(q.ctx, name)
	if err != nil && !errors.Is(err, registry.ErrNoRelease) {
		return nil, err
	}
	out := releases{listing[shownRelease]{Items: []shownRelease{}}, []registry.Pointer{}, []stream.ShadowReport{}}
	for _, r := range slices.Backward(all) {
		s := shownRelease{Release: r, Candidate: r.Digest == candidate.Release}
		if f, err := t.factsOf(r.Digest); err == nil {
			s.Facts = &f
		} else {
			s.Problem = err.Error()
		}
		out.Items = append(out.Items, s)
	}
	history, err := t.backend.registry.History(q.ctx, name)
	if err != nil && !errors.Is(err, registry.ErrNoRelease) {
		return nil, err
	}
	out.History = append(out.History, history...)
	if o, err := t.wall.getOverview(); err == nil {
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

// normalPage is a page of a training set.
type normalPage struct {
	listing[stream.Normal]
	Total int `json:"total"`
}

func (t *tuning) listNormals(q *request) (any, error) {
	v := q.params("anomalies", "cursor", "limit")
	limit, before := v.paging(200)
	if v.err != nil {
		return nil, v.err
	}
	all, err := t.backend.normals.List(q.ctx, q.PathValue("detector"), v.yes("anomalies"))
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

// choices are what a detector may be configured with, as a trainer says.
func (t *tuning) choices(q *request) (any, error) {
	return t.backend.client.Choices(q.ctx)
}

// outliers are the normals in the serving bank, strangest first.
func (t *tuning) outliers(q *request) (any, error) {
	v := q.params("limit")
	limit := v.number("limit", 1, 1000, 200)
	if v.err != nil {
		return nil, v.err
	}
	return t.backend.client.Outliers(q.ctx, stream.OutliersRequest{ReleaseRequest: stream.ReleaseRequest{Detector: q.PathValue("detector")}, Limit: limit})
}

// scoreImage has the image that is the request's body scored; nothing is stored.
func (t *tuning) scoreImage(q *request) (any, error) {
	d, err := t.backend.detectors.Get(q.ctx, q.PathValue("detector"))
	if err != nil {
		return nil, err
	}
	b, err := readAll(q.Body, maxUpload, "the image")
	if err != nil {
		return nil, err
	}
	return t.backend.client.ScoreNow(q.ctx, d.Name, b)
}

// exportNormals sends a training set as it is stored, image by image. The archive's
// names are numbers: whatever images were called, nothing is written beside them.
func (t *tuning) exportNormals(q *request) (any, error) {
	v := q.params("anomalies")
	if v.err != nil {
		return nil, v.err
	}
	name, kind := q.PathValue("detector"), "normals"
	if _, err := t.backend.detectors.Get(q.ctx, name); err != nil {
		return nil, err
	}
	anomalies := v.yes("anomalies")
	if anomalies {
		kind = "anomalies"
	}
	all, err := t.backend.normals.List(q.ctx, name, anomalies)
	if err != nil {
		return nil, err
	}
	return respond(func(w http.ResponseWriter, r *http.Request) error {
		w.Header().Set("Content-Type", "application/zip")
		w.Header().Set("Content-Disposition", fmt.Sprintf(`attachment; filename="%s-%s.zip"`, name, kind))
		if err := t.pack(r, w, all); err != nil && r.Context().Err() == nil {
			t.backend.log.Warn().Err(err).Str("detector", name).Msg("an export has broken off")
			panic(http.ErrAbortHandler) // so that who gets it sees that it is not whole
		}
		return nil
	}), nil
}

// pack writes the archive; a normal that is gone meanwhile, or has no image, is in
// the list alone.
func (t *tuning) pack(r *http.Request, w http.ResponseWriter, all []stream.Normal) error {
	z := zip.NewWriter(w)
	put := func(name string, at time.Time, data []byte) error {
		f, err := z.CreateHeader(&zip.FileHeader{Name: name, Method: zip.Store, Modified: at})
		if err == nil {
			_, err = f.Write(data)
		}
		return err
	}
	var list bytes.Buffer
	for _, n := range all {
		line := struct {
			File string `json:"file,omitempty"`
			stream.Normal
		}{Normal: n}
		x, err := t.backend.normals.Get(r.Context(), n.Detector, n.Sequence)
		switch {
		case errors.Is(err, stream.ErrNotFound):
			line.Problem = err.Error()
		case err != nil:
			return err
		case x.Problem != "" || len(x.Image) == 0:
			line.Problem = x.Problem
		default:
			line.File = fmt.Sprintf("%08d%s", n.Sequence, cmp.Or(stream.ImageExtension(x.Image), ".bin"))
			if err := put(line.File, n.StoredAt, x.Image); err != nil {
				return err
			}
		}
		if err := json.NewEncoder(&list).Encode(line); err != nil {
			return err
		}
	}
	if err := put("normals.jsonl", time.Now(), list.Bytes()); err != nil {
		return err
	}
	return z.Close()
}
