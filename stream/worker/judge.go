package worker

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/nearmiss/nearmiss/stream"
	"github.com/nearmiss/nearmiss/stream/internal/kv"
	"github.com/nearmiss/nearmiss/stream/internal/text"
)

// judge decides which events are to be stored: smoothing first, then the
// detector's threshold. It also feeds the drift tests.
func (l *detectorRunner) judge(ctx context.Context, rel *loaded, items []*frameTask) {
	conf, _, _, _ := l.state()
	for _, it := range items {
		if it.event.Anomalous == nil {
			continue
		}
		l.observe(ctx, rel, it, conf.DefectShare)
		conf.Decide(it.event)
		if conf.Smoothing > 1 {
			mean := l.recent.add(it.frame.Camera, it.frame.Key(), *it.event.Score, conf.Smoothing)
			yes := mean > *it.event.Threshold
			it.event.Smoothed, it.event.Anomalous = &mean, &yes
		}
		it.announce = *it.event.Anomalous
	}
}

// recentScores remembers each camera's last scores, as this worker found them:
// what others say of scores, anybody may have said. Of several workers each
// smooths over the frames that it scored.
type recentScores struct {
	mu       sync.Mutex
	byCamera map[string][]scored
}

type scored struct {
	frame string
	score float64
}

// add puts in a frame's score, once, and returns the mean of the camera's last n.
func (r *recentScores) add(camera, frame string, score float64, n int) float64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.byCamera == nil {
		r.byCamera = map[string][]scored{}
	}
	last := r.byCamera[camera]
	if !slices.ContainsFunc(last, func(s scored) bool { return s.frame == frame }) {
		last = append(last, scored{frame, score})
	}
	if len(last) > n {
		last = append(last[:0], last[len(last)-n:]...)
	}
	r.byCamera[camera] = last
	sum := 0.0
	for _, s := range last {
		sum += s.score
	}
	return sum / float64(len(last))
}

// observe feeds the drift test of the frame's camera, and tells when it finds
// that normal has moved.
func (l *detectorRunner) observe(ctx context.Context, rel *loaded, it *frameTask, defects float64) {
	tester, ok := rel.scorer.(DriftTester)
	if !ok || it.deliveries > 1 { // a frame counts once
		return
	}
	camera := it.frame.Camera
	rel.mu.Lock()
	defer rel.mu.Unlock()
	d := rel.drift[camera]
	if d == nil {
		test, err := tester.DriftTest(camera, defects)
		if err != nil {
			l.log.Warn().Err(err).Str("camera", camera).Msg("this camera is not watched for drift")
		}
		d = &drift{test: test}
		if rel.drift == nil {
			rel.drift = map[string]*drift{}
		}
		rel.drift[camera] = d
	}
	if d.test == nil {
		return
	}
	was := d.status.Drifted
	s, err := d.test.Observe(*it.event.PValue)
	if err != nil {
		l.log.Debug().Err(err).Str("camera", camera).Msg("p-value not observed")
		return
	}
	d.status = s
	l.w.cfg.Meter.Drift(l.name, camera, s)
	if !s.Drifted || was {
		return
	}
	e := stream.Notice(stream.KindDrift, l.name, camera, rel.pointer.Release, codeOf(s.Cause),
		fmt.Sprintf("what camera %s sees as normal has moved away from what release %s was calibrated on (%s): retraining is advised", camera, text.Short(rel.pointer.Release), s.Cause), "")
	e.Drift = &s
	l.log.Warn().Str("camera", camera).Str("cause", s.Cause).Int("frames", s.Frames).Msg("normal has drifted: retraining is advised")
	l.notify(ctx, e)
}

// drift is the state of one camera's test.
type drift struct {
	test   DriftTest
	status stream.DriftStatus
}

// notify stores a notice, in the background: nothing waits for it.
func (l *detectorRunner) notify(ctx context.Context, e *stream.Event) {
	l.notices.Go(func() {
		m, err := e.Message(l.w.cfg.Names)
		if err == nil {
			err = l.acked(ctx, nil, m)
		}
		if err == nil {
			l.w.cfg.Meter.Stored(e.Kind)
		}
		if err != nil && ctx.Err() == nil {
			l.log.Warn().Err(err).Str("kind", e.Kind).Msg("notice not stored")
		}
	})
}

// coolDown stores an anomaly unless the camera has raised one a short time ago,
// by the time at which the frames were taken. The last stored event is the
// state, and the broker checks that it still is the last: workers need not know
// of each other. It returns whether the event is stored, now or before.
func (l *detectorRunner) coolDown(ctx context.Context, it *frameTask, cool time.Duration) (bool, error) {
	ctx, cancel := l.w.epoch.Within(ctx)
	defer cancel()
	subject := l.w.cfg.Events(l.name, it.frame.Camera, stream.KindAnomaly)
	for ctx.Err() == nil {
		var seq uint64
		last, err := l.w.events.GetLastMsgForSubject(ctx, subject)
		switch {
		case errors.Is(err, jetstream.ErrMsgNotFound):
		case err != nil:
			return false, err
		default:
			seq = last.Sequence
			if stream.EventIDOf(last.Header) == it.event.ID {
				return true, nil
			}
			var e stream.Event
			if json.Unmarshal(last.Data, &e) == nil {
				if d := it.frame.CapturedAt.Sub(e.CapturedAt).Abs(); d < cool {
					return false, nil
				}
			}
		}
		if err := l.keep(ctx, it); err != nil {
			return false, err
		}
		m, err := it.event.Message(l.w.cfg.Names)
		if err != nil {
			return false, err
		}
		step, cancel := context.WithTimeout(ctx, stream.PublishWait)
		_, err = l.w.js.PublishMsg(step, m, jetstream.WithExpectLastSequencePerSubject(seq))
		cancel()
		if !kv.WrongSequence(err) {
			return err == nil, err
		}
	}
	return false, ctx.Err()
}
