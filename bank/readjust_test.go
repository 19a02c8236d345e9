package bank

import (
	"context"
	"errors"
	"math"
	"path/filepath"
	"sync/atomic"
	"testing"
)

// shortCtx ends after so many looks at it.
type shortCtx struct {
	context.Context
	left atomic.Int64
}

func (c *shortCtx) Err() error {
	if c.left.Add(-1) < 0 {
		return context.Canceled
	}
	return nil
}
func (c *shortCtx) Done() <-chan struct{} { return nil }

// TestReadjustThatFailsChangesNothing ends the context after every step that
// there is.
func TestReadjustThatFailsChangesNothing(t *testing.T) {
	failed := 0
	for n := int64(0); ; n += 5 {
		b := built(t, HNSW)
		if _, err := b.Calibrate(t.Context(), gauss(3, 40, 8), 0.1); err != nil {
			t.Fatal(err)
		}
		b.Rest(7, 0)
		before, report, width := b.Calibration(), b.Report(), *searchWidth(b.Index())
		c := &shortCtx{Context: t.Context()}
		c.left.Store(n)
		got, err := b.Readjust(c, 5, 0.2)
		if err == nil {
			if b.K() != 5 || got.Alpha() != 0.2 || got.Worth() != 7 {
				t.Fatalf("k %d, rate %g, worth %g", b.K(), got.Alpha(), got.Worth())
			}
			break
		}
		failed++
		if !errors.Is(err, context.Canceled) {
			t.Fatal(err)
		}
		if b.K() != 2 || b.Calibration() != before || b.Report() != report || b.Index().Kind() != HNSW || *searchWidth(b.Index()) != width {
			t.Fatalf("after an error at look %d: k %d, report %+v, search width %d", n, b.K(), b.Report(), *searchWidth(b.Index()))
		}
	}
	if failed < 2 {
		t.Fatalf("it failed %d times: this shows nothing", failed)
	}
}

func built(t *testing.T, kind Kind) *Bank {
	t.Helper()
	b, err := New(Options{Dim: 8, K: 2, Kind: kind, Cutoff: 1})
	if err != nil {
		t.Fatal(err)
	}
	ids := make([]uint64, 500)
	for i := range ids {
		ids[i] = uint64(i)
	}
	if err := b.AddBatch(ids, gauss(1, 500, 8)); err != nil {
		t.Fatal(err)
	}
	if r, err := b.Build(t.Context(), gauss(2, 40, 8)); err != nil || r.Kind != kind {
		t.Fatalf("%+v, %v", r, err)
	}
	return b
}

func TestWorthLessHeldOutScoresPromiseLess(t *testing.T) {
	b := built(t, Exact)
	c, err := b.Calibrate(t.Context(), gauss(3, 99, 8), 0.05)
	if err != nil {
		t.Fatal(err)
	}
	if c.Promise() != 0.05 || c.Worth() != 99 {
		t.Errorf("each counts: promise %g, worth %g", c.Promise(), c.Worth())
	}
	for _, v := range []struct{ worth, counts, promise float64 }{
		{4, 4, 0.2}, {19, 19, 0.05}, {30.5, 30.5, 0.05}, {0.2, 1, 0.5}, {99, 99, 0.05}, {1000, 99, 0.05}, {math.NaN(), 99, 0.05},
	} {
		r := c.Resting(v.worth, 0)
		if r.Worth() != v.counts || math.Abs(r.Promise()-v.promise) > 1e-12 || r.Threshold() != c.Threshold() {
			t.Errorf("worth %g: counts as %g, promises %g", v.worth, r.Worth(), r.Promise())
		}
	}
	b.Rest(4, 6)
	path := filepath.Join(t.TempDir(), "bank")
	if err := b.WriteFile(path); err != nil {
		t.Fatal(err)
	}
	read, err := ReadFile(path, ReadOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for _, change := range []func() (*Calibration, error){
		func() (*Calibration, error) { return read.Calibration(), nil },
		func() (*Calibration, error) { return read.Recalibrate(t.Context()) },
		func() (*Calibration, error) { return read.Readjust(t.Context(), 3, 0.1) },
		func() (*Calibration, error) { return read.Readjust(t.Context(), 3, 0.02) },
	} {
		c, err := change()
		if err != nil {
			t.Fatal(err)
		}
		if c.Worth() != 4 || c.Alike() != 6 || c.Promise() != 0.2 {
			t.Errorf("worth %g, promise %g", c.Worth(), c.Promise())
		}
	}
}
