package inference

import (
	"context"
	"fmt"
	"math"
	"slices"

	"github.com/nearmiss/nearmiss/bank"
	"github.com/nearmiss/nearmiss/inference/heatmap"
	"github.com/nearmiss/nearmiss/inference/release"
)

// Part is a part of a Detector's score with its bank. About.Bank counts only
// once it is in a release.
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
	// Weight is that of the ratio's logarithm in the score.
	Weight float64
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
	switch statistic {
	case release.StatisticMax:
		return float64(slices.Max(distances))
	case release.StatisticTop5:
		sorted := slices.Sorted(slices.Values(distances))
		return mean(sorted[len(sorted)-(len(sorted)+19)/20:])
	}
	return mean(distances)
}

// CombineScores joins the parts of a score: the weighted geometric mean of their
// ratios. One part's score stays as it is, which for class is the paper's.
//
// With weights inverse to the spread of a part's logarithm among normals this is
// the sum of z-scores, so that a part whose scores vary much among normals does
// not drown one whose scores vary little. Measured with frozen ViT-Ti, mean AUROC:
// magnetic-tile, class and patch, 94.0 with equal weights and 95.9 with these,
// pooled and patch 96.1 and 96.9; WBC the same within noise. On WBC one k-NN on
// class and pooled tokens in one vector gives 95.5, their scores combined 96.0.
// Conformal p-values, which would be the textbook's way, are too coarse for this:
// 30 held-out normals give 31 of them, and all anomalies beyond the largest
// held-out score tie. The logarithm of a ratio is their smooth equivalent.
//
// The scales move all images' scores by one factor, so neither ranks nor a
// calibration's promise depend on them. The weights come from normals that do not
// calibrate. The combined score is calibrated as a whole.
func CombineScores(parts []PartScore) float64 {
	if len(parts) == 1 {
		return parts[0].Score
	}
	sum, weights := 0.0, 0.0
	for _, p := range parts {
		sum += p.Weight * math.Log(p.Ratio) // −Inf where a part is 0: a copy of a normal
		weights += p.Weight
	}
	return math.Exp(sum / weights)
}

// NewOfParts joins an Embedder and the banks of several parts of its outputs,
// without a release. All stay the caller's. The calibration is that of the main
// bank: the first part of the embedding that is scored, or the first of the
// embedding at all.
func NewOfParts(e *Embedder, parts []Part) (*Detector, error) {
	d := &Detector{e: e, parts: parts, main: mainPart(parts)}
	if d.main < 0 {
		return nil, fmt.Errorf("%w: no part of the score is of the embedding", ErrMismatch)
	}
	count, patchDim := e.Patches()
	scored := false
	for i, p := range parts {
		a := p.About
		scored = scored || a.Scored
		switch {
		case a.Dim != p.Bank.Dim():
			return nil, fmt.Errorf("%w: part %s has %d dimensions, its bank %d", ErrMismatch, a.Name, a.Dim, p.Bank.Dim())
		case a.IsPatch() && (a.Width*a.Height != count || a.Dim != patchDim):
			return nil, fmt.Errorf("%w: part %s has %d×%d patches of %d dimensions, the model gives %d of %d",
				ErrMismatch, a.Name, a.Width, a.Height, a.Dim, count, patchDim)
		case !a.IsPatch() && a.From+a.Dim > e.Dim():
			return nil, fmt.Errorf("%w: part %s has %d numbers from %d, the model gives %d dimensions", ErrMismatch, a.Name, a.Dim, a.From, e.Dim())
		}
		if a.IsPatch() {
			d.patch = &parts[i]
		}
	}
	if !scored {
		return nil, fmt.Errorf("%w: no part counts in the score", ErrMismatch)
	}
	b := d.Bank()
	d.info = Info{Device: e.o.Device.String(), Dim: e.Dim(), Count: b.Len(), K: b.K()}
	if c := b.Calibration(); c != nil {
		d.info.Alpha, d.info.HeldOut = c.Alpha(), c.Len()
	}
	for _, p := range parts {
		if p.About.Scored {
			d.info.Parts = append(d.info.Parts, p.About.Name)
		}
	}
	return d, nil
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

// Parts are the Detector's own.
func (d *Detector) Parts() []Part { return slices.Clone(d.parts) }

// HasMaps says whether the Detector can tell where an image is strange.
func (d *Detector) HasMaps() bool { return d.patch != nil }

// score judges embeddings of which none has an error.
func (d *Detector) score(ctx context.Context, embeddings []*Embedding, scores []*Score) error {
	c := d.Bank().Calibration()
	for i := range d.parts {
		p := &d.parts[i]
		if !p.About.Scored && i != d.main {
			continue
		}
		if p.About.IsPatch() {
			if err := d.mapPatches(ctx, embeddings, scores); err != nil {
				return err
			}
			for j, s := range scores {
				s.add(p, PatchStatistic(s.Map.Values, p.About.Statistic))
				if d.maps == MapNone {
					scores[j].Map = nil
				}
			}
			continue
		}
		var rows []float32
		for _, e := range embeddings {
			rows = append(rows, e.Vector[p.About.From:p.About.From+p.About.Dim]...)
		}
		results, err := p.Bank.ScoreBatch(ctx, rows)
		if err != nil {
			return fmt.Errorf("part %s: %w", p.About.Name, err)
		}
		for j, r := range results {
			if i == d.main {
				scores[j].Nearest = r.Nearest
			}
			if p.About.Scored {
				scores[j].add(p, r.Score)
			}
		}
	}
	var strange []int
	for j, s := range scores {
		s.Score = CombineScores(s.Parts)
		s.Threshold, s.Anomalous = math.Inf(1), false
		if c != nil {
			s.PValue, s.Threshold, s.Anomalous = c.PValue(s.Score), c.Threshold(), c.Anomalous(s.Score)
		}
		if s.Map == nil && (d.maps == MapAll || d.maps == MapAnomalies && s.Anomalous) {
			strange = append(strange, j)
		}
	}
	if d.patch == nil || len(strange) == 0 {
		return nil
	}
	pick, to := make([]*Embedding, len(strange)), make([]*Score, len(strange))
	for i, j := range strange {
		pick[i], to[i] = embeddings[j], scores[j]
	}
	return d.mapPatches(ctx, pick, to)
}

func (s *Score) add(p *Part, score float64) {
	s.Parts = append(s.Parts, PartScore{Name: p.About.Name, Score: score, Ratio: score / p.About.Scale, Weight: p.About.Weight})
}

// mapPatches fills in the grids of patch distances.
func (d *Detector) mapPatches(ctx context.Context, embeddings []*Embedding, scores []*Score) error {
	a := d.patch.About
	var rows []float32
	for _, e := range embeddings {
		rows = append(rows, e.Patches...)
	}
	distances, err := NearestDistances(ctx, d.patch.Bank, rows)
	if err != nil {
		return fmt.Errorf("part %s: %w", a.Name, err)
	}
	n := a.Width * a.Height
	for j, s := range scores {
		s.Map = &heatmap.Grid{Width: a.Width, Height: a.Height, Values: distances[j*n : (j+1)*n : (j+1)*n]}
	}
	return nil
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
