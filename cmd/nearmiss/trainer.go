package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/nearmiss/nearmiss/bank"
	"github.com/nearmiss/nearmiss/inference/backbone/catalogue"
	"github.com/nearmiss/nearmiss/inference/backbone/starter"
	"github.com/nearmiss/nearmiss/inference/heatmap"
	"github.com/nearmiss/nearmiss/inference/imaging"
	"github.com/nearmiss/nearmiss/inference/ort"
	"github.com/nearmiss/nearmiss/stream"
	"github.com/nearmiss/nearmiss/stream/traces"
	"github.com/nearmiss/nearmiss/stream/trainer"
	"github.com/nearmiss/nearmiss/training"
)

type trainerCmd struct {
	Server string `placeholder:"URL" help:"NATS server (default nats://127.0.0.1:4222)."`
	credentialFlags
	Data         string        `type:"path" placeholder:"DIR" help:"Folder for releases and jobs under way (default nearmiss-data)."`
	Backbone     string        `type:"backbone" placeholder:"FILE|NAME" help:"Model for detectors that name none (default: the starter backbone, for first trials)."`
	ExitWhenIdle time.Duration `name:"exit-when-idle" placeholder:"TIME" help:"End when no job has been under way or waiting for so long (default: never); for jobs that a scheduler starts."`
	modelFlags
	configFlag
}

func (*trainerCmd) Help() string {
	return "It serves until Ctrl-C; a job under way is then given back and another trainer takes it.\n\n" +
		examples("nearmiss trainer --backbone vit_b.onnx")
}

func (c *trainerCmd) Run(ctx context.Context, o *output) error {
	conf, err := c.load(func(conf *config) {
		set(&conf.Server, c.Server)
		conf.JetStreamAPI = c.jetStreamAPI()
		set(&conf.Data, c.Data)
		set(&conf.Trainer.Backbone, c.Backbone)
		c.modelFlags.override(conf)
	})
	if err != nil {
		return err
	}
	if err := ort.Load(); err != nil { // now, and not at the first job
		return err
	}
	server := serverFlags{Server: conf.Server, credentialFlags: c.credentialFlags}
	return server.serve(ctx, "trainer", conf.observed(), o, func(ctx context.Context, nc *nats.Conn, v *observer) error {
		return runTrainer(ctx, conf, c.ExitWhenIdle, nc, v, o)
	})
}

// runTrainer runs the trainer that conf describes until ctx ends.
func runTrainer(ctx context.Context, conf config, idle time.Duration, nc *nats.Conn, v *observer, o *output) error {
	d, err := ort.ParseDevice(conf.Worker.Device)
	if err != nil {
		return err
	}
	w, err := trainer.New(trainer.Config{
		Names:    conf.names(),
		CacheDir: filepath.Join(conf.Data, "releases"), ScratchDir: filepath.Join(conf.Data, "jobs"),
		AckWait: conf.Trainer.Takeover, Read: trainer.Reader{Calibration: calibrationOf, Outliers: outliersOf, Choices: conf.choices}, IdleExit: idle, Meter: traces.Jobs(v.traces, v.Trainer()),
	}, nc, maker{
		conf: conf, device: d, o: o,
		limits: imaging.Limits{MaxBytes: conf.Images.MaxBytes, MaxPixels: conf.Images.MaxPixels},
	}, o.Log)
	if err != nil {
		return usageError{oneLine(err)}
	}
	v.Connection(nc)
	v.begun("trainer", w.Ready)
	return w.Run(ctx)
}

// maker carries training jobs out.
type maker struct {
	conf   config
	device ort.Device
	limits imaging.Limits
	o      *output
}

// Train implements [trainer.Maker].
func (t maker) Train(ctx context.Context, task *trainer.Task) (trainer.Result, error) {
	d := task.Detector
	plan, err := t.plan(ctx, task)
	if err != nil {
		return trainer.Result{}, stream.Permanent(stream.CodeTraining, err)
	}
	without := ""
	if task.First {
		without = plan.Hasten()
	}
	if plan.Method == training.FITYMI {
		if _, err := task.RestoreFolder(plan.Host.Work); err != nil {
			t.o.Log.Warn().Err(err).Str("detector", d.Name).Msg("learning from the beginning")
			if err := os.RemoveAll(plan.Host.Work); err != nil {
				return trainer.Result{}, err
			}
		}
	}
	res, err := training.Fit(ctx, plan)
	if errors.Is(err, training.ErrPlan) || errors.Is(err, training.ErrTooFew) {
		return trainer.Result{}, stream.Permanent(stream.CodeTraining, err)
	}
	if err != nil {
		return trainer.Result{}, err
	}
	made := t.made(task, res)
	made.Without = without
	if task.Active != "" && !task.Request.Force {
		worse, err := training.Worse(task.Active, res, d.FalseAlarmRate)
		if err != nil { // it cannot be loaded either
			t.o.Log.Warn().Err(err).Str("detector", d.Name).Msg("the release that serves cannot be compared with")
		}
		if worse != "" {
			made.Hold = fmt.Sprintf("%s; nearmiss train %s --force replaces it all the same", worse, d.Name)
		}
	}
	return made, nil
}

// plan is how a task is carried out.
func (t maker) plan(ctx context.Context, task *trainer.Task) (plan training.Plan, err error) {
	normals, err := normalImages(task)
	if err != nil {
		return plan, err
	}
	model, err := t.backbone(task.Detector)
	if err != nil {
		return plan, err
	}
	d := task.Detector
	work, phase, saved := filepath.Join(task.Dir, "steps"), "", time.Now()
	sheet := sheets{work: work}
	plan = training.Plan{
		Detector: d.Name, Method: training.Method(d.Method), Out: releaseOf(task), Seed: uint64(task.Request.Seed),
		Data:        training.Data{Normals: normals, View: view(d), NoImages: d.NoEvidence, Limits: t.limits},
		Model:       training.Model{Backbone: model, Tiles: d.Tiles, Budget: time.Duration(d.Budget)},
		Score:       training.Score{K: d.K},
		Calibration: training.Calibration{Alpha: d.FalseAlarmRate, HeldOut: d.HeldOut, Settle: true},
		Host: training.Host{
			Device: t.device, Threads: t.conf.Worker.Threads, Tool: "nearmiss " + version, Log: t.o.Log,
			Progress: func(p training.Progress) {
				if p.Step != phase || time.Since(saved) > saveEvery {
					t.save(ctx, task, work)
					phase, saved = p.Step, time.Now()
				}
				if p.Frechet != nil {
					t.keepSheet(task, &sheet)
				}
				task.Report(stream.Progress{
					Phase: p.Step, Step: p.Done, Steps: p.Total, Loss: p.Loss, Frechet: p.Frechet, Ratio: p.Ratio, Left: stream.Duration(p.Left),
				})
			},
		},
	}
	if plan.Score.Groups, err = training.ParseScore(d.Score); err != nil {
		return plan, err
	}
	if plan.Model.Symmetry, plan.Model.AutoSymmetry, err = training.ParseSymmetry(d.Symmetry); err != nil {
		return plan, err
	}
	if plan.Method != training.FITYMI {
		return plan, nil
	}
	tuning, err := t.profile(cmp.Or(d.Profile, "cpu"))
	if err != nil {
		return plan, err
	}
	plan.Tuning, plan.Host.Work = &tuning, work
	plan.Data.Anomalies, err = folderImages(task.Anomalies)
	return plan, err
}

// releaseOf is the folder that a task's release is written to.
func releaseOf(task *trainer.Task) string { return filepath.Join(task.Dir, "release") }

// sheets are the pictures that a generator makes of what it draws.
type sheets struct {
	work string // folder of the steps
	last string // file that was kept
}

// newest is the file that has come since the last one; empty: there is none.
func (s *sheets) newest() string {
	found, err := filepath.Glob(filepath.Join(s.work, "*", "look-*.png"))
	if err != nil || len(found) == 0 {
		return ""
	}
	newest := slices.MaxFunc(found, func(a, b string) int { return cmp.Compare(filepath.Base(a), filepath.Base(b)) })
	if newest == s.last {
		return ""
	}
	s.last = newest
	return newest
}

const (
	sheetSide    = 1600 // pixels
	sheetQuality = 75
)

// sheetOf is the picture in a file as it is kept, a JPEG.
func sheetOf(file string) ([]byte, error) {
	b, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	img, err := imaging.Decode(b, imaging.Limits{})
	if err != nil {
		return nil, err
	}
	return heatmap.Thumbnail(img, sheetSide).JPEG(sheetQuality)
}

// keepSheet keeps what the generator drew last. It is for people: what is wrong with
// it stops no training.
func (t maker) keepSheet(task *trainer.Task, s *sheets) {
	file := s.newest()
	if file == "" {
		return
	}
	b, err := sheetOf(file)
	if err == nil {
		err = task.Sheet(b)
	}
	if err != nil {
		t.o.Log.Debug().Err(err).Str("detector", task.Detector.Name).Msg("what the generator draws is not kept")
	}
}

// profile is a training profile of the trainer's own, or one that all have.
func (t maker) profile(name string) (training.Tuning, error) {
	if t.conf.Trainer.Profiles == "" {
		return training.Profile(name)
	}
	file := filepath.Join(t.conf.Trainer.Profiles, name+".json")
	b, err := os.ReadFile(file)
	if errors.Is(err, os.ErrNotExist) {
		return training.Profile(name)
	}
	if err != nil {
		return training.Tuning{}, fmt.Errorf("read training profile %s: %w", name, err)
	}
	tuning, err := training.ParseTuning(b)
	if err != nil {
		return training.Tuning{}, fmt.Errorf("%s: %w", file, err)
	}
	return tuning, nil
}

// saveEvery is how often the results of a step that is under way are kept; those
// of the steps before are kept when it begins.
const saveEvery = 10 * time.Minute

// save keeps what the steps have left, so that another trainer can go on.
func (t maker) save(ctx context.Context, task *trainer.Task, work string) {
	entries, err := os.ReadDir(work)
	if err != nil || len(entries) == 0 {
		return // nothing yet, or a method without steps
	}
	if err := task.SaveFolder(ctx, work); err != nil && ctx.Err() == nil {
		t.o.Log.Warn().Err(err).Str("detector", task.Detector.Name).Msg("no checkpoint: should this trainer die, more is to be learnt again")
	}
}

// view is the part of each image that a detector inspects.
func view(d stream.Detector) *imaging.View {
	if d.Region == nil && len(d.Ignore) == 0 && d.Bits == 0 {
		return nil
	}
	v := &imaging.View{Bits: d.Bits}
	if d.Region != nil {
		r := imaging.Rect(*d.Region)
		v.Region = &r
	}
	for _, r := range d.Ignore {
		v.Ignore = append(v.Ignore, imaging.Rect(r))
	}
	return v
}

// derivation is what every change of the active release needs to know.
func (t maker) derivation(task *trainer.Task) training.Derivation {
	return training.Derivation{
		Release: task.Active, Verified: true, // by the registry
		Out: releaseOf(task), NoImages: task.Detector.NoEvidence,
		Device: t.device, Threads: t.conf.Worker.Threads, Limits: t.limits, Tool: "nearmiss " + version, Log: t.o.Log,
	}
}

// Extend implements [trainer.Maker].
func (t maker) Extend(ctx context.Context, task *trainer.Task) (trainer.Result, error) {
	normals, err := normalImages(task)
	if err != nil {
		return trainer.Result{}, stream.Permanent(stream.CodeTraining, err)
	}
	res, err := training.Extend(ctx, training.Extension{
		Derivation: t.derivation(task), Normals: normals,
	})
	return t.derived(task, res, err, training.ErrNothingNew)
}

// Retract implements [trainer.Maker].
func (t maker) Retract(ctx context.Context, task *trainer.Task) (trainer.Result, error) {
	gone := map[string]bool{}
	for _, seq := range task.Request.Retract {
		gone[fmt.Sprintf("%012d", seq)] = true
	}
	res, err := training.Retract(ctx, training.Retraction{
		Derivation: t.derivation(task),
		Names:      func(name string) bool { return gone[strings.TrimSuffix(name, filepath.Ext(name))] },
	})
	return t.derived(task, res, err, training.ErrNotThere, training.ErrNeeded, bank.ErrUnsupported, bank.ErrNoHeldOut)
}

// Readjust implements [trainer.Maker].
func (t maker) Readjust(ctx context.Context, task *trainer.Task) (trainer.Result, error) {
	d := task.Detector
	res, err := training.Readjust(ctx, training.Readjustment{
		Derivation: t.derivation(task), K: d.K, Alpha: d.FalseAlarmRate,
	})
	return t.derived(task, res, err, training.ErrUnchanged, training.ErrCannotReadjust, bank.ErrTooFew)
}

// derived is what came of a change of the active release: hold is why there is nothing to
// change, and the others are why it never can be.
func (t maker) derived(task *trainer.Task, res *training.Result, err, hold error, never ...error) (trainer.Result, error) {
	is := func(why error) bool { return errors.Is(err, why) }
	switch {
	case err == nil:
		return t.made(task, res), nil
	case is(hold):
		return trainer.Result{Hold: hold.Error()}, nil
	case slices.ContainsFunc(never, is):
		return trainer.Result{}, stream.Permanent(stream.CodeTraining, err)
	}
	return trainer.Result{}, err
}

// made is a release that was learnt, whose warnings go to the log, too.
func (t maker) made(task *trainer.Task, res *training.Result) trainer.Result {
	log := t.o.Log.With().Str("component", "trainer").Str("detector", task.Detector.Name).Logger()
	for _, w := range res.Warnings {
		log.Warn().Msg(w)
	}
	if o := res.Orientation; o != nil {
		log.Info().Str("symmetry", cmp.Or(string(res.Symmetry), "none")).Msg(o.String())
	}
	return trainer.Result{Dir: res.Release, Notes: res.Warnings}
}

// backbone is the detector's own model, or the trainer's, or the starter
// backbone, so that everything can be tried without a download.
func (t maker) backbone(d stream.Detector) (string, error) {
	if d.Backbone != "" {
		found, err := t.conf.model(d.Backbone)
		if err != nil {
			return "", fmt.Errorf("backbone of detector %s: %w", d.Name, err)
		}
		return found, nil
	}
	if t.conf.Trainer.Backbone != "" {
		found, err := findBackbone(t.conf.Trainer.Backbone)
		if err != nil {
			return "", fmt.Errorf("backbone of the trainer: %w", err)
		}
		return found, nil
	}
	return starter.File(filepath.Join(t.conf.Data, "models"))
}

// models is the folder of models that detectors can name.
func (c config) models() string { return cmp.Or(c.Trainer.Models, filepath.Join(c.Data, "models")) }

// model finds the file of a backbone that a detector names: in the folder of models,
// with or without .onnx, as the trainer's own, or in the catalogue. Who may change a
// detector cannot have the trainer look anywhere else.
func (c config) model(name string) (string, error) {
	if filepath.Base(name) != name || name == ".." || strings.ContainsAny(name, `/\`) {
		return "", fmt.Errorf("%q is a path: put the file into %s and name it", name, c.models())
	}
	own := c.Trainer.Backbone
	for _, file := range []string{filepath.Join(c.models(), name), filepath.Join(c.models(), name+".onnx")} {
		if info, err := os.Stat(file); err == nil && info.Mode().IsRegular() {
			return file, nil
		}
	}
	if base := filepath.Base(own); own != "" && (base == name || base == name+".onnx") {
		return findBackbone(own)
	}
	e, ok := catalogue.Find(name)
	if !ok {
		return "", fmt.Errorf("the trainer has no model %q: put %s.onnx into %s, or take a name of the catalogue (%s)",
			name, strings.TrimSuffix(name, ".onnx"), c.models(), catalogue.Hint(name))
	}
	s, err := store()
	if err != nil {
		return "", err
	}
	return s.Path(e, 0)
}

// normalImages are a task's normals, with where and when they were taken.
func normalImages(task *trainer.Task) ([]training.Image, error) {
	all, err := folderImages(task.Normals)
	for i := range all {
		n := task.Taken[all[i].Name]
		all[i].Camera, all[i].At = n.Camera, n.CapturedAt
		if n.Camera == "" && n.Source != "" { // of a folder
			all[i].Camera = filepath.Dir(n.Source)
		}
	}
	return all, err
}

// folderImages are the images in a folder, whatever their names; none where there
// is no folder.
func folderImages(dir string) ([]training.Image, error) {
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	var all []training.Image
	for _, e := range entries {
		if e.Type().IsRegular() {
			path := filepath.Join(dir, e.Name())
			all = append(all, training.Image{Name: e.Name(), Read: func() ([]byte, error) { return os.ReadFile(path) }})
		}
	}
	return all, nil
}
