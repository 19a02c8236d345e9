package inference

import (
	"cmp"
	"context"
	"fmt"
	"math"
	"slices"

	"github.com/nearmiss/nearmiss/bank"
	"github.com/nearmiss/nearmiss/inference/heatmap"
	"github.com/nearmiss/nearmiss/inference/release"
)

// Part is a part of a score with its bank. About.Bank counts only once it is in a
// release.
type Part struct {
	About release.Part
	Bank  *bank.Bank
}

// PartScore is what one part says of an image.
type PartScore struct {
	Name string
	// Score is the part's own: the sum of squared distances to the K nearest
	// normals, or the statistic of the squared distances of its patches.
	Score float64
	// Ratio is Score divided by what normals that are not in the bank score at the
	// median.
	Ratio float64
	// Weight is that of the ratio's logarithm in the score, or in its group.
	Weight float64
	Group  string
}

// Maps says which images get a grid of patch distances, where the release has a
// bank of patches. Where the score itself needs the distances all images have
// one.
type Maps string

const (
	MapAnomalies Maps = ""     // anomalous images
	MapAll       Maps = "all"  // every image
	MapNone      Maps = "none" // none
)

// PatchStatistic sums up the squared distances of an image's patches, of which
// there is at least one, as a release.Statistic… says.
func PatchStatistic(distances []float32, statistic string) float64 {
	mean := func(v []float32) float64 {
		sum := 0.0
		for _, d := range v {
			sum += float64(d)
		}
		return sum / float64(len(v))
	}
	largest := func(percent int) float64 {
		sorted := slices.Sorted(slices.Values(distances))
		return mean(sorted[len(sorted)-(len(sorted)*percent+99)/100:])
	}
	switch statistic {
	case release.StatisticMax:
		return float64(slices.Max(distances))
	case release.StatisticTop5:
		return largest(5)
	case release.StatisticTop1:
		return largest(1)
	case release.StatisticContrast:
		sorted := slices.Sorted(slices.Values(distances))
		return largest(1) - (float64(sorted[(len(sorted)-1)/2])+float64(sorted[len(sorted)/2]))/2
	}
	return mean(distances)
}

// CombineScores joins the parts of a score. One part's score stays as it is, which
// for class is the paper's. Without a join, or within a group of it, it is the
// weighted geometric mean of the ratios.
//
// With weights inverse to the spread of a part's logarithm among normals this is
// the sum of z-scores, so that a part whose scores vary much among normals does
// not drown one whose scores vary little. Conformal p-values, which would be the
// textbook's way, are too coarse for this: 30 held-out normals give 31 of them,
// and all anomalies beyond the largest held-out score tie. The logarithm of a
// ratio is their smooth equivalent.
//
// The combined score is calibrated as a whole: a normal that calibrates counts by
// scales, weights and a join that others set.
func CombineScores(parts []PartScore, join *release.Join) float64 {
	if join == nil {
		if len(parts) == 1 {
			return parts[0].Score
		}
		return math.Exp(meanLog(parts, func(PartScore) bool { return true }))
	}
	z := make([]float64, len(join.Groups))
	most := math.Inf(-1)
	for i, g := range join.Groups {
		m := meanLog(parts, func(p PartScore) bool { return p.Group == g.Name })
		z[i] = (m - g.Center) / g.Spread
		if math.IsNaN(z[i]) {
			return math.NaN()
		}
		most = max(most, z[i])
	}
	if math.IsInf(most, 0) {
		return math.Exp(most)
	}
	sum := 0.0
	for i, g := range join.Groups {
		sum += g.Weight * math.Exp(join.Sharpness*(z[i]-most))
	}
	return math.Exp(join.Unit * (most + math.Log(sum)/join.Sharpness))
}

// meanLog is the weighted mean of the logarithms of some parts' ratios; −Inf where
// one is 0: a copy of a normal.
func meanLog(parts []PartScore, some func(PartScore) bool) float64 {
	sum, weights := 0.0, 0.0
	for _, p := range parts {
		if some(p) {
			sum += p.Weight * math.Log(p.Ratio)
			weights += p.Weight
		}
	}
	return sum / weights
}

// Scorer judges embeddings by parts with banks. It is what a release serves, and
// what is measured before there is one. All methods may be called from many
// goroutines.
type Scorer struct {
	parts []Part
	join  *release.Join
	main  int   // of parts, whose bank is calibrated
	at    []int // of the parts' patches in an Embedding; −1: the part is of the vector
	maps  Maps
}

// Outputs is what a model gives: the length of its embedding, and its outputs of
// patch vectors in the order of Embedding.Patches.
type Outputs struct {
	Dim     int
	Patches []PatchShape
}

// PatchShape is an output of patch vectors.
type PatchShape struct {
	Name       string
	Count, Dim int
}

// Outputs are what the Embedder was asked for.
func (e *Embedder) Outputs() Outputs {
	o := Outputs{Dim: e.dim}
	for i, p := range e.patches {
		o.Patches = append(o.Patches, PatchShape{Name: e.o.Patches[i], Count: p.all, Dim: p.dim})
	}
	return o
}

// NewScorer joins the banks of several parts of a model's outputs. The banks stay
// the caller's. The calibration is that of the main bank: of the first part of the
// embedding that is scored, or of the first of the embedding at all. join may be
// nil.
func NewScorer(o Outputs, parts []Part, join *release.Join, maps Maps) (*Scorer, error) {
	s := &Scorer{parts: parts, join: join, main: mainPart(parts), maps: maps}
	if s.main < 0 {
		return nil, fmt.Errorf("%w: no part of the score is of the embedding", ErrMismatch)
	}
	scored := false
	for _, p := range parts {
		a := p.About
		scored = scored || a.Scored
		at := -1
		if a.Dim != p.Bank.Dim() {
			return nil, fmt.Errorf("%w: part %s has %d dimensions, its bank %d", ErrMismatch, a.Name, a.Dim, p.Bank.Dim())
		}
		if a.IsPatch() {
			if at = slices.IndexFunc(o.Patches, func(q PatchShape) bool { return q.Name == a.Output }); at < 0 {
				return nil, fmt.Errorf("%w: part %s is of output %q, which the model does not give", ErrMismatch, a.Name, a.Output)
			}
			if q := o.Patches[at]; a.Width*a.Height != q.Count || a.Dim != q.Dim {
				return nil, fmt.Errorf("%w: part %s has %d×%d patches of %d dimensions, the model gives %d of %d",
					ErrMismatch, a.Name, a.Width, a.Height, a.Dim, q.Count, q.Dim)
			}
		} else if a.From+a.Dim > o.Dim {
			return nil, fmt.Errorf("%w: part %s has %d numbers from %d, the model gives %d dimensions", ErrMismatch, a.Name, a.Dim, a.From, o.Dim)
		}
		s.at = append(s.at, at)
	}
	if !scored {
		return nil, fmt.Errorf("%w: no part counts in the score", ErrMismatch)
	}
	return s, nil
}

func mainPart(parts []Part) int {
	if i := slices.IndexFunc(parts, func(p Part) bool { return p.About.Scored && !p.About.IsPatch() }); i >= 0 {
		return i
	}
	return slices.IndexFunc(parts, func(p Part) bool { return !p.About.IsPatch() })
}

// wholePart is the only part of what has none: the whole embedding.
func wholePart(b *bank.Bank) Part {
	return Part{About: release.Part{
		Name: "class", Output: release.OutputEmbedding, Dim: b.Dim(), Statistic: release.StatisticKNN, Scored: true, Scale: 1, Weight: 1,
	}, Bank: b}
}

// Parts are the Scorer's own.
func (s *Scorer) Parts() []Part { return slices.Clone(s.parts) }

// Join says how groups of parts become one score, or nil.
func (s *Scorer) Join() *release.Join { return s.join }

// Bank is the main bank, of images, whose calibration is the score's.
func (s *Scorer) Bank() *bank.Bank { return s.parts[s.main].Bank }

// HasMaps says whether the Scorer can tell where an image is strange.
func (s *Scorer) HasMaps() bool { return s.patch() != nil }

// patch is the first part of patches that counts in maps, which has their scale.
func (s *Scorer) patch() *release.Part {
	for i, at := range s.at {
		if at >= 0 && !s.parts[i].About.NoMap {
			return &s.parts[i].About
		}
	}
	return nil
}

// Row is the part's piece of an embedding, as its bank takes it.
func Row(p release.Part, vector []float32) []float32 {
	v := vector[p.From : p.From+p.Dim]
	if !p.Unit {
		return v
	}
	sum := 0.0
	for _, x := range v {
		sum += float64(x) * float64(x)
	}
	out := make([]float32, len(v))
	for i, x := range v {
		out[i] = float32(float64(x) / max(math.Sqrt(sum), 1e-12))
	}
	return out
}

// Judge scores embeddings, of which none has an error, and fills in scores.
func (s *Scorer) Judge(ctx context.Context, embeddings []*Embedding, scores []*Score) error {
	c := s.Bank().Calibration()
	grids := make([][]heatmap.Grid, len(s.parts)) // by part, of each image
	for i := range s.parts {
		p := &s.parts[i]
		if !p.About.Scored && i != s.main {
			continue
		}
		if s.at[i] >= 0 {
			var err error
			if grids[i], err = s.grids(ctx, i, embeddings); err != nil {
				return err
			}
			for j, g := range grids[i] {
				for _, m := range p.About.Measures() {
					scores[j].add(p.About, m, PatchStatistic(g.Values, m.Statistic))
				}
			}
			continue
		}
		rows := make([]float32, 0, len(embeddings)*p.About.Dim)
		for _, e := range embeddings {
			rows = append(rows, Row(p.About, e.Vector)...)
		}
		results, err := p.Bank.ScoreBatch(ctx, rows)
		if err != nil {
			return fmt.Errorf("part %s: %w", p.About.Name, err)
		}
		for j, r := range results {
			if i == s.main {
				scores[j].Nearest = originals(r.Nearest)
			}
			if p.About.Scored {
				scores[j].add(p.About, p.About.Measures()[0], r.Score)
			}
		}
	}
	var strange []int
	for j, v := range scores {
		v.Score = CombineScores(v.Parts, s.join)
		v.Threshold, v.Anomalous = math.Inf(1), false
		if c != nil {
			v.PValue, v.Threshold, v.Anomalous = c.PValue(v.Score), c.Threshold(), c.Anomalous(v.Score)
		}
		if s.maps == MapAll || s.maps == MapAnomalies && (v.Anomalous || s.mapsAreKnown()) {
			strange = append(strange, j)
		}
	}
	if len(strange) == 0 || !s.HasMaps() {
		return nil
	}
	// Parts that only tell where are asked about strange images alone.
	pick := make([]*Embedding, len(strange))
	for i, j := range strange {
		pick[i] = embeddings[j]
	}
	for i, at := range s.at {
		if at < 0 || grids[i] != nil || s.parts[i].About.NoMap {
			continue
		}
		some, err := s.grids(ctx, i, pick)
		if err != nil {
			return err
		}
		grids[i] = make([]heatmap.Grid, len(scores))
		for k, j := range strange {
			grids[i][j] = some[k]
		}
	}
	for _, j := range strange {
		var of []heatmap.Grid
		var drawn []release.Part
		for i, at := range s.at {
			if at >= 0 && !s.parts[i].About.NoMap {
				of, drawn = append(of, grids[i][j]), append(drawn, s.parts[i].About)
			}
		}
		scores[j].Map = new(SumMaps(drawn, of))
	}
	return nil
}

// originals names the normals that entries of a bank are of, the nearest of each.
func originals(near []bank.Neighbour) []bank.Neighbour {
	out := near[:0]
	for _, n := range near {
		n.ID = release.OriginalOf(n.ID)
		if !slices.ContainsFunc(out, func(o bank.Neighbour) bool { return o.ID == n.ID }) {
			out = append(out, n)
		}
	}
	return out
}

// mapsAreKnown says whether maps need nothing that the score does not.
func (s *Scorer) mapsAreKnown() bool {
	return s.HasMaps() && !slices.ContainsFunc(s.parts, func(p Part) bool { return p.About.IsPatch() && !p.About.Scored && !p.About.NoMap })
}

func (s *Score) add(p release.Part, m release.Measure, score float64) {
	name := p.Name
	if m.Statistic != p.Statistic {
		name += "-" + m.Statistic
	}
	s.Parts = append(s.Parts, PartScore{Name: name, Score: score, Ratio: score / m.Scale, Weight: m.Weight, Group: p.Group})
}

// grids are the patch distances of one part.
func (s *Scorer) grids(ctx context.Context, part int, embeddings []*Embedding) ([]heatmap.Grid, error) {
	p := s.parts[part]
	var rows []float32
	for _, e := range embeddings {
		rows = append(rows, e.Patches[s.at[part]]...)
	}
	g, err := PatchGrids(ctx, p, rows)
	if err != nil {
		return nil, fmt.Errorf("part %s: %w", p.About.Name, err)
	}
	return g, nil
}

// PatchGrids are the squared distances of the patches of whole images, row-major,
// to the nearest in the part's bank, divided by the part's places.
func PatchGrids(ctx context.Context, p Part, rows []float32) ([]heatmap.Grid, error) {
	distances, err := NearestDistances(ctx, p.Bank, rows)
	if err != nil {
		return nil, err
	}
	n := p.About.Width * p.About.Height
	out := make([]heatmap.Grid, len(distances)/n)
	for i := range out {
		out[i] = heatmap.Grid{Width: p.About.Width, Height: p.About.Height, Values: distances[i*n : (i+1)*n : (i+1)*n]}
		for j, v := range p.About.Places {
			out[i].Values[j] /= v
		}
	}
	return out, nil
}

// SumMaps adds the grids of one image's parts, each as the part counts in maps, on
// the finest of their grids. One grid alone stays as it is where its weight is 1 and
// all of it counts.
func SumMaps(parts []release.Part, grids []heatmap.Grid) heatmap.Grid {
	finest := 0
	for i, g := range grids {
		if len(g.Values) > len(grids[finest].Values) {
			finest = i
		}
	}
	if p := parts[0]; len(grids) == 1 && (p.Map == 0 || p.Map == 1) && !p.MapExcess {
		return grids[0]
	}
	out := heatmap.NewGrid(grids[finest].Width, grids[finest].Height)
	for i, g := range grids {
		w := cmp.Or(float32(parts[i].Map), 1)
		if parts[i].MapExcess {
			g = g.Excess()
		}
		for j, v := range g.Resized(out.Width, out.Height).Values {
			out.Values[j] += w * v
		}
	}
	return out
}

// NearestDistances are the squared distances of rows, m×Dim, to their nearest
// entries of a bank with k = 1.
func NearestDistances(ctx context.Context, b *bank.Bank, rows []float32) ([]float32, error) {
	scores, err := b.Scores(ctx, rows)
	if err != nil {
		return nil, err
	}
	out := make([]float32, len(scores))
	for i, s := range scores {
		out[i] = float32(s)
	}
	return out, nil
}
