package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/nearmiss/nearmiss/internal/synthetic"
	"github.com/nearmiss/nearmiss/stream"
	"github.com/nearmiss/nearmiss/stream/camera"
	"github.com/nearmiss/nearmiss/stream/registry"
)

// Sizes of the demo: on two idle cores the first event comes after half a minute or so.
const (
	demoLearn   = 240  // frames that are taken to be normal
	demoFPS     = 2    // of each camera, after those
	demoDefects = 0.2  // share of frames with a defect
	demoSubtle  = 0.15 // share of these that a person hardly sees
	demoAlpha   = 0.01 // false-alarm rate
	demoSize    = 224  // pixels of a frame's sides, as the network takes them
)

// demoTask is one of the demo's detectors and its camera.
type demoTask struct {
	detector, camera string
	kind             string   // of synthetic images
	defects          []string // that occur
}

// The defects are those that a person sees at once where they are gross.
var demoTasks = []demoTask{
	{"demo-parts", "line1", synthetic.Parts, []string{"scratch", "crack", "chip", "stain", "tint"}},
	{"demo-cells", "scope1", synthetic.Cells, []string{"inclusion", "rod", "vacuole", "crenation", "precipitate"}},
}

// source draws the task's images, the first n of them normal. from is the
// number of the first image, so that no two runs show the same.
func (d demoTask) source(normal int, from uint64) (camera.Source, error) {
	good, mixed, err := d.images(demoDefects)
	if err != nil {
		return nil, err
	}
	sources := sequence{&camera.Generated{Make: camera.Drawn(mixed, from+uint64(normal)), FPS: demoFPS}}
	if normal > 0 {
		sources = sequence{&camera.Generated{Make: camera.Drawn(good, from), Count: normal}, sources[0]}
	}
	return &sources, nil
}

// images draws normal images of the task, and others of which a share has defects.
func (d demoTask) images(share float64) (good, mixed *synthetic.Source, err error) {
	o := synthetic.Options{Size: demoSize, Variation: 0.1, Defects: d.defects}
	if good, err = synthetic.New(d.kind, 1, o); err != nil {
		return nil, nil, err
	}
	subtle := demoSubtle
	o.DefectRate, o.SubtleShare = share, &subtle
	mixed, err = synthetic.New(d.kind, 1, o)
	return good, mixed, err
}

// sequence is one source after the other.
type sequence []camera.Source

func (s *sequence) Next(ctx context.Context) (camera.Image, error) {
	for {
		if len(*s) == 0 {
			return camera.Image{}, io.EOF
		}
		img, err := (*s)[0].Next(ctx)
		if !errors.Is(err, io.EOF) {
			return img, err
		}
		*s = (*s)[1:]
	}
}

// runDemo sets the detectors up, lets the cameras run and tells what happens,
// until ctx ends. about says which network it looks through.
func runDemo(ctx context.Context, connect dial, conf config, o *output, about string, asJSON bool) error {
	js, err := serverFlags{}.streams(connect("demo"))
	if err != nil {
		return err
	}
	nc := js.Conn()
	defer nc.Close()
	names := stream.Names{Prefix: conf.Prefix}
	d := &demo{
		o: o, json: asJSON, names: names, tally: map[string]*tally{},
		in: stream.NewInstallation(js, names), control: stream.NewClient(nc, names).For("demo"),
	}
	if about != "" {
		d.printf("%s", about)
	}
	g, ctx := errgroup.WithContext(ctx)
	for _, task := range demoTasks {
		d.tally[task.detector] = &tally{}
		g.Go(func() error { return d.run(ctx, connect, task, o) })
	}
	g.Go(func() error {
		w := stream.WatchConfig{Names: d.names}
		return stream.Watch(ctx, nc, w, o.Log, func(_ context.Context, e stream.Event) error { return d.event(e) })
	})
	g.Go(func() error { return stream.WatchScores(ctx, nc, d.names, "", d.score) })
	g.Go(func() error {
		for {
			select {
			case <-ctx.Done():
				return nil
			case <-time.After(time.Minute):
				d.summary()
			}
		}
	})
	err = g.Wait()
	d.summary()
	return err
}

// demo tells what its cameras show and what the detectors make of it.
type demo struct {
	o       *output
	json    bool
	names   stream.Names
	in      *stream.Installation
	control *stream.Client

	mu    sync.Mutex
	tally map[string]*tally // by detector
}

// tally counts scored frames by what they were and what was said of them.
type tally struct{ found, missed, falseAlarms, quiet int }

// run has one detector learn, unless it has, and its camera publish.
func (d *demo) run(ctx context.Context, connect dial, task demoTask, o *output) error {
	_, err := d.control.CreateDetector(ctx, stream.Detector{
		Name: task.detector, Description: "demo on synthetic images", LearnFrames: demoLearn, FalseAlarmRate: demoAlpha, DefectShare: demoDefects,
	})
	if err != nil && !errors.Is(err, stream.ErrConflict) {
		return err
	}
	reg, err := d.in.Registry(ctx)
	if err != nil {
		return err
	}
	learn := 0
	switch p, err := reg.Active(ctx, task.detector); {
	case err == nil:
		d.printf("%s goes on with release %.12s from an earlier run", task.detector, p.Release)
	case errors.Is(err, registry.ErrNoRelease):
		have, err := d.in.Normals().Count(ctx, task.detector)
		if err != nil {
			return err
		}
		learn = max(0, demoLearn-have)
		d.printf("%s learns normal from the first %d frames of camera %s", task.detector, demoLearn, task.camera)
	default:
		return err
	}
	src, err := task.source(learn, uint64(time.Now().Unix())*demoFPS)
	if err != nil {
		return err
	}
	js, err := serverFlags{}.streams(connect("camera " + task.camera))
	if err != nil {
		return err
	}
	defer js.Conn().Close()
	p, err := camera.NewPublisher(camera.Config{Names: d.names, Detector: task.detector, Camera: task.camera, Live: true}, js, o.Log)
	if err != nil {
		return err
	}
	return p.Run(ctx, src)
}

// printf prints a line for people.
func (d *demo) printf(format string, a ...any) {
	if d.json {
		return
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	fmt.Fprintf(d.o.Out, format+"\n", a...)
}

// event prints an event and whether the synthetic ground truth agrees.
func (d *demo) event(e stream.Event) error {
	var truth synthetic.Truth
	known := json.Unmarshal([]byte(e.Truth), &truth) == nil
	known = known && (e.Kind == stream.KindAnomaly || e.Kind == stream.KindRejected)
	agrees := known && truth.Anomalous == (e.Kind == stream.KindAnomaly)
	if d.json {
		line := struct {
			eventLine
			Agrees *bool `json:"agrees,omitempty"`
		}{eventLine: newEventLine(e)}
		if known {
			line.Agrees = &agrees
		}
		return d.o.JSON(line)
	}
	text := eventText(e)
	switch {
	case !known:
	case agrees:
		text += fmt.Sprintf("  truth: %s %s, agrees", truth.Severity, truth.Defect)
	case truth.Anomalous:
		text += fmt.Sprintf("  truth: %s %s, DISAGREES", truth.Severity, truth.Defect)
	default:
		text += "  truth: normal, DISAGREES"
	}
	d.printf("%s", text)
	return nil
}

// score counts a frame.
func (d *demo) score(e stream.Event) {
	var truth synthetic.Truth
	if e.Anomalous == nil || json.Unmarshal([]byte(e.Truth), &truth) != nil {
		return
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if t := d.tally[e.Detector]; t != nil {
		t.count(truth.Anomalous, *e.Anomalous)
	}
}

// count counts an image that has a defect or not, and was called anomalous or not.
func (t *tally) count(defect, anomalous bool) {
	switch {
	case defect && anomalous:
		t.found++
	case defect:
		t.missed++
	case anomalous:
		t.falseAlarms++
	default:
		t.quiet++
	}
}

// summary prints the counts so far.
func (d *demo) summary() {
	for _, task := range demoTasks {
		d.mu.Lock()
		t := *d.tally[task.detector]
		d.mu.Unlock()
		if n := t.found + t.missed + t.falseAlarms + t.quiet; n > 0 {
			d.printf("%s so far: %d frames; defects: %d found, %d missed; normals: %d false alarms in %d",
				task.detector, n, t.found, t.missed, t.falseAlarms, t.falseAlarms+t.quiet)
		}
	}
}
