package training

import (
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"

	"github.com/rs/zerolog"

	"github.com/nearmiss/nearmiss/bank"
	"github.com/nearmiss/nearmiss/inference"
	"github.com/nearmiss/nearmiss/inference/backbone"
	"github.com/nearmiss/nearmiss/inference/heatmap"
	"github.com/nearmiss/nearmiss/inference/release"
	"github.com/nearmiss/nearmiss/training/evaluate"
)

// normals are what a score is built of: what a model gives of normal images.
type normals struct {
	ids     []uint64      // of the images
	dim     int           // of a row
	rows    []float32     // the embeddings, one image after the other
	patches []patchSample // some patches of each image, by output
	// look shows f what the model gives of the images at which, in this order: all of
	// their patches.
	look func(ctx context.Context, which []int, f func(e *inference.Embedding) error) error
	// relit does the same in another light; nil: it cannot.
	relit func(ctx context.Context, which []int, f func(e *inference.Embedding) error) error
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
	at := func(some []int) []int {
		places := make([]int, len(some))
		for i, j := range some {
			places[i] = which[j]
		}
		return places
	}
	out.look = func(ctx context.Context, some []int, f func(e *inference.Embedding) error) error {
		return n.look(ctx, at(some), f)
	}
	if n.relit != nil {
		out.relit = func(ctx context.Context, some []int, f func(e *inference.Embedding) error) error {
			return n.relit(ctx, at(some), f)
		}
	}
	return out
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
	model  *model
	white  []*bank.Transform // of the parts of patches, once they are built
	seed   uint64
	engine *inference.BatchEngine
	log    zerolog.Logger
	tell   func(step string, done, total int)
	// light asks what other light does to normals.
	light bool
}

// scoreBuilder loads what the plan's score needs of networks; file is where a model
// is written, where one has to be.
func (p Plan) scoreBuilder(file string, n networks) (*scoreBuilder, error) {
	a, err := backbone.Dissect(p.Model.Backbone)
	if err != nil {
		return nil, err
	}
	b := &scoreBuilder{Score: p.Score, seed: p.Seed, log: p.Host.Log, tell: p.Host.tell}
	if b.composition, err = p.Score.compose(p.Model.Backbone, a, n.tuned()); err != nil {
		return nil, err
	}
	if b.model, err = b.composition.open(file, n, p.Data, p.Model, p.Host); err != nil {
		return nil, err
	}
	if b.engine, err = p.Host.engine(); err != nil {
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

// builtScore is a score that can judge embeddings of its model.
type builtScore struct {
	*inference.Scorer
	served  *inference.Scorer    // the same, but for maps of anomalies alone
	reports []bank.Report        // of the parts' indexes
	patches []bank.CoresetReport // of the parts; zero where a part has none
	// alarms is the share of cross-fitted normals that are above the threshold in
	// other light that 0.05 of them are above; NaN where nobody asked.
	alarms float64
}

// Close gives back the banks.
func (b *builtScore) Close() error {
	var errs []error
	for _, p := range b.Parts() {
		errs = append(errs, p.Bank.Close())
	}
	return errors.Join(errs...)
}

// build fills the banks with the normals. others, which may be nil, are queries
// for the recall gate; no number of the score depends on them.
func (b *scoreBuilder) build(ctx context.Context, n, others *normals) (*builtScore, error) {
	out := &builtScore{}
	var parts []inference.Part
	b.white = make([]*bank.Transform, len(b.parts))
	b.told("bank", 0, len(b.parts))
	for i, p := range b.parts {
		part := inference.Part{About: b.model.parts[i]}
		var report bank.Report
		var coreset bank.CoresetReport
		var err error
		if p.isPatch() {
			report, coreset, b.white[i], err = b.fillPatches(ctx, &part, p, n, others)
		} else {
			report, err = b.fillVectors(ctx, &part, p, n, others)
		}
		if err != nil {
			return nil, fmt.Errorf("part %s of the score: %w", p.name, err)
		}
		if report.Wanted != bank.Exact {
			part.About.Bank.Recall, part.About.Bank.Excess = &report.Recall, &report.FirstExcess
		}
		parts = append(parts, part)
		out.reports, out.patches = append(out.reports, report), append(out.patches, coreset)
		b.told("bank", i+1, len(b.parts))
	}
	x, join, err := b.weigh(ctx, parts, n)
	if err != nil {
		return nil, err
	}
	out.alarms = x.alarms(parts, join)
	if out.served, err = inference.NewScorer(b.model.e.Outputs(), parts, join, inference.MapAnomalies); err != nil {
		return nil, err
	}
	out.Scorer, err = inference.NewScorer(b.model.e.Outputs(), parts, join, inference.MapAll)
	return out, err
}

func (b *scoreBuilder) fillVectors(ctx context.Context, part *inference.Part, p placed, n, others *normals) (bank.Report, error) {
	rows := n.part(part.About)
	whiten, err := whitening(rows, part.About.Dim, p.White)
	if err != nil {
		return bank.Report{}, err
	}
	part.Bank, err = bank.New(bank.Options{Dim: part.About.Dim, K: b.K, Kind: b.Index, Transform: whiten, Batch: b.engine, Log: b.log})
	if err != nil {
		return bank.Report{}, err
	}
	if err := part.Bank.AddBatch(n.ids, rows); err != nil {
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
	rows, names := b.sample(n, *part).all(n.ids)
	whiten, err := whitening(rows, part.About.Dim, p.White)
	if err != nil {
		return fail(err)
	}
	coreset := bank.CoresetReport{From: len(names), To: len(names)}
	if want := b.want(len(names)); want < len(names) {
		space, dim := rows, part.About.Dim
		if whiten != nil { // chosen as they are compared
			if space, err = whiten.ApplyAll(rows); err != nil {
				return fail(err)
			}
			dim = whiten.Out()
		}
		chosen, report, err := bank.Coreset(ctx, space, dim, want, b.seed)
		if err != nil {
			return fail(err)
		}
		coreset = report
		slices.Sort(chosen)
		var keptRows []float32
		var keptNames []uint64
		for _, i := range chosen {
			keptRows = append(keptRows, rows[i*part.About.Dim:(i+1)*part.About.Dim]...)
			keptNames = append(keptNames, names[i])
		}
		rows, names = keptRows, keptNames
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

// sample are the patches of a part's output.
func (b *scoreBuilder) sample(n *normals, part inference.Part) patchSample {
	return n.patches[slices.Index(b.model.e.PatchOutputs(), part.About.Output)]
}

const (
	// references bounds the normals that weigh the parts, each against the others.
	references = 200
	// lightReferences bounds those that are seen in another light, too.
	lightReferences = 60
	// folds is in how many turns that is done.
	folds = 5
	// leastSpread keeps a part or group whose few scores happen to agree from ruling
	// alone.
	leastSpread, leastGroupSpread = 0.02, 0.01
	// sharpness of the soft maximum of groups.
	sharpness = 1.0
	// localWeight is that of the local group: it needs one spread more.
	localWeight = 1 / math.E
	// placeQuantile of the normals' distances at a place stands for the place.
	placeQuantile = 0.9
)

// crossFitted is what parts say of normals by banks that these are not in.
type crossFitted struct {
	said
	relit said // of the first of the same normals in another light
}

// said is what parts say of some images, by part.
type said struct {
	scores [][]float64      // of parts of one vector
	grids  [][]heatmap.Grid // of parts of patches
}

func newSaid(parts int) said { return said{make([][]float64, parts), make([][]heatmap.Grid, parts)} }

// measures are what a part's measures are of the images.
func (s said) measures(i int, a release.Part) [][]float64 {
	if a.IsPatch() {
		return statistics(s.grids[i], a.Places, a.Measures())
	}
	return [][]float64{s.scores[i]}
}

// joint are the scores of the images.
func (s said) joint(parts []inference.Part, join *release.Join) []float64 {
	var all [][]inference.PartScore // by image
	for i, p := range parts {
		if !p.About.Scored {
			continue
		}
		for k, m := range p.About.Measures() {
			for j, v := range s.measures(i, p.About)[k] {
				if j == len(all) {
					all = append(all, nil)
				}
				all[j] = append(all[j], inference.PartScore{Score: v, Ratio: v / m.Scale, Weight: m.Weight, Group: p.About.Group})
			}
		}
	}
	out := make([]float64, len(all))
	for j, one := range all {
		out[j] = inference.CombineScores(one, join)
	}
	return out
}

// alarms is the share of the normals in another light above the threshold that 0.05
// of them are above in usual light; NaN where nothing is known.
func (x crossFitted) alarms(parts []inference.Part, join *release.Join) float64 {
	if x.scores == nil {
		return math.NaN()
	}
	usual, other := x.joint(parts, join), x.relit.joint(parts, join)
	if len(other) == 0 {
		return math.NaN()
	}
	slices.Sort(usual)
	threshold := usual[min(int(math.Ceil((1-evaluate.SuiteAlarms)*float64(len(usual))))-1, len(usual)-1)]
	above := 0
	for _, v := range other {
		if v > threshold {
			above++
		}
	}
	return float64(above) / float64(len(other))
}

// weigh finds the scales and weights of the parts, which it sets, and how groups
// of them are joined, by normals of the banks that are compared with the others.
// With too few of them all parts weigh the same.
func (b *scoreBuilder) weigh(ctx context.Context, parts []inference.Part, n *normals) (crossFitted, *release.Join, error) {
	measures, patches, placed := 0, 0, false
	for i, p := range parts {
		if b.parts[i].scored {
			measures += len(p.About.Measures())
		}
		if p.About.IsPatch() {
			patches++
		}
		placed = placed || b.parts[i].Placed
	}
	if measures < 2 && patches < 2 && !placed && !b.light {
		return crossFitted{}, nil, nil
	}
	x, err := b.crossFit(ctx, parts, n)
	if err != nil {
		return x, nil, fmt.Errorf("weigh the parts of the score: %w", err)
	}
	values := map[string][]float64{} // of the groups, by reference
	weights := map[string]float64{}
	for i := range parts {
		a := &parts[i].About
		all := a.Measures()
		scores := [][]float64{x.scores[i]}
		if a.IsPatch() {
			if b.parts[i].Placed {
				a.Places = places(x.grids[i])
			}
			scores = x.measures(i, *a)
			if patches > 1 {
				a.Map = mapWeight(x.grids[i], a.Places, patches)
			}
		}
		if !a.Scored {
			continue
		}
		for k, s := range scores {
			m := markOf(s)
			all[k].Scale, all[k].Weight = m.scale, m.weight
			weights[a.Group] += m.weight
			if values[a.Group] == nil {
				values[a.Group] = make([]float64, len(s))
			}
			for j, v := range s {
				values[a.Group][j] += m.weight * math.Log(v/m.scale)
			}
		}
		a.Scale, a.Weight, a.Also = all[0].Scale, all[0].Weight, all[1:]
	}
	if !b.joined {
		return x, nil, nil
	}
	join := &release.Join{Sharpness: sharpness}
	for _, p := range b.scored() {
		if slices.ContainsFunc(join.Groups, func(g release.Group) bool { return g.Name == p.group }) {
			continue
		}
		g := release.Group{Name: p.group, Weight: 1}
		if p.isPatch() && p.group == release.GroupLocal {
			g.Weight = localWeight
		}
		of := values[p.group]
		for j := range of {
			of[j] /= weights[p.group]
		}
		g.Center, g.Spread = centerAndSpread(of)
		join.Groups = append(join.Groups, g)
		join.Unit += g.Spread
	}
	join.Unit /= float64(len(join.Groups))
	return x, join, nil
}

// centerAndSpread are the median and the standard deviation.
func centerAndSpread(all []float64) (center, spread float64) {
	var values []float64
	mean := 0.0
	for _, v := range all {
		if !math.IsInf(v, 0) && !math.IsNaN(v) { // −Inf: a copy of a normal
			values = append(values, v)
			mean += v
		}
	}
	if len(values) == 0 {
		return 0, 1
	}
	if len(values) < 4 {
		return median(values), 1
	}
	mean /= float64(len(values))
	for _, v := range values {
		spread += (v - mean) * (v - mean)
	}
	return median(values), max(leastGroupSpread, math.Sqrt(spread/float64(len(values)-1)))
}

// places are what normals show at each place of a grid: a high quantile of their
// distances, averaged over the neighbours of the place. nil of no grids.
func places(grids []heatmap.Grid) []float32 {
	if len(grids) == 0 {
		return nil
	}
	w, h := grids[0].Width, grids[0].Height
	high := make([]float64, w*h)
	all := make([]float64, len(grids))
	for at := range high {
		for i, g := range grids {
			all[i] = float64(g.Values[at])
		}
		slices.Sort(all)
		high[at] = all[min(int(placeQuantile*float64(len(all))), len(all)-1)]
	}
	least := slices.Max(high) * 1e-3 // a place that never changes
	if !(least > 0) || math.IsInf(least, 0) {
		return nil
	}
	out := make([]float32, w*h)
	for y := range h {
		for x := range w {
			sum, count := 0.0, 0.0
			for v := max(0, y-1); v <= min(h-1, y+1); v++ {
				for u := max(0, x-1); u <= min(w-1, x+1); u++ {
					sum, count = sum+high[v*w+u], count+1
				}
			}
			out[y*w+x] = float32(max(sum/count, least))
		}
	}
	return out
}

// statistics are the measures of grids, each of which is divided by the places.
func statistics(grids []heatmap.Grid, places []float32, measures []release.Measure) [][]float64 {
	out := make([][]float64, len(measures))
	for _, g := range grids {
		values := slices.Clone(g.Values)
		for i, v := range places {
			values[i] /= v
		}
		for k, m := range measures {
			out[k] = append(out[k], inference.PatchStatistic(values, m.Statistic))
		}
	}
	return out
}

// mapWeight makes the distances of several layers comparable.
func mapWeight(grids []heatmap.Grid, places []float32, layers int) float64 {
	var all []float64
	for _, g := range grids {
		for i, v := range g.Values {
			if places != nil {
				v /= places[i]
			}
			all = append(all, float64(v))
		}
	}
	if m := median(all); m > 0 && !math.IsInf(m, 0) {
		return 1 / (m * float64(layers))
	}
	return 1 / float64(layers)
}

// crossFit scores some of the normals by banks that none of their fold is in: in
// the same order for all parts, and none where there are too few.
func (b *scoreBuilder) crossFit(ctx context.Context, parts []inference.Part, n *normals) (crossFitted, error) {
	out := crossFitted{newSaid(len(parts)), newSaid(len(parts))}
	count := min(folds, n.size())
	if n.size()-(n.size()+count-1)/max(count, 1) < max(b.K, 2) {
		return out, nil
	}
	order := rand.New(rand.NewPCG(b.seed, 0x666f6c64)).Perm(n.size())
	fold := make([]int, n.size())
	for i, at := range order {
		fold[at] = i % count
	}
	for f := range count {
		b.told("weigh", f, count)
		var rest, some []int
		for at := range fold {
			if fold[at] != f {
				rest = append(rest, at)
			}
		}
		for _, at := range order[:min(len(order), references)] {
			if fold[at] == f {
				some = append(some, at)
			}
		}
		without, err := b.without(parts, n, rest)
		if err != nil {
			return out, err
		}
		err = n.look(ctx, some, func(e *inference.Embedding) error { return b.reference(ctx, without, e, out.said) })
		if b.light && err == nil {
			err = n.relit(ctx, some[:min(len(some), (lightReferences+count-1)/count)], func(e *inference.Embedding) error {
				return b.reference(ctx, without, e, out.relit)
			})
		}
		for _, p := range without {
			err = errors.Join(err, p.Bank.Close())
		}
		if err != nil {
			return out, err
		}
	}
	b.told("weigh", count, count)
	return out, nil
}

// told reports how far a step is, where somebody listens.
func (b *scoreBuilder) told(step string, done, total int) {
	if b.tell != nil {
		b.tell(step, done, total)
	}
}

// reference adds what the parts say of one normal.
func (b *scoreBuilder) reference(ctx context.Context, parts []inference.Part, e *inference.Embedding, out said) error {
	for i, p := range parts {
		if !p.About.IsPatch() {
			v, err := p.Bank.Scores(ctx, inference.Row(p.About, e.Vector))
			if err != nil {
				return err
			}
			out.scores[i] = append(out.scores[i], v[0])
			continue
		}
		g, err := inference.PatchGrids(ctx, p, e.Patches[slices.Index(b.model.e.PatchOutputs(), p.About.Output)])
		if err != nil {
			return err
		}
		out.grids[i] = append(out.grids[i], g[0])
	}
	return nil
}

// without are the parts with banks of the normals at which alone. Banks of patches
// keep what the coreset kept of these.
func (b *scoreBuilder) without(parts []inference.Part, n *normals, which []int) ([]inference.Part, error) {
	few := n.at(which)
	in := map[uint64]bool{}
	for _, id := range few.ids {
		in[id] = true
	}
	var out []inference.Part
	for i, p := range parts {
		o := bank.Options{Dim: p.About.Dim, K: p.Bank.K(), Kind: bank.Exact, Batch: b.engine}
		var rows []float32
		var ids []uint64
		if !p.About.IsPatch() {
			rows, ids = few.part(p.About), few.ids
			var err error
			if o.Transform, err = whitening(rows, o.Dim, b.parts[i].White); err != nil {
				return nil, err
			}
		} else {
			kept := map[uint64]bool{}
			for _, id := range p.Bank.IDs() {
				kept[id] = true
			}
			all, names := b.sample(few, p).all(few.ids)
			for j, name := range names {
				if kept[name] {
					rows, ids = append(rows, all[j*o.Dim:(j+1)*o.Dim]...), append(ids, name)
				}
			}
			o.Transform = b.white[i]
		}
		part := inference.Part{About: p.About}
		var err error
		if part.Bank, err = bank.New(o); err != nil {
			return nil, err
		}
		if err := part.Bank.AddBatch(ids, rows); err != nil {
			return nil, err
		}
		out = append(out, part)
	}
	return out, nil
}

// mark is what normals that are not in the bank score in a part: the median, and
// a weight inverse to the spread of the logarithm.
type mark struct{ scale, weight float64 }

func markOf(scores []float64) mark {
	m := mark{scale: 1, weight: 1}
	if s := median(scores); s > 0 && !math.IsInf(s, 0) {
		m.scale = s
	}
	var logs []float64
	for _, s := range scores {
		if s > 0 { // 0: a copy of a normal, which says nothing of the spread
			logs = append(logs, math.Log(s))
		}
	}
	if len(logs) < 4 {
		return m
	}
	mean, sum := 0.0, 0.0
	for _, v := range logs {
		mean += v / float64(len(logs))
	}
	for _, v := range logs {
		sum += (v - mean) * (v - mean)
	}
	m.weight = 1 / max(leastSpread, math.Sqrt(sum/float64(len(logs)-1)))
	return m
}

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
