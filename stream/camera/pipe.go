package camera

import (
	"context"
	"io"
	"time"
)

// Pipe is a source of the JPEG, PNG and WebP images that follow one another in R.
// While R waits for data, Next still returns when its context ends; a read under
// way is left to whoever closes R.
type Pipe struct {
	R    io.Reader
	FPS  float64 // images a second; 0: as fast as they come and are taken
	Name string  // where the images come from

	images chan Image
	err    error // why images was closed
	pace   pace
}

// Next implements [Source].
func (s *Pipe) Next(ctx context.Context) (Image, error) {
	if s.images == nil {
		s.images = make(chan Image)
		go s.read(ctx)
	}
	if err := s.pace.wait(ctx, s.FPS); err != nil {
		return Image{}, err
	}
	select {
	case img, ok := <-s.images:
		if !ok {
			return Image{}, s.err
		}
		return img, nil
	case <-ctx.Done():
		return Image{}, ctx.Err()
	}
}

func (s *Pipe) read(ctx context.Context) {
	defer close(s.images)
	split := NewSplitter(s.R)
	for {
		data, err := split.Next()
		if err != nil {
			s.err = err
			return
		}
		select {
		case s.images <- Image{Data: data, CapturedAt: time.Now(), Name: s.Name}:
		case <-ctx.Done():
			s.err = ctx.Err()
			return
		}
	}
}
