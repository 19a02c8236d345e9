package worker_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/nearmiss/nearmiss/internal/eventually"
	"github.com/nearmiss/nearmiss/stream"
	"github.com/nearmiss/nearmiss/stream/internal/streamtest"
	"github.com/nearmiss/nearmiss/stream/worker"
)

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
			r := streamtest.New(t, stream.Topology{})
			r.Release("bolts", streamtest.Fake{Name: "one"})
			const frames = 10
			for i := range frames { // the same pictures, too
				for _, camera := range []string{"thief", "left"} {
					r.Send(r.Names.Frames("bolts", camera), header(i), streamtest.Image(0.91+float64(i)/1000))
				}
			}
			w, _ := r.Worker(worker.Config{}, streamtest.LoadFake)
			eventually.True(t, "all are scored", func() bool { return w.Stats().Scored == 2*frames })
			eventually.True(t, "the queue is empty", func() bool { return r.Waiting() == 0 })
			count := map[string]int{}
			for _, e := range r.Events() {
				count[e.Camera]++
			}
			if count["left"] != frames || count["thief"] != frames {
				t.Errorf("events %v", count)
			}
		})
	}
}

func TestAnotherPictureIsAnotherFrameWhateverItsId(t *testing.T) {
	r := streamtest.New(t, stream.Topology{})
	r.Release("bolts", streamtest.Fake{Name: "one"})
	w, _ := r.Worker(worker.Config{}, streamtest.LoadFake)
	header := map[string]string{stream.HeaderFrameID: "cam-0001"}
	r.Send(r.Names.Frames("bolts", "left"), header, streamtest.Image(0.95))
	// One that is acknowledged is known if it comes again.
	eventually.True(t, "it is scored", func() bool { return w.Stats().Scored == 1 && r.Waiting() == 0 })
	r.Send(r.Names.Frames("bolts", "left"), header, streamtest.Image(0.96))
	eventually.True(t, "the other picture is scored", func() bool { return w.Stats().Scored == 2 })
	// Sent again it is the frame that it was.
	r.Send(r.Names.Frames("bolts", "left"), header, streamtest.Image(0.95))
	eventually.True(t, "the queue is empty", func() bool { return r.Waiting() == 0 })
	if st := w.Stats(); st.Scored != 2 || st.Repeated != 1 {
		t.Errorf("%+v", st)
	}
	if e := r.Events(); len(e) != 2 || e[0].ID == e[1].ID || e[0].Digest == e[1].Digest || len(e[0].Digest) != 64 {
		t.Errorf("%+v", e)
	}
}

func TestAnObjectOfAnotherCameraIsNotTheThiefs(t *testing.T) {
	r := streamtest.New(t, stream.Topology{})
	r.Release("bolts", streamtest.Fake{Name: "one"})
	store, err := r.JS.ObjectStore(t.Context(), r.Names.LargeBucket())
	if err != nil {
		t.Fatal(err)
	}
	const object = "frames/bolts/left/1"
	if _, err := store.PutBytes(t.Context(), object, streamtest.Image(0.95)); err != nil {
		t.Fatal(err)
	}
	w, _ := r.Worker(worker.Config{}, streamtest.LoadFake)
	r.Send(r.Names.Frames("bolts", "thief"), map[string]string{stream.HeaderObject: object}, nil)
	eventually.True(t, "it is rejected", func() bool { return w.Stats().Rejected == 1 })
	if e := r.Events(); len(e) != 1 || e[0].Camera != "thief" || e[0].Code != stream.CodeBadHeader || !strings.Contains(e[0].Reason, "bolts/left") {
		t.Errorf("%+v", e)
	}
	r.Send(r.Names.Frames("bolts", "left"), map[string]string{stream.HeaderObject: object, stream.HeaderFrameID: "1"}, nil)
	eventually.True(t, "the owner's frame is scored", func() bool { return w.Stats().Scored == 1 })
}

func TestForgedScoresSmoothNothing(t *testing.T) {
	r := streamtest.New(t, stream.Topology{})
	r.Detector(stream.Detector{Name: "bolts", Smoothing: 4})
	r.Release("bolts", streamtest.Fake{Name: "one", Threshold: 0.5})
	w, _ := r.Worker(worker.Config{}, streamtest.LoadFake)
	r.Publish(stream.Frame{Detector: "bolts", Camera: "left", ID: "first", Image: streamtest.Image(0.9)})
	eventually.True(t, "it is scored", func() bool { return w.Stats().Scored == 1 })
	zero := 0.0
	for i := range 10 {
		for j := range 10 {
			b, err := json.Marshal(stream.Event{FrameID: fmt.Sprint("forged", i, j), Detector: "bolts", Camera: "left", ScoredAt: time.Now(), Score: &zero})
			if err != nil {
				t.Fatal(err)
			}
			if err := r.NC.Publish(r.Names.Scores("bolts", "left"), b); err != nil {
				t.Fatal(err)
			}
		}
		r.Publish(stream.Frame{Detector: "bolts", Camera: "left", ID: fmt.Sprint("f", i), Image: streamtest.Image(0.9)})
		eventually.True(t, "it is scored", func() bool { return w.Stats().Scored == uint64(i+2) })
	}
	if n := len(r.Events()); n != 11 {
		t.Errorf("%d alarms of 11", n)
	}
}

func TestFramesOfCamerasWithoutAGoodNameAreRejectedAtOnce(t *testing.T) {
	r := streamtest.New(t, stream.Topology{})
	r.Release("bolts", streamtest.Fake{Name: "one"})
	w, _ := r.Worker(worker.Config{}, streamtest.LoadFake)
	bad := []string{"10//0//0//7", "aa:bb:cc", "línea1", "линия", "a/b", "a+b", "$x", "\"q\"", "a\x01b", strings.Repeat("x", 65), strings.Repeat("é", 200)}
	for i, camera := range bad {
		for range 6 {
			r.Send("nearmiss.frames.bolts."+camera, nil, streamtest.Image(0.1))
		}
		r.Publish(stream.Frame{Detector: "bolts", Camera: "line1", ID: fmt.Sprint(i), Image: streamtest.Image(0.1)})
	}
	eventually.True(t, "the good ones are scored", func() bool { return w.Stats().Scored == uint64(len(bad)) })
	eventually.True(t, "the bad ones are rejected", func() bool { return w.Stats().Rejected == uint64(6*len(bad)) })
	eventually.True(t, "the queue is empty", func() bool { return r.Waiting() == 0 })
	if w.Stats().Retried != 0 { // what is tried again waits
		t.Errorf("%+v", w.Stats())
	}
	events := r.Events()
	if len(events) != 6*len(bad) {
		t.Errorf("%d rejected events of %d", len(events), 6*len(bad))
	}
	for _, e := range events {
		if e.Kind != stream.KindRejected || e.Code != stream.CodeBadHeader || !stream.ValidToken(e.Camera) || e.Camera == "line1" {
			t.Errorf("%+v", e)
		}
	}
	if dead, err := r.In.DeadLetters(t.Context(), 0); err != nil || len(dead) != len(events) || dead[0].Deliveries != 1 {
		t.Errorf("%d dead letters, %v", len(dead), err)
	}
}

func TestHeadersThatFillAMessageAreRejectedAtOnce(t *testing.T) {
	r := streamtest.New(t, stream.Topology{})
	r.Release("bolts", streamtest.Fake{Name: "one"})
	w, _ := r.Worker(worker.Config{}, streamtest.LoadFake)
	big := strings.Repeat("x", 60<<10)
	for i, h := range []map[string]string{
		{stream.HeaderTruth: big},
		{stream.HeaderSource: big},
		{stream.HeaderTrace: big},
		{stream.HeaderFrameID: big},
		{stream.HeaderCapturedAt: big},
		{stream.HeaderObject: big},
	} {
		r.Send(r.Names.Frames("bolts", "left"), h, nil)
		eventually.True(t, "it is rejected", func() bool { return w.Stats().Rejected == uint64(i+1) })
	}
	// Nobody's headers harm nobody, but a dead letter cannot carry them.
	r.Send(r.Names.Frames("bolts", "left"), map[string]string{"X-Anything": big}, []byte("no image"))
	eventually.True(t, "it is rejected", func() bool { return w.Stats().Rejected == 7 })
	eventually.True(t, "the queue is empty", func() bool { return r.Waiting() == 0 })
	dead, err := r.In.DeadLetters(t.Context(), 0)
	if err != nil || len(dead) != 7 || w.Stats().Retried != 0 || len(r.Events()) != 7 {
		t.Fatalf("%d dead letters, %d events, %+v, %v", len(dead), len(r.Events()), w.Stats(), err)
	}
	if !bytes.Equal(dead[6].Data, []byte("no image")) {
		t.Errorf("%q", dead[6].Data)
	}
}
