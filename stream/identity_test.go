package stream_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/nearmiss/nearmiss/stream"
)

// send publishes a message as any client may and fails the test when the broker
// does not take it, or takes it for a duplicate.
func (r *rig) send(subject string, header map[string]string, data []byte) {
	r.t.Helper()
	m := nats.NewMsg(subject)
	m.Data = data
	for k, v := range header {
		m.Header.Set(k, v)
	}
	ack, err := r.js.PublishMsg(r.t.Context(), m)
	if err != nil {
		r.t.Fatal(err)
	}
	if ack.Duplicate {
		r.t.Errorf("%s is taken for a duplicate", subject)
	}
}

func TestNobodyHidesTheFramesOfAnotherCamera(t *testing.T) {
	for name, header := range map[string]func(i int) map[string]string{
		"message ids":         func(i int) map[string]string { return map[string]string{nats.MsgIdHdr: fmt.Sprint(i)} },
		"message ids as ours": func(i int) map[string]string { return map[string]string{nats.MsgIdHdr: fmt.Sprint("bolts/left/", i)} },
		"frame ids":           func(i int) map[string]string { return map[string]string{stream.HeaderFrameID: fmt.Sprint(i)} },
		"message and frame ids": func(i int) map[string]string {
			return map[string]string{stream.HeaderFrameID: "f", nats.MsgIdHdr: fmt.Sprint(i)}
		},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, stream.Topology{})
			r.release("bolts", fake{Name: "one"})
			const frames = 10
			for i := range frames { // the same pictures, too
				for _, camera := range []string{"thief", "left"} {
					r.send(r.names.Frames("bolts", camera), header(i), image(0.91+float64(i)/1000))
				}
			}
			w, _ := r.worker(stream.WorkerConfig{}, loadFake)
			eventually(t, "all are scored", func() bool { return w.Stats().Scored == 2*frames })
			eventually(t, "the queue is empty", func() bool { return r.waiting() == 0 })
			count := map[string]int{}
			for _, e := range r.events() {
				count[e.Camera]++
			}
			if count["left"] != frames || count["thief"] != frames {
				t.Errorf("events %v", count)
			}
		})
	}
}

func TestAnotherPictureIsAnotherFrameWhateverItsId(t *testing.T) {
	r := newRig(t, stream.Topology{})
	r.release("bolts", fake{Name: "one"})
	w, _ := r.worker(stream.WorkerConfig{}, loadFake)
	header := map[string]string{stream.HeaderFrameID: "cam-0001"}
	r.send(r.names.Frames("bolts", "left"), header, image(0.95))
	eventually(t, "it is scored", func() bool { return w.Stats().Scored == 1 })
	r.send(r.names.Frames("bolts", "left"), header, image(0.96))
	eventually(t, "the other picture is scored", func() bool { return w.Stats().Scored == 2 })
	// Sent again it is the frame that it was.
	r.send(r.names.Frames("bolts", "left"), header, image(0.95))
	eventually(t, "the queue is empty", func() bool { return r.waiting() == 0 })
	if st := w.Stats(); st.Scored != 2 || st.Repeated != 1 {
		t.Errorf("%+v", st)
	}
	if e := r.events(); len(e) != 2 || e[0].ID == e[1].ID || e[0].Digest == e[1].Digest || len(e[0].Digest) != 64 {
		t.Errorf("%+v", e)
	}
}

func TestAnObjectOfAnotherCameraIsNotTheThiefs(t *testing.T) {
	r := newRig(t, stream.Topology{})
	r.release("bolts", fake{Name: "one"})
	store, err := r.js.ObjectStore(t.Context(), r.names.LargeBucket())
	if err != nil {
		t.Fatal(err)
	}
	const object = "frames/bolts/left/1"
	if _, err := store.PutBytes(t.Context(), object, image(0.95)); err != nil {
		t.Fatal(err)
	}
	w, _ := r.worker(stream.WorkerConfig{}, loadFake)
	r.send(r.names.Frames("bolts", "thief"), map[string]string{stream.HeaderObject: object}, nil)
	eventually(t, "it is rejected", func() bool { return w.Stats().Rejected == 1 })
	if e := r.events(); len(e) != 1 || e[0].Camera != "thief" || e[0].Code != stream.CodeBadHeader || !strings.Contains(e[0].Reason, "bolts/left") {
		t.Errorf("%+v", e)
	}
	r.send(r.names.Frames("bolts", "left"), map[string]string{stream.HeaderObject: object, stream.HeaderFrameID: "1"}, nil)
	eventually(t, "the owner's frame is scored", func() bool { return w.Stats().Scored == 1 })
}

func TestForgedScoresSmoothNothing(t *testing.T) {
	r := newRig(t, stream.Topology{})
	r.detector(stream.Detector{Name: "bolts", Smoothing: 4})
	r.release("bolts", fake{Name: "one", Threshold: 0.5})
	w, _ := r.worker(stream.WorkerConfig{}, loadFake)
	r.publish(stream.Frame{Detector: "bolts", Camera: "left", ID: "first", Image: image(0.9)})
	eventually(t, "it is scored", func() bool { return w.Stats().Scored == 1 })
	zero := 0.0
	for i := range 10 {
		for j := range 10 {
			b, err := json.Marshal(stream.Event{FrameID: fmt.Sprint("forged", i, j), Detector: "bolts", Camera: "left", ScoredAt: time.Now(), Score: &zero})
			if err != nil {
				t.Fatal(err)
			}
			if err := r.nc.Publish(r.names.Scores("bolts", "left"), b); err != nil {
				t.Fatal(err)
			}
		}
		r.publish(stream.Frame{Detector: "bolts", Camera: "left", ID: fmt.Sprint("f", i), Image: image(0.9)})
		eventually(t, "it is scored", func() bool { return w.Stats().Scored == uint64(i+2) })
	}
	if n := len(r.events()); n != 11 {
		t.Errorf("%d alarms of 11", n)
	}
}

func TestFramesOfCamerasWithoutAGoodNameAreRejectedAtOnce(t *testing.T) {
	r := newRig(t, stream.Topology{})
	r.release("bolts", fake{Name: "one"})
	w, _ := r.worker(stream.WorkerConfig{}, loadFake)
	bad := []string{"10//0//0//7", "aa:bb:cc", "línea1", "линия", "a/b", "a+b", "$x", "\"q\"", "a\x01b", strings.Repeat("x", 65), strings.Repeat("é", 200)}
	begin := time.Now()
	for i, camera := range bad {
		for range 6 {
			r.send("nearmiss.frames.bolts."+camera, nil, image(0.1))
		}
		r.publish(stream.Frame{Detector: "bolts", Camera: "line1", ID: fmt.Sprint(i), Image: image(0.1)})
	}
	eventually(t, "the good ones are scored", func() bool { return w.Stats().Scored == uint64(len(bad)) })
	eventually(t, "the bad ones are rejected", func() bool { return w.Stats().Rejected == uint64(6*len(bad)) })
	eventually(t, "the queue is empty", func() bool { return r.waiting() == 0 })
	if d := time.Since(begin); d > 20*time.Second || w.Stats().Retried != 0 {
		t.Errorf("took %v, %+v", d, w.Stats())
	}
	events := r.events()
	if len(events) != 6*len(bad) {
		t.Errorf("%d rejected events of %d", len(events), 6*len(bad))
	}
	for _, e := range events {
		if e.Kind != stream.KindRejected || e.Code != stream.CodeBadHeader || !stream.ValidToken(e.Camera) || e.Camera == "line1" {
			t.Errorf("%+v", e)
		}
	}
	if dead, err := r.in.DeadLetters(t.Context(), 0); err != nil || len(dead) != len(events) || dead[0].Deliveries != 1 {
		t.Errorf("%d dead letters, %v", len(dead), err)
	}
}

func TestHeadersThatFillAMessageAreRejectedAtOnce(t *testing.T) {
	r := newRig(t, stream.Topology{})
	r.release("bolts", fake{Name: "one"})
	w, _ := r.worker(stream.WorkerConfig{}, loadFake)
	big := strings.Repeat("x", 60<<10)
	for i, h := range []map[string]string{
		{stream.HeaderTruth: big},
		{stream.HeaderSource: big},
		{stream.HeaderTrace: big},
		{stream.HeaderFrameID: big},
		{stream.HeaderCapturedAt: big},
		{stream.HeaderObject: big},
	} {
		r.send(r.names.Frames("bolts", "left"), h, nil)
		eventually(t, "it is rejected", func() bool { return w.Stats().Rejected == uint64(i+1) })
	}
	// Nobody's headers harm nobody, but a dead letter cannot carry them.
	r.send(r.names.Frames("bolts", "left"), map[string]string{"X-Anything": big}, []byte("no image"))
	eventually(t, "it is rejected", func() bool { return w.Stats().Rejected == 7 })
	eventually(t, "the queue is empty", func() bool { return r.waiting() == 0 })
	dead, err := r.in.DeadLetters(t.Context(), 0)
	if err != nil || len(dead) != 7 || w.Stats().Retried != 0 || len(r.events()) != 7 {
		t.Fatalf("%d dead letters, %d events, %+v, %v", len(dead), len(r.events()), w.Stats(), err)
	}
	if !bytes.Equal(dead[6].Data, []byte("no image")) {
		t.Errorf("%q", dead[6].Data)
	}
}
