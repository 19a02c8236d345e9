package bank

import (
	"errors"
	"math"
	"math/rand/v2"
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
	got, err := b.Score(y)
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
