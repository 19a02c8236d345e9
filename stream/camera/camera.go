// Package camera has sources of frames, and the publisher that brings them to
// the broker.
//
// A [Source] hands out one image after the other. A [Publisher] names each,
// says when it was taken, and publishes it until it is stored: when the broker does
// not answer it is sent again, which may store it twice, and the worker knows the
// second by its id and image; when the queue is full it waits, and an image above
// the broker's payload limit travels as an object.
package camera

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"strconv"
	"sync"
	"time"

	"github.com/cenkalti/backoff/v4"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/rs/zerolog"

	"github.com/nearmiss/nearmiss/stream"
	"github.com/nearmiss/nearmiss/stream/internal/pull"
	"github.com/nearmiss/nearmiss/stream/internal/wait"
)

// Image is one encoded image from a source.
type Image struct {
	Data       []byte    // the image file's bytes
	CapturedAt time.Time // zero: now
	Name       string    // where it came from: a file's path, a URL; may be empty
	Truth      string    // ground truth, JSON, of a synthetic image; else empty
	// Done is called when the broker has the image, where the source wants to
	// know; nil: it does not.
	Done func()
}

// Source is where images come from.
type Source interface {
	// Next returns the next image when it is due. It returns io.EOF after the
	// last one, and ctx's error when ctx ends.
	Next(ctx context.Context) (Image, error)
}

// Config says whose frames are published, and how.
type Config struct {
	stream.Names

	Detector string // required
	Camera   string // required
	// Run begins every frame id, followed by a dash and the frame's number.
	// Two runs of one camera need two names. Default: the time of the start.
	Run string
	// Live has the camera's oldest waiting frames dropped when the queue is full,
	// instead of waiting. A worker drops them: cameras cannot.
	Live bool
	// LiveBacklog is how many frames a live camera leaves in the queue. Default
	// 32.
	LiveBacklog int
	// FrozenAfter is how long a camera may send the same picture before that is
	// reported: in the log, once an hour, and in the frames' header
	// Nearmiss-Unchanged-Since. 0: it is never reported.
	FrozenAfter time.Duration
	// Tracer makes spans of what is published. Default nil: nobody follows it.
	Tracer stream.Tracer
}

// Validate reports every setting that cannot work.
func (c Config) Validate() error {
	errs := []error{c.Names.Validate(), stream.CheckToken("detector", c.Detector), stream.CheckToken("camera", c.Camera)}
	if c.Run != "" && !stream.ValidToken(c.Run) {
		errs = append(errs, stream.CheckToken("run", c.Run))
	}
	return errors.Join(errs...)
}

// Stats counts what a publisher did.
type Stats struct {
	Published uint64        `json:"published"` // frames that the broker has
	Bytes     uint64        `json:"bytes"`     // of their images
	Repeated  uint64        `json:"repeated"`  // publishes that were sent again
	Waited    time.Duration `json:"waited"`    // for room in the queue
}

// Publisher brings a source's images to the broker as frames.
type Publisher struct {
	cfg   Config
	js    jetstream.JetStream
	log   zerolog.Logger
	epoch *pull.Epoch
	still still
	mute  bool // that old frames are not dropped has been said

	mu    sync.Mutex
	stats Stats
}

// NewPublisher prepares a publisher.
func NewPublisher(cfg Config, js jetstream.JetStream, log zerolog.Logger) (*Publisher, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	if cfg.Run == "" {
		cfg.Run = strconv.FormatInt(time.Now().UnixMilli(), 36)
	}
	cfg.LiveBacklog = cmp.Or(cfg.LiveBacklog, 32)
	return &Publisher{
		cfg: cfg, js: js, epoch: pull.NewEpoch(),
		log: log.With().Str("component", "camera").Str("detector", cfg.Detector).Str("camera", cfg.Camera).Logger(),
	}, nil
}

// Run publishes until the source ends or ctx does; neither is an error. It may
// be called once.
func (p *Publisher) Run(ctx context.Context, src Source) error {
	ctx, cancel := context.WithCancel(ctx)
	var follow sync.WaitGroup
	follow.Go(func() { p.epoch.Follow(ctx, p.js.Conn(), func() {}) })
	defer follow.Wait()
	defer cancel()
	for n := 1; ; n++ {
		img, err := src.Next(ctx)
		if errors.Is(err, io.EOF) || ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return fmt.Errorf("camera %s: %w", p.cfg.Camera, err)
		}
		if img.CapturedAt.IsZero() {
			img.CapturedAt = time.Now()
		}
		f := stream.Frame{
			Detector: p.cfg.Detector, Camera: p.cfg.Camera, ID: p.cfg.Run + "-" + strconv.Itoa(n),
			CapturedAt: img.CapturedAt, Image: img.Data, Source: img.Name, Truth: img.Truth,
		}
		if p.cfg.FrozenAfter > 0 {
			f.UnchangedSince = p.still.watch(img.Data, time.Now(), p.cfg.FrozenAfter, p.log)
		}
		err = p.publish(ctx, f)
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return err
		}
		if img.Done != nil {
			img.Done()
		}
	}
}

// Stats returns the counters, at any time.
func (p *Publisher) Stats() Stats {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.stats
}

// publish stores one frame, however long it takes.
func (p *Publisher) publish(ctx context.Context, f stream.Frame) (err error) {
	if t := p.cfg.Tracer; t != nil {
		span := t.Start(f.SendSpan(p.cfg.Names))
		f.Trace = span.Context()
		defer func() { span.End(time.Time{}, err) }()
	}
	size := len(f.Image)
	m, err := f.Message(p.cfg.Names)
	if err != nil {
		return err
	}
	if int64(m.Size()) > p.limit(ctx) {
		if m, err = p.asObject(ctx, f); err != nil {
			return fmt.Errorf("store the image of frame %s of camera %s: %w", f.ID, p.cfg.Camera, err)
		}
	}
	if err := p.send(ctx, m, 0); err != nil {
		return fmt.Errorf("publish frame %s of camera %s: %w", f.ID, p.cfg.Camera, err)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.stats.Published++
	p.stats.Bytes += uint64(size)
	return nil
}

// limit waits until a broker has said how large a message may be, in bytes.
func (p *Publisher) limit(ctx context.Context) int64 {
	for p.js.Conn().MaxPayload() == 0 && ctx.Err() == nil {
		wait.Pause(ctx, 20*time.Millisecond)
	}
	return p.js.Conn().MaxPayload()
}

// errUnsure is returned for a message of which nobody knows whether it is stored.
var errUnsure = errors.New("the broker has not said whether it is stored")

// send publishes one message until it is stored. The frame queue, which knows no
// message ids, may have it twice then; the bucket of large frames knows a part that it
// has by its id, for two minutes: with unsure above 0, send gives up after that time
// without an answer.
func (p *Publisher) send(ctx context.Context, m *nats.Msg, unsure time.Duration) error {
	var fullSince, unsureSince time.Time
	tries := 0
	b := wait.Endless(20*time.Millisecond, 2*time.Second)
	err := backoff.Retry(func() error {
		tries++
		within, cancel := p.epoch.Within(ctx)
		defer cancel()
		step, cancel := context.WithTimeout(within, 5*time.Second)
		defer cancel()
		if unsureSince.IsZero() {
			unsureSince = time.Now()
		}
		_, err := p.js.PublishMsg(step, m)
		switch {
		case err == nil:
			return nil
		case errors.Is(err, nats.ErrMaxPayload), errors.Is(err, nats.ErrConnectionClosed), errors.Is(err, nats.ErrBadSubject):
			return backoff.Permanent(err)
		case stream.IsForbidden(p.js.Conn(), m.Subject):
			return backoff.Permanent(fmt.Errorf("this identity may not publish on %s: %w", m.Subject, nats.ErrPermissionViolation))
		case stream.IsQueueFull(err):
			tries--
			unsureSince = time.Time{}
			if fullSince.IsZero() {
				fullSince = time.Now()
				p.log.Warn().Err(err).Bool("live", p.cfg.Live).Msg("the frame queue is full")
			}
			if p.cfg.Live {
				p.shed(ctx)
			}
		case unsure > 0 && time.Since(unsureSince) > unsure:
			return backoff.Permanent(errUnsure)
		case tries == 3:
			p.log.Warn().Err(err).Msg("the broker does not take frames: trying on")
		}
		return err
	}, backoff.WithContext(b, ctx))
	p.mu.Lock()
	defer p.mu.Unlock()
	if !fullSince.IsZero() {
		p.stats.Waited += time.Since(fullSince)
	}
	p.stats.Repeated += uint64(max(tries-1, 0))
	return err
}

// shed asks a worker to drop this camera's oldest waiting frames.
func (p *Publisher) shed(ctx context.Context) {
	step, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	dropped, err := stream.NewClient(p.js.Conn(), p.cfg.Names).Shed(step, p.cfg.Detector, p.cfg.Camera, p.cfg.LiveBacklog)
	switch {
	case err != nil && !p.mute:
		p.mute = true
		p.log.Warn().Err(err).Msg("old frames are not dropped: waiting for room")
	case err == nil:
		p.mute = false
		p.log.Debug().Uint64("frames", dropped).Msg("old frames are dropped")
	}
}

// unsurePart is for how long a part of an object is sent again: well within the
// time for which the broker knows it by its id. An object with a part that is
// there twice is none.
const unsurePart = time.Minute

// asObject stores the image as an object and makes a frame that names it.
func (p *Publisher) asObject(ctx context.Context, f stream.Frame) (*nats.Msg, error) {
	for {
		parts, small, err := f.Large(p.cfg.Names, int(min(p.js.Conn().MaxPayload()/2, 1<<20)))
		if err != nil {
			return nil, err
		}
		for _, m := range parts {
			if err = p.send(ctx, m, unsurePart); err != nil {
				break
			}
		}
		if err == nil {
			return small.Message(p.cfg.Names)
		}
		if errors.Is(err, nats.ErrPermissionViolation) {
			return nil, fmt.Errorf("its %d bytes are above the broker's limit of %d, and this identity may not send large frames (nearmiss users add camera --large): %w", len(f.Image), p.js.Conn().MaxPayload(), err)
		}
		if !errors.Is(err, errUnsure) {
			return nil, err
		}
		p.log.Warn().Str("frame", f.ID).Msg("it is not certain which parts of a large image are stored: sending it anew")
	}
}
