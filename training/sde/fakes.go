package sde

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"image"
	"image/png"
	"io"
	"math"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/google/renameio/v2"

	"github.com/nearmiss/nearmiss/inference/imaging"
	"github.com/nearmiss/nearmiss/training/frechet"
)

// made is a fake in memory.
type made struct {
	low   *imaging.Image // at the network's size
	entry Fake
	from  int
}

// make samples the fakes from the mix of checkpoints and writes them.
func (g *generation) make(ctx context.Context) error {
	began := time.Now()
	g.m.Mix = g.control.Mix()
	if len(g.m.Mix) == 0 {
		return fmt.Errorf("make fakes: no checkpoint is fit to sample from: %s; measure the generator more often than every %d steps, or lower the learning rate", g.m.Stop, g.o.ProbeEvery)
	}
	if !g.o.Mix {
		g.m.Mix = []frechet.Share{{Step: g.control.Keep()[0], Part: 1}}
	}
	g.m.Reached = g.control.Reached()
	var fakes []made
	first := 0 // sampled so far, copies included: the place in the seed's sequence
	for k, share := range g.m.Mix {
		c, err := readTrained(g.averagedFile(share.Step))
		if err != nil {
			return err
		}
		want := int(math.Round(float64(g.o.N)*sumOf(g.m.Mix[:k+1]))) - len(fakes)
		var part []made
		for try := 0; len(part) < want && try < 4; try++ {
			batch, err := g.draw(ctx, c, first, want-len(part), len(fakes)+len(part))
			if err != nil {
				return err
			}
			first += len(batch)
			if g.copies != nil && g.o.DropCopies && g.o.Edit == 0 && try < 3 {
				if batch, err = g.withoutCopies(ctx, batch); err != nil {
					return err
				}
			}
			part = append(part, batch...)
		}
		fakes = append(fakes, part...)
	}
	if err := g.compare(ctx, fakes); err != nil {
		return err
	}
	if err := g.write(fakes); err != nil {
		return err
	}
	g.m.Seconds.Sample = time.Since(began).Seconds()
	return nil
}

func sumOf(mix []frechet.Share) float64 {
	s := 0.0
	for _, m := range mix {
		s += m.Part
	}
	return s
}

// draw samples n fakes; first is their place in the seed's sequence.
func (g *generation) draw(ctx context.Context, c Trained, first, n, done int) ([]made, error) {
	out := make([]made, n)
	base := SampleOptions{
		Seed: mix(g.o.Seed), Sampler: g.o.Sampler, Steps: g.o.Steps,
		Progress: func(k, of int) { g.progress("sample", done*of+n*k, g.o.N*of) },
	}
	if g.o.Edit == 0 {
		base.N, base.First = n, first
		images, err := g.sample(ctx, c, base)
		if err != nil {
			return nil, err
		}
		for i, im := range images {
			out[i] = made{low: im, entry: Fake{Step: c.Step}, from: -1}
		}
		return out, nil
	}
	// Each fake has its own normal; levels are few, so that a batch shares one.
	const levels = 4
	lo, hi := g.sde.Range()
	dim := g.set.dim()
	for l := range levels {
		from, to := n*l/levels, n*(l+1)/levels
		if from == to {
			continue
		}
		low := cmp.Or(g.o.EditFrom, g.o.Edit)
		edit := low + (g.o.Edit-low)*float64(l)/(levels-1)
		base.N, base.First = to-from, first+from
		base.From = make([]float32, base.N*dim)
		base.Start = g.level(edit)
		for i := range base.N {
			k := g.pick(first + from + i)
			g.set.put(base.From[i*dim:(i+1)*dim], k, lo, hi, 0)
			out[from+i] = made{from: k, entry: Fake{Step: c.Step, From: g.name(k), Edit: edit}}
		}
		images, err := g.sample(ctx, c, base)
		if err != nil {
			return nil, err
		}
		for i, im := range images {
			out[from+i].low = im
		}
	}
	return out, nil
}

// level is the noise-to-signal ratio that vp reaches at time t, for values in
// [−1, 1], in the units of this SDE's range.
func (g *generation) level(t float64) float64 {
	vp, _ := New("vp", g.o.Network.Size)
	lo, hi := g.sde.Range()
	_, _, end := g.sde.Horizon()
	return min(ratio(vp, t)*(hi-lo)/2, ratio(g.sde, end))
}

// pick is the normal that fake i starts from: all in turn, each round in
// another order.
func (g *generation) pick(i int) int {
	return newRand(g.o.Seed, streamPick, uint64(i/g.set.n)).Perm(g.set.n)[i%g.set.n]
}

func (g *generation) name(i int) string {
	if g.o.Names != nil {
		return g.o.Names[i]
	}
	return fmt.Sprintf("%d", i)
}

func (g *generation) withoutCopies(ctx context.Context, fakes []made) ([]made, error) {
	features, err := g.embed(ctx, lows(fakes), "find copies")
	if err != nil {
		return nil, err
	}
	r, err := g.copies.Compare(features)
	if err != nil {
		return nil, err
	}
	g.m.Copied += len(r.Copied)
	var kept []made
	for i, f := range fakes {
		if !slices.Contains(r.Copied, i) {
			kept = append(kept, f)
		}
	}
	return kept, nil
}

func lows(fakes []made) []*imaging.Image {
	images := make([]*imaging.Image, len(fakes))
	for i, f := range fakes {
		images[i] = f.low
	}
	return images
}

// compare measures the fakes that are delivered.
func (g *generation) compare(ctx context.Context, fakes []made) error {
	if g.reference == nil || len(fakes) < g.reference.Size() {
		return nil
	}
	// Fakes lie in the order of their checkpoints: take some of each.
	order := newRand(g.o.Seed, streamSplit, 0).Perm(len(fakes))[:g.reference.Size()]
	some := make([]*imaging.Image, len(order))
	for i, k := range order {
		some[i] = fakes[k].low
	}
	features, err := g.embed(ctx, some, "measure")
	if err != nil {
		return err
	}
	p := frechet.Probe{Step: g.m.Mix[len(g.m.Mix)-1].Step}
	if p.Measurement, err = g.reference.Measure(features); err != nil {
		return err
	}
	if p.Copies, err = g.copies.Compare(features); err != nil {
		return err
	}
	p.Copies.Copied = nil
	g.m.Final = &p
	return nil
}

// write writes the fakes' files.
func (g *generation) write(fakes []made) error {
	old, err := filepath.Glob(filepath.Join(g.out, FakesFolder, "fake-*.png"))
	if err != nil {
		return err
	}
	for _, f := range old {
		if err := os.Remove(f); err != nil {
			return fmt.Errorf("replace fakes of an earlier run: %w", err)
		}
	}
	for i, f := range fakes {
		im := f.low
		if g.o.Detail == DetailResidual {
			full, err := g.normals.Image(f.from)
			if err != nil {
				return fmt.Errorf("read normal image %d again: %w", f.from, err)
			}
			im = addDetail(full, g.set.at(f.from), f.low)
		}
		raw, err := im.PNG()
		if err != nil {
			return fmt.Errorf("encode fake %d: %w", i, err)
		}
		f.entry.File = filepath.ToSlash(filepath.Join(FakesFolder, fmt.Sprintf("fake-%06d.png", i)))
		if err := os.WriteFile(filepath.Join(g.out, f.entry.File), raw, 0o644); err != nil {
			return fmt.Errorf("write fake %d: %w", i, err)
		}
		g.m.Fakes = append(g.m.Fakes, f.entry)
		g.progress("write", i+1, len(fakes))
	}
	return g.sheet(fakes)
}

// sheet draws the probes' samples, then the fakes, then normals.
func (g *generation) sheet(fakes []made) error {
	columns := g.columns
	if len(columns) > 10 { // enough to see the way: the first, the last, and others at equal distances
		var some []frechet.Column
		for i := range 10 {
			some = append(some, columns[i*(len(columns)-1)/9])
		}
		columns = some
	}
	rows := len(columns[0].Images)
	several := func(title string, n int, at func(i int) *imaging.Image) {
		for k := range 2 {
			c := frechet.Column{Title: []string{title}}
			for i := k * rows; i < min((k+1)*rows, n); i++ {
				c.Images = append(c.Images, at(i).RGBA())
			}
			if len(c.Images) > 0 {
				columns = append(columns, c)
			}
		}
	}
	order := newRand(g.o.Seed, streamSplit, 1).Perm(len(fakes))
	several("fakes", len(fakes), func(i int) *imaging.Image { return fakes[order[i]].low })
	pickNormal := newRand(g.o.Seed, streamSplit, 2).Perm(g.set.n)
	several("real", g.set.n, func(i int) *imaging.Image { return g.set.at(pickNormal[i]) })
	side := max(64, g.o.Network.Size)
	return g.writePicture(SheetFile, func(w io.Writer) error { return png.Encode(w, frechet.Sheet(columns, side)) })
}

func pictures(images []*imaging.Image) []image.Image {
	out := make([]image.Image, len(images))
	for i, im := range images {
		out[i] = im.RGBA()
	}
	return out
}

func (g *generation) writePicture(name string, write func(io.Writer) error) error {
	f, err := renameio.NewPendingFile(filepath.Join(g.out, name))
	if err == nil {
		defer f.Cleanup()
		if err = write(f); err == nil {
			err = f.CloseAtomicallyReplace()
		}
	}
	if err != nil {
		return fmt.Errorf("write %s: %w", name, err)
	}
	return nil
}

// report writes the curve and the manifest.
func (g *generation) report() error {
	if g.reference != nil {
		err := g.writePicture(CurveFile, func(w io.Writer) error {
			return frechet.WriteCurve(w, "early stopping", g.m.Probes, g.o.Stop, g.control.Keep()[0])
		})
		if err != nil {
			return err
		}
	}
	if s := g.m.Seconds.Train; s > 0 {
		g.m.TrainImagesPerS = float64(g.steps*g.o.Train.Batch) / s
	}
	g.m.Options = g.o
	if g.o.Log != nil {
		line := g.m
		line.Fakes, line.Probes = nil, nil
		if err := logLine(g.o.Log, "outcome", line); err != nil {
			return err
		}
	}
	raw, err := json.MarshalIndent(g.m, "", "  ")
	if err != nil {
		return err
	}
	if err := renameio.WriteFile(filepath.Join(g.out, ManifestFile), append(raw, '\n'), 0o644); err != nil {
		return fmt.Errorf("write the manifest: %w", err)
	}
	return nil
}
