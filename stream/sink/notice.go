package sink

import (
	"encoding/json"
	"time"

	"github.com/nearmiss/nearmiss/stream"
)

// Notice is what a sink sends: an event, or a summary of those that were held
// back.
type Notice struct {
	// ID is the event's, the same at every try, by which a receiver recognises
	// what it has already.
	ID string
	// Event is what happened. Of a summary it has the detector, the time, and
	// the reason as a sentence.
	Event stream.Event
	// At is when the broker stored it.
	At time.Time
	// Test marks what an operator asked for in order to see whether it arrives.
	Test bool
	// Summary is how many events it stands for; 0: it is one event.
	Summary int
}

// Cloud is the notice as a structured CloudEvent (JSON format 1.0).
type Cloud struct {
	SpecVersion     string       `json:"specversion"`
	ID              string       `json:"id"`
	Source          string       `json:"source"`
	Type            string       `json:"type"`
	Time            time.Time    `json:"time"`
	Subject         string       `json:"subject,omitempty"`
	DataContentType string       `json:"datacontenttype"`
	Test            bool         `json:"test,omitempty"`    // extension: nothing has happened
	Summary         int          `json:"summary,omitempty"` // extension: how many events this one stands for
	Data            stream.Event `json:"data"`
}

// Cloud makes the structured CloudEvent of n.
func (n Notice) Cloud(names stream.Names) Cloud {
	prefix := names.Prefix
	if prefix == "" {
		prefix = stream.DefaultPrefix
	}
	kind := n.Event.Kind
	c := Cloud{
		SpecVersion: "1.0", ID: n.ID, Source: "/" + prefix + "/" + n.Event.Detector, Type: stream.EventType(kind),
		Time: n.Event.ScoredAt.UTC(), DataContentType: "application/json", Test: n.Test, Summary: n.Summary, Data: n.Event,
	}
	if n.Event.FrameID != "" {
		c.Subject = n.Event.Camera + "/" + n.Event.FrameID
	}
	return c
}

// Ratio is the score as a multiple of the threshold; 0 where there is none.
func (n Notice) Ratio() float64 {
	e := n.Event
	if e.Score == nil || e.Threshold == nil || *e.Threshold <= 0 {
		return 0
	}
	return *e.Score / *e.Threshold
}

// JSON is the structured CloudEvent, encoded.
func (n Notice) JSON(names stream.Names) ([]byte, error) { return json.Marshal(n.Cloud(names)) }
