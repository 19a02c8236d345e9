package pretrain

import (
	"context"
	"fmt"
	"slices"

	"github.com/nearmiss/nearmiss/inference/imaging"
	"github.com/nearmiss/nearmiss/internal/synthetic"
	"github.com/nearmiss/nearmiss/training/evaluate"
)

// Probe says how a backbone is measured on things that the training has never
// shown.
type Probe struct {
	Designs int    // of each family that was left out
	Normals int    // images in the bank of a design
	Tests   int    // normal images, and as many marred ones, that are scored
	Seed    uint64 // of the images
}

// Seen is one result of a [Probe].
type Seen struct {
	Kind string `json:"kind"` // of synthetic images
	// AUROC is the mean over the designs, with all kinds of defect; Unknown that
	// of the kinds of defect alone that were not trained on either.
	AUROC   float64 `json:"auroc"`
	Unknown float64 `json:"auroc_unknown_defects"`
}

// Embed computes the embeddings of images.
type Embed func(ctx context.Context, images []*imaging.Image) ([][]float32, error)

// Run measures how well the two nearest normals of a bank tell marred images from
// normal ones, on the families that the training leaves out. Half of the defects
// are subtle.
func (p Probe) Run(ctx context.Context, embed Embed) ([]Seen, error) {
	var out []Seen
	for _, kind := range synthetic.Kinds() {
		held := Held(kind)
		s := Seen{Kind: kind}
		n := 0
		for _, family := range held.Families {
			for style := range p.Designs {
				class := family + style*synthetic.BasicClasses(kind)
				all, err := p.design(ctx, kind, class, nil, embed)
				if err != nil {
					return nil, fmt.Errorf("probe %s: %w", synthetic.ClassName(kind, class), err)
				}
				unknown, err := p.design(ctx, kind, class, held.Defects, embed)
				if err != nil {
					return nil, fmt.Errorf("probe %s: %w", synthetic.ClassName(kind, class), err)
				}
				s.AUROC += all
				s.Unknown += unknown
				n++
			}
		}
		s.AUROC /= float64(n)
		s.Unknown /= float64(n)
		out = append(out, s)
	}
	return out, nil
}

func (p Probe) design(ctx context.Context, kind string, class int, defects []string, embed Embed) (float64, error) {
	o := synthetic.Options{Size: poolSize, Class: class, Defects: defects, Variation: 0.3}
	good, err := synthetic.New(kind, p.Seed, o)
	if err != nil {
		return 0, err
	}
	o.DefectRate = 1
	bad, err := synthetic.New(kind, p.Seed, o)
	if err != nil {
		return 0, err
	}
	var images []*imaging.Image
	for i := range p.Normals + 2*p.Tests {
		s := good
		if i >= p.Normals+p.Tests {
			s = bad
		}
		img, _ := s.At(uint64(i))
		images = append(images, img)
	}
	e, err := embed(ctx, images)
	if err != nil {
		return 0, err
	}
	scores := make([]float64, 0, 2*p.Tests)
	for _, q := range e[p.Normals:] {
		scores = append(scores, nearest2(e[:p.Normals], q))
	}
	return evaluate.AUROC(scores[:p.Tests], scores[p.Tests:]), nil
}

// nearest2 is the paper's score: the sum of the squared distances to the two
// nearest.
func nearest2(bank [][]float32, q []float32) float64 {
	d := make([]float64, len(bank))
	for i, b := range bank {
		for j := range b {
			v := float64(b[j]) - float64(q[j])
			d[i] += v * v
		}
	}
	slices.Sort(d)
	sum := 0.0
	for _, v := range d[:min(2, len(d))] {
		sum += v
	}
	return sum
}

// Held returns what of a kind of synthetic image the training never shows.
func Held(kind string) HeldOut {
	h := heldOut[kind]
	return HeldOut{slices.Clone(h.Families), slices.Clone(h.Defects)}
}
