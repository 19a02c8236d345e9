package control_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/nats-io/nats.go/micro"
	"github.com/rs/zerolog"

	"github.com/nearmiss/nearmiss/internal/brokertest"
	"github.com/nearmiss/nearmiss/internal/eventually"
	"github.com/nearmiss/nearmiss/stream"
	"github.com/nearmiss/nearmiss/stream/control"
	"github.com/nearmiss/nearmiss/stream/internal/streamtest"
	"github.com/nearmiss/nearmiss/stream/registry"
	"github.com/nearmiss/nearmiss/stream/worker"
)

// TestControlChangesConfigurations: a request changes the fields that it names and
// no others, and what cannot be is refused whole.
func TestControlChangesConfigurations(t *testing.T) {
	r := streamtest.New(t, stream.Topology{})
	ctx, c := t.Context(), r.Client()
	if _, err := c.CreateDetector(ctx, stream.Detector{Name: "bolts", K: 3, Margin: 1.5}); err != nil {
		t.Fatal(err)
	}
	if _, err := c.CreateDetector(ctx, stream.Detector{Name: "bolts"}); !errors.Is(err, stream.ErrConflict) {
		t.Errorf("created twice: %v", err)
	}
	if _, err := c.CreateDetector(ctx, stream.Detector{Name: "nuts", K: -1}); !errors.Is(err, stream.ErrBadMessage) {
		t.Errorf("created with k -1: %v", err)
	}
	if _, err := c.Detector(ctx, "nuts"); !errors.Is(err, stream.ErrNotFound) {
		t.Errorf("a detector that is not there: %v", err)
	}

	// Somebody else changes another field between reading and asking.
	a, err := c.SetDetector(ctx, "bolts", func(d *stream.Detector) error {
		if _, err := c.SetDetector(ctx, "bolts", func(d *stream.Detector) error { d.Description = "M8"; return nil }); err != nil {
			return err
		}
		d.Margin, d.Smoothing = 0, 4
		return nil
	})
	if err != nil || a.Margin != 0 || a.Smoothing != 4 || a.Description != "M8" || a.K != 3 || a.Job != "" || len(a.Learnt) > 0 {
		t.Errorf("%+v, %v", a, err)
	}
	for what, request := range map[string]string{
		"an unknown field":  `{"detector":"bolts","set":{"kay":1}}`,
		"another name":      `{"detector":"bolts","set":{"name":"nuts"}}`,
		"a value of no use": `{"detector":"bolts","set":{"k":100000}}`,
		"a value of a kind": `{"detector":"bolts","set":{"k":"three"}}`,
	} {
		m, err := r.NC.Request("nearmiss.api.control.set", []byte(request), time.Minute)
		if err != nil || m.Header.Get(micro.ErrorCodeHeader) != stream.CodeBadRequest {
			t.Errorf("%s: %v, %v", what, m, err)
		}
	}
	old, err := json.Marshal(stream.SetRequest{Detector: "bolts", Set: map[string]json.RawMessage{"k": json.RawMessage("5")}, Revision: a.Revision - 1})
	if err != nil {
		t.Fatal(err)
	}
	m, err := r.NC.Request("nearmiss.api.control.set", old, time.Minute)
	if err != nil || m.Header.Get(micro.ErrorCodeHeader) != stream.CodeConflict {
		t.Errorf("of an old revision: %v, %v", m, err)
	}
	d, err := c.Detector(ctx, "bolts")
	if err != nil || d.Revision != a.Revision || d.K != 3 {
		t.Errorf("%+v, %v", d, err)
	}

	r.Release("bolts", streamtest.Fake{Name: "one"})
	a, err = c.SetDetector(ctx, "bolts", func(d *stream.Detector) error { d.K, d.Score = 4, "class"; return nil })
	if err != nil || a.Job == "" || !slices.Equal(a.Learnt, []string{"score"}) {
		t.Errorf("%+v, %v", a, err)
	}
	if all, err := c.Jobs(ctx, "bolts"); err != nil || len(all) != 1 || all[0].Job != a.Job || !all[0].Readjust || all[0].By != "tester" {
		t.Errorf("%+v, %v", all, err)
	}
	if err := c.DeleteDetector(ctx, "bolts", false); err != nil {
		t.Error(err)
	}
	if all, err := c.Detectors(ctx); err != nil || len(all.Detectors) != 0 {
		t.Errorf("%+v, %v", all, err)
	}
}

// TestFramesWaitForTheFirstWorker: a detector has its consumer of frames before any
// worker has come, so that who starts workers sees how many frames wait for them; one
// that workers have made stays as it is.
func TestFramesWaitForTheFirstWorker(t *testing.T) {
	r := streamtest.New(t, stream.Topology{})
	ctx := t.Context()
	r.Detector(stream.Detector{Name: "restored"})
	frames, err := r.JS.Stream(ctx, r.Names.FramesStream())
	if err != nil {
		t.Fatal(err)
	}
	theirs := jetstream.ConsumerConfig{
		Durable: "frames-nuts", FilterSubject: "nearmiss.frames.nuts.*", AckPolicy: jetstream.AckExplicitPolicy, AckWait: time.Minute,
	}
	if _, err := frames.CreateConsumer(ctx, theirs); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"bolts", "nuts"} {
		if _, err := r.Client().CreateDetector(ctx, stream.Detector{Name: name}); err != nil {
			t.Fatal(err)
		}
	}
	if c, err := frames.Consumer(ctx, "frames-nuts"); err != nil || c.CachedInfo().Config.AckWait != time.Minute {
		t.Errorf("%+v, %v", c, err)
	}
	for i := range 5 {
		r.Publish(stream.Frame{Detector: "bolts", Camera: "left", ID: fmt.Sprint(i), Image: streamtest.Image(0.1)})
	}
	eventually.True(t, "the frames wait for the first worker", func() bool { // consumers count what is stored a moment later
		c, err := frames.Consumer(ctx, "frames-bolts")
		return err == nil && c.CachedInfo().NumPending == 5
	})
	eventually.True(t, "detectors of a backup have theirs", func() bool {
		_, err := frames.Consumer(ctx, "frames-restored")
		return err == nil
	})
	eventually.True(t, "trainers have theirs", func() bool {
		_, err := r.JS.Consumer(ctx, r.Names.TrainingStream(), "trainers")
		return err == nil
	})

	r.Release("bolts", streamtest.Fake{Name: "one"})
	got := r.Scores()
	r.Worker(worker.Config{}, streamtest.LoadFake)
	eventually.True(t, "the frames are scored", func() bool { return len(got.ByFrame()) == 5 && r.Waiting() == 0 })
	for id, all := range got.ByFrame() {
		if len(all) != 1 {
			t.Errorf("frame %s was scored %d times", id, len(all))
		}
	}
	if err := r.Client().DeleteDetector(ctx, "bolts", false); err != nil {
		t.Fatal(err)
	}
}

// TestEveryChangeIsTold: whatever is asked for by way of control is recorded with
// who asked, also what was refused; what only reads is not.
func TestEveryChangeIsTold(t *testing.T) {
	r := streamtest.New(t, stream.Topology{})
	ctx := t.Context()
	var told bytes.Buffer
	asked, err := control.New(r.NC, r.Names, zerolog.New(&told))
	if err != nil {
		t.Fatal(err)
	}
	stop, err := asked.Start(ctx)
	if err != nil {
		t.Fatal(err)
	}
	defer stop()
	nc := brokertest.Client(t, r.URL, nats.CustomInboxPrefix("_INBOX_UKIM"))
	c := stream.NewClient(nc, r.Names).For("Kim\nMin")
	one, two := r.Put("bolts", streamtest.Fake{Name: "one"}), r.Put("bolts", streamtest.Fake{Name: "two"})

	_, e0 := c.CreateDetector(ctx, stream.Detector{Name: "bolts"})
	_, e1 := c.SetDetector(ctx, "bolts", func(d *stream.Detector) error { d.K = 3; return nil })
	_, e2 := c.Promote(ctx, stream.PromoteRequest{Detector: "bolts", Release: one})
	_, e3 := c.Promote(ctx, stream.PromoteRequest{Detector: "bolts", Release: two})
	_, e4 := c.Rollback(ctx, stream.PromoteRequest{Detector: "bolts"})
	e5 := c.Shadow(ctx, stream.PromoteRequest{Detector: "bolts", Release: two})
	e6 := c.Pin(ctx, stream.PinRequest{Detector: "bolts", Release: two})
	j, e7 := c.Train(ctx, stream.TrainRequest{Detector: "bolts"})
	_, e8 := c.Cancel(ctx, j.Job)
	_, e9 := c.Collect(ctx, registry.CollectOptions{})
	if err := errors.Join(e0, e1, e2, e3, e4, e5, e6, e7, e8, e9); err != nil {
		t.Fatal(err)
	}
	if err := c.RemoveNormals(ctx, "bolts", []uint64{99}); !errors.Is(err, stream.ErrNotFound) {
		t.Errorf("a normal that is not there: %v", err)
	}
	if err := c.Feedback(ctx, stream.Feedback{Detector: "bolts", Verdict: stream.FeedbackSeen, Event: "x"}); !errors.Is(err, stream.ErrNotFound) {
		t.Errorf("an event that is not there: %v", err)
	}
	if err := c.DeleteDetector(ctx, "bolts", false); err != nil {
		t.Fatal(err)
	}
	_, r0 := c.Detectors(ctx)
	_, r1 := c.Jobs(ctx, "")
	_, r2 := c.Releases(ctx, "bolts")
	_, r3 := c.Status(ctx)
	_, r4 := c.Collect(ctx, registry.CollectOptions{DryRun: true})
	if err := errors.Join(r0, r1, r2, r3, r4); err != nil {
		t.Fatal(err)
	}

	var got []string
	for line := range strings.Lines(told.String()) {
		var e struct{ By, Identity, Action, Object, Error string }
		if err := json.Unmarshal([]byte(line), &e); err != nil {
			t.Fatalf("%s: %v", line, err)
		}
		if e.By != "Kim Min" || e.Identity != "UKIM" {
			t.Errorf("%+v", e)
		}
		if (e.Error != "") != (e.Action == "remove-normals" || e.Action == "feedback") {
			t.Errorf("%s failed: %q", e.Action, e.Error)
		}
		got = append(got, e.Action+" "+strings.ReplaceAll(e.Object, j.Job, "JOB"))
	}
	want := []string{
		"create detector/bolts", "set detector/bolts", "promote detector/bolts", "promote detector/bolts", "rollback detector/bolts",
		"shadow detector/bolts", "pin detector/bolts", "train detector/bolts", "cancel job/JOB", "collect installation",
		"remove-normals detector/bolts", "feedback detector/bolts", "delete detector/bolts",
	}
	if !slices.Equal(got, want) {
		t.Errorf("told %q\nwant %q", got, want)
	}
}

// TestNobodyAnswers: where there is no control, the error says what to start.
func TestNobodyAnswers(t *testing.T) {
	r := streamtest.New(t, stream.Topology{})
	_, err := stream.NewClient(r.NC, r.Names).CreateDetector(t.Context(), stream.Detector{Name: "bolts"})
	if !errors.Is(err, stream.ErrNobody) || !strings.Contains(err.Error(), "nearmiss up") {
		t.Error(err)
	}
}
