package steward_test

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/nearmiss/nearmiss/internal/eventually"
	"github.com/nearmiss/nearmiss/stream"
	"github.com/nearmiss/nearmiss/stream/internal/lease"
	"github.com/nearmiss/nearmiss/stream/internal/streamtest"
	"github.com/nearmiss/nearmiss/stream/steward"
)

// TestSetupsDuringAFlood: while the steward beside the broker sees floods begin and end,
// another program changes the queue again and again in turns, as nearmiss broker --setup
// does. Each frame of another detector is stored once, and nobody undoes what the other did.
func TestSetupsDuringAFlood(t *testing.T) {
	const queue = 4 << 20
	topology := stream.Topology{FramesMaxBytes: queue}
	r := streamtest.New(t, topology)
	for _, d := range []string{"bolts", "nuts"} {
		r.Detector(stream.Detector{Name: d})
	}
	beside, err := steward.New(steward.Config{FramesMaxBytes: queue}, r.Connect(), streamtest.Log(t))
	if err != nil {
		t.Fatal(err)
	}
	first := queueConfig(r)
	before := first.Subjects
	first.Description = "change 0"
	if _, err := r.JS.UpdateStream(t.Context(), first); err != nil {
		t.Fatal(err)
	}
	work, err := r.JS.KeyValue(t.Context(), r.Names.WorkBucket())
	if err != nil {
		t.Fatal(err)
	}
	enough := make(chan struct{})
	var changes atomic.Int64
	var setup sync.WaitGroup
	setup.Go(func() {
		for turns := lease.Of(work, stream.StreamsLease); ; changes.Add(1) {
			select {
			case <-enough:
				return
			default:
			}
			if err := turns.Hold(t.Context(), func(ctx context.Context) error {
				cfg := queueConfig(r)
				if cfg.Description != fmt.Sprint("change ", changes.Load()) {
					return fmt.Errorf("change %d was undone: %s", changes.Load(), cfg.Description)
				}
				cfg.Description = fmt.Sprint("change ", changes.Load()+1)
				_, err := r.JS.UpdateStream(ctx, cfg)
				return err
			}); err != nil {
				t.Error(err)
				return
			}
		}
	})
	defer func() {
		close(enough)
		setup.Wait()
	}()
	look := func(changed bool) {
		t.Helper()
		eventually.True(t, "it has changed the queue", func() bool {
			if err := beside.Look(t.Context()); err != nil {
				t.Fatal(err)
			}
			return slices.Equal(before, queueConfig(r).Subjects) != changed
		})
	}
	for round := range 40 {
		if n, err := floodQueue(r, "bolts", 700<<10, 4); err != nil {
			t.Fatalf("%d taken, then %v", n, err)
		}
		look(true)
		made := changes.Load()
		eventually.True(t, "the other program has changed the queue meanwhile", func() bool { return changes.Load() > made || t.Failed() })
		for range 3 {
			if _, err := floodQueue(r, "nuts", 10, 1); err != nil {
				t.Fatalf("round %d: %v", round, err)
			}
		}
		if got := queueConfig(r).Subjects; slices.Equal(before, got) {
			t.Fatalf("round %d: a setup has undone what the steward did: %v", round, got)
		}
		if n := r.Waiting(); n != 4+3 {
			t.Fatalf("round %d: %d frames wait, %d were published", round, n, 4+3)
		}
		emptyQueue(r)
		look(false)
	}
}
