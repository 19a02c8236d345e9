package training

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"time"

	"github.com/rs/zerolog"

	"github.com/nearmiss/nearmiss/bank"
	"github.com/nearmiss/nearmiss/inference"
	"github.com/nearmiss/nearmiss/inference/backbone"
	"github.com/nearmiss/nearmiss/inference/heatmap"
	"github.com/nearmiss/nearmiss/inference/ort"
	"github.com/nearmiss/nearmiss/inference/release"
)

// normals are what a score is built of: what a model gives of normal images.
type normals struct {
	ids     []uint64      // of the images
	dim     int           // of a row
	rows    []float32     // the embeddings, one image after the other
	patches []patchSample // some patches of each image, by output
	// replay calls f with what the model gives of the images at which, in this order: all
	// of their patches.
	replay func(ctx context.Context, which []int, f func(e *inference.Embedding) error) error
	// vary does the same for copies of them, all of an image's one after the other;
	// nil: it cannot.
	vary func(ctx context.Context, which []int, c copying, f func(e *inference.Embedding) error) error
	// copies join the banks with the images: as many of each, one after the other.
	copies *normals
}

func (n *normals) size() int { return len(n.ids) }

// at are the normals at some places.
func (n *normals) at(which []int) *normals {
	out := &normals{dim: n.dim}
	for _, i := range which {
		out.ids = append(out.ids, n.ids[i])
		out.rows = append(out.rows, n.rows[i*n.dim:(i+1)*n.dim]...)
	}
	for _, p := range n.patches {
		out.patches = append(out.patches, p.at(which))
	}
	out.replay = func(ctx context.Context, some []int, f func(e *inference.Embedding) error) error {
		return n.replay(ctx, picked(which, some), f)
	}
	if n.vary != nil {
		out.vary = func(ctx context.Context, some []int, c copying, f func(e *inference.Embedding) error) error {
			return n.vary(ctx, picked(which, some), c, f)
		}
	}
	if n.copies != nil {
		each := n.copies.size() / n.size()
		var theirs []int
		for _, i := range which {
			for k := range each {
				theirs = append(theirs, i*each+k)
			}
		}
		out.copies = n.copies.at(theirs)
	}
	return out
}

// with are the normals and others behind them.
func (n *normals) with(o *normals) *normals {
	out := &normals{dim: n.dim, ids: slices.Concat(n.ids, o.ids), rows: slices.Concat(n.rows, o.rows)}
	for i, p := range n.patches {
		q := o.patches[i]
		out.patches = append(out.patches, patchSample{dim: p.dim, rows: slices.Concat(p.rows, q.rows), places: slices.Concat(p.places, q.places)})
	}
	// in has f do something with runs of places that are of n or of o alone.
	in := func(which []int, f func(of *normals, some []int) error) error {
		for len(which) > 0 {
			of, from, to := n, 0, n.size()
			if which[0] >= n.size() {
				of, from, to = o, n.size(), n.size()+o.size()
			}
			var some []int
			for len(which) > 0 && which[0] >= from && which[0] < to {
				some, which = append(some, which[0]-from), which[1:]
			}
			if err := f(of, some); err != nil {
				return err
			}
		}
		return nil
	}
	out.replay = func(ctx context.Context, which []int, f func(e *inference.Embedding) error) error {
		return in(which, func(of *normals, some []int) error { return of.replay(ctx, some, f) })
	}
	if n.vary != nil && o.vary != nil {
		out.vary = func(ctx context.Context, which []int, c copying, f func(e *inference.Embedding) error) error {
			return in(which, func(of *normals, some []int) error { return of.vary(ctx, some, c, f) })
		}
	}
	if n.copies != nil && o.copies != nil {
		out.copies = n.copies.with(o.copies)
	}
	return out
}

// each is replay, but does not run the model again for images of which all that is of
// the outputs o is in memory.
func (n *normals) each(ctx context.Context, o inference.Outputs, which []int, f func(e *inference.Embedding) error) error {
	for k, p := range o.Patches {
		if slices.ContainsFunc(which, func(i int) bool { return len(n.patches[k].places[i]) < p.Count }) {
			return n.replay(ctx, which, f)
		}
	}
	for _, i := range which {
		e := inference.Embedding{Vector: n.rows[i*n.dim : (i+1)*n.dim]}
		for _, p := range n.patches {
			e.Patches = append(e.Patches, p.rows[i])
		}
		if err := f(&e); err != nil {
			return err
		}
	}
	return nil
}

// part are the rows of a part of one vector.
func (n *normals) part(a release.Part) []float32 {
	out := make([]float32, 0, n.size()*a.Dim)
	for i := range n.ids {
		out = append(out, inference.Row(a, n.rows[i*n.dim:(i+1)*n.dim])...)
	}
	return out
}

// add puts one image in: its embedding, and of its patches of each output as many as
// have at most most numbers.
func (n *normals) add(ctx context.Context, id uint64, e *inference.Embedding, most int, seed uint64) error {
	n.ids, n.rows = append(n.ids, id), append(n.rows, e.Vector...)
	for i, p := range e.Patches {
		if err := n.patches[i].keep(ctx, p, max(1, most/n.patches[i].dim), seed); err != nil {
			return err
		}
	}
	return nil
}

// scoreBuilder builds the score of a composition, whoever wants it: a release, the
// gate, a protocol.
type scoreBuilder struct {
	composition
	Score
	model    *model
	seed     uint64
	engine   *inference.BatchEngine
	log      zerolog.Logger
	progress func(step string, done, total int)
	// light asks what other light does to normals, blur what a slight blur does.
	light, blur bool
	// copies of normals join the banks.
	copies copying
	most   int // bytes of what is kept of copies, for the next thing to be tried; 0: mostKept
	// folded asks what all normals score by banks that they are not in.
	folded bool
}

// scoreBuilder loads what the plan's score needs of networks; file is where a model
// is written, where one has to be.
func (p Plan) scoreBuilder(ctx context.Context, file string, n networks) (*scoreBuilder, error) {
	a, err := backbone.Dissect(p.Model.Backbone)
	if err != nil {
		return nil, err
	}
	b := &scoreBuilder{Score: p.Score, seed: p.Seed, log: p.Host.Log, progress: p.Host.report}
	if b.composition, err = p.Score.compose(p.Model.Backbone, a, n.tuned()); err != nil {
		return nil, err
	}
	if b.model, err = b.composition.open(ctx, file, n, p.Data, p.Model, p.Host); err != nil {
		return nil, err
	}
	if b.engine, err = inference.NewBatchEngine(ort.Options{Device: p.Host.Device}); err != nil {
		return nil, errors.Join(err, b.model.Close())
	}
	return b, nil
}

// Close unloads the model. Scores that were built must be closed before.
func (b *scoreBuilder) Close() error { return errors.Join(b.model.Close(), b.engine.Close()) }

// empty are normals of which none is there yet.
func (b *scoreBuilder) empty() *normals {
	o := b.model.e.Outputs()
	n := &normals{dim: o.Dim}
	for _, p := range o.Patches {
		n.patches = append(n.patches, patchSample{dim: p.Dim})
	}
	return n
}

// builtScore is a score that can judge embeddings of its model. Its maps are whole
// once they are drawn.
type builtScore struct {
	*inference.Scorer
	served *inference.Scorer // the same, but for maps of anomalies alone
	basis
	reports []bank.Report        // of the parts' indexes
	patches []bank.CoresetReport // of the parts; zero where a part has none
	effect  effect               // of other light and blur on normals
	// What normals score by banks that they are not in, those of the banks too, and
	// their maps; nil where nobody asked. heldOut of them are in none of the banks.
	folded     []float64
	foldedMaps []heatmap.Grid
	heldOut    int
}

// basis is what a score is built of.
type basis struct {
	by        *scoreBuilder
	copies    copying  // of normals that join the banks
	n, others *normals // those of the banks, and those that ask for the recall gate
	// all are these, of which the last, outside in number, are not in the banks, or
	// those of the banks alone.
	all     *normals
	outside int
	parts   []inference.Part  // the composition's; without a bank: not filled yet
	white   []*bank.Transform // of the parts of patches
	x       crossFitted
}

// Close gives back the banks.
func (s *builtScore) Close() error {
	var errs []error
	for _, p := range s.parts {
		if p.Bank != nil {
			errs = append(errs, p.Bank.Close())
		}
	}
	return errors.Join(errs...)
}

// build fills the banks that the score needs with the normals; what only maps need is
// left to draw. others, which may be nil, are queries for the recall gate; no number of
// the score depends on them, unless all are to be scored, fold by fold.
func (b *scoreBuilder) build(ctx context.Context, n, others *normals) (_ *builtScore, err error) {
	s := &builtScore{
		basis:   basis{by: b, copies: b.copies, parts: make([]inference.Part, len(b.parts)), white: make([]*bank.Transform, len(b.parts))},
		reports: make([]bank.Report, len(b.parts)), patches: make([]bank.CoresetReport, len(b.parts)),
	}
	if s.n, s.others, err = b.copied(ctx, n, others, b.copies); err != nil {
		return nil, err
	}
	s.gather()
	defer func() {
		if err != nil {
			err = errors.Join(err, s.Close())
		}
	}()
	return s, s.settle(ctx, b.where(func(p placed) bool { return !p.mapOnly() }))
}

// copied are the normals with copies of each, and others, these too where all are to be
// scored, fold by fold.
func (b *scoreBuilder) copied(ctx context.Context, n, others *normals, c copying) (_, _ *normals, err error) {
	if n, err = n.copied(ctx, c, b.seed); err == nil && b.folded {
		others, err = others.copied(ctx, c, b.seed)
	}
	return n, others, err
}

// gather finds all normals.
func (s *basis) gather() {
	if s.all = s.n; s.by.folded {
		s.all, s.outside = s.n.with(s.others), s.others.size()
	}
}

// settle makes the banks of the parts at which, and finds how all parts are joined.
func (s *builtScore) settle(ctx context.Context, which []int) error {
	if err := s.fill(ctx, which, "bank"); err != nil {
		return err
	}
	join, err := s.fitWeights(ctx, which)
	if err != nil {
		return err
	}
	s.effect = s.x.effect(s.parts, join)
	if s.by.folded {
		s.folded, s.heldOut = s.calibrating(), s.x.out
	}
	return s.scorers(join)
}

// draw fills the banks that only maps need, and finds how parts count in maps. No score
// depends on it, so that it is for the one score that is kept of several.
func (s *builtScore) draw(ctx context.Context) error {
	only := s.by.where(placed.mapOnly)
	if err := s.fill(ctx, only, "maps"); err != nil {
		return err
	}
	if err := s.fitMaps(ctx, only); err != nil {
		return fmt.Errorf("set the weights of the maps' parts: %w", err)
	}
	if s.by.folded {
		s.foldedMaps = s.calibratingMaps()
	}
	s.n, s.others, s.all, s.x = nil, nil, nil, crossFitted{} // which takes much memory
	return s.scorers(s.Join())
}

// scorers judge by the parts that are filled.
func (s *builtScore) scorers(join *release.Join) (err error) {
	parts := slices.DeleteFunc(slices.Clone(s.parts), func(p inference.Part) bool { return p.Bank == nil })
	o := s.by.model.e.Outputs()
	if s.served, err = inference.NewScorer(o, parts, join, inference.MapAnomalies); err != nil {
		return err
	}
	s.Scorer, err = inference.NewScorer(o, parts, join, inference.MapAll)
	return err
}

// where are the places of some parts.
func (c composition) where(some func(p placed) bool) (at []int) {
	for i, p := range c.parts {
		if some(p) {
			at = append(at, i)
		}
	}
	return at
}

// fill makes the banks of the parts at which.
func (s *builtScore) fill(ctx context.Context, which []int, step string) error {
	b := s.by
	for done, i := range which {
		b.report(step, done, len(which))
		p, part := b.parts[i], inference.Part{About: b.model.parts[i]}
		var err error
		if p.isPatch() {
			s.reports[i], s.patches[i], s.white[i], err = b.fillPatches(ctx, &part, p, s.n, s.others)
		} else {
			s.reports[i], err = b.fillVectors(ctx, &part, p, s.n, s.others)
		}
		if err != nil {
			return fmt.Errorf("part %s of the score: %w", p.name, err)
		}
		if r := &s.reports[i]; r.Wanted != bank.Exact {
			part.About.Bank.Recall, part.About.Bank.Excess = &r.Recall, &r.FirstExcess
		}
		s.parts[i] = part
	}
	b.report(step, len(which), len(which))
	return nil
}

func (b *scoreBuilder) fillVectors(ctx context.Context, part *inference.Part, p placed, n, others *normals) (bank.Report, error) {
	ids, rows := n.banked(part.About)
	whiten, err := whitening(rows, part.About.Dim, p.White)
	if err != nil {
		return bank.Report{}, err
	}
	part.Bank, err = bank.New(bank.Options{Dim: part.About.Dim, K: b.K, Kind: b.Index, Transform: whiten, Batch: b.engine, Log: b.log})
	if err != nil {
		return bank.Report{}, err
	}
	if err := part.Bank.AddBatch(ids, rows); err != nil {
		return bank.Report{}, err
	}
	var queries []float32
	if others != nil {
		queries = others.part(part.About)
	}
	return part.Bank.Build(ctx, queries)
}

func (b *scoreBuilder) fillPatches(ctx context.Context, part *inference.Part, p placed, n, others *normals) (bank.Report, bank.CoresetReport, *bank.Transform, error) {
	fail := func(err error) (bank.Report, bank.CoresetReport, *bank.Transform, error) {
		return bank.Report{}, bank.CoresetReport{}, nil, err
	}
	rows, names := b.patches(n, *part)
	whiten, err := whitening(rows, part.About.Dim, p.White)
	if err != nil {
		return fail(err)
	}
	rows, names, coreset, err := chosen(ctx, rows, names, whiten, b.want(len(names)), b.seed)
	if err != nil {
		return fail(err)
	}
	part.About.Radius = coreset.Radius
	kind := b.Index
	switch {
	case kind == bank.Auto && others == nil:
		kind = bank.Exact // nothing to measure another's recall with
	case kind == bank.Auto:
		// Patches are many queries at once, for which sketches are exact enough and
		// faster than a graph until that needs no longer than the network.
		kind = bank.Sketch
		if len(names) >= bank.DefaultCutoff {
			kind = bank.HNSW
		}
	}
	part.Bank, err = bank.New(bank.Options{Dim: part.About.Dim, K: 1, Kind: kind, Transform: whiten, Batch: b.engine, Log: b.log})
	if err != nil {
		return fail(err)
	}
	if err := part.Bank.AddBatch(names, rows); err != nil {
		return fail(err)
	}
	var queries []float32
	if others != nil {
		queries, _ = b.sample(others, *part).all(others.ids)
	}
	report, err := part.Bank.Build(ctx, queries)
	return report, coreset, whiten, err
}

// chosen are want of the patches, which cover the others best as they are compared:
// whitened, where whiten is not nil.
func chosen(ctx context.Context, rows []float32, names []uint64, whiten *bank.Transform, want int, seed uint64) ([]float32, []uint64, bank.CoresetReport, error) {
	if want >= len(names) {
		return rows, names, bank.CoresetReport{From: len(names), To: len(names)}, nil
	}
	dim := len(rows) / len(names)
	space, wide := rows, dim
	if whiten != nil {
		var err error
		if space, err = whiten.ApplyAll(rows); err != nil {
			return nil, nil, bank.CoresetReport{}, err
		}
		wide = whiten.Out()
	}
	which, report, err := bank.Coreset(ctx, space, wide, want, seed)
	if err != nil {
		return nil, nil, report, err
	}
	slices.Sort(which)
	var keptRows []float32
	var keptNames []uint64
	for _, i := range which {
		keptRows, keptNames = append(keptRows, rows[i*dim:(i+1)*dim]...), append(keptNames, names[i])
	}
	return keptRows, keptNames, report, nil
}

// sample are the patches of a part's output.
func (b *scoreBuilder) sample(n *normals, part inference.Part) patchSample {
	return n.patches[slices.Index(b.model.e.PatchOutputs(), part.About.Output)]
}

// patches are those of a part's output that may join its bank, and their names.
func (b *scoreBuilder) patches(n *normals, part inference.Part) (rows []float32, names []uint64) {
	rows, names = b.sample(n, part).all(n.ids)
	if n.copies != nil {
		more, theirs := b.sample(n.copies, part).all(n.copies.ids)
		rows, names = append(rows, more...), append(names, theirs...)
	}
	return rows, names
}

// cost times a few image files, from file to verdict and one at a time, and counts
// what lies in memory.
func (b *scoreBuilder) cost(ctx context.Context, s *builtScore, files [][]byte) (*Cost, error) {
	c := &Cost{Parts: len(b.scored())}
	for _, p := range s.Parts() {
		c.Banks += 4 * int64(p.Bank.Len()) * int64(p.Bank.Dim())
	}
	c.Model = b.model.size
	var times []float64
	for _, file := range files {
		began := time.Now()
		all, err := b.model.e.Embed(ctx, [][]byte{file})
		if err != nil {
			return nil, err
		}
		if all[0].Err != nil {
			return nil, fmt.Errorf("time an image: %w", all[0].Err)
		}
		var v inference.Score
		if err := s.served.Judge(ctx, []*inference.Embedding{&all[0]}, []*inference.Score{&v}); err != nil {
			return nil, err
		}
		times = append(times, 1000*time.Since(began).Seconds())
	}
	if c.Milliseconds = median(times); len(times) == 0 {
		c.Milliseconds = 0
	}
	return c, nil
}

// timedImages is how many images cost times.
const timedImages = 9

// median is NaN of nothing.
func median(v []float64) float64 {
	if len(v) == 0 {
		return math.NaN()
	}
	s := slices.Sorted(slices.Values(v))
	return (s[(len(s)-1)/2] + s[len(s)/2]) / 2
}

// whitening is the transform of a bank of these rows; nil with a shrinkage of 0,
// and where the rows do not differ.
func whitening(rows []float32, dim int, shrinkage float64) (*bank.Transform, error) {
	if shrinkage == 0 || len(rows) < 2*dim || !differ(rows, dim) {
		return nil, nil
	}
	return bank.LearnWhitening(rows, dim, shrinkage)
}

func differ(rows []float32, dim int) bool {
	for at := dim; at < len(rows); at += dim {
		if !slices.Equal(rows[:dim], rows[at:at+dim]) {
			return true
		}
	}
	return false
}
