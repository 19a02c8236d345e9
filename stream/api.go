package stream

import (
	"encoding/json"
	"fmt"
	"time"

	"github.com/nearmiss/nearmiss/stream/internal/kv"
	"github.com/nearmiss/nearmiss/stream/internal/text"
	"github.com/nearmiss/nearmiss/stream/registry"
)

// Requests and answers of the control, besides [Detector], [TrainRequest] and
// [Feedback].
type ( // DetectorRequest names a detector; empty means all where that makes sense.
	DetectorRequest struct {
		Detector string `json:"detector,omitempty"`
	}
	// DetectorAnswer is a detector's configuration.
	DetectorAnswer struct {
		Detector
		Revision uint64 `json:"revision"` // a new one with every change
		// Job makes a changed k or false-alarm rate act: a release of the same model.
		Job string `json:"job,omitempty"`
		// Learnt are the settings that were changed and act with the next training.
		Learnt []string `json:"learnt,omitempty"`
	}
	// DetectorsAnswer is the configurations, by name, as far as they can be read.
	DetectorsAnswer struct {
		Detectors  []DetectorAnswer `json:"detectors"`
		Unreadable []Unreadable     `json:"unreadable,omitempty"`
	}
	// SetRequest changes single fields of a configuration.
	SetRequest struct {
		Detector string                     `json:"detector"`
		Set      map[string]json.RawMessage `json:"set"`                // fields and their values; null: the default
		Revision uint64                     `json:"revision,omitempty"` // only if this is the newest
	}
	// DeleteRequest removes a detector; everything: its training set, too.
	DeleteRequest struct {
		Detector   string `json:"detector"`
		Everything bool   `json:"everything,omitempty"`
	}
	// RemoveRequest takes images out of a training set, by their sequences.
	RemoveRequest struct {
		Detector string   `json:"detector"`
		Normals  []uint64 `json:"normals"`
	}
	// SinkRequest is what a sink shall be: the value of its entry, as package sink has
	// it; none where it is removed.
	SinkRequest struct {
		Sink     string          `json:"sink"`
		Value    json.RawMessage `json:"value,omitempty"`
		Revision uint64          `json:"revision,omitempty"` // only if this is the newest
		Create   bool            `json:"create,omitempty"`   // only if there is none
	}
	// SinkAnswer is a sink as it is stored.
	SinkAnswer struct {
		Sink     json.RawMessage `json:"sink"`
		Revision uint64          `json:"revision"`
	}
	// JobRequest names a job.
	JobRequest struct {
		Job string `json:"job"`
	}
	// PromoteRequest names a release, in full or by its first characters.
	PromoteRequest struct {
		Detector string `json:"detector"`
		Release  string `json:"release,omitempty"` // not for rollback; empty ends shadow mode
		Expect   string `json:"expect,omitempty"`  // release that must be active, in full
		By       string `json:"by,omitempty"`      // default: who asks
		Reason   string `json:"reason,omitempty"`
	}
	// PinRequest keeps a release from being collected, or lets it go.
	PinRequest struct {
		Detector string `json:"detector"`
		Release  string `json:"release"`
		Unpin    bool   `json:"unpin,omitempty"`
		By       string `json:"by,omitempty"` // default: who asks
	}
	// ReleasesAnswer is a detector's releases, oldest first, and its pointers,
	// newest first.
	ReleasesAnswer struct {
		Releases []registry.Release `json:"releases"`
		History  []registry.Pointer `json:"history"`
	}
)

// Apply changes d by the fields of the request. What comes of it need not be valid.
func (q SetRequest) Apply(d *Detector) error {
	bad := func(err error) error {
		return Permanent(CodeBadRequest, fmt.Errorf("change detector %s: %w", d.Name, text.OneLine(err)))
	}
	fields, err := fieldsOf(*d)
	if err != nil {
		return err
	}
	for name, value := range q.Set {
		switch {
		case name == "name" || name == "created_at":
			return bad(fmt.Errorf("its %s cannot be changed", name))
		case string(value) == "null":
			delete(fields, name)
		default:
			fields[name] = value
		}
	}
	b, err := json.Marshal(fields)
	if err != nil {
		return bad(err)
	}
	next := Detector{Revision: d.Revision}
	if err := kv.Object(b, &next, true); err != nil {
		return bad(err)
	}
	*d = next
	return nil
}

// fieldsOf are a configuration's fields that are not the default, as JSON.
func fieldsOf(d Detector) (map[string]json.RawMessage, error) {
	b, err := json.Marshal(d)
	if err != nil {
		return nil, err
	}
	fields := map[string]json.RawMessage{}
	return fields, json.Unmarshal(b, &fields)
}

// CameraRate is what one worker has seen of a camera in the last minute.
type CameraRate struct {
	Detector  string    `json:"detector"`
	Camera    string    `json:"camera"`
	LastFrame time.Time `json:"last_frame"` // when the broker stored it
	PerSecond float64   `json:"per_second"` // frames that this worker took
}

// WorkerStats counts what a worker has done since it was made.
type WorkerStats struct {
	Scored    uint64 `json:"scored"`    // frames with a score
	Anomalies uint64 `json:"anomalies"` // of those, anomalous
	Rejected  uint64 `json:"rejected"`  // frames that could not be read
	Retried   uint64 `json:"retried"`   // frames given back to be tried again
	Dropped   uint64 `json:"dropped"`   // frames of live detectors that were too old
	Learned   uint64 `json:"learned"`   // frames that became normals
	Repeated  uint64 `json:"repeated"`  // frames that had come to their end before
	Swaps     uint64 `json:"swaps"`     // releases taken into service
	Refused   uint64 `json:"refused"`   // releases that were not fit to serve
	// Pictured are anomalies of which pictures are kept; Unpictured those that
	// went without although the release could draw them.
	Pictured   uint64 `json:"pictured"`
	Unpictured uint64 `json:"unpictured"`
}

// ShadowReport says how a candidate compares with the release in service, as
// seen by one worker since it loaded the candidate.
type ShadowReport struct {
	Detector   string `json:"detector"`
	Active     string `json:"active"`      // release in service
	Candidate  string `json:"candidate"`   // release that scores alongside
	Frames     uint64 `json:"frames"`      // judged by both
	Both       uint64 `json:"both"`        // anomalous for both
	OnlyActive uint64 `json:"only_active"` // anomalous only for the release in service
	OnlyShadow uint64 `json:"only_shadow"` // anomalous only for the candidate
	Failed     uint64 `json:"failed"`      // that the candidate could not judge
}

// WorkerStatus is what a worker says of itself.
type WorkerStatus struct {
	WorkerStats
	Name    string            `json:"name"`
	Serving map[string]string `json:"serving"`           // detector → release in service
	Refused map[string]string `json:"refused,omitempty"` // detector → release that is wanted and was refused
	Shadows []ShadowReport    `json:"shadows,omitempty"`
	Drift   []CameraDrift     `json:"drift,omitempty"`
	Cameras []CameraRate      `json:"cameras,omitempty"` // that sent this worker frames in the last minute
}

// CameraDrift is the state of the drift test of one camera at one worker.
type CameraDrift struct {
	Detector string `json:"detector"`
	Camera   string `json:"camera"`
	DriftStatus
}

// ShedRequest asks that a camera's oldest waiting frames be dropped. Whose they
// are is said by the subject ([Names.Shed]), so that a camera can ask for its own
// only.
type ShedRequest struct {
	Keep int `json:"keep"` // frames that are left, the newest
}

// ShedAnswer says how many frames were dropped.
type ShedAnswer struct {
	Dropped uint64 `json:"dropped"`
}
