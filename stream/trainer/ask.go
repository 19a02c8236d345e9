package trainer

import (
	"cmp"
	"context"
	"errors"
	"fmt"

	"github.com/nearmiss/nearmiss/stream"
	"github.com/nearmiss/nearmiss/stream/internal/text"
)

// Reader reads what a trainer is asked about releases and about itself. What
// it leaves nil the trainer cannot say.
type Reader struct {
	// Calibration reads what the threshold of the release in dir comes from.
	Calibration func(dir string) (stream.Calibration, error)
	// Outliers reads the normals in the bank of the release in dir, strangest first.
	Outliers func(ctx context.Context, dir string) ([]stream.Outlier, error)
	// Choices says what a detector may be configured with.
	Choices func() (stream.Choices, error)
}

var errNotRead = stream.Permanent(stream.CodeNotFound, errors.New("this trainer cannot say"))

// released brings the release that is meant to this machine.
func (w *Worker) released(ctx context.Context, q stream.ReleaseRequest) (digest, dir string, err error) {
	if err := stream.CheckToken("detector", q.Detector); err != nil {
		return "", "", err
	}
	if digest = q.Release; digest == "" {
		p, err := w.registry.Active(ctx, q.Detector)
		if err != nil {
			return "", "", err
		}
		digest = p.Release
	} else if digest, err = w.registry.Resolve(ctx, q.Detector, digest); err != nil {
		return "", "", err
	}
	dir, err = w.registry.Get(ctx, digest)
	return digest, dir, err
}

// calibration reads what the threshold of a release comes from.
func (w *Worker) calibration(ctx context.Context, q stream.ReleaseRequest) (c stream.Calibration, err error) {
	if w.cfg.Read.Calibration == nil {
		return c, errNotRead
	}
	digest, dir, err := w.released(ctx, q)
	if err != nil {
		return c, err
	}
	if c, err = w.cfg.Read.Calibration(dir); err != nil {
		return c, fmt.Errorf("read the calibration of release %s: %w", text.Short(digest), err)
	}
	c.Release = digest
	return c, nil
}

const maxOutliers = 10_000

// outliers finds the strangest normals of a release.
func (w *Worker) outliers(ctx context.Context, q stream.OutliersRequest) (o stream.Outliers, err error) {
	if w.cfg.Read.Outliers == nil {
		return o, errNotRead
	}
	q.Limit = cmp.Or(q.Limit, 100)
	if q.Limit < 1 || q.Limit > maxOutliers {
		return o, fmt.Errorf("%d normals: use 1 to %d: %w", q.Limit, maxOutliers, stream.ErrBadMessage)
	}
	var dir string
	if o.Release, dir, err = w.released(ctx, q.ReleaseRequest); err != nil {
		return o, err
	}
	all, err := w.cfg.Read.Outliers(ctx, dir)
	if err != nil {
		return o, fmt.Errorf("rank the normals of release %s: %w", text.Short(o.Release), err)
	}
	o.Total, o.Outliers = len(all), append([]stream.Outlier{}, all[:min(len(all), q.Limit)]...)
	return o, nil
}

func (w *Worker) choices(context.Context, struct{}) (stream.Choices, error) {
	if w.cfg.Read.Choices == nil {
		return stream.Choices{}, errNotRead
	}
	return w.cfg.Read.Choices()
}
