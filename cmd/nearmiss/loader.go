package main

import (
	"context"
	"errors"
	"math"

	"github.com/nearmiss/nearmiss/bank/drift"
	"github.com/nearmiss/nearmiss/inference"
	"github.com/nearmiss/nearmiss/inference/imaging"
	"github.com/nearmiss/nearmiss/inference/release"
	budget "github.com/nearmiss/nearmiss/internal/memory"
	"github.com/nearmiss/nearmiss/stream"
	"github.com/nearmiss/nearmiss/stream/worker"
)

// loader opens releases for the worker, which has them from the registry.
func loader(o inference.Options) worker.Loader {
	o.Verified = true
	return func(ctx context.Context, dir string) (worker.Scorer, error) {
		d, err := inference.Open(ctx, dir, o)
		if err != nil {
			return nil, err
		}
		thumbs, err := release.ReadThumbnails(dir)
		if err != nil {
			return nil, errors.Join(err, d.Close())
		}
		return scorer{d, thumbs, o.Embed.Limits, o.Embed.Memory}, nil
	}
}

// scorer is a loaded release as the worker sees it.
type scorer struct {
	d      *inference.Detector
	thumbs release.Thumbnails // of the normals in the bank; nil: the release has none
	limits imaging.Limits
	memory *budget.Budget // of pixels
}

func (s scorer) Score(ctx context.Context, images [][]byte) ([]worker.Verdict, error) {
	scores, err := s.d.Score(ctx, images)
	if err != nil {
		return nil, err
	}
	info := s.d.Info()
	verdicts := make([]worker.Verdict, len(scores))
	for i, score := range scores {
		v := verdict(score)
		v.Release, v.Model, v.Bank = info.Release, info.Model, info.Bank
		if score.Err == nil && score.Map != nil && s.d.HasHeatmaps() {
			v.Place = &place{s: s, score: score}
		}
		verdicts[i] = v
	}
	return verdicts, nil
}

func (s scorer) Close() error { return s.d.Close() }

// DriftTest watches the p-values of one camera.
func (s scorer) DriftTest(_ string, defects float64) (worker.DriftTest, error) {
	info := s.d.Info()
	if info.HeldOut == 0 {
		return nil, errors.New("the release is not calibrated")
	}
	m, err := drift.New(drift.Options{
		HeldOut: info.HeldOut, Worth: info.Worth, Alpha: info.Alpha, Defects: defects,
		Every: drift.EveryOf(info.Alike),
	})
	if err != nil {
		return nil, err
	}
	return driftTest{m}, nil
}

// driftTest is a drift monitor as the worker sees it.
type driftTest struct{ m *drift.Monitor }

func (t driftTest) Observe(p float64) (stream.DriftStatus, error) {
	s, err := t.m.Observe(p)
	return stream.DriftStatus{
		Drifted: s.Drifted, Cause: string(s.Cause), Frames: s.Frames,
		Evidence: s.Evidence, Level: s.Level, AlarmShare: s.AlarmShare,
	}, err
}

// inspect checks an image before it becomes a normal.
func inspect(l imaging.Limits) func([]byte) (code, reason string) {
	return func(file []byte) (code, reason string) {
		_, err := imaging.Inspect(file, l)
		if r := imaging.Rejection(err); r != nil {
			return string(r.Code), r.Reason
		}
		return "", ""
	}
}

// verdict translates a score. A threshold that nothing exceeds, infinite in a
// release without a usable calibration, becomes the largest number, because
// JSON has no infinity.
func verdict(s inference.Score) worker.Verdict {
	v := worker.Verdict{Width: s.Width, Height: s.Height}
	if s.Err != nil {
		v.Reject, v.Reason = stream.CodeInternal, s.Err.Error()
		if r := imaging.Rejection(s.Err); r != nil {
			v.Reject, v.Reason = string(r.Code), r.Reason
		} else if errors.Is(s.Err, inference.ErrNotFinite) {
			v.Reject = stream.CodeNotFinite
		}
		return v
	}
	v.Score, v.Threshold, v.PValue = s.Score, min(s.Threshold, math.MaxFloat64), s.PValue
	v.Anomalous, v.K = s.Anomalous, s.K
	for _, n := range s.Nearest {
		v.Nearest = append(v.Nearest, stream.Near{ID: n.ID, Distance: float64(n.Distance)})
	}
	return v
}
