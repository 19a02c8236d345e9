package worker

import (
	"context"

	"github.com/nearmiss/nearmiss/stream"
)

// compare has the candidate judge what the release in service has judged, and
// stores an event for each disagreement. The frames are done: nothing here can
// hold them up or bring them back.
func (l *detectorRunner) compare(ctx context.Context, rel, candidate *loaded, items []*frameTask) {
	var todo []*frameTask
	for _, it := range items {
		if it.event != nil && it.event.Anomalous != nil {
			todo = append(todo, it)
		}
	}
	if len(todo) == 0 || ctx.Err() != nil {
		return
	}
	images := make([]*frameTask, len(todo))
	for i, it := range todo {
		images[i] = &frameTask{frame: it.frame, bytes: it.bytes}
	}
	err := l.scoreBatch(ctx, candidate, images)
	l.mu.Lock()
	defer l.mu.Unlock()
	r := &l.shadowReport
	if r.Candidate != candidate.pointer.Release || r.Active != rel.pointer.Release {
		*r = stream.ShadowReport{Detector: l.name, Active: rel.pointer.Release, Candidate: candidate.pointer.Release}
	}
	if err != nil {
		r.Failed += uint64(len(todo))
		l.w.cfg.Meter.Shadow(l.name, "failed", len(todo))
		l.log.Warn().Err(err).Msg("the candidate failed")
		return
	}
	for i, it := range todo {
		got := images[i]
		if got.failure != nil {
			r.Failed++
			l.w.cfg.Meter.Shadow(l.name, "failed", 1)
			continue
		}
		r.Frames++
		// The threshold's decision, not the smoothed one: the candidate has no
		// history.
		active := *it.event.Score > *it.event.Threshold
		shadow := *got.event.Anomalous
		l.w.cfg.Meter.Shadow(l.name, shadowOutcome(active, shadow), 1)
		switch {
		case active && shadow:
			r.Both++
		case active != shadow:
			if active {
				r.OnlyActive++
			} else {
				r.OnlyShadow++
			}
			e := got.event
			e.Kind, e.Bytes = stream.KindDisagreement, it.bytes
			e.Against = &stream.Judgement{
				Release: it.event.Release, Score: *it.event.Score, Threshold: *it.event.Threshold, PValue: *it.event.PValue, Anomalous: active,
			}
			named := it.frame
			named.ID = "disagreement/" + named.ID
			e.ID = stream.EventID(named, e.Release)
			l.notify(ctx, e)
		}
	}
}

// shadowOutcome is a word for what two releases say of a frame.
func shadowOutcome(active, candidate bool) string {
	switch {
	case active && candidate:
		return "both"
	case active:
		return "only_active"
	case candidate:
		return "only_candidate"
	}
	return "neither"
}

// Shadows returns how the candidates of this worker's detectors compare.
func (w *Worker) Shadows() []stream.ShadowReport {
	w.mu.Lock()
	defer w.mu.Unlock()
	var all []stream.ShadowReport
	for _, l := range w.runners {
		l.mu.Lock()
		if l.shadow != nil && l.shadowReport.Candidate == l.shadow.pointer.Release {
			all = append(all, l.shadowReport)
		}
		l.mu.Unlock()
	}
	return all
}
