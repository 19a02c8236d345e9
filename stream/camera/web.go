package camera

import (
	"context"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/cenkalti/backoff/v4"
	"github.com/rs/zerolog"

	"github.com/nearmiss/nearmiss/internal/redact"
)

// Web is a source that asks a network camera: for one image after the other
// where it answers with an image, and for the images of its answer where that is
// motion JPEG (multipart/x-mixed-replace). A camera that has answered once and
// goes away is asked until it is back.
type Web struct {
	URL string // http or https; with a user and a password for basic authentication
	// FPS is how many images a second are asked for, or taken of a stream, whose
	// others are passed over. 0: one a second, or all of the stream.
	FPS float64
	Log zerolog.Logger

	body   io.ReadCloser // of a stream under way
	stream *Splitter
	known  bool // it has answered with images
	due    time.Time
	pace   pace
}

// Next implements [Source].
func (s *Web) Next(ctx context.Context) (Image, error) {
	b := backoff.NewExponentialBackOff(backoff.WithInitialInterval(200*time.Millisecond), backoff.WithMaxInterval(10*time.Second), backoff.WithMaxElapsedTime(0))
	var img Image
	err := backoff.RetryNotify(func() (err error) {
		img, err = s.once(ctx)
		if err != nil && (!s.known || ctx.Err() != nil) {
			return backoff.Permanent(err)
		}
		return err
	}, backoff.WithContext(b, ctx), func(err error, wait time.Duration) {
		s.Log.Warn().Err(err).Dur("again_in", wait).Msg("the camera does not answer with images")
	})
	return img, err
}

// answerTime is how long a camera may take for one image.
const answerTime = 30 * time.Second

// once asks once, or takes the next image of the stream.
func (s *Web) once(ctx context.Context) (Image, error) {
	if s.stream == nil {
		fps := s.FPS
		if fps == 0 {
			fps = 1
		}
		if err := s.pace.wait(ctx, fps); err != nil {
			return Image{}, err
		}
		if data, err := s.ask(ctx); err != nil || data != nil {
			return s.image(data), err
		}
	}
	for {
		late := time.AfterFunc(answerTime, func() { s.body.Close() })
		data, err := s.stream.Next()
		late.Stop()
		if err != nil {
			s.body.Close()
			s.stream = nil
			if errors.Is(err, io.EOF) {
				err = errors.New("its stream ended")
			}
			return Image{}, fmt.Errorf("ask camera %s: %w", redact.Text(s.URL), err)
		}
		if s.take(time.Now()) {
			return s.image(data), nil
		}
	}
}

// take says whether an image of the stream that comes now is one of FPS a second.
func (s *Web) take(now time.Time) bool {
	if s.FPS <= 0 {
		return true
	}
	if now.Before(s.due) {
		return false
	}
	every := time.Duration(float64(time.Second) / s.FPS)
	if s.due.IsZero() || now.Sub(s.due) > every {
		s.due = now
	}
	s.due = s.due.Add(every)
	return true
}

func (s *Web) image(data []byte) Image {
	s.known = s.known || data != nil
	return Image{Data: data, CapturedAt: time.Now(), Name: redact.Text(s.URL)}
}

// ask returns the image that the camera answers with, or nil where the answer is
// a stream, which is open then.
func (s *Web) ask(ctx context.Context) ([]byte, error) {
	fail := func(err error) ([]byte, error) {
		return nil, redact.Error(fmt.Errorf("ask camera %s: %w", s.URL, err))
	}
	step, cancel := context.WithCancel(ctx)
	late := time.AfterFunc(answerTime, cancel)
	req, err := http.NewRequestWithContext(step, http.MethodGet, s.URL, nil)
	if err != nil { // which repeats what may be a password
		cancel()
		return fail(errors.New("its address cannot be understood: write what is special in a user or password as %23 (#), %40 (@), %2F (/) and so on"))
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		cancel()
		var u *url.Error
		if errors.As(err, &u) {
			err = u.Err // without the URL, which may have a password
		}
		return fail(err)
	}
	body := &closing{resp.Body, cancel}
	kind, _, _ := mime.ParseMediaType(resp.Header.Get("Content-Type"))
	switch {
	case resp.StatusCode != http.StatusOK:
		body.Close()
		return fail(fmt.Errorf("it answers %s", resp.Status))
	case kind == "multipart/x-mixed-replace":
		late.Stop()
		s.body, s.stream = body, NewSplitter(body)
		return nil, nil
	case !strings.HasPrefix(kind, "image/"):
		body.Close()
		return fail(fmt.Errorf("it answers with %q: %w", kind, ErrNotImages))
	}
	defer body.Close()
	defer late.Stop()
	data, err := io.ReadAll(io.LimitReader(resp.Body, maxImage+1))
	if err == nil && len(data) > maxImage {
		err = fmt.Errorf("more than %d bytes: %w", maxImage, ErrTooLarge)
	}
	if err != nil {
		return fail(err)
	}
	return data, nil
}

// ErrNotImages: a camera on the web answers with something else.
var ErrNotImages = errors.New("that is neither an image nor motion JPEG")

// closing also ends the request.
type closing struct {
	io.ReadCloser
	cancel context.CancelFunc
}

func (c *closing) Close() error {
	c.cancel()
	return c.ReadCloser.Close()
}
