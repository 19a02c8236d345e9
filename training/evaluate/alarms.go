package evaluate

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"slices"

	"github.com/nearmiss/nearmiss/bank"
	"github.com/nearmiss/nearmiss/training/dataset"
)

// Alarms is the false-alarm rate that was measured at one promised rate. Rates
// are fractions of 1.
type Alarms struct {
	Alpha float64 `json:"false_alarm_rate"` // asked for
	// Expected is what conformal calibration gives on average over calibrations:
	// ⌊α(n+1)⌋/(n+1) for n held-out normals, 0 where α is unreachable.
	Expected float64 `json:"expected"`
	// Rate is the share of unseen normals that raised an alarm, over all draws.
	Rate float64 `json:"rate"`
	// Low and High bound the rate of 95 % of single calibrations (a beta
	// distribution), and Inside is the share of draws that were within, where the
	// few test images of a draw widen the bounds.
	Low    float64 `json:"low"`
	High   float64 `json:"high"`
	Inside float64 `json:"inside"`
	// Most is the rate among a draw's test images that 2.5 % of single calibrations would
	// exceed (a beta-binomial distribution), and Beyond the share of draws that did.
	Most   float64 `json:"most"`
	Beyond float64 `json:"beyond"`
	// Rates are those of the draws, so that several runs can be put together.
	Rates []float64 `json:"rates"`
}

// AlarmResult is what FalseAlarms found.
type AlarmResult struct {
	Data    string   `json:"data"`
	Normal  string   `json:"normal"`
	Method  string   `json:"method"`
	Images  int      `json:"images"`
	Bank    int      `json:"bank"`
	HeldOut int      `json:"held_out"`
	Test    int      `json:"test"`
	Draws   int      `json:"draws"`
	Alarms  []Alarms `json:"alarms"`
}

// FalseAlarms draws normal images into a bank (3 of 5), held-out ones that
// calibrate (1 of 5) and test images (1 of 5), over and over, and counts the
// test images that raise an alarm: the method of the promise is what is tested.
func FalseAlarms(ctx context.Context, items []dataset.Item, f *Features, k int, alphas []float64, draws int, seed uint64) (*AlarmResult, error) {
	n := len(items)
	part := n / 5
	if part < 1 || n-2*part < k || k < 1 || draws < 1 {
		return nil, fmt.Errorf("measure false alarms: %d normal images, k = %d and %d draws: want at least 5 images, and more than k in three fifths of them", n, k, draws)
	}
	rows, err := f.Of(ctx, items)
	if err != nil {
		return nil, err
	}
	near, err := order(ctx, rows)
	if err != nil {
		return nil, err
	}
	inBank := make([]bool, n)
	return countAlarms(ctx, n, alphas, draws, seed, func(_ int, in, held, test []int) (calibrate, tested []float64, err error) {
		clear(inBank)
		for _, i := range in {
			inBank[i] = true
		}
		scores := make([]float64, 0, len(held)+len(test))
		for _, i := range slices.Concat(held, test) {
			scores = append(scores, near[i].score(inBank, k))
		}
		return scores[:len(held)], scores[len(held):], nil
	})
}

// Folder is a Method whose scorers may be calibrated by normals that they learnt
// from.
type Folder interface {
	// Folding is the same method with scorers that are Folded, for draws from items;
	// nil: they are calibrated by other normals. What it finds of them is the
	// same for every draw, or the promise that is tested would be another.
	Folding(items []dataset.Item) Method
}

// Folded is a Scorer that is calibrated by normals that it learnt from.
type Folded interface {
	// Calibrating are what normals that it learnt from score by banks that they are
	// not in.
	Calibrating() []float64
}

// MethodAlarms does the same with any method, which learns from the images of
// the bank anew in each draw. A Folder learns from the held-out images, too.
func MethodAlarms(ctx context.Context, items []dataset.Item, m Method, alphas []float64, draws int, seed uint64) (*AlarmResult, error) {
	n := len(items)
	if n < 5 || draws < 1 {
		return nil, fmt.Errorf("measure false alarms: %d normal images and %d draws: want at least 5 and 1", n, draws)
	}
	pick := func(which []int) []dataset.Item {
		out := make([]dataset.Item, len(which))
		for j, i := range which {
			out[j] = items[i]
		}
		return out
	}
	folds := false
	if f, ok := m.(Folder); ok {
		if folding := f.Folding(items); folding != nil {
			m, folds = folding, true
		}
	}
	return countAlarms(ctx, n, alphas, draws, seed, func(draw int, in, held, test []int) (calibrate, scores []float64, err error) {
		if folds {
			in, held = slices.Concat(in, held), nil
		}
		s, err := m.Fit(ctx, pick(in), seed+uint64(draw))
		if err != nil {
			return nil, nil, fmt.Errorf("fit %s: %w", m.Name(), err)
		}
		if c, ok := s.(io.Closer); ok {
			defer func() { err = errors.Join(err, c.Close()) }()
		}
		if scores, err = s.Score(ctx, pick(slices.Concat(held, test))); err != nil {
			return nil, nil, err
		}
		if !folds {
			return scores[:len(held)], scores[len(held):], nil
		}
		c, ok := s.(Folded)
		if !ok || len(c.Calibrating()) == 0 {
			return nil, nil, fmt.Errorf("calibrate %s: it says nothing of the %d normals that it learnt from", m.Name(), len(in))
		}
		return c.Calibrating(), scores, nil
	})
}

// countAlarms draws the images of the bank, those that are held out and those that are
// tested. score gives scores that calibrate, and those of what is tested.
func countAlarms(ctx context.Context, n int, alphas []float64, draws int, seed uint64, score func(draw int, in, held, test []int) (calibrate, tested []float64, err error)) (*AlarmResult, error) {
	part, known := n/5, 0
	r := &AlarmResult{Images: n, Test: part, Draws: draws}
	rnd := rand.New(rand.NewPCG(seed, 0x616c61726d))
	rates := make([][]float64, len(alphas))
	for draw := range draws {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		perm := rnd.Perm(n)
		calibrate, scores, err := score(draw, perm[2*part:], perm[:part], perm[part:2*part])
		if err != nil {
			return nil, err
		}
		if known = len(calibrate); known > part { // normals of the bank
			r.Bank, r.HeldOut = n-part, known
		} else {
			r.Bank, r.HeldOut = n-2*part, known
		}
		for a, alpha := range alphas {
			c, err := bank.NewCalibration(calibrate, alpha)
			if err != nil {
				return nil, err
			}
			alarms := 0
			for _, s := range scores {
				if c.Anomalous(s) {
					alarms++
				}
			}
			rates[a] = append(rates[a], float64(alarms)/float64(part))
		}
	}
	for a, alpha := range alphas {
		x := Alarms{Alpha: alpha, Expected: math.Floor(alpha*float64(known+1)) / float64(known+1)}
		x.Rate, _ = meanStd(rates[a])
		x.Low, x.High = bank.FalseAlarmRange(known, alpha, 0.95)
		// A draw's rate is measured on part images: three of its binomial standard
		// deviations are allowed on top.
		slack := func(p float64) float64 { return 3 * math.Sqrt(max(p*(1-p), 1/float64(part))/float64(part)) }
		for _, v := range rates[a] {
			if v >= x.Low-slack(x.Low) && v <= x.High+slack(x.High) {
				x.Inside += 1 / float64(draws)
			}
		}
		x.Rates, x.Most = rates[a], float64(mostAlarms(int(x.Expected*float64(known+1)+0.5), known, part))/float64(part)
		for _, v := range x.Rates {
			if v > x.Most {
				x.Beyond += 1 / float64(draws)
			}
		}
		r.Alarms = append(r.Alarms, x)
	}
	return r, nil
}

// mostAlarms is the smallest number of alarms among test images that at least 97.5 % of
// single calibrations by n images have no more than, where the threshold is their rank
// th largest: the rate of one is Beta(rank, n+1−rank) distributed, and alarms are
// binomial.
func mostAlarms(rank, n, test int) int {
	if rank == 0 {
		return 0
	}
	a, b := float64(rank), float64(n+1-rank)
	beta := func(a, b float64) float64 { // its logarithm
		x, _ := math.Lgamma(a)
		y, _ := math.Lgamma(b)
		z, _ := math.Lgamma(a + b)
		return x + y - z
	}
	sum := 0.0
	for k := range test {
		x, y := float64(k), float64(test-k)
		sum += math.Exp(beta(x+a, y+b) - beta(a, b) - beta(x+1, y+1) - math.Log(float64(test+1)))
		if sum >= 0.975 {
			return k
		}
	}
	return test
}

// neighbours are the others of an image, nearest first.
type neighbours struct {
	index    []int32
	distance []float32
}

func (n neighbours) score(inBank []bool, k int) float64 {
	sum := 0.0
	for j, i := range n.index {
		if inBank[i] {
			sum += float64(n.distance[j])
			if k--; k == 0 {
				break
			}
		}
	}
	return sum
}

// order sorts all images by their distance from each.
func order(ctx context.Context, rows [][]float32) ([]neighbours, error) {
	out := make([]neighbours, len(rows))
	b, err := bank.New(bank.Options{Dim: len(rows[0]), Kind: bank.Exact})
	if err != nil {
		return nil, err
	}
	for i, r := range rows {
		if err := b.Add(uint64(i), r); err != nil {
			return nil, err
		}
	}
	found, err := b.Index().SearchBatch(ctx, slices.Concat(rows...), len(rows))
	if err != nil {
		return nil, err
	}
	for i, near := range found {
		for _, b := range near {
			if int(b.ID) != i {
				out[i].index = append(out[i].index, int32(b.ID))
				out[i].distance = append(out[i].distance, b.Distance)
			}
		}
	}
	return out, nil
}
