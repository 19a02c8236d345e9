package stream_test

import (
	"sync"
	"sync/atomic"
	"testing"

	"github.com/nearmiss/nearmiss/internal/eventually"
	"github.com/nearmiss/nearmiss/stream"
	"github.com/nearmiss/nearmiss/stream/internal/streamtest"
)

// TestNoProgressIsToldAfterTheEnd: who has waited for a job may use what was told of it.
func TestNoProgressIsToldAfterTheEnd(t *testing.T) {
	r := streamtest.New(t, stream.Topology{})
	ctx, jobs := t.Context(), r.Jobs()
	if _, err := jobs.Request(ctx, stream.TrainRequest{Job: "j", Detector: "bolts"}); err != nil {
		t.Fatal(err)
	}
	var begun, told atomic.Bool
	progress := sync.OnceFunc(func() {
		begun.Store(true)
		for again := 0; again < 1000; { // long after whoever waits knows of the end
			j, err := jobs.Get(ctx, "j")
			if err != nil {
				t.Error(err)
				return
			}
			if j.Finished() {
				again++
			}
		}
		told.Store(true)
	})
	ended := make(chan error, 1)
	go func() {
		_, err := jobs.Wait(ctx, "j", func(stream.Progress) { progress() })
		if err == nil && !told.Load() {
			t.Error("it is over, and progress is told")
		}
		ended <- err
	}()
	eventually.True(t, "progress is told", func() bool {
		if err := r.NC.Publish(r.Names.Progress("bolts", "j"), []byte(`{}`)); err != nil {
			t.Fatal(err)
		}
		return begun.Load()
	})
	if _, err := jobs.Update(ctx, "j", func(j *stream.Job) error { j.State = stream.JobDone; return nil }); err != nil {
		t.Fatal(err)
	}
	if err := <-ended; err != nil {
		t.Error(err)
	}
}
