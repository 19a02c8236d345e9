package stream_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/nearmiss/nearmiss/internal/brokertest"
	"github.com/nearmiss/nearmiss/internal/eventually"
	"github.com/nearmiss/nearmiss/stream"
	"github.com/nearmiss/nearmiss/stream/broker"
	"github.com/nearmiss/nearmiss/stream/internal/streamtest"
	"github.com/nearmiss/nearmiss/stream/steward"
)

// TestSetupOnASmallStore fits the limits to it instead of failing halfway.
func TestSetupOnASmallStore(t *testing.T) {
	t.Parallel()
	const store = 512 << 20
	js := brokertest.JetStream(t, broker.Config{MaxStore: store})
	if err := stream.Ensure(t.Context(), js, stream.Topology{}); err == nil {
		t.Fatal("this server takes limits of 5 GiB: the test tries nothing")
	}
	got, factor, err := stream.EnsureWithin(t.Context(), js, stream.Topology{})
	if err != nil {
		t.Fatal(err)
	}
	if factor >= 1 || got.Reserved() > store {
		t.Errorf("%d bytes of %d are reserved, factor %v", got.Reserved(), store, factor)
	}
	s, err := js.Stream(t.Context(), stream.Names{}.FramesStream())
	if err != nil {
		t.Fatal(err)
	}
	if n := s.CachedInfo().Config.MaxBytes; n != got.FramesMaxBytes || n < 32<<20 {
		t.Errorf("the frame queue has %d bytes, said were %d", n, got.FramesMaxBytes)
	}
	if _, factor, err = stream.EnsureWithin(t.Context(), js, stream.Topology{FramesMaxBytes: 32 << 20, LargeMaxBytes: 16 << 20, EventsMaxBytes: 16 << 20, DeadMaxBytes: 16 << 20}); err != nil || factor > 1 {
		t.Errorf("again: %v, %v", factor, err)
	}
}

// TestSetupLeavesWhomTheStewardRefuses: while a detector takes more than its share of the
// queue the steward has taken it out of the stream's subjects. Setup, and a broker that
// starts again, take that for what it is; a new limit holds once nobody is refused.
func TestSetupLeavesWhomTheStewardRefuses(t *testing.T) {
	t.Parallel()
	const before, after = 8 << 20, 12 << 20
	r := &streamtest.Rig{T: t, Dir: t.TempDir(), URL: brokertest.Server(t, &server.Options{JetStream: true, StoreDir: t.TempDir()})}
	r.Open(stream.Topology{FramesMaxBytes: before})
	queue := func() jetstream.StreamConfig {
		t.Helper()
		s, err := r.JS.Stream(t.Context(), r.Names.FramesStream())
		if err != nil {
			t.Fatal(err)
		}
		return s.CachedInfo().Config
	}
	usual := queue().Subjects
	for _, d := range []string{"bolts", "nuts"} {
		r.Detector(stream.Detector{Name: d})
	}
	for i := range 60 {
		r.PublishRaw(r.Names.Frames("bolts", "left"), fmt.Sprint(i, strings.Repeat("x", 100<<10)))
	}
	r.Steward(steward.Config{Remote: true, Every: 20 * time.Millisecond})
	refuses := func() bool { return slices.Contains(queue().Subjects, r.Names.Frames("nuts", "*")) }
	eventually.True(t, "bolts is refused", refuses)
	cut := queue()
	if err := stream.Ensure(t.Context(), r.JS, stream.Topology{FramesMaxBytes: after}); err != nil {
		t.Fatal(err)
	}
	if got := queue().Subjects; !slices.Equal(got, cut.Subjects) {
		t.Errorf("setup has made %v of %v", got, cut.Subjects)
	}
	s, err := r.JS.Stream(t.Context(), r.Names.FramesStream())
	if err == nil {
		err = s.Purge(t.Context())
	}
	if err != nil {
		t.Fatal(err)
	}
	eventually.True(t, "everybody's frames are taken, as many as setup has said", func() bool {
		q := queue()
		return slices.Equal(q.Subjects, usual) && q.MaxBytes == after
	})
}
