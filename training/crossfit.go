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
	"github.com/nearmiss/nearmiss/inference/release"
	"github.com/nearmiss/nearmiss/training/evaluate"
)

const (
	// references bounds the normals that weigh the parts, each against the others.
	references = 200
	// foldedReferences bounds those that also calibrate.
	foldedReferences = 1000
	// lightReferences bounds those that are seen in another light and spoilt, too.
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
	// Of the first of the same normals in another light, and spoilt in usual light.
	relit, spoilt said
	out           int   // how many are in none of the score's banks
	turns         []int // in which of the turns each was held out, ascending
}

// said is what parts say of some images, by part.
type said struct {
	scores [][]float64      // of parts of one vector
	grids  [][]heatmap.Grid // of parts of patches
}

func newSaid(parts int) said { return said{make([][]float64, parts), make([][]heatmap.Grid, parts)} }

// at is the same of the images at which.
func (s said) at(which []int) said {
	out := newSaid(len(s.scores))
	for i := range s.scores {
		for _, j := range which {
			if s.grids[i] != nil {
				out.grids[i] = append(out.grids[i], s.grids[i][j])
			} else {
				out.scores[i] = append(out.scores[i], s.scores[i][j])
			}
		}
	}
	return out
}

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

// maps are those of the images; nil without parts of patches.
func (s said) maps(parts []inference.Part) []heatmap.Grid {
	var grids [][]heatmap.Grid // by image
	var drawn []release.Part
	for i, p := range parts {
		if !p.About.IsPatch() || p.About.NoMap {
			continue
		}
		drawn = append(drawn, p.About)
		for j, g := range s.grids[i] {
			if j == len(grids) {
				grids = append(grids, nil)
			}
			grids[j] = append(grids[j], heatmap.Grid{Width: g.Width, Height: g.Height, Values: overPlaces(g.Values, p.About.Places)})
		}
	}
	var out []heatmap.Grid
	for _, some := range grids {
		out = append(out, inference.SumMaps(drawn, some))
	}
	return out
}

// overPlaces are distances divided by those of their places.
func overPlaces(distances, places []float32) []float32 {
	out := slices.Clone(distances)
	for i, v := range places {
		out[i] /= v
	}
	return out
}

// light is what other light does to the normals, and how well they are told from
// spoilt ones.
func (x crossFitted) light(parts []inference.Part, join *release.Join) lightEffect {
	out := lightEffect{math.NaN(), math.NaN()}
	if x.scores == nil {
		return out
	}
	usual, other, spoilt := x.joint(parts, join), x.relit.joint(parts, join), x.spoilt.joint(parts, join)
	if len(other) == 0 {
		return out
	}
	slices.Sort(usual)
	threshold := usual[min(int(math.Ceil((1-evaluate.SuiteAlarms)*float64(len(usual))))-1, len(usual)-1)]
	above := 0
	for _, v := range other {
		if v > threshold {
			above++
		}
	}
	out.alarms, out.found = float64(above)/float64(len(other)), evaluate.AUROC(usual, spoilt)
	return out
}

// fitWeights finds the scales and weights of the parts, which it sets, and how groups
// of them are joined, by normals of the banks that are compared with the others.
// With too few of them all parts weigh the same. The last of them, out in number, are
// not in the banks.
func (b *scoreBuilder) fitWeights(ctx context.Context, parts []inference.Part, n *normals, out int) (crossFitted, *release.Join, error) {
	measures, patches, placed := 0, 0, false
	for i, p := range parts {
		if b.parts[i].scored {
			measures += len(p.About.Measures())
		}
		if p.About.IsPatch() && !p.About.NoMap {
			patches++
		}
		placed = placed || b.parts[i].Placed
	}
	if measures < 2 && patches < 2 && !placed && !b.light {
		return crossFitted{}, nil, nil
	}
	x, err := b.crossFit(ctx, parts, n, out)
	if err != nil {
		return x, nil, fmt.Errorf("weigh the parts of the score: %w", err)
	}
	return x, b.weigh(parts, x.said), nil
}

// weigh sets the places, scales and weights of the parts by what these say of normals,
// and finds how groups of them are joined.
func (b *scoreBuilder) weigh(parts []inference.Part, x said) *release.Join {
	patches := 0
	for _, p := range parts {
		if p.About.IsPatch() && !p.About.NoMap {
			patches++
		}
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
			if patches > 1 && !a.NoMap {
				a.Map = mapWeight(x.grids[i], *a, patches)
			}
		}
		if !a.Scored {
			continue
		}
		for k, s := range scores {
			m := partScaleOf(s)
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
		return nil
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
	return join
}

// calibrating are the joint scores of the normals, and their maps, in their order. Places,
// scales and weights are those of the normals of the other turns: ones that a normal
// helped to set, as none of a new one's are, would make little of what is odd in it.
func (b *scoreBuilder) calibrating(parts []inference.Part, x crossFitted) (scores []float64, maps []heatmap.Grid) {
	for f := range folds {
		var some, others []int
		for j, turn := range x.turns {
			if turn == f {
				some = append(some, j)
			} else {
				others = append(others, j)
			}
		}
		if len(some) == 0 {
			continue
		}
		theirs := slices.Clone(parts)
		join := b.weigh(theirs, x.at(others))
		one := x.at(some)
		scores, maps = append(scores, one.joint(theirs, join)...), append(maps, one.maps(theirs)...)
	}
	return scores, maps
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
		values := overPlaces(g.Values, places)
		for k, m := range measures {
			out[k] = append(out[k], inference.PatchStatistic(values, m.Statistic))
		}
	}
	return out
}

// mapWeight makes what several parts add to maps comparable: the inverse of how far
// the strangest 1 % of the normals' patches are above the median one.
func mapWeight(grids []heatmap.Grid, a release.Part, layers int) float64 {
	var all []float64
	for _, g := range grids {
		g.Values = overPlaces(g.Values, a.Places)
		if a.MapExcess {
			g = g.Excess()
		}
		for _, v := range g.Values {
			all = append(all, float64(v))
		}
	}
	if len(all) == 0 {
		return 1 / float64(layers)
	}
	slices.Sort(all)
	middle, high := all[len(all)/2], all[(len(all)-1)*99/100]
	for _, unit := range []float64{high - middle, middle} { // the median where none stands out
		if unit > 0 && !math.IsInf(unit, 0) {
			return 1 / (unit * float64(layers))
		}
	}
	return 1 / float64(layers)
}

// crossFit scores some of the normals by banks that none of their fold is in: in
// the same order for all parts, and none where there are too few. The last of them,
// out in number, are a fold whose banks those of the parts are; the banks of the
// other folds are made in the same way, of about as many normals.
func (b *scoreBuilder) crossFit(ctx context.Context, parts []inference.Part, n *normals, out int) (crossFitted, error) {
	x := crossFitted{said: newSaid(len(parts)), relit: newSaid(len(parts)), spoilt: newSaid(len(parts))}
	count, most := min(folds, n.size()), references
	if out > 0 {
		most = foldedReferences
	}
	if n.size()-(n.size()+count-1)/max(count, 1) < max(b.K, 2) {
		return x, nil
	}
	order := rand.New(rand.NewPCG(b.seed, 0x666f6c64)).Perm(n.size())
	fold := make([]int, n.size())
	next := 0
	for _, at := range order {
		switch {
		case at >= n.size()-out:
		case out > 0 && count > 1:
			fold[at] = 1 + next%(count-1)
			next++
		default:
			fold[at] = next % count
			next++
		}
	}
	for f := range count {
		b.told("weigh", f, count)
		var rest, some []int
		for at := range fold {
			if fold[at] != f {
				rest = append(rest, at)
			}
		}
		for _, at := range order[:min(len(order), most)] {
			if fold[at] == f {
				some = append(some, at)
			}
		}
		for range some {
			x.turns = append(x.turns, f)
		}
		own := out > 0 && f == 0
		without := parts
		if own {
			x.out = len(some)
		} else {
			var err error
			if without, err = b.without(ctx, parts, n, rest, n.size()-out); err != nil {
				return x, err
			}
		}
		err := n.show(ctx, b.model.e.Outputs(), some, func(e *inference.Embedding) error { return b.reference(ctx, without, e, x.said) })
		if b.light && err == nil {
			changed := []said{x.relit, x.spoilt} // by turns
			err = n.vary(ctx, some[:min(len(some), (lightReferences+count-1)/count)], copying{lit: 1, spoilt: true}, func(e *inference.Embedding) error {
				out := changed[0]
				changed[0], changed[1] = changed[1], out
				return b.reference(ctx, without, e, out)
			})
		}
		for _, p := range without {
			if !own {
				err = errors.Join(err, p.Bank.Close())
			}
		}
		if err != nil {
			return x, err
		}
	}
	b.told("weigh", count, count)
	return x, nil
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

// without are the parts with banks of the normals at which alone; their own are of so
// many normals. Patches are chosen anew: what was chosen of all, but for those of the
// others, has holes where these had something rare, and theirs would seem strange.
// Only for maps they are compared as in the parts' own banks.
func (b *scoreBuilder) without(ctx context.Context, parts []inference.Part, n *normals, which []int, of int) ([]inference.Part, error) {
	few := n.at(which)
	var out []inference.Part
	for i, p := range parts {
		o := bank.Options{Dim: p.About.Dim, K: p.Bank.K(), Kind: bank.Exact, Batch: b.engine}
		var rows []float32
		var ids []uint64
		if !p.About.IsPatch() {
			var err error
			ids, rows = few.banked(p.About)
			if o.Transform, err = whitening(rows, o.Dim, b.parts[i].White); err != nil {
				return nil, err
			}
		} else {
			o.Transform = b.white[i]
			all, names := b.patches(few, p)
			want := p.Bank.Len()
			if b.Coreset <= 1 {
				want = want * len(which) / of
			}
			var err error
			if p.About.Scored {
				if o.Transform, err = whitening(all, o.Dim, b.parts[i].White); err != nil {
					return nil, err
				}
			}
			if rows, ids, _, err = chosen(ctx, all, names, o.Transform, max(want, 1), b.seed); err != nil {
				return nil, err
			}
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
