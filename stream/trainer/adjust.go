package trainer

import (
	"context"
	"errors"

	"github.com/nearmiss/nearmiss/stream"
	"github.com/nearmiss/nearmiss/stream/internal/kv"
	"github.com/nearmiss/nearmiss/stream/internal/text"
	"github.com/nearmiss/nearmiss/stream/internal/wait"
	"github.com/nearmiss/nearmiss/stream/registry"
)

// adjustments has a changed k or rate act, whichever client of the broker changed
// it, until ctx ends.
func (w *Worker) adjustments(ctx context.Context) {
	handled := map[string]uint64{} // detector → revision that has been handled
	for ctx.Err() == nil {
		within, cancel := w.epoch.Within(ctx)
		var failed error
		err := w.detectors.Watch(within, func() {
			if failed = w.adjust(within, handled); failed != nil {
				cancel() // and from the beginning
			}
		})
		cancel()
		if err := errors.Join(failed, err); err != nil && ctx.Err() == nil {
			w.log.Debug().Err(err).Msg("cannot read changed configurations: trying again")
		}
		wait.Pause(ctx, w.cfg.RetryDelay/5)
	}
}

func (w *Worker) adjust(ctx context.Context, handled map[string]uint64) error {
	all, err := w.detectors.List(ctx)
	if err != nil {
		return err
	}
	for _, d := range all {
		if handled[d.Name] == d.Revision {
			continue
		}
		p, err := w.registry.Active(ctx, d.Name)
		if errors.Is(err, registry.ErrNoRelease) || errors.Is(err, registry.ErrCorrupt) {
			continue // all of it acts with the first training
		}
		if err != nil {
			return err
		}
		history, err := w.detectors.History(ctx, d.Name)
		if err != nil {
			return err
		}
		if changed, ok := changedSince(history, p); ok {
			j, err := w.jobs.Request(ctx, stream.ReadjustRequest(changed, w.cfg.Name))
			if err != nil {
				return err
			}
			w.log.Info().Str("detector", d.Name).Str("job", j.Job).Msg("k or the false-alarm rate was changed: the release is readjusted")
		}
		handled[d.Name] = d.Revision
	}
	return nil
}

// changedSince returns the newest configuration, newest first in history, that
// changed k or the rate after a release was made active. What was configured
// before is the matter of who promoted it.
func changedSince(history []kv.Entry[stream.Detector], p registry.Pointer) (stream.Detector, bool) {
	for i := 0; i+1 < len(history) && history[i].Created.After(p.StoredAt); i++ {
		if d := history[i].Value; !stream.SameJudgement(d, history[i+1].Value) {
			d.Revision = history[i].Revision
			return d, true
		}
	}
	return stream.Detector{}, false
}

// overtaken asks for a readjustment where k or the rate were changed while a
// release was trained: it was made with what they were.
func (w *Worker) overtaken(ctx context.Context, job stream.Job) error {
	d, err := w.detectors.Get(ctx, job.Detector)
	if errors.Is(err, stream.ErrNoDetector) || errors.Is(err, stream.ErrBadMessage) {
		return nil
	}
	if err != nil {
		return err
	}
	was := stream.Detector{K: job.K, FalseAlarmRate: job.FalseAlarmRate}
	if job.K == 0 || stream.SameJudgement(d, was) {
		return nil
	}
	// Its own name: a job of the change's revision may have been done already, on
	// the release that this one has replaced.
	req := stream.ReadjustRequest(d, w.cfg.Name)
	req.Job = "late-readjust-" + job.Detector + "-" + text.Short(job.Release)
	_, err = w.jobs.Request(ctx, req)
	return err
}
