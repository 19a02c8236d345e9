package bank

import (
	"errors"
	"math"
	"math/rand/v2"
	"slices"
	"testing"
)

func TestWhiteningMakesTheCovarianceUnit(t *testing.T) {
	const n, dim = 3000, 6
	r := rand.New(rand.NewPCG(1, 2))
	data := make([]float32, n*dim)
	for i := range n {
		common := r.NormFloat64()
		for j := range dim {
			data[i*dim+j] = float32(5 + float64(j+1)*r.NormFloat64() + 3*common)
		}
	}
	w, err := LearnWhitening(data, dim, 1e-9)
	if err != nil {
		t.Fatal(err)
	}
	var white []float32
	for i := range n {
		y, err := w.apply(data[i*dim : (i+1)*dim])
		if err != nil {
			t.Fatal(err)
		}
		white = append(white, y...)
	}
	mean, cov := covariance(white, dim)
	for i := range dim {
		if math.Abs(mean[i]) > 1e-4 {
			t.Errorf("mean of dimension %d is %v", i, mean[i])
		}
		for j := range i + 1 {
			if math.Abs(cov[i*dim+j]-indicator(i == j)) > 1e-4 {
				t.Errorf("covariance of %d and %d is %v", i, j, cov[i*dim+j])
			}
		}
	}
}

func indicator(b bool) float64 {
	if b {
		return 1
	}
	return 0
}

// With full shrinkage nothing is left of the covariance but its scale.
func TestFullShrinkageOnlyScales(t *testing.T) {
	data := []float32{0, 0, 2, 0, 0, 4, 2, 4} // variances 4/3 and 16/3
	w, err := LearnWhitening(data, 2, 1)
	if err != nil {
		t.Fatal(err)
	}
	scale := 1 / math.Sqrt((4./3+16./3)/2)
	for i, want := range []float64{scale, 0, 0, scale} {
		if math.Abs(float64(w.Matrix[i])-want) > 1e-6 {
			t.Errorf("matrix[%d] is %v, want %v", i, w.Matrix[i], want)
		}
	}
}

// Squared distances after whitening are Mahalanobis distances, computed here by
// solving with the shrunk covariance.
func TestWhitenedDistancesAreMahalanobis(t *testing.T) {
	const n, dim, shrinkage = 50, 3, 0.1
	data := gauss(3, n, dim)
	for i := range n {
		data[i*dim+1] += 2 * data[i*dim]
	}
	w, err := LearnWhitening(data, dim, shrinkage)
	if err != nil {
		t.Fatal(err)
	}
	_, cov := covariance(data, dim)
	trace := 0.0
	for i := range dim {
		trace += cov[i*dim+i]
	}
	a := [dim][dim + 1]float64{}
	x, y := data[:dim], data[dim:2*dim]
	for i := range dim {
		for j := range dim {
			a[i][j] = (1 - shrinkage) * cov[max(i, j)*dim+min(i, j)]
		}
		a[i][i] += shrinkage * trace / dim
		a[i][dim] = float64(x[i]) - float64(y[i])
	}
	for i := range dim { // Gauss–Jordan
		for k := range dim {
			if k != i {
				f := a[k][i] / a[i][i]
				for j := range dim + 1 {
					a[k][j] -= f * a[i][j]
				}
			}
		}
	}
	want := 0.0
	for i := range dim {
		want += (float64(x[i]) - float64(y[i])) * a[i][dim] / a[i][i]
	}
	b := newFilled(t, Options{Dim: dim, K: 1, Transform: w}, x)
	got, err := scoreOne(b, y)
	if err != nil {
		t.Fatal(err)
	}
	if math.Abs(got.Score-want) > 1e-5*want {
		t.Errorf("score %v, want %v", got.Score, want)
	}
}

func TestWhiteningRefusesNonsense(t *testing.T) {
	same := []float32{1, 2, 1, 2, 1, 2}
	for name, f := range map[string]func() (*Transform, error){
		"no variance":       func() (*Transform, error) { return LearnWhitening(same, 2, 0.1) },
		"one embedding":     func() (*Transform, error) { return LearnWhitening(same[:2], 2, 0.1) },
		"no shrinkage":      func() (*Transform, error) { return LearnWhitening(gauss(1, 5, 2), 2, 0) },
		"half an embedding": func() (*Transform, error) { return LearnWhitening(gauss(1, 5, 1), 2, 0.1) },
		"NaN": func() (*Transform, error) {
			return LearnWhitening([]float32{1, 2, float32(math.NaN()), 4}, 2, 0.1)
		},
	} {
		if _, err := f(); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	if _, err := New(Options{Dim: 3, Transform: &Transform{Mean: make([]float32, 2), Matrix: make([]float32, 4)}}); !errors.Is(err, ErrDim) {
		t.Errorf("a transform of another dimension: %v", err)
	}
}

// More rows than are looked at together.
func TestTheInverseOfAFactorIsOne(t *testing.T) {
	const n = 2*choleskyBlock + 3
	r := rand.New(rand.NewPCG(5, 6))
	a := make([]float64, n*n)
	for range 3 {
		x := make([]float64, n)
		for i := range x {
			x[i] = r.NormFloat64()
		}
		for i := range n {
			for j := range i + 1 {
				a[i*n+j] += x[i] * x[j]
			}
		}
	}
	for i := range n {
		a[i*n+i] += 0.5
	}
	was := slices.Clone(a)
	inverse, err := inverseCholesky(a, n)
	if err != nil {
		t.Fatal(err)
	}
	for i := range n {
		for j := range i + 1 {
			one, square := 0.0, 0.0
			for l := j; l <= i; l++ {
				one += inverse[i*n+l] * a[l*n+j]
			}
			for l := range j + 1 {
				square += a[i*n+l] * a[j*n+l]
			}
			if math.Abs(one-indicator(i == j)) > 1e-9 || math.Abs(square-was[i*n+j]) > 1e-9 {
				t.Fatalf("at %d, %d: L⁻¹·L is %v, L·Lᵀ is %v, want %v", i, j, one, square, was[i*n+j])
			}
		}
		if above := slices.IndexFunc(inverse[i*n+i+1:(i+1)*n], func(v float64) bool { return v != 0 }); above >= 0 {
			t.Errorf("row %d has something above the diagonal", i)
		}
	}
	for i := range n {
		was[i*n+i] -= 0.6 // of rank 3, less a little
	}
	if _, err := inverseCholesky(was, n); err == nil {
		t.Error("what is not positive definite has a factor")
	}
}
