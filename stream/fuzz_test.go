package stream_test

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/nearmiss/nearmiss/stream"
)

// FuzzParseFrame: whatever a client publishes, a frame comes out that can be
// reported, or published again as it is.
func FuzzParseFrame(f *testing.F) {
	f.Add("nearmiss.frames.bolts.left", "f1", "2026-01-02T03:04:05Z", "", "", "{}", []byte("x"))
	f.Add("nearmiss.frames.bolts.left", "", "", "frames/x", "m", "", []byte{})
	f.Add("nearmiss.frames..", "a b", "now", "evidence/x", "\x00", "\n", []byte("x"))
	f.Fuzz(func(t *testing.T, subject, id, at, object, msgID, truth string, payload []byte) {
		h := nats.Header{}
		for k, v := range map[string]string{
			stream.HeaderFrameID: id, stream.HeaderCapturedAt: at, stream.HeaderObject: object, nats.MsgIdHdr: msgID, stream.HeaderTruth: truth,
		} {
			if v != "" {
				h.Set(k, v)
			}
		}
		meta := &jetstream.MsgMetadata{Timestamp: time.Unix(1, 0), Sequence: jetstream.SequencePair{Stream: 7}}
		var n stream.Names
		fr, err := stream.ParseFrame(n, subject, h, payload, meta, time.Unix(0, 1))
		again, _ := stream.ParseFrame(n, subject, h, payload, meta, time.Unix(0, 1))
		if fr.ID == "" || fr.ID != again.ID || fr.CapturedAt.IsZero() {
			t.Fatalf("frame %+v has no stable id or time", fr)
		}
		if err != nil {
			if !errors.Is(err, stream.ErrBadMessage) {
				t.Fatalf("error of another kind: %v", err)
			}
			return
		}
		m, err := fr.Message(n)
		if err != nil {
			t.Fatalf("frame %+v cannot be published again: %v", fr, err)
		}
		if m.Subject != subject {
			t.Fatalf("subject %q became %q", subject, m.Subject)
		}
		for _, v := range m.Header {
			if strings.ContainsAny(v[0], "\r\n") {
				t.Fatalf("header %q has more than one line", v[0])
			}
		}
		two, err := stream.ParseFrame(n, m.Subject, m.Header, m.Data, meta, time.Unix(0, 1))
		if err != nil || two.ID != fr.ID || !two.CapturedAt.Equal(fr.CapturedAt) {
			t.Fatalf("%+v became %+v: %v", fr, two, err)
		}
	})
}

// FuzzParseEvent: whatever is on an event subject, it is an event or an error.
func FuzzParseEvent(f *testing.F) {
	f.Add("nearmiss.events.bolts.left.anomaly", "1.0", []byte(`{"frame_id":"f","score":1,"nearest":[{"id":1,"distance":2}]}`))
	f.Add("nearmiss.events.bolts.left", "1.0", []byte(`{}`))
	f.Add("nearmiss.events.bolts.left.rejected", "0.3", []byte(`[`))
	f.Fuzz(func(t *testing.T, subject, spec string, data []byte) {
		var n stream.Names
		e, err := stream.ParseEvent(n, subject, nats.Header{"ce-specversion": {spec}}, data)
		if err != nil {
			if !errors.Is(err, stream.ErrBadMessage) {
				t.Fatalf("error of another kind: %v", err)
			}
			return
		}
		if n.Events(e.Detector, e.Camera, e.Kind) != subject {
			t.Fatalf("event of %s/%s/%s from %q", e.Detector, e.Camera, e.Kind, subject)
		}
	})
}

// FuzzDetector: a configuration that is valid survives being stored.
func FuzzDetector(f *testing.F) {
	f.Add([]byte(`{"name":"bolts","k":3,"cool_down":"5s","region":{"x":0,"y":0,"width":1,"height":0.5}}`))
	f.Add([]byte(`{"name":"a b"}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		var d stream.Detector
		if json.Unmarshal(data, &d) != nil || d.Validate() != nil {
			return
		}
		b, err := json.Marshal(d)
		if err != nil {
			t.Fatal(err)
		}
		var two stream.Detector
		if err := json.Unmarshal(b, &two); err != nil || two.Validate() != nil {
			t.Fatalf("%s: %v, %v", b, err, two.Validate())
		}
	})
}

// FuzzCameraNames: whatever topic an MQTT client publishes on, nats-server maps it
// to a subject (dots become "//"); a frame on it is one, or is rejected under a
// name with which its event and its dead letter can be stored.
func FuzzCameraNames(f *testing.F) {
	for _, topic := range []string{"nearmiss/frames/bolts/10.0.0.7", "nearmiss/frames/bolts/aa:bb:cc", "nearmiss/frames/bolts/línea1", "nearmiss/frames/bolts/линия", "nearmiss/frames/bolts/line1/", "nearmiss/frames//", "/nearmiss/frames/a/b"} {
		f.Add(topic)
	}
	f.Fuzz(func(t *testing.T, topic string) {
		subject := strings.ReplaceAll(strings.ReplaceAll(topic, ".", "\x00"), "/", ".")
		subject = strings.ReplaceAll(subject, "\x00", "//")
		var n stream.Names
		meta := &jetstream.MsgMetadata{Timestamp: time.Unix(1, 0), Sequence: jetstream.SequencePair{Stream: 7}}
		fr, err := stream.ParseFrame(n, subject, nil, []byte("x"), meta, time.Unix(0, 1))
		if err != nil && !errors.Is(err, stream.ErrBadMessage) {
			t.Fatal(err)
		}
		if !strings.HasPrefix(subject, "nearmiss.frames.") {
			if err == nil {
				t.Fatalf("%q is taken for a frame", subject)
			}
			return
		}
		m, err := stream.Event{ID: "x", Kind: stream.KindRejected, FrameID: fr.ID, Detector: fr.Detector, Camera: fr.Camera, Digest: fr.Digest}.Message(n)
		if err != nil {
			t.Fatal(err)
		}
		if e, err := stream.ParseEvent(n, m.Subject, m.Header, m.Data); err != nil || e.Camera != fr.Camera {
			t.Fatalf("%q: event %q: %v", subject, m.Subject, err)
		}
	})
}

// FuzzHeaders: whatever headers a message has, what is made of them are headers
// that can be sent, and short.
func FuzzHeaders(f *testing.F) {
	f.Add("Nearmiss-Source", "a\r\nb", "Nearmiss-Truth", "{}")
	f.Add("", "\x1b[2J", "Nats-Rollup", "all")
	f.Add("a:b", "\x00", "traceparent", "00-1")
	f.Fuzz(func(t *testing.T, k1, v1, k2, v2 string) {
		h := nats.Header{k1: {v1}, k2: {v2, v1}}
		var n stream.Names
		meta := &jetstream.MsgMetadata{Timestamp: time.Unix(1, 0), Sequence: jetstream.SequencePair{Stream: 7}}
		fr, _ := stream.ParseFrame(n, "nearmiss.frames.bolts.left", h, []byte("x"), meta, time.Unix(0, 1))
		e := stream.Event{ID: "x", Kind: stream.KindRejected, FrameID: fr.ID, Detector: fr.Detector, Camera: fr.Camera, Source: fr.Source, Truth: fr.Truth, Trace: fr.Trace}
		m, err := e.Message(n)
		if err != nil {
			t.Fatal(err)
		}
		sent := 0
		for k, v := range m.Header {
			sent += len(k) + len(v[0])
			if strings.ContainsAny(v[0], "\r\n\x00") {
				t.Fatalf("header %q: %q", k, v[0])
			}
		}
		if sent > 32<<10 || len(m.Data) > 64<<10 {
			t.Fatalf("%d bytes of headers, %d of data", sent, len(m.Data))
		}
	})
}
