package bank

import (
	"errors"
	"fmt"
	"math"
)

var (
	// ErrNotFinite: a vector has a NaN or infinite component, or is so long
	// that squared distances to it overflow float32.
	ErrNotFinite = errors.New("vector is not finite")
	// ErrDim: a vector's length is not the bank's dimension.
	ErrDim = errors.New("wrong vector length")
	// ErrExists: the id is already in the bank.
	ErrExists = errors.New("id is already in the bank")
	// ErrNotFound: the id is not in the bank.
	ErrNotFound = errors.New("id is not in the bank")
	// ErrTooFew: the bank holds fewer entries than the search needs.
	ErrTooFew = errors.New("too few entries in the bank")
	// ErrUnsupported: this kind of index cannot do that (coder cannot be
	// changed after it was built).
	ErrUnsupported = errors.New("not supported by this kind of index")
	// ErrClosed: the bank was read from a file and closed.
	ErrClosed = errors.New("the bank is closed")
	// ErrCorrupt: a bank file's bytes contradict themselves or a checksum.
	ErrCorrupt = errors.New("bank file is corrupt")
	// ErrVersion: a bank file is of a version this program does not read.
	ErrVersion = errors.New("bank file has an unknown version")
)

// UnreachableError says that a false-alarm rate is smaller than what the number
// of held-out normals can promise.
type UnreachableError struct {
	Alpha    float64 // the rate asked for
	Smallest float64 // the smallest rate these held-out normals allow: 1/(n+1)
	HeldOut  int     // n
	Needed   int     // held-out normals that Alpha needs
}

func (e *UnreachableError) Error() string {
	return fmt.Sprintf("false-alarm rate %.4g cannot be promised from %d held-out normals: the smallest is %.4g; "+
		"hold out at least %d normals or ask for a larger rate", e.Alpha, e.HeldOut, e.Smallest, e.Needed)
}

// maxNorm2 bounds squared norms so that no squared distance between two
// accepted vectors overflows float32: ‖a−b‖² ≤ 2(‖a‖² + ‖b‖²).
const maxNorm2 = math.MaxFloat32 / 8

func checkVector(v []float32, dim int) error {
	if len(v) != dim {
		return fmt.Errorf("%w: got %d numbers, the bank's dimension is %d", ErrDim, len(v), dim)
	}
	if n := norm2(v); !(n <= maxNorm2) { // also false for NaN
		for i, x := range v {
			if f := float64(x); math.IsNaN(f) || math.IsInf(f, 0) {
				return fmt.Errorf("%w: component %d is %v", ErrNotFinite, i, x)
			}
		}
		return fmt.Errorf("%w: its squared norm %g overflows float32 distances", ErrNotFinite, n)
	}
	return nil
}
