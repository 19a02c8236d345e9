package training

import (
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"

	"github.com/nearmiss/nearmiss/bank"
	"github.com/nearmiss/nearmiss/inference"
	"github.com/nearmiss/nearmiss/inference/heatmap"
	"github.com/nearmiss/nearmiss/inference/ort"
	"github.com/nearmiss/nearmiss/inference/release"
)

// PatchOptions say how the bank of patches is made. The zero value of a field
// means its default.
type PatchOptions struct {
	// Off makes none: there are no heatmaps, and PatchPart cannot be scored.
	Off bool `json:"off,omitempty"`
	// Layer is the number of the backbone's blocks (of stages, for convolutional
	// networks) before the patch vectors are taken. Default: half of the blocks of a
	// transformer, which the fine-tune leaves as they are.
	Layer int `json:"layer,omitempty"`
	// Statistic makes an image's score of its patches' distances: one of
	// release.StatisticMean, StatisticTop5 and StatisticMax. Default mean.
	Statistic string `json:"statistic,omitempty"`
	// Coreset bounds the bank: up to 1 a share of the normals' patches, above it a
	// number. Default DefaultCoreset.
	Coreset float64 `json:"coreset,omitempty"`
	// Whiten, above 0 to 1, compares patches by Mahalanobis distances, of the
	// normals' covariance with this shrinkage. Default: plain distances.
	Whiten float64 `json:"whiten,omitempty"`
}

// DefaultCoreset is how many patches a bank keeps at most.
const DefaultCoreset = 20_000

// mostPatches bounds the patches that a coreset is chosen from: of more, each
// image gives as many, drawn at random.
const mostPatches = 200_000

func (o PatchOptions) withDefaults() PatchOptions {
	if o.Statistic == "" {
		o.Statistic = release.StatisticMean
	}
	if o.Coreset == 0 {
		o.Coreset = DefaultCoreset
	}
	return o
}

func (o PatchOptions) validate() error {
	var errs []error
	if o.Layer < 0 {
		errs = append(errs, fmt.Errorf("patches after %d blocks: use 1 or more", o.Layer))
	}
	if !slices.Contains([]string{"", release.StatisticMean, release.StatisticTop5, release.StatisticMax}, o.Statistic) {
		errs = append(errs, fmt.Errorf("statistic %q of the patches: take mean, top5 or max", o.Statistic))
	}
	if !(o.Coreset >= 0) || math.IsInf(o.Coreset, 0) {
		errs = append(errs, fmt.Errorf("coreset %g: use a share up to 1 or a number of patches", o.Coreset))
	}
	if !(o.Whiten >= 0 && o.Whiten <= 1) {
		errs = append(errs, fmt.Errorf("shrinkage %g of the patches' covariance: use a number from 0, which whitens nothing, to 1", o.Whiten))
	}
	return errors.Join(errs...)
}

// want is how many of n patches the bank keeps.
func (o PatchOptions) want(n int) int {
	if o.Coreset <= 1 {
		return max(1, int(math.Round(o.Coreset*float64(n))))
	}
	return min(n, int(o.Coreset))
}

// look is a model that is loaded, and what its outputs are.
type look struct {
	sight
	e    *inference.Embedder
	dim  int    // of each part
	grid [2]int // of the patch vectors, across and down
	path string
}

// open composes what is to be seen of a network and loads it. file is where a
// model is written, where one has to be.
func (p Plan) open(file, network string, s sight) (*look, error) {
	k := &look{sight: s, path: network}
	if !plain(s.parts) || s.layer > 0 {
		k.path = file
		var err error
		if k.grid, err = compose(file, p.Backbone, network, s); err != nil {
			return nil, err
		}
	}
	o := inference.EmbedOptions{Device: p.Device, Threads: p.Threads, Limits: p.Limits, View: p.View, Symmetry: p.Symmetry}
	if s.layer > 0 {
		o.Patches = []string{s.patches().String()}
	}
	var err error
	k.e, err = inference.NewEmbedder(k.path, o)
	if err != nil {
		return nil, err
	}
	k.dim = k.e.Dim() / len(s.parts)
	return k, nil
}

// patchDim is the length of a patch vector, 0 where there are none.
func (k *look) patchDim() int {
	_, dim := k.e.Patches(k.patches().String())
	return dim
}

func (k *look) Close() error { return k.e.Close() }

// of is the part's piece of an embedding.
func (k *look) of(p Part, v []float32) []float32 {
	i := slices.Index(k.parts, p)
	return v[i*k.dim : (i+1)*k.dim]
}

// engine is what searches many vectors at once.
func (p Plan) engine() (*inference.BatchEngine, error) {
	return inference.NewBatchEngine(ort.Options{Device: p.Device})
}

// sampled are some of the patch vectors of each image.
type sampled struct {
	dim    int
	rows   [][]float32 // by image
	places [][]int     // of the patches in the image
}

// keep takes at most most of an image's patches, drawn with seed.
func (s *sampled) keep(patches []float32, dim, most int, seed uint64) {
	s.dim = dim
	n := len(patches) / dim
	which := rand.New(rand.NewPCG(seed, uint64(len(s.rows)))).Perm(n)[:min(n, most)]
	slices.Sort(which)
	var rows []float32
	for _, i := range which {
		rows = append(rows, patches[i*dim:(i+1)*dim]...)
	}
	s.rows, s.places = append(s.rows, rows), append(s.places, which)
}

// patchBank is a bank of patches and how it came about.
type patchBank struct {
	*bank.Bank
	Coreset bank.CoresetReport `json:"coreset"`
	Index   bank.Report        `json:"index"`
}

// fillPatches makes the bank of the patches of the images at which; the others'
// are queries for the recall gate.
func (p Plan) fillPatches(ctx context.Context, s *sampled, ids []uint64, which, others []int, engine bank.BatchEngine) (*patchBank, error) {
	var rows []float32
	var names []uint64
	for _, i := range which {
		rows = append(rows, s.rows[i]...)
		for _, place := range s.places[i] {
			names = append(names, release.PatchID(ids[i], place))
		}
	}
	b := &patchBank{Coreset: bank.CoresetReport{From: len(names), To: len(names)}}
	whiten, err := whitening(rows, s.dim, p.Patches.Whiten)
	if err != nil {
		return nil, err
	}
	if want := p.Patches.want(len(names)); want < len(names) {
		chosen, report, err := bank.Coreset(ctx, rows, s.dim, want, p.Seed)
		if err != nil {
			return nil, err
		}
		b.Coreset = report
		slices.Sort(chosen)
		for j, i := range chosen { // in place: i ≥ j
			copy(rows[j*s.dim:(j+1)*s.dim], rows[i*s.dim:(i+1)*s.dim])
			names[j] = names[i]
		}
		rows, names = rows[:len(chosen)*s.dim], names[:len(chosen)]
	}
	kind := p.Index
	if kind == bank.Auto {
		// Patches are many queries at once, for which sketches are exact enough and
		// faster than a graph until that needs no longer than the network.
		kind = bank.Sketch
		if len(names) >= bank.DefaultCutoff {
			kind = bank.HNSW
		}
	}
	if b.Bank, err = bank.New(bank.Options{Dim: s.dim, K: 1, Kind: kind, Transform: whiten, Batch: engine, Log: p.Log}); err != nil {
		return nil, err
	}
	if err := b.AddBatch(names, rows); err != nil {
		return nil, err
	}
	var queries []float32
	for _, i := range others {
		queries = append(queries, s.rows[i]...)
	}
	b.Index, err = b.Build(ctx, queries)
	return b, err
}

// whitening is the transform of a bank of these rows; nil with a shrinkage of 0.
func whitening(rows []float32, dim int, shrinkage float64) (*bank.Transform, error) {
	if shrinkage == 0 {
		return nil, nil
	}
	return bank.LearnWhitening(rows, dim, shrinkage)
}

// grids are the images' patch distances.
func (k *look) grids(ctx context.Context, b *bank.Bank, images []Image, progress func(done, total int)) ([]heatmap.Grid, error) {
	const chunk = 32 // images in memory at a time
	var out []heatmap.Grid
	for at := 0; at < len(images); at += chunk {
		some := images[at:min(at+chunk, len(images))]
		files := make([][]byte, len(some))
		for i, m := range some {
			var err error
			if files[i], err = m.Read(); err != nil {
				return nil, fmt.Errorf("read normal image %s: %w", m.Name, err)
			}
		}
		all, err := k.e.Embed(ctx, files)
		if err != nil {
			return nil, err
		}
		var rows []float32
		for i, v := range all {
			if v.Err != nil {
				return nil, fmt.Errorf("embed image %s: %w", some[i].Name, v.Err)
			}
			rows = append(rows, v.Patches[0]...)
		}
		part, err := k.gridsOf(ctx, b, rows)
		if err != nil {
			return nil, err
		}
		out = append(out, part...)
		progress(len(out), len(images))
	}
	return out, nil
}

// gridsOf are the distances of patch vectors of whole images.
func (k *look) gridsOf(ctx context.Context, b *bank.Bank, rows []float32) ([]heatmap.Grid, error) {
	distances, err := inference.NearestDistances(ctx, b, rows)
	if err != nil {
		return nil, err
	}
	n := k.grid[0] * k.grid[1]
	out := make([]heatmap.Grid, len(distances)/n)
	for i := range out {
		out[i] = heatmap.Grid{Width: k.grid[0], Height: k.grid[1], Values: distances[i*n : (i+1)*n : (i+1)*n]}
	}
	return out, nil
}
