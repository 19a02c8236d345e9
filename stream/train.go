package stream

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// TrainRequest asks for a new release of a detector.
type TrainRequest struct {
	Job      string `json:"job"`               // names the job; asking for the same job again within an hour asks for nothing
	Detector string `json:"detector"`          // whose configuration and normals are used
	Method   string `json:"method,omitempty"`  // instead of the detector's
	Profile  string `json:"profile,omitempty"` // instead of the detector's
	Seed     int64  `json:"seed,omitempty"`
	Promote  bool   `json:"promote"` // make the release active when it passes its gate
	By       string `json:"by,omitempty"`
	Reason   string `json:"reason,omitempty"`
	// AddNormal asks for the active release with these normals (sequences in
	// the normals stream) added to its bank, instead of training.
	AddNormal []uint64  `json:"add_normal,omitempty"`
	At        time.Time `json:"at"`
}

// Validate says whether the request can be published.
func (r TrainRequest) Validate() error {
	if err := CheckToken("detector", r.Detector); err != nil {
		return err
	}
	if !validJob(r.Job) {
		return fmt.Errorf("job name %q: use 1 to %d letters, digits, - and _: %w", clip(r.Job), maxJob, ErrBadName)
	}
	return nil
}

// maxJob leaves room for a detector's name and a time.
const maxJob = 2 * maxToken

func validJob(s string) bool {
	return len(s) <= maxJob && (ValidToken(s) || len(s) > maxToken && ValidToken(s[:maxToken]) && ValidToken(s[maxToken:]))
}

// RequestTraining puts a request into the trainers' queue.
func RequestTraining(ctx context.Context, js jetstream.JetStream, n Names, r TrainRequest) error {
	if err := r.Validate(); err != nil {
		return err
	}
	if r.At.IsZero() {
		r.At = time.Now().UTC()
	}
	data, err := json.Marshal(r)
	if err != nil {
		return err
	}
	m := nats.NewMsg(n.Train(r.Detector))
	m.Header.Set(nats.MsgIdHdr, r.Job)
	m.Data = data
	if _, err := js.PublishMsg(ctx, m); err != nil {
		return fmt.Errorf("ask for training of %s: %w", r.Detector, err)
	}
	return nil
}
