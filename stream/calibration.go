package stream

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/nats-io/nats.go"
)

// ReleaseRequest names a release of a detector; empty means the active one.
type ReleaseRequest struct {
	Detector string `json:"detector"`
	Release  string `json:"release,omitempty"` // in full or by its first characters
}

// Calibration is what a release's threshold comes from.
type Calibration struct {
	Release      string    `json:"release"`
	Alpha        float64   `json:"false_alarm_rate"` // asked for
	SmallestRate float64   `json:"smallest_rate"`    // that so many held-out normals can promise
	K            int       `json:"k"`
	HeldOut      []float64 `json:"held_out"`  // their scores, ascending
	Threshold    *float64  `json:"threshold"` // absent where the rate cannot be reached
}

// calibration reads what the threshold of a release comes from.
func (w *TrainingWorker) calibration(ctx context.Context, q ReleaseRequest) (Calibration, error) {
	if err := CheckToken("detector", q.Detector); err != nil {
		return Calibration{}, err
	}
	if w.cfg.Calibration == nil {
		return Calibration{}, Permanent(CodeNotFound, errors.New("this trainer does not read calibrations"))
	}
	digest := q.Release
	if digest == "" {
		p, err := w.registry.Active(ctx, q.Detector)
		if err != nil {
			return Calibration{}, err
		}
		digest = p.Release
	} else {
		var err error
		if digest, err = w.registry.Resolve(ctx, q.Detector, digest); err != nil {
			return Calibration{}, err
		}
	}
	dir, err := w.registry.Get(ctx, digest)
	if err != nil {
		return Calibration{}, err
	}
	c, err := w.cfg.Calibration(dir)
	if err != nil {
		return c, fmt.Errorf("read the calibration of release %s: %w", short(digest), err)
	}
	c.Release = digest
	return c, nil
}

// Calibration asks a trainer what the threshold of a release comes from.
func (c *Client) Calibration(ctx context.Context, q ReleaseRequest) (a Calibration, err error) {
	data, err := json.Marshal(q)
	if err != nil {
		return a, err
	}
	return a, c.send(ctx, &nats.Msg{Subject: c.names.API() + ".trainer.calibration", Data: data}, requestTime, &a)
}
