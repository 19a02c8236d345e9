package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/rs/zerolog"
	"github.com/santhosh-tekuri/jsonschema/v6"

	"github.com/nearmiss/nearmiss/internal/brokertest"
	"github.com/nearmiss/nearmiss/stream"
	"github.com/nearmiss/nearmiss/stream/broker"
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
			"15:04:05.0  bolts/line1  ANOMALY  score 12.5 > threshold 8  p 0.01  frame f7 (a.png)  id e1",
		},
		"anomaly with a place": {
			stream.Event{
				ID: "e1", Kind: stream.KindAnomaly, Detector: "bolts", Camera: "line1", FrameID: "f7", CapturedAt: at,
				Score: &score, Threshold: &threshold, PValue: &p, Anomalous: &yes, NoPictures: stream.NoPicturesBusy,
				Regions: []stream.Spot{{X: 10, Y: 20, Width: 30, Height: 40, Area: 700, Peak: 0.625}, {X: 1, Y: 1, Width: 1, Height: 1, Area: 1, Peak: 0.5}},
			},
			"15:04:05.0  bolts/line1  ANOMALY  score 12.5 > threshold 8  p 0.01  at 10,20 30×40 heat 0.62 and 1 more  frame f7  no pictures: busy  id e1",
		},
		"rejected": {
			stream.Event{
				ID: "e2", Kind: stream.KindRejected, Detector: "bolts", Camera: "line1", FrameID: "f8", CapturedAt: at,
				Code: "truncated", Reason: "the png ends within its header",
			},
			"15:04:05.0  bolts/line1  rejected: truncated: the png ends within its header  frame f8  id e2",
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

// TestADurableWatchLosesNothingWhenItsReaderDies: what its reader has not
// acknowledged, or could not be given, comes again at the next watch.
func TestADurableWatchLosesNothingWhenItsReaderDies(t *testing.T) {
	b, _ := brokertest.Start(t, broker.Config{Port: -1})
	js := brokertest.StreamsOn(t, brokertest.Connect(t, b))
	if err := stream.Ensure(t.Context(), js, stream.Topology{}); err != nil {
		t.Fatal(err)
	}
	score, yes := 1.0, true
	for i := range 5 {
		m, err := stream.Event{
			ID: fmt.Sprint("e", i), Kind: stream.KindAnomaly, Detector: "bolts", Camera: "left", FrameID: fmt.Sprint("f", i),
			Score: &score, Threshold: &score, Anomalous: &yes, ScoredAt: time.Now(), CapturedAt: time.Now(),
		}.Message(stream.Names{})
		if err == nil {
			_, err = js.PublishMsg(t.Context(), m)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	// watch reads events and answers each; at an answer "" the reader dies.
	watch := func(answers ...string) (ids []string) {
		t.Helper()
		lines, out := io.Pipe()
		in, reader := io.Pipe()
		done := make(chan error, 1)
		go func() {
			c := &watchCmd{Durable: "lamp", Ack: true, Since: time.Hour, JSON: true, serverFlags: serverFlags{Server: b.ClientURL()}}
			err := c.Run(t.Context(), &output{Out: out, Err: io.Discard, stdin: in, Log: zerolog.Nop()})
			out.CloseWithError(io.EOF)
			done <- err
		}()
		scan := bufio.NewScanner(lines)
		for _, answer := range answers {
			if !scan.Scan() {
				t.Fatalf("the watch ended: %v", <-done)
			}
			var e struct{ ID string }
			if err := json.Unmarshal(scan.Bytes(), &e); err != nil {
				t.Fatal(err)
			}
			ids = append(ids, e.ID)
			if answer != "" {
				fmt.Fprintln(reader, answer)
			}
		}
		reader.Close()
		go func() { _, _ = io.Copy(io.Discard, lines) }() // an event may be on its way
		if err := <-done; !errors.Is(err, errReaderGone) {
			t.Errorf("the watch ends with %v", err)
		}
		return ids
	}
	if got := watch("ok", "ok", ""); !slices.Equal(got, []string{"e0", "e1", "e2"}) {
		t.Errorf("first watch: %v", got)
	}
	if got := watch("nak", "ok", "ok", ""); !slices.Equal(got, []string{"e2", "e2", "e3", "e4"}) {
		t.Errorf("second watch: %v", got)
	}

	// Without --ack, a line that cannot be written was not seen.
	lines, out := io.Pipe()
	lines.CloseWithError(syscall.EPIPE)
	c := &watchCmd{Durable: "lamp", JSON: true, serverFlags: serverFlags{Server: b.ClientURL()}}
	if err := c.Run(t.Context(), &output{Out: out, Err: io.Discard, Log: zerolog.Nop()}); !errors.Is(err, syscall.EPIPE) {
		t.Errorf("a reader that is gone: %v", err)
	}
	if got := watch("ok"); !slices.Equal(got, []string{"e4"}) {
		t.Errorf("last watch: %v", got)
	}
}

// fitsEventSchema says whether an event's line is one of the published schema.
func fitsEventSchema(t *testing.T) func(line []byte) error {
	t.Helper()
	doc, err := jsonschema.UnmarshalJSON(bytes.NewReader(stream.EventSchema))
	if err != nil {
		t.Fatal(err)
	}
	c := jsonschema.NewCompiler()
	c.AssertFormat()
	if err := c.AddResource("event.json", doc); err != nil {
		t.Fatal(err)
	}
	schema, err := c.Compile("event.json")
	if err != nil {
		t.Fatal(err)
	}
	return func(line []byte) error {
		v, err := jsonschema.UnmarshalJSON(bytes.NewReader(line))
		if err != nil {
			return err
		}
		return schema.Validate(v)
	}
}

// TestWatchLinesFitThePublishedSchema: of an anomaly with everything in it.
func TestWatchLinesFitThePublishedSchema(t *testing.T) {
	score, threshold, p, yes, digest := 12.5, 8.0, 0.01, true, strings.Repeat("ab", 32)
	e := stream.Event{
		ID: "e1", Kind: stream.KindAnomaly, Detector: "bolts", Camera: "line1", FrameID: "f7", CapturedAt: time.Now(), ScoredAt: time.Now(),
		Score: &score, Threshold: &threshold, PValue: &p, Anomalous: &yes, K: 2, Nearest: []stream.Near{{ID: 1, Distance: 5}, {ID: 2, Distance: 7.5}},
		Release: digest, Model: digest, Bank: digest, Width: 640, Height: 480, Bytes: 1000, Truth: `{"anomalous":true}`,
	}
	b, err := json.Marshal(newEventLine(e))
	if err != nil {
		t.Fatal(err)
	}
	if err := fitsEventSchema(t)(b); err != nil {
		t.Errorf("%s: %v", b, err)
	}
}
