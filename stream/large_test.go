package stream_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/nearmiss/nearmiss/internal/eventually"
	"github.com/nearmiss/nearmiss/stream"
	"github.com/nearmiss/nearmiss/stream/internal/streamtest"
	"github.com/nearmiss/nearmiss/stream/trainer"
	"github.com/nearmiss/nearmiss/stream/worker"
)

// put stores an object in a bucket as any client does.
func putObject(r *streamtest.Rig, bucket, name string, data []byte) jetstream.ObjectStore {
	r.T.Helper()
	store, err := r.JS.ObjectStore(r.T.Context(), bucket)
	if err == nil {
		_, err = store.PutBytes(r.T.Context(), name, data)
	}
	if err != nil {
		r.T.Fatal(err)
	}
	return store
}

// publishLarge stores the parts of a large frame, and returns the frame.
func publishLarge(r *streamtest.Rig, f stream.Frame, chunk int) stream.Frame {
	r.T.Helper()
	parts, small, err := f.Large(r.Names, chunk)
	if err != nil {
		r.T.Fatal(err)
	}
	for _, m := range parts {
		for range 2 { // sent again it is stored once
			if _, err := r.JS.PublishMsg(r.T.Context(), m); err != nil {
				r.T.Fatal(err)
			}
		}
	}
	return small
}

// TestLargeFramesAreObjectsToEveryClient: what a camera publishes is read by the
// client library's object store, and by the worker.
func TestLargeFramesAreObjectsToEveryClient(t *testing.T) {
	r := streamtest.New(t, stream.Topology{})
	r.Release("bolts", streamtest.Fake{Name: "one"})
	big := append(streamtest.Image(0.95), bytes.Repeat([]byte("x"), 100<<10)...)
	f := stream.Frame{Detector: "bolts", Camera: "left", ID: "1", Image: big}
	small := publishLarge(r, f, 30<<10)
	store, err := r.JS.ObjectStore(t.Context(), r.Names.LargeBucket())
	if err != nil {
		t.Fatal(err)
	}
	if got, err := store.GetBytes(t.Context(), small.Object); err != nil || !bytes.Equal(got, big) {
		t.Fatalf("object %s: %d bytes, %v", small.Object, len(got), err)
	}
	w, _ := r.Worker(worker.Config{}, streamtest.LoadFake)
	r.Publish(small)
	eventually.True(t, "it is scored", func() bool { return w.Stats().Scored == 1 })
	e := r.Events()
	if len(e) != 1 || e[0].Kind != stream.KindAnomaly || !strings.HasPrefix(e[0].Evidence, r.Names.ImagesBucket()+"/"+stream.EvidenceObjects) {
		t.Errorf("%+v", e)
	}
	eventually.True(t, "its object is gone", func() bool {
		_, err := store.GetInfo(t.Context(), small.Object)
		return errors.Is(err, jetstream.ErrObjectNotFound)
	})
	if _, _, err := f.Large(r.Names, 0); err == nil {
		t.Error("chunks of no bytes are accepted")
	}
	f.Camera = "no camera"
	if _, _, err := f.Large(r.Names, 1000); !errors.Is(err, stream.ErrBadName) {
		t.Errorf("a camera without a good name: %v", err)
	}
}

// TestAnotherImageDoesNotTakeALargeFramesPlace: whoever may write large frames can
// remove another camera's, and no more.
func TestAnotherImageDoesNotTakeALargeFramesPlace(t *testing.T) {
	r := streamtest.New(t, stream.Topology{})
	r.Release("bolts", streamtest.Fake{Name: "one"})
	small := publishLarge(r, stream.Frame{Detector: "bolts", Camera: "left", ID: "1", Image: streamtest.Image(0.95)}, 1000)
	putObject(r, r.Names.LargeBucket(), small.Object, streamtest.Image(0.1)) // a neighbour hides the defect
	w, _ := r.Worker(worker.Config{}, streamtest.LoadFake)
	r.Publish(small)
	eventually.True(t, "it is rejected", func() bool { return w.Stats().Rejected == 1 })
	if e := r.Events(); len(e) != 1 || e[0].Code != stream.CodeObjectBad || !strings.Contains(e[0].Reason, "SHA-256") {
		t.Errorf("%+v", e)
	}
	r.Send(r.Names.Frames("bolts", "left"), map[string]string{stream.HeaderObject: small.Object, stream.HeaderObjectDigest: "abc"}, nil)
	eventually.True(t, "a digest that is none is rejected", func() bool { return w.Stats().Rejected == 2 })
}

// TestImagesAreThoseThatWereNamed: whoever may write objects cannot have another
// image shown, or learnt from, in the place of one.
func TestImagesAreThoseThatWereNamed(t *testing.T) {
	r := streamtest.New(t, stream.Topology{})
	sum := sha256.Sum256(streamtest.Image(0.95))
	digest := hex.EncodeToString(sum[:])
	e := stream.Event{ID: "e", Evidence: r.Names.ImagesBucket() + "/" + stream.EvidenceObjects + digest}
	f := stream.Frame{Detector: "bolts", Camera: "left", Object: "frames/bolts/left/1", ObjectDigest: digest}
	for _, c := range []struct {
		stored []byte
		code   string
	}{{streamtest.Image(0.95), ""}, {streamtest.Image(0.1), stream.CodeObjectBad}} {
		putObject(r, r.Names.ImagesBucket(), stream.EvidenceObjects+digest, c.stored)
		putObject(r, r.Names.LargeBucket(), f.Object, c.stored)
		ofEvent, err := r.In.EventImage(t.Context(), e)
		ofFrame, err2 := r.In.FrameImage(t.Context(), f)
		if c.code == "" {
			if err != nil || err2 != nil || !bytes.Equal(ofEvent, c.stored) || !bytes.Equal(ofFrame, c.stored) {
				t.Errorf("%q, %v; %q, %v", ofEvent, err, ofFrame, err2)
			}
			continue
		}
		for _, err := range []error{err, err2} {
			var perm *stream.PermanentError
			if !errors.As(err, &perm) || perm.Code != c.code {
				t.Errorf("another image: %v", err)
			}
		}
		if ofEvent != nil || ofFrame != nil {
			t.Errorf("%q and %q are returned", ofEvent, ofFrame)
		}
	}
}

// TestObjectsOfEarlierVersions: everything lay among the artifacts, and is still
// found there: frames that wait, large normals, images of anomalies.
func TestObjectsOfEarlierVersions(t *testing.T) {
	r := streamtest.New(t, stream.Topology{})
	ctx := t.Context()
	r.Detector(stream.Detector{Name: "bolts"})
	r.Release("bolts", streamtest.Fake{Name: "one"})
	before := putObject(r, r.Names.ArtifactsBucket(), "frames/bolts/left/1", streamtest.Image(0.2))
	w, _ := r.Worker(worker.Config{}, streamtest.LoadFake)
	r.Publish(stream.Frame{Detector: "bolts", Camera: "left", ID: "1", Object: "frames/bolts/left/1"})
	eventually.True(t, "the frame is scored", func() bool { return w.Stats().Scored == 1 && r.Waiting() == 0 })

	s := r.In.Normals()
	putObject(r, r.Names.ArtifactsBucket(), "normals/bolts/big", streamtest.Image(0.3))
	m := nats.NewMsg(r.Names.Normals("bolts"))
	m.Header.Set(stream.HeaderObject, "normals/bolts/big")
	ack, err := r.JS.PublishMsg(ctx, m)
	if err != nil {
		t.Fatal(err)
	}
	if n, err := s.Get(ctx, "bolts", ack.Sequence); err != nil || !bytes.Equal(n.Image, streamtest.Image(0.3)) {
		t.Errorf("a large normal: %+v, %v", n, err)
	}
	if all, err := s.List(ctx, "bolts", false); err != nil || len(all) != 1 || all[0].Problem != "" || all[0].Bytes != 12 {
		t.Errorf("normals %+v, %v", all, err)
	}
	if err := s.Remove(ctx, "bolts", ack.Sequence); err != nil {
		t.Fatal(err)
	}
	if _, err := before.GetInfo(ctx, "normals/bolts/big"); !errors.Is(err, jetstream.ErrObjectNotFound) {
		t.Errorf("the removed normal's object: %v", err)
	}

	one, yes := 1.0, true
	sum := sha256.Sum256(streamtest.Image(0.95))
	name := stream.EvidenceObjects + hex.EncodeToString(sum[:])
	putObject(r, r.Names.ArtifactsBucket(), name, streamtest.Image(0.95))
	e := stream.Event{
		ID: "old", Kind: stream.KindAnomaly, Detector: "bolts", Camera: "left", FrameID: "9", ScoredAt: time.Now(),
		Score: &one, Threshold: &one, PValue: &one, Anomalous: &yes, Evidence: r.Names.ArtifactsBucket() + "/" + name,
	}
	msg, err := e.Message(r.Names)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := r.JS.PublishMsg(ctx, msg); err != nil {
		t.Fatal(err)
	}
	if err := r.In.SendFeedback(ctx, stream.Feedback{Detector: "bolts", Verdict: stream.FeedbackAnomalous, Event: "old"}); err != nil {
		t.Fatal(err)
	}
	r.Trainer(trainer.Config{}, streamtest.FakeTrainer{T: t})
	eventually.True(t, "the old alarm is a labelled anomaly", func() bool {
		all, err := s.List(ctx, "bolts", true)
		return err == nil && len(all) == 1
	})
}

// TestShed: a camera has its own frames dropped, and no others.
func TestShed(t *testing.T) {
	r := streamtest.New(t, stream.Topology{})
	for i := range 5 {
		for _, camera := range []string{"left", "right"} {
			r.Publish(stream.Frame{Detector: "bolts", Camera: camera, ID: string(rune('a' + i)), Image: streamtest.Image(0.1)})
		}
	}
	w, _ := r.Worker(worker.Config{}, streamtest.LoadFake) // without a release it takes no frames
	ask := func(detector, camera string, keep int) (uint64, error) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		return r.Client().Shed(ctx, detector, camera, keep)
	}
	eventually.True(t, "the worker answers", func() bool { n, err := ask("bolts", "left", 2); return err == nil && n == 3 })
	if n, err := ask("bolts", "left", 2); err != nil || n != 0 {
		t.Errorf("again: %d, %v", n, err)
	}
	if n := r.Waiting(); n != 7 {
		t.Errorf("%d frames wait, want 2 and 5", n)
	}
	if n := w.Stats().Dropped; n != 3 {
		t.Errorf("%d are counted", n)
	}
	var service *stream.ServiceError
	if _, err := ask("bolts", "left", 0); !errors.As(err, &service) || service.Code != stream.CodeBadRequest {
		t.Errorf("keeping none: %v", err)
	}
	// The broker has every frame that is left.
	var left []string
	for _, m := range r.Stored(r.Names.FramesStream()) {
		if m.Subject == r.Names.Frames("bolts", "left") {
			left = append(left, m.Header.Get(stream.HeaderFrameID))
		}
	}
	if diff := cmp.Diff([]string{"d", "e"}, left); diff != "" {
		t.Error(diff)
	}
}
