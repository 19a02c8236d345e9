package bank

import (
	"context"
	"errors"
	"fmt"
	"math"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/viterin/vek/vek32"
	"pgregory.net/rapid"

	"github.com/nearmiss/nearmiss/internal/cputime"
)

// plainCoreset is the algorithm without any pruning.
func plainCoreset(vectors []float32, dim, want, first int) []int {
	n := len(vectors) / dim
	near := make([]float32, n)
	for i := range near {
		near[i] = math.MaxFloat32
	}
	chosen := []int{first}
	for {
		c := chosen[len(chosen)-1]
		far := 0
		for i := range near {
			near[i] = min(near[i], vek32.Distance(vectors[c*dim:(c+1)*dim], vectors[i*dim:(i+1)*dim]))
			if near[i] > near[far] {
				far = i
			}
		}
		if len(chosen) == want || near[far] == 0 {
			return chosen
		}
		chosen = append(chosen, far)
	}
}

func TestCoresetIsGreedy(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		dim := rapid.IntRange(1, 4).Draw(t, "dim")
		n := rapid.IntRange(1, 60).Draw(t, "n")
		vectors := rapid.SliceOfN(rapid.Map(rapid.IntRange(-5, 5), func(i int) float32 { return float32(i) }), n*dim, n*dim).Draw(t, "vectors")
		want := rapid.IntRange(1, n+2).Draw(t, "want")
		got, r, err := Coreset(context.Background(), vectors, dim, want, rapid.Uint64().Draw(t, "seed"))
		if err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(plainCoreset(vectors, dim, want, got[0]), got); d != "" {
			t.Fatal(d)
		}
		radius := 0.0
		for i := range n {
			nearest := math.Inf(1)
			for _, c := range got {
				nearest = min(nearest, float64(vek32.Distance(vectors[c*dim:(c+1)*dim], vectors[i*dim:(i+1)*dim])))
			}
			radius = max(radius, nearest)
		}
		if r.From != n || r.To != len(got) || math.Abs(r.Radius-radius) > 1e-5 {
			t.Fatalf("%+v, radius is %v", r, radius)
		}
	})
}

func TestCoresetPrunes(t *testing.T) {
	const n, dim, want = 5000, 96, 300
	vectors := clustered(1, n, dim)
	got, r, err := Coreset(context.Background(), vectors, dim, want, 1)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(plainCoreset(vectors, dim, want, got[0]), got); d != "" {
		t.Error(d)
	}
	if r.Compared > n*want/2 || r.Distances > r.Compared/2 {
		t.Errorf("of %d pairs %d were compared, %d in full", n*want, r.Compared, r.Distances)
	}
	// Where no direction counts for more than others sketches dismiss little.
	white := whitened(t, clustered(1, n, 80), 80)
	if got, r, err = Coreset(context.Background(), white, 80, want, 1); err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(plainCoreset(white, 80, want, got[0]), got); d != "" || r.Distances < r.Compared/4 {
		t.Errorf("whitened, %d of %d in full: %s", r.Distances, r.Compared, d)
	}
	if _, _, err := Coreset(context.Background(), []float32{float32(math.NaN())}, 1, 1, 0); !errors.Is(err, ErrNotFinite) {
		t.Error(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, _, err := Coreset(ctx, vectors, dim, want, 1); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

func whitened(t testing.TB, vectors []float32, dim int) []float32 {
	t.Helper()
	w, err := LearnWhitening(vectors, dim, 0.1)
	if err == nil {
		vectors, err = w.ApplyAll(vectors)
	}
	if err != nil {
		t.Fatal(err)
	}
	return vectors
}

// BenchmarkCoreset measures a coreset by processor time, beside the plain algorithm.
func BenchmarkCoreset(b *testing.B) {
	for _, c := range []struct {
		n, dim, want int
		white        bool
	}{{37_632, 80, 3_000, false}, {119_364, 192, 3_000, false}, {37_632, 80, 3_000, true}} {
		vectors := clustered(1, c.n, c.dim)
		if c.white {
			vectors = whitened(b, vectors, c.dim)
		}
		for _, by := range []string{"turns", "plain"} {
			b.Run(fmt.Sprintf("%s/%d of %dx%d, white %v", by, c.want, c.n, c.dim, c.white), func(b *testing.B) {
				cpu := cputime.Seconds()
				for range b.N {
					if by == "plain" {
						plainCoreset(vectors, c.dim, c.want, 0)
					} else if _, _, err := Coreset(b.Context(), vectors, c.dim, c.want, 1); err != nil {
						b.Fatal(err)
					}
				}
				b.ReportMetric((cputime.Seconds()-cpu)/float64(b.N), "cpu-s/op")
			})
		}
	}
}
