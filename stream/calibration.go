package stream

import (
	"context"
	"encoding/json"

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
