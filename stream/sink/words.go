package sink

import (
	"fmt"
	"net/url"
	"strings"
	"time"

	"github.com/nearmiss/nearmiss/stream"
	"github.com/nearmiss/nearmiss/stream/incident"
)

// Words say what happened, for people: a title of one line, and what is known
// besides.
func (n Notice) Words() (title, text string) {
	e := n.Event
	where := e.Detector
	if e.Camera != "" && e.Camera != stream.NoCamera {
		where += "/" + e.Camera
	}
	switch e.Kind {
	case IncidentPrefix + incident.End:
		title = "Over: anomalies on " + where
	case IncidentPrefix + incident.Update:
		title = "Still anomalies on " + where
	case stream.KindAnomaly, IncidentPrefix + incident.New:
		title = "Anomaly on " + where
		if r := n.Ratio(); r > 0 {
			text = fmt.Sprintf("Score %.4g, %.1f times the threshold", *e.Score, r)
		}
		if len(e.Regions) > 0 {
			text += fmt.Sprintf(", %d strange regions", len(e.Regions))
		}
	case stream.KindRejected:
		title = "Unreadable image on " + where
	default:
		title = strings.ToUpper(e.Kind[:min(1, len(e.Kind))]) + e.Kind[min(1, len(e.Kind)):] + " on " + where
	}
	if i := n.Incident; i != nil {
		title = strings.Replace(title, "Anomaly", map[bool]string{true: "Unreadable images", false: "Anomaly"}[i.Anomalies == 0], 1)
		text = fmt.Sprintf("%d anomalies and %d unreadable images since %s", i.Anomalies, i.Rejected, i.OpenedAt.Format(time.TimeOnly+" MST"))
		if i.Peak.Ratio > 0 {
			text += fmt.Sprintf("; the worst score was %.1f times the threshold", i.Peak.Ratio)
		}
		if v := i.Verdict; v != nil {
			text += "; " + strings.ReplaceAll(v.State, "_", " ")
			if v.By != "" {
				text += ", says " + v.By
			}
			if v.Reason != "" {
				text += " (" + v.Reason + ")"
			}
		}
		if len(i.Cameras) > 1 {
			text += fmt.Sprintf("; on %d cameras", len(i.Cameras))
		}
		if i.EndedBy == incident.ByRelease {
			text += "; over because another release judges now"
		}
		if i.Flood {
			text += "; so many that the camera or the light may have failed"
		}
	}
	if e.Reason != "" {
		text = strings.TrimPrefix(text+". "+e.Reason, ". ")
	}
	if n.Summary > 0 {
		title, text = fmt.Sprintf("%d more alarms", n.Summary), e.Reason
	}
	if n.Test {
		title = "[test] " + title
	}
	return title, text
}

// Link fills a notice into the address of a page about it: {event}, the event
// whose pictures there are, {incident}, {detector} and {camera}.
func (n Notice) Link(address string) string {
	id := ""
	if n.Incident != nil {
		id = n.Incident.ID
	}
	return strings.NewReplacer(
		"{event}", url.PathEscape(n.Event.ID), "{incident}", url.PathEscape(id),
		"{detector}", url.PathEscape(n.Event.Detector), "{camera}", url.PathEscape(n.Event.Camera),
	).Replace(address)
}
