package stream

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/nearmiss/nearmiss/stream/internal/kv"
	"github.com/nearmiss/nearmiss/stream/registry"
)

// Verdicts of an operator.
const (
	FeedbackNormal    = "normal"    // a false alarm: the frame shows nothing wrong
	FeedbackAnomalous = "anomalous" // the frame shows something wrong
)

// Feedback is what an operator says of a frame.
type Feedback struct {
	Detector string `json:"detector"`
	Verdict  string `json:"verdict"` // [FeedbackNormal] or [FeedbackAnomalous]
	// Event is the id of the event that is meant. Or else Camera and Frame say
	// which frame is; it must have raised an event.
	Event  string    `json:"event,omitempty"`
	Camera string    `json:"camera,omitempty"`
	Frame  string    `json:"frame,omitempty"`
	By     string    `json:"by,omitempty"`
	Note   string    `json:"note,omitempty"`
	At     time.Time `json:"at"`
}

// maxNote bounds a note, in bytes.
const maxNote = 4096

// Validate says whether the feedback can be published.
func (f Feedback) Validate() error {
	errs := []error{CheckToken("detector", f.Detector)}
	if f.Verdict != FeedbackNormal && f.Verdict != FeedbackAnomalous {
		errs = append(errs, fmt.Errorf("verdict %q: use %s or %s: %w", clip(f.Verdict), FeedbackNormal, FeedbackAnomalous, ErrBadMessage))
	}
	if f.Event == "" && (f.Frame == "" || f.Camera == "") {
		errs = append(errs, fmt.Errorf("feedback needs an event's id, or a camera and a frame: %w", ErrBadMessage))
	}
	for _, field := range []struct {
		what, text string
		most       int
	}{{"event id", f.Event, maxFrameID}, {"frame id", f.Frame, maxFrameID}, {"name of who says it", f.By, maxFrameID}, {"note", f.Note, maxNote}} {
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
	return f, oneLine(f.Validate())
}

// SendFeedback publishes feedback. A trainer takes it: a normal frame becomes a
// normal, and enters the bank of the active release at once; an anomalous one
// becomes a labelled anomaly.
func SendFeedback(ctx context.Context, js jetstream.JetStream, n Names, f Feedback) error {
	if f.At.IsZero() {
		f.At = time.Now().UTC()
	}
	if err := f.Validate(); err != nil {
		return err
	}
	data, err := json.Marshal(f)
	if err != nil {
		return err
	}
	m := nats.NewMsg(n.Feedback(f.Detector))
	m.Header.Set(nats.MsgIdHdr, strings.Join([]string{f.Event, f.Camera, f.Frame, f.Verdict}, "/"))
	m.Data = data
	if _, err := js.PublishMsg(ctx, m); err != nil {
		return fmt.Errorf("send feedback on detector %s: %w", f.Detector, err)
	}
	return nil
}

// feedbackID is what the ids of normals that came by feedback begin with.
const feedbackID = "feedback/"

// feedbackBatch is how many frames enter a bank together, at most.
const feedbackBatch = 64

// feedbackConsumer is shared by all trainers.
func (w *TrainingWorker) feedbackConsumer(ctx context.Context) (jetstream.Consumer, error) {
	c, err := w.js.CreateOrUpdateConsumer(ctx, w.cfg.FeedbackStream(), jetstream.ConsumerConfig{
		Durable: "feedback", Description: "trainers, for operators' feedback",
		AckPolicy: jetstream.AckExplicitPolicy, AckWait: 30 * time.Second, MaxDeliver: -1,
	})
	if err != nil {
		return nil, fmt.Errorf("consumer of feedback: %w", err)
	}
	return c, nil
}

// handleFeedback sees a batch of feedback to its end: the normals of one
// detector make one job.
func (w *TrainingWorker) handleFeedback(ctx context.Context, msgs []jetstream.Msg) {
	beat := newHeartbeat(10*time.Second, msgs)
	defer beat.stop()
	type group struct {
		msgs []jetstream.Msg
		seqs []uint64
	}
	groups := map[string]*group{}
	for _, m := range msgs {
		f, seq, err := w.learnFrom(ctx, m)
		var perm *PermanentError
		switch {
		case errors.As(err, &perm):
			w.refuseFeedback(ctx, m, perm)
		case err != nil:
			w.log.Warn().Err(err).Msg("feedback not handled: it comes again")
			_ = m.NakWithDelay(5 * time.Second)
		case f.Verdict == FeedbackNormal:
			g := groups[f.Detector]
			if g == nil {
				g = &group{}
				groups[f.Detector] = g
			}
			g.msgs, g.seqs = append(g.msgs, m), append(g.seqs, seq)
			continue
		default:
			_ = m.Ack()
		}
		beat.done(m)
	}
	for detector, g := range groups {
		_, err := w.registry.Active(ctx, detector)
		if err == nil {
			_, err = w.jobs.Request(ctx, TrainRequest{
				Job: fmt.Sprintf("extend-%s-%d", detector, g.seqs[len(g.seqs)-1]), Detector: detector, Extend: g.seqs, Promote: true,
				By: "feedback", Reason: fmt.Sprintf("%d frames were confirmed normal", len(g.seqs)),
			})
		} else if errors.Is(err, registry.ErrNoRelease) {
			err = nil // they are normals for the first training
		}
		for _, m := range g.msgs {
			if err != nil {
				_ = m.NakWithDelay(5 * time.Second)
			} else {
				_ = m.Ack()
			}
			beat.done(m)
		}
		if err != nil {
			w.log.Warn().Err(err).Str("detector", detector).Msg("feedback not handled: it comes again")
		}
	}
}

// learnFrom adds the frame that feedback is about to the detector's normals or
// labelled anomalies.
func (w *TrainingWorker) learnFrom(ctx context.Context, m jetstream.Msg) (f Feedback, sequence uint64, err error) {
	if f, err = ParseFeedback(m.Data()); err != nil {
		return f, 0, Permanent(CodeBadRequest, err)
	}
	if m.Subject() != w.cfg.Feedback(f.Detector) {
		return f, 0, Permanent(CodeBadRequest, fmt.Errorf("feedback on detector %s came on subject %s", f.Detector, m.Subject()))
	}
	e, err := FindEvent(ctx, w.js, w.cfg.Names, f.Detector, f.Camera, f.Event, f.Frame)
	if errors.Is(err, ErrNotFound) {
		return f, 0, Permanent(CodeNotFound, err)
	}
	if err != nil {
		return f, 0, err
	}
	image, err := w.evidence(ctx, e)
	if err != nil {
		return f, 0, err
	}
	origin := "an operator called the frame " + f.Verdict
	if f.By != "" {
		origin = f.By + " called the frame " + f.Verdict
	}
	sequence, err = w.normals.Add(ctx, Normal{
		Detector: f.Detector, ID: feedbackID + e.Camera + "/" + e.FrameID, Origin: origin, Anomaly: f.Verdict == FeedbackAnomalous,
		Source: e.Source, Camera: e.Camera, CapturedAt: e.CapturedAt, Image: image,
	})
	return f, sequence, err
}

// evidence returns the image of an event.
func (w *TrainingWorker) evidence(ctx context.Context, e Event) ([]byte, error) {
	bucket, name, ok := strings.Cut(e.Evidence, "/")
	if !ok || bucket != w.cfg.ArtifactsBucket() || !strings.HasPrefix(name, EvidenceObjects) {
		return nil, Permanent(CodeNotFound, fmt.Errorf("event %s keeps no image: %w", clip(e.ID), ErrNotFound))
	}
	return fetchObject(ctx, w.js, bucket, name, maxStoredImage)
}

// refuseFeedback moves feedback that cannot be used to the dead letters.
func (w *TrainingWorker) refuseFeedback(ctx context.Context, m jetstream.Msg, why *PermanentError) {
	meta, err := m.Metadata()
	if err != nil {
		return
	}
	dead := deadMessage(w.cfg.Names, m.Subject(), w.cfg.FeedbackStream(), meta.Sequence.Stream, int(meta.NumDelivered), m.Headers(), m.Data(), why.Code, why.Error())
	if err := retry(ctx, brief(), func() error { return publishDead(ctx, w.js, w.cfg.Names, dead) }); err != nil {
		_ = m.NakWithDelay(5 * time.Second)
		return
	}
	w.log.Warn().Err(why).Msg("feedback refused")
	_ = m.Ack()
}
