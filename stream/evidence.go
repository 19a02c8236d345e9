package stream

import (
	"archive/zip"
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/nearmiss/nearmiss/stream/internal/object"
	"github.com/nearmiss/nearmiss/stream/internal/text"
)

// Spot is a part of a frame that is stranger than normals are.
type Spot struct {
	X      int     `json:"x"`               // left column of its box in the image as taken, pixels
	Y      int     `json:"y"`               // top row
	Width  int     `json:"width"`           // of the box, pixels
	Height int     `json:"height"`          // of the box, pixels
	Area   int     `json:"area"`            // pixels that belong to it
	Peak   float64 `json:"peak"`            // its highest intensity, 0-1: 0.5 is what one normal patch in a thousand shows
	Faint  bool    `json:"faint,omitempty"` // no stranger than many normals: the strangest place of a frame without a clear one
}

// Why an event has no pictures although its release can draw them.
const (
	NoPicturesPrivacy = "privacy" // the detector keeps no images
	NoPicturesBusy    = "busy"    // more anomalies at once than pictures can be made of
	NoPicturesFailed  = "failed"  // they could not be made; the worker's log says why
	NoPicturesStorage = "storage" // they, or the image, could not be kept: the store is full, or away for too long
)

// Picture is one file of an event's evidence.
type Picture struct {
	Name  string `json:"name"`  // of the file: overlay.jpg
	About string `json:"about"` // what it shows
	Data  []byte `json:"-"`
}

// Evidence is what an object of the evidence bucket holds, a ZIP archive of
// [EvidenceIndex] and the pictures that it lists.
type Evidence struct {
	Event    Event
	Pictures []Picture
}

// EvidenceIndex is the file of an evidence archive that says what is in it.
const EvidenceIndex = "evidence.json"

// evidenceIndex is that file's JSON.
type evidenceIndex struct {
	ID    string    `json:"id"` // of the event
	Event Event     `json:"event"`
	Files []Picture `json:"files"`
}

// maxEvidence bounds what is read of one archive, in bytes.
const maxEvidence = 64 << 20

// Archive packs the evidence.
func (e Evidence) Archive() ([]byte, error) {
	index := evidenceIndex{ID: e.Event.ID, Event: e.Event, Files: e.Pictures}
	for _, p := range e.Pictures {
		if !validFile(p.Name) || p.Name == EvidenceIndex {
			return nil, fmt.Errorf("pack evidence of event %s: file name %q", e.Event.ID, p.Name)
		}
	}
	about, err := json.MarshalIndent(index, "", "  ")
	if err != nil {
		return nil, fmt.Errorf("pack evidence of event %s: %w", e.Event.ID, err)
	}
	var buf bytes.Buffer
	z := zip.NewWriter(&buf)
	for _, p := range append([]Picture{{Name: EvidenceIndex, Data: about}}, e.Pictures...) {
		// Pictures are compressed already.
		w, err := z.CreateHeader(&zip.FileHeader{Name: p.Name, Method: zip.Store, Modified: e.Event.ScoredAt})
		if err == nil {
			_, err = w.Write(p.Data)
		}
		if err != nil {
			return nil, fmt.Errorf("pack evidence of event %s: %w", e.Event.ID, err)
		}
	}
	if err := z.Close(); err != nil {
		return nil, fmt.Errorf("pack evidence of event %s: %w", e.Event.ID, err)
	}
	return buf.Bytes(), nil
}

// ParseEvidence reads an archive. Errors are [ErrBadMessage].
func ParseEvidence(b []byte) (Evidence, error) {
	bad := func(err error) (Evidence, error) {
		return Evidence{}, fmt.Errorf("evidence: %v: %w", err, ErrBadMessage)
	}
	z, err := zip.NewReader(bytes.NewReader(b), int64(len(b)))
	if err != nil {
		return bad(err)
	}
	left := int64(maxEvidence)
	read := func(name string) ([]byte, error) {
		f, err := z.Open(name)
		if err != nil {
			return nil, err
		}
		defer f.Close()
		data, err := io.ReadAll(io.LimitReader(f, left+1))
		if left -= int64(len(data)); err == nil && left < 0 {
			err = fmt.Errorf("more than %d bytes", maxEvidence)
		}
		return data, err
	}
	about, err := read(EvidenceIndex)
	if err != nil {
		return bad(err)
	}
	var index evidenceIndex
	if err := json.Unmarshal(about, &index); err != nil {
		return bad(err)
	}
	e := Evidence{Event: index.Event}
	e.Event.ID, e.Event.Kind = index.ID, KindAnomaly
	for _, f := range index.Files {
		if !validFile(f.Name) {
			return bad(fmt.Errorf("file name %q", text.Clip(f.Name)))
		}
		if f.Data, err = read(f.Name); err != nil {
			return bad(err)
		}
		e.Pictures = append(e.Pictures, f)
	}
	return e, nil
}

// validFile admits plain file names, which are safe to write on every system.
func validFile(name string) bool {
	return name != "" && len(name) <= maxToken && name[0] != '.' && name[len(name)-1] != '.' &&
		strings.Trim(name, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_.") == ""
}

// evidenceObject names the evidence of an event in its bucket.
func evidenceObject(detector, event string) string { return detector + "/" + event }

// Of an evidence object, so that a listing need not read it.
const (
	metaCamera     = "camera"
	metaFrame      = "frame"
	metaScore      = "score"
	metaCapturedAt = "captured_at"
)

// EvidenceMeta names and describes the evidence of an event in its bucket.
func EvidenceMeta(e *Event) jetstream.ObjectMeta {
	score, _ := json.Marshal(e.Score)
	return jetstream.ObjectMeta{
		Name: evidenceObject(e.Detector, e.ID), Description: "evidence of an anomaly: a ZIP archive of pictures",
		Metadata: map[string]string{
			metaCamera: e.Camera, metaFrame: e.FrameID, metaScore: string(score), metaCapturedAt: e.CapturedAt.UTC().Format(time.RFC3339Nano),
		},
	}
}

// EvidenceInfo describes the evidence of one event.
type EvidenceInfo struct {
	Detector   string    `json:"detector"`
	Event      string    `json:"id"` // the event's
	Camera     string    `json:"camera"`
	FrameID    string    `json:"frame_id"`
	Score      float64   `json:"score"`
	CapturedAt time.Time `json:"captured_at,omitzero"`
	StoredAt   time.Time `json:"stored_at"`
	Bytes      uint64    `json:"bytes"`
	Object     string    `json:"object"` // "<bucket>/<name>"
}

// ListEvidence lists the evidence of a detector, or with an empty name of all,
// oldest first.
func (in *Installation) ListEvidence(ctx context.Context, detector string) ([]EvidenceInfo, error) {
	infos, _, err := object.List(ctx, in.js, in.names.EvidenceBucket())
	if err != nil {
		return nil, fmt.Errorf("list evidence: %w", err)
	}
	var out []EvidenceInfo
	for _, i := range infos {
		d, event, ok := strings.Cut(i.Name, "/")
		if !ok || detector != "" && d != detector {
			continue
		}
		e := EvidenceInfo{
			Detector: d, Event: event, Camera: i.Metadata[metaCamera], FrameID: i.Metadata[metaFrame],
			StoredAt: i.ModTime, Bytes: i.Size, Object: in.names.EvidenceBucket() + "/" + i.Name,
		}
		_ = json.Unmarshal([]byte(i.Metadata[metaScore]), &e.Score)
		_ = e.CapturedAt.UnmarshalText([]byte(i.Metadata[metaCapturedAt]))
		out = append(out, e)
	}
	slices.SortFunc(out, func(a, b EvidenceInfo) int {
		return cmp.Or(a.StoredAt.Compare(b.StoredAt), strings.Compare(a.Object, b.Object))
	})
	return out, nil
}

// GetEvidence reads the evidence of an event, or returns [ErrNotFound]: there
// was none, or its time is over.
func (in *Installation) GetEvidence(ctx context.Context, detector, event string) (Evidence, error) {
	b, err := fetchObject(ctx, in.js, in.names.EvidenceBucket(), evidenceObject(detector, event), maxEvidence)
	if err != nil {
		return Evidence{}, fmt.Errorf("evidence of event %s: %w", text.Clip(event), err)
	}
	return ParseEvidence(b)
}

// PurgeEvidence removes a detector's evidence that is older than age, and then
// the oldest until what is left takes at most most bytes. It returns how many
// pieces went and what is left.
func (in *Installation) PurgeEvidence(ctx context.Context, detector string, age time.Duration, most uint64) (removed int, left uint64, err error) {
	all, err := in.ListEvidence(ctx, detector)
	if err != nil {
		return 0, 0, err
	}
	return in.purgeEvidence(ctx, all, age, most, false)
}

// purgeEvidence does that with what there is, oldest first. dry only counts.
func (in *Installation) purgeEvidence(ctx context.Context, all []EvidenceInfo, age time.Duration, most uint64, dry bool) (removed int, left uint64, err error) {
	for _, i := range all {
		left += i.Bytes
	}
	for _, i := range all {
		if time.Since(i.StoredAt) <= age && left <= most {
			break // the others are younger
		}
		if !dry {
			if err := in.dropEvidence(ctx, i); err != nil {
				return removed, left, err
			}
		}
		removed++
		left -= i.Bytes
	}
	return removed, left, nil
}

// dropEvidence removes an object for good: Delete alone would leave a marker for
// every piece there ever was.
func (in *Installation) dropEvidence(ctx context.Context, i EvidenceInfo) error {
	store, err := in.js.ObjectStore(ctx, in.names.EvidenceBucket())
	if err != nil {
		return fmt.Errorf("open object store %s: %w", in.names.EvidenceBucket(), err)
	}
	name := evidenceObject(i.Detector, i.Event)
	if err := store.Delete(ctx, name); err != nil && !errors.Is(err, jetstream.ErrObjectNotFound) {
		return fmt.Errorf("remove evidence of event %s: %w", i.Event, err)
	}
	s, err := in.js.Stream(ctx, object.StreamOf(in.names.EvidenceBucket()))
	if err != nil {
		return fmt.Errorf("remove evidence of event %s: %w", i.Event, err)
	}
	marker := object.MetaOf(in.names.EvidenceBucket(), name)
	if err := s.Purge(ctx, jetstream.WithPurgeSubject(marker)); err != nil {
		return fmt.Errorf("remove evidence of event %s: %w", i.Event, err)
	}
	return nil
}

// purgeAllEvidence brings the evidence of every detector to its limits, also of
// those that have no configuration any more.
func (in *Installation) purgeAllEvidence(ctx context.Context, dry bool) (int, error) {
	s, err := in.Detectors(ctx)
	if err != nil {
		return 0, err
	}
	all, err := in.ListEvidence(ctx, "")
	if err != nil {
		return 0, err
	}
	byDetector := map[string][]EvidenceInfo{}
	for _, i := range all {
		byDetector[i.Detector] = append(byDetector[i.Detector], i)
	}
	count := 0
	for name, pieces := range byDetector {
		d, err := s.Get(ctx, name)
		if errors.Is(err, ErrBadMessage) {
			continue // nobody knows how long it is wanted
		}
		if err != nil && !errors.Is(err, ErrNoDetector) && !errors.Is(err, ErrBadName) {
			return count, err
		}
		d = d.WithDefaults()
		removed, _, err := in.purgeEvidence(ctx, pieces, time.Duration(d.Retention), d.EvidenceBytes(), dry)
		count += removed
		if err != nil {
			return count, err
		}
	}
	return count, nil
}

// EvidenceBytes is the most that a detector's evidence takes.
func (d Detector) EvidenceBytes() uint64 { return uint64(d.WithDefaults().EvidenceMiB) << 20 }

// EvidenceObjects is what the names of evidence objects begin with; the rest is
// the image's SHA-256.
const EvidenceObjects = "evidence/"
