package bank

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// written puts a bank's bytes into a file and reads them from there.
func written(t *testing.T, content []byte, o ReadOptions) (*Bank, string) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "bank.nmb")
	if err := os.WriteFile(path, content, 0o644); err != nil {
		t.Fatal(err)
	}
	b, err := ReadFile(path, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = b.Close() })
	return b, path
}

func mustScore(t *testing.T, b *Bank, q []float32) Result {
	t.Helper()
	r, err := scoreOne(b, q)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// A bank that is searched in its file answers, and is written, like one in memory,
// whatever becomes of the file, until it is closed.
func TestABankIsSearchedInItsFile(t *testing.T) {
	golden := goldenBank(t)
	for name, b := range map[string]*Bank{
		"graph": golden, "exact": newFilled(t, Options{Dim: 3}, gauss(1, 50, 3)),
	} {
		for _, verified := range []bool{false, true} {
			t.Run(name, func(t *testing.T) {
				content := encoded(t, b)
				back, path := written(t, content, ReadOptions{Verified: verified})
				replacement := filepath.Join(filepath.Dir(path), "new")
				if err := os.WriteFile(replacement, bytes.Repeat([]byte("another"), len(content)), 0o644); err != nil {
					t.Fatal(err)
				}
				for _, spoil := range []func() error{
					func() error { return nil },
					func() error { return os.Rename(replacement, path) },
					func() error { return os.Remove(path) },
				} {
					if err := spoil(); err != nil {
						t.Fatal(err)
					}
					for i := range 20 {
						q := []float32{float32(i), float32(-i), float32(i % 7)}
						if d := cmp.Diff(mustScore(t, b, q), mustScore(t, back, q)); d != "" {
							t.Fatal(d)
						}
					}
					if !bytes.Equal(encoded(t, back), content) {
						t.Error("reading and writing changes the file")
					}
				}
				if r := b.Report(); back.Report().Recall != r.Recall && r.Kind != "" {
					t.Errorf("recall %v, was %v", back.Report().Recall, r.Recall)
				}
				for range 2 {
					if err := back.Close(); err != nil {
						t.Fatal(err)
					}
				}
				_, scoring := scoreOne(back, make([]float32, 3))
				_, all := back.Scores(context.Background(), make([]float32, 3*engineQueries))
				for i, err := range []error{scoring, all, back.Add(1000, make([]float32, 3)), back.Remove(1), back.Encode(&bytes.Buffer{})} {
					if !errors.Is(err, ErrClosed) {
						t.Errorf("call %d of a closed bank: %v", i, err)
					}
				}
			})
		}
	}
}

// The first change takes a bank out of its file, which stays as it is.
func TestABankInAFileCanBeChanged(t *testing.T) {
	content := encoded(t, goldenBank(t))
	want, err := decodeBytes(content)
	if err != nil {
		t.Fatal(err)
	}
	got, path := written(t, content, ReadOptions{Verified: true})
	if err := got.Index().Add(99, []float32{1, 2}); !errors.Is(err, ErrUnsupported) {
		t.Errorf("a file was written to: %v", err)
	}
	for _, b := range []*Bank{want, got} {
		if err := b.AddBatch([]uint64{100, 101}, []float32{1, 2, 3, -4, 5, 6}); err != nil {
			t.Fatal(err)
		}
		if err := b.Add(100, []float32{1, 2, 3}); !errors.Is(err, ErrExists) {
			t.Error(err)
		}
		for _, id := range []uint64{0, 39, 17, 100} {
			if err := b.Remove(id); err != nil {
				t.Fatal(err)
			}
		}
	}
	if !bytes.Equal(encoded(t, got), encoded(t, want)) {
		t.Error("a bank read from a file changes otherwise than one in memory")
	}
	if now, err := os.ReadFile(path); err != nil || !bytes.Equal(now, content) {
		t.Errorf("the file was changed, or: %v", err)
	}
	if err := got.Close(); err != nil {
		t.Fatal(err)
	}
	mustScore(t, got, []float32{1, 2, 3}) // it has left its file
}

// Coder keeps the entries themselves and searches without a lock, so a bank of its
// kind is not searched in its file: it answers after the file is closed, and after a
// change that it refuses.
func TestACoderBankIsInMemory(t *testing.T) {
	o := Options{Dim: 8, Kind: Coder, Graph: GraphOptions{Seed: 1}, Gate: Gate{MinRecall: 1e-6}}
	b := newFilled(t, o, clustered(1, 300, 8))
	if r, err := b.Build(t.Context(), clustered(2, 40, 8)); err != nil || r.Kind != Coder {
		t.Fatal(r, err)
	}
	content, q := encoded(t, b), clustered(3, 1, 8)
	for _, verified := range []bool{false, true} {
		back, _ := written(t, content, ReadOptions{Verified: verified})
		want := mustScore(t, back, q)
		if err := back.Remove(1); !errors.Is(err, ErrUnsupported) {
			t.Error(err)
		}
		if d := cmp.Diff(want, mustScore(t, back, q)); d != "" {
			t.Error(d)
		}
		if err := back.Close(); err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(want, mustScore(t, back, q)); d != "" {
			t.Error(d)
		}
	}

	// A bank in its file leaves it when such an index is built.
	back, _ := written(t, encoded(t, newFilled(t, Options{Dim: 8}, clustered(1, 300, 8))), ReadOptions{Verified: true})
	back.kind, back.gate = o.Kind, b.gate
	if r, err := back.Build(t.Context(), clustered(2, 40, 8)); err != nil || r.Kind != Coder {
		t.Fatal(r, err)
	}
	want := mustScore(t, back, q)
	if err := back.Close(); err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(want, mustScore(t, back, q)); d != "" {
		t.Error(d)
	}
}

// Whoever searches a bank that is closed meanwhile gets answers, then ErrClosed.
func TestClosingWaitsForSearches(t *testing.T) {
	b, _ := written(t, encoded(t, goldenBank(t)), ReadOptions{Verified: true})
	var searchers, begun sync.WaitGroup
	for range 4 {
		begun.Add(1)
		searchers.Go(func() {
			for i := 0; ; i++ {
				_, err := scoreOne(b, []float32{1, float32(i), 3})
				if i == 0 {
					begun.Done()
				}
				if errors.Is(err, ErrClosed) {
					return
				}
				if err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	begun.Wait()
	if err := b.Close(); err != nil {
		t.Error(err)
	}
	searchers.Wait()
}

// Bytes that are said to be verified and are not make wrong answers or errors, no
// worse: each byte of the entries and of the graph. The checksums are made
// to fit, since those of a bank as small as this are compared.
func TestWrongBytesThatAreTrusted(t *testing.T) {
	for name, b := range map[string]*Bank{
		"graph": goldenBank(t), "exact": newFilled(t, Options{Dim: 3}, gauss(1, 12, 3)),
	} {
		good := encoded(t, b)
		for i := sectionOffset(t, good, "ids "); i < len(good); i++ {
			bad := bytes.Clone(good)
			bad[i] ^= 0x7f << (i % 2) // also of a float's exponent: huge, or no number
			use(t, repair(bad))
			if t.Failed() {
				t.Fatalf("%s: byte %d", name, i)
			}
		}
	}
}

// use searches and changes a bank of bytes that nobody has looked at, and fails
// only if an error is none of this package's own.
func use(t *testing.T, p []byte) {
	t.Helper()
	b, err := decode(p, ReadOptions{Verified: true})
	if err != nil {
		return
	}
	q := make([]float32, b.Dim())
	expected := func(err error) {
		t.Helper()
		for _, known := range []error{nil, ErrCorrupt, ErrTooFew, ErrNotFinite, ErrExists, ErrNotFound} {
			if errors.Is(err, known) {
				return
			}
		}
		t.Error(err)
	}
	_, err = scoreOne(b, q)
	expected(err)
	_, err = b.Scores(context.Background(), make([]float32, engineQueries*len(q)))
	expected(err)
	expected(b.Add(1<<60, q))
	if ids := b.IDs(); len(ids) > 0 {
		expected(b.Remove(ids[0]))
	}
}
