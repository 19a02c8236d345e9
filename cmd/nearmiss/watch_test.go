package main

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/nearmiss/nearmiss/stream"
)

func TestEventsForPeopleAndForMachines(t *testing.T) {
	at := time.Date(2026, 11, 23, 15, 4, 5, 0, time.Local)
	score, threshold, p, yes := 12.5, 8.0, 0.01, true
	for name, c := range map[string]struct {
		event stream.Event
		want  string
	}{
		"anomaly": {
			stream.Event{
				ID: "e1", Kind: stream.KindAnomaly, Detector: "bolts", Camera: "line1", FrameID: "f7", CapturedAt: at, Source: "a.png",
				Score: &score, Threshold: &threshold, PValue: &p, Anomalous: &yes, Truth: `{"anomalous":true}`,
			},
			"15:04:05.0  bolts/line1  ANOMALY  score 12.5 > threshold 8  p 0.01  frame f7 (a.png)",
		},
		"anomaly with a place": {
			stream.Event{
				ID: "e1", Kind: stream.KindAnomaly, Detector: "bolts", Camera: "line1", FrameID: "f7", CapturedAt: at,
				Score: &score, Threshold: &threshold, PValue: &p, Anomalous: &yes, NoPictures: stream.NoPicturesBusy,
				Regions: []stream.Spot{{X: 10, Y: 20, Width: 30, Height: 40, Area: 700, Peak: 0.625}, {X: 1, Y: 1, Width: 1, Height: 1, Area: 1, Peak: 0.5}},
			},
			"15:04:05.0  bolts/line1  ANOMALY  score 12.5 > threshold 8  p 0.01  at 10,20 30×40 heat 0.62 and 1 more  frame f7  no pictures: busy",
		},
		"rejected": {
			stream.Event{
				ID: "e2", Kind: stream.KindRejected, Detector: "bolts", Camera: "line1", FrameID: "f8", CapturedAt: at,
				Code: "truncated", Reason: "the png ends within its header",
			},
			"15:04:05.0  bolts/line1  rejected: truncated: the png ends within its header  frame f8",
		},
		"release": {
			stream.Event{
				ID: "e3", Kind: stream.KindRelease, Detector: "bolts", Camera: "-", ScoredAt: at,
				Release: strings.Repeat("a", 64), Reason: "it is in service",
			},
			"15:04:05.0  bolts  release aaaaaaaaaaaa: it is in service",
		},
	} {
		t.Run(name, func(t *testing.T) {
			if got := eventText(c.event); got != c.want {
				t.Errorf("text:\n%s\nwant\n%s", got, c.want)
			}
			b, err := json.Marshal(newEventLine(c.event))
			if err != nil {
				t.Fatal(err)
			}
			var line map[string]any
			if err := json.Unmarshal(b, &line); err != nil {
				t.Fatal(err)
			}
			if line["id"] != c.event.ID || line["kind"] != c.event.Kind || line["detector"] != "bolts" || (line["truth"] != nil) != (c.event.Truth != "") {
				t.Errorf("JSON: %s", b)
			}
		})
	}
}
