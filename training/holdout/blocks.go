package holdout

import (
	"math"
	"math/rand/v2"
)

// Options say what is to be held out.
type Options struct {
	Share float64 // of the shots, 0..1
	Need  int     // held-out normals that the wanted false-alarm rate takes, were they independent
	K     int     // neighbours in a score
	Seed  uint64
}

// Split is a division of normals that resemble their neighbours, by places in
// ascending order.
type Split struct {
	Train, Held []int
	// Near are too near to held-out ones in time to be in the bank with them.
	Near []int
	// Worth is how many independent pictures would be as different as all the
	// shots are, HeldWorth how many independent held-out ones would say as much
	// about the scores of normals. Both are at least 1.
	Worth, HeldWorth float64
	// Alike is how many shots in a row say as much as one picture.
	Alike float64
}

// leastRise of the scores of frames without their neighbours is worth losing
// some to guards.
const leastRise = 1.15

// Draw divides shots by whole stretches of time. rows are their embeddings,
// row-major; equal arguments give equal splits. It gives nil where the order in
// which the shots were taken tells nothing, so that any of them may be held out,
// and where there are too few to see it.
//
// A rate that needs a little more than the share gets up to twice as much.
func Draw(shots []Shot, rows []float32, o Options) *Split {
	n := len(shots)
	if n < leastShots {
		return nil
	}
	dim := len(rows) / n
	seqs := sequences(shots)
	alike := kinship(seqs, rows, dim)
	if alike == 1 {
		return nil
	}
	guard := int(math.Ceil(alike))
	each, rise := clustering(seqs, rows, dim, o.K, guard)
	if rise < leastRise {
		return nil
	}
	each = min(each, float64(n))
	share := o.Share
	if need := float64(o.Need) * each / float64(n); need > share && need <= min(2*share, 0.5) {
		share = need
	}
	mark := make([]byte, n)
	r := rand.New(rand.NewPCG(o.Seed, 0x626c6f636b))
	for _, s := range joined(seqs, 4*guard) {
		hold(mark, s, share, guard, r)
	}
	out := &Split{Worth: max(1, float64(n)/alike), Alike: alike}
	for i, m := range mark {
		switch m {
		case held:
			out.Held = append(out.Held, i)
		case near:
			out.Near = append(out.Near, i)
		default:
			out.Train = append(out.Train, i)
		}
	}
	out.HeldWorth = max(1, float64(len(out.Held))/each)
	return out
}

const (
	held = 1
	near = 2
)

// joined strings sequences together that are shorter than least: what is held out
// of them are whole ones, but for the first and the last.
func joined(seqs [][]int, least int) [][]int {
	var out [][]int
	var rest []int
	for _, s := range seqs {
		if len(s) < least {
			rest = append(rest, s...)
		} else {
			out = append(out, s)
		}
	}
	if len(rest) > 0 {
		out = append(out, rest)
	}
	return out
}

// blockLength is that of a held-out stretch, in multiples of the guard that is
// lost before and after it.
const blockLength = 3

// hold marks stretches of a sequence, spread over it.
func hold(mark []byte, seq []int, share float64, guard int, r *rand.Rand) {
	n := len(seq)
	m := int(math.Ceil(share*float64(n) - 1e-9))
	blocks := max(1, m/(blockLength*guard))
	guard = min(guard, max(1, m/(2*blocks)))
	for b := range blocks {
		from, to := b*n/blocks, (b+1)*n/blocks
		size := (b+1)*m/blocks - b*m/blocks
		at := from + r.IntN(max(1, to-from-size+1))
		for i := max(0, at-guard); i < min(n, at+size+guard); i++ {
			if i >= at && i < at+size {
				mark[seq[i]] = held
			} else if mark[seq[i]] != held {
				mark[seq[i]] = near
			}
		}
	}
}
