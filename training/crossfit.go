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
	// references bounds the normals that set the parts' weights, each against the others.
	references = 200
	// foldedReferences bounds those that also calibrate.
	foldedReferences = 1000
	// lightReferences bounds those that are scored in another light and spoilt, too.
	lightReferences = 60
	// foldCount is in how many folds that is done.
	foldCount = 5
	// calibrationRounds is how often normals that calibrate are scored, some each time, with
	// weights set by all others, about as many as set them in the release.
	calibrationRounds = 20
	// sharpness of the soft maximum of groups.
	sharpness = 1.0
	// localWeight is that of the local group: it needs one spread more.
	localWeight = 1 / math.E
)

// crossFitted is what parts score normals by banks that these are not in.
type crossFitted struct {
	partScores
	// Of the first of the same normals in another light, blurred, and spoilt in usual light.
	relit, blurred, spoilt partScores
	// varied are what the model gives of each that is blurred and then spoilt, for scores that
	// are built of the same normals later; without patches where these take much memory.
	varied []inference.Embedding
	out    int // how many are in none of the score's banks
}

// without is the same but for the scores of the parts at which, which are to be made anew,
// and for other light.
func (x crossFitted) without(which []int) crossFitted {
	x.partScores, x.relit, x.blurred, x.spoilt = x.partScores.without(which), newPartScores(len(x.scores)), x.blurred.without(which), x.spoilt.without(which)
	return x
}

// size is how many normals there are.
func (s partScores) size() (n int) {
	for i := range s.scores {
		n = max(n, len(s.scores[i]), len(s.grids[i]))
	}
	return n
}

// partScores are what parts score some images, by part.
type partScores struct {
	scores [][]float64      // of parts of one vector
	grids  [][]heatmap.Grid // of parts of patches
}

func newPartScores(parts int) partScores {
	return partScores{make([][]float64, parts), make([][]heatmap.Grid, parts)}
}

// without is the same but for the scores of the parts at which.
func (s partScores) without(which []int) partScores {
	out := partScores{slices.Clone(s.scores), slices.Clone(s.grids)}
	for _, i := range which {
		out.scores[i], out.grids[i] = nil, nil
	}
	return out
}

// at is the same of the images at which; nothing of parts that have not scored them.
func (s partScores) at(which []int) partScores {
	out := newPartScores(len(s.scores))
	for i := range s.scores {
		for _, j := range which {
			switch {
			case s.grids[i] != nil:
				out.grids[i] = append(out.grids[i], s.grids[i][j])
			case s.scores[i] != nil:
				out.scores[i] = append(out.scores[i], s.scores[i][j])
			}
		}
	}
	return out
}

// measures are what a part's measures are of the images.
func (s partScores) measures(i int, a release.Part) [][]float64 {
	if a.IsPatch() {
		return statistics(s.grids[i], a.Places, a.Measures())
	}
	return [][]float64{s.scores[i]}
}

// joint are the scores of the images.
func (s partScores) joint(parts []inference.Part, join *release.Join) []float64 {
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

// drawn are the places of the parts that count in maps.
func drawn(parts []inference.Part) (which []int) {
	for i, p := range parts {
		if p.About.IsPatch() && !p.About.NoMap {
			which = append(which, i)
		}
	}
	return which
}

// overPlaces are distances divided by those of their places.
func overPlaces(distances, places []float32) []float32 {
	out := slices.Clone(distances)
	for i, v := range places {
		out[i] /= v
	}
	return out
}

// effect is what other light and blur do to the normals, and how well they are separated
// from spoilt ones.
func (x crossFitted) effect(parts []inference.Part, join *release.Join) effect {
	out := effect{math.NaN(), math.NaN(), math.NaN()}
	if x.scores == nil {
		return out
	}
	spoilt := x.spoilt.joint(parts, join)
	if len(spoilt) == 0 {
		return out
	}
	usual := x.joint(parts, join)
	slices.Sort(usual)
	threshold := usual[min(int(math.Ceil((1-evaluate.SuiteAlarms)*float64(len(usual))))-1, len(usual)-1)]
	alarms := func(changed partScores) float64 {
		above, scores := 0, changed.joint(parts, join)
		for _, v := range scores {
			if v > threshold {
				above++
			}
		}
		return float64(above) / float64(len(scores)) // NaN of none
	}
	out.light, out.blur, out.found = alarms(x.relit), alarms(x.blurred), evaluate.AUROC(usual, spoilt)
	return out
}

// fitWeights finds the scales and weights of the scored parts, which it sets, and how
// groups of them are joined, by normals that are compared with the others. With too few
// of them all parts have the same weight. Only the parts at which score them; the others
// have.
func (s *builtScore) fitWeights(ctx context.Context, which []int) (*release.Join, error) {
	b, parts := s.by, s.parts
	measures, placed := 0, false
	for i, p := range b.parts {
		if p.scored {
			measures += len(parts[i].About.Measures())
			placed = placed || p.Placed
		}
	}
	if measures < 2 && !placed && !b.light && !b.blur {
		return nil, nil
	}
	if err := s.crossFit(ctx, which); err != nil {
		return nil, fmt.Errorf("set the weights of the score's parts: %w", err)
	}
	least := leastSpreads
	if b.folded { // so many have to be left in each round, whose scores are compared with the release's
		least += (s.x.size() + calibrationRounds - 1) / calibrationRounds
	}
	return b.setWeights(parts, s.x.partScores, least), nil
}

// setWeights sets the places, scales and weights of the scored parts by what these score
// normals, and finds how groups of them are joined. With fewer than least of them all
// parts have the same weight, and groups spread alike.
func (b *scoreBuilder) setWeights(parts []inference.Part, x partScores, least int) *release.Join {
	values := map[string][]float64{} // of the groups, by reference
	weights := map[string]float64{}
	for i := range parts {
		a := &parts[i].About
		if !a.Scored {
			continue
		}
		all := a.Measures()
		scores := [][]float64{x.scores[i]}
		if a.IsPatch() {
			if b.parts[i].Placed {
				a.Places = places(x.grids[i])
			}
			scores = x.measures(i, *a)
		}
		for k, s := range scores {
			m := partScaleOf(s, least)
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
		g.Center, g.Spread = centerAndSpread(of, least)
		join.Groups = append(join.Groups, g)
		join.Unit += g.Spread
	}
	join.Unit /= float64(len(join.Groups))
	return join
}

// calibrating are the joint scores of the normals, in their order. Places, scales and
// weights are those of other normals: ones that a normal helped to set, as none of a new
// one's are, would make little of what is odd in it. They are those of nearly all others,
// since the fewer set them the odder all the rest seems by them, and a new normal is
// judged by those of all.
func (s *builtScore) calibrating() []float64 {
	n := s.x.size()
	scores := make([]float64, n)
	for f := range min(calibrationRounds, n) {
		var some, others []int
		for j := range n {
			if j%calibrationRounds == f {
				some = append(some, j)
			} else {
				others = append(others, j)
			}
		}
		theirs := slices.Clone(s.parts)
		join := s.by.setWeights(theirs, s.x.at(others), leastSpreads)
		for k, v := range s.x.at(some).joint(theirs, join) {
			scores[some[k]] = v
		}
	}
	return scores
}

// calibratingMaps are the maps of the normals, as many as all parts of maps have scored,
// by places and weights of the others.
func (s *builtScore) calibratingMaps() (maps []heatmap.Grid) {
	which, most := drawn(s.parts), 0
	for k, i := range which {
		if n := len(s.x.grids[i]); k == 0 || n < most {
			most = n
		}
	}
	for f := range min(foldCount, most) {
		theirs := slices.Clone(s.parts)
		s.by.setMapWeights(theirs, s.x.partScores, func(j int) bool { return j >= most || j%foldCount != f })
		for j := f; j < most; j += foldCount {
			var grids []heatmap.Grid
			var of []release.Part
			for _, i := range which {
				g, a := s.x.grids[i][j], theirs[i].About
				grids = append(grids, heatmap.Grid{Width: g.Width, Height: g.Height, Values: overPlaces(g.Values, a.Places)})
				of = append(of, a)
			}
			maps = append(maps, inference.SumMaps(of, grids))
		}
	}
	return maps
}

// setMapWeights sets the places and weights of the parts that count in maps, by what
// these give of normals of which some count.
func (b *scoreBuilder) setMapWeights(parts []inference.Part, x partScores, counts func(j int) bool) {
	which := drawn(parts)
	for _, i := range which {
		var grids []heatmap.Grid
		for j, g := range x.grids[i] {
			if counts(j) {
				grids = append(grids, g)
			}
		}
		a := &parts[i].About
		if b.parts[i].Placed {
			a.Places = places(grids)
		}
		if len(which) > 1 {
			a.Map = mapWeight(grids, *a, len(which))
		}
	}
}

// fitMaps finds the places of the parts that only maps need, and the parts' weights in
// maps, and sets them.
func (s *builtScore) fitMaps(ctx context.Context, only []int) error {
	which := drawn(s.parts)
	if s.x.grids == nil {
		s.x.partScores = newPartScores(len(s.parts))
	}
	needed := s.by.folded || len(which) > 1 || slices.ContainsFunc(only, func(i int) bool { return s.by.parts[i].Placed })
	for _, t := range s.folds() {
		if len(only) == 0 || !needed {
			break
		}
		err := s.inFold(ctx, t, only, func(without []inference.Part) error {
			return s.score(ctx, t.some, without, only, s.x.partScores)
		})
		if err != nil {
			return err
		}
	}
	s.by.setMapWeights(s.parts, s.x.partScores, func(int) bool { return true })
	return nil
}

// fold is one of the cross-fit: some of the normals, and the rest.
type fold struct {
	rest, some []int // places of those of the banks, and of those that are compared with them
	own        bool  // the banks are the parts' own
}

// folds are some of the normals each, which are compared with banks that none of their
// fold is in; none where there are too few. Those that are in none of the parts' own
// banks are the first fold; the banks of the other folds are made in the same way, of
// about as many normals.
func (s *builtScore) folds() (out []fold) {
	n, outside := s.all.size(), s.outside
	count, most := min(foldCount, n), references
	if outside > 0 {
		most = foldedReferences
	}
	if n-(n+count-1)/max(count, 1) < max(s.by.K, 2) {
		return nil
	}
	order := rand.New(rand.NewPCG(s.by.seed, 0x666f6c64)).Perm(n)
	number := make([]int, n)
	next := 0
	for _, at := range order {
		switch {
		case at >= n-outside:
		case outside > 0 && count > 1:
			number[at] = 1 + next%(count-1)
			next++
		default:
			number[at] = next % count
			next++
		}
	}
	for f := range count {
		t := fold{own: outside > 0 && f == 0}
		for at := range number {
			if number[at] != f {
				t.rest = append(t.rest, at)
			}
		}
		for _, at := range order[:min(len(order), most)] {
			if number[at] == f {
				t.some = append(t.some, at)
			}
		}
		out = append(out, t)
	}
	return out
}

// inFold calls f with the parts at which and the banks of a fold.
func (s *builtScore) inFold(ctx context.Context, t fold, which []int, f func(without []inference.Part) error) error {
	if t.own {
		return f(s.parts)
	}
	without, err := s.without(ctx, which, t.rest)
	if err == nil {
		err = f(without)
	}
	for _, p := range without {
		if p.Bank != nil {
			err = errors.Join(err, p.Bank.Close())
		}
	}
	return err
}

// crossFit has the scored ones of the parts at which score some of the normals fold by
// fold, in the same order for all of them.
func (s *builtScore) crossFit(ctx context.Context, which []int) error {
	b, x, folds := s.by, &s.x, s.folds()
	if x.scores == nil {
		n := len(s.parts)
		*x = crossFitted{partScores: newPartScores(n), relit: newPartScores(n), blurred: newPartScores(n), spoilt: newPartScores(n)}
	}
	which = slices.DeleteFunc(slices.Clone(which), func(i int) bool { return !b.parts[i].scored })
	if len(which) == 0 {
		return nil
	}
	first, kept := x.varied == nil, x.varied
	keep := first && b.blur && b.copies.blurred == 0
	if len(kept) > 0 && kept[0].Patches == nil && b.anyPatches(which) {
		kept = nil
	}
	c, to := copying{spoilt: true}, []partScores{x.spoilt} // one after the other
	if b.blur {
		c.blurred, to = 1, slices.Insert(to, 0, x.blurred)
	}
	if b.light && first {
		c.lit, to = 1, slices.Insert(to, 0, x.relit)
	}
	for f, t := range folds {
		b.report("weigh", f, len(folds))
		if t.own {
			x.out = len(t.some)
		}
		err := s.inFold(ctx, t, which, func(without []inference.Part) error {
			if err := s.score(ctx, t.some, without, which, x.partScores); err != nil || !b.light && !b.blur {
				return err
			}
			next := 0
			ask := func(e *inference.Embedding) error {
				k := next % len(to)
				next++
				if keep && k >= c.lit {
					x.varied = append(x.varied, b.kept(e))
				}
				return b.reference(ctx, without, which, e, to[k])
			}
			some := t.some[:min(len(t.some), (lightReferences+len(folds)-1)/len(folds))]
			if kept == nil {
				return s.all.vary(ctx, some, c, ask)
			}
			for range len(some) * len(to) {
				if err := ask(&kept[0]); err != nil {
					return err
				}
				kept = kept[1:]
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	b.report("weigh", len(folds), len(folds))
	return nil
}

// kept is what is kept of what the model gives of a changed normal.
func (b *scoreBuilder) kept(e *inference.Embedding) inference.Embedding {
	if !b.room(2 * lightReferences) {
		return inference.Embedding{Vector: e.Vector}
	}
	return *e
}

// anyPatches says whether some of the parts at which are of patches.
func (c composition) anyPatches(which []int) bool {
	return slices.ContainsFunc(which, func(i int) bool { return c.parts[i].isPatch() })
}

// score adds what the parts at which score some of the normals.
func (s *builtScore) score(ctx context.Context, some []int, parts []inference.Part, which []int, out partScores) error {
	o := s.by.model.e.Outputs()
	if !s.by.anyPatches(which) {
		o.Patches = nil
	}
	return s.all.each(ctx, o, some, func(e *inference.Embedding) error {
		return s.by.reference(ctx, parts, which, e, out)
	})
}

// report reports how far a step is, where progress is wanted.
func (b *scoreBuilder) report(step string, done, total int) {
	if b.progress != nil {
		b.progress(step, done, total)
	}
}

// reference adds what the parts at which score one normal.
func (b *scoreBuilder) reference(ctx context.Context, parts []inference.Part, which []int, e *inference.Embedding, out partScores) error {
	for _, i := range which {
		p := parts[i]
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

// without are the parts at which with banks of some of the normals alone. Patches are
// chosen anew: what was chosen of all, but for those of the others, has holes where
// these had something rare, and theirs would seem strange. Only for maps they are
// compared as in the parts' own banks.
func (s *builtScore) without(ctx context.Context, which, rest []int) ([]inference.Part, error) {
	b, few := s.by, s.all.at(rest)
	out := make([]inference.Part, len(s.parts))
	for _, i := range which {
		p := s.parts[i]
		o := bank.Options{Dim: p.About.Dim, K: p.Bank.K(), Kind: bank.Exact, Batch: b.engine}
		var rows []float32
		var ids []uint64
		var err error
		if !p.About.IsPatch() {
			ids, rows = few.banked(p.About)
			if o.Transform, err = whitening(rows, o.Dim, b.parts[i].White); err != nil {
				return out, err
			}
		} else {
			o.Transform = s.white[i]
			all, names := b.patches(few, p)
			want := p.Bank.Len()
			if b.Coreset <= 1 {
				want = want * len(rest) / s.n.size()
			}
			if p.About.Scored {
				if o.Transform, err = whitening(all, o.Dim, b.parts[i].White); err != nil {
					return out, err
				}
			}
			if rows, ids, _, err = chosen(ctx, all, names, o.Transform, max(want, 1), b.seed); err != nil {
				return out, err
			}
		}
		out[i].About = p.About
		if out[i].Bank, err = bank.New(o); err != nil {
			return out, err
		}
		if err := out[i].Bank.AddBatch(ids, rows); err != nil {
			return out, err
		}
	}
	return out, nil
}
