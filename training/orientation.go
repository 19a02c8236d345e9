package training

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"

	"github.com/nearmiss/nearmiss/bank"
	"github.com/nearmiss/nearmiss/inference"
	"github.com/nearmiss/nearmiss/inference/imaging"
)

// Orientation says whether the way that things lie means anything: how well a
// score tells normals that are turned or mirrored from normals as they are. It is
// measured on normals alone, each against the others of the bank, so that nothing
// is known of whether an anomaly may be one that lies the wrong way.
type Orientation struct {
	// Choice is the largest symmetry whose changes are surely no stranger than
	// strangeAUROC; NoSymmetry where none is, or where that is not sure.
	Choice  imaging.Symmetry `json:"choice"`
	Normals int              `json:"normals"` // that were turned and mirrored
	// Mirrored and Turned are AUROCs, 0..1, of the mirror images and of all seven
	// other ways that a square can lie, against normals as they are; 0.5 is no
	// difference. High bounds them from above with 95 % confidence.
	Mirrored     float64 `json:"mirrored"`
	MirroredHigh float64 `json:"mirrored_high"`
	Turned       float64 `json:"turned"`
	TurnedHigh   float64 `json:"turned_high"`
}

const (
	// orientationNormals bounds the normals that are compared, in eight ways each.
	orientationNormals = 60
	// strangeAUROC is how well normals in another orientation may be separated from
	// the others where the way is said to mean nothing.
	strangeAUROC          = 0.6
	orientationConfidence = 0.95
	orientationDraws      = 1000 // bootstrap
)

// ParseSymmetry reads what [imaging.ParseSymmetry] does, or "auto", which leaves
// the choice to [Orientation].
func ParseSymmetry(text string) (s imaging.Symmetry, auto bool, err error) {
	if text == autoChoice {
		return imaging.NoSymmetry, true, nil
	}
	s, err = imaging.ParseSymmetry(text)
	return s, false, err
}

// orient finds how normals lie, by the main part of the score. The model takes images
// as they are.
func orient(ctx context.Context, s *scoreBuilder, normals []Image, n *normals, p Plan) (*Orientation, error) {
	main := s.model.parts[0]
	k := p.Score.K
	if len(normals) < k+2 {
		return &Orientation{}, nil
	}
	rows := n.part(main)
	whiten, err := whitening(rows, main.Dim, s.parts[0].White)
	if err != nil {
		return nil, err
	}
	b, err := bank.New(bank.Options{Dim: main.Dim, K: k + 1, Kind: bank.Exact, Transform: whiten})
	if err != nil {
		return nil, err
	}
	defer b.Close()
	if err := b.AddBatch(nil, rows); err != nil {
		return nil, err
	}
	turned := rand.New(rand.NewPCG(p.Seed, 0x6f7269656e74)).Perm(len(normals))
	turned = turned[:min(len(turned), orientationNormals)]
	ways := imaging.Dihedral.Count()
	scores := make([][]float64, ways)
	prepare := s.model.e.Preprocess()
	prepare.Tiles = nil
	square, squares := make([]uint8, prepare.Bytes()), make([]uint8, ways*prepare.Bytes())
	for done, i := range turned {
		file, err := normals[i].Read()
		if err != nil {
			return nil, fmt.Errorf("read normal image %s: %w", normals[i].Name, err)
		}
		if _, err := prepare.Apply(file, p.Data.Limits, square); err != nil {
			return nil, fmt.Errorf("prepare normal image %s: %w", normals[i].Name, err)
		}
		imaging.Dihedral.Expand(square, prepare.Crop, squares)
		all, err := s.model.e.EmbedPixels(ctx, slices.Collect(slices.Chunk(squares, prepare.Bytes())))
		if err != nil {
			return nil, err
		}
		var queries []float32
		for _, v := range all {
			if v.Err != nil {
				return nil, fmt.Errorf("embed normal image %s: %w", normals[i].Name, v.Err)
			}
			queries = append(queries, inference.Row(main, v.Vector)...)
		}
		found, err := b.ScoreBatch(ctx, queries)
		if err != nil {
			return nil, err
		}
		for way, r := range found {
			scores[way] = append(scores[way], scoreWithout(r.Nearest, uint64(i), k))
		}
		p.Host.report("orientation", done+1, len(turned))
	}
	return orientationOf(scores, p.Seed), nil
}

// scoreWithout is the score by the K nearest entries beside one.
func scoreWithout(near []bank.Neighbour, id uint64, k int) float64 {
	sum := 0.0
	for _, n := range near {
		if n.ID != id && k > 0 {
			sum += float64(n.Distance)
			k--
		}
	}
	return sum
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

// orientationOf compares the scores of normals as they are, the first, with those
// of the mirror images, the second, and of all others.
func orientationOf(scores [][]float64, seed uint64) *Orientation {
	o := &Orientation{Normals: len(scores[0])}
	against := func(ways [][]float64) (auroc, high float64) {
		c := newComparison(evidence{normals: scores[0], anomalies: map[string][]float64{"other ways": slices.Concat(ways...)}})
		draws, _ := c.gains(c.nothing(), orientationDraws, seed)
		return c.mean, quantile(draws, orientationConfidence)
	}
	o.Mirrored, o.MirroredHigh = against(scores[1:2])
	o.Turned, o.TurnedHigh = against(scores[1:])
	switch {
	case o.TurnedHigh <= strangeAUROC && o.MirroredHigh <= strangeAUROC:
		o.Choice = imaging.Dihedral
	case o.MirroredHigh <= strangeAUROC:
		o.Choice = imaging.Flip
	}
	return o
}

// String says what was found, for people.
func (o Orientation) String() string {
	if o.Normals == 0 {
		return "too few normals to see whether it matters how they lie"
	}
	found := "turned and mirrored normals may not look like the others"
	switch o.Choice {
	case imaging.Dihedral:
		found = "turned and mirrored normals look like the others"
	case imaging.Flip:
		found = "mirrored normals look like the others, turned ones may not"
	}
	return fmt.Sprintf("%s: they are told apart with AUROC %.3f, at most %.3f, mirrored alone %.3f, at most %.3f (%d normals)",
		found, o.Turned, o.TurnedHigh, o.Mirrored, o.MirroredHigh, o.Normals)
}
