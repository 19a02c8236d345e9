package sde

import (
	"context"
	"math"

	"gonum.org/v1/gonum/mat"
)

// gaussian is the exact score of data N(mean, cov) under an SDE.
type gaussian struct {
	sde  SDE
	mean []float64
	cov  *mat.SymDense
}

func (g gaussian) Score(_ context.Context, dst, x []float32, n int, t float64) error {
	a, std := g.sde.Marginal(t)
	d := len(g.mean)
	c := mat.NewSymDense(d, nil)
	c.ScaleSym(a*a, g.cov)
	for i := range d {
		c.SetSym(i, i, c.At(i, i)+std*std)
	}
	var inv mat.Dense
	if err := inv.Inverse(c); err != nil {
		return err
	}
	for k := range n {
		for i := range d {
			v := 0.0
			for j := range d {
				v -= inv.At(i, j) * (float64(x[k*d+j]) - a*g.mean[j])
			}
			dst[k*d+i] = float32(v)
		}
	}
	return nil
}

// mixture is the exact score of isotropic normal modes of one width.
type mixture struct {
	sde     SDE
	weights []float64
	means   [][]float64
	width   float64
}

func (m mixture) Score(_ context.Context, dst, x []float32, n int, t float64) error {
	a, std := m.sde.Marginal(t)
	v := a*a*m.width*m.width + std*std
	d := len(m.means[0])
	logp := make([]float64, len(m.means))
	for k := range n {
		row := x[k*d : (k+1)*d]
		top := math.Inf(-1)
		for c, mu := range m.means {
			q := 0.0
			for j := range d {
				e := float64(row[j]) - a*mu[j]
				q += e * e
			}
			logp[c] = math.Log(m.weights[c]) - q/(2*v)
			top = max(top, logp[c])
		}
		sum := 0.0
		for c := range logp {
			logp[c] = math.Exp(logp[c] - top)
			sum += logp[c]
		}
		for j := range d {
			s := 0.0
			for c, mu := range m.means {
				s -= logp[c] / sum * (float64(row[j]) - a*mu[j]) / v
			}
			dst[k*d+j] = float32(s)
		}
	}
	return nil
}

// moments are the sample mean and covariance of n rows of d values.
func moments(x []float32, d int) (mean []float64, cov *mat.SymDense) {
	n := len(x) / d
	mean = make([]float64, d)
	for i, v := range x {
		mean[i%d] += float64(v) / float64(n)
	}
	cov = mat.NewSymDense(d, nil)
	for i := range d {
		for j := i; j < d; j++ {
			s := 0.0
			for k := range n {
				s += (float64(x[k*d+i]) - mean[i]) * (float64(x[k*d+j]) - mean[j])
			}
			cov.SetSym(i, j, s/float64(n-1))
		}
	}
	return mean, cov
}
