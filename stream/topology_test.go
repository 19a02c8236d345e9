package stream_test

import (
	"testing"

	"github.com/nearmiss/nearmiss/internal/brokertest"
	"github.com/nearmiss/nearmiss/stream"
	"github.com/nearmiss/nearmiss/stream/broker"
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
