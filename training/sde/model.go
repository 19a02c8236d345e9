package sde

import (
	"context"
	"fmt"

	"github.com/nearmiss/nearmiss/inference/ort"
)

// NetworkModel is a trained score network as a [Model]. It is not safe for
// concurrent use.
type NetworkModel struct {
	sde     SDE
	session *ort.Session
	in      []*ort.Tensor
	out     []*ort.Tensor
	batch   int
	dim     int
}

// newNetworkModel loads a network with its weights for batches of up to batch
// images. The caller closes it.
func newNetworkModel(s SDE, n Network, params []Param, batch int, o ort.Options) (_ *NetworkModel, err error) {
	g, err := n.Graph(batch, params)
	if err != nil {
		return nil, err
	}
	raw, err := g.Bytes()
	if err != nil {
		return nil, fmt.Errorf("encode score network: %w", err)
	}
	m := &NetworkModel{sde: s, batch: batch, dim: n.Channels * n.Size * n.Size}
	defer func() {
		if err != nil {
			m.Close()
		}
	}()
	if m.session, err = ort.OpenBytes(raw, o); err != nil {
		return nil, err
	}
	for _, shape := range [][]int{{batch, n.Channels, n.Size, n.Size}, {batch}} {
		x, err := ort.Zeros(ort.Float, shape...)
		if err != nil {
			return nil, err
		}
		m.in = append(m.in, x)
	}
	y, err := ort.Zeros(ort.Float, batch, n.Channels, n.Size, n.Size)
	if err != nil {
		return nil, err
	}
	m.out = []*ort.Tensor{y}
	return m, nil
}

// Score runs the network on n images, in as many calls as its batch needs.
func (m *NetworkModel) Score(ctx context.Context, dst, x []float32, n int, t float64) error {
	c := conditionAt(m.sde, t)
	in, label, out := m.in[0].Float32s(), m.in[1].Float32s(), m.out[0].Float32s()
	for i := range label {
		label[i] = float32(c.label)
	}
	for lo := 0; lo < n; lo += m.batch {
		part := x[lo*m.dim : min(lo+m.batch, n)*m.dim]
		for i, v := range part {
			in[i] = float32(c.in*float64(v) + c.shift)
		}
		if err := m.session.RunInto(ctx, m.in, m.out); err != nil {
			return err
		}
		part, to := x[lo*m.dim:], dst[lo*m.dim:min(lo+m.batch, n)*m.dim]
		for i := range to {
			to[i] = float32(c.score*float64(out[i]) + c.linear*float64(part[i]))
		}
	}
	return nil
}

// Close releases the network.
func (m *NetworkModel) Close() {
	ort.CloseAll(m.in...)
	ort.CloseAll(m.out...)
	m.in, m.out = nil, nil
	if m.session != nil {
		_ = m.session.Close()
		m.session = nil
	}
}
