package stream

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/nats-io/nats.go"

	"github.com/nearmiss/nearmiss/stream/internal/text"
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

// OutliersRequest asks for the strangest normals of a release.
type OutliersRequest struct {
	ReleaseRequest
	Limit int `json:"limit,omitempty"` // 1 to 10,000; default 100
}

// Outlier is a normal in a bank.
type Outlier struct {
	Sequence uint64  `json:"sequence"` // of the normal in the stream of normals; 0: it came otherwise, as with a release that was brought
	BankID   uint64  `json:"bank_id"`
	Name     string  `json:"name"`  // of its file
	Score    float64 `json:"score"` // against the rest of the bank, without it and its copies in other light
}

// Outliers are the normals in the bank of a release, strangest first.
type Outliers struct {
	Release  string    `json:"release"`
	Total    int       `json:"total"` // normals in the bank
	Outliers []Outlier `json:"outliers"`
}

// Choices are the words that this trainer understands in the configuration of a
// detector.
type Choices struct {
	Backbones  []string `json:"backbones"` // names, never paths; those at hand first
	Default    string   `json:"default"`   // name of the model of detectors that name none
	Methods    []string `json:"methods"`
	Profiles   []string `json:"profiles"`
	Scores     []string `json:"scores"`
	Symmetries []string `json:"symmetries"`
}

// ReleaseReader reads what a trainer is asked about releases and about itself. What
// it leaves nil the trainer cannot say.
type ReleaseReader struct {
	// Calibration reads what the threshold of the release in dir comes from.
	Calibration func(dir string) (Calibration, error)
	// Outliers reads the normals in the bank of the release in dir, strangest first.
	Outliers func(ctx context.Context, dir string) ([]Outlier, error)
	// Choices says what a detector may be configured with.
	Choices func() (Choices, error)
}

var errNotRead = Permanent(CodeNotFound, errors.New("this trainer cannot say"))

// released brings the release that is meant to this machine.
func (w *TrainingWorker) released(ctx context.Context, q ReleaseRequest) (digest, dir string, err error) {
	if err := CheckToken("detector", q.Detector); err != nil {
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
func (w *TrainingWorker) calibration(ctx context.Context, q ReleaseRequest) (c Calibration, err error) {
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
func (w *TrainingWorker) outliers(ctx context.Context, q OutliersRequest) (o Outliers, err error) {
	if w.cfg.Read.Outliers == nil {
		return o, errNotRead
	}
	if q.Limit == 0 {
		q.Limit = 100
	}
	if q.Limit < 1 || q.Limit > maxOutliers {
		return o, fmt.Errorf("%d normals: use 1 to %d: %w", q.Limit, maxOutliers, ErrBadMessage)
	}
	var dir string
	if o.Release, dir, err = w.released(ctx, q.ReleaseRequest); err != nil {
		return o, err
	}
	all, err := w.cfg.Read.Outliers(ctx, dir)
	if err != nil {
		return o, fmt.Errorf("rank the normals of release %s: %w", text.Short(o.Release), err)
	}
	o.Total, o.Outliers = len(all), append([]Outlier{}, all[:min(len(all), q.Limit)]...)
	return o, nil
}

func (w *TrainingWorker) choices(context.Context, struct{}) (Choices, error) {
	if w.cfg.Read.Choices == nil {
		return Choices{}, errNotRead
	}
	return w.cfg.Read.Choices()
}

// askTrainer asks whichever trainer is there.
func (c *Client) askTrainer(ctx context.Context, endpoint string, q, a any) error {
	data, err := json.Marshal(q)
	if err != nil {
		return err
	}
	return c.send(ctx, &nats.Msg{Subject: c.names.API() + ".trainer." + endpoint, Data: data}, RequestTime, a)
}

// Calibration asks a trainer what the threshold of a release comes from.
func (c *Client) Calibration(ctx context.Context, q ReleaseRequest) (a Calibration, err error) {
	return a, c.askTrainer(ctx, "calibration", q, &a)
}

// Outliers asks a trainer for the strangest normals of a release.
func (c *Client) Outliers(ctx context.Context, q OutliersRequest) (a Outliers, err error) {
	return a, c.askTrainer(ctx, "outliers", q, &a)
}

// Choices asks a trainer what a detector may be configured with.
func (c *Client) Choices(ctx context.Context) (a Choices, err error) {
	return a, c.askTrainer(ctx, "choices", struct{}{}, &a)
}
