package frechet

import (
	"encoding/json"
	"errors"
	"math"
	"math/rand/v2"
	"os"
	"slices"
	"testing"

	"pgregory.net/rapid"
)

// lcgFeatures repeats testdata/golden.py's generator.
func lcgFeatures(n, d int, seed uint32, shift, decay float64) [][]float32 {
	s, rows := seed, make([][]float32, n)
	for i := range rows {
		row, last := make([]float32, d), 0.0
		for j := range row {
			u := 0.0
			for range 4 {
				s = s*1664525 + 1013904223
				u += float64(s) / (1 << 32)
			}
			last = (u-2)*math.Pow(decay, float64(j)) + 0.5*last + shift
			row[j] = float32(last)
		}
		rows[i] = row
	}
	return rows
}

func distance(t testing.TB, a, b [][]float32) float64 {
	t.Helper()
	fa, err := Fit(a)
	if err != nil {
		t.Fatal(err)
	}
	fb, err := Fit(b)
	if err != nil {
		t.Fatal(err)
	}
	d, err := Distance(fa, fb)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func TestDistancesEqualScipys(t *testing.T) {
	raw, err := os.ReadFile("testdata/golden.json")
	if err != nil {
		t.Fatal(err)
	}
	var cases []struct {
		Name         string
		N, M, D      int
		Shift, Decay float64
		FD           float64
		FDSqrtm      float64 `json:"fd_sqrtm"`
		KID, CMMD    float64
	}
	if err := json.Unmarshal(raw, &cases); err != nil {
		t.Fatal(err)
	}
	for _, c := range cases {
		t.Run(c.Name, func(t *testing.T) {
			a, b := lcgFeatures(c.N, c.D, 1, 0, c.Decay), lcgFeatures(c.M, c.D, 2, c.Shift, c.Decay*0.99)
			near := func(what string, got, want, tolerance float64) {
				t.Helper()
				if math.Abs(got-want) > tolerance*math.Abs(want) {
					t.Errorf("%s: got %.10g, want %.10g", what, got, want)
				}
			}
			fd := distance(t, a, b)
			near("fréchet distance", fd, c.FD, 1e-6)
			near("fréchet distance by sqrtm", fd, c.FDSqrtm, 1e-4)
			kid, err := KID(a, b)
			if err != nil {
				t.Fatal(err)
			}
			near("kid", kid, c.KID, 1e-6)
			cmmd, err := CMMD(a, b)
			if err != nil {
				t.Fatal(err)
			}
			near("cmmd", cmmd, c.CMMD, 1e-6)
		})
	}
}

func randomFeatures(rng *rand.Rand, n, d int, mean, std float64) [][]float32 {
	x := make([][]float32, n)
	for i := range x {
		x[i] = make([]float32, d)
		for j := range x[i] {
			x[i][j] = float32(mean + std*rng.NormFloat64())
		}
	}
	return x
}

func TestDistanceIsAMetricOnSets(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		rng := rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "seed"), 1))
		d := rapid.IntRange(1, 20).Draw(t, "features")
		a := randomFeatures(rng, rapid.IntRange(2, 60).Draw(t, "n"), d, 0, 1)
		b := randomFeatures(rng, rapid.IntRange(2, 60).Draw(t, "m"), d, 0.5, 2)
		fa, _ := Fit(a)
		fb, _ := Fit(b)
		ab, err1 := Distance(fa, fb)
		ba, err2 := Distance(fb, fa)
		aa, err3 := Distance(fa, fa)
		if err := errors.Join(err1, err2, err3); err != nil {
			t.Fatal(err)
		}
		scale := fa.trace + fb.trace
		if math.Abs(ab-ba) > 1e-9*scale {
			t.Fatalf("not symmetric: %g, %g", ab, ba)
		}
		if math.Abs(aa) > 1e-9*scale {
			t.Fatalf("a set is %g from itself", aa)
		}
		if ab < -1e-9*scale {
			t.Fatalf("negative distance %g", ab)
		}
	})
}

func TestKernelDistancesOfEqualDistributionsAreNearZero(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	a, b, far := randomFeatures(rng, 500, 10, 0, 1), randomFeatures(rng, 500, 10, 0, 1), randomFeatures(rng, 500, 10, 1, 1)
	near, err := KID(a, b)
	if err != nil {
		t.Fatal(err)
	}
	apart, err := KID(a, far)
	if err != nil {
		t.Fatal(err)
	}
	if math.Abs(near) > 0.03 || apart < 1 {
		t.Errorf("kid: %g for equal distributions, %g for shifted ones; want about 0 and above 1", near, apart)
	}
}

func TestFeaturesThatAreRefused(t *testing.T) {
	good := [][]float32{{1, 2}, {3, 4}, {5, 7}, {1, 0}}
	for name, bad := range map[string][][]float32{
		"none":         nil,
		"empty rows":   {{}, {}},
		"one row":      {{1, 2}},
		"ragged rows":  {{1, 2}, {3}},
		"not a number": {{1, 2}, {3, float32(math.NaN())}},
		"infinite":     {{1, 2}, {float32(math.Inf(1)), 3}},
	} {
		if _, err := Fit(bad); !errors.Is(err, ErrFeatures) {
			t.Errorf("Fit of %s: got %v", name, err)
		}
		if _, err := KID(good, bad); !errors.Is(err, ErrFeatures) {
			t.Errorf("KID with %s: got %v", name, err)
		}
		if _, err := CMMD(bad, good); !errors.Is(err, ErrFeatures) {
			t.Errorf("CMMD with %s: got %v", name, err)
		}
		if _, err := NewReference(bad, 0, 1); err == nil {
			t.Errorf("NewReference of %s: accepted", name)
		}
		if _, err := NewCopies(0, bad); err == nil {
			t.Errorf("NewCopies of %s: accepted", name)
		}
	}
	a, _ := Fit(good)
	b, _ := Fit([][]float32{{1}, {2}})
	if _, err := Distance(a, b); !errors.Is(err, ErrFeatures) {
		t.Errorf("distance of 2 to 1 features: got %v", err)
	}
}

func TestTheRatioRunsFromTheNormalsToNoise(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 4))
	normals := randomFeatures(rng, 300, 24, 0, 1)
	r, err := NewReference(normals, 0, 7)
	if err != nil {
		t.Fatal(err)
	}
	if r.Size() != 150 {
		t.Fatalf("size: got %d, want half of the normals", r.Size())
	}
	noise, err := r.Measure(randomFeatures(rng, 150, 24, 3, 3))
	if err != nil {
		t.Fatal(err)
	}
	if noise.Ratio != 0 {
		t.Errorf("a ratio before the noise is known: %g", noise.Ratio)
	}
	if err := r.SetNoise(noise.FD); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ mean, std, lo, hi float64 }{
		{0, 1, -0.01, 0.01}, {0.8, 1.2, 0.04, 0.1}, {1.5, 2, 0.2, 0.35}, {3, 3, 0.95, 1.05},
	} {
		m, err := r.Measure(randomFeatures(rng, 200, 24, c.mean, c.std))
		if err != nil {
			t.Fatal(err)
		}
		if m.Ratio < c.lo || m.Ratio > c.hi {
			t.Errorf("fakes of mean %g, width %g: r = %.4f, want between %g and %g", c.mean, c.std, m.Ratio, c.lo, c.hi)
		}
	}
	if _, err := r.Measure(normals[:149]); err == nil {
		t.Error("too few fakes were measured")
	}
	if err := r.SetNoise(r.Floor() / 2); err == nil {
		t.Error("noise nearer than the normals themselves was accepted")
	}
}

func TestCopiesAreFound(t *testing.T) {
	rng := rand.New(rand.NewPCG(5, 6))
	normals := randomFeatures(rng, 80, 16, 0, 1)
	mirrored := randomFeatures(rng, 80, 16, 0, 1)
	c, err := NewCopies(0, normals, mirrored)
	if err != nil {
		t.Fatal(err)
	}
	fresh, err := c.Compare(randomFeatures(rng, 200, 16, 0, 1))
	if err != nil {
		t.Fatal(err)
	}
	if fresh.Share > 0.02 || fresh.MedianRatio < 0.85 || fresh.MedianRatio > 1.15 {
		t.Errorf("fresh images: %.2f copies, median ratio %.2f; want none and about 1", fresh.Share, fresh.MedianRatio)
	}
	fakes := randomFeatures(rng, 10, 16, 0, 1)
	for j := range 16 {
		fakes[3][j] = normals[17][j] + 0.01
		fakes[8][j] = mirrored[2][j] - 0.01
	}
	r, err := c.Compare(fakes)
	if err != nil {
		t.Fatal(err)
	}
	if len(r.Copied) != 2 || r.Copied[0] != 3 || r.Copied[1] != 8 {
		t.Errorf("copied fakes: got %v, want 3 and 8", r.Copied)
	}
	all, err := c.Compare(normals)
	if err != nil {
		t.Fatal(err)
	}
	if all.Share != 1 || all.MedianRatio > 1e-5 {
		t.Errorf("the normals themselves: %.2f copies, median ratio %g", all.Share, all.MedianRatio)
	}
	if _, err := NewCopies(0, normals, mirrored[:3]); err == nil {
		t.Error("variants of some normals only were accepted")
	}
}

// What the distance costs at the size that the design names: under a second.
func BenchmarkDistance1000x768(b *testing.B) {
	rng := rand.New(rand.NewPCG(1, 1))
	x, y := randomFeatures(rng, 1000, 768, 0, 1), randomFeatures(rng, 1000, 768, 0.1, 1.1)
	for b.Loop() {
		distance(b, x, y)
	}
}

func BenchmarkDistance1000x2048(b *testing.B) {
	rng := rand.New(rand.NewPCG(1, 1))
	x, y := randomFeatures(rng, 1000, 2048, 0, 1), randomFeatures(rng, 1000, 2048, 0.1, 1.1)
	for b.Loop() {
		distance(b, x, y)
	}
}

// TestCopiesOfDuplicatedNormalsAreFound: every normal is there twice, byte for
// byte or nearly, or three times.
func TestCopiesOfDuplicatedNormalsAreFound(t *testing.T) {
	rng := rand.New(rand.NewPCG(5, 7))
	plain := randomFeatures(rng, 60, 16, 0, 1)
	near := func(v []float32, by float32) []float32 {
		out := slices.Clone(v)
		for j := range out {
			out[j] += by
		}
		return out
	}
	for name, by := range map[string][]float32{"twice": {0}, "nearly twice": {0.004}, "three times": {0, 0.002}} {
		normals := slices.Clone(plain)
		for _, b := range by {
			for _, v := range plain {
				normals = append(normals, near(v, b))
			}
		}
		c, err := NewCopies(0, normals)
		if err != nil {
			t.Fatal(err)
		}
		fakes := randomFeatures(rng, 20, 16, 0, 1)
		fakes[4], fakes[9] = near(plain[7], 0.02), near(plain[3], -0.02)
		r, err := c.Compare(fakes)
		if err != nil {
			t.Fatal(err)
		}
		if !slices.Equal(r.Copied, []int{4, 9}) || r.MedianRatio < 0.8 || r.MedianRatio > 1.2 {
			t.Errorf("%s: copied %v, median ratio %.2f", name, r.Copied, r.MedianRatio)
		}
	}
}
