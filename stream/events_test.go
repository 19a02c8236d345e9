package stream_test

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"github.com/rs/zerolog"

	"github.com/nearmiss/nearmiss/stream"
	"github.com/nearmiss/nearmiss/stream/internal/streamtest"
)

// fillEvents stores many events of two detectors, without waiting for each.
func fillEvents(r *streamtest.Rig, events int) {
	r.T.Helper()
	one, yes := 1.0, true
	for i := range events {
		detector, camera, kind := "bolts", fmt.Sprint("cam", i%3), stream.KindAnomaly
		if i%10 == 9 {
			detector = "nuts"
		}
		if i%7 == 6 {
			kind = stream.KindRejected
		}
		e := stream.Event{
			ID: fmt.Sprint("e", i), Kind: kind, Detector: detector, Camera: camera, FrameID: fmt.Sprint("f", i), ScoredAt: time.Now(),
			Score: &one, Threshold: &one, PValue: &one, Anomalous: &yes,
		}
		m, err := e.Message(r.Names)
		if err != nil {
			r.T.Fatal(err)
		}
		if i%500 == 250 {
			m.Data = []byte("no event")
		}
		if _, err := r.JS.PublishMsgAsync(m, jetstream.WithStallWait(time.Minute)); err != nil {
			r.T.Fatal(err)
		}
	}
	select {
	case <-r.JS.PublishAsyncComplete():
	case <-time.After(time.Minute):
		r.T.Fatal("the events are not stored")
	}
}

func TestEventsArePaged(t *testing.T) {
	r := streamtest.New(t, stream.Topology{})
	ctx := t.Context()
	if page, err := r.In.Events(ctx, stream.EventFilter{}, 0, 10); err != nil || len(page.Events) != 0 || page.Next != 0 {
		t.Errorf("of none: %+v, %v", page, err)
	}
	const all = 2000
	fillEvents(r, all)
	for _, c := range []struct {
		filter stream.EventFilter
		want   func(i int) bool
	}{
		{stream.EventFilter{}, func(int) bool { return true }},
		{stream.EventFilter{Detector: "nuts"}, func(i int) bool { return i%10 == 9 }},
		{stream.EventFilter{Detector: "nuts", Camera: "cam0", Kind: stream.KindRejected}, func(i int) bool { return i%10 == 9 && i%3 == 0 && i%7 == 6 }},
		{stream.EventFilter{Camera: "nowhere"}, func(int) bool { return false }},
	} {
		var want []string
		for i := all - 1; i >= 0; i-- {
			if c.want(i) && i%500 != 250 {
				want = append(want, fmt.Sprint("e", i))
			}
		}
		var got []string
		before := uint64(0)
		for pages := 0; ; pages++ {
			page, err := r.In.Events(ctx, c.filter, before, 170)
			if err != nil || pages > all/170+1 || len(page.Events) > 170 {
				t.Fatalf("%+v: page %d has %d events, %v", c.filter, pages, len(page.Events), err)
			}
			for _, e := range page.Events {
				got = append(got, e.ID)
			}
			if before = page.Next; before == 0 {
				break
			}
		}
		if fmt.Sprint(got) != fmt.Sprint(want) {
			t.Errorf("%+v: %d events, want %d", c.filter, len(got), len(want))
		}
	}
	for _, f := range []stream.EventFilter{{Detector: "a b"}, {Camera: "*"}, {Kind: ">"}} {
		if _, err := r.In.Events(ctx, f, 0, 10); !errors.Is(err, stream.ErrBadName) {
			t.Errorf("%+v: %v", f, err)
		}
	}
	if _, err := r.In.Events(ctx, stream.EventFilter{}, 0, 0); !errors.Is(err, stream.ErrBadMessage) {
		t.Error(err)
	}

	for id, detector := range map[string]string{"e1999": "nuts", "e1001": "bolts", "e0": "bolts"} {
		e, err := r.In.FindEvent(ctx, detector, "", id, "")
		if err != nil || e.ID != id || e.Sequence == 0 {
			t.Errorf("%s: %+v, %v", id, e.ID, err)
		}
		if again, err := r.In.Event(ctx, e.Sequence); err != nil || again.ID != id {
			t.Errorf("%s at %d: %v, %v", id, e.Sequence, again.ID, err)
		}
	}
	if _, err := r.In.FindEvent(ctx, "bolts", "cam0", "", "f1998"); err != nil {
		t.Error(err)
	}
	if _, err := r.In.Event(ctx, 0); !errors.Is(err, stream.ErrNotFound) {
		t.Error(err)
	}
	if _, err := r.In.FindEvent(ctx, "bolts", "", "nowhere", ""); !errors.Is(err, stream.ErrNotFound) {
		t.Error(err)
	}

	t.Run("a watch says where an event is", func(t *testing.T) {
		enough := errors.New("enough")
		err := stream.Watch(ctx, r.NC, stream.WatchConfig{Names: r.Names, Detector: "nuts", Since: time.Now().Add(-time.Hour)}, zerolog.Nop(), func(_ context.Context, e stream.Event) error {
			if again, err := r.In.Event(ctx, e.Sequence); err != nil || again.ID != e.ID {
				t.Errorf("%s at %d: %v, %v", e.ID, e.Sequence, again.ID, err)
			}
			return enough
		})
		if !errors.Is(err, enough) {
			t.Error(err)
		}
	})
	t.Run("what is recent costs no more for a long history", func(t *testing.T) {
		// By what it reads, not by time: the consumer's deliveries are counted.
		before := r.NC.NumSubscriptions()
		in := r.NC.Stats().InMsgs
		if _, err := r.In.FindEvent(ctx, "bolts", "", "e1998", ""); err != nil {
			t.Fatal(err)
		}
		if n := r.NC.Stats().InMsgs - in; n > 600 {
			t.Errorf("%d messages for the newest of %d events", n, all)
		}
		if after := r.NC.NumSubscriptions(); after > before {
			t.Errorf("%d subscriptions are left", after-before)
		}
	})
}
