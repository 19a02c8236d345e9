package training

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"

	"github.com/nearmiss/nearmiss/inference"
	"github.com/nearmiss/nearmiss/inference/backbone"
	"github.com/nearmiss/nearmiss/inference/release"
)

// model is a network that is loaded, and where the parts of a score are in what it
// gives.
type model struct {
	e     *inference.Embedder
	path  string         // of its file
	size  int64          // of it, in bytes
	parts []release.Part // in the composition's order: what concerns the model
}

// networks are the files of a model: the one that is served, and the backbone
// before it was tuned, which is the same file where nothing was.
type networks struct{ served, frozen string }

func (n networks) tuned() bool { return n.served != n.frozen }

// open loads what a composition needs. file is where a model is written, where
// one has to be; h and the rest say where and how images are prepared.
func (c composition) open(ctx context.Context, file string, n networks, data Data, m Model, h Host) (*model, error) {
	out := &model{path: n.served}
	o := h.embed(data, m)
	var dims []int
	var patches []backbone.PatchOutput
	var taps []backbone.Selected
	if !c.plain() {
		out.path = file
		for _, p := range c.parts {
			if t := p.selected(); !slices.Contains(taps, t) {
				taps = append(taps, t)
			}
		}
		got, err := backbone.Select(file, []string{n.served, n.frozen}, taps)
		if err != nil {
			return nil, err
		}
		dims, patches = got.Dims, got.Patches
		for _, p := range patches {
			o.Patches = append(o.Patches, p.Name)
		}
	}
	if len(patches) > 0 {
		o.Tiles = m.tiles
	}
	if info, err := os.Stat(out.path); err == nil {
		out.size = info.Size()
	}
	var err error
	if o.Precision == PrecisionInt8 {
		if o.FloatProducts, err = spoiltByInt8(ctx, out.path, o, data.Normals); err != nil {
			return nil, err
		}
	}
	if out.e, err = inference.NewEmbedder(out.path, o); err != nil {
		return nil, err
	}
	if c.plain() {
		dims, taps = []int{out.e.Dim()}, []backbone.Selected{c.parts[0].selected()}
	}
	isPatch := func(t backbone.Selected) bool { return t.What == backbone.TapPatch }
	for _, p := range c.parts {
		a := release.Part{
			Name: p.name, Output: release.OutputEmbedding, Unit: p.Unit && !p.isPatch(), Statistic: release.StatisticKNN,
			Scored: p.scored, Scale: 1, Weight: 1, Layer: p.Layer,
		}
		if c.joined && p.scored {
			a.Group = p.group
		}
		at := 0 // among the outputs of its kind
		for _, t := range taps {
			if t == p.selected() {
				break
			}
			if isPatch(t) == p.isPatch() {
				at++
			}
		}
		if p.isPatch() {
			q := patches[at]
			a.NoMap, a.MapExcess = p.noMap, p.excess
			a.Output, a.Dim = q.Name, q.Dim
			a.Width, a.Height = out.e.Preprocess().Grid(q.Grid[0], q.Grid[1])
			if a.Width*a.Height > release.MostPatches {
				return nil, errors.Join(fmt.Errorf("%w: %d×%d patches of a picture, at most %d can have ids: take fewer tiles or a smaller input", ErrPlan, a.Width, a.Height, release.MostPatches), out.Close())
			}
			for i, statistic := range p.statistics() {
				if i == 0 {
					a.Statistic = statistic
				} else {
					a.Also = append(a.Also, release.Measure{Statistic: statistic, Scale: 1, Weight: 1})
				}
			}
		} else {
			for _, d := range dims[:at] {
				a.From += d
			}
			a.Dim = dims[at]
		}
		out.parts = append(out.parts, a)
	}
	return out, nil
}

// probedNormals is by how many normals it is found which products 8 bits spoil.
const probedNormals = 16

// spoiltByInt8 finds the products of the model at path that 8 bits spoil, by some of the
// normals, of the whole of them.
func spoiltByInt8(ctx context.Context, path string, o inference.EmbedOptions, normals []Image) ([]string, error) {
	var files [][]byte
	n := min(len(normals), probedNormals)
	for i := range n {
		m := normals[i*len(normals)/n]
		file, err := m.Read()
		if err != nil {
			return nil, fmt.Errorf("read normal image %s: %w", m.Name, err)
		}
		files = append(files, file)
	}
	return inference.SpoiltByInt8(ctx, path, o, files)
}

func (m *model) Close() error { return m.e.Close() }

// embed are the options of an embedder of images as data and m prepare them.
func (h Host) embed(data Data, m Model) inference.EmbedOptions {
	return inference.EmbedOptions{
		Device: h.Device, Threads: h.Threads, Batch: h.Batch, Limits: data.Limits, View: data.View,
		Symmetry: m.Symmetry, Whole: m.See == SeeWhole, Tone: m.tone, Precision: m.precision(),
	}
}

// precision is that of an embedder; PrecisionAuto begins with PrecisionFloat.
func (m Model) precision() string {
	if m.Precision == PrecisionInt8 || m.Precision == PrecisionHalf {
		return m.Precision
	}
	return ""
}

// embedEach shows f what the model gives of the images at which, in this order. Every
// one must be of use.
func (m *model) embedEach(ctx context.Context, images []Image, which []int, f func(e *inference.Embedding) error) error {
	const chunk = 32 // images in memory at a time
	for some := range slices.Chunk(which, chunk) {
		files := make([][]byte, len(some))
		for i, at := range some {
			var err error
			if files[i], err = images[at].Read(); err != nil {
				return fmt.Errorf("read normal image %s: %w", images[at].Name, err)
			}
		}
		all, err := m.e.Embed(ctx, files)
		if err != nil {
			return err
		}
		for i := range all {
			if all[i].Err != nil {
				return fmt.Errorf("embed image %s: %w", images[some[i]].Name, all[i].Err)
			}
			if err := f(&all[i]); err != nil {
				return err
			}
		}
	}
	return nil
}
