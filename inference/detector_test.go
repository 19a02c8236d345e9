package inference

import (
	"context"
	"errors"
	"image/color"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/nearmiss/nearmiss/bank"
	"github.com/nearmiss/nearmiss/inference/imaging"
	"github.com/nearmiss/nearmiss/inference/ort"
	"github.com/nearmiss/nearmiss/inference/release"
)

func writeTestRelease(t *testing.T, model string) (dir string, normal, heldOut [][]byte) {
	t.Helper()
	e := newTestEmbedder(t, model, EmbedOptions{})
	normal, _ = images(t, 60, 10)
	heldOut, _ = images(t, 30, 11)
	b := newTestBank(t, e, normal, heldOut)
	dir = filepath.Join(t.TempDir(), "r")
	_, err := WriteRelease(context.Background(), dir, ReleaseSpec{
		Detector: "halves", Method: "knn", Model: model, Embedder: e, Bank: b,
		Check: heldOut[:3], Training: map[string]any{"seed": 10},
	})
	if err != nil {
		t.Fatal(err)
	}
	return dir, normal, heldOut
}

func TestDetectorScores(t *testing.T) {
	ctx := context.Background()
	model := writeModel(t, 0, 1, false)
	dir, normal, _ := writeTestRelease(t, model)
	for name, o := range map[string]Options{"with the batch engine": {}, "with loops": {NoBatchEngine: true}} {
		t.Run(name, func(t *testing.T) {
			d, err := Open(ctx, dir, o)
			if err != nil {
				t.Fatal(err)
			}
			defer d.Close()
			files, want := images(t, 40, 12)
			files = append(files, []byte("no image"))
			strange, far := halves(t, color.RGBA{0, 255, 0, 255}, color.RGBA{255, 0, 255, 255})
			files, want = append(files, strange), append(want, nil, far)
			got, err := d.Score(ctx, files)
			if err != nil {
				t.Fatal(err)
			}
			var rows [][]float32
			for i := range normal {
				e, err := d.Embedder().Embed(ctx, normal[i:i+1])
				if err != nil {
					t.Fatal(err)
				}
				rows = append(rows, e[0].Vector)
			}
			for i, g := range got {
				if want[i] == nil {
					if imaging.Rejection(g.Err) == nil || !g.Anomalous {
						t.Errorf("image %d: %+v", i, g)
					}
					continue
				}
				if g.Err != nil {
					t.Fatal(g.Err)
				}
				if s := plainScore(rows, want[i], 2); math.Abs(g.Score-s) > 1e-4*math.Max(s, 1e-3) {
					t.Errorf("image %d: score %g, want %g", i, g.Score, s)
				}
				if g.Anomalous != (g.Score > g.Threshold) || g.Anomalous != (g.PValue <= 0.1) || g.K != 2 || len(g.Nearest) != 2 {
					t.Errorf("image %d: %+v", i, g)
				}
			}
			if !got[len(got)-1].Anomalous {
				t.Errorf("the strange image is normal: %+v", got[len(got)-1])
			}
			info := d.Info()
			if info.Detector != "halves" || info.Release != d.Release().Digest || len(info.Model) != 64 || info.Count != 60 || info.HeldOut != 30 {
				t.Errorf("%+v", info)
			}
		})
	}
}

// plainScore is the sum of the k smallest squared distances.
func plainScore(rows [][]float32, q []float32, k int) float64 {
	var all []float64
	for _, r := range rows {
		var d float64
		for i := range r {
			d += float64(r[i]-q[i]) * float64(r[i]-q[i])
		}
		all = append(all, d)
	}
	slices.Sort(all)
	var s float64
	for _, d := range all[:k] {
		s += d
	}
	return s
}

func TestOpenRefuses(t *testing.T) {
	ctx := context.Background()
	model := writeModel(t, 0, 1, false)
	dir, _, heldOut := writeTestRelease(t, model)
	good, err := release.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	// rebuild makes a release of the same files, changed, with true digests.
	rebuild := func(t *testing.T, change func(m *release.Manifest, files map[string][]byte)) string {
		files := map[string][]byte{}
		for name := range good.Manifest.Files {
			b, err := os.ReadFile(good.Path(name))
			if err != nil {
				t.Fatal(err)
			}
			files[name] = b
		}
		m := good.Manifest
		m.Check = slices.Clone(m.Check)
		change(&m, files)
		dir := filepath.Join(t.TempDir(), "changed")
		b, err := release.Create(dir)
		if err != nil {
			t.Fatal(err)
		}
		for name, content := range files {
			if err := b.AddBytes(name, content); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := b.Commit(ctx, m); err != nil {
			t.Fatal(err)
		}
		return dir
	}
	read := func(path string) []byte {
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	for name, c := range map[string]struct {
		change func(m *release.Manifest, files map[string][]byte)
		want   error
	}{
		"nothing changed": {func(*release.Manifest, map[string][]byte) {}, nil},
		"another model of the same size": {func(_ *release.Manifest, files map[string][]byte) {
			files[release.BackboneName] = read(writeModel(t, 0, 1.5, false))
		}, ErrMismatch},
		"a model that gives NaN on a check image": {func(m *release.Manifest, files map[string][]byte) {
			files[release.BackboneName] = read(writeModel(t, 0, 1, true))
			files[m.Check[0].File], _ = halves(t, color.RGBA{A: 255}, color.RGBA{A: 255})
		}, ErrNotFinite},
		"a score that was never reached": {func(m *release.Manifest, _ map[string][]byte) {
			m.Check[1].Score *= 1.01
		}, ErrMismatch},
		"another number of dimensions": {func(m *release.Manifest, _ map[string][]byte) { m.Model.Dim = 7 }, ErrMismatch},
		"another number of entries":    {func(m *release.Manifest, _ map[string][]byte) { m.Bank.Count++ }, ErrMismatch},
		"a cut bank": {func(_ *release.Manifest, files map[string][]byte) {
			files[release.BankName] = files[release.BankName][:len(files[release.BankName])-9]
		}, bank.ErrCorrupt},
		"a check image that is none": {func(m *release.Manifest, files map[string][]byte) {
			files[m.Check[0].File] = []byte("text")
		}, ErrMismatch},
	} {
		t.Run(name, func(t *testing.T) {
			d, err := Open(ctx, rebuild(t, c.change), Options{})
			if err == nil {
				defer d.Close()
			}
			if !errors.Is(err, c.want) || (err == nil) != (c.want == nil) {
				t.Errorf("got %v, want %v", err, c.want)
			}
		})
	}
	t.Run("a byte of the bank changed on disk", func(t *testing.T) {
		path := good.Path(release.BankName)
		b := read(path)
		b[len(b)/2] ^= 1
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := Open(ctx, dir, Options{}); !errors.Is(err, release.ErrCorrupt) {
			t.Errorf("got %v", err)
		}
		// Who says that it was verified is believed; a small bank file's checksums are
		// compared all the same.
		if _, err := Open(ctx, dir, Options{Verified: true}); err == nil || errors.Is(err, release.ErrCorrupt) {
			t.Errorf("verified before: got %v", err)
		}
	})
	t.Run("a bank of another model's dimensions", func(t *testing.T) {
		e := newTestEmbedder(t, model, EmbedOptions{})
		b, err := bank.New(bank.Options{Dim: 5})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := newOfParts(e, []Part{{About: release.Part{Name: "whole", Output: release.OutputEmbedding, Dim: e.Dim(), Scored: true}, Bank: b}}, nil, MapNone); !errors.Is(err, ErrMismatch) {
			t.Errorf("got %v", err)
		}
	})
	_ = heldOut
}

func TestBatchEngineAgreesWithLoops(t *testing.T) {
	ctx := context.Background()
	engine, err := NewBatchEngine(ort.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer engine.Close()
	r := rand.New(rand.NewPCG(5, 6))
	for _, c := range []struct{ n, dim, m, k int }{{1, 1, 1, 1}, {7, 3, 2, 7}, {500, 33, 129, 2}, {40, 8, 1, 0}, {300, 16, 64, 10}} {
		rows := make([]float32, c.n*c.dim)
		for i := range rows {
			rows[i] = float32(r.NormFloat64())
		}
		queries := make([]float32, c.m*c.dim)
		for i := range queries {
			queries[i] = float32(r.NormFloat64())
		}
		s, err := engine.Prepare(rows, c.dim)
		if err != nil {
			t.Fatal(err)
		}
		got, distances, err := s.Search(ctx, queries, c.k)
		if err != nil {
			t.Fatal(err)
		}
		if len(got) != c.m*c.k || len(distances) != c.m*c.k {
			t.Fatalf("%+v: %d rows and %d distances", c, len(got), len(distances))
		}
		for i := range c.m {
			type near struct {
				row int
				d   float64
			}
			all := make([]near, c.n)
			for j := range c.n {
				var d float64
				for x := range c.dim {
					e := float64(rows[j*c.dim+x] - queries[i*c.dim+x])
					d += e * e
				}
				all[j] = near{j, d}
			}
			slices.SortFunc(all, func(a, b near) int {
				if a.d < b.d {
					return -1
				}
				return 1
			})
			for j := range c.k {
				if want := all[j]; int(got[i*c.k+j]) != want.row || math.Abs(float64(distances[i*c.k+j])-want.d) > 1e-4*(1+want.d) {
					t.Fatalf("%+v: query %d, neighbour %d: got %d at %g, want %d at %g", c, i, j, got[i*c.k+j], distances[i*c.k+j], want.row, want.d)
				}
			}
		}
		if _, _, err := s.Search(ctx, queries, c.n+1); err == nil {
			t.Error("more neighbours than rows")
		}
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}
	if _, err := engine.Prepare(make([]float32, 5), 2); err == nil {
		t.Error("half a row was accepted")
	}
}
