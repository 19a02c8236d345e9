package training

import (
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"

	"github.com/nearmiss/nearmiss/training/corrupt"
)

// Gate decides whether a fine-tuned backbone is published or the frozen one: a
// release must not be worse than what it replaces.
//
// Candidates are the averages of the tuned weights with the frozen ones. Each
// is compared with the frozen backbone by AUROC of normals that the fine-tune
// did not see, against the same normals spoilt in ways that it was not trained
// on, against fakes that it did not see, and against real anomalies where there
// are some. The images are resampled together for all of them (paired
// bootstrap), and a candidate passes if the lower bound of its mean gain is above
// minus the margin and no kind of evidence surely loses more than that.
//
// Spoilt normals show harm, but they do not foretell what fine-tuning on a
// generator's fakes is for, anomalies that look almost normal: with three of four
// classes of white blood cells as the normals it made the other cells easier to
// find while the mean over spoilt normals fell by 0 to 1 points. So such candidates
// need not surely gain on them, only not lose much, and of those the one with most
// of the tuned weights is taken. Those that were trained on corruptions alone get
// no margin: they did not help there.
type Gate struct {
	// Kinds of corruption to judge by; those that are trained on, and their kin
	// (corrupt.Family), are left out. None: all.
	Kinds []corrupt.Kind `json:"kinds,omitempty"`
	// Strengths of each, 0..1.
	Strengths []float64 `json:"strengths"`
	// Blends are the shares of the tuned weights in the candidates, above 0 to 1.
	Blends []float64 `json:"blends"`
	// Margin is the loss of mean AUROC, 0..1, that a candidate is allowed where it
	// was trained on the fakes of a generator. 0: it must surely gain.
	Margin float64 `json:"margin"`
	// Confidence is that of the lower bound, 0..1, shared among the candidates.
	Confidence float64 `json:"confidence"`
	// Resamples is the number of bootstrap draws.
	Resamples int `json:"resamples"`
	// Least is the number of validation normals below which nothing is decided and
	// the frozen backbone is published. Most bounds those that are used.
	Least int `json:"least"`
	Most  int `json:"most"`
	// Off publishes the last candidate whatever the comparison says, and says so.
	Off bool `json:"off,omitempty"`
}

func defaultGate() Gate {
	return Gate{
		Strengths: []float64{0.3, 0.7}, Blends: []float64{0.5, 1},
		Margin: 0.03, Confidence: 0.9, Resamples: 1000, Least: 6, Most: 100,
	}
}

func (g Gate) validate() error {
	var errs []error
	fail := func(format string, a ...any) { errs = append(errs, fmt.Errorf("gate: "+format, a...)) }
	for _, k := range g.Kinds {
		if !k.Valid() {
			fail("unknown corruption %q, take some of %v", k, corrupt.Kinds)
		}
	}
	for _, s := range g.Strengths {
		if !(s > 0 && s <= 1) {
			fail("strength %g is not in (0, 1]", s)
		}
	}
	for _, b := range g.Blends {
		if !(b > 0 && b <= 1) {
			fail("share %g of the tuned weights is not in (0, 1]", b)
		}
	}
	if len(g.Strengths) == 0 || len(g.Blends) == 0 {
		fail("it needs at least one strength and one share of the tuned weights")
	}
	if !(g.Margin >= 0 && g.Margin < 1) {
		fail("margin %g is not in [0, 1)", g.Margin)
	}
	if !(g.Confidence > 0 && g.Confidence < 1) {
		fail("confidence %g is not between 0 and 1", g.Confidence)
	}
	if g.Resamples < 100 {
		fail("%d resamples are too few, take 100 or more", g.Resamples)
	}
	if g.Least < 2 || g.Most < g.Least {
		fail("from %d to %d unseen normals: want 2 or more", g.Least, g.Most)
	}
	return errors.Join(errs...)
}

// kinds are the corruptions to judge by.
func (g Gate) kinds(trained []Source) []corrupt.Kind {
	all := g.Kinds
	if len(all) == 0 {
		all = corrupt.Kinds
	}
	return slices.DeleteFunc(slices.Clone(all), func(k corrupt.Kind) bool {
		return slices.ContainsFunc(trained, func(s Source) bool {
			t := corrupt.Kind(s.Kind)
			return t.Valid() && t.Family() == k.Family()
		})
	})
}

// forSources leaves no margin to what was trained on corruptions alone.
func (g Gate) forSources(trained []Source) Gate {
	if !slices.ContainsFunc(trained, func(s Source) bool { return !corrupt.Kind(s.Kind).Valid() }) {
		g.Margin = 0
	}
	return g
}

// Names of evidence beside the corruptions'.
const (
	EvidenceFakes = "fakes" // held-out fakes
	EvidenceReal  = "real"  // labelled anomalies
)

// evidence is the scores of one model: of normals, and of anomalies by kind. The
// anomalies of a corruption come in rounds, one for each strength, in the order
// of the normals; others in any number.
type evidence struct {
	normals   []float64
	anomalies map[string][]float64
}

// Verdict is what the gate found, for the manifest.
type Verdict struct {
	// Published is "tuned" or "frozen".
	Published string `json:"published"`
	Reason    string `json:"reason"`
	// Held is the number of validation normals that it was judged by.
	Held int `json:"held"`
	// Frozen has the frozen backbone's AUROC by kind of evidence.
	Frozen map[string]float64 `json:"frozen,omitempty"`
	// FrozenMean is the weighted mean that candidates are compared by: real
	// anomalies count as much as all others together.
	FrozenMean float64     `json:"frozen_mean"`
	Candidates []Candidate `json:"candidates,omitempty"`
}

// Candidate is a tuned model before the gate.
type Candidate struct {
	Name  string             `json:"name"`
	Blend float64            `json:"blend"` // share of the tuned weights
	AUROC map[string]float64 `json:"auroc"`
	Mean  float64            `json:"mean"`
	Gain  float64            `json:"gain"` // of the mean, over the frozen backbone's
	// Low and High bound the gain, at the gate's confidence on either side,
	// shared among the candidates.
	Low  float64 `json:"low"`
	High float64 `json:"high"`
	// Harder are the kinds of evidence whose AUROC surely falls by more than the
	// margin.
	Harder []string `json:"harder,omitempty"`
}

// judge compares the candidates with the frozen model. It returns the verdict
// and the place of the candidate to publish, −1 for the frozen model.
func (g Gate) judge(frozen evidence, names []string, blends []float64, candidates []evidence, seed uint64) (Verdict, int) {
	base := newComparison(frozen)
	v := Verdict{Published: "frozen", Held: len(frozen.normals), Frozen: base.auroc, FrozenMean: base.mean}
	best := -1
	for i, c := range candidates {
		m := newComparison(c)
		gains, kinds := m.gains(base, g.Resamples, seed)
		tail := (1 - g.Confidence) / float64(len(candidates))
		v.Candidates = append(v.Candidates, Candidate{
			Name: names[i], Blend: blends[i], AUROC: m.auroc, Mean: m.mean, Gain: m.mean - base.mean,
			Low: quantile(gains, tail), High: quantile(gains, 1-tail),
		})
		last := &v.Candidates[i]
		for k, gains := range kinds {
			if quantile(gains, 1-tail/float64(len(kinds))) < -g.Margin {
				last.Harder = append(last.Harder, m.groups[k].name)
			}
		}
		if best < 0 || g.less(v.Candidates[best], *last) {
			best = i
		}
	}
	if best < 0 {
		v.Reason = "nothing was fine-tuned"
		return v, -1
	}
	c := v.Candidates[best]
	real, hasReal := c.AUROC[EvidenceReal]
	switch {
	case len(frozen.normals) < g.Least:
		v.Reason = fmt.Sprintf("%d unseen normals are too few to tell whether fine-tuning helps, %d are needed", len(frozen.normals), g.Least)
	case hasReal && real < v.Frozen[EvidenceReal]:
		v.Reason = fmt.Sprintf("fine-tuning makes real anomalies harder to find: AUROC %.3f instead of %.3f", real, v.Frozen[EvidenceReal])
	case len(c.Harder) > 0:
		v.Reason = fmt.Sprintf("fine-tuning makes some anomalies harder to find: %s", strings.Join(c.Harder, ", "))
	case c.Low > 0:
		v.Published = "tuned"
		v.Reason = fmt.Sprintf("%s raises the mean AUROC from %.3f to %.3f, at least by %.3f", c.Name, v.FrozenMean, c.Mean, c.Low)
		return v, best
	case g.Margin > 0 && c.Low > -g.Margin:
		v.Published = "tuned"
		v.Reason = fmt.Sprintf("%s changes the mean AUROC on spoilt normals by %+.3f, at least %+.3f, which is within the margin of %.3f", c.Name, c.Gain, c.Low, g.Margin)
		return v, best
	case g.Margin > 0:
		v.Reason = fmt.Sprintf("fine-tuning may do harm: the best candidate, %s, changes the mean AUROC by %+.3f, perhaps %+.3f, and %.3f is allowed", c.Name, c.Gain, c.Low, -g.Margin)
	default:
		v.Reason = fmt.Sprintf("fine-tuning does not surely help: the best candidate, %s, changes the mean AUROC by %+.3f, at least %+.3f", c.Name, c.Gain, c.Low)
	}
	if g.Off {
		best = len(candidates) - 1
		v.Published = "tuned"
		v.Reason = fmt.Sprintf("the gate is off, so %s is published although %s", names[best], v.Reason)
		return v, best
	}
	return v, -1
}

// less says whether b is the better candidate: the one that may pass, and of two
// the one with the higher lower bound. Within a margin, which says that these
// bounds do not foretell what the fakes are for, it is the one with more of the
// tuned weights, unless there are real anomalies to rank by.
func (g Gate) less(a, b Candidate) bool {
	if x, y := g.harmless(a), g.harmless(b); x != y {
		return y
	} else if _, hasReal := a.AUROC[EvidenceReal]; x && g.Margin > 0 && !hasReal {
		return b.Blend > a.Blend
	}
	return b.Low > a.Low
}

func (g Gate) harmless(c Candidate) bool { return len(c.Harder) == 0 && c.Low > -g.Margin }

// comparison has the wins of anomalies over normals, for resampling.
type comparison struct {
	auroc  map[string]float64
	mean   float64
	groups []group
	n      int // normals
}

// group is one kind of evidence: wins[i*n+j] is how often anomalies of unit i
// score above normal j, ties counting one half.
type group struct {
	name   string
	weight float64
	units  int
	rounds float64 // anomalies in a unit
	paired bool    // units are the normals
	wins   []float64
}

func newComparison(e evidence) *comparison {
	c := &comparison{auroc: map[string]float64{}, n: len(e.normals)}
	names := slices.Sorted(maps.Keys(e.anomalies))
	others := 0.0
	for _, name := range names {
		if name != EvidenceReal && len(e.anomalies[name]) > 0 {
			others++
		}
	}
	for _, name := range names {
		scores := e.anomalies[name]
		if len(scores) == 0 {
			continue
		}
		g := group{name: name, weight: 1 / others, units: len(scores), rounds: 1}
		if name != EvidenceFakes && name != EvidenceReal {
			g.paired, g.units, g.rounds = true, c.n, float64(len(scores)/c.n)
		}
		if len(e.anomalies[EvidenceReal]) > 0 && others > 0 {
			g.weight /= 2
		}
		if name == EvidenceReal {
			g.weight = 1
			if others > 0 {
				g.weight = 0.5
			}
		}
		g.wins = make([]float64, g.units*c.n)
		total := 0.0
		for i, a := range scores {
			for j, b := range e.normals {
				switch {
				case a > b:
					g.wins[i%g.units*c.n+j]++
					total++
				case a == b:
					g.wins[i%g.units*c.n+j] += 0.5
					total += 0.5
				}
			}
		}
		c.auroc[name] = total / float64(len(scores)*c.n)
		c.mean += g.weight * c.auroc[name]
		c.groups = append(c.groups, g)
	}
	return c
}

// gains are bootstrap draws of the difference of the means, and of each group's
// AUROC, ascending. A normal and what was made of it are drawn together.
func (c *comparison) gains(base *comparison, draws int, seed uint64) (all []float64, groups [][]float64) {
	r := rand.New(rand.NewPCG(seed, 0x67617465))
	diff := make([][]float64, len(c.groups))
	for k, g := range c.groups {
		diff[k] = make([]float64, len(g.wins))
		for i := range g.wins {
			diff[k][i] = g.wins[i] - base.groups[k].wins[i]
		}
	}
	all, groups = make([]float64, draws), make([][]float64, len(c.groups))
	for d := range all {
		normals := counts(r, c.n)
		for k, g := range c.groups {
			units := normals
			if !g.paired {
				units = counts(r, g.units)
			}
			sum := 0.0
			for i, times := range units {
				if times == 0 {
					continue
				}
				row := 0.0
				for j, w := range diff[k][i*c.n : (i+1)*c.n] {
					row += w * normals[j]
				}
				sum += times * row
			}
			gain := sum / (g.rounds * float64(g.units) * float64(c.n))
			all[d] += g.weight * gain
			groups[k] = append(groups[k], gain)
		}
	}
	slices.Sort(all)
	for _, g := range groups {
		slices.Sort(g)
	}
	return all, groups
}

// counts is how often each of n things comes up in n draws.
func counts(r *rand.Rand, n int) []float64 {
	out := make([]float64, n)
	for range n {
		out[r.IntN(n)]++
	}
	return out
}

// quantile of ascending values, p in 0..1.
func quantile(sorted []float64, p float64) float64 {
	return sorted[min(max(int(p*float64(len(sorted))), 0), len(sorted)-1)]
}
