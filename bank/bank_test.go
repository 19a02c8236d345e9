package bank

import (
	"context"
	"errors"
	"math"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// gauss makes n seeded vectors of length dim.
func gauss(seed uint64, n, dim int) []float32 {
	r := rand.New(rand.NewPCG(seed, 1))
	out := make([]float32, n*dim)
	for i := range out {
		out[i] = float32(r.NormFloat64())
	}
	return out
}

func sequence(n int) []uint64 {
	ids := make([]uint64, n)
	for i := range ids {
		ids[i] = uint64(i)
	}
	return ids
}

func newFilled(t testing.TB, o Options, data []float32) *Bank {
	t.Helper()
	b, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	if err := b.AddBatch(sequence(len(data)/o.Dim), data); err != nil {
		t.Fatal(err)
	}
	return b
}

// scoreOne scores one embedding, and searchOne finds what is nearest to one vector.
func scoreOne(b *Bank, v []float32) (Result, error) {
	all, err := b.ScoreBatch(context.Background(), v)
	if err != nil {
		return Result{}, err
	}
	return all[0], nil
}

func searchOne(x Index, q []float32, k int) ([]Neighbour, error) {
	all, err := x.SearchBatch(context.Background(), q, k)
	if err != nil {
		return nil, err
	}
	return all[0], nil
}

func TestScoreIsTheSumOfSquaredDistances(t *testing.T) {
	b := newFilled(t, Options{Dim: 2}, []float32{0, 0, 3, 4, 10, 0})
	got, err := scoreOne(b, []float32{0, 1})
	if err != nil {
		t.Fatal(err)
	}
	want := Result{
		Score: 1 + 18, Threshold: math.Inf(1),
		Nearest: []Neighbour{{ID: 0, Distance: 1}, {ID: 1, Distance: 18}},
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
}

func TestBadVectorsAreRefused(t *testing.T) {
	b := newFilled(t, Options{Dim: 2}, []float32{0, 0, 3, 4, 10, 0})
	nan, inf := float32(math.NaN()), float32(math.Inf(1))
	for name, v := range map[string][]float32{"NaN": {nan, 0}, "infinite": {0, inf}, "overflowing": {3e19, 0}} {
		if err := b.Add(9, v); !errors.Is(err, ErrNotFinite) {
			t.Errorf("%s: add: %v", name, err)
		}
		if _, err := scoreOne(b, v); !errors.Is(err, ErrNotFinite) {
			t.Errorf("%s: score: %v", name, err)
		}
		if _, err := b.ScoreBatch(context.Background(), v); !errors.Is(err, ErrNotFinite) {
			t.Errorf("%s: score batch: %v", name, err)
		}
	}
	if err := b.Add(1, []float32{1, 1}); !errors.Is(err, ErrExists) {
		t.Error(err)
	}
	if err := b.Add(9, []float32{1}); !errors.Is(err, ErrDim) {
		t.Error(err)
	}
	if err := b.Remove(9); !errors.Is(err, ErrNotFound) {
		t.Error(err)
	}
	if err := b.Remove(1); err != nil {
		t.Error(err)
	}
	if err := b.Remove(2); err != nil {
		t.Error(err)
	}
	if _, err := scoreOne(b, []float32{0, 0}); !errors.Is(err, ErrTooFew) {
		t.Error(err)
	}
}

func TestTiesAreOrderedByID(t *testing.T) {
	b := newFilled(t, Options{Dim: 1, K: 2}, []float32{5, 1, 1, 1, 1})
	if err := b.Remove(0); err != nil { // moves the row of id 4 to the front
		t.Fatal(err)
	}
	got, err := scoreOne(b, []float32{1})
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff([]Neighbour{{ID: 1}, {ID: 2}}, got.Nearest); d != "" {
		t.Error(d)
	}
}

func TestFileKeepsTheBank(t *testing.T) {
	ctx := context.Background()
	data := gauss(1, 300, 8)
	white, err := LearnWhitening(data, 8, 0.1)
	if err != nil {
		t.Fatal(err)
	}
	for name, o := range map[string]Options{"plain": {Dim: 8}, "whitened": {Dim: 8, K: 3, Transform: white}} {
		b := newFilled(t, o, data)
		if _, err := b.Calibrate(ctx, gauss(2, 99, 8), 0.05); err != nil {
			t.Fatal(name, err)
		}
		path := filepath.Join(t.TempDir(), "bank.nmb")
		if err := b.WriteFile(path); err != nil {
			t.Fatal(name, err)
		}
		back, err := ReadFile(path, ReadOptions{})
		if err != nil {
			t.Fatal(name, err)
		}
		queries := gauss(3, 20, 8)
		want, err := b.ScoreBatch(ctx, queries)
		if err != nil {
			t.Fatal(name, err)
		}
		got, err := back.ScoreBatch(ctx, queries)
		if err != nil {
			t.Fatal(name, err)
		}
		if d := cmp.Diff(want, got); d != "" {
			t.Error(name, d)
		}
	}
}

func TestLeaveOneOut(t *testing.T) {
	b := newFilled(t, Options{Dim: 1}, []float32{0, 1, 3, 3, 3, 3})
	got, err := b.LeaveOneOut(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	want := map[uint64]float64{0: 1 + 9, 1: 1 + 4, 2: 0, 3: 0, 4: 0, 5: 0}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
}

func TestUnreachableRate(t *testing.T) {
	b := newFilled(t, Options{Dim: 4}, gauss(1, 50, 4))
	_, err := b.Calibrate(context.Background(), gauss(2, 98, 4), 0.01)
	var u *UnreachableError
	if !errors.As(err, &u) || u.Needed != 99 || u.HeldOut != 98 {
		t.Fatalf("got %v", err)
	}
	if b.Calibration() != nil {
		t.Error("a failed calibration was kept")
	}
	if _, err := b.Calibrate(context.Background(), gauss(2, 99, 4), 0.01); err != nil {
		t.Error(err)
	}
	scores := b.Calibration().HeldOut()
	if !slices.IsSorted(scores) || b.Calibration().Threshold() != scores[98] {
		t.Error("the threshold at the smallest rate is not the largest held-out score")
	}
}

func TestReadjust(t *testing.T) {
	ctx := context.Background()
	const dim = 4
	rows, heldOut := gauss(1, 60, dim), gauss(2, 40, dim)
	for _, kind := range []Kind{Exact, HNSW} {
		b, err := New(Options{Dim: dim, Kind: kind})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := b.Readjust(ctx, 2, 0.1); !errors.Is(err, ErrNoHeldOut) {
			t.Error(err)
		}
		fill := func(b *Bank) {
			t.Helper()
			for i := range uint64(60) {
				if err := b.Add(i, rows[i*dim:(i+1)*dim]); err != nil {
					t.Fatal(err)
				}
			}
			if _, err := b.Build(ctx, heldOut); err != nil {
				t.Fatal(err)
			}
		}
		fill(b)
		if _, err := b.Calibrate(ctx, heldOut, 0.1); err != nil {
			t.Fatal(err)
		}
		for _, to := range []struct {
			k     int
			alpha float64
		}{{2, 0.3}, {5, 0.3}, {1, 0.05}} {
			got, err := b.Readjust(ctx, to.k, to.alpha)
			if err != nil {
				t.Fatal(err)
			}
			fresh, err := New(Options{Dim: dim, K: to.k, Kind: kind})
			if err != nil {
				t.Fatal(err)
			}
			fill(fresh)
			want, err := fresh.Calibrate(ctx, heldOut, to.alpha)
			if err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(want.HeldOut(), got.HeldOut()); d != "" || got.Alpha() != to.alpha || b.K() != to.k || b.Calibration() != got {
				t.Errorf("%s with k = %d: %s", kind, to.k, d)
			}
			if r := b.Report(); kind == HNSW && r.K != to.k {
				t.Errorf("its index was judged with k = %d, not %d", r.K, to.k)
			}
		}
		before := b.Calibration()
		for _, bad := range []struct {
			k     int
			alpha float64
		}{{0, 0.1}, {61, 0.1}, {1, 0.001}, {2, 0.001}, {1, 2}} {
			if _, err := b.Readjust(ctx, bad.k, bad.alpha); err == nil {
				t.Errorf("%+v is accepted", bad)
			}
			if b.Calibration() != before || b.K() != 1 {
				t.Errorf("%+v has changed the bank", bad)
			}
		}
	}
}

func TestRecalibrate(t *testing.T) {
	ctx := context.Background()
	const dim = 4
	b := newFilled(t, Options{Dim: dim}, gauss(1, 60, dim))
	if _, err := b.Recalibrate(ctx); !errors.Is(err, ErrNoHeldOut) {
		t.Error(err)
	}
	heldOut := gauss(2, 40, dim)
	before, err := b.Calibrate(ctx, heldOut, 0.1)
	if err != nil {
		t.Fatal(err)
	}
	clear(heldOut) // the bank has its own copy
	path := filepath.Join(t.TempDir(), "bank.nmb")
	if err := b.WriteFile(path); err != nil {
		t.Fatal(err)
	}
	if b, err = ReadFile(path, ReadOptions{}); err != nil {
		t.Fatal(err)
	}
	for i := range uint64(30) {
		if err := b.Remove(i); err != nil {
			t.Fatal(err)
		}
	}
	after, err := b.Recalibrate(ctx)
	if err != nil {
		t.Fatal(err)
	}
	fresh := newFilled(t, Options{Dim: dim}, gauss(1, 60, dim)[30*dim:])
	want, err := fresh.Calibrate(ctx, gauss(2, 40, dim), 0.1)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(want.HeldOut(), after.HeldOut()); d != "" {
		t.Error(d)
	}
	if after.Threshold() <= before.Threshold() || b.Calibration() != after {
		t.Errorf("threshold %v before, %v after removing half", before.Threshold(), after.Threshold())
	}
}
