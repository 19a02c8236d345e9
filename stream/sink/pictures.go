package sink

import (
	"context"

	"github.com/nearmiss/nearmiss/stream"
)

// Overlay is the picture of an anomaly for people: the frame with the places
// marked.
const Overlay = "overlay.jpg"

// Pictures reads the pictures of an event; those of an incident are its worst
// event's. Kinds that show pictures get one.
type Pictures func(ctx context.Context, e stream.Event) ([]stream.Picture, error)

// PicturesFrom reads them from the broker.
func PicturesFrom(in *stream.Installation) Pictures {
	return func(ctx context.Context, e stream.Event) ([]stream.Picture, error) {
		v, err := in.GetEvidence(ctx, e.Detector, e.ID)
		return v.Pictures, err
	}
}
