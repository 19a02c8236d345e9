package frechet

import (
	"errors"
	"fmt"
	"math/rand/v2"
)

// Reference is the scale on which sets of fakes of one fixed size are measured:
// the Fréchet distance grows as sets shrink, so that only distances at equal
// sizes compare.
type Reference struct {
	halves  []half
	size    int
	normals [][]float32
	floor   float64
	noise   float64
}

type half struct {
	rows []int
	fit  *Gaussian
}

// referenceSplits is the number of random halvings over which distances are
// averaged: with a hundred normals one halving is noisy by a few per cent.
const referenceSplits = 4

// NewReference splits the features of at least 4 normals into random halves,
// of at most limit images each (0 means 1000). The mean distance between
// partners is the floor: what a perfect generator would score.
func NewReference(normals [][]float32, limit int, seed uint64) (*Reference, error) {
	if len(normals) < 4 {
		return nil, fmt.Errorf("measure the normals' own distance: %w: want at least 4 normal images, got %d", ErrFeatures, len(normals))
	}
	if limit <= 0 {
		limit = 1000
	}
	r := &Reference{size: max(2, min(limit, len(normals)/2)), normals: normals}
	rng := rand.New(rand.NewPCG(seed, 0x5eed5eed5eed5eed))
	for range referenceSplits {
		order := rng.Perm(len(normals))
		a, b := order[:r.size], order[r.size:2*r.size]
		fa, err := Fit(pick(normals, a))
		if err != nil {
			return nil, fmt.Errorf("measure the normals' own distance: %w", err)
		}
		fb, err := Fit(pick(normals, b))
		if err != nil {
			return nil, fmt.Errorf("measure the normals' own distance: %w", err)
		}
		d, err := Distance(fa, fb)
		if err != nil {
			return nil, err
		}
		r.floor += d / referenceSplits
		r.halves = append(r.halves, half{a, fa})
	}
	return r, nil
}

func pick(x [][]float32, rows []int) [][]float32 {
	out := make([][]float32, len(rows))
	for i, k := range rows {
		out[i] = x[k]
	}
	return out
}

// Size is the number of fakes that a measurement takes.
func (r *Reference) Size() int { return r.size }

// Floor is FD_split, the distance between two halves of the normals.
func (r *Reference) Floor() float64 { return r.floor }

// Noise is FD_noise, the distance of the untrained generator, 0 until SetNoise.
func (r *Reference) Noise() float64 { return r.noise }

// SetNoise fixes the upper end of the scale.
func (r *Reference) SetNoise(fd float64) error {
	if !(fd > r.floor) {
		return fmt.Errorf("scale fréchet distances: samples of the untrained network are at %.4g, no farther than the normals from each other (%.4g): the extractor cannot tell them apart, take another", fd, r.floor)
	}
	r.noise = fd
	return nil
}

// Measurement is one comparison of fakes with normals.
type Measurement struct {
	FD    float64 `json:"fd"`    // Fréchet distance to as many normals
	KID   float64 `json:"kid"`   // kernel distance
	CMMD  float64 `json:"cmmd"`  // Gaussian-kernel distance
	Ratio float64 `json:"ratio"` // (FD − floor)/(noise − floor); 0 before SetNoise
}

// Measure compares the first Size of the fakes with the normals' halves, and
// averages.
func (r *Reference) Measure(fakes [][]float32) (Measurement, error) {
	var m Measurement
	if len(fakes) < r.size {
		return m, fmt.Errorf("measure fakes: want %d of them, got %d: distances compare only at equal sizes", r.size, len(fakes))
	}
	fakes = fakes[:r.size]
	f, err := Fit(fakes)
	if err != nil {
		return m, fmt.Errorf("measure fakes: %w", err)
	}
	for i, h := range r.halves {
		d, err := Distance(h.fit, f)
		if err != nil {
			return m, err
		}
		m.FD += d / float64(len(r.halves))
		if i > 0 { // the kernel distances are unbiased: one half is enough
			continue
		}
		normals := pick(r.normals, h.rows)
		kid, err1 := KID(normals, fakes)
		cmmd, err2 := CMMD(normals, fakes)
		if err := errors.Join(err1, err2); err != nil {
			return m, err
		}
		m.KID, m.CMMD = kid, cmmd
	}
	if r.noise > 0 {
		m.Ratio = (m.FD - r.floor) / (r.noise - r.floor)
	}
	return m, nil
}
