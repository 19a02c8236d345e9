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

	"github.com/nearmiss/nearmiss/stream"
	"github.com/nearmiss/nearmiss/stream/registry"
)

// forgeObject writes an object's metadata as anybody could who may publish.
func (r *rig) forgeObject(bucket, name string, change func(*jetstream.ObjectInfo)) {
	r.t.Helper()
	store, err := r.js.ObjectStore(r.t.Context(), bucket)
	if err != nil {
		r.t.Fatal(err)
	}
	info, err := store.PutBytes(r.t.Context(), name, image(0.95))
	if err != nil {
		r.t.Fatal(err)
	}
	change(info)
	m := nats.NewMsg("$O." + bucket + ".M." + base64.URLEncoding.EncodeToString([]byte(name)))
	m.Header.Set("Nats-Rollup", "sub")
	m.Data, _ = json.Marshal(info)
	if _, err := r.js.PublishMsg(r.t.Context(), m); err != nil {
		r.t.Fatal(err)
	}
}

// raw publishes bytes on a subject of a stream.
func (r *rig) raw(subject, data string) {
	r.t.Helper()
	if _, err := r.js.Publish(r.t.Context(), subject, []byte(data)); err != nil {
		r.t.Fatal(err)
	}
}

// TestFeedbackOnForgedEvidence: an object whose metadata say 2^62 bytes, an event
// that names it, and feedback on that event neither end the trainer nor come
// again for ever.
func TestFeedbackOnForgedEvidence(t *testing.T) {
	r := newRig(t, stream.Topology{})
	r.detector(stream.Detector{Name: "bolts"})
	r.release("bolts", fake{Name: "one"})
	for i, change := range []func(*jetstream.ObjectInfo){
		func(i *jetstream.ObjectInfo) { i.Size = 1 << 62 },
		func(i *jetstream.ObjectInfo) { i.Size = 1<<64 - 1 },
		func(i *jetstream.ObjectInfo) { i.Size = 200 << 20 }, // would be allowed, and is not there
		func(i *jetstream.ObjectInfo) { i.Chunks = 1 << 31 },
		func(i *jetstream.ObjectInfo) { i.NUID = "*" },
		func(i *jetstream.ObjectInfo) {
			i.Opts = &jetstream.ObjectMetaOptions{Link: &jetstream.ObjectLink{Bucket: r.names.ImagesBucket(), Name: "x"}}
		},
	} {
		name := fmt.Sprintf("%sforged%d", stream.EvidenceObjects, i)
		r.forgeObject(r.names.ImagesBucket(), name, change)
		one := 1.0
		yes := true
		e := stream.Event{
			ID: fmt.Sprint("forged", i), Kind: stream.KindAnomaly, Detector: "bolts", Camera: "left", FrameID: fmt.Sprint(i), ScoredAt: time.Now(),
			Score: &one, Threshold: &one, PValue: &one, Anomalous: &yes, Evidence: r.names.ImagesBucket() + "/" + name,
		}
		m, err := e.Message(r.names)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := r.js.PublishMsg(t.Context(), m); err != nil {
			t.Fatal(err)
		}
		if err := r.in.SendFeedback(t.Context(), stream.Feedback{Detector: "bolts", Verdict: stream.FeedbackNormal, Event: e.ID}); err != nil {
			t.Fatal(err)
		}
	}
	for _, junk := range []string{"", "null", "[]", `{"detector":"bolts"}`, `{"detector":"bolts","verdict":"normal","event":"forged0","why":1}`, strings.Repeat("[", 100_000)} {
		r.raw(r.names.Feedback("bolts"), junk)
	}
	r.trainer(stream.TrainerConfig{}, fakeTrainer{t: t})
	eventually(t, "all of it is dead", func() bool {
		dead, err := r.in.DeadLetters(t.Context(), 0)
		return err == nil && len(dead) == 12
	})
	dead, err := r.in.DeadLetters(t.Context(), 0)
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
	if c, err := r.client().Status(t.Context()); err != nil || c.DeadLetters != 12 {
		t.Errorf("the trainer does not answer: %+v, %v", c, err)
	}
}

// TestOneBadKeyCostsThatKey: whatever lies in the buckets, lists, status and
// collection go on, and so does serving, also after a restart.
func TestOneBadKeyCostsThatKey(t *testing.T) {
	r := newRig(t, stream.Topology{})
	ctx := t.Context()
	one := r.release("bolts", fake{Name: "one"})
	r.detector(stream.Detector{Name: "bolts", Smoothing: 3})
	r.detector(stream.Detector{Name: "lost"})
	r.release("secret", fake{Name: "secret"})

	detectors, active, jobs := "$KV."+r.names.DetectorsBucket()+".", "$KV."+r.names.ActiveBucket()+".", "$KV."+r.names.JobsBucket()+"."
	r.raw(detectors+"bolts", `{"name":"bolts","smoothing":-1}`)
	r.raw(detectors+"secret", `{"name":"secret","k":"two"}`) // never had another
	r.raw(detectors+"junk", "{")
	r.raw(detectors+"a.b", `{"name":"a.b"}`)
	r.raw(detectors+"ü", "{}")
	r.raw(detectors+"empty", "{}")
	r.raw(active+"bolts", `{"stream":"NM_FRAMES","seq":158}`)
	r.raw(active+"no.name", "{}")
	r.raw(active+"shadow/bolts", "x")
	r.raw(jobs+"job1", "x")
	r.raw(jobs+"job2", "{}")
	r.forgeObject(r.names.ArtifactsBucket(), "last", func(i *jetstream.ObjectInfo) { i.Size = 1 << 63 })
	r.raw("$O."+r.names.ArtifactsBucket()+".M.xxxx", "{")
	r.raw("$O."+r.names.EvidenceBucket()+".M.xxxx", "{")
	r.raw("$O."+r.names.ImagesBucket()+".M.xxxx", "{")

	store, err := r.in.Detectors(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if all, err := store.List(ctx); err != nil || len(all) != 2 || all[0].Name != "bolts" || all[0].Smoothing != 3 || all[1].Name != "lost" {
		t.Errorf("detectors %+v, %v", all, err)
	}
	if all, err := r.jobs().List(ctx, ""); err != nil || len(all) != 0 {
		t.Errorf("jobs %+v, %v", all, err)
	}
	st, err := r.in.Status(ctx)
	if err != nil || len(st.Detectors) != 3 || st.Detectors[0].Release != one || len(st.Unreadable) != 11 {
		t.Errorf("status %+v, %v", st, err)
	}
	if _, err := r.in.ListEvidence(ctx, ""); err != nil {
		t.Error(err)
	}
	if _, err := r.in.Collect(ctx, registry.CollectOptions{Grace: -1}); err != nil {
		t.Error(err)
	}
	if p, err := r.reg.Active(ctx, "bolts"); err != nil || p.Release != one {
		t.Errorf("active %+v, %v", p, err)
	}

	w, stop := r.worker(stream.WorkerConfig{}, loadFake)
	eventually(t, "what can be served is", func() bool { return len(w.Status().Serving) == 2 })
	r.detector(stream.Detector{Name: "new"})
	r.release("new", fake{Name: "new"})
	eventually(t, "a new detector is served", func() bool { return len(w.Status().Serving) == 3 })
	r.publish(stream.Frame{Detector: "secret", Camera: "left", ID: "f", Image: image(0.95)})
	eventually(t, "a frame is judged", func() bool { return len(r.events()) == 1 })
	if e := r.events()[0]; e.Evidence != "" {
		t.Error("an image is kept although nobody knows whether it may be")
	}
	eventually(t, "all that concerns the worker is told", func() bool { return len(r.eventsOf(stream.KindStore)) == 9 })
	stop()
	w, stop = r.worker(stream.WorkerConfig{}, loadFake)
	eventually(t, "it serves after a restart", func() bool { return len(w.Status().Serving) == 3 })
	r.trainer(stream.TrainerConfig{}, fakeTrainer{t: t})
	eventually(t, "the jobs' records are told of", func() bool { return len(r.eventsOf(stream.KindStore)) == 11 })
	stop()

	t.Run("it is mended by the usual commands", func(t *testing.T) {
		if d, err := store.Set(ctx, "bolts", func(d *stream.Detector) error { d.K = 3; return nil }); err != nil || d.Smoothing != 3 || d.K != 3 {
			t.Errorf("%+v, %v", d, err)
		}
		two := r.put("bolts", fake{Name: "two"})
		if p, err := r.reg.Promote(ctx, "bolts", two, registry.Change{Expect: one}); err != nil || p.Release != two {
			t.Errorf("%+v, %v", p, err)
		}
		if p, err := r.reg.Rollback(ctx, "bolts", registry.Change{}); err != nil || p.Release != one {
			t.Errorf("%+v, %v", p, err)
		}
		for _, key := range []string{"junk", "a.b", "ü", "empty", "secret"} {
			if err := r.in.DeleteDetector(ctx, key, false); err != nil {
				t.Errorf("delete %s: %v", key, err)
			}
		}
		if err := r.in.DeleteDetector(ctx, "no.where", false); !errors.Is(err, stream.ErrBadName) {
			t.Error(err)
		}
		r.detector(stream.Detector{Name: "secret"})
		// A request takes the place of a record that cannot be read.
		if j, err := r.jobs().Request(ctx, stream.TrainRequest{Job: "job2", Detector: "bolts"}); err != nil || j.Detector != "bolts" {
			t.Errorf("%+v, %v", j, err)
		}
		if st, err := r.in.Status(ctx); err != nil || len(st.Unreadable) != 3 {
			t.Errorf("%+v, %v", st.Unreadable, err)
		}
	})
}

// TestARefusedReleaseAndARestart: the release before serves.
func TestARefusedReleaseAndARestart(t *testing.T) {
	r := newRig(t, stream.Topology{})
	r.detector(stream.Detector{Name: "bolts"})
	one := r.release("bolts", fake{Name: "one"})
	r.release("bolts", fake{Name: "two", Broken: "no session"})
	three := r.release("bolts", fake{Name: "three", Broken: "another version"})
	w, stop := r.worker(stream.WorkerConfig{}, loadFake)
	eventually(t, "the release before those serves", func() bool { return w.Status().Serving["bolts"] == one })
	if st := w.Status(); st.Refused["bolts"] != three {
		t.Errorf("refused: %+v", st.Refused)
	}
	r.publish(stream.Frame{Detector: "bolts", Camera: "left", ID: "f", Image: image(0.95)})
	eventually(t, "a frame is judged", func() bool { return len(r.events()) == 1 })
	if e := r.events()[0]; e.Release != one {
		t.Errorf("judged by %s", e.Release)
	}
	four := r.release("bolts", fake{Name: "four"})
	eventually(t, "a good one takes over", func() bool { return w.Status().Serving["bolts"] == four })
	stop()

	t.Run("nothing serves where there is nothing before", func(t *testing.T) {
		r.release("nuts", fake{Name: "only", Broken: "no session"})
		w, _ := r.worker(stream.WorkerConfig{Detectors: []string{"nuts"}}, loadFake)
		eventually(t, "it is refused", func() bool { return len(w.Status().Refused) == 1 })
		good := r.release("nuts", fake{Name: "good"})
		eventually(t, "a good one serves", func() bool { return w.Status().Serving["nuts"] == good })
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
	r := newRig(t, stream.Topology{})
	ctx := t.Context()
	r.detector(stream.Detector{Name: "bolts", RetrainAfter: 4})
	s := r.in.Normals()
	add := func(i int) uint64 {
		t.Helper()
		seq, err := s.Add(ctx, stream.Normal{Detector: "bolts", ID: fmt.Sprint(i), Image: image(float64(i) / 100)})
		if err != nil {
			t.Fatal(err)
		}
		return seq
	}
	add(1)
	forge := func(object string) {
		t.Helper()
		m := nats.NewMsg(r.names.Normals("bolts"))
		m.Header.Set(stream.HeaderObject, object)
		if _, err := r.js.PublishMsg(ctx, m); err != nil {
			t.Fatal(err)
		}
	}
	forge("normals/bolts/nowhere")
	if _, err := s.Add(ctx, stream.Normal{Detector: "nuts", Image: make([]byte, 9<<20)}); err != nil {
		t.Fatal(err)
	}
	if store, err := r.js.ObjectStore(ctx, r.names.ImagesBucket()); err != nil {
		t.Fatal(err)
	} else if all, err := store.List(ctx); err != nil || len(all) != 1 {
		t.Fatalf("%d objects, %v", len(all), err)
	} else {
		forge(all[0].Name) // another detector's
	}
	r.forgeObject(r.names.ImagesBucket(), "normals/bolts/huge", func(i *jetstream.ObjectInfo) { i.Size = 1 << 62 })
	forge("normals/bolts/huge")
	r.forgeObject(r.names.ImagesBucket(), "normals/bolts/cut", func(i *jetstream.ObjectInfo) { i.NUID = "gone" })
	forge("normals/bolts/cut")
	r.raw(r.names.Normals("bolts"), "")
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
	r.trainer(stream.TrainerConfig{Schedule: 20 * time.Millisecond}, fakeTrainer{t: t})
	j, err := r.jobs().Request(ctx, stream.TrainRequest{Job: "train", Detector: "bolts", Promote: true})
	if err != nil {
		t.Fatal(err)
	}
	if j = r.wait(j.Job); j.State != stream.JobDone || j.Normals != 2 || j.Skipped != 5 || !j.Promoted {
		t.Errorf("job %+v", j)
	}
	told := r.eventsOf(stream.KindStore)
	if len(told) != 1 || told[0].Detector != "bolts" || told[0].Code != stream.StoreMissing || !strings.Contains(told[0].Reason, fmt.Sprintf("nearmiss normals remove bolts %d", bad[0])) {
		t.Errorf("told %+v", told)
	}
	if j, err = r.jobs().Request(ctx, stream.TrainRequest{Job: "extend", Detector: "bolts", Extend: []uint64{bad[0], last}, Promote: true}); err != nil {
		t.Fatal(err)
	}
	if j = r.wait(j.Job); j.State != stream.JobDone || j.Normals != 1 || j.Skipped != 1 {
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
	if jobs, err := r.jobs().List(ctx, "bolts"); err != nil || len(jobs) != 2 {
		t.Errorf("what cannot be read counts as new: %d jobs, %v", len(jobs), err)
	}
}

// TestEventsCarryNoPassword of a camera, whoever wrote it there.
func TestEventsCarryNoPassword(t *testing.T) {
	r := newRig(t, stream.Topology{})
	r.release("bolts", fake{Name: "one"})
	got := r.scores()
	r.worker(stream.WorkerConfig{}, loadFake)
	for id, data := range map[string][]byte{"alarm": image(0.95), "rejected": []byte("no image")} {
		m := nats.NewMsg(r.names.Frames("bolts", "left"))
		m.Header.Set(stream.HeaderFrameID, id)
		m.Header.Set(stream.HeaderSource, "http://root:s3#cret@10.0.0.7/a.jpg?password=s3cret")
		m.Data = data
		if _, err := r.js.PublishMsg(t.Context(), m); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := r.in.Normals().Add(t.Context(), stream.Normal{Detector: "bolts", Source: "rtsp://u:s3cret@h", Image: image(0.1)}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "both are announced", func() bool { return len(r.events()) == 2 && len(got.byFrame()["alarm"]) == 1 })
	for _, s := range []string{r.names.EventsStream(), r.names.DeadStream(), r.names.NormalsStream()} {
		for _, m := range r.stored(s) {
			if all := fmt.Sprint(m.Header) + string(m.Data); strings.Contains(all, "cret") {
				t.Errorf("%s: %s", m.Subject, all)
			}
		}
	}
	for _, e := range append(r.events(), got.byFrame()["alarm"]...) {
		if e.Source != "http://root:xxxxx@10.0.0.7/a.jpg?password=xxxxx" {
			t.Errorf("source %q", e.Source)
		}
	}
}
