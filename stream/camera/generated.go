package camera

import (
	"context"
	"io"
	"time"
)

// Generated is a source whose images are made by a function.
type Generated struct {
	// Make returns the n-th image, n from 0, as an encoded image and its ground
	// truth (JSON, or empty).
	Make func(n int) (data []byte, truth string, err error)
	// Count of images; 0: without end.
	Count int
	FPS   float64 // images a second; 0: as fast as they are taken

	n    int
	pace pace
}

// Next implements [Source].
func (s *Generated) Next(ctx context.Context) (Image, error) {
	if s.Count > 0 && s.n >= s.Count {
		return Image{}, io.EOF
	}
	if err := s.pace.wait(ctx, s.FPS); err != nil {
		return Image{}, err
	}
	data, truth, err := s.Make(s.n)
	if err != nil {
		return Image{}, err
	}
	s.n++
	return Image{Data: data, CapturedAt: time.Now(), Truth: truth}, nil
}
