package sink

import (
	"encoding/json"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/nearmiss/nearmiss/stream"
	"github.com/nearmiss/nearmiss/stream/incident"
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
	// Incident is what happened where it was a phase of an incident, which Event
	// then describes as the worst of its events.
	Incident *incident.Incident
	// At is when the broker stored it.
	At time.Time
	// Test marks what an operator asked for in order to see whether it arrives.
	Test bool
	// Summary is how many events it stands for; 0: it is one event.
	Summary int
}

// Cloud is the notice as a structured CloudEvent (JSON format 1.0).
type Cloud struct {
	SpecVersion     string    `json:"specversion"`
	ID              string    `json:"id"`
	Source          string    `json:"source"`
	Type            string    `json:"type"`
	Time            time.Time `json:"time"`
	Subject         string    `json:"subject,omitempty"`
	DataContentType string    `json:"datacontenttype"`
	Test            bool      `json:"test,omitempty"`       // extension: nothing has happened
	Summary         int       `json:"summary,omitempty"`    // extension: how many events this one stands for
	Picture         []byte    `json:"picture,omitempty"`    // extension: the marked frame, JPEG, where the sink sends it so
	PictureURL      string    `json:"pictureurl,omitempty"` // extension: its address, for [LinkAge], where the sink sends that
	Data            any       `json:"data"`                 // [stream.Event] or [incident.Incident]
}

// Cloud makes the structured CloudEvent of n.
func (n Notice) Cloud(names stream.Names) Cloud {
	kind := n.Event.Kind
	c := Cloud{
		SpecVersion: "1.0", ID: n.ID, Source: "/" + names.Root() + "/" + n.Event.Detector, Type: stream.EventType(kind),
		Time: n.Event.ScoredAt.UTC(), DataContentType: "application/json", Test: n.Test, Summary: n.Summary, Data: n.Event,
	}
	if n.Event.FrameID != "" {
		c.Subject = n.Event.Camera + "/" + n.Event.FrameID
	}
	if i := n.Incident; i != nil {
		c.Type, c.Subject, c.Data = incident.Type, i.Camera+"/"+i.ID, *i
	}
	return c
}

// parse makes a notice of a message of the events or the incidents.
func parse(n stream.Names, subject string, h nats.Header, data []byte, at time.Time) (Notice, error) {
	if phase, ok := n.ParseIncidents(subject); ok {
		i, err := incident.Parse(data)
		if err != nil {
			return Notice{}, err
		}
		p := i.Peak
		yes := true
		return Notice{
			ID: h.Get(nats.MsgIdHdr), At: at, Incident: &i,
			Event: stream.Event{
				ID: p.ID, Kind: IncidentPrefix + phase, Detector: i.Detector, Camera: i.Camera, FrameID: p.FrameID,
				CapturedAt: p.At, ScoredAt: latest(i), Score: p.Score, Threshold: p.Threshold, PValue: p.PValue,
				Anomalous: &yes, Regions: p.Regions, Pictures: p.Pictures, Code: p.Code, Reason: p.Reason,
			},
		}, nil
	}
	e, err := stream.ParseEvent(n, subject, h, data)
	return Notice{ID: e.ID, Event: e, At: at}, err
}

// cameras are those that it is about.
func (n Notice) cameras() []string {
	if n.Incident != nil {
		return n.Incident.Places()
	}
	return []string{n.Event.Camera}
}

func latest(i incident.Incident) time.Time {
	if !i.EndedAt.IsZero() {
		return i.EndedAt
	}
	return i.LastAt
}

// Ratio is the score as a multiple of the threshold; 0 where there is none.
func (n Notice) Ratio() float64 {
	r, _ := n.Event.Ratio()
	return r
}

// JSON is the structured CloudEvent, encoded.
func (n Notice) JSON(names stream.Names) ([]byte, error) { return json.Marshal(n.Cloud(names)) }
