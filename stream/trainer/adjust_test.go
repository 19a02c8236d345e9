package trainer_test

import (
	"context"
	"encoding/json"
	"fmt"
	"testing"
	"time"

	"github.com/nearmiss/nearmiss/internal/eventually"
	"github.com/nearmiss/nearmiss/stream"
	"github.com/nearmiss/nearmiss/stream/internal/streamtest"
	"github.com/nearmiss/nearmiss/stream/registry"
	"github.com/nearmiss/nearmiss/stream/trainer"
	"github.com/nearmiss/nearmiss/stream/worker"
)

// TestAChangedRateActsWhoeverChangesIt: any client that writes the bucket, also
// while no trainer runs and while one trains.
func TestAChangedRateActsWhoeverChangesIt(t *testing.T) {
	r := streamtest.New(t, stream.Topology{})
	ctx := t.Context()
	r.Detector(stream.Detector{Name: "bolts", FalseAlarmRate: 0.1, CreatedAt: time.Now()})
	r.Detector(stream.Detector{Name: "nuts"}) // without a release
	store, err := r.In.Detectors(ctx)
	if err != nil {
		t.Fatal(err)
	}
	put := func(rate float64, note string) {
		t.Helper()
		b, err := json.Marshal(stream.Detector{Name: "bolts", FalseAlarmRate: rate, Description: note})
		if err != nil {
			t.Fatal(err)
		}
		r.PublishRaw("$KV."+r.Names.DetectorsBucket()+".bolts", string(b))
	}
	threshold := func() float64 {
		t.Helper()
		p, err := r.Registry.Active(ctx, "bolts")
		if err != nil {
			return 0
		}
		dir, err := r.Registry.Get(ctx, p.Release)
		if err != nil {
			t.Fatal(err)
		}
		s, err := streamtest.LoadFake(ctx, dir)
		if err != nil {
			t.Fatal(err)
		}
		return s.(streamtest.Fake).Threshold
	}
	becomes := func(want float64) {
		t.Helper()
		eventually.True(t, fmt.Sprintf("the threshold is %g", want), func() bool { return threshold() == want })
	}
	put(0.2, "before there is a release") // acts with the first training
	r.Release("bolts", streamtest.Fake{Name: "one", Threshold: 0.8})
	put(0.25, "while no trainer runs")
	put(0.25, "and the description after it")
	training, trained := make(chan struct{}), make(chan struct{})
	r.Trainer(trainer.Config{RetryDelay: 10 * time.Millisecond}, streamtest.FakeTrainer{T: t, OnTrain: func(context.Context, *trainer.Task) error {
		close(training)
		<-trained
		return nil
	}, Model: func(task *trainer.Task) streamtest.Fake {
		return streamtest.Fake{Name: "trained", Threshold: 1 - task.Detector.FalseAlarmRate}
	}})
	becomes(0.75)
	jobs, err := r.Jobs().List(ctx, "bolts")
	if err != nil || len(jobs) != 1 || jobs[0].FalseAlarmRate != 0.25 {
		t.Errorf("jobs %+v, %v", jobs, err)
	}
	put(0.5, "while a trainer runs")
	becomes(0.5)
	if _, err := store.Set(ctx, "bolts", func(d *stream.Detector) error { d.FalseAlarmRate = 0.125; return nil }); err != nil {
		t.Fatal(err)
	}
	becomes(0.875)

	if _, err := r.In.Normals().Add(ctx, stream.Normal{Detector: "bolts", Image: streamtest.Image(0.1)}); err != nil {
		t.Fatal(err)
	}
	if _, err := r.Jobs().Request(ctx, stream.TrainRequest{Job: "train", Detector: "bolts", Promote: true}); err != nil {
		t.Fatal(err)
	}
	<-training
	// Another trainer readjusts what the training then replaces.
	r.Trainer(trainer.Config{Name: "second", RetryDelay: 10 * time.Millisecond}, streamtest.FakeTrainer{T: t})
	put(0.375, "during the training")
	becomes(0.625)
	close(trained)
	if j := r.Wait("train"); !j.Promoted || j.FalseAlarmRate != 0.125 {
		t.Errorf("%+v", j)
	}
	becomes(0.625)
	if jobs, err := r.Jobs().List(ctx, "nuts"); err != nil || len(jobs) != 0 {
		t.Errorf("a detector without a release has jobs: %+v, %v", jobs, err)
	}
}

// TestRecordsOfJobsDoNotGrowForEver, and the trainings among them stay.
func TestRecordsOfJobsDoNotGrowForEver(t *testing.T) {
	r := streamtest.New(t, stream.Topology{})
	ctx := t.Context()
	at := time.Now().Add(-24 * time.Hour)
	for i := range 260 {
		j := stream.Job{
			TrainRequest: stream.TrainRequest{Job: fmt.Sprint("extend-", i), Detector: "bolts", Extend: []uint64{1}, At: at.Add(time.Duration(i) * time.Second)},
			State:        stream.JobDone, FinishedAt: at,
		}
		switch i {
		case 3:
			j.Extend = nil // the last training
		case 4:
			j.State = stream.JobRunning
		case 5:
			j.FinishedAt = time.Now()
		case 6:
			j.Detector = "nuts"
		}
		b, err := json.Marshal(j)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := r.JS.PublishAsync("$KV."+r.Names.JobsBucket()+"."+j.Job, b); err != nil {
			t.Fatal(err)
		}
	}
	<-r.JS.PublishAsyncComplete()
	for _, dry := range []bool{true, false} {
		got, err := r.In.Collect(ctx, registry.CollectOptions{DryRun: dry})
		if err != nil || got.Jobs != 260-200-4 {
			t.Errorf("removed %d, %v", got.Jobs, err)
		}
	}
	all, err := r.Jobs().List(ctx, "")
	if err != nil || len(all) != 204 || all[0].Job != "extend-3" || all[3].Job != "extend-6" || all[203].Job != "extend-259" {
		t.Errorf("%d records, %v", len(all), err)
	}
}

// TestAThresholdByHand decides instead of the release's, and every event and
// score says so.
func TestAThresholdByHand(t *testing.T) {
	r := streamtest.New(t, stream.Topology{})
	r.Detector(stream.Detector{Name: "bolts", Threshold: 0.5})
	r.Detector(stream.Detector{Name: "nuts", Margin: 0.5})
	r.Detector(stream.Detector{Name: "plain"})
	for _, d := range []string{"bolts", "nuts", "plain"} {
		r.Release(d, streamtest.Fake{Name: d, Threshold: 0.75})
	}
	got := r.Scores()
	r.Worker(worker.Config{}, streamtest.LoadFake)
	for _, d := range []string{"bolts", "nuts", "plain"} {
		for _, score := range []float64{0.25, 0.375, 0.4375, 0.5, 0.625, 0.8125} {
			r.Publish(stream.Frame{Detector: d, Camera: "left", ID: fmt.Sprint(d, score), Image: streamtest.Image(score)})
		}
	}
	eventually.True(t, "all are scored", func() bool { return len(got.ByFrame()) == 18 })
	want := map[string]struct {
		threshold float64
		by        string
		alarms    int
	}{"bolts": {0.5, stream.ThresholdByHand, 2}, "nuts": {0.375, stream.ThresholdByMargin, 4}, "plain": {0.75, "", 1}}
	alarms := map[string]int{}
	check := func(e stream.Event) {
		t.Helper()
		w := want[e.Detector]
		if *e.Threshold != w.threshold || e.ThresholdBy != w.by || *e.Anomalous != (*e.Score > w.threshold) {
			t.Errorf("%s: score %v, threshold %v by %q, anomalous %v", e.Detector, *e.Score, *e.Threshold, e.ThresholdBy, *e.Anomalous)
		}
	}
	for _, e := range r.Events() {
		check(e)
		alarms[e.Detector]++
	}
	for _, all := range got.ByFrame() {
		check(all[0])
	}
	for d, w := range want {
		if alarms[d] != w.alarms {
			t.Errorf("%s: %d alarms, want %d", d, alarms[d], w.alarms)
		}
	}
	if e, err := r.Client().ScoreNow(t.Context(), "bolts", streamtest.Image(0.625)); err != nil || !*e.Anomalous || e.ThresholdBy != stream.ThresholdByHand {
		t.Errorf("score now: %+v, %v", e, err)
	}
	for _, d := range []stream.Detector{{Name: "x", Threshold: -1}, {Name: "x", Margin: 1000}, {Name: "x", Threshold: 1, Margin: 2}} {
		if d.Validate() == nil {
			t.Errorf("%+v is valid", d)
		}
	}
}
