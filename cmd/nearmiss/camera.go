package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/nearmiss/nearmiss/internal/synthetic"
	"github.com/nearmiss/nearmiss/stream/camera"
)

type cameraCmd struct {
	Source   string  `arg:"" help:"An image file, a folder of images, a video file, a capture device (/dev/video0), a network camera's URL (http, https, rtsp, …), - for JPEG or PNG images on standard input, or synthetic:parts, synthetic:cells or synthetic:patterns for procedural images."`
	Detector string  `required:"" placeholder:"NAME" help:"Detector that judges the frames."`
	Camera   string  `required:"" placeholder:"NAME" help:"Name of this camera."`
	FPS      float64 `name:"fps" placeholder:"F" help:"Frames a second (default: as fast as they are taken; 1 from a network camera that answers with single images)."`
	Loop     bool    `help:"Begin again after the last image of a folder, or a video file's end."`
	Order    string  `enum:"name,time,random" default:"name" help:"Order of a folder's images: ${enum}."`
	Count    int     `placeholder:"N" help:"End after this many frames."`
	Live     bool    `help:"When the queue is full drop the oldest waiting frames, instead of waiting."`
	Seed     uint64  `default:"1" help:"Draws synthetic images and the random order."`
	Defects  float64 `default:"0.1" placeholder:"SHARE" help:"Share of synthetic images with a defect, 0..1."`
	JSON     bool    `name:"json" help:"Print the counters at the end as one JSON object."`
	serverFlags
}

func (*cameraCmd) Help() string {
	return "Anything that can publish a NATS or MQTT message can be a camera: the payload of a frame is the image file. " +
		"Videos, devices and streams are read by the program ffmpeg, if it is installed.\n\n" +
		examples(
			"nearmiss camera ./today --detector bolts --camera line1 --fps 5",
			"nearmiss camera http://root:secret@10.0.0.7/snapshot.jpg --detector bolts --camera line1 --fps 2",
			"nearmiss camera rtsp://10.0.0.7/stream1 --detector bolts --camera line1 --fps 5 --live",
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
	nc, err := c.await("camera", o)
	if err != nil {
		return err
	}
	defer nc.Close()
	js, err := jetstream.New(nc)
	if err != nil {
		return err
	}
	if c.Count > 0 {
		src = &limited{src, c.Count}
	}
	p, err := camera.NewPublisher(camera.Config{
		Names: c.names(), Detector: c.Detector, Camera: c.Camera, Live: c.Live,
	}, js, o.Log)
	if err != nil {
		return usageError{oneLine(err)}
	}
	if err := p.Run(ctx, src); err != nil {
		return err
	}
	s := p.Stats()
	if c.JSON {
		return o.JSON(s)
	}
	_, err = fmt.Fprintf(o.Out, "%d frames published, %.1f MB\n", s.Published, float64(s.Bytes)/1e6)
	return err
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
	switch isURL := strings.Contains(c.Source, "://"); {
	case c.Source == "-":
		return &camera.Pipe{R: os.Stdin, FPS: c.FPS, Name: "standard input"}, nil
	case isURL && !camera.IsVideo(c.Source):
		return &camera.Web{URL: c.Source, FPS: c.FPS, Log: o.Log}, nil
	case !isURL:
		if _, err := os.Stat(c.Source); err != nil {
			return nil, usageError{err}
		}
	}
	if camera.IsVideo(c.Source) {
		return &camera.Video{Source: c.Source, FPS: c.FPS, Loop: c.Loop, Log: o.Log}, nil
	}
	return &camera.Folder{Dir: c.Source, Loop: c.Loop, FPS: c.FPS, Order: c.Order, Seed: c.Seed}, nil
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
