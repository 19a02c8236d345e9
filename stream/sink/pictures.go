package sink

import (
	"context"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/nearmiss/nearmiss/stream"
)

// Overlay is the picture of an anomaly for people: the frame with the places
// marked.
const Overlay = "overlay.jpg"

// Pictures reads the pictures of an event; those of an incident are its worst
// event's. Kinds that show pictures get one.
type Pictures func(ctx context.Context, e stream.Event) ([]stream.Picture, error)

// PicturesFrom reads them from the broker.
func PicturesFrom(nc *nats.Conn, n stream.Names) (Pictures, error) {
	js, err := jetstream.New(nc)
	if err != nil {
		return nil, err
	}
	return func(ctx context.Context, e stream.Event) ([]stream.Picture, error) {
		v, err := stream.GetEvidence(ctx, js, n, e.Detector, e.ID)
		return v.Pictures, err
	}, nil
}
