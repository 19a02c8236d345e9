package sink

import (
	"context"
	"time"

	"github.com/nearmiss/nearmiss/stream"
)

// Overlay is the picture of an anomaly for people: the frame with the places
// marked.
const Overlay = "overlay.jpg"

// Pictures reads the pictures of an event; those of an incident are its worst
// event's. Kinds that show pictures get one.
type Pictures func(ctx context.Context, e stream.Event) ([]stream.Picture, error)

// pictureTime is how long an alarm waits for its picture.
const pictureTime = 5 * time.Second

// Overlay is an event's, nil where there is none of at most limit bytes (0: of any
// size). An alarm is worth more than its picture: that this cannot be read is no
// failure.
func (p Pictures) Overlay(ctx context.Context, e stream.Event, limit int) []byte {
	if p == nil || e.Pictures == "" {
		return nil
	}
	step, cancel := context.WithTimeout(ctx, pictureTime)
	defer cancel()
	all, err := p(step, e)
	if err != nil {
		return nil
	}
	for _, f := range all {
		if f.Name == Overlay && (limit == 0 || len(f.Data) <= limit) {
			return f.Data
		}
	}
	return nil
}

// PicturesFrom reads them from the broker.
func PicturesFrom(in *stream.Installation) Pictures {
	return func(ctx context.Context, e stream.Event) ([]stream.Picture, error) {
		v, err := in.GetEvidence(ctx, e.Detector, e.ID)
		return v.Pictures, err
	}
}
