package training

import (
	"context"
	"fmt"
	"math"
	"slices"
	"strings"
)

// Advice compares scores by how well they tell normals that are not in the bank
// from the same normals spoilt in several ways, and from fakes and real anomalies
// where there are some. It knows no more of the anomalies to come than these do.
type Advice struct {
	// Choice is the advised score: the best one if it is surely better than class,
	// the paper's, and surely worse with no kind of anomaly; class else.
	Choice string `json:"choice"`
	// Sure is the share of the bootstrap draws, 0..1, in which the choice is no
	// worse than class, or, where it is class, than the best of the others.
	Sure    float64        `json:"sure"`
	Reason  string         `json:"reason"`
	Normals int            `json:"normals"`
	Kinds   []string       `json:"kinds"` // of what they were compared with
	Scores  []AdvisedScore `json:"scores"`
}

// AdvisedScore is one of the scores that were compared.
type AdvisedScore struct {
	Score string `json:"score"` // as --score takes it
	// AUROC is the weighted mean over the kinds, Low and High bound it with 90 %
	// confidence.
	AUROC float64            `json:"auroc"`
	Low   float64            `json:"low"`
	High  float64            `json:"high"`
	Kinds map[string]float64 `json:"kinds"`
}

// candidateScores are compared where the backbone gives their parts.
var candidateScores = [][]Part{
	{ClassPart},
	{PooledPart},
	{PatchPart},
	{ClassPart, PatchPart},
	{ClassPart, PooledPart},
}

// adviceNormals bounds the normals that advice looks at: each is spoilt in many
// ways.
const adviceNormals = 40

const (
	adviceStrength   = 0.5
	adviceDraws      = 1000
	adviceConfidence = 0.9
)

// advise compares the scores of a network. have is the fitted normals.
func (l *lesson) advise(ctx context.Context, k *look, have *known) (*Advice, error) {
	parts := slices.Clone(k.parts)
	parts = slices.DeleteFunc(parts, Part.ofFrozen)
	if k.layer > 0 {
		parts = append(parts, PatchPart)
	}
	at := *l
	t := *l.Tuning
	t.Gate.Most, t.Gate.Strengths = min(t.Gate.Most, adviceNormals), []float64{adviceStrength}
	at.Tuning = &t
	x, err := at.examine(ctx, k, parts, have, true)
	if err != nil {
		return nil, fmt.Errorf("compare scores: %w", err)
	}
	return x.advise(parts, l.Seed), nil
}

func (x exam) advise(have []Part, seed uint64) *Advice {
	a := &Advice{}
	var all []*comparison
	var names []string
	for _, parts := range candidateScores {
		if slices.ContainsFunc(parts, func(p Part) bool { return !slices.Contains(have, p) }) {
			continue
		}
		c := newComparison(combined(x.ofParts(parts, nil)))
		draws, _ := c.gains(c.nothing(), adviceDraws, seed)
		tail := (1 - adviceConfidence) / 2
		a.Scores = append(a.Scores, AdvisedScore{
			Score: partsName(parts), AUROC: c.mean, Low: quantile(draws, tail), High: quantile(draws, 1-tail), Kinds: c.auroc,
		})
		all, names = append(all, c), append(names, partsName(parts))
	}
	a.Normals = all[0].n
	for _, g := range all[0].groups {
		a.Kinds = append(a.Kinds, g.name)
	}
	best := 0
	for i, c := range all {
		if c.mean > all[best].mean {
			best = i
		}
	}
	class := slices.Index(names, string(ClassPart))
	if class < 0 {
		class = best
	}
	notWorse := func(i, than int) float64 {
		draws, _ := all[i].gains(all[than], adviceDraws, seed)
		n := 0
		for _, d := range draws {
			if d >= 0 {
				n++
			}
		}
		return float64(n) / float64(len(draws))
	}
	a.Choice = names[class]
	switch {
	case len(a.Kinds) == 0 || math.IsNaN(all[best].mean):
		a.Reason = "there is nothing to compare by"
	case best == class:
		second := -1
		for i := range all {
			if i != class && (second < 0 || all[i].mean > all[second].mean) {
				second = i
			}
		}
		a.Sure, a.Reason = 1, "there is no other"
		if second >= 0 {
			a.Sure = notWorse(class, second)
			a.Reason = fmt.Sprintf("mean AUROC %.3f, next %s with %.3f", all[class].mean, names[second], all[second].mean)
		}
	default:
		// As the gate does: the best of several is sure of less.
		draws, kinds := all[best].gains(all[class], adviceDraws, seed)
		tail := (1 - adviceConfidence) / float64(len(all)-1)
		low := quantile(draws, tail)
		var harder []string
		for k, g := range kinds {
			if quantile(g, 1-tail/float64(len(kinds))) < 0 {
				harder = append(harder, all[best].groups[k].name)
			}
		}
		a.Reason = fmt.Sprintf("%s raises the mean AUROC from %.3f to %.3f, at least by %+.3f", names[best], all[class].mean, all[best].mean, low)
		a.Sure = notWorse(best, class)
		switch {
		case low > 0 && len(harder) == 0:
			a.Choice = names[best]
		case low > 0:
			a.Sure = 1 - a.Sure
			a.Reason += ", and makes some anomalies harder to find: " + strings.Join(harder, ", ")
		default:
			a.Sure = 1 - a.Sure
			a.Reason += ", which is not sure"
		}
	}
	return a
}

// nothing is a comparison that wins nothing, so that gains over it are AUROCs.
func (c *comparison) nothing() *comparison {
	z := &comparison{n: c.n}
	for _, g := range c.groups {
		g.wins = make([]float64, len(g.wins))
		z.groups = append(z.groups, g)
	}
	return z
}
