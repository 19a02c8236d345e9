package training

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math"
	"path/filepath"
	"slices"
	"time"

	"gonum.org/v1/gonum/floats"
	"gonum.org/v1/gonum/stat"

	"github.com/nearmiss/nearmiss/inference"
	"github.com/nearmiss/nearmiss/inference/imaging"
	"github.com/nearmiss/nearmiss/inference/onnx/lower"
	"github.com/nearmiss/nearmiss/inference/ort"
	"github.com/nearmiss/nearmiss/training/corrupt"
)

// PrecisionReport says what fewer bits would change, and what was chosen.
type PrecisionReport struct {
	// Choice is PrecisionFloat, or what was tried: PrecisionInt8 on the CPU,
	// PrecisionHalf elsewhere.
	Choice string `json:"choice"`
	Reason string `json:"reason"`
	// Speed is how many times faster the network is so, on as many pictures as it is
	// given at once; 0 where that was not tried.
	Speed float64 `json:"speed,omitempty"`
	// AUROC, 0..1, of held-out normals against the same ones spoilt, with either
	// precision, and the lower bound of the difference; absent where it was not tried.
	Float *float64 `json:"auroc_fp32,omitempty"`
	Int8  *float64 `json:"auroc_int8,omitempty"`
	Half  *float64 `json:"auroc_fp16,omitempty"`
	Low   *float64 `json:"low,omitempty"`
	// Moved is how far the scores of held-out normals move, and Ranks how alike the same
	// ones spoilt rank; absent where it was not tried, or where scores do not differ.
	Moved *float64 `json:"moved,omitempty"`
	Ranks *float64 `json:"ranks,omitempty"`
	// Held is how many held-out normals that is of.
	Held int `json:"held,omitempty"`
}

// String is the finding in a sentence, for people.
func (r PrecisionReport) String() string { return r.Choice + ": " + r.Reason }

// precisionGate says what fewer bits must show to be taken.
type precisionGate struct {
	// faster is how many times faster they must be.
	faster float64
	// margin is the loss of AUROC, 0..1, that the lower bound of the difference may
	// show; they are to lose nothing.
	margin float64
	// moved is how far the scores of held-out normals may move, and ranks how alike the
	// spoilt ones must rank, at least.
	moved, ranks float64
	// try is what is tried; empty: what the device is made for.
	try string
}

// Scores that move by m of their spread have m² of noise in their variance: 0.3 turn an
// AUROC of 0.850 into 0.839, as much as the margin, and leave a correlation of 0.955.
var usualGate = precisionGate{faster: 1.3, margin: 0.01, moved: 0.3, ranks: 0.95}

const (
	// mostSpoilt and leastSpoilt bound the held-out normals that are spoilt; with fewer
	// nothing can be decided.
	mostSpoilt  = 30
	leastSpoilt = 6
	// slightly is how strongly they are spoilt: what is plain to see tells models
	// apart no more.
	slightly = 0.3
)

// spoiltBy are the corruptions that precisions are compared by: local ones and one
// of the whole picture.
var spoiltBy = []corrupt.Kind{corrupt.Scar, corrupt.Blur, corrupt.Spots, corrupt.Warp}

// inPrecision chooses the precision of a score that was built with PrecisionFloat:
// 8 bits on the CPU and 16 elsewhere, where they are faster and lose nothing. The model
// and the score that are not given back are closed.
func inPrecision(ctx context.Context, nets networks, dir string, one built, h halves) (built, *PrecisionReport, error) {
	r, gate := &PrecisionReport{Choice: PrecisionFloat}, cmp.Or(one.p.Model.gate, usualGate)
	try, bits := cmp.Or(gate.try, fewerBits(one.p.Host.Device)), "16 bits"
	if try == PrecisionInt8 {
		bits = "8 bits"
	}
	if len(h.held) < leastSpoilt {
		r.Reason = fmt.Sprintf("%d held-out normals are too few to compare by", len(h.held))
		return one, r, nil
	}
	q := one.p
	q.Model.Precision = try
	y, err := one.x.twin(ctx, q, nets, filepath.Join(dir, try+".onnx"))
	switch {
	case errors.Is(err, lower.ErrNothingToLower):
		r.Reason = "the backbone has no products that " + bits + " make faster"
		return one, r, nil
	case errors.Is(err, inference.ErrNotFinite):
		r.Reason = "the backbone has numbers that " + bits + " do not hold"
		return one, r, nil
	}
	if err != nil {
		return one, nil, err
	}
	two := built{x: y, p: q, own: true}
	held := h.held[:min(len(h.held), mostSpoilt)]
	err = func() (err error) {
		if r.Speed, err = faster(ctx, one.x.b.model.e, y.b.model.e); err != nil {
			return err
		}
		if r.Speed < gate.faster {
			r.Reason = fmt.Sprintf("%s are %.2f times as fast, and %g is asked for", bits, r.Speed, gate.faster)
			return nil
		}
		y.b.copies, y.b.folded = one.s.copies, one.x.b.folded
		if two.s, err = y.b.build(ctx, y.n.at(h.train), y.n.at(h.held)); err != nil {
			return err
		}
		var found [2]evidence
		for i, b := range []built{one, two} {
			found[i], err = b.spoilt(ctx, one.x.imagesAt(held))
			if i == 1 && errors.Is(err, inference.ErrNotFinite) {
				r.Reason = "spoilt pictures give numbers that " + bits + " do not hold"
				return nil
			}
			if err != nil {
				return err
			}
		}
		base, other := newComparison(found[0]), newComparison(found[1])
		gains, _ := other.gains(base, 1000, q.Seed)
		low := quantile(gains, 0.05)
		r.Float, r.Low, r.Held = &base.mean, &low, len(held)
		if try == PrecisionInt8 {
			r.Int8 = &other.mean
		} else {
			r.Half = &other.mean
		}
		r.Reason = fmt.Sprintf("%s are %.2f times as fast, and tell %d held-out normals from spoilt ones with an AUROC of %.3f instead of %.3f, at least %+.3f",
			bits, r.Speed, len(held), other.mean, base.mean, low)
		r.moves(found)
		if low > -gate.margin && (r.Moved == nil || *r.Moved <= gate.moved) && (r.Ranks == nil || *r.Ranks >= gate.ranks) {
			r.Choice = try
		}
		return nil
	}()
	keep, drop := one, two
	if err == nil && r.Choice == try {
		keep, drop = two, one
		drop.own = true
	}
	if drop.s != nil {
		err = errors.Join(err, drop.s.Close())
	}
	return keep, r, errors.Join(err, drop.x.Close())
}

// moves compares the scores of the same pictures in both precisions, each of which has a
// scale of its own.
func (r *PrecisionReport) moves(found [2]evidence) {
	var spoilt [2][]float64
	for i, e := range found {
		for _, kind := range spoiltBy {
			spoilt[i] = append(spoilt[i], e.anomalies[string(kind)]...)
		}
	}
	// Standardised scores with a correlation of c differ by √(2 − 2c), root mean square.
	if c := stat.Correlation(found[0].normals, found[1].normals, nil); !math.IsNaN(c) {
		v := math.Sqrt(2 * max(0, 1-c))
		r.Moved = &v
		r.Reason += fmt.Sprintf("; scores of held-out normals move by %.2f of their spread", v)
	}
	// Spearman's correlation.
	if c := stat.Correlation(ranks(spoilt[0]), ranks(spoilt[1]), nil); !math.IsNaN(c) {
		r.Ranks = &c
		r.Reason += fmt.Sprintf("; spoilt ones rank alike to %.3f", c)
	}
}

// ranks are those of scores, in their order.
func ranks(scores []float64) []float64 {
	order := make([]int, len(scores))
	floats.Argsort(slices.Clone(scores), order)
	out := make([]float64, len(scores))
	for rank, i := range order {
		out[i] = float64(rank)
	}
	return out
}

// fewerBits is the precision that a device computes faster than PrecisionFloat.
func fewerBits(d ort.Device) string {
	if d.IsCPU() {
		return PrecisionInt8
	}
	return PrecisionHalf
}

// faster is how many times faster b is than a on as many pictures as both are given at
// once: the quotient of the least times of runs by turns.
func faster(ctx context.Context, a, b *inference.Embedder) (float64, error) {
	black := make([][]uint8, min(a.BatchSize(), b.BatchSize()))
	for i := range black {
		black[i] = make([]uint8, a.Preprocess().Bytes())
	}
	var least [2]time.Duration
	for range 2 * timedRuns {
		for i, e := range []*inference.Embedder{a, b} {
			began := time.Now()
			if _, err := e.EmbedPixels(ctx, black); err != nil {
				return 0, err
			}
			if took := time.Since(began); least[i] == 0 || took < least[i] {
				least[i] = took
			}
		}
	}
	return float64(least[0]) / float64(max(least[1], 1)), nil
}

// spoilt scores images, and the same spoilt in several ways.
func (b built) spoilt(ctx context.Context, images []Image) (evidence, error) {
	e := evidence{anomalies: map[string][]float64{}}
	decoded := make([]*imaging.Image, len(images))
	for i, m := range images {
		file, err := m.Read()
		if err != nil {
			return e, fmt.Errorf("read normal image %s: %w", m.Name, err)
		}
		if decoded[i], err = b.p.Data.View.Decode(file, b.p.Data.Limits); err != nil {
			return e, fmt.Errorf("normal image %s: %w", m.Name, err)
		}
	}
	score := func(m *imaging.Image) (float64, error) {
		all, err := b.x.b.model.e.EmbedImages(ctx, []*imaging.Image{m})
		if err == nil {
			err = all[0].Err
		}
		if err != nil {
			return 0, err
		}
		var v inference.Score
		err = b.s.served.Judge(ctx, []*inference.Embedding{&all[0]}, []*inference.Score{&v})
		return v.Score, err
	}
	for i, m := range decoded {
		v, err := score(m)
		if err != nil {
			return e, err
		}
		e.normals = append(e.normals, v)
		for _, kind := range spoiltBy {
			bad, err := corrupt.Apply(kind, m, decoded[(i+1)%len(decoded)], slightly, b.p.Seed+uint64(i))
			if err != nil {
				return e, fmt.Errorf("spoil normal image %s: %w", images[i].Name, err)
			}
			if v, err = score(bad); err != nil {
				return e, err
			}
			e.anomalies[string(kind)] = append(e.anomalies[string(kind)], v)
		}
	}
	return e, nil
}
