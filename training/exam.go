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
	"github.com/nearmiss/nearmiss/inference/imaging"
)

// exam has the scores of a model's parts by group of images, beside groupFit.
type exam map[Part]map[string][]float64

// Groups of images that are looked at, beside the evidence's kinds.
const (
	groupFit    = "\x00fit"
	groupUnseen = "\x00unseen"
)

// known is what an exam compares images with: normals, part by part, and some of
// their patches.
type known struct {
	rows    map[Part][]float32
	patches []float32
}

// examPatches bounds the bank of patches of an exam, which compares scores and
// serves nobody.
const examPatches = 5_000

// examine scores the unseen normals, and with spoil what the gate makes of them,
// against the normals that were fitted; have is these, nil where they are to be
// embedded.
func (l *lesson) examine(ctx context.Context, k *look, parts []Part, have *known, spoil bool) (exam, error) {
	engine, err := l.engine()
	if err != nil {
		return nil, err
	}
	defer engine.Close()
	if have == nil {
		have = &known{rows: map[Part][]float32{}}
		most := max(1, 8*examPatches/max(len(l.fit), 1))
		var some sampled
		err := l.lookAt([]string{groupFit}, func(_ string, images []*imaging.Image) error {
			return k.see(ctx, images, func(v inference.Embedding) {
				for _, p := range k.parts {
					have.rows[p] = append(have.rows[p], k.of(p, v.Vector)...)
				}
				if k.layer > 0 {
					dim := k.patchDim()
					some.keep(v.Patches[0], dim, most, l.Seed)
				}
			})
		})
		if err != nil {
			return nil, err
		}
		have.patches = slices.Concat(some.rows...)
	}
	banks := map[Part]*bank.Bank{}
	defer func() {
		for _, b := range banks {
			_ = b.Close()
		}
	}()
	for _, p := range parts {
		if p == PatchPart {
			dim := k.patchDim()
			banks[p], err = bankOf(drawRows(have.patches, dim, examPatches, l.Seed), dim, 1, l.Patches.Whiten, engine)
		} else {
			banks[p], err = bankOf(have.rows[p], k.dim, l.K, l.Whiten, engine)
		}
		if err != nil {
			return nil, err
		}
	}
	x := exam{}
	for _, p := range parts {
		x[p] = map[string][]float64{}
	}
	groups := []string{groupUnseen}
	if spoil {
		groups = l.groups()
	}
	return x, l.lookAt(groups, func(group string, images []*imaging.Image) error {
		rows := map[Part][]float32{}
		err := k.see(ctx, images, func(v inference.Embedding) {
			for _, p := range parts {
				if p == PatchPart {
					rows[p] = append(rows[p], v.Patches[0]...)
				} else {
					rows[p] = append(rows[p], k.of(p, v.Vector)...)
				}
			}
		})
		if err != nil {
			return err
		}
		for _, p := range parts {
			var scores []float64
			if p == PatchPart {
				grids, err := k.gridsOf(ctx, banks[p], rows[p])
				if err != nil {
					return err
				}
				for _, g := range grids {
					scores = append(scores, inference.PatchStatistic(g.Values, l.Patches.Statistic))
				}
			} else if scores, err = banks[p].Scores(ctx, rows[p]); err != nil {
				return err
			}
			x[p][group] = append(x[p][group], scores...)
		}
		return nil
	})
}

// see embeds images, of which every one must be of use.
func (k *look) see(ctx context.Context, images []*imaging.Image, take func(v inference.Embedding)) error {
	all, err := k.e.EmbedImages(ctx, images)
	if err != nil {
		return err
	}
	for _, v := range all {
		if v.Err != nil {
			return v.Err
		}
		take(v)
	}
	return nil
}

// bankOf is a bank of rows with the ids 0, 1, …, whitened with a shrinkage above 0.
func bankOf(rows []float32, dim, k int, shrinkage float64, engine bank.BatchEngine) (*bank.Bank, error) {
	whiten, err := whitening(rows, dim, shrinkage)
	if err != nil {
		return nil, err
	}
	b, err := bank.New(bank.Options{Dim: dim, K: k, Kind: bank.Exact, Transform: whiten, Batch: engine})
	if err != nil {
		return nil, err
	}
	ids := make([]uint64, len(rows)/dim)
	for i := range ids {
		ids[i] = uint64(i)
	}
	return b, b.AddBatch(ids, rows)
}

// drawRows takes at most most of the rows at random.
func drawRows(rows []float32, dim, most int, seed uint64) []float32 {
	n := len(rows) / dim
	if n <= most {
		return rows
	}
	var out []float32
	for _, i := range rand.New(rand.NewPCG(seed, 0x726f7773)).Perm(n)[:most] {
		out = append(out, rows[i*dim:(i+1)*dim]...)
	}
	return out
}

// ofParts picks the parts of a score: those of the frozen backbone from another
// exam.
func (x exam) ofParts(parts []Part, frozen exam) []map[string][]float64 {
	var out []map[string][]float64
	for _, p := range parts {
		from := x
		if p.ofFrozen() {
			from = frozen
			p = withoutTuned([]Part{p})[0]
		}
		out = append(out, from[p])
	}
	return out
}

// combined joins the parts' scores, weighed and scaled by those of the unseen
// normals.
func combined(parts []map[string][]float64) evidence {
	marks := make([]mark, len(parts))
	for i, p := range parts {
		marks[i] = markOf(p[groupUnseen])
	}
	e := evidence{anomalies: map[string][]float64{}}
	for group, first := range parts[0] {
		scores := make([]float64, len(first))
		one := make([]inference.PartScore, len(parts))
		for j := range scores {
			for i, p := range parts {
				one[i] = marks[i].score(p[group][j])
			}
			scores[j] = inference.CombineScores(one, nil)
		}
		if group == groupUnseen {
			e.normals = scores
		} else {
			e.anomalies[group] = scores
		}
	}
	return e
}

// mark is what normals that are not in the bank score in a part: the median, and
// a weight inverse to the spread of the logarithm.
type mark struct{ scale, weight float64 }

// leastSpread keeps a part whose few scores happen to agree from ruling alone.
const leastSpread = 0.02

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

func (m mark) score(s float64) inference.PartScore {
	return inference.PartScore{Score: s, Ratio: s / m.scale, Weight: m.weight}
}

// groups lists all groups but groupFit.
func (l *lesson) groups() []string {
	out := []string{groupUnseen}
	for _, k := range l.Tuning.Gate.kinds(l.Tuning.Sources) {
		out = append(out, string(k))
	}
	return append(out, EvidenceFakes, EvidenceReal)
}

// median is NaN of nothing.
func median(v []float64) float64 {
	if len(v) == 0 {
		return math.NaN()
	}
	s := slices.Sorted(slices.Values(v))
	return (s[(len(s)-1)/2] + s[len(s)/2]) / 2
}

var errNoLooks = errors.New("no images to look at")

// lookAt goes through the images of groups, some at a time.
func (l *lesson) lookAt(groups []string, see func(group string, images []*imaging.Image) error) error {
	const chunk = 32
	for _, group := range groups {
		set, err := l.group(group)
		if err != nil {
			return err
		}
		if set.n == 0 && (group == groupFit || group == groupUnseen) {
			return fmt.Errorf("judge by normals: %w", errNoLooks)
		}
		for lo := 0; lo < set.n; lo += chunk {
			images, err := picturesOf(set, lo, min(lo+chunk, set.n))
			if err != nil {
				return err
			}
			if err := see(group, images); err != nil {
				return err
			}
		}
	}
	return nil
}
