package stream_test

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/nearmiss/nearmiss/internal/eventually"
	"github.com/nearmiss/nearmiss/stream"
	"github.com/nearmiss/nearmiss/stream/internal/streamtest"
	"github.com/nearmiss/nearmiss/stream/registry"
	"github.com/nearmiss/nearmiss/stream/trainer"
	"github.com/nearmiss/nearmiss/stream/worker"
)

// forgeObject writes an object's metadata as anybody could who may publish.
func forgeObject(r *streamtest.Rig, bucket, name string, change func(*jetstream.ObjectInfo)) {
	r.T.Helper()
	store, err := r.JS.ObjectStore(r.T.Context(), bucket)
	if err != nil {
		r.T.Fatal(err)
	}
	info, err := store.PutBytes(r.T.Context(), name, streamtest.Image(0.95))
	if err != nil {
		r.T.Fatal(err)
	}
	change(info)
	m := nats.NewMsg("$O." + bucket + ".M." + base64.URLEncoding.EncodeToString([]byte(name)))
	m.Header.Set("Nats-Rollup", "sub")
	m.Data, _ = json.Marshal(info)
	if _, err := r.JS.PublishMsg(r.T.Context(), m); err != nil {
		r.T.Fatal(err)
	}
}

// TestFeedbackOnForgedEvidence: an object whose metadata say 2^62 bytes, an event
// that names it, and feedback on that event neither end the trainer nor come
// again for ever.
func TestFeedbackOnForgedEvidence(t *testing.T) {
	r := streamtest.New(t, stream.Topology{})
	r.Detector(stream.Detector{Name: "bolts"})
	r.Release("bolts", streamtest.Fake{Name: "one"})
	for i, change := range []func(*jetstream.ObjectInfo){
		func(i *jetstream.ObjectInfo) { i.Size = 1 << 62 },
		func(i *jetstream.ObjectInfo) { i.Size = 1<<64 - 1 },
		func(i *jetstream.ObjectInfo) { i.Size = 200 << 20 }, // would be allowed, and is not there
		func(i *jetstream.ObjectInfo) { i.Chunks = 1 << 31 },
		func(i *jetstream.ObjectInfo) { i.NUID = "*" },
		func(i *jetstream.ObjectInfo) {
			i.Opts = &jetstream.ObjectMetaOptions{Link: &jetstream.ObjectLink{Bucket: r.Names.ImagesBucket(), Name: "x"}}
		},
	} {
		name := fmt.Sprintf("%sforged%d", stream.EvidenceObjects, i)
		forgeObject(r, r.Names.ImagesBucket(), name, change)
		one := 1.0
		yes := true
		e := stream.Event{
			ID: fmt.Sprint("forged", i), Kind: stream.KindAnomaly, Detector: "bolts", Camera: "left", FrameID: fmt.Sprint(i), ScoredAt: time.Now(),
			Score: &one, Threshold: &one, PValue: &one, Anomalous: &yes, Evidence: r.Names.ImagesBucket() + "/" + name,
		}
		m, err := e.Message(r.Names)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := r.JS.PublishMsg(t.Context(), m); err != nil {
			t.Fatal(err)
		}
		if err := r.In.SendFeedback(t.Context(), stream.Feedback{Detector: "bolts", Verdict: stream.FeedbackNormal, Event: e.ID}); err != nil {
			t.Fatal(err)
		}
	}
	for _, junk := range []string{"", "null", "[]", `{"detector":"bolts"}`, `{"detector":"bolts","verdict":"normal","event":"forged0","why":1}`, strings.Repeat("[", 100_000)} {
		r.PublishRaw(r.Names.Feedback("bolts"), junk)
	}
	r.Trainer(trainer.Config{}, streamtest.FakeTrainer{T: t})
	eventually.True(t, "all of it is dead", func() bool {
		dead, err := r.In.DeadLetters(t.Context(), 0)
		return err == nil && len(dead) == 12
	})
	dead, err := r.In.DeadLetters(t.Context(), 0)
	if err != nil {
		t.Fatal(err)
	}
	codes := map[string]int{}
	for _, d := range dead {
		codes[d.Code]++
	}
	if codes[stream.CodeBadRequest] != 6 || codes[stream.CodeTooLarge] != 2 || codes[stream.CodeObjectBad]+codes[stream.CodeObjectMissing] != 4 {
		t.Errorf("codes %v", codes)
	}
	if c, err := r.Client().Status(t.Context()); err != nil || c.DeadLetters != 12 {
		t.Errorf("the trainer does not answer: %+v, %v", c, err)
	}
}

// TestOneBadKeyCostsThatKey: whatever lies in the buckets, lists, status and
// collection go on, and so does serving, also after a restart.
func TestOneBadKeyCostsThatKey(t *testing.T) {
	r := streamtest.New(t, stream.Topology{})
	ctx := t.Context()
	one := r.Release("bolts", streamtest.Fake{Name: "one"})
	r.Detector(stream.Detector{Name: "bolts", Smoothing: 3})
	r.Detector(stream.Detector{Name: "lost"})
	r.Release("secret", streamtest.Fake{Name: "secret"})

	detectors, active, jobs := "$KV."+r.Names.DetectorsBucket()+".", "$KV."+r.Names.ActiveBucket()+".", "$KV."+r.Names.JobsBucket()+"."
	r.PublishRaw(detectors+"bolts", `{"name":"bolts","smoothing":-1}`)
	r.PublishRaw(detectors+"secret", `{"name":"secret","k":"two"}`) // never had another
	r.PublishRaw(detectors+"junk", "{")
	r.PublishRaw(detectors+"a.b", `{"name":"a.b"}`)
	r.PublishRaw(detectors+"ü", "{}")
	r.PublishRaw(detectors+"empty", "{}")
	r.PublishRaw(active+"bolts", `{"stream":"NM_FRAMES","seq":158}`)
	r.PublishRaw(active+"no.name", "{}")
	r.PublishRaw(active+"shadow/bolts", "x")
	r.PublishRaw(jobs+"job1", "x")
	r.PublishRaw(jobs+"job2", "{}")
	forgeObject(r, r.Names.ArtifactsBucket(), "last", func(i *jetstream.ObjectInfo) { i.Size = 1 << 63 })
	r.PublishRaw("$O."+r.Names.ArtifactsBucket()+".M.xxxx", "{")
	r.PublishRaw("$O."+r.Names.EvidenceBucket()+".M.xxxx", "{")
	r.PublishRaw("$O."+r.Names.ImagesBucket()+".M.xxxx", "{")

	store, err := r.In.Detectors(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if all, err := store.List(ctx); err != nil || len(all) != 2 || all[0].Name != "bolts" || all[0].Smoothing != 3 || all[1].Name != "lost" {
		t.Errorf("detectors %+v, %v", all, err)
	}
	if all, err := r.Jobs().List(ctx, ""); err != nil || len(all) != 0 {
		t.Errorf("jobs %+v, %v", all, err)
	}
	st, err := r.In.Status(ctx)
	if err != nil || len(st.Detectors) != 3 || st.Detectors[0].Release != one || len(st.Unreadable) != 11 {
		t.Errorf("status %+v, %v", st, err)
	}
	if _, err := r.In.ListEvidence(ctx, ""); err != nil {
		t.Error(err)
	}
	if _, err := r.In.Collect(ctx, registry.CollectOptions{Grace: -1}); err != nil {
		t.Error(err)
	}
	if p, err := r.Registry.Active(ctx, "bolts"); err != nil || p.Release != one {
		t.Errorf("active %+v, %v", p, err)
	}

	w, stop := r.Worker(worker.Config{}, streamtest.LoadFake)
	eventually.True(t, "what can be served is", func() bool { return len(w.Status().Serving) == 2 })
	r.Detector(stream.Detector{Name: "new"})
	r.Release("new", streamtest.Fake{Name: "new"})
	eventually.True(t, "a new detector is served", func() bool { return len(w.Status().Serving) == 3 })
	r.Publish(stream.Frame{Detector: "secret", Camera: "left", ID: "f", Image: streamtest.Image(0.95)})
	eventually.True(t, "a frame is judged", func() bool { return len(r.Events()) == 1 })
	if e := r.Events()[0]; e.Evidence != "" {
		t.Error("an image is kept although nobody knows whether it may be")
	}
	eventually.True(t, "all that concerns the worker is told", func() bool { return len(r.EventsOf(stream.KindStore)) == 9 })
	stop()
	w, stop = r.Worker(worker.Config{}, streamtest.LoadFake)
	eventually.True(t, "it serves after a restart", func() bool { return len(w.Status().Serving) == 3 })
	r.Trainer(trainer.Config{}, streamtest.FakeTrainer{T: t})
	eventually.True(t, "the jobs' records are told of", func() bool { return len(r.EventsOf(stream.KindStore)) == 11 })
	stop()

	t.Run("it is mended by the usual commands", func(t *testing.T) {
		if d, err := store.Set(ctx, "bolts", func(d *stream.Detector) error { d.K = 3; return nil }); err != nil || d.Smoothing != 3 || d.K != 3 {
			t.Errorf("%+v, %v", d, err)
		}
		two := r.Put("bolts", streamtest.Fake{Name: "two"})
		if p, err := r.Registry.Promote(ctx, "bolts", two, registry.Change{Expect: one}); err != nil || p.Release != two {
			t.Errorf("%+v, %v", p, err)
		}
		if p, err := r.Registry.Rollback(ctx, "bolts", registry.Change{}); err != nil || p.Release != one {
			t.Errorf("%+v, %v", p, err)
		}
		for _, key := range []string{"junk", "a.b", "ü", "empty", "secret"} {
			if err := r.In.DeleteDetector(ctx, key, false); err != nil {
				t.Errorf("delete %s: %v", key, err)
			}
		}
		if err := r.In.DeleteDetector(ctx, "no.where", false); !errors.Is(err, stream.ErrBadName) {
			t.Error(err)
		}
		r.Detector(stream.Detector{Name: "secret"})
		// A request takes the place of a record that cannot be read.
		if j, err := r.Jobs().Request(ctx, stream.TrainRequest{Job: "job2", Detector: "bolts"}); err != nil || j.Detector != "bolts" {
			t.Errorf("%+v, %v", j, err)
		}
		if st, err := r.In.Status(ctx); err != nil || len(st.Unreadable) != 3 {
			t.Errorf("%+v, %v", st.Unreadable, err)
		}
	})
}

// TestARefusedReleaseAndARestart: the release before serves.
func TestARefusedReleaseAndARestart(t *testing.T) {
	r := streamtest.New(t, stream.Topology{})
	r.Detector(stream.Detector{Name: "bolts"})
	one := r.Release("bolts", streamtest.Fake{Name: "one"})
	r.Release("bolts", streamtest.Fake{Name: "two", Broken: "no session"})
	three := r.Release("bolts", streamtest.Fake{Name: "three", Broken: "another version"})
	w, stop := r.Worker(worker.Config{}, streamtest.LoadFake)
	eventually.True(t, "the release before those serves", func() bool { return w.Status().Serving["bolts"] == one })
	if st := w.Status(); st.Refused["bolts"] != three {
		t.Errorf("refused: %+v", st.Refused)
	}
	r.Publish(stream.Frame{Detector: "bolts", Camera: "left", ID: "f", Image: streamtest.Image(0.95)})
	eventually.True(t, "a frame is judged", func() bool { return len(r.Events()) == 1 })
	if e := r.Events()[0]; e.Release != one {
		t.Errorf("judged by %s", e.Release)
	}
	four := r.Release("bolts", streamtest.Fake{Name: "four"})
	eventually.True(t, "a good one takes over", func() bool { return w.Status().Serving["bolts"] == four })
	stop()

	t.Run("nothing serves where there is nothing before", func(t *testing.T) {
		r.Release("nuts", streamtest.Fake{Name: "only", Broken: "no session"})
		w, _ := r.Worker(worker.Config{Detectors: []string{"nuts"}}, streamtest.LoadFake)
		eventually.True(t, "it is refused", func() bool { return len(w.Status().Refused) == 1 })
		good := r.Release("nuts", streamtest.Fake{Name: "good"})
		eventually.True(t, "a good one serves", func() bool { return w.Status().Serving["nuts"] == good })
	})
}

// FuzzRequests: whatever is on the subjects of requests, it is a request that can
// be published again or an error; nothing panics.
func FuzzRequests(f *testing.F) {
	for _, s := range []string{
		`{"job":"j","detector":"bolts","promote":true,"extend":[1,2],"at":"2026-01-02T03:04:05Z"}`,
		`{"detector":"bolts","verdict":"normal","event":"e","at":"2026-01-02T03:04:05Z"}`,
		`null`, `[]`, `{"extend":[-1]}`, `{"extend":[1e30]}`, `{"job":"j"}{}`, "\xff", `{"detector":"a b"}`,
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		if req, err := stream.ParseTrainRequest(b); err == nil {
			again, err := json.Marshal(req)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := stream.ParseTrainRequest(again); err != nil {
				t.Fatalf("%q became %q: %v", b, again, err)
			}
		}
		if fb, err := stream.ParseFeedback(b); err == nil {
			again, err := json.Marshal(fb)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := stream.ParseFeedback(again); err != nil {
				t.Fatalf("%q became %q: %v", b, again, err)
			}
		}
	})
}

// TestNormalsWithoutAnImage are left out of training and export, reported, and
// can be removed.
func TestNormalsWithoutAnImage(t *testing.T) {
	r := streamtest.New(t, stream.Topology{})
	ctx := t.Context()
	r.Detector(stream.Detector{Name: "bolts", RetrainAfter: 4})
	s := r.In.Normals()
	add := func(i int) uint64 {
		t.Helper()
		seq, err := s.Add(ctx, stream.Normal{Detector: "bolts", ID: fmt.Sprint(i), Image: streamtest.Image(float64(i) / 100)})
		if err != nil {
			t.Fatal(err)
		}
		return seq
	}
	add(1)
	forge := func(object string) {
		t.Helper()
		m := nats.NewMsg(r.Names.Normals("bolts"))
		m.Header.Set(stream.HeaderObject, object)
		if _, err := r.JS.PublishMsg(ctx, m); err != nil {
			t.Fatal(err)
		}
	}
	forge("normals/bolts/nowhere")
	if _, err := s.Add(ctx, stream.Normal{Detector: "nuts", Image: make([]byte, 9<<20)}); err != nil {
		t.Fatal(err)
	}
	if store, err := r.JS.ObjectStore(ctx, r.Names.ImagesBucket()); err != nil {
		t.Fatal(err)
	} else if all, err := store.List(ctx); err != nil || len(all) != 1 {
		t.Fatalf("%d objects, %v", len(all), err)
	} else {
		forge(all[0].Name) // another detector's
	}
	forgeObject(r, r.Names.ImagesBucket(), "normals/bolts/huge", func(i *jetstream.ObjectInfo) { i.Size = 1 << 62 })
	forge("normals/bolts/huge")
	forgeObject(r, r.Names.ImagesBucket(), "normals/bolts/cut", func(i *jetstream.ObjectInfo) { i.NUID = "gone" })
	forge("normals/bolts/cut")
	r.PublishRaw(r.Names.Normals("bolts"), "")
	last := add(2)

	all, err := s.List(ctx, "bolts", false)
	if err != nil || len(all) != 7 {
		t.Fatalf("%d normals, %v", len(all), err)
	}
	var bad []uint64
	for _, n := range all {
		if n.Problem != "" {
			bad = append(bad, n.Sequence)
		}
	}
	if len(bad) != 5 || all[0].Problem != "" || all[6].Problem != "" {
		t.Errorf("with a problem: %v of %+v", bad, all)
	}
	r.Trainer(trainer.Config{Schedule: 20 * time.Millisecond}, streamtest.FakeTrainer{T: t})
	j, err := r.Jobs().Request(ctx, stream.TrainRequest{Job: "train", Detector: "bolts", Promote: true})
	if err != nil {
		t.Fatal(err)
	}
	if j = r.Wait(j.Job); j.State != stream.JobDone || j.Normals != 2 || j.Skipped != 5 || !j.Promoted {
		t.Errorf("job %+v", j)
	}
	told := r.EventsOf(stream.KindStore)
	if len(told) != 1 || told[0].Detector != "bolts" || told[0].Code != stream.StoreMissing || !strings.Contains(told[0].Reason, fmt.Sprintf("nearmiss normals remove bolts %d", bad[0])) {
		t.Errorf("told %+v", told)
	}
	if j, err = r.Jobs().Request(ctx, stream.TrainRequest{Job: "extend", Detector: "bolts", Extend: []uint64{bad[0], last}, Promote: true}); err != nil {
		t.Fatal(err)
	}
	if j = r.Wait(j.Job); j.State != stream.JobDone || j.Normals != 1 || j.Skipped != 1 {
		t.Errorf("job %+v", j)
	}
	for _, seq := range bad {
		if _, err := s.Get(ctx, "bolts", seq); err == nil {
			t.Errorf("number %d has an image", seq)
		}
		if err := s.Remove(ctx, "bolts", seq); err != nil {
			t.Errorf("remove %d: %v", seq, err)
		}
	}
	seen, err := s.Replay(ctx, "bolts", false, true, func(stream.Normal) error { return nil })
	if err != nil || len(seen.Skipped) != 0 || seen.Digest == "" {
		t.Errorf("%+v, %v", seen, err)
	}
	if _, err := s.Replay(ctx, "nuts", false, true, func(n stream.Normal) error {
		if len(n.Image) != 9<<20 {
			t.Errorf("another detector's normal has %d bytes", len(n.Image))
		}
		return nil
	}); err != nil {
		t.Error(err)
	}
	if jobs, err := r.Jobs().List(ctx, "bolts"); err != nil || len(jobs) != 2 {
		t.Errorf("what cannot be read counts as new: %d jobs, %v", len(jobs), err)
	}
}

// TestEventsCarryNoPassword of a camera, whoever wrote it there.
func TestEventsCarryNoPassword(t *testing.T) {
	r := streamtest.New(t, stream.Topology{})
	r.Release("bolts", streamtest.Fake{Name: "one"})
	got := r.Scores()
	r.Worker(worker.Config{}, streamtest.LoadFake)
	for id, data := range map[string][]byte{"alarm": streamtest.Image(0.95), "rejected": []byte("no image")} {
		m := nats.NewMsg(r.Names.Frames("bolts", "left"))
		m.Header.Set(stream.HeaderFrameID, id)
		m.Header.Set(stream.HeaderSource, "http://root:s3#cret@10.0.0.7/a.jpg?password=s3cret")
		m.Data = data
		if _, err := r.JS.PublishMsg(t.Context(), m); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := r.In.Normals().Add(t.Context(), stream.Normal{Detector: "bolts", Source: "rtsp://u:s3cret@h", Image: streamtest.Image(0.1)}); err != nil {
		t.Fatal(err)
	}
	eventually.True(t, "both are announced", func() bool { return len(r.Events()) == 2 && len(got.ByFrame()["alarm"]) == 1 })
	for _, s := range []string{r.Names.EventsStream(), r.Names.DeadStream(), r.Names.NormalsStream()} {
		for _, m := range r.Stored(s) {
			if all := fmt.Sprint(m.Header) + string(m.Data); strings.Contains(all, "cret") {
				t.Errorf("%s: %s", m.Subject, all)
			}
		}
	}
	for _, e := range append(r.Events(), got.ByFrame()["alarm"]...) {
		if e.Source != "http://root:xxxxx@10.0.0.7/a.jpg?password=xxxxx" {
			t.Errorf("source %q", e.Source)
		}
	}
}

// TestWhoeverSaysThatTheDiskIsFull says it in what a terminal shows as it is.
func TestWhoeverSaysThatTheDiskIsFull(t *testing.T) {
	r := streamtest.New(t, stream.Topology{})
	sub, err := r.NC.Subscribe(r.Names.Steward(), func(m *nats.Msg) {
		_ = m.Respond([]byte("\x1b[2Jit is full\n" + strings.Repeat("é", 400)))
	})
	if err == nil {
		err = r.NC.Flush()
	}
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = sub.Unsubscribe() }()
	var full string
	eventually.True(t, "whoever says it answers in time", func() bool {
		st, err := r.In.Status(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		full = st.Full
		return full != ""
	})
	if want := " [2Jit is full " + strings.Repeat("é", 192); full != want {
		t.Errorf("%q", full)
	}
}
