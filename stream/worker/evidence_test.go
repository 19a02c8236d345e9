package worker_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/nearmiss/nearmiss/internal/eventually"
	"github.com/nearmiss/nearmiss/stream"
	"github.com/nearmiss/nearmiss/stream/internal/streamtest"
	"github.com/nearmiss/nearmiss/stream/registry"
	"github.com/nearmiss/nearmiss/stream/worker"
)

// artist is a fake that says where an anomaly is, and draws it.
type artist struct {
	streamtest.Fake
	size  int                         // of a picture in bytes
	enter func(context.Context) error // called before each drawing
}

func (a artist) Score(ctx context.Context, images [][]byte) ([]worker.Verdict, error) {
	all, err := a.Fake.Score(ctx, images)
	for i := range all {
		if v := &all[i]; v.Anomalous {
			v.Place = scene{a}
		}
	}
	return all, err
}

// scene is what an artist sees of an anomaly.
type scene struct{ artist }

func (scene) Regions() []stream.Spot {
	return []stream.Spot{{X: 1, Y: 2, Width: 3, Height: 4, Area: 7, Peak: 0.75}, {X: 6, Width: 1, Height: 1, Area: 1, Peak: 0.25, Faint: true}}
}

func (s scene) Draw(ctx context.Context, image []byte) ([]stream.Picture, error) {
	if s.enter != nil {
		if err := s.enter(ctx); err != nil {
			return nil, err
		}
	}
	return []stream.Picture{
		{Name: "overlay.jpg", About: "the frame", Data: append([]byte("drawn "), image...)},
		{Name: "normal-1.jpg", About: "a normal", Data: make([]byte, s.size)},
	}, nil
}

func serveArtist(a artist) worker.Loader {
	return func(context.Context, string) (worker.Scorer, error) { return a, nil }
}

func TestAnAnomalysEventNamesItsRegionsAndPictures(t *testing.T) {
	r := streamtest.New(t, stream.Topology{})
	r.Release("bolts", streamtest.Fake{Name: "one"})
	got := r.Scores()
	w, stop := r.Worker(worker.Config{}, serveArtist(artist{}))
	for i := range 20 {
		r.Publish(stream.Frame{Detector: "bolts", Camera: "left", ID: fmt.Sprint("f", i), Image: streamtest.Image(float64(i) / 20)})
	}
	eventually.True(t, "all frames are scored", func() bool { return w.Stats().Scored == 20 })
	stop()
	events := r.Events()
	if len(events) != 1 || w.Stats().Pictured != 1 || w.Stats().Unpictured != 0 {
		t.Fatalf("%d events, %+v", len(events), w.Stats())
	}
	e := events[0]
	if len(e.Regions) != 2 || e.Regions[0] != (stream.Spot{X: 1, Y: 2, Width: 3, Height: 4, Area: 7, Peak: 0.75}) || e.NoPictures != "" {
		t.Errorf("%+v", e)
	}
	ctx := t.Context()
	list, err := r.In.ListEvidence(ctx, "bolts")
	if err != nil || len(list) != 1 {
		t.Fatalf("%+v, %v", list, err)
	}
	if i := list[0]; i.Object != e.Pictures || i.Event != e.ID || i.Camera != "left" || i.FrameID != "f19" || i.Score != *e.Score || !i.CapturedAt.Equal(e.CapturedAt) || i.Bytes == 0 {
		t.Errorf("%+v of %+v", i, e)
	}
	kept, err := r.In.GetEvidence(ctx, "bolts", e.ID)
	if err != nil {
		t.Fatal(err)
	}
	if kept.Event.ID != e.ID || kept.Event.FrameID != "f19" || len(kept.Event.Regions) != 2 || len(kept.Pictures) != 2 || string(kept.Pictures[0].Data[:10]) != "drawn FAKE" {
		t.Errorf("%+v", kept)
	}
	if _, err := r.In.GetEvidence(ctx, "bolts", "none"); !errors.Is(err, stream.ErrNotFound) {
		t.Errorf("evidence of no event: %v", err)
	}
	if err := r.NC.Flush(); err != nil {
		t.Fatal(err)
	}
	for id, s := range got.ByFrame() {
		if len(s) != 1 || s[0].Pictures != "" || s[0].Evidence != "" {
			t.Errorf("frame %s: %+v", id, s)
		}
	}
}

// Normal frames are scored and anomalies beyond the queue announced while a
// picture takes for ever; the workers then end in time, and nothing is lost.
func TestFramesDoNotWaitForPictures(t *testing.T) {
	r := streamtest.New(t, stream.Topology{})
	r.Release("bolts", streamtest.Fake{Name: "one"})
	const anomalies = 8
	drawing, release := make(chan struct{}, anomalies), make(chan struct{})
	w, stop := r.Worker(worker.Config{PictureQueue: 2, BatchSize: 4}, serveArtist(artist{enter: func(ctx context.Context) error {
		drawing <- struct{}{}
		select {
		case <-release:
		case <-ctx.Done():
		}
		return ctx.Err()
	}}))
	for i := range anomalies {
		r.Publish(stream.Frame{Detector: "bolts", Camera: "left", ID: fmt.Sprint("bad", i), Image: streamtest.Image(0.95)})
		if i == 0 {
			<-drawing // and takes no place in the queue
		}
		r.Publish(stream.Frame{Detector: "bolts", Camera: "left", ID: fmt.Sprint("good", i), Image: streamtest.Image(0.1)})
	}
	// One is being drawn and two wait.
	eventually.True(t, "all others are done", func() bool { return w.Stats().Scored == 2*anomalies-3 })
	early := r.Events()
	if len(early) != anomalies-3 {
		t.Errorf("%d events before a picture is drawn", len(early))
	}
	for _, e := range early {
		if e.NoPictures != stream.NoPicturesBusy || e.Pictures != "" || len(e.Regions) != 2 || e.Evidence == "" {
			t.Errorf("%+v", e)
		}
	}
	close(release)
	eventually.True(t, "all are done", func() bool { return w.Stats().Scored == 2*anomalies })
	stop()
	eventually.True(t, "the queue is empty", func() bool { return r.Waiting() == 0 })
	pictured := 0
	for _, e := range r.Events() {
		if e.Pictures != "" {
			pictured++
		}
	}
	if n := len(r.Events()); n != anomalies || pictured != 3 {
		t.Errorf("%d events, %d with pictures", n, pictured)
	}
}

func TestAWorkerThatEndsWhileItDrawsLosesNoEvent(t *testing.T) {
	r := streamtest.New(t, stream.Topology{})
	r.Release("bolts", streamtest.Fake{Name: "one"})
	entered := make(chan struct{}, 8)
	_, stop := r.Worker(worker.Config{Drain: 50 * time.Millisecond, RetryDelay: 10 * time.Millisecond}, serveArtist(artist{enter: func(ctx context.Context) error {
		entered <- struct{}{}
		<-ctx.Done()
		return ctx.Err()
	}}))
	r.Publish(stream.Frame{Detector: "bolts", Camera: "left", ID: "bad", Image: streamtest.Image(0.95)})
	<-entered
	stop()
	if n := len(r.Events()); n != 0 {
		t.Fatalf("%d events of a frame that was given back", n)
	}
	w, _ := r.Worker(worker.Config{}, serveArtist(artist{}))
	eventually.True(t, "the frame is done", func() bool { return w.Stats().Scored == 1 })
	if e := r.Events(); len(e) != 1 || e[0].Pictures == "" {
		t.Errorf("%+v", e)
	}
}

func TestPicturesThatCannotBeDrawnDoNotHoldUpTheEvent(t *testing.T) {
	for name, enter := range map[string]func(context.Context) error{
		"error": func(context.Context) error { return errors.New("no paint") },
		"panic": func(context.Context) error { panic("the brush broke") },
	} {
		t.Run(name, func(t *testing.T) {
			r := streamtest.New(t, stream.Topology{})
			r.Release("bolts", streamtest.Fake{Name: "one"})
			w, _ := r.Worker(worker.Config{}, serveArtist(artist{enter: enter}))
			r.Publish(stream.Frame{Detector: "bolts", Camera: "left", ID: "bad", Image: streamtest.Image(0.95)})
			eventually.True(t, "the frame is done", func() bool { return w.Stats().Scored == 1 })
			if e := r.Events(); len(e) != 1 || e[0].NoPictures != stream.NoPicturesFailed || e[0].Pictures != "" || e[0].Evidence == "" || w.Stats().Unpictured != 1 {
				t.Errorf("%+v", e)
			}
		})
	}
}

func TestADetectorThatKeepsNoImagesStillReportsRegions(t *testing.T) {
	r := streamtest.New(t, stream.Topology{})
	detectors, err := r.In.Detectors(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := detectors.Create(t.Context(), stream.Detector{Name: "bolts", NoEvidence: true}); err != nil {
		t.Fatal(err)
	}
	r.Release("bolts", streamtest.Fake{Name: "one"})
	w, _ := r.Worker(worker.Config{}, serveArtist(artist{enter: func(context.Context) error {
		t.Error("a picture was drawn")
		return nil
	}}))
	r.Publish(stream.Frame{Detector: "bolts", Camera: "left", ID: "bad", Image: streamtest.Image(0.95)})
	eventually.True(t, "the frame is done", func() bool { return w.Stats().Scored == 1 })
	e := r.Events()
	if len(e) != 1 || e[0].NoPictures != stream.NoPicturesPrivacy || e[0].Pictures != "" || e[0].Evidence != "" || len(e[0].Regions) != 2 {
		t.Errorf("%+v", e)
	}
	for _, bucket := range []string{r.Names.EvidenceBucket(), r.Names.ImagesBucket(), r.Names.ArtifactsBucket()} {
		store, err := r.JS.ObjectStore(t.Context(), bucket)
		if err != nil {
			t.Fatal(err)
		}
		infos, err := store.List(t.Context())
		if err != nil && !errors.Is(err, jetstream.ErrNoObjectsFound) {
			t.Fatal(err)
		}
		for _, i := range infos {
			if bucket == r.Names.EvidenceBucket() || strings.HasPrefix(i.Name, stream.EvidenceObjects) {
				t.Errorf("%s/%s is kept", bucket, i.Name)
			}
		}
	}
}

func TestACoolDownDrawsOnlyWhatItAnnounces(t *testing.T) {
	r := streamtest.New(t, stream.Topology{})
	detectors, err := r.In.Detectors(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := detectors.Create(t.Context(), stream.Detector{Name: "bolts", CoolDown: stream.Duration(time.Hour)}); err != nil {
		t.Fatal(err)
	}
	r.Release("bolts", streamtest.Fake{Name: "one"})
	var drawn atomic.Int64
	w, _ := r.Worker(worker.Config{}, serveArtist(artist{enter: func(context.Context) error { drawn.Add(1); return nil }}))
	at := time.Now()
	for i := range 6 {
		r.Publish(stream.Frame{Detector: "bolts", Camera: "left", ID: fmt.Sprint("bad", i), CapturedAt: at, Image: streamtest.Image(0.95)})
	}
	eventually.True(t, "all frames are done", func() bool { return w.Stats().Scored == 6 })
	if e := r.Events(); len(e) != 1 || e[0].Pictures == "" || drawn.Load() != 1 {
		t.Errorf("%d pictures of %+v", drawn.Load(), e)
	}
}

// The oldest pictures go when there are too many bytes of them, and all when
// their time is over; other detectors' stay.
func TestEvidenceKeepsWithinItsLimits(t *testing.T) {
	r := streamtest.New(t, stream.Topology{})
	detectors, err := r.In.Detectors(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range []string{"bolts", "nuts"} {
		if _, err := detectors.Create(t.Context(), stream.Detector{Name: d, EvidenceMiB: 1}); err != nil {
			t.Fatal(err)
		}
		r.Release(d, streamtest.Fake{Name: d})
	}
	w, _ := r.Worker(worker.Config{}, serveArtist(artist{size: 100 << 10}))
	r.Publish(stream.Frame{Detector: "nuts", Camera: "left", ID: "bad", Image: streamtest.Image(0.95)})
	const frames = 25
	for i := range frames {
		r.Publish(stream.Frame{Detector: "bolts", Camera: "left", ID: fmt.Sprint("bad", i), Image: streamtest.Image(0.95)})
		eventually.True(t, "the frame is done", func() bool { return w.Stats().Scored >= uint64(i+1) })
	}
	eventually.True(t, "all frames are done", func() bool { return w.Stats().Scored == frames+1 })
	sum := func() (n int, bytes uint64, last string) {
		all, err := r.In.ListEvidence(t.Context(), "bolts")
		if err != nil {
			t.Fatal(err)
		}
		for _, i := range all {
			n, bytes, last = n+1, bytes+i.Bytes, i.FrameID
		}
		return n, bytes, last
	}
	if n, bytes, last := sum(); bytes > 1<<20 || n < 5 || last != fmt.Sprint("bad", frames-1) {
		t.Errorf("%d pieces of %d bytes are kept, the last is of frame %s", n, bytes, last)
	}
	// No marker of what went stays behind.
	s, err := r.JS.Stream(t.Context(), "OBJ_"+r.Names.EvidenceBucket())
	if err != nil {
		t.Fatal(err)
	}
	info, err := s.Info(t.Context(), jetstream.WithSubjectFilter("$O."+r.Names.EvidenceBucket()+".M.>"))
	if err != nil {
		t.Fatal(err)
	}
	if n, _, _ := sum(); len(info.State.Subjects) != n+1 {
		t.Errorf("%d entries for %d pieces", len(info.State.Subjects), n+1)
	}
	if _, err := detectors.Set(t.Context(), "bolts", func(d *stream.Detector) error { d.Retention = 1; return nil }); err != nil {
		t.Fatal(err)
	}
	n, _, _ := sum()
	dry, err := r.In.Collect(t.Context(), registry.CollectOptions{DryRun: true})
	if err != nil || dry.Pictures != n {
		t.Errorf("%+v, %v", dry, err)
	}
	if got, err := r.In.Collect(t.Context(), registry.CollectOptions{}); err != nil || got.Pictures != n {
		t.Errorf("%+v, %v", got, err)
	}
	all, err := r.In.ListEvidence(t.Context(), "")
	if err != nil || len(all) != 1 || all[0].Detector != "nuts" {
		t.Errorf("%+v, %v", all, err)
	}
}
