package camera

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/cenkalti/backoff/v4"
	"github.com/rs/zerolog"

	"github.com/nearmiss/nearmiss/stream/internal/wait"
)

// Web is a source that asks a network camera: for one image after the other
// where it answers with an image, and for the images of its answer where that is
// motion JPEG (a multipart, or images that follow one another). What it answers
// with is found by the bytes: many cameras name another type, or none. A camera
// that has answered once and goes away is asked until it is back.
type Web struct {
	// URL is http or https, with a user and a password for basic or digest
	// authentication, whichever the camera asks for.
	URL string
	// FPS is how many images a second are asked for, or taken of a stream, whose
	// others are passed over. 0: one a second, or all of the stream.
	FPS float64
	// TLS says which certificates are trusted. nil: those that the system does.
	TLS *tls.Config
	Log zerolog.Logger

	login     *login
	body      io.ReadCloser // of a stream under way
	stream    *Splitter
	got       int  // images of it
	delivered bool // it has answered with images
	due       time.Time
	pace      pace
}

// TLSConfig trusts the certificates in a PEM file beside the system's, and with
// insecure any certificate: cameras often have one that they made themselves. A
// camera that shows one of the file's is trusted whatever name is in it, as they
// seldom know their address.
func TLSConfig(ca string, insecure bool) (*tls.Config, error) {
	if ca == "" && !insecure {
		return nil, nil
	}
	c := &tls.Config{InsecureSkipVerify: true, MinVersion: tls.VersionTLS10} // old firmware
	if insecure {
		return c, nil
	}
	text, err := os.ReadFile(ca)
	if err != nil {
		return nil, fmt.Errorf("read certificates: %w", err)
	}
	var own [][]byte
	for block, rest := pem.Decode(text); block != nil; block, rest = pem.Decode(rest) {
		if block.Type == "CERTIFICATE" {
			own = append(own, block.Bytes)
		}
	}
	roots, err := x509.SystemCertPool()
	if err != nil {
		roots = x509.NewCertPool()
	}
	if !roots.AppendCertsFromPEM(text) {
		return nil, fmt.Errorf("read certificates: there are none in PEM form in %s", ca)
	}
	c.VerifyConnection = func(s tls.ConnectionState) error { // in place of the verification that is skipped
		leaf := s.PeerCertificates[0]
		if slices.ContainsFunc(own, func(b []byte) bool { return bytes.Equal(b, leaf.Raw) }) {
			return nil
		}
		between := x509.NewCertPool()
		for _, c := range s.PeerCertificates[1:] {
			between.AddCert(c)
		}
		_, err := leaf.Verify(x509.VerifyOptions{Roots: roots, Intermediates: between, DNSName: s.ServerName})
		if err != nil {
			return &tls.CertificateVerificationError{UnverifiedCertificates: s.PeerCertificates, Err: err}
		}
		return nil
	}
	return c, nil
}

// Next implements [Source].
func (s *Web) Next(ctx context.Context) (Image, error) {
	if s.login == nil {
		if err := CheckAddress(s.URL); err != nil {
			return Image{}, err
		}
		login, err := newLogin(s.URL, s.TLS)
		if err != nil {
			return Image{}, err
		}
		s.login = login
	}
	return insist(ctx, s.once, func() bool { return s.delivered }, func(err error, wait time.Duration) {
		s.Log.Warn().Err(err).Dur("again_in", wait).Msg("the camera does not answer with images")
	})
}

// How long a source waits before it asks a camera again that has answered before.
const (
	firstWait   = 200 * time.Millisecond
	longestWait = 10 * time.Second
)

// insist takes an image, and tries again when it cannot be had, after a longer and
// longer wait, where again says so.
func insist(ctx context.Context, once func(context.Context) (Image, error), again func() bool, notify backoff.Notify) (Image, error) {
	return backoff.RetryNotifyWithData(func() (Image, error) {
		img, err := once(ctx)
		if err != nil && (!again() || ctx.Err() != nil) {
			return img, backoff.Permanent(err)
		}
		return img, err
	}, backoff.WithContext(wait.Endless(firstWait, longestWait), ctx), notify)
}

// imageTimeout is how long a camera may take for one image.
const imageTimeout = 30 * time.Second

// once asks once, or takes the next image of the stream.
func (s *Web) once(ctx context.Context) (Image, error) {
	for {
		if s.stream == nil {
			fps := cmp.Or(s.FPS, 1)
			if err := s.pace.wait(ctx, fps); err != nil {
				return Image{}, err
			}
			if data, err := s.ask(ctx); err != nil || data != nil {
				return s.image(data), err
			}
			s.got = 0
		}
		body := s.body // which may be another one when the function begins
		late := time.AfterFunc(imageTimeout, func() { body.Close() })
		data, err := s.stream.Next()
		late.Stop()
		if err != nil {
			s.body.Close()
			s.stream = nil
			if errors.Is(err, io.EOF) {
				if s.got == 1 { // an answer of one image
					continue
				}
				err = errors.New("its stream ended")
			}
			return Image{}, s.failed(err)
		}
		s.got++
		if s.take(time.Now()) || s.got == 1 {
			return s.image(data), nil
		}
	}
}

func (s *Web) failed(err error) error {
	err = cleanError(err, s.URL)
	if _, ok := errors.AsType[*tls.CertificateVerificationError](err); ok {
		err = fmt.Errorf("%w: name the camera's own certificate with --ca FILE, or trust any with --insecure", err)
	}
	return fmt.Errorf("ask camera %s: %w", redacted(s.URL), err)
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
	s.delivered = s.delivered || data != nil
	return Image{Data: data, CapturedAt: time.Now(), Name: redacted(s.URL)}
}

// imageStarts are the beginnings of the files that a camera may answer with;
// those that a Splitter finds come first.
var imageStarts = [][]byte{jpegStart, pngStart, []byte("RIFF"), []byte("BM"), []byte("II*\x00"), []byte("MM\x00*")}

// ask returns the image that the camera answers with, or nil where the answer is
// a stream, which is open then.
func (s *Web) ask(ctx context.Context) ([]byte, error) {
	step, cancel := context.WithCancel(ctx)
	late := time.AfterFunc(imageTimeout, cancel)
	resp, err := s.login.get(step)
	if err != nil {
		cancel()
		return nil, s.failed(err)
	}
	head := bufio.NewReaderSize(resp.Body, 1<<10)
	body := &closing{head, resp.Body, cancel}
	stream := func() ([]byte, error) {
		late.Stop()
		s.body, s.stream = body, NewSplitter(body)
		return nil, nil
	}
	kind, _, _ := strings.Cut(resp.Header.Get("Content-Type"), ";")
	kind = strings.ToLower(strings.TrimSpace(kind))
	switch {
	case resp.StatusCode == http.StatusUnauthorized && !s.login.hasUser():
		body.Close()
		return nil, s.failed(fmt.Errorf("it answers %s: write a user and a password before its host, as user:password@", resp.Status))
	case resp.StatusCode != http.StatusOK:
		body.Close()
		return nil, s.failed(fmt.Errorf("it answers %s", resp.Status))
	case strings.HasPrefix(kind, "multipart/"):
		return stream()
	}
	begin, _ := head.Peek(512)
	begin = bytes.TrimLeft(begin, "\r\n\t \x00")
	which := -1
	for i, start := range imageStarts {
		if bytes.HasPrefix(begin, start) {
			which = i
			break
		}
	}
	switch {
	case bytes.HasPrefix(begin, []byte("--")): // a multipart that is not called so
		return stream()
	case which >= 0 && which < 3 && resp.ContentLength < 0: // more may follow
		return stream()
	case which < 0 && !strings.HasPrefix(kind, "image/"):
		body.Close()
		what := fmt.Sprintf("%q", kind)
		if lower := bytes.ToLower(begin); bytes.HasPrefix(lower, []byte("<!doctype html")) || bytes.HasPrefix(lower, []byte("<html")) {
			what += ", a web page: open the address in a browser, and look for that of the image"
		}
		return nil, s.failed(fmt.Errorf("it answers with %s: %w", what, ErrNotImages))
	}
	defer body.Close()
	defer late.Stop()
	data, err := io.ReadAll(io.LimitReader(body, maxImage+1))
	if err == nil && len(data) > maxImage {
		err = fmt.Errorf("more than %d bytes: %w", maxImage, ErrTooLarge)
	}
	if err == nil && len(data) == 0 {
		err = errors.New("it answers with nothing")
	}
	if err != nil {
		return nil, s.failed(err)
	}
	return data, nil
}

// ErrNotImages: a camera on the web answers with something else.
var ErrNotImages = errors.New("that is neither an image nor motion JPEG")

// closing also ends the request.
type closing struct {
	io.Reader
	body   io.Closer
	cancel context.CancelFunc
}

func (c *closing) Close() error {
	c.cancel()
	return c.body.Close()
}
