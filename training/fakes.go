package training

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"

	"github.com/nearmiss/nearmiss/inference"
	"github.com/nearmiss/nearmiss/inference/backbone"
	"github.com/nearmiss/nearmiss/inference/imaging"
	"github.com/nearmiss/nearmiss/inference/ort"
	"github.com/nearmiss/nearmiss/training/corrupt"
	"github.com/nearmiss/nearmiss/training/dataset"
	"github.com/nearmiss/nearmiss/training/finetune"
	"github.com/nearmiss/nearmiss/training/frechet"
	"github.com/nearmiss/nearmiss/training/sde"
)

// makers are images that are made or read when they are needed; a finetune.Set, and
// an sde.Images.
type makers []func() (*imaging.Image, error)

func (m makers) Len() int                            { return len(m) }
func (m makers) Image(i int) (*imaging.Image, error) { return m[i]() }

func makersOf(n int, image func(i int) (*imaging.Image, error)) makers {
	out := make(makers, n)
	for i := range out {
		out[i] = func() (*imaging.Image, error) { return image(i) }
	}
	return out
}

// images are the normals at some places.
func (run *tuningRun) images(which []int) makers {
	return makersOf(len(which), func(i int) (*imaging.Image, error) { return run.image(which[i]) })
}

// fakeSets are the fakes of all sources.
type fakeSets struct {
	fit, held makers
	// small is the side, pixels, of fakes that are smaller than what the backbone
	// takes in, the smallest of all sources; 0: none are.
	small int
	key   string // digest of everything that they depend on
}

// makeFakes makes or finds the fakes of each source.
func (run *tuningRun) makeFakes(ctx context.Context) error {
	t := run.plan.Tuning
	total := 0.0
	for _, s := range t.Sources {
		total += s.Share
	}
	h := sha256.New()
	enc := json.NewEncoder(h)
	for i, s := range t.Sources {
		part := s.Share / total
		r := FakesReport{
			Source: s, Seed: run.draw("fakes", i),
			Count:   max(1, int(math.Round(part*t.PerNormal*float64(len(run.fit))))),
			HeldOut: max(1, int(math.Round(part*float64(len(run.validation))))),
		}
		var fit, held makers
		var err error
		switch {
		case s.learns():
			fit, held, err = run.generate(ctx, i, &r)
		case s.Kind == FolderSource:
			fit, held, err = run.folder(&r)
		default:
			fit = run.corrupted(corrupt.Kind(s.Kind), s, run.fit, r.Count, r.Seed)
			held = run.corrupted(corrupt.Kind(s.Kind), s, run.validation, r.HeldOut, r.Seed+1)
		}
		if err != nil {
			return fmt.Errorf("make fakes from source %s: %w", s.Kind, err)
		}
		if err := run.measure(fit, &r); err != nil {
			return fmt.Errorf("check the fakes of source %s: %w", s.Kind, err)
		}
		if r.Small > 0 && (run.fakes.small == 0 || r.Small < run.fakes.small) {
			run.fakes.small = r.Small
		}
		run.fakes.fit, run.fakes.held = append(run.fakes.fit, fit...), append(run.fakes.held, held...)
		run.about.Fakes = append(run.about.Fakes, r)
		if err := enc.Encode([]any{run.base, r}); err != nil {
			return err
		}
	}
	run.fakes.key = hex.EncodeToString(h.Sum(nil))
	return nil
}

// corrupted spoils one normal after the other.
func (run *tuningRun) corrupted(k corrupt.Kind, s Source, from []int, n int, seed uint64) makers {
	out := make(makers, n)
	for i := range out {
		out[i] = func() (*imaging.Image, error) {
			r := rand.New(rand.NewPCG(seed, uint64(i)))
			m, err := run.image(from[i%len(from)])
			if err != nil {
				return nil, err
			}
			donor, err := run.image(from[r.IntN(len(from))])
			if err != nil {
				return nil, err
			}
			return corrupt.Apply(k, m, donor, s.Weak+(s.Strong-s.Weak)*r.Float64(), r.Uint64())
		}
	}
	return out
}

// generate trains a generator and samples from it.
func (run *tuningRun) generate(ctx context.Context, i int, r *FakesReport) (fit, held makers, err error) {
	o := run.plan.Tuning.SDE
	o.Seed, o.N = r.Seed, r.Count+r.HeldOut
	o.Detail = sde.DetailNone
	if r.Source.Kind == SDESource {
		o.Edit, o.EditFrom = 0, 0
	} else if o.Edit > 0 {
		o.Detail = sde.DetailResidual
	} else {
		return nil, nil, fmt.Errorf("how far normals are diffused is not set: give a time in (0, 1]")
	}
	o.Train.Session = run.session()
	for _, j := range run.fit {
		o.Names = append(o.Names, run.normals[j].Name)
	}
	name := fmt.Sprintf("fakes-%d", i+1)
	inputs := []any{o, r.Count, r.HeldOut} // runtime handles carry no JSON
	model := run.plan.Model.Backbone
	if t := run.plan.Tuning; t.Inception != "" {
		model = t.Inception
		sum, err := fileDigest(model)
		if err != nil {
			return nil, nil, err
		}
		inputs = append(inputs, sum)
	}
	var m sde.Manifest
	dir, err := run.step(name, inputs, &m, func(dir string) error {
		run.plan.Host.report(name+": prepare", 0, 0)
		e, err := inference.NewEmbedder(model, inference.EmbedOptions{Device: run.plan.Host.Device, Threads: run.plan.Host.Threads, Batch: run.plan.Host.Batch, Limits: run.plan.Data.Limits, View: run.plan.Data.View})
		if err != nil {
			return err
		}
		defer e.Close()
		if o.Stop.Kind == frechet.FID {
			if err := CheckInception(e); err != nil {
				return err
			}
		}
		o.Extractor = e
		o.Progress = func(p sde.Progress) {
			at := Progress{Step: name + ": " + p.Stage, Done: p.Done, Total: p.Total, Loss: p.Loss}
			if p.Probe != nil {
				at.Frechet, at.Ratio = &p.Probe.FD, &p.Probe.Ratio
			}
			run.plan.Host.Progress(at)
		}
		o.Resume = fileExists(filepath.Join(dir, sde.CheckpointFile))
		made, err := sde.Generate(ctx, run.images(run.fit), dir, o)
		if err == nil {
			m = *made
		}
		return err
	})
	if err != nil {
		return nil, nil, err
	}
	r.Stop, r.Reached, r.Mix, r.Curve, r.Copied = m.Stop, m.Reached, m.Mix, m.Probes, m.Copied
	var paths []string
	for _, f := range m.Fakes {
		paths = append(paths, filepath.Join(dir, filepath.FromSlash(f.File)))
	}
	fit, held = run.divide(paths, r)
	return fit, held, nil
}

// inceptionDim is the length of FID's features, the last pooling of Inception v3.
const inceptionDim = 2048

// CheckInception says why a model cannot be the Inception that FID is measured
// with, as far as one can tell: it gives 2048 features, and is no backbone of ours.
func CheckInception(e *inference.Embedder) error {
	var about struct{ Name, Family string }
	_ = json.Unmarshal(e.Backbone(), &about) // a foreign model says nothing of itself
	switch {
	case about.Family != "" && about.Family != string(backbone.Foreign):
		return fmt.Errorf("a FID target needs FID's Inception, and the model is %s: distances in its space are not the paper's; give a target as r=0.25", cmp.Or(about.Name, about.Family))
	case e.Dim() != inceptionDim:
		return fmt.Errorf("a FID target needs FID's Inception, which gives %d features, and the model gives %d: export the last pooling (pool3), or give a target as r=0.25", inceptionDim, e.Dim())
	}
	return nil
}

func fileDigest(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return "", fmt.Errorf("read %s: %w", path, err)
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

func fileExists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// folder reads fakes that were made before. It uses as many as there are.
func (run *tuningRun) folder(r *FakesReport) (fit, held makers, err error) {
	dir := r.Source.Path
	// A folder of nearmiss fakes has a contact sheet beside the fakes.
	if inner := filepath.Join(dir, sde.FakesFolder); fileExists(inner) {
		dir = inner
	}
	set, err := dataset.Folder(dir)
	if err != nil {
		return nil, nil, err
	}
	if len(set.Items) < 2 {
		return nil, nil, fmt.Errorf("%s has %d images: give two or more", dir, len(set.Items))
	}
	r.HeldOut = min(r.HeldOut, max(1, len(set.Items)/5))
	r.Count = min(r.Count, len(set.Items)-r.HeldOut)
	var paths []string
	for _, it := range set.Items {
		paths = append(paths, it.Path)
	}
	fit, held = run.divide(paths, r)
	return fit, held, nil
}

// divide draws which files are trained on.
func (run *tuningRun) divide(paths []string, r *FakesReport) (fit, held makers) {
	order := rand.New(rand.NewPCG(r.Seed, 0x66616b65)).Perm(len(paths))
	for i, j := range order {
		read := func() (*imaging.Image, error) {
			b, err := os.ReadFile(paths[j])
			if err != nil {
				return nil, err
			}
			m, err := imaging.Decode(b, run.plan.Data.Limits)
			if err != nil {
				return nil, fmt.Errorf("fake %s: %w", paths[j], err)
			}
			return m, nil
		}
		switch {
		case i < r.HeldOut:
			held = append(held, read)
		case i < r.HeldOut+r.Count:
			fit = append(fit, read)
		}
	}
	r.Count, r.HeldOut = len(fit), len(held)
	return fit, held
}

// measure notes whether the fakes are small beside the normals.
func (run *tuningRun) measure(fakes makers, r *FakesReport) error {
	m, err := fakes.Image(0)
	if err != nil {
		return err
	}
	normal, err := run.image(run.fit[0])
	if err != nil {
		return err
	}
	side := min(m.Width, m.Height)
	if 2*side <= min(normal.Width, normal.Height) {
		r.Small = side
	}
	return nil
}

// matched are normals to train on; where fakes are small, a share of them is
// brought to the fakes' size, so that size tells nothing.
func (run *tuningRun) matched(which []int) finetune.Set {
	out := make(makers, len(which))
	for k, i := range which {
		out[k] = func() (*imaging.Image, error) {
			m, err := run.image(i)
			if err != nil || run.fakes.small == 0 || run.plan.Tuning.Match == 0 {
				return m, err
			}
			if rand.New(rand.NewPCG(run.plan.Seed, uint64(i)^0x6d61746368)).Float64() >= run.plan.Tuning.Match {
				return m, nil
			}
			side := min(m.Width, m.Height)
			square := m.CenterCrop(side, side)
			return imaging.Resize(square, run.fakes.small, run.fakes.small, imaging.Bicubic), nil
		}
	}
	return out
}

func (run *tuningRun) session() ort.Options {
	return ort.Options{Device: run.plan.Host.Device, IntraOpThreads: run.plan.Host.Threads}
}

// sourcesDigest names the folders of fakes by what is in them.
func sourcesDigest(sources []Source) ([]string, error) {
	var out []string
	for _, s := range sources {
		if s.Kind != FolderSource {
			continue
		}
		set, err := dataset.Folder(s.Path)
		if err != nil {
			return nil, err
		}
		d, err := dataset.Digest(set.Items)
		if err != nil {
			return nil, err
		}
		out = append(out, d)
	}
	slices.SortFunc(out, cmp.Compare[string])
	return out, nil
}
