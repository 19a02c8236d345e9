package training

import (
	"cmp"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"

	"github.com/nearmiss/nearmiss/bank"
	"github.com/nearmiss/nearmiss/inference/backbone"
	"github.com/nearmiss/nearmiss/inference/release"
)

// Score says what a score is made of. The zero value is the full one.
type Score struct {
	// Groups of parts. The parts of a group are joined by the weighted mean of the
	// logarithms of their scores, the groups by a soft maximum, so that one that
	// stands out suffices: see release.Join. None: full, which is every layer of the
	// whole picture and the patches of several.
	Groups [][]Part
	// K is the number of neighbours in the score of a part of one vector. Default
	// DefaultK.
	K int
	// Index is the kind of index of the banks. Default bank.Auto.
	Index bank.Kind
	// Coreset bounds each bank of patches: up to 1 a share of the normals' patches,
	// above it a number. Default DefaultCoreset.
	Coreset float64
	// NoPatches makes no bank of patches, which heatmaps need, where the score itself
	// needs none; of the full score its local group is left out.
	NoPatches bool
	// NoMaps makes no bank that only heatmaps need.
	NoMaps bool
}

// DefaultCoreset is how many patches a bank keeps at most.
const DefaultCoreset = 3_000

// Names of scores. both is class+patch; auto chose among several scores once, and
// is the full one now.
const (
	FullScore  = "full"
	ClassScore = "class"
	bothScore  = "both"
	autoChoice = "auto"
)

// ParseScore reads "full", "class" or a list of parts, joined by + within a group
// and by | between groups, as in "class:unit:white+pooled@6:unit:white|patch@4:top1".
// Nothing is the full score.
func ParseScore(text string) ([][]Part, error) {
	switch text = strings.TrimSpace(text); text {
	case "", FullScore, autoChoice:
		return nil, nil
	case bothScore:
		return [][]Part{{classPart, patchPart}}, nil
	}
	var groups [][]Part
	var names []string
	for group := range strings.SplitSeq(text, "|") {
		var parts []Part
		for item := range strings.SplitSeq(group, "+") {
			p, err := parsePart(item)
			if err != nil {
				return nil, fmt.Errorf("%w; or take %s or %s", err, FullScore, ClassScore)
			}
			if slices.Contains(names, p.name()) {
				return nil, fmt.Errorf("part %q of the score is asked for twice", p)
			}
			names, parts = append(names, p.name()), append(parts, p)
		}
		groups = append(groups, parts)
	}
	return groups, nil
}

// Class is the paper's score.
func Class() [][]Part { return [][]Part{{classPart}} }

// name is the score's as ParseScore reads it.
func (s Score) name() string {
	if len(s.Groups) == 0 {
		return FullScore
	}
	var groups []string
	for _, g := range s.Groups {
		var parts []string
		for _, p := range g {
			parts = append(parts, p.String())
		}
		groups = append(groups, strings.Join(parts, "+"))
	}
	return strings.Join(groups, "|")
}

func (s Score) withDefaults() Score {
	s.K = cmp.Or(s.K, DefaultK)
	s.Index = cmp.Or(s.Index, bank.Auto)
	s.Coreset = cmp.Or(s.Coreset, DefaultCoreset)
	return s
}

func (s Score) validate() error {
	var errs []error
	fail := func(format string, a ...any) { errs = append(errs, fmt.Errorf(format, a...)) }
	if s.K < 0 {
		fail("%d neighbours in a score: use 1 or more", s.K)
	}
	if !(s.Coreset >= 0) || math.IsInf(s.Coreset, 0) {
		fail("coreset %g: use a share up to 1 or a number of patches", s.Coreset)
	}
	if len(s.Groups) > 0 {
		if _, err := ParseScore(s.name()); err != nil {
			errs = append(errs, err)
		}
	}
	if s.NoPatches && slices.ContainsFunc(slices.Concat(s.Groups...), Part.isPatch) {
		fail("the score %s needs a bank of patches, and there is to be none", s.name())
	}
	return errors.Join(errs...)
}

// want is how many of n patches a bank keeps.
func (s Score) want(n int) int {
	if s.Coreset <= 1 {
		return max(1, int(math.Round(s.Coreset*float64(n))))
	}
	return min(n, int(s.Coreset))
}

// placed is a part of a score as one backbone gives it.
type placed struct {
	Part
	name   string
	group  string // where groups are joined
	scored bool   // it counts in the score
	noMap  bool   // it does not count in maps
	excess bool   // in maps it counts above the picture's median alone
}

// mapOnly says whether the part is there for maps alone.
func (p placed) mapOnly() bool { return !p.scored && p.isPatch() }

// composition is what a score is made of with one backbone.
type composition struct {
	name   string
	parts  []placed
	joined bool // groups are joined
}

// compose settles what the score is made of with the backbone at path. tuned says
// whether there is a fine-tuned network beside the frozen one.
func (s Score) compose(path string, a backbone.Anatomy, tuned bool) (composition, error) {
	groups := s.Groups
	if len(groups) == 0 {
		groups = full(a, tuned, s.NoPatches)
	}
	c := composition{name: s.name(), joined: len(groups) > 1}
	used := map[string]bool{}
	for _, g := range groups {
		group := release.GroupWhole
		if !slices.ContainsFunc(g, func(p Part) bool { return !p.isPatch() }) {
			group = release.GroupLocal
		}
		for name, n := group, 2; used[group]; n++ {
			group = fmt.Sprintf("%s-%d", name, n)
		}
		used[group] = true
		for _, p := range g {
			p.Frozen = p.Frozen && tuned
			if slices.ContainsFunc(c.parts, func(q placed) bool { return q.name == p.name() }) {
				continue // a frozen part, where all are
			}
			c.parts = append(c.parts, placed{Part: p, name: p.name(), group: group, scored: true})
		}
	}
	maps := !s.NoPatches && !s.NoMaps
	if len(s.Groups) == 0 && maps && a.Layers > 0 {
		c.draw(a, tuned)
	}
	isVector := func(p placed) bool { return !p.isPatch() }
	if !slices.ContainsFunc(c.parts, isVector) { // a detector has a bank of images
		c.parts = slices.Insert(c.parts, 0, placed{Part: classPart, name: classPart.name()})
	}
	if a.Layers > 0 && maps && !slices.ContainsFunc(c.parts, func(p placed) bool { return p.isPatch() }) {
		c.parts = append(c.parts, placed{Part: patchPart, name: patchPart.name()})
	}
	// The main bank is the first: of the class token after the last layer, which
	// tells neighbours apart best, where there is one.
	if i := slices.IndexFunc(c.parts, func(p placed) bool { return isVector(p) && p.What == backbone.TapClass && p.Layer == 0 && p.scored }); i > 0 {
		main := c.parts[i]
		c.parts = slices.Insert(slices.Delete(c.parts, i, i+1), 0, main)
	}
	for i := range c.parts {
		p := &c.parts[i]
		if p.Layer == usualLayer {
			p.Layer = a.PatchLayer
		}
		switch {
		case a.Layers == 0 && p.Tap != classPart.Tap:
			return c, fmt.Errorf("%w: %s is a foreign model, which gives one vector only: score on %s", ErrPlan, path, ClassScore)
		case p.Layer > a.Layers:
			return c, fmt.Errorf("%w: part %s of the score: %s has %d layers", ErrPlan, p.Part, path, a.Layers)
		case !a.Class && (p.What == backbone.TapClass && p.Layer > 0 || p.What != backbone.TapClass && p.Layer == 0) && a.Layers > 0:
			return c, fmt.Errorf("%w: part %s of the score: %s is no transformer; take class, or pooled and patches after some of its %d stages", ErrPlan, p.Part, path, a.Layers)
		}
	}
	return c, nil
}

// wideAround is the side of the neighbourhoods that maps see large weak areas by: of
// 14 patches, as many as most backbones see across, two thirds.
const wideAround = 9

// draw has maps drawn from what shows best where: single patches of an early layer and,
// whitened, of a middle one, and small neighbourhoods of a late one, by what they have
// that most of the picture has not; and wide neighbourhoods, whitened, for what is odd in
// large. The neighbourhoods of the early layer that the score reads blur and show no more.
func (c *composition) draw(a backbone.Anatomy, tuned bool) {
	taps := localTaps(a)
	early, late := taps[0].Layer, taps[len(taps)-1].Layer
	for i := range c.parts {
		p := &c.parts[i]
		p.excess = p.isPatch()
		p.noMap = p.isPatch() && p.Layer == early && p.Around > 1 && late > early
	}
	context := late
	if a.Class { // whose early tokens know of the whole picture
		context = early
	}
	for _, p := range []placed{
		{Part: Part{Tap: backbone.Tap{Layer: layerAt(a, 1./2), Around: 1}}, excess: true},
		{Part: Part{Tap: backbone.Tap{Layer: context, Around: wideAround}}},
	} {
		p.What, p.White, p.Placed, p.Statistic, p.Frozen = backbone.TapPatch, shrinkage, true, release.StatisticMean, tuned
		p.name = p.Part.name()
		c.parts = append(c.parts, p)
	}
}

// plain says whether the model's own embedding is all that is needed.
func (c composition) plain() bool {
	return len(c.parts) == 1 && c.parts[0].Tap == classPart.Tap && !c.parts[0].Frozen
}

// scored are the parts that count in the score.
func (c composition) scored() []placed {
	return slices.DeleteFunc(slices.Clone(c.parts), func(p placed) bool { return !p.scored })
}

// full is the score that is good on everything. Of the whole picture it reads the
// class token of late layers, the mean of the patch tokens in two windows after five
// layers, and their spread, which is texture, after early ones; each is compared by
// plain distances and by Mahalanobis ones. Of the patches it reads single ones of an
// early layer and neighbourhoods of that and of a later one, where the strangest count, more of
// them, and all, and where places at which normals differ count less.
func full(a backbone.Anatomy, tuned, noPatches bool) [][]Part {
	if a.Layers == 0 {
		return Class()
	}
	var whole, local []Part
	add := func(t backbone.Tap) {
		for _, white := range []float64{0, shrinkage} {
			whole = append(whole, Part{Tap: t, Unit: true, White: white, Frozen: tuned})
		}
	}
	// What a fine-tune changed counts beside what was there before.
	addTuned := func(t backbone.Tap) {
		for _, white := range []float64{0, shrinkage} {
			if tuned {
				whole = append(whole, Part{Tap: t, Unit: true, White: white})
			}
		}
	}
	layers := wholeLayers(a)
	for i, l := range layers {
		if l == 0 || a.Class && i >= len(layers)/2 {
			add(backbone.Tap{What: backbone.TapClass, Layer: l})
			addTuned(backbone.Tap{What: backbone.TapClass, Layer: l})
		}
		if l == 0 && (!a.Class || a.Foreign) {
			continue // the same as after the last stage, or not to be had
		}
		for _, margin := range []int{2, 4} {
			add(backbone.Tap{What: backbone.TapPooled, Layer: l, Margin: margin})
			if l == 0 || i >= len(layers)/2 {
				addTuned(backbone.Tap{What: backbone.TapPooled, Layer: l, Margin: margin})
			}
			if i < 2 {
				add(backbone.Tap{What: backbone.TapSpread, Layer: l, Margin: margin})
			}
		}
	}
	if noPatches {
		return [][]Part{whole}
	}
	for _, t := range localTaps(a) {
		local = append(local, Part{Tap: t, Placed: true, Statistic: strings.Join(localStatistics, ":"), Frozen: tuned})
	}
	return [][]Part{whole, local}
}

var localStatistics = []string{release.StatisticTop1, release.StatisticTop5, release.StatisticMean}

// wholeLayers are the layers that the full score reads of the whole picture.
func wholeLayers(a backbone.Anatomy) (out []int) {
	share := []float64{1. / 3, 1. / 2, 2. / 3, 5. / 6}
	if !a.Class {
		share = []float64{1. / 2, 3. / 4, 1}
	}
	for _, s := range share {
		if l := layerAt(a, s); !slices.Contains(out, l) {
			out = append(out, l)
		}
	}
	return append(out, 0)
}

// localTaps are the patches that the full score reads.
func localTaps(a backbone.Anatomy) []backbone.Tap {
	early, late := layerAt(a, 1./3), layerAt(a, 2./3)
	if !a.Class {
		early, late = layerAt(a, 1./2), layerAt(a, 3./4)
	}
	out := []backbone.Tap{{What: backbone.TapPatch, Layer: early, Around: 1}, {What: backbone.TapPatch, Layer: early, Around: 3}}
	if late > early {
		out = append(out, backbone.Tap{What: backbone.TapPatch, Layer: late, Around: 3})
	}
	return out
}

// layerAt is the layer behind a share of all.
func layerAt(a backbone.Anatomy, share float64) int {
	return min(max(1, int(math.Round(share*float64(a.Layers)))), a.Layers)
}
