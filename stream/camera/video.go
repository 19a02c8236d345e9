package camera

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/cenkalti/backoff/v4"
	"github.com/rs/zerolog"

	"github.com/nearmiss/nearmiss/internal/redact"
)

// Video is a source of the pictures of a video file, of a capture device
// (/dev/video0) or of a stream's URL (rtsp, rtmp, udp, …), which the program
// ffmpeg reads: that knows every format, and is asked for PNG, which loses
// nothing. A device or stream that ends is opened again, once it has given a
// picture.
type Video struct {
	Source string
	// FPS is how many pictures a second are taken; a file is then played at its
	// own speed. 0: all of them, a file's as fast as they are taken.
	FPS float64
	// Loop begins a file again after its end.
	Loop bool
	// Program is ffmpeg's name or path. Default: ffmpeg.
	Program string
	Log     zerolog.Logger

	run   *videoRun // nil: none is under way
	known bool      // it has given a picture
}

// ErrNoProgram: ffmpeg is not installed.
var ErrNoProgram = errors.New("videos, devices and streams are read by the program ffmpeg, which is not there: install it")

// videoFiles are the file names' ends by which a video is known.
var videoFiles = []string{".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".ts", ".mjpeg", ".mjpg", ".wmv", ".flv"}

// IsVideo says whether a source is one for [Video], by its name.
func IsVideo(source string) bool {
	scheme, _, isURL := strings.Cut(source, "://")
	if !isURL {
		return strings.HasPrefix(source, "/dev/") || slices.Contains(videoFiles, strings.ToLower(filepath.Ext(source)))
	}
	if scheme != "http" && scheme != "https" {
		return true
	}
	u, err := url.Parse(source)
	if err != nil {
		return false
	}
	ext := strings.ToLower(path.Ext(u.Path)) // motion JPEG is for Web
	return ext == ".m3u8" || slices.Contains(videoFiles, ext) && !strings.HasPrefix(ext, ".mj")
}

// live says whether it has no end of its own.
func (s *Video) live() bool {
	return strings.Contains(s.Source, "://") || strings.HasPrefix(s.Source, "/dev/")
}

// arguments are what ffmpeg is called with.
func (s *Video) arguments() []string {
	args := []string{"-nostdin", "-hide_banner", "-loglevel", "error"}
	switch {
	case strings.HasPrefix(s.Source, "rtsp://"):
		args = append(args, "-rtsp_transport", "tcp")
	case strings.HasPrefix(s.Source, "/dev/"):
		args = append(args, "-f", "v4l2")
	case s.live():
	default:
		if s.FPS > 0 {
			args = append(args, "-re")
		}
		if s.Loop {
			args = append(args, "-stream_loop", "-1")
		}
	}
	args = append(args, "-i", s.Source, "-an")
	if s.FPS > 0 {
		args = append(args, "-vf", "fps="+strconv.FormatFloat(s.FPS, 'f', -1, 64))
	}
	return append(args, "-c:v", "png", "-compression_level", "1", "-f", "image2pipe", "-")
}

// Next implements [Source].
func (s *Video) Next(ctx context.Context) (Image, error) {
	b := backoff.NewExponentialBackOff(backoff.WithInitialInterval(200*time.Millisecond), backoff.WithMaxInterval(10*time.Second), backoff.WithMaxElapsedTime(0))
	var img Image
	err := backoff.RetryNotify(func() (err error) {
		img, err = s.once(ctx)
		if err != nil && (!s.known || !s.live() || ctx.Err() != nil) {
			return backoff.Permanent(err)
		}
		return err
	}, backoff.WithContext(b, ctx), func(err error, wait time.Duration) {
		s.Log.Warn().Err(err).Dur("again_in", wait).Msg("the video has ended: opening it again")
	})
	return img, err
}

func (s *Video) once(ctx context.Context) (Image, error) {
	if s.run == nil {
		run, err := s.open(ctx)
		if err != nil {
			return Image{}, err
		}
		s.run = run
	}
	data, err := s.run.images.Next()
	if err == nil {
		s.known = true
		return Image{Data: data, CapturedAt: time.Now(), Name: redact.Text(s.Source)}, nil
	}
	failed := s.run.end()
	s.run = nil
	switch {
	case ctx.Err() != nil:
		return Image{}, ctx.Err()
	case failed != nil:
		return Image{}, fmt.Errorf("read video %s: %w", redact.Text(s.Source), failed)
	case errors.Is(err, io.EOF):
		return Image{}, io.EOF
	}
	return Image{}, fmt.Errorf("read video %s: %w", redact.Text(s.Source), err)
}

// videoRun is one run of ffmpeg.
type videoRun struct {
	images *Splitter
	ended  chan struct{}
	err    error // of the program, when it has ended
	stop   context.CancelFunc
}

func (s *Video) open(ctx context.Context) (*videoRun, error) {
	program := s.Program
	if program == "" {
		program = "ffmpeg"
	}
	found, err := exec.LookPath(program)
	if err != nil {
		return nil, fmt.Errorf("read video %s: %w", redact.Text(s.Source), ErrNoProgram)
	}
	r, w, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	ctx, stop := context.WithCancel(ctx)
	said := &tail{}
	cmd := exec.CommandContext(ctx, found, s.arguments()...)
	cmd.Stdout, cmd.Stderr, cmd.WaitDelay = w, said, 2*time.Second
	err = cmd.Start()
	w.Close()
	if err != nil {
		stop()
		r.Close()
		return nil, fmt.Errorf("start %s: %w", program, err)
	}
	run := &videoRun{images: NewSplitter(r), ended: make(chan struct{}), stop: stop}
	go func() {
		defer close(run.ended)
		if err := cmd.Wait(); err != nil {
			run.err = fmt.Errorf("%s: %w: %s", program, err, redact.Text(said.String()))
		}
	}()
	context.AfterFunc(ctx, func() { r.Close() })
	return run, nil
}

// end stops the program and says what it failed with.
func (r *videoRun) end() error {
	select {
	case <-r.ended: // of itself
		r.stop()
		return r.err
	default:
	}
	// The pictures have ended, and so does the program, most often.
	t := time.NewTimer(2 * time.Second)
	defer t.Stop()
	select {
	case <-r.ended:
		r.stop()
		return r.err
	case <-t.C:
		r.stop()
		<-r.ended
		return nil
	}
}

// tail keeps the end of what is written to it.
type tail struct {
	mu sync.Mutex
	b  []byte
}

func (t *tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.b = append(t.b, p...)
	t.b = t.b[max(0, len(t.b)-512):]
	return len(p), nil
}

func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return string(bytes.Join(bytes.Fields(t.b), []byte(" ")))
}
