package stream

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/nearmiss/nearmiss/stream/internal/kv"
	"github.com/nearmiss/nearmiss/stream/internal/text"
)

// Verdicts of an operator.
const (
	FeedbackNormal    = "normal"    // a false alarm: the frame shows nothing wrong
	FeedbackAnomalous = "anomalous" // the frame shows something wrong
	FeedbackSeen      = "seen"      // somebody has seen it, and nothing is to be learnt from it
	FeedbackWithdrawn = "withdrawn" // the verdict before is taken back
)

// verdicts are all of them.
var verdicts = []string{FeedbackNormal, FeedbackAnomalous, FeedbackSeen, FeedbackWithdrawn}

// Feedback is what an operator says of a frame. The last verdict on an event
// wins; what the ones before it did is undone.
type Feedback struct {
	Detector string `json:"detector"`
	Verdict  string `json:"verdict"` // [FeedbackNormal] and so on
	// Event is the id of the event that is meant. Or else Camera and Frame say
	// which frame is; it must have raised an event.
	Event string `json:"id,omitempty"`
	// Sequence is the event's place in the events stream, where it is known: it is
	// then found at once. See [Event.Sequence].
	Sequence uint64    `json:"sequence,omitempty"`
	Camera   string    `json:"camera,omitempty"`
	Frame    string    `json:"frame,omitempty"`
	By       string    `json:"by,omitempty"`
	Note     string    `json:"note,omitempty"`
	At       time.Time `json:"at"`
}

// UnmarshalJSON reads feedback as it is published, and as it was before an event's
// id was called id here too. Fields that are not known are refused.
func (f *Feedback) UnmarshalJSON(b []byte) error {
	type fields Feedback // without this method
	v := struct {
		*fields
		Before string `json:"event"`
	}{fields: (*fields)(f)}
	dec := json.NewDecoder(bytes.NewReader(b))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&v); err != nil {
		return err
	}
	f.Event = cmp.Or(f.Event, v.Before)
	return nil
}

// maxNote bounds a note, in bytes.
const maxNote = 4096

// Validate says whether the feedback can be published.
func (f Feedback) Validate() error {
	errs := []error{CheckToken("detector", f.Detector)}
	if !slices.Contains(verdicts, f.Verdict) {
		errs = append(errs, fmt.Errorf("verdict %q: use %s: %w", text.Clip(f.Verdict), strings.Join(verdicts, ", "), ErrBadMessage))
	}
	if f.Event == "" && (f.Frame == "" || f.Camera == "") {
		errs = append(errs, fmt.Errorf("feedback needs an event's id, or a camera and a frame: %w", ErrBadMessage))
	}
	for _, field := range []struct {
		what, text string
		most       int
	}{{"event id", f.Event, MaxFrameID}, {"frame id", f.Frame, MaxFrameID}, {"name of who says it", f.By, MaxFrameID}, {"note", f.Note, maxNote}} {
		if len(field.text) > field.most {
			errs = append(errs, fmt.Errorf("%s of %d bytes: use up to %d: %w", field.what, len(field.text), field.most, ErrBadMessage))
		}
	}
	if f.Camera != "" {
		errs = append(errs, CheckToken("camera", f.Camera))
	}
	return errors.Join(errs...)
}

// ParseFeedback reads feedback as it is published. Anybody may have written it:
// fields that are not known are refused.
func ParseFeedback(b []byte) (Feedback, error) {
	var f Feedback
	if err := kv.Object(b, &f, true); err != nil {
		return f, fmt.Errorf("feedback: %w: %w", ErrBadMessage, err)
	}
	return f, text.OneLine(f.Validate())
}

// SendFeedback publishes feedback. A trainer takes it: a normal frame becomes a
// normal, and enters the bank of the active release at once; an anomalous one
// becomes a labelled anomaly; what was withdrawn leaves the one and the other. That
// there is no such event is [ErrNotFound].
func (in *Installation) SendFeedback(ctx context.Context, f Feedback) error {
	if f.At.IsZero() {
		f.At = time.Now().UTC()
	}
	if err := f.Validate(); err != nil {
		return err
	}
	e, err := in.Meant(ctx, f)
	if err != nil {
		return err
	}
	f.Event, f.Sequence = e.ID, e.Sequence
	data, err := json.Marshal(f)
	if err != nil {
		return err
	}
	m := nats.NewMsg(in.names.Feedback(f.Detector))
	m.Header.Set(nats.MsgIdHdr, strings.Join([]string{f.Event, f.Camera, f.Frame, f.Verdict, f.At.UTC().Format(time.RFC3339Nano)}, "/"))
	m.Data = data
	if _, err := in.js.PublishMsg(ctx, m); err != nil {
		return fmt.Errorf("send feedback on detector %s: %w", f.Detector, err)
	}
	return nil
}

// EventImage returns the image that raised an event, or [ErrNotFound].
func (in *Installation) EventImage(ctx context.Context, e Event) ([]byte, error) {
	bucket, name, ok := strings.Cut(e.Evidence, "/")
	if !ok || bucket != in.names.ImagesBucket() && bucket != in.names.ArtifactsBucket() || !strings.HasPrefix(name, EvidenceObjects) {
		return nil, Permanent(CodeNotFound, fmt.Errorf("event %s keeps no image: %w", text.Clip(e.ID), ErrNotFound))
	}
	b, err := fetchObject(ctx, in.js, bucket, name, maxStoredImage)
	if err == nil && EvidenceObjects+DigestOf(b) != name {
		return nil, Permanent(CodeObjectBad, fmt.Errorf("event %s: object %s is another image than its name says", text.Clip(e.ID), text.Clip(name)))
	}
	return b, err
}

// Meant is the event that feedback is about, or [ErrNotFound].
func (in *Installation) Meant(ctx context.Context, f Feedback) (Event, error) {
	if f.Sequence > 0 {
		e, err := in.Event(ctx, f.Sequence)
		switch {
		case err == nil && e.ID == f.Event && e.Detector == f.Detector && e.Kind == KindAnomaly:
			return e, nil
		case err != nil && !errors.Is(err, ErrNotFound) && !errors.Is(err, ErrBadMessage):
			return e, err
		}
	}
	return in.FindEvent(ctx, f.Detector, f.Camera, f.Event, f.Frame)
}
