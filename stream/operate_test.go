package stream_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"github.com/nats-io/nats.go/micro"

	"github.com/nearmiss/nearmiss/internal/eventually"
	"github.com/nearmiss/nearmiss/stream"
	"github.com/nearmiss/nearmiss/stream/internal/streamtest"
	"github.com/nearmiss/nearmiss/stream/registry"
	"github.com/nearmiss/nearmiss/stream/sink"
	"github.com/nearmiss/nearmiss/stream/trainer"
	"github.com/nearmiss/nearmiss/stream/worker"
)

func TestAFalseAlarmThatIsMarkedNormalIsNotRaisedAgain(t *testing.T) {
	r := streamtest.New(t, stream.Topology{})
	r.Detector(stream.Detector{Name: "bolts"})
	first := r.Release("bolts", streamtest.Fake{Name: "one"})
	got := r.Scores()
	w, _ := r.Worker(worker.Config{}, streamtest.LoadFake)
	r.Trainer(trainer.Config{}, streamtest.FakeTrainer{T: t})
	alarm, defect := streamtest.Image(0.95), streamtest.Image(0.97)
	r.Publish(stream.Frame{Detector: "bolts", Camera: "left", ID: "alarm", Image: alarm})
	r.Publish(stream.Frame{Detector: "bolts", Camera: "left", ID: "defect", Image: defect})
	eventually.True(t, "both are announced", func() bool { return len(r.Events()) == 2 })

	c := r.Client()
	eventually.True(t, "the control answers", func() bool { _, err := c.Status(t.Context()); return err == nil })
	if err := c.Feedback(t.Context(), stream.Feedback{Detector: "bolts", Verdict: stream.FeedbackNormal, Camera: "left", Frame: "alarm", By: "Kim"}); err != nil {
		t.Fatal(err)
	}
	for _, e := range r.Events() {
		if e.FrameID == "defect" {
			if err := c.Feedback(t.Context(), stream.Feedback{Detector: "bolts", Verdict: stream.FeedbackAnomalous, Event: e.ID}); err != nil {
				t.Fatal(err)
			}
		}
	}
	eventually.True(t, "the bank has it", func() bool { return w.Stats().Swaps == 2 })
	r.Publish(stream.Frame{Detector: "bolts", Camera: "left", ID: "alarm2", Image: alarm})
	r.Publish(stream.Frame{Detector: "bolts", Camera: "left", ID: "defect2", Image: defect})
	eventually.True(t, "both are scored again", func() bool { return len(got.ByFrame()) == 4 })
	events := r.Events()
	if len(events) != 3 || events[2].FrameID != "defect2" || events[2].Release == first {
		t.Errorf("%d events, last %+v", len(events), events[len(events)-1])
	}
	if *got.ByFrame()["alarm2"][0].Anomalous {
		t.Error("the false alarm is raised again")
	}
	s := r.In.Normals()
	normals, err := s.List(t.Context(), "bolts", false)
	if err != nil || len(normals) != 1 || !strings.Contains(normals[0].Origin, "Kim") {
		t.Errorf("normals %+v, %v", normals, err)
	}
	eventually.True(t, "the defect is a labelled anomaly", func() bool {
		all, err := s.List(t.Context(), "bolts", true)
		return err == nil && len(all) == 1
	})
	t.Run("feedback on a frame without an event is refused", func(t *testing.T) {
		for _, f := range []stream.Feedback{{Camera: "left", Frame: "nowhere"}, {Event: "nothing"}} {
			f.Detector, f.Verdict = "bolts", stream.FeedbackNormal
			var se *stream.ServiceError
			if err := c.Feedback(t.Context(), f); !errors.As(err, &se) || se.Code != stream.CodeNotFound {
				t.Errorf("%+v: %v", f, err)
			}
		}
		// Who publishes it past the service hears nothing; the dead letters have it.
		r.PublishRaw(r.Names.Feedback("bolts"), `{"detector":"bolts","verdict":"normal","id":"nothing"}`)
		eventually.True(t, "it is dead", func() bool {
			dead, err := r.In.DeadLetters(t.Context(), 0)
			return err == nil && len(dead) == 1 && dead[0].Code == stream.CodeNotFound
		})
	})
}

// endpoints are how many requests each service answers.
var endpoints = map[string]int{stream.WorkerService: 3, stream.TrainerService: 3, stream.ControlService: 2 * 20, sink.Service: 3}

func TestServices(t *testing.T) {
	r := streamtest.New(t, stream.Topology{})
	r.Detector(stream.Detector{Name: "bolts"})
	one := r.Release("bolts", streamtest.Fake{Name: "one"})
	w, _ := r.Worker(worker.Config{}, streamtest.LoadFake)
	r.Trainer(trainer.Config{}, streamtest.FakeTrainer{T: t})
	c := r.Client()
	ctx := t.Context()
	eventually.True(t, "the control answers", func() bool { _, err := c.Status(ctx); return err == nil })
	eventually.True(t, "the worker serves", func() bool { return w.Stats().Swaps == 1 })
	code := func(err error) string {
		var se *stream.ServiceError
		if errors.As(err, &se) {
			return se.Code
		}
		return fmt.Sprint(err)
	}
	t.Run("score now", func(t *testing.T) {
		e, err := c.ScoreNow(ctx, "bolts", streamtest.Image(0.95))
		if err != nil || !*e.Anomalous || e.Release != one {
			t.Errorf("%+v, %v", e, err)
		}
		// The same as JSON, as another client would ask.
		q, _ := json.Marshal(map[string]any{"detector": "bolts", "image": streamtest.Image(0.5)})
		m, err := r.NC.Request("nearmiss.api.worker.score-now", q, time.Minute)
		if err != nil || !strings.Contains(string(m.Data), `"anomalous":false`) {
			t.Errorf("%s, %v", m.Data, err)
		}
		for what, q := range map[string]string{"score-now": `{"detector":"bolts","image":"AA==","release":"x"}`, "shed.bolts.left": `{"keep":1,"all":true}`} {
			m, err := r.NC.Request("nearmiss.api.worker."+what, []byte(q), time.Minute)
			if err != nil || m.Header.Get(micro.ErrorCodeHeader) != stream.CodeBadRequest || !strings.Contains(m.Header.Get(micro.ErrorHeader), "unknown field") {
				t.Errorf("%s: an unknown field: %v, %v", what, m, err)
			}
		}
		if _, err := c.ScoreNow(ctx, "nuts", streamtest.Image(0.5)); code(err) != stream.CodeNotFound {
			t.Error(err)
		}
		if _, err := c.ScoreNow(ctx, "bolts", []byte("no image")); code(err) != "unsupported" {
			t.Error(err)
		}
		if len(r.Events()) != 0 {
			t.Error("an event was stored")
		}
	})
	t.Run("promote and rollback", func(t *testing.T) {
		two := r.Put("bolts", streamtest.Fake{Name: "two"})
		if p, err := c.Promote(ctx, stream.PromoteRequest{Detector: "bolts", Release: two[:10], By: "Kim"}); err != nil || p.Release != two {
			t.Errorf("%+v, %v", p, err)
		}
		if _, err := c.Promote(ctx, stream.PromoteRequest{Detector: "bolts", Release: one, Expect: one}); code(err) != stream.CodeConflict {
			t.Error(err)
		}
		if _, err := c.Promote(ctx, stream.PromoteRequest{Detector: "bolts", Release: "ffffffff"}); code(err) != stream.CodeNotFound {
			t.Error(err)
		}
		if _, err := c.Promote(ctx, stream.PromoteRequest{Detector: "no bolts", Release: two}); code(err) != stream.CodeBadRequest {
			t.Error(err)
		}
		if p, err := c.Rollback(ctx, stream.PromoteRequest{Detector: "bolts"}); err != nil || p.Release != one || p.RolledBack != two {
			t.Errorf("%+v, %v", p, err)
		}
		if _, err := c.Rollback(ctx, stream.PromoteRequest{Detector: "bolts"}); code(err) != stream.CodeNotFound {
			t.Error(err)
		}
		a, err := c.Releases(ctx, "bolts")
		if err != nil || len(a.Releases) != 2 || !a.Releases[0].Active || len(a.History) != 3 {
			t.Errorf("%+v, %v", a, err)
		}
	})
	t.Run("train", func(t *testing.T) {
		if _, err := r.In.Normals().Add(ctx, stream.Normal{Detector: "bolts", Image: streamtest.Image(0.1)}); err != nil {
			t.Fatal(err)
		}
		j, err := c.Train(ctx, stream.TrainRequest{Detector: "bolts", Promote: true})
		if err != nil {
			t.Fatal(err)
		}
		if done := r.Wait(j.Job); done.State != stream.JobDone || !done.Promoted {
			t.Errorf("%+v", done)
		}
		if _, err := c.Train(ctx, stream.TrainRequest{Detector: "nuts"}); code(err) != stream.CodeNotFound {
			t.Error(err)
		}
		if _, err := c.Cancel(ctx, "no-such-job"); code(err) != stream.CodeNotFound {
			t.Error(err)
		}
		if all, err := c.Jobs(ctx, "bolts"); err != nil || len(all) != 1 {
			t.Errorf("%+v, %v", all, err)
		}
	})
	t.Run("status", func(t *testing.T) {
		if err := r.NC.Publish(r.Names.Frames("nuts", "left"), streamtest.Image(0.1)); err != nil {
			t.Fatal(err)
		}
		eventually.True(t, "the frame that nobody takes is counted", func() bool {
			s, err := c.Status(ctx)
			return err == nil && s.Unserved["nuts"] == 1
		})
		s, err := c.Status(ctx)
		if err != nil || len(s.Detectors) != 1 || s.Detectors[0].Normals != 1 || s.Detectors[0].LastJob == nil {
			t.Errorf("%+v, %v", s, err)
		}
		eventually.True(t, "the worker says what it serves", func() bool {
			all, err := c.Workers(ctx, 500*time.Millisecond) // which it may not do in time
			if err != nil || len(all) > 1 {
				t.Fatalf("%+v, %v", all, err)
			}
			return len(all) == 1 && all[0].Serving["bolts"] != ""
		})
	})
	t.Run("a request that cannot be understood", func(t *testing.T) {
		m, err := r.NC.Request("nearmiss.api.trainer.train", []byte(`{"detektor":"bolts"}`), time.Minute)
		if err != nil || m.Header.Get(micro.ErrorCodeHeader) != stream.CodeBadRequest {
			t.Errorf("%v, %v", m, err)
		}
	})
	t.Run("they can be discovered", func(t *testing.T) {
		for _, name := range []string{stream.WorkerService, stream.TrainerService, stream.ControlService} {
			m, err := r.NC.Request("$SRV.INFO."+name, nil, time.Minute)
			if err != nil {
				t.Fatal(err)
			}
			var info micro.Info
			if err := json.Unmarshal(m.Data, &info); err != nil || info.Name != name || len(info.Endpoints) != endpoints[name] {
				t.Errorf("%+v, %v", info, err)
			}
		}
	})
}

func TestNormals(t *testing.T) {
	r := streamtest.New(t, stream.Topology{})
	s := r.In.Normals()
	ctx := t.Context()
	big := append(streamtest.Image(0.3), make([]byte, 9<<20)...) // above the payload limit
	var seqs []uint64
	for i, b := range [][]byte{streamtest.Image(0.1), streamtest.Image(0.2), big, streamtest.Image(0.1)} {
		seq, err := s.Add(ctx, stream.Normal{Detector: "bolts", ID: fmt.Sprint(i % 3), Origin: "test", Source: "a.png", Image: b})
		if err != nil {
			t.Fatal(err)
		}
		seqs = append(seqs, seq)
	}
	if seqs[3] != seqs[0] {
		t.Errorf("adding an id again: %v", seqs)
	}
	if _, err := s.Add(ctx, stream.Normal{Detector: "bolts", Anomaly: true, Image: streamtest.Image(0.9)}); err != nil {
		t.Fatal(err)
	}
	replay := func() (digest string, sizes []int) {
		t.Helper()
		seen, err := s.Replay(ctx, "bolts", false, true, func(n stream.Normal) error {
			sizes = append(sizes, len(n.Image))
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		return seen.Digest, sizes
	}
	before, sizes := replay()
	if fmt.Sprint(sizes) != fmt.Sprint([]int{12, 12, len(big)}) {
		t.Errorf("replayed %v", sizes)
	}
	if again, _ := replay(); again != before {
		t.Error("the digest of the same images differs")
	}
	all, err := s.List(ctx, "bolts", false)
	if err != nil || len(all) != 3 || all[1].Sequence != seqs[1] || all[1].Bytes != 12 || all[1].Source != "a.png" {
		t.Errorf("%+v, %v", all, err)
	}
	if n, err := s.Get(ctx, "bolts", seqs[2]); err != nil || len(n.Image) != len(big) {
		t.Errorf("%+v, %v", n, err)
	}
	if err := s.Remove(ctx, "nuts", seqs[2]); !errors.Is(err, stream.ErrNotFound) {
		t.Error(err)
	}
	if err := s.Remove(ctx, "bolts", seqs[2]); err != nil {
		t.Error(err)
	}
	if after, sizes := replay(); after == before || len(sizes) != 2 {
		t.Errorf("after the removal: %v", sizes)
	}
	if n, err := s.Count(ctx, "bolts"); err != nil || n != 2 {
		t.Errorf("%d, %v", n, err)
	}
	store, err := r.JS.ObjectStore(ctx, r.Names.ImagesBucket())
	if err != nil {
		t.Fatal(err)
	}
	if left, err := store.List(ctx); !errors.Is(err, jetstream.ErrNoObjectsFound) {
		t.Errorf("%v, %v", left, err)
	}

	t.Run("from frames that are being scored", func(t *testing.T) {
		r.Release("bolts", streamtest.Fake{Name: "one"})
		w, _ := r.Worker(worker.Config{}, streamtest.LoadFake)
		done := make(chan error, 1)
		counted := make(chan int, 10)
		go func() { done <- s.FromFrames(ctx, "bolts", 3, func(n int) { counted <- n }) }()
		sent := uint64(0)
		for {
			select {
			case err := <-done:
				if err != nil {
					t.Error(err)
				}
				eventually.True(t, "all frames are scored", func() bool { return w.Stats().Scored == sent })
				if n, err := s.Count(ctx, "bolts"); err != nil || n != 5 || len(counted) != 3 {
					t.Errorf("%d normals, %d counted, %v", n, len(counted), err)
				}
				all, err := s.List(ctx, "bolts", false)
				if err != nil {
					t.Fatal(err)
				}
				for _, n := range all[2:] {
					if n.Camera != "left" || n.CapturedAt.IsZero() {
						t.Errorf("a normal from a frame of camera left: camera %q, captured at %v", n.Camera, n.CapturedAt)
					}
				}
				return
			default:
				r.Publish(stream.Frame{Detector: "bolts", Camera: "left", ID: fmt.Sprint("f", sent), Image: streamtest.Image(0.5)})
				sent++
			}
		}
	})
}

func TestDetectors(t *testing.T) {
	r := streamtest.New(t, stream.Topology{})
	ctx := t.Context()
	s, err := r.In.Detectors(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Create(ctx, stream.Detector{Name: "bolts", K: 3, CoolDown: stream.Duration(time.Minute)}); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Create(ctx, stream.Detector{Name: "bolts"}); !errors.Is(err, stream.ErrDetectorExists) {
		t.Error(err)
	}
	d, err := s.Set(ctx, "bolts", func(d *stream.Detector) error { d.Policy = stream.PolicyLive; return nil })
	if err != nil || d.K != 3 || d.Policy != stream.PolicyLive {
		t.Errorf("%+v, %v", d, err)
	}
	bad := []func(*stream.Detector) error{
		func(d *stream.Detector) error { d.K = -1; return nil },
		func(d *stream.Detector) error { d.FalseAlarmRate = 2; return nil },
		func(d *stream.Detector) error { d.Policy = "best effort"; return nil },
		func(d *stream.Detector) error { d.Region = &stream.Region{X: 0.5, Width: 0.6, Height: 1}; return nil },
		func(d *stream.Detector) error { d.Ignore = []stream.Region{{}}; return nil },
		func(d *stream.Detector) error { d.RetrainEvery = 1; return nil },
	}
	for i, change := range bad {
		if _, err := s.Set(ctx, "bolts", change); err == nil {
			t.Errorf("bad change %d is accepted", i)
		}
	}
	if _, err := s.Get(ctx, "nuts"); !errors.Is(err, stream.ErrNoDetector) {
		t.Error(err)
	}
	if _, err := s.Get(ctx, "*"); !errors.Is(err, stream.ErrBadName) {
		t.Error(err)
	}
	r.Release("bolts", streamtest.Fake{Name: "one"})
	r.Publish(stream.Frame{Detector: "bolts", Camera: "left", ID: "f", Image: streamtest.Image(0.1)})
	if _, err := r.In.Normals().Add(ctx, stream.Normal{Detector: "bolts", Image: streamtest.Image(0.1)}); err != nil {
		t.Fatal(err)
	}
	for _, job := range []string{"waiting", "running"} {
		if _, err := r.Jobs().Request(ctx, stream.TrainRequest{Job: job, Detector: "bolts"}); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := r.Jobs().Update(ctx, "running", func(j *stream.Job) error { j.State, j.Trainer = stream.JobRunning, "dead"; return nil }); err != nil {
		t.Fatal(err)
	}
	if err := r.In.DeleteDetector(ctx, "bolts", true); err != nil {
		t.Fatal(err)
	}
	// Else the next detector of that name would wait for them.
	if all, err := r.Jobs().List(ctx, "bolts"); err != nil || len(all) != 2 || all[0].State != stream.JobCancelled || all[1].State != stream.JobCancelled || !all[1].Cancel {
		t.Errorf("jobs: %+v, %v", all, err)
	}
	if all, err := s.List(ctx); err != nil || len(all) != 0 {
		t.Errorf("%+v, %v", all, err)
	}
	if st, err := r.In.Status(ctx); err != nil || len(st.Detectors) != 0 || len(st.Unserved) != 0 {
		t.Errorf("%+v, %v", st, err)
	}
	if n, err := r.In.Normals().Count(ctx, "bolts"); err != nil || n != 0 {
		t.Errorf("%d, %v", n, err)
	}
	if err := r.In.DeleteDetector(ctx, "bolts", true); !errors.Is(err, stream.ErrNoDetector) {
		t.Error(err)
	}
}

func TestEnsureIsSafeToRepeatAndRefusesForeignStreams(t *testing.T) {
	r := streamtest.New(t, stream.Topology{})
	if err := stream.Ensure(t.Context(), r.JS, stream.Topology{}); err != nil {
		t.Error(err)
	}
	if err := stream.Ensure(t.Context(), r.JS, stream.Topology{FramesMaxBytes: 1 << 20, EventsMaxAge: 3 * time.Hour}); err != nil {
		t.Error(err)
	}
	s, err := r.JS.Stream(t.Context(), "NM_FRAMES")
	if err != nil || s.CachedInfo().Config.MaxBytes != 1<<20 {
		t.Errorf("%+v, %v", s.CachedInfo().Config, err)
	}
	if _, err := r.JS.CreateStream(t.Context(), jetstream.StreamConfig{Name: "OTHER_FRAMES", Subjects: []string{"somebody.else"}}); err != nil {
		t.Fatal(err)
	}
	if err := stream.Ensure(t.Context(), r.JS, stream.Topology{Names: stream.Names{Prefix: "other"}}); err == nil || !strings.Contains(err.Error(), "not Nearmiss's") {
		t.Errorf("error %v", err)
	}
	for _, bad := range []stream.Topology{
		{Names: stream.Names{Prefix: "nm"}},
		{Names: stream.Names{Prefix: "Upper"}},
		{Names: stream.Names{Prefix: "a.b"}},
		{EventsMaxAge: time.Hour},
		{Replicas: 7},
	} {
		if err := bad.Validate(); err == nil {
			t.Errorf("%+v is accepted", bad)
		}
	}
}

func TestCollect(t *testing.T) {
	r := streamtest.New(t, stream.Topology{})
	ctx := t.Context()
	var releases []string
	for i := range 10 {
		releases = append(releases, r.Release("bolts", streamtest.Fake{Name: fmt.Sprint(i)}))
	}
	candidate, pinned, orphan := r.Put("bolts", streamtest.Fake{Name: "candidate"}), r.Put("bolts", streamtest.Fake{Name: "pinned"}), r.Put("bolts", streamtest.Fake{Name: "orphan"})
	if err := r.Registry.SetShadow(ctx, "bolts", candidate, registry.Change{}); err != nil {
		t.Fatal(err)
	}
	if err := r.Registry.Pin(ctx, pinned, "test"); err != nil {
		t.Fatal(err)
	}
	// An upload that never ended, a checkpoint of no job, and fresh evidence.
	if _, err := r.JS.Publish(ctx, "$O.NM_ARTIFACTS.C.unfinished", make([]byte, 1000)); err != nil {
		t.Fatal(err)
	}
	if _, err := r.JS.Publish(ctx, "$O.NM_IMAGES.C.unfinished", make([]byte, 1000)); err != nil {
		t.Fatal(err)
	}
	store, err := r.JS.ObjectStore(ctx, r.Names.ArtifactsBucket())
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"checkpoints/gone/1", "evidence/fresh", "frames/fresh"} {
		if _, err := store.PutBytes(ctx, name, []byte(name)); err != nil {
			t.Fatal(err)
		}
	}
	if got, err := r.In.Collect(ctx, registry.CollectOptions{}); err != nil || len(got.Releases)+got.Files+got.Chunks+got.Checkpoints > 0 {
		t.Errorf("what is young was collected: %+v, %v", got, err)
	}
	dry, err := r.In.Collect(ctx, registry.CollectOptions{Keep: 3, Grace: -1, DryRun: true})
	if err != nil {
		t.Fatal(err)
	}
	got, err := r.In.Collect(ctx, registry.CollectOptions{Keep: 3, Grace: -1})
	if err != nil || len(got.Releases) != 7 || got.Files != 7 || got.Chunks != 2 || got.Kept != 6 || got.Evidence != 0 || got.Checkpoints != 1 || got.Frames != 0 {
		t.Errorf("%+v, %v", got, err)
	}
	if fmt.Sprint(dry) != fmt.Sprint(got) {
		t.Errorf("the dry run said %+v, done was %+v", dry, got)
	}
	for _, d := range append(releases[6:], candidate, pinned) {
		if _, err := r.Registry.Get(ctx, d); err != nil {
			t.Errorf("release %s: %v", d, err)
		}
	}
	for _, d := range append(releases[:6], orphan) {
		if _, err := r.Registry.Show(ctx, d); !errors.Is(err, registry.ErrNoRelease) {
			t.Errorf("release %s: %v", d, err)
		}
	}
	if _, err := store.GetInfo(ctx, "evidence/fresh"); err != nil {
		t.Error(err)
	}
	if again, err := r.In.Collect(ctx, registry.CollectOptions{Keep: 3, Grace: -1}); err != nil || len(again.Releases)+again.Files+again.Chunks > 0 {
		t.Errorf("collecting again: %+v, %v", again, err)
	}
}
