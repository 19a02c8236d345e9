package broker_test

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/rs/zerolog"

	"github.com/nearmiss/nearmiss/internal/brokertest"
	"github.com/nearmiss/nearmiss/internal/eventually"
	"github.com/nearmiss/nearmiss/stream"
	"github.com/nearmiss/nearmiss/stream/control"
	"github.com/nearmiss/nearmiss/stream/registry"
	"github.com/nearmiss/nearmiss/stream/steward"
)

// refusals are what a broker refused a connection.
type refusals struct {
	mu  sync.Mutex
	all []error
}

func (r *refusals) option() nats.Option {
	return nats.ErrorHandler(func(_ *nats.Conn, _ *nats.Subscription, err error) {
		r.mu.Lock()
		defer r.mu.Unlock()
		if errors.Is(err, nats.ErrPermissionViolation) || strings.Contains(strings.ToLower(err.Error()), "permissions violation") {
			r.all = append(r.all, err)
		}
	})
}

// TestControlSharesTheQueueWithItsRights: the camera of a detector above its share, in
// another account, is told so by who has no right but control's.
func TestControlSharesTheQueueWithItsRights(t *testing.T) {
	t.Parallel()
	h := newHall(t)
	h.embedded()
	ctx := t.Context()
	setup := brokertest.StreamsOn(t, h.connect("setup"))
	if err := stream.Ensure(ctx, setup, stream.Topology{FramesMaxBytes: 4 << 20}); err != nil {
		t.Fatal(err)
	}
	var refused refusals
	nc := h.connect("control", refused.option())
	c, err := control.New(nc, stream.Names{}, zerolog.Nop())
	if err != nil {
		t.Fatal(err)
	}
	stop, err := c.Start(ctx)
	if err != nil {
		t.Fatal(err)
	}
	defer stop()
	for _, name := range []string{"parts", "other"} {
		if _, err := stream.NewClient(h.connect("op"), stream.Names{}).CreateDetector(ctx, stream.Detector{Name: name}); err != nil {
			t.Fatal(err)
		}
	}
	s, err := steward.New(steward.Config{Remote: true}, nc, zerolog.Nop())
	if err != nil {
		t.Fatal(err)
	}
	brokertest.Run(t, "steward", s.Run)
	camera := h.connect("line1")
	eventually.True(t, "it is so", func() bool {
		m, err := camera.Request("nearmiss.frames.parts.line1", make([]byte, 100<<10), time.Second)
		return err == nil && strings.Contains(string(m.Data), `"err_code":10077`) && strings.Contains(string(m.Data), "the detector's share of the frame queue is full")
	})
	if m, err := h.connect("big").Request("nearmiss.frames.parts.big", []byte("frame"), time.Minute); err != nil || !strings.Contains(string(m.Data), "10077") {
		t.Errorf("another camera of it: %v, %v", m, err)
	}
	refused.mu.Lock()
	defer refused.mu.Unlock()
	for _, err := range refused.all {
		t.Errorf("a right is missing: %v", err)
	}
}

// TestControlDoesItsJobWithItsRights: an operator asks for every change there is,
// with no right but its own to read, ask and bring images and releases; control
// makes it, with no right but its own. The broker refuses neither anything.
func TestControlDoesItsJobWithItsRights(t *testing.T) {
	t.Parallel()
	h := newHall(t)
	h.embedded()
	ctx := t.Context()
	var refused refusals
	asked, err := control.New(h.connect("control", refused.option()), stream.Names{}, zerolog.Nop())
	if err != nil {
		t.Fatal(err)
	}
	asked.Knows(func(public string) string {
		if public == h.keys["op"].Public {
			return "op"
		}
		return ""
	})
	stop, err := asked.Start(ctx)
	if err != nil {
		t.Fatal(err)
	}
	defer stop()
	nc := h.connect("op", refused.option())
	js := brokertest.StreamsOn(t, nc)
	in, c := stream.NewInstallation(js, stream.Names{}), stream.NewClient(nc, stream.Names{}).For("Kim")
	must := func(what string, err error) {
		t.Helper()
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
	}
	r, err := in.Registry(ctx)
	must("open the registry", err)
	release := func(text string) string {
		t.Helper()
		dir := t.TempDir()
		sum := sha256.Sum256([]byte(text))
		manifest := fmt.Sprintf(`{"schema_version":1,"files":{"fake.json":{"sha256":%q,"size":%d}}}`, hex.EncodeToString(sum[:]), len(text))
		must("write a release", errors.Join(
			os.WriteFile(filepath.Join(dir, "fake.json"), []byte(text), 0o600),
			os.WriteFile(filepath.Join(dir, "manifest.json"), []byte(manifest), 0o600),
		))
		digest, err := r.Put(ctx, "parts", dir)
		must("store a release", err)
		return digest
	}
	one, two := release("one"), release("two")

	_, err = c.CreateDetector(ctx, stream.Detector{Name: "parts"})
	must("create", err)
	for _, digest := range []string{one, two} {
		_, err = c.Promote(ctx, stream.PromoteRequest{Detector: "parts", Release: digest})
		must("promote", err)
	}
	_, err = c.Rollback(ctx, stream.PromoteRequest{Detector: "parts"})
	must("rollback", err)
	must("shadow", c.Shadow(ctx, stream.PromoteRequest{Detector: "parts", Release: two}))
	must("unshadow", c.Shadow(ctx, stream.PromoteRequest{Detector: "parts"}))
	must("pin", c.Pin(ctx, stream.PinRequest{Detector: "parts", Release: one}))
	must("unpin", c.Pin(ctx, stream.PinRequest{Detector: "parts", Release: one, Unpin: true}))
	_, err = c.SetDetector(ctx, "parts", func(d *stream.Detector) error { d.K = 3; return nil })
	must("set", err)
	j, err := c.Train(ctx, stream.TrainRequest{Detector: "parts"})
	must("train", err)
	_, err = c.Cancel(ctx, j.Job)
	must("cancel", err)
	seq, err := in.Normals().Add(ctx, stream.Normal{Detector: "parts", Image: []byte("a picture")})
	must("add a normal", err)
	must("remove it", c.RemoveNormals(ctx, "parts", []uint64{seq}))
	alarm, err := (&stream.Event{ID: "x", Kind: stream.KindAnomaly, Detector: "parts", Camera: "line1", FrameID: "1", ScoredAt: time.Now()}).Message(stream.Names{})
	must("make an event", err)
	worker := brokertest.StreamsOn(t, h.connect("worker"))
	_, err = worker.PublishMsg(ctx, alarm)
	must("store the event", err)
	must("feedback", c.Feedback(ctx, stream.Feedback{Detector: "parts", Verdict: stream.FeedbackNormal, Event: "x"}))
	_, err = c.Collect(ctx, registry.CollectOptions{Keep: -1, Grace: -1})
	must("collect", err)
	_, err = c.Detectors(ctx)
	must("list the detectors", err)
	_, err = c.Jobs(ctx, "")
	must("list the jobs", err)
	_, err = c.Releases(ctx, "parts")
	must("list the releases", err)
	_, err = c.Status(ctx)
	must("read the status", err)
	_, err = in.Status(ctx)
	must("read the status without control", err)
	must("delete", c.DeleteDetector(ctx, "parts", true))
	if _, err := c.Promote(ctx, stream.PromoteRequest{Detector: "parts", Release: "abcd1234"}); err == nil {
		t.Error("a release of nothing is promoted")
	}
	must("all said", nc.Flush())

	// Each of it is in the audit: who, what, on what, and what came of it.
	all, err := in.Audit(ctx, stream.AuditFilter{By: "Kim", Object: "detector/parts"}, 0, 100)
	must("read the audit", err)
	var said []string
	for _, e := range all {
		said = append(said, e.Action+" "+e.Result)
		if e.User != "op" || e.Identity != h.keys["op"].Public || e.At.IsZero() || e.ID == "" || (e.Error == "") != (e.Result == stream.AuditDone) {
			t.Errorf("%+v", e)
		}
	}
	want := "promote not_found, delete done, feedback done, remove-normals done, train done, set done, pin done, pin done, shadow done, shadow done, rollback done, promote done, promote done, create done"
	if got := strings.Join(said, ", "); got != want {
		t.Errorf("the audit has %s\nwant %s", got, want)
	}
	if one, err := in.Audit(ctx, stream.AuditFilter{Action: "set", Since: time.Now().Add(-time.Hour)}, 0, 1); err != nil || len(one) != 1 ||
		strings.Contains(string(one[0].Before), `"k":3`) || !strings.Contains(string(one[0].After), `"k":3`) {
		t.Errorf("before and after: %+v, %v", one, err)
	}
	if failed, err := in.Audit(ctx, stream.AuditFilter{Failed: true, By: "op"}, 0, 10); err != nil || len(failed) != 1 {
		t.Errorf("what was refused: %+v, %v", failed, err)
	}
	if none, err := in.Audit(ctx, stream.AuditFilter{Since: time.Now().Add(time.Hour)}, 0, 10); err != nil || len(none) != 0 {
		t.Errorf("in an hour: %+v, %v", none, err)
	}
	own := brokertest.StreamsOn(t, h.connect("op"))
	forged, stopWaiting := context.WithTimeout(ctx, time.Second)
	defer stopWaiting()
	if _, err := own.Publish(forged, "nearmiss.audit.detector.parts", []byte("{}")); err == nil {
		t.Error("an operator wrote into the audit")
	}

	refused.mu.Lock()
	defer refused.mu.Unlock()
	for _, err := range refused.all {
		t.Errorf("a right is missing: %v", err)
	}
}
