package sde

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/google/renameio/v2"

	"github.com/nearmiss/nearmiss/inference/imaging"
	"github.com/nearmiss/nearmiss/training/frechet"
)

// Fake is one entry of the manifest.
type Fake struct {
	File string `json:"file"`
	Step int    `json:"step"` // of the checkpoint that made it
	// From is the normal that it was made from, and Edit the level, with Edit.
	From string  `json:"from,omitempty"`
	Edit float64 `json:"edit,omitempty"`
}

// Manifest says how a folder of fakes was made. It is the folder's
// manifest.json.
type Manifest struct {
	SchemaVersion int       `json:"schema_version"` // 1
	CreatedAt     time.Time `json:"created_at"`
	Options       Options   `json:"options"`
	Normals       int       `json:"normals"`
	Weights       int       `json:"weights"`
	FLOPs         int64     `json:"flops_per_image"`
	// FloorFD and NoiseFD are the ends of the scale of r; sets compared hold
	// Compared images.
	FloorFD  float64 `json:"floor_fd,omitempty"`
	NoiseFD  float64 `json:"noise_fd,omitempty"`
	Compared int     `json:"compared,omitempty"`

	Probes []frechet.Probe `json:"probes"`
	Stop   string          `json:"stop"` // why training ended
	// Reached says whether the target was; if not, the fakes come from the
	// checkpoint that came nearest.
	Reached bool            `json:"reached"`
	Mix     []frechet.Share `json:"mix"`
	// Final compares the fakes themselves with the normals; Copied is how many
	// copies were thrown away and made anew.
	Final  *frechet.Probe `json:"final,omitempty"`
	Copied int            `json:"copied"`
	Fakes  []Fake         `json:"fakes"`

	Seconds struct {
		Train  float64 `json:"train"`
		Probe  float64 `json:"probe"`
		Sample float64 `json:"sample"`
	} `json:"seconds"`
	// Speed, for comparison with what the forward pass alone reaches.
	TrainImagesPerS  float64 `json:"train_images_per_s"`
	SampleImagesPerS float64 `json:"sample_network_images_per_s"` // network calls times batch
}

// Names of the files in a folder of fakes.
const (
	ManifestFile   = "manifest.json"
	CurveFile      = "curve.png"
	SheetFile      = "sheet.png"
	CheckpointFile = "training.ckpt" // the state of training
	HistoryFile    = "looks.json"    // the measurements of the generator so far
	FakesFolder    = "fakes"
)

// Generate learns to make images like the normals, stops early, and writes to
// the folder out: fakes as PNG files, a contact sheet, the curve of early
// stopping, the kept checkpoints and a manifest. The folder is created; files of
// an earlier run in it are replaced.
//
// When ctx ends during training, the state is saved, and a call with
// [Options.Resume] goes on from there. The state is also saved at every measurement.
func Generate(ctx context.Context, normals Images, out string, o Options) (*Manifest, error) {
	g := &generation{o: o, normals: normals, out: out}
	if err := g.prepare(ctx); err != nil {
		return nil, err
	}
	defer func() { _ = g.trainer.Close() }()
	if err := g.train(ctx); err != nil {
		if ctx.Err() != nil && g.trainer.Steps() > 0 {
			err = errors.Join(err, g.save())
		}
		return nil, err
	}
	if err := g.make(ctx); err != nil {
		return nil, err
	}
	return &g.m, g.report()
}

// generation is one run of Generate.
type generation struct {
	o       Options
	normals Images
	out     string

	sde       SDE
	set       *Set
	trainer   *Trainer
	control   *frechet.Controller
	reference *frechet.Reference
	copies    *frechet.Copies
	columns   []frechet.Column // of the contact sheet, one a probe
	steps     int              // of training in this run
	m         Manifest
}

func (g *generation) validate() error {
	o := &g.o
	var errs []error
	if o.N < 1 {
		errs = append(errs, fmt.Errorf("n %d: want at least one fake", o.N))
	}
	if o.MaxSteps < 1 || o.ProbeEvery < 1 {
		errs = append(errs, fmt.Errorf("%d steps with a probe every %d: want at least 1", o.MaxSteps, o.ProbeEvery))
	}
	if o.Stop.Kind == frechet.Steps {
		o.MaxSteps = int(o.Stop.Value)
	} else if o.Extractor == nil {
		errs = append(errs, fmt.Errorf("stop at %s: distances need a feature extractor; name a backbone, or stop at steps=N", o.Stop))
	}
	if !(o.Edit >= 0 && o.Edit <= 1) || !(o.EditFrom >= 0 && o.EditFrom <= o.Edit) {
		errs = append(errs, fmt.Errorf("edit from %g to %g: want 0 ≤ from ≤ to ≤ 1", o.EditFrom, o.Edit))
	}
	if !slices.Contains([]Detail{"", DetailNone, DetailResidual}, o.Detail) {
		errs = append(errs, fmt.Errorf("detail %q: want none or residual", o.Detail))
	}
	if o.Detail == DetailResidual && o.Edit == 0 {
		errs = append(errs, errors.New("detail residual: only fakes made from normals have details to take back; set edit"))
	}
	if o.Names != nil && len(o.Names) != g.normals.Len() {
		errs = append(errs, fmt.Errorf("%d names for %d normals", len(o.Names), g.normals.Len()))
	}
	o.Batch = cmp.Or(max(o.Batch, 0), 64)
	o.Probes = cmp.Or(max(o.Probes, 0), 500)
	o.Reference = cmp.Or(max(o.Reference, 0), 4000)
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("make fakes: %w: %w", ErrOptions, err)
	}
	return nil
}

func (g *generation) prepare(ctx context.Context) (err error) {
	if err := g.validate(); err != nil {
		return err
	}
	o := &g.o
	o.Train.Log = o.Log
	o.Train.Seed = o.Seed
	if g.sde, err = New(o.SDE, o.Network.Size); err != nil {
		return err
	}
	if g.set, err = newSet(g.normals, o.Network.Size, o.Network.Channels); err != nil {
		return err
	}
	if g.trainer, err = newTrainer(g.sde, o.Network, g.set, o.Train); err != nil {
		return err
	}
	defer func() {
		if err != nil {
			_ = g.trainer.Close()
		}
	}()
	if o.Resume {
		if err = g.trainer.Load(filepath.Join(g.out, CheckpointFile)); err != nil {
			return err
		}
	}
	o.Train = g.trainer.o
	g.m = Manifest{SchemaVersion: 1, CreatedAt: time.Now().UTC().Truncate(time.Second), Normals: g.set.n}
	if g.m.Weights, g.m.FLOPs, err = o.Network.Cost(); err != nil {
		return err
	}
	g.control = frechet.NewController(o.Stop, o.Control)
	if err = os.MkdirAll(filepath.Join(g.out, FakesFolder), 0o755); err != nil {
		return fmt.Errorf("make fakes: %w", err)
	}
	if o.Extractor != nil {
		if err = g.scale(ctx); err != nil {
			return err
		}
	}
	if o.Resume {
		err = g.recall()
	} else {
		err = g.clear()
	}
	return err
}

// history is what a run has measured so far, beside its checkpoint: [HistoryFile],
// and the samples of each measurement as a strip.
type history struct {
	NoiseFD float64         `json:"noise_fd"`
	Probes  []frechet.Probe `json:"probes"`
}

const stripImages = 8 // of a strip

func (g *generation) strip(step int) string {
	return filepath.Join(g.out, fmt.Sprintf("look-%06d.png", step))
}

// remember writes the history.
func (g *generation) remember(samples []*imaging.Image, step int) error {
	strip := imaging.New(g.o.Network.Size, g.o.Network.Size*len(samples))
	strip.Pix = strip.Pix[:0]
	for _, im := range samples {
		strip.Pix = append(strip.Pix, im.Pix...)
	}
	raw, err := strip.PNG()
	if err != nil {
		return err
	}
	if err := renameio.WriteFile(g.strip(step), raw, 0o644); err != nil {
		return fmt.Errorf("write the samples of step %d: %w", step, err)
	}
	if raw, err = json.Marshal(history{g.m.NoiseFD, g.m.Probes}); err != nil {
		return err
	}
	if err := renameio.WriteFile(filepath.Join(g.out, HistoryFile), raw, 0o644); err != nil {
		return fmt.Errorf("write the history of measurements: %w", err)
	}
	return nil
}

// recall takes up the history of the run that goes on.
func (g *generation) recall() error {
	raw, err := os.ReadFile(filepath.Join(g.out, HistoryFile))
	if err != nil {
		return fmt.Errorf("go on with a run: %w", err)
	}
	var h history
	if err := json.Unmarshal(raw, &h); err != nil {
		return fmt.Errorf("go on with a run: read %s: %w", HistoryFile, err)
	}
	if g.reference != nil {
		if err := g.reference.SetNoise(h.NoiseFD); err != nil {
			return err
		}
		g.m.NoiseFD = h.NoiseFD
	}
	for _, p := range h.Probes {
		if p.Step > g.trainer.Steps() {
			break
		}
		raw, err := os.ReadFile(g.strip(p.Step))
		if err != nil {
			return fmt.Errorf("go on with a run: %w", err)
		}
		strip, err := imaging.Decode(raw, imaging.Limits{MaxAspect: 2 * stripImages})
		if err != nil {
			return fmt.Errorf("go on with a run: read %s: %w", g.strip(p.Step), err)
		}
		var samples []*imaging.Image
		for y := 0; y < strip.Height; y += strip.Width {
			samples = append(samples, strip.Crop(0, y, strip.Width, strip.Width))
		}
		g.observe(p, samples)
	}
	return nil
}

// clear removes what an earlier run left in the folder.
func (g *generation) clear() error {
	for _, pattern := range []string{"step-*.onnx", "look-*.png", HistoryFile, CheckpointFile, ManifestFile, CurveFile, SheetFile} {
		old, err := filepath.Glob(filepath.Join(g.out, pattern))
		if err != nil {
			return err
		}
		for _, f := range old {
			if err := os.Remove(f); err != nil {
				return fmt.Errorf("remove what an earlier run left: %w", err)
			}
		}
	}
	return nil
}

// observe shows a measurement to the controller and notes its column of the sheet.
func (g *generation) observe(p frechet.Probe, samples []*imaging.Image) {
	title := []string{fmt.Sprintf("%d", p.Step)}
	if g.reference != nil {
		title = append(title, fmt.Sprintf("r %.2f", p.Ratio))
	}
	g.columns = append(g.columns, frechet.Column{Title: title, Images: pictures(samples)})
	if g.control.Observe(p) {
		g.m.Stop = g.control.Reason()
	}
	g.m.Probes = g.control.Probes()
}

// scale embeds the normals and makes the references to measure fakes by.
func (g *generation) scale(ctx context.Context) error {
	// Every symmetry that training shows can be copied, so each is embedded, of
	// as many normals as Reference allows.
	symmetries := g.o.Train.Augment.all()
	some := newRand(g.o.Seed, streamSplit, 3).Perm(g.set.n)
	some = some[:min(g.set.n, max(g.o.Reference/len(symmetries), 4))]
	sets := make([][][]float32, len(symmetries))
	var images []*imaging.Image
	x := make([]float32, g.set.dim())
	for _, turn := range symmetries {
		for _, i := range some {
			g.set.put(x, i, 0, 1, turn)
			images = append(images, toPicture(quantise(x, 0, 1), g.set.Channels, g.set.Size))
		}
	}
	all, err := g.embed(ctx, images, "embed the normals")
	if err != nil {
		return err
	}
	for k := range sets {
		sets[k] = all[k*len(some) : (k+1)*len(some)]
	}
	if g.reference, err = frechet.NewReference(sets[0], g.o.Probes, g.o.Seed); err != nil {
		return err
	}
	if g.copies, err = frechet.NewCopies(0, sets[0], sets[1:]...); err != nil {
		return err
	}
	g.m.FloorFD, g.m.Compared = g.reference.Floor(), g.reference.Size()
	return nil
}

func (g *generation) embed(ctx context.Context, images []*imaging.Image, stage string) ([][]float32, error) {
	const chunk = 64
	var all [][]float32
	for lo := 0; lo < len(images); lo += chunk {
		part, err := g.o.Extractor.Vectors(ctx, images[lo:min(lo+chunk, len(images))])
		if err != nil {
			return nil, fmt.Errorf("%s: %w", stage, err)
		}
		all = append(all, part...)
		g.progress(stage, len(all), len(images))
	}
	if len(all) != len(images) {
		return nil, fmt.Errorf("%s: the extractor gave %d vectors for %d images", stage, len(all), len(images))
	}
	return all, nil
}

func (g *generation) progress(stage string, done, total int) {
	g.publish(Progress{Stage: stage, Done: done, Total: total})
}

// publish adds the last point of the curve.
func (g *generation) publish(p Progress) {
	if g.o.Progress == nil {
		return
	}
	if n := len(g.m.Probes); n > 0 && g.reference != nil {
		p.Probe = new(g.m.Probes[n-1])
	}
	g.o.Progress(p)
}

// train trains until the controller stops it or the steps are used up.
func (g *generation) train(ctx context.Context) error {
	// The first measurement, before the first step, is the noise end of the scale; a run
	// that goes on may have been interrupted just before one.
	now, probes := g.trainer.Steps(), g.m.Probes
	if len(probes) == 0 || now%g.o.ProbeEvery == 0 && probes[len(probes)-1].Step != now {
		if err := g.probe(ctx); err != nil {
			return err
		}
	}
	for g.trainer.Steps() < g.o.MaxSteps && g.m.Stop == "" {
		step := g.trainer.Steps()
		n := min(g.o.ProbeEvery-step%g.o.ProbeEvery, g.o.MaxSteps-step)
		began := time.Now()
		err := g.trainer.Run(ctx, n, func(i StepInfo) {
			g.publish(Progress{Stage: "train", Done: i.Step, Total: g.o.MaxSteps, Loss: &i.Loss})
		})
		g.m.Seconds.Train += time.Since(began).Seconds()
		g.steps += g.trainer.Steps() - step
		if err != nil {
			return err
		}
		if err := g.save(); err != nil {
			return err
		}
		if err := g.probe(ctx); err != nil {
			return err
		}
	}
	if g.m.Stop == "" {
		g.m.Stop = g.control.Reason()
	}
	return nil
}

// save writes the state of training, to resume from.
func (g *generation) save() error {
	return g.trainer.Save(filepath.Join(g.out, CheckpointFile))
}

func (g *generation) averagedFile(step int) string {
	return filepath.Join(g.out, fmt.Sprintf("step-%06d.onnx", step))
}

// probe samples from the averaged weights, measures, and asks the controller.
func (g *generation) probe(ctx context.Context) error {
	began := time.Now()
	defer func() { g.m.Seconds.Probe += time.Since(began).Seconds() }()
	n := stripImages
	if g.reference != nil {
		n = max(n, g.reference.Size())
	}
	step := g.trainer.Steps()
	averaged, err := g.trainer.Averaged()
	if err != nil {
		return err
	}
	c := Trained{Step: step, SDE: g.o.SDE, Network: g.o.Network, Params: averaged}
	// The same noise at every probe, so that only the weights change the curve.
	x, err := g.sample(ctx, c, SampleOptions{N: n, Seed: g.o.Seed, Sampler: Heun, Progress: func(done, total int) { g.progress("probe", done, total) }})
	if err != nil {
		return err
	}
	p := frechet.Probe{Step: step}
	if g.reference != nil {
		features, err := g.embed(ctx, x, "measure")
		if err != nil {
			return err
		}
		if p.Measurement, err = g.reference.Measure(features); err != nil {
			return err
		}
		if g.reference.Noise() == 0 {
			if err := g.reference.SetNoise(p.FD); err != nil {
				return err
			}
			g.m.NoiseFD, p.Ratio = p.FD, 1
		}
		if p.Copies, err = g.copies.Compare(features); err != nil {
			return err
		}
		p.Copies.Copied = nil
	}
	if g.o.Log != nil {
		if err := logLine(g.o.Log, "probe", p); err != nil {
			return err
		}
	}
	g.observe(p, x[:stripImages])
	if err := g.remember(x[:stripImages], step); err != nil {
		return err
	}
	if step > 0 {
		if err := c.WriteFile(g.averagedFile(step)); err != nil {
			return err
		}
	}
	return g.tidy()
}

// tidy deletes the checkpoints that the controller has no use for.
func (g *generation) tidy() error {
	keep := g.control.Keep()
	for _, p := range g.m.Probes {
		if p.Step > 0 && !slices.Contains(keep, p.Step) {
			if err := os.Remove(g.averagedFile(p.Step)); err != nil && !os.IsNotExist(err) {
				return fmt.Errorf("delete a checkpoint that is not needed: %w", err)
			}
		}
	}
	return nil
}

// sample makes images from a checkpoint at the network's size.
func (g *generation) sample(ctx context.Context, c Trained, o SampleOptions) ([]*imaging.Image, error) {
	n := c.Network
	o.Channels, o.Height, o.Width = n.Channels, n.Size, n.Size
	o.Batch = min(g.o.Batch, o.N)
	m, err := newNetworkModel(g.sde, n, c.Params, o.Batch, g.o.Train.Session)
	if err != nil {
		return nil, err
	}
	defer m.Close()
	began := time.Now()
	x, st, err := Sample(ctx, g.sde, m, o)
	if err != nil {
		return nil, err
	}
	g.m.SampleImagesPerS = float64(st.Images) / time.Since(began).Seconds()
	lo, hi := g.sde.Range()
	bytes := quantise(x, lo, hi)
	images := make([]*imaging.Image, o.N)
	dim := n.Channels * n.Size * n.Size
	for i := range images {
		images[i] = toPicture(bytes[i*dim:(i+1)*dim], n.Channels, n.Size)
	}
	return images, nil
}
