package frechet

import (
	"cmp"
	"fmt"
	"math"
	"slices"

	"gonum.org/v1/gonum/floats"
	"gonum.org/v1/gonum/mat"
)

// Copies detects fakes that are memorised normals: they lie much nearer to a
// normal than that normal's own neighbours do.
type Copies struct {
	normals *mat.Dense // variants × d
	squares []float64
	own     []float64 // distance of each normal to the nearest that differs, by normal
	of      []int     // normal that a variant belongs to
	median  float64
	limit   float64
}

// CopyReport says how near fakes are to the normals they were learned from.
type CopyReport struct {
	// MedianRatio is the median over fakes of the distance to the nearest normal,
	// divided by the median leave-one-out distance among the normals: about 1
	// where fakes are as far from the normals as new normals would be, well below
	// where they are copies.
	MedianRatio float64 `json:"median_ratio"`
	// Share is the part of the fakes that are copies.
	Share float64 `json:"share"`
	// Copied are the numbers of those fakes.
	Copied []int `json:"copied,omitempty"`
}

// NewCopies prepares to look for copies of normals. Each further set holds
// variants of the same normals in the same order that training also saw, such as
// mirror images. A fake counts as a copy below limit times the leave-one-out
// distance of its nearest normal; 0 means 0.5.
func NewCopies(limit float64, normals [][]float32, variants ...[][]float32) (*Copies, error) {
	limit = cmp.Or(limit, 0.5)
	if len(normals) < 2 {
		return nil, fmt.Errorf("find copies: %w: want at least 2 normal images, got %d", ErrFeatures, len(normals))
	}
	c := &Copies{limit: limit}
	var all [][]float32
	for _, set := range append([][][]float32{normals}, variants...) {
		if len(set) != len(normals) {
			return nil, fmt.Errorf("find copies: %d variants of %d normals", len(set), len(normals))
		}
		for i := range set {
			c.of = append(c.of, i)
		}
		all = append(all, set...)
	}
	var err error
	if c.normals, err = dense(all); err != nil {
		return nil, fmt.Errorf("find copies: %w", err)
	}
	c.squares = squares(c.normals)
	own := c.distances(c.normals.Slice(0, len(normals), 0, len(all[0])).(*mat.Dense))
	nearest := func(i int, above float64) float64 {
		best := math.Inf(1)
		for j, d := range own.RawRowView(i) {
			if c.of[j] != i && d > above {
				best = min(best, d)
			}
		}
		return best
	}
	// Normals may be there twice, or once more compressed otherwise: a fake that is a
	// copy of them must not be held against the distance between these.
	same := 1e-6 * math.Sqrt(slices.Max(c.squares)) // rounding
	var pairs []float64
	for i := range normals {
		for _, d := range own.RawRowView(i)[:i] {
			if d > same {
				pairs = append(pairs, d)
			}
		}
	}
	if len(pairs) > 0 {
		slices.Sort(pairs)
		same = max(same, twins*pairs[len(pairs)/20])
	}
	for i := range normals {
		c.own = append(c.own, nearest(i, same))
	}
	c.median = median(c.own)
	return c, nil
}

// twins are normals nearer to one another than this share of the distance below
// which a twentieth of all pairs are: no variation, but the same picture again.
const twins = 0.1

// Compare compares fakes with the normals.
func (c *Copies) Compare(fakes [][]float32) (CopyReport, error) {
	var r CopyReport
	x, err := dense(fakes)
	if err != nil {
		return r, fmt.Errorf("find copies: %w", err)
	}
	if _, d := c.normals.Dims(); d != len(fakes[0]) {
		return r, fmt.Errorf("find copies: %w: %d features against %d", ErrFeatures, len(fakes[0]), d)
	}
	dist := c.distances(x)
	ratios := make([]float64, len(fakes))
	for i := range fakes {
		row := dist.RawRowView(i)
		j := floats.MinIdx(row)
		if limit := c.limit * c.own[c.of[j]]; row[j] < limit && !math.IsInf(limit, 1) {
			r.Copied = append(r.Copied, i)
		}
		if c.median > 0 && !math.IsInf(c.median, 1) {
			ratios[i] = row[j] / c.median
		}
	}
	r.MedianRatio = median(ratios)
	r.Share = float64(len(r.Copied)) / float64(len(fakes))
	return r, nil
}

// distances are Euclidean, from each row of x to each variant.
func (c *Copies) distances(x *mat.Dense) *mat.Dense {
	var d mat.Dense
	d.Mul(x, c.normals.T())
	sq := squares(x)
	d.Apply(func(i, j int, dot float64) float64 {
		return math.Sqrt(max(0, sq[i]+c.squares[j]-2*dot))
	}, &d)
	return &d
}

func median(x []float64) float64 {
	s := slices.Sorted(slices.Values(x))
	n := len(s)
	return (s[(n-1)/2] + s[n/2]) / 2
}
