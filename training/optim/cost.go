package optim

import (
	"context"

	"github.com/nearmiss/nearmiss/inference/onnx"
	"github.com/nearmiss/nearmiss/inference/ort"
)

// Cost is what a step is made of, for those who measure it.
type Cost struct {
	Trained, Frozen int // parameters
	// Forward counts the floating-point operations of the loss with every weight
	// constant, Step those of a whole training step, both over a whole batch.
	Forward, Step int64
}

// Cost counts. steps is the number of steps in one Loop.
func (t *Trainer) Cost(steps int) (Cost, error) {
	c := Cost{Frozen: t.frozen}
	for _, w := range t.trained {
		c.Trained += onnx.Elements(w.shape)
	}
	forward, err := t.servingLoss()
	if err != nil {
		return Cost{}, err
	}
	step, err := t.stepGraph(steps)
	if err != nil {
		return Cost{}, err
	}
	parts := int64(t.spec.Accumulate)
	c.Forward, c.Step = parts*FLOPs(forward), parts*FLOPs(step)
	return c, nil
}

// Forward is the forward pass with the loss, every weight constant as in service.
type Forward struct {
	session *ort.Session
	in      []*ort.Tensor
	parts   int
}

// Forward loads the forward pass, to be run on the first batch of the last chunk
// of steps, of which there must have been one.
func (t *Trainer) Forward() (_ *Forward, err error) {
	g, err := t.servingLoss()
	if err != nil {
		return nil, err
	}
	f := &Forward{parts: t.spec.Accumulate}
	defer func() {
		if err != nil {
			_ = f.Close()
		}
	}()
	if f.session, err = t.load(g); err != nil {
		return nil, err
	}
	for i, in := range microInputs(t.spec.Inputs, t.spec.Accumulate) {
		batch := t.sets[0].batches[i]
		x, err := ort.NewRaw(batch.Type(), in.Shape, batch.Bytes()[:onnx.Elements(in.Shape)*in.Type.Size()])
		if err != nil {
			return nil, err
		}
		f.in = append(f.in, x)
	}
	return f, nil
}

// Run makes one pass over a batch.
func (f *Forward) Run(ctx context.Context) error {
	for range f.parts {
		out, err := f.session.Run(ctx, f.in)
		if err != nil {
			return err
		}
		ort.CloseAll(out...)
	}
	return nil
}

// Close unloads it. The Trainer's batches stay.
func (f *Forward) Close() error {
	ort.CloseAll(f.in...)
	if f.session == nil {
		return nil
	}
	return f.session.Close()
}

// servingLoss is the loss with every weight constant.
func (p *plan) servingLoss() (*onnx.Graph, error) {
	g := onnx.New(p.spec.Name + "_serving")
	var batch []*onnx.Value
	for _, in := range microInputs(p.spec.Inputs, p.spec.Accumulate) {
		batch = append(batch, g.Input(in.Name, in.Type, in.Shape...))
	}
	loss, err := p.call(g, g, p.spec.Loss, batch, nil, nil)
	if err != nil {
		return nil, err
	}
	g.Output("loss", g.Reshape(loss.Value, 1))
	return g, g.Err()
}
