package camera

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/rs/zerolog"
)

// Video is a source of the pictures of a video file, of a capture device
// (/dev/video0) or of a stream's URL (rtsp, rtmp, udp, …), which the program
// ffmpeg reads: that knows every format, and is asked for PNG, which loses
// nothing. A device or stream that ends is opened again, once it has given a
// picture.
//
// Each picture comes once, whatever the rate says, and its name ends in its time
// in the video, in seconds (clip.mkv#t=12.48). Where pictures come no faster
// than they were taken, CapturedAt is the time of the first one and what the
// video says has passed since; else it is now.
type Video struct {
	Source string
	// FPS is how many pictures a second are taken at most, those between them
	// left out; a file is then played at its own speed. 0: all of them, a file's
	// as fast as they are taken.
	FPS float64
	// CA is a file of certificates by which an encrypted stream's server is
	// checked. Without it ffmpeg's own default counts.
	CA string
	// Insecure says that an encrypted stream's server is not checked.
	Insecure bool
	// Loop begins a file again after its end.
	Loop bool
	// Patience is how long a device or stream may give no picture before it is
	// opened again: a network that is cut says nothing. Default a minute, and
	// three periods of FPS at least.
	Patience time.Duration
	// Program is ffmpeg's name or path. Default: ffmpeg.
	Program string
	Log     zerolog.Logger

	run       *videoRun // nil: none is under way
	delivered bool      // it has given a picture
	old       bool      // ffmpeg is older than 5.1
}

// ErrNoProgram: ffmpeg is not installed.
var ErrNoProgram = errors.New("videos, devices and streams are read by the program ffmpeg, which is not there: install it")

// live says whether it has no end of its own.
func (s *Video) live() bool { return IsAddress(s.Source) || s.device() }

func (s *Video) device() bool { return strings.HasPrefix(s.Source, "/dev/") }

// arguments are what ffmpeg is called with.
func (s *Video) arguments() []string {
	args := []string{"-nostdin", "-hide_banner", "-nostats", "-loglevel", "level+info"}
	input := s.Source
	switch {
	case s.device():
		args = append(args, "-f", "v4l2")
	case s.live():
		args = append(args, "-protocol_whitelist", protocols[scheme(s.Source)])
		if strings.HasPrefix(scheme(s.Source), "rtsp") {
			args = append(args, "-rtsp_transport", "tcp")
		}
		if s.CA != "" {
			args = append(args, "-ca_file", s.CA, "-tls_verify", "1")
		} else if s.Insecure {
			args = append(args, "-tls_verify", "0")
		}
	default:
		args = append(args, "-protocol_whitelist", fileProtocols)
		input = "file:" + input // its name may have a colon
		if s.FPS > 0 {
			args = append(args, "-re")
		}
		if s.Loop {
			args = append(args, "-stream_loop", "-1")
		}
	}
	var filters []string
	if s.FPS > 0 { // the first picture of each period, and none twice
		f := strconv.FormatFloat(s.FPS, 'f', -1, 64)
		filters = append(filters, `select=isnan(prev_selected_t)+gt(floor(t*`+f+`)\,floor(prev_selected_t*`+f+`))`)
	}
	each := []string{"-fps_mode", "passthrough"}
	if s.old {
		each = []string{"-vsync", "passthrough"}
		filters = append(filters, "showinfo")
	} else {
		filters = append(filters, "showinfo=checksum=0") // says each picture's time
	}
	args = append(args, "-i", input, "-an", "-vf", strings.Join(filters, ","))
	args = append(args, each...)
	return append(args, "-c:v", "png", "-compression_level", "1", "-f", "image2pipe", "-")
}

// Next implements [Source].
func (s *Video) Next(ctx context.Context) (Image, error) {
	if IsAddress(s.Source) {
		if err := CheckAddress(s.Source); err != nil {
			return Image{}, err
		}
	}
	return insist(ctx, s.once, func() bool { return s.delivered && s.live() }, func(err error, wait time.Duration) {
		if errors.Is(err, io.EOF) {
			s.Log.Warn().Str("video", redacted(s.Source)).Dur("again_in", wait).Msg("the stream has ended: opening it again")
			return
		}
		s.Log.Warn().Err(err).Dur("again_in", wait).Msg("the video cannot be read: trying again")
	})
}

func (s *Video) once(ctx context.Context) (Image, error) {
	if s.run == nil {
		run, err := s.open(ctx)
		if err != nil {
			return Image{}, err
		}
		s.run = run
	}
	var silent atomic.Bool
	late := func() bool { return true }
	if s.live() {
		patience := cmp.Or(s.Patience, time.Minute)
		if s.FPS > 0 {
			patience = max(patience, time.Duration(3*float64(time.Second)/s.FPS))
		}
		stop := s.run.stop
		late = time.AfterFunc(patience, func() {
			silent.Store(true)
			stop()
		}).Stop
	}
	data, err := s.run.images.Next()
	late()
	if err == nil {
		s.delivered = true
		return s.run.image(data, redacted(s.Source)), nil
	}
	failed := s.run.end()
	first, reason := s.run.taken == 0, clean(s.run.log.errors(), s.Source)
	s.run = nil
	switch {
	case ctx.Err() != nil:
		return Image{}, ctx.Err()
	case silent.Load():
		return Image{}, fmt.Errorf("read video %s: no picture comes", redacted(s.Source))
	case failed != nil && first && !s.old && tooOld(failed):
		s.old = true
		return s.once(ctx)
	case failed != nil:
		return Image{}, fmt.Errorf("read video %s: %w", redacted(s.Source), failed)
	case first && s.live(): // that is no end, whatever ffmpeg's exit code says
		return Image{}, fmt.Errorf("read video %s: it gave no picture: %s", redacted(s.Source), cmp.Or(reason, err.Error()))
	case errors.Is(err, io.EOF):
		return Image{}, io.EOF
	}
	return Image{}, fmt.Errorf("read video %s: %w", redacted(s.Source), err)
}

// tooOld says whether ffmpeg did not know an argument.
func tooOld(err error) bool {
	return strings.Contains(err.Error(), "fps_mode") || strings.Contains(err.Error(), "checksum")
}

// videoRun is one run of ffmpeg.
type videoRun struct {
	images *Splitter
	log    *ffmpegLog
	ended  chan struct{}
	err    error // of the program, when it has ended
	stop   context.CancelFunc

	taken int           // pictures
	first time.Time     // when the first one came whose time is known
	began time.Duration // its time in the video

	untimed bool // the program does not say when pictures were
}

// image is the next picture, with its time.
func (r *videoRun) image(data []byte, name string) Image {
	img := Image{Data: data, CapturedAt: time.Now(), Name: name}
	r.taken++
	if r.untimed {
		return img
	}
	at, ok := r.log.time(r.ended)
	if r.untimed = !ok; at < 0 || !ok { // one that is missed would shift all that follow
		return img
	}
	if r.first.IsZero() {
		r.first, r.began = img.CapturedAt, at
	}
	if t := r.first.Add(at - r.began); t.Before(img.CapturedAt) {
		img.CapturedAt = t
	}
	img.Name += "#t=" + strconv.FormatFloat(at.Seconds(), 'f', -1, 64)
	return img
}

func (s *Video) open(ctx context.Context) (*videoRun, error) {
	program := cmp.Or(s.Program, "ffmpeg")
	found, err := exec.LookPath(program)
	if err != nil {
		return nil, fmt.Errorf("read video %s: %w", redacted(s.Source), ErrNoProgram)
	}
	r, w, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	ctx, stop := context.WithCancel(ctx)
	log := &ffmpegLog{times: make(chan time.Duration, 1<<10)}
	cmd := exec.CommandContext(ctx, found, s.arguments()...)
	cmd.Stdout, cmd.Stderr, cmd.WaitDelay = w, log, 2*time.Second
	err = cmd.Start()
	w.Close()
	if err != nil {
		stop()
		r.Close()
		return nil, fmt.Errorf("start %s: %w", program, err)
	}
	run := &videoRun{images: NewSplitter(r), log: log, ended: make(chan struct{}), stop: stop}
	go func() {
		defer close(run.ended)
		if err := cmd.Wait(); err != nil {
			run.err = fmt.Errorf("%s: %w: %s", program, err, clean(log.errors(), s.Source))
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
	select {
	case <-r.ended:
		r.stop()
		return r.err
	case <-time.After(2 * time.Second):
		r.stop()
		<-r.ended
		return nil
	}
}

// ffmpegLog takes what ffmpeg writes, line by line: the times of its pictures, and the
// end of what is no mere information.
type ffmpegLog struct {
	times chan time.Duration
	mu    sync.Mutex
	line  []byte
	lines []string
}

// keptLines of errors, each of which is cut to keptBytes.
const (
	keptLines = 4
	keptBytes = 512
)

func (s *ffmpegLog) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, c := range p {
		if c != '\n' && c != '\r' {
			if len(s.line) < keptBytes {
				s.line = append(s.line, c)
			}
			continue
		}
		s.take(string(s.line))
		s.line = s.line[:0]
	}
	return len(p), nil
}

// take keeps a line, or the time in it:
// "[Parsed_showinfo_0 @ 0x…] [info] n:   0 pts:  40 pts_time:0.04 …".
func (s *ffmpegLog) take(line string) {
	if strings.Contains(line, "Parsed_showinfo") {
		if _, after, ok := strings.Cut(line, " pts_time:"); ok && strings.Contains(line, " n:") {
			at := time.Duration(-1)
			if f := strings.Fields(after); len(f) > 0 {
				if v, err := strconv.ParseFloat(f[0], 64); err == nil && v > -1e9 && v < 1e9 {
					at = time.Duration(v * float64(time.Second))
				}
			}
			select {
			case s.times <- at:
			default: // nobody asks
			}
		}
		return
	}
	if line = strings.Join(strings.Fields(line), " "); line == "" || strings.Contains(line, "[info]") || strings.Contains(line, "[warning]") {
		return
	}
	s.lines = append(s.lines, line)
	s.lines = s.lines[max(0, len(s.lines)-keptLines):]
}

// time is that of the next picture, negative if the video does not tell. ffmpeg
// says it before the picture comes.
func (s *ffmpegLog) time(ended <-chan struct{}) (at time.Duration, ok bool) {
	select {
	case at = <-s.times:
		return at, true
	case <-ended:
	case <-time.After(time.Second):
	}
	select {
	case at = <-s.times:
		return at, true
	default:
		return 0, false
	}
}

func (s *ffmpegLog) errors() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return strings.Join(append(s.lines, strings.Join(strings.Fields(string(s.line)), " ")), " ")
}
