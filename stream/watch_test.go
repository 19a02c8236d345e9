package stream_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"github.com/nearmiss/nearmiss/internal/eventually"
	"github.com/nearmiss/nearmiss/stream"
	"github.com/nearmiss/nearmiss/stream/internal/streamtest"
	"github.com/nearmiss/nearmiss/stream/worker"
)

func TestWatchDeliversEvents(t *testing.T) {
	r := streamtest.New(t, stream.Topology{})
	r.Release("bolts", streamtest.Fake{Name: "one"})
	r.Worker(worker.Config{}, streamtest.LoadFake)
	publish := func(ids ...string) {
		for _, id := range ids {
			r.Publish(stream.Frame{Detector: "bolts", Camera: "left", ID: id, Image: streamtest.Image(0.95)})
		}
	}
	watch := func(cfg stream.WatchConfig, n int, handle func(stream.Event) error) (ids []string) {
		t.Helper()
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		got := make(chan string, 100)
		done := make(chan error, 1)
		go func() {
			done <- stream.Watch(ctx, r.NC, cfg, zerolog.Nop(), func(_ context.Context, e stream.Event) error {
				if err := handle(e); err != nil {
					return err
				}
				got <- e.FrameID
				return nil
			})
		}()
		for len(ids) < n {
			select {
			case id := <-got:
				ids = append(ids, id)
			case err := <-done:
				t.Fatalf("watch ended with %v", err)
			}
		}
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		return ids
	}
	fine := func(stream.Event) error { return nil }
	before := time.Now()
	publish("a", "b")
	if ids := watch(stream.WatchConfig{Detector: "bolts", Kind: stream.KindAnomaly, Since: before}, 2, fine); len(ids) != 2 {
		t.Errorf("%v", ids)
	}
	// A durable watch: an event that is not handled comes again, and what comes
	// between two watches is not lost.
	failed := false
	ids := watch(stream.WatchConfig{Durable: "desk", Kind: stream.KindAnomaly, Since: before}, 2, func(e stream.Event) error {
		if !failed {
			failed = true
			return errors.New("not now")
		}
		return nil
	})
	publish("c")
	eventually.True(t, "the event is stored", func() bool { return len(r.Events()) == 3 })
	ids = append(ids, watch(stream.WatchConfig{Durable: "desk"}, 1, fine)...)
	if got := strings.Join(ids, ""); len(got) != 3 || got[2] != 'c' {
		t.Errorf("durable watch: %v", ids)
	}
}
