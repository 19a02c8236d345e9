package sink_test

import (
	"context"
	"errors"
	"testing"

	"github.com/nearmiss/nearmiss/stream"
	"github.com/nearmiss/nearmiss/stream/sink"
)

// The overlay goes with an alarm where it can be had and is not too large; the
// alarm goes anyway.
func TestTheOverlayOfAnEvent(t *testing.T) {
	read := func(all []stream.Picture, err error) sink.Pictures {
		return func(context.Context, stream.Event) ([]stream.Picture, error) { return all, err }
	}
	all := []stream.Picture{{Name: "heat.png", Data: []byte("heat")}, {Name: sink.Overlay, Data: []byte("overlay")}}
	with := stream.Event{Pictures: "NM_EVIDENCE/bolts/e1"}
	for name, c := range map[string]struct {
		from  sink.Pictures
		e     stream.Event
		limit int
		want  string
	}{
		"of any size":        {read(all, nil), with, 0, "overlay"},
		"of the limit":       {read(all, nil), with, 7, "overlay"},
		"too large":          {read(all, nil), with, 6, ""},
		"not there":          {read(all[:1], nil), with, 0, ""},
		"cannot be read":     {read(all, errors.New("the broker is away")), with, 0, ""},
		"the event has none": {read(all, nil), stream.Event{}, 0, ""},
		"nobody reads any":   {nil, with, 0, ""},
	} {
		if got := c.from.Overlay(t.Context(), c.e, c.limit); string(got) != c.want {
			t.Errorf("%s: %q", name, got)
		}
	}
	late := sink.Pictures(func(ctx context.Context, _ stream.Event) ([]stream.Picture, error) {
		if _, ok := ctx.Deadline(); !ok {
			t.Error("it is waited for without end")
		}
		return all, nil
	})
	late.Overlay(context.Background(), with, 0)
}
