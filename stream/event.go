package stream

import (
	"crypto/sha256"
	_ "embed" // the schema
	"encoding/hex"
	"encoding/json"
	"fmt"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/nearmiss/nearmiss/internal/redact"
	"github.com/nearmiss/nearmiss/stream/internal/text"
)

// EventSchema is the JSON Schema (draft 2020-12) of the data of every event.
//
//go:embed schema/event.schema.json
var EventSchema []byte

// Kinds of event: the last token of its subject.
const (
	KindAnomaly  = "anomaly"  // a frame that is not normal
	KindRejected = "rejected" // a frame that could not be read
	// KindDisagreement is a frame that the release in service and the candidate
	// beside it judge differently; the scores are the candidate's.
	KindDisagreement = "disagreement"
	KindDrift        = "drift"   // what a camera sees as normal has moved
	KindRelease      = "release" // a release was taken into service or refused, or is being learnt
	KindLost         = "lost"    // frames were published and not stored, or are refused
	KindStore        = "store"   // something that is stored cannot be read
	KindCamera       = "camera"  // a camera has fallen silent, or is back
)

// Where a threshold is from that is not the release's.
const (
	ThresholdByHand   = "hand"   // a number in the detector's configuration
	ThresholdByMargin = "margin" // the release's, times a factor in the detector's configuration
)

// NoCamera stands in the subject of events that are of no camera.
const NoCamera = "-"

// Codes of release events.
const (
	ReleaseInService = "in_service" // frames are judged by it from now on
	ReleaseRefused   = "refused"    // it is not fit to serve; what served before goes on
	ReleaseMissing   = "missing"    // the first training has made none, and frames wait
	ReleaseLearning  = "learning"   // the detector takes its first frames as normal
	ReleaseLearned   = "learned"    // it has enough of them, and its first release is made
)

// Codes of store events.
const (
	StoreUnreadable = "unreadable"      // an entry of a bucket; what it had before is used, or it is left out
	StoreMissing    = "normals_missing" // images of a training set; training goes on without them
)

// typePrefix begins every ce-type; see [EventType].
const typePrefix = "dev.nearmiss."

// EventType is the CloudEvents type of a kind: dev.nearmiss.anomaly.v1.
func EventType(kind string) string { return typePrefix + kind + ".v1" }

// Near is one of the bank's entries nearest to a frame.
type Near struct {
	ID       uint64  `json:"id"`       // the entry's number in the bank
	Distance float64 `json:"distance"` // squared Euclidean distance between embeddings
}

// Event is what subscribers get, and, without evidence, pictures and reason, what is
// published for every frame on the scores subject. Fields that do not apply are
// absent from the JSON: a rejected frame has no score.
type Event struct {
	// ID is the CloudEvents id, a function of the frame and the release; it
	// travels in the header ce-id and not in the data.
	ID string `json:"-"`
	// Kind is the last token of the subject; it travels in ce-type.
	Kind string `json:"-"`
	// Sequence is its place in the events stream, where it was read from there.
	Sequence uint64 `json:"-"`

	FrameID    string    `json:"frame_id,omitempty"`   // unique within detector and camera, together with the image
	Digest     string    `json:"digest,omitempty"`     // SHA-256 of the image as taken, hexadecimal
	Detector   string    `json:"detector"`             // whose release judged it
	Camera     string    `json:"camera"`               // who took it, or [NoCamera]
	CapturedAt time.Time `json:"captured_at,omitzero"` // when it was taken, UTC
	ScoredAt   time.Time `json:"scored_at"`            // when it was judged, or when this was noticed, UTC
	Source     string    `json:"source,omitempty"`     // where the camera had the image from, as it said

	Score     *float64 `json:"score,omitempty"`     // sum of squared distances to the k nearest normals
	Threshold *float64 `json:"threshold,omitempty"` // a score above it is anomalous
	// ThresholdBy says that the threshold is not the release's, so that its promise
	// does not hold: [ThresholdByHand] or [ThresholdByMargin].
	ThresholdBy string   `json:"threshold_by,omitempty"`
	PValue      *float64 `json:"p_value,omitempty"`   // share of normals at least as strange, 0-1
	Anomalous   *bool    `json:"anomalous,omitempty"` // the decision
	K           int      `json:"k,omitempty"`         // how many neighbours were summed
	Nearest     []Near   `json:"nearest,omitzero"`    // those neighbours, nearest first
	Smoothed    *float64 `json:"smoothed,omitempty"`  // mean over the camera's last frames, when the detector smooths

	Release string `json:"release,omitempty"` // SHA-256 of the release's manifest
	Model   string `json:"model,omitempty"`   // SHA-256 of the model
	Bank    string `json:"bank,omitempty"`    // SHA-256 of the bank

	Regions []Spot `json:"regions,omitzero"` // where it is strange, strangest first, when the release can tell

	Width  int `json:"width,omitempty"`  // of the image as taken, pixels
	Height int `json:"height,omitempty"` // of the image as taken, pixels
	Bytes  int `json:"bytes,omitempty"`  // of the encoded image

	Evidence string `json:"evidence,omitempty"` // object that keeps the image, "<bucket>/<name>"

	// Pictures is the object with the event's pictures, "<bucket>/<name>"; see
	// [Installation.GetEvidence]. NoPictures says why there is none although the release could
	// draw them: [NoPicturesPrivacy] and so on.
	Pictures   string `json:"pictures,omitempty"`
	NoPictures string `json:"no_pictures,omitempty"`

	Code   string `json:"code,omitempty"`   // rejected, release, drift: why or what, as a stable word
	Reason string `json:"reason,omitempty"` // rejected, release, drift: why or what, as a sentence

	Against *Judgement   `json:"against,omitempty"` // disagreement: what the release in service said
	Drift   *DriftStatus `json:"drift,omitempty"`   // drift: the test's figures

	// Truth is the ground truth of a synthetic frame; it travels in a header.
	Truth string `json:"-"`
	// Trace is the W3C traceparent of the frame; it travels in a header.
	Trace string `json:"-"`
}

// Judgement is what a release says of a frame, in short.
type Judgement struct {
	Release   string  `json:"release"`
	Score     float64 `json:"score"`
	Threshold float64 `json:"threshold"`
	PValue    float64 `json:"p_value"`
	Anomalous bool    `json:"anomalous"`
}

// DriftStatus is what the drift test of a worker knows of a camera.
type DriftStatus struct {
	Drifted    bool    `json:"drifted"`
	Cause      string  `json:"cause,omitempty"` // what moved: scores or alarms
	Frames     int     `json:"frames"`          // observed
	Evidence   float64 `json:"evidence"`        // 1 and above means drift
	Level      float64 `json:"level"`           // mean rank of recent scores, 0-1; 0.5 as calibrated, less where scores rise
	AlarmShare float64 `json:"alarm_share"`     // share of anomalous frames among the recent ones, 0-1
}

// Notice makes an event that is of no frame. what makes its id: the same notice
// from several workers is stored once.
func Notice(kind, detector, camera, release, code, reason, what string) *Event {
	return &Event{
		ID: EventID(Frame{Detector: detector, Camera: camera, ID: kind + "/" + code + "/" + what}, release), Kind: kind, Detector: detector, Camera: camera,
		ScoredAt: time.Now().UTC(), Release: release, Code: code, Reason: reason,
	}
}

// CloudEvents headers, binary content mode (CloudEvents NATS protocol binding
// 1.0.2: "ce-" and the attribute's name).
const (
	ceSpec        = "ce-specversion"
	ceID          = "ce-id"
	ceSource      = "ce-source"
	ceType        = "ce-type"
	ceTime        = "ce-time"
	ceSubject     = "ce-subject"
	ceContentType = "ce-datacontenttype"
	contentType   = "content-type"
	frameDigest   = "Nearmiss-Frame-Digest" // the data's digest, for who reads headers only
	jsonType      = "application/json"
)

// CloudEvent is a message with the JSON of v as a CloudEvent in binary mode. from, such as
// a detector's name, is the last part of its source.
func CloudEvent(n Names, subject, id, from, eventType string, at time.Time, v any) (*nats.Msg, error) {
	data, err := json.Marshal(v)
	if err != nil {
		return nil, err
	}
	m := nats.NewMsg(subject)
	m.Data = data
	for k, s := range map[string]string{
		ceSpec: "1.0", ceID: id, ceSource: "/" + n.Root() + "/" + from, ceType: eventType, ceTime: at.UTC().Format(time.RFC3339Nano),
		ceContentType: jsonType, contentType: jsonType, nats.MsgIdHdr: id,
	} {
		m.Header.Set(k, s)
	}
	return m, nil
}

// EventID names the event that a frame raises under a release. It must be the
// same in every process and at every delivery.
func EventID(f Frame, release string) string {
	h := sha256.New()
	for _, s := range []string{f.Detector, f.Camera, f.ID, f.Digest, release} {
		fmt.Fprintf(h, "%d:%s", len(s), s)
	}
	return hex.EncodeToString(h.Sum(nil)[:16])
}

// Ratio is the score as a multiple of the threshold; ok is false where there is
// none.
func (e Event) Ratio() (r float64, ok bool) {
	if e.Score == nil || e.Threshold == nil || !(*e.Threshold > 0) {
		return 0, false
	}
	return *e.Score / *e.Threshold, true
}

// Message is the event as a CloudEvent in binary mode, ready to be published.
func (e Event) Message(n Names) (*nats.Msg, error) {
	e.Source, e.Reason = redact.Text(e.Source), redact.Text(e.Reason)
	m, err := CloudEvent(n, n.Events(e.Detector, e.Camera, e.Kind), e.ID, e.Detector, EventType(e.Kind), e.ScoredAt, e)
	if err != nil {
		return nil, fmt.Errorf("encode event of frame %s: %w", e.FrameID, err)
	}
	if e.FrameID != "" {
		m.Header.Set(ceSubject, e.Camera+"/"+e.FrameID)
	}
	setHeader(m, frameDigest, e.Digest)
	setHeader(m, HeaderTruth, e.Truth)
	setHeader(m, HeaderTrace, e.Trace)
	return m, nil
}

// ParseEvent reads an event message. Errors are [ErrBadMessage].
func ParseEvent(n Names, subject string, h nats.Header, data []byte) (Event, error) {
	var e Event
	detector, camera, kind, ok := n.ParseEvents(subject)
	if !ok {
		return e, fmt.Errorf("subject %q is not %s: %w", text.Clip(subject), n.Events("<detector>", "<camera>", "<kind>"), ErrBadMessage)
	}
	if v := h.Get(ceSpec); v != "1.0" {
		return e, fmt.Errorf("%s %q on %s: only CloudEvents 1.0 is read: %w", ceSpec, text.Clip(v), subject, ErrBadMessage)
	}
	if err := json.Unmarshal(data, &e); err != nil {
		return e, fmt.Errorf("data of event %s on %s: %v: %w", text.Clip(h.Get(ceID)), subject, err, ErrBadMessage)
	}
	e.ID, e.Kind, e.Detector, e.Camera = h.Get(ceID), kind, detector, camera
	e.Source, e.Reason = redact.Text(e.Source), redact.Text(e.Reason)
	e.Truth, e.Trace = h.Get(HeaderTruth), h.Get(HeaderTrace)
	return e, nil
}

// ParseScore reads a message of the scores subject, which carries an event's
// data and the ground truth, and no CloudEvents attributes.
func ParseScore(data []byte, h nats.Header) (Event, error) {
	var e Event
	if err := json.Unmarshal(data, &e); err != nil {
		return e, fmt.Errorf("score message: %v: %w", err, ErrBadMessage)
	}
	e.Truth = h.Get(HeaderTruth)
	return e, nil
}

// EventIDOf reads the id of an event in its headers.
func EventIDOf(h nats.Header) string { return h.Get(ceID) }

// IsOfFrame says whether the headers of an event name a frame: its camera, its id and,
// where the event is not of an earlier version, its image.
func IsOfFrame(h nats.Header, f Frame) bool {
	d := h.Get(frameDigest)
	return h.Get(ceSubject) == f.Camera+"/"+f.ID && (d == "" || d == f.Digest)
}
