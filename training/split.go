package training

import (
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"sort"

	"github.com/nearmiss/nearmiss/bank"
)

// DefaultHeldOut is the share of the normals that calibrates the detector and
// is kept out of its bank.
const DefaultHeldOut = 0.2

// ErrTooFew: there are not enough normal images for a bank and its calibration.
var ErrTooFew = errors.New("too few normal images")

// Split divides the indices 0..n-1 at random, repeatably from seed, into those
// that a detector learns from and those held out to calibrate it. The held-out
// part has round(share·n) indices, at least one; the other part at least keep.
// Both come in ascending order.
func Split(n int, share float64, keep int, seed uint64) (train, heldOut []int, err error) {
	if math.IsNaN(share) || share <= 0 || share >= 1 {
		return nil, nil, fmt.Errorf("held-out share %v is not between 0 and 1", share)
	}
	m := heldOutOf(n, share)
	if n-m < keep {
		more := sort.Search(1<<53, func(i int) bool { return n+i-heldOutOf(n+i, share) >= keep })
		return nil, nil, fmt.Errorf("%w: %d different ones, and at least %d are needed, some of which are held out",
			ErrTooFew, n, n+more)
	}
	order := rand.New(rand.NewPCG(seed, 0x6e656172)).Perm(n)
	heldOut, train = order[:m:m], order[m:]
	slices.Sort(heldOut)
	slices.Sort(train)
	return train, heldOut, nil
}

func heldOutOf(n int, share float64) int { return max(1, int(math.Round(share*float64(n)))) }

// normalsFor is how many normal images are needed so that the held-out share
// of them, 0 < share < 1, can promise the false-alarm rate alpha, 0 < alpha < 1.
func normalsFor(alpha, share float64) int {
	want := bank.HeldOutFor(alpha)
	n := max(1, int((float64(want)-1)/share))
	for heldOutOf(n, share) < want {
		n++
	}
	return n
}
