package trainer

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/nearmiss/nearmiss/stream"
	"github.com/nearmiss/nearmiss/stream/internal/pull"
	"github.com/nearmiss/nearmiss/stream/internal/scan"
	"github.com/nearmiss/nearmiss/stream/internal/text"
	"github.com/nearmiss/nearmiss/stream/registry"
)

// An operator may think better of it: the last verdict on an event wins, whatever
// the ones before it did is undone, and in whatever order trainers take them.

// verdictBatch is a batch of feedback on its way.
type verdictBatch struct {
	w    *Worker
	made map[string]map[string][]stream.Normal // detector → id → the normals that verdicts have made
}

// effect is what one verdict asks for.
type effect struct {
	detector string
	verdict  uint64          // sequence of the feedback
	extend   []uint64        // normals that enter the bank
	remove   []stream.Normal // what earlier verdicts made
}

// handleFeedback sees a batch of feedback to its end: what one detector learns of
// it makes one job, and what it forgets another.
func (w *Worker) handleFeedback(ctx context.Context, msgs []jetstream.Msg) {
	beat := pull.Beat(10*time.Second, msgs)
	defer beat.Stop()
	type group struct {
		effect
		msgs []jetstream.Msg
	}
	groups := map[string]*group{}
	batch := &verdictBatch{w: w, made: map[string]map[string][]stream.Normal{}}
	for _, m := range msgs {
		x, err := batch.resolve(ctx, m)
		var perm *stream.PermanentError
		switch {
		case errors.As(err, &perm):
			w.refuseFeedback(ctx, m, perm)
			beat.Done(m)
		case err != nil:
			w.log.Warn().Err(err).Msg("feedback not handled: it will be retried")
			_ = m.NakWithDelay(w.cfg.RetryDelay)
			beat.Done(m)
		default:
			g := groups[x.detector]
			if g == nil {
				g = &group{}
				groups[x.detector] = g
			}
			g.detector, g.verdict = x.detector, max(g.verdict, x.verdict)
			g.extend, g.remove, g.msgs = append(g.extend, x.extend...), append(g.remove, x.remove...), append(g.msgs, m)
		}
	}
	for _, g := range groups {
		err := w.takeEffect(ctx, g.effect)
		for _, m := range g.msgs {
			if err != nil {
				_ = m.NakWithDelay(w.cfg.RetryDelay)
			} else {
				_ = m.Ack()
			}
			beat.Done(m)
		}
		if err != nil && ctx.Err() == nil {
			w.log.Warn().Err(err).Str("detector", g.detector).Msg("feedback not handled: it will be retried")
		}
	}
}

// takeEffect asks for the jobs that verdicts need, and then removes what they
// withdraw: should this trainer die in between, the verdicts come again.
func (w *Worker) takeEffect(ctx context.Context, x effect) error {
	var retract []uint64
	for _, n := range x.remove {
		if !n.Anomaly {
			retract = append(retract, n.Sequence)
		}
	}
	extend := slices.DeleteFunc(slices.Clone(x.extend), func(seq uint64) bool { return slices.Contains(retract, seq) })
	_, err := w.registry.Active(ctx, x.detector)
	if err != nil && !errors.Is(err, registry.ErrNoRelease) && !errors.Is(err, registry.ErrCorrupt) {
		return err
	}
	if err == nil { // else they are normals for the first training
		if len(extend) > 0 {
			if _, err := w.jobs.Request(ctx, stream.TrainRequest{
				Job: fmt.Sprintf("extend-%s-%d", x.detector, extend[len(extend)-1]), Detector: x.detector, Extend: extend, Promote: true,
				By: "feedback", Reason: fmt.Sprintf("%d frames were confirmed normal", len(extend)),
			}); err != nil {
				return err
			}
		}
		if len(retract) > 0 {
			if _, err := w.jobs.Request(ctx, stream.TrainRequest{
				Job: fmt.Sprintf("retract-%s-%d", x.detector, x.verdict), Detector: x.detector, Retract: retract, Promote: true,
				By: "feedback", Reason: fmt.Sprintf("%d frames were normal for somebody who thought better of it", len(retract)),
			}); err != nil {
				return err
			}
		}
	}
	for _, n := range x.remove {
		if err := w.normals.Remove(ctx, x.detector, n.Sequence); err != nil && !errors.Is(err, stream.ErrNotFound) {
			return err
		}
	}
	return nil
}

// resolve finds out what a verdict asks for, and stores the image that it makes a
// normal or a labelled anomaly.
func (b *verdictBatch) resolve(ctx context.Context, m jetstream.Msg) (effect, error) {
	w := b.w
	f, err := stream.ParseFeedback(m.Data())
	if err != nil {
		return effect{}, stream.Permanent(stream.CodeBadRequest, err)
	}
	if m.Subject() != w.cfg.Feedback(f.Detector) {
		return effect{}, stream.Permanent(stream.CodeBadRequest, fmt.Errorf("feedback on detector %s came on subject %s", f.Detector, m.Subject()))
	}
	meta, err := m.Metadata()
	if err != nil {
		return effect{}, stream.Permanent(stream.CodeBadRequest, err)
	}
	x := effect{detector: f.Detector, verdict: meta.Sequence.Stream}
	e, err := w.in.Meant(ctx, f)
	if errors.Is(err, stream.ErrNotFound) {
		return x, stream.Permanent(stream.CodeNotFound, err)
	}
	if err != nil {
		return x, err
	}
	if over, err := w.superseded(ctx, x, e); err != nil || over {
		return x, err
	}
	ids, err := b.of(ctx, f.Detector)
	if err != nil {
		return x, err
	}
	id := verdictID(e)
	var kept []stream.Normal
	for _, n := range ids[id] {
		if len(kept) == 0 && (f.Verdict == stream.FeedbackNormal && !n.Anomaly || f.Verdict == stream.FeedbackAnomalous && n.Anomaly) {
			kept = append(kept, n)
		} else {
			x.remove = append(x.remove, n)
		}
	}
	if len(kept) == 0 && (f.Verdict == stream.FeedbackNormal || f.Verdict == stream.FeedbackAnomalous) {
		n, err := w.learnFrom(ctx, f, e, id)
		if err != nil {
			return x, err
		}
		// A verdict that came meanwhile has not seen this one's image.
		if over, err := w.superseded(ctx, x, e); err != nil || over {
			return x, errors.Join(err, w.normals.Remove(ctx, f.Detector, n.Sequence))
		}
		kept = append(kept, n)
	}
	ids[id] = kept
	if len(kept) > 0 && f.Verdict == stream.FeedbackNormal {
		x.extend = append(x.extend, kept[0].Sequence)
	}
	return x, nil
}

// superseded says whether there is a later verdict on the same event.
func (w *Worker) superseded(ctx context.Context, x effect, e stream.Event) (bool, error) {
	over := false
	err := scan.Back(ctx, w.js, w.cfg.FeedbackStream(), w.cfg.Feedback(x.detector), 0, false, func(m jetstream.Msg, seq uint64) bool {
		if seq <= x.verdict {
			return false
		}
		f, err := stream.ParseFeedback(m.Data())
		over = err == nil && (f.Event == e.ID || f.Event == "" && f.Camera == e.Camera && f.Frame == e.FrameID)
		return !over
	})
	if err != nil {
		return false, fmt.Errorf("find later feedback: %w", err)
	}
	return over, nil
}

// of returns what verdicts have made of the frames of a detector, by id.
func (b *verdictBatch) of(ctx context.Context, detector string) (map[string][]stream.Normal, error) {
	if ids := b.made[detector]; ids != nil {
		return ids, nil
	}
	ids := map[string][]stream.Normal{}
	for _, anomalies := range []bool{false, true} {
		if _, err := b.w.normals.Replay(ctx, detector, anomalies, false, func(n stream.Normal) error {
			if strings.HasPrefix(n.ID, feedbackID) {
				ids[n.ID] = append(ids[n.ID], n)
			}
			return nil
		}); err != nil {
			return nil, err
		}
	}
	b.made[detector] = ids
	return ids, nil
}

// verdictID names the normal or labelled anomaly that verdicts on an event make.
func verdictID(e stream.Event) string { return text.Line(feedbackID + e.Camera + "/" + e.FrameID) }

// learnFrom stores the image of an event as a normal or labelled anomaly.
func (w *Worker) learnFrom(ctx context.Context, f stream.Feedback, e stream.Event, id string) (stream.Normal, error) {
	image, err := w.in.EventImage(ctx, e)
	if err != nil {
		return stream.Normal{}, err
	}
	n := stream.Normal{
		Detector: f.Detector, ID: id, Origin: "an operator called the frame " + f.Verdict, Anomaly: f.Verdict == stream.FeedbackAnomalous,
		Source: e.Source, Camera: e.Camera, CapturedAt: e.CapturedAt, Image: image,
		// The same verdict may come a second time, after one that withdrew it.
		Once: id + "@" + f.At.UTC().Format(time.RFC3339Nano),
	}
	if f.By != "" {
		n.Origin = f.By + " called the frame " + f.Verdict
	}
	n.Sequence, err = w.normals.Add(ctx, n)
	return n, err
}

// retractLate asks for what was withdrawn while a release was made to be taken
// out of that, too: the job that did so saw another release.
func (w *Worker) retractLate(ctx context.Context, job stream.Job) error {
	if len(job.Retract) > 0 || job.Readjust {
		return nil // a conflict of the two has it made again
	}
	all, err := w.jobs.List(ctx, job.Detector)
	if err != nil {
		return err
	}
	var late []uint64
	for _, j := range all {
		if len(j.Retract) == 0 || j.At.Before(job.StartedAt) {
			continue
		}
		for _, seq := range j.Retract {
			if len(job.Extend) == 0 || slices.Contains(job.Extend, seq) {
				late = append(late, seq)
			}
		}
	}
	if len(late) == 0 {
		return nil
	}
	_, err = w.jobs.Request(ctx, stream.TrainRequest{
		Job: "late-retract-" + job.Detector + "-" + text.Short(job.Release), Detector: job.Detector, Retract: late, Promote: true,
		By: w.cfg.Name, Reason: fmt.Sprintf("%d frames were withdrawn during job %s", len(late), job.Job),
	})
	return err
}

// feedbackID is what the ids of normals that came by feedback begin with.
const feedbackID = "feedback/"

// feedbackBatch is how many frames enter a bank together, at most.
const feedbackBatch = 64

// feedbackConsumer is shared by all trainers.
func (w *Worker) feedbackConsumer(ctx context.Context) (jetstream.Consumer, error) {
	c, err := w.js.CreateOrUpdateConsumer(ctx, w.cfg.FeedbackStream(), jetstream.ConsumerConfig{
		Durable: "feedback", Description: "trainers, for operators' feedback",
		AckPolicy: jetstream.AckExplicitPolicy, AckWait: 30 * time.Second, MaxDeliver: -1,
	})
	if err != nil {
		return nil, fmt.Errorf("consumer of feedback: %w", err)
	}
	return c, nil
}

// refuseFeedback moves feedback that cannot be used to the dead letters.
func (w *Worker) refuseFeedback(ctx context.Context, m jetstream.Msg, why *stream.PermanentError) {
	if err := w.storeDeadLetter(ctx, m, w.cfg.FeedbackStream(), why.Code, why); err != nil {
		_ = m.NakWithDelay(5 * time.Second)
		return
	}
	w.log.Warn().Err(why).Msg("feedback refused")
	_ = m.Ack()
}
