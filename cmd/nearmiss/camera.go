package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/nearmiss/nearmiss/internal/synthetic"
	"github.com/nearmiss/nearmiss/stream"
	"github.com/nearmiss/nearmiss/stream/camera"
	"github.com/nearmiss/nearmiss/stream/metrics"
)

type cameraCmd struct {
	Source   string  `arg:"" help:"An image file, a folder of images, a video file, a capture device (/dev/video0), a network camera's URL (http, https, rtsp, …), a topic of an MQTT broker (mqtt://HOST/TOPIC), - for JPEG, PNG or WebP images on standard input, or synthetic:parts, synthetic:cells or synthetic:patterns for procedural images."`
	Detector string  `required:"" placeholder:"NAME" help:"Detector that judges the frames."`
	Camera   string  `required:"" placeholder:"NAME" help:"Name of this camera."`
	FPS      float64 `name:"fps" placeholder:"F" help:"Frames a second (default: as fast as they are taken; 1 from a network camera that answers with single images)."`
	Loop     bool    `help:"Begin again after the last image of a folder, or a video file's end."`
	Order    string  `enum:"name,time,random" default:"name" help:"Order of a folder's images: ${enum}."`
	Count    int     `placeholder:"N" help:"End after this many frames."`
	Live     bool    `help:"When the queue is full, drop this camera's oldest waiting frames instead of waiting."`
	Seed     uint64  `default:"1" help:"Draws synthetic images and the random order."`
	Defects  float64 `default:"0.1" placeholder:"SHARE" help:"Share of synthetic images with a defect, 0..1."`
	CA       string  `name:"ca" placeholder:"FILE" help:"PEM file of certificates to trust, for https and rtsps cameras that sign their own."`
	Insecure bool    `help:"Trust any certificate of an https or rtsps camera."`

	FrozenAfter time.Duration `default:"10m" placeholder:"TIME" help:"Report, in the log and the frames' headers, a live camera that has sent the same picture for this long; 0: never."`

	JSON bool `name:"json" help:"Print the counters at the end as one JSON object."`
	serverFlags
	httpFlag
}

func (*cameraCmd) Help() string {
	return "Anything that can publish a NATS or MQTT message can be a camera: the payload of a frame is the image file. " +
		"Videos, devices and streams are read by the program ffmpeg, if it is installed.\n\n" +
		examples(
			"nearmiss camera ./today --detector bolts --camera line1 --fps 5",
			"nearmiss camera http://root:secret@10.0.0.7/snapshot.jpg --detector bolts --camera line1 --fps 2",
			"nearmiss camera rtsp://10.0.0.7/stream1 --detector bolts --camera line1 --fps 5 --live",
			"nearmiss camera mqtts://broker.example.org/hall/line1/jpeg --detector bolts --camera line1",
			"nearmiss camera /dev/video0 --detector bolts --camera bench --fps 5 --live",
			"gphoto2 --capture-image-and-download --interval 5 --stdout | nearmiss camera - --detector bolts --camera bench",
			"nearmiss camera synthetic:parts --detector demo --camera one --fps 2 --defects 0.05",
		)
}

func (c *cameraCmd) Run(ctx context.Context, o *output) error {
	src, err := c.source(o)
	if err != nil {
		return err
	}
	var s camera.Stats
	if err := observe(ctx, c.observed(), o, []string{"camera"}, func(ctx context.Context, v *observer) (err error) {
		s, err = c.publish(ctx, src, v, o)
		return err
	}); err != nil {
		return err
	}
	return o.result(c.JSON, s, fmt.Sprintf("%d frames published, %.1f MB", s.Published, float64(s.Bytes)/1e6))
}

// publish brings the source's images to the broker until it ends.
func (c *cameraCmd) publish(ctx context.Context, src camera.Source, v *observer, o *output) (camera.Stats, error) {
	js, err := c.streams(c.await("camera", o))
	if err != nil {
		return camera.Stats{}, err
	}
	nc := js.Conn()
	defer nc.Close()
	frozen := c.FrozenAfter
	switch src.(type) {
	case *camera.Folder, *camera.Generated: // may hold one picture many times
		frozen = 0
	}
	if closer, ok := src.(io.Closer); ok {
		defer func() { _ = closer.Close() }()
	}
	if c.Count > 0 {
		src = &limited{src, c.Count}
	}
	p, err := camera.NewPublisher(camera.Config{
		Names: c.names(), Detector: c.Detector, Camera: c.Camera, Live: c.Live, FrozenAfter: frozen, Tracer: v.tracer(),
	}, js, o.Log)
	if err != nil {
		return camera.Stats{}, usageError{oneLine(err)}
	}
	v.Connection(nc)
	v.Camera(c.Detector, c.Camera, func() metrics.CameraState {
		s := p.Stats()
		return metrics.CameraState{Frames: s.Published, Bytes: s.Bytes, Waited: s.Waited, Up: nc.IsConnected()}
	})
	v.begun("camera", linked(nc))
	c.warnUnknownDetector(ctx, nc, js, o)
	err = p.Run(ctx, src)
	return p.Stats(), err
}

// warnUnknownDetector warns of a detector that is not there: a name may be misspelt.
func (c *cameraCmd) warnUnknownDetector(ctx context.Context, nc *nats.Conn, js jetstream.JetStream, o *output) {
	if c.NKey != "" || c.Creds != "" || strings.Contains(c.Server, "@") {
		return // cameras' identities are of one detector, and may publish and nothing else
	}
	check := func() {
		step, cancel := context.WithTimeout(ctx, 5*time.Second)
		defer cancel()
		if there, err := stream.NewInstallation(js, c.names()).IsAwaited(step, c.Detector); err == nil && !there {
			o.Log.Warn().Str("detector", c.Detector).Msg("there is no such detector yet: its frames wait until it is made (nearmiss detector create), or is the name misspelt?")
		}
	}
	if nc.IsConnected() {
		check()
		return
	}
	up := nc.StatusChanged(nats.CONNECTED)
	go func() {
		select {
		case <-ctx.Done():
		case <-up:
			check()
		}
	}()
}

// source opens what the command line names.
func (c *cameraCmd) source(o *output) (camera.Source, error) {
	if kind, ok := strings.CutPrefix(c.Source, "synthetic:"); ok {
		s, err := synthetic.New(kind, c.Seed, synthetic.Options{DefectRate: c.Defects})
		if err != nil {
			return nil, usageError{err}
		}
		return &camera.Generated{Make: camera.Drawn(s, 0), FPS: c.FPS}, nil
	}
	if c.Source == "-" {
		return &camera.Pipe{R: os.Stdin, FPS: c.FPS, Name: "standard input"}, nil
	}
	if local, ok := strings.CutPrefix(c.Source, "file://"); ok {
		c.Source = local
	}
	if camera.IsMQTT(c.Source) {
		s, err := camera.NewMQTT(c.Source, "nearmiss-camera-"+c.Detector+"-"+c.Camera, o.Log)
		if err != nil {
			return nil, usageError{err}
		}
		s.CAFile = c.CA
		return s, nil
	}
	if camera.IsAddress(c.Source) {
		if err := camera.CheckAddress(c.Source); err != nil {
			return nil, usageError{err}
		}
		if !camera.IsVideo(c.Source) {
			trust, err := camera.TLSConfig(c.CA, c.Insecure)
			if err != nil {
				return nil, usageError{err}
			}
			return &camera.Web{URL: c.Source, FPS: c.FPS, TLS: trust, Log: o.Log}, nil
		}
	} else if info, err := os.Stat(c.Source); err != nil {
		if strings.Contains(c.Source, "@") { // an address that lacks its beginning, and has a password?
			return nil, usageError{errors.New("the source is no file or folder that is there; an address begins with http://, https://, rtsp:// or the like")}
		}
		return nil, usageError{fmt.Errorf("the source %s is no file, folder, device or address: %w", c.Source, err)}
	} else if info.IsDir() {
		return &camera.Folder{Dir: c.Source, Loop: c.Loop, FPS: c.FPS, Order: c.Order, Seed: c.Seed, Log: o.Log}, nil
	}
	if camera.IsVideo(c.Source) {
		return &camera.Video{Source: c.Source, FPS: c.FPS, Loop: c.Loop, CA: c.CA, Insecure: c.Insecure, Log: o.Log}, nil
	}
	return &camera.Folder{Dir: c.Source, Loop: c.Loop, FPS: c.FPS, Order: c.Order, Seed: c.Seed, Log: o.Log}, nil
}

// limited ends a source after some images.
type limited struct {
	camera.Source
	left int
}

func (l *limited) Next(ctx context.Context) (camera.Image, error) {
	if l.left == 0 {
		return camera.Image{}, io.EOF
	}
	l.left--
	return l.Source.Next(ctx)
}
