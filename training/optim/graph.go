package optim

import (
	"errors"
	"fmt"
	"math"
	"slices"

	"github.com/nearmiss/nearmiss/inference/onnx"
	"github.com/nearmiss/nearmiss/training/autodiff"
)

// trained is one weight that the optimiser updates.
type trained struct {
	name  string
	shape []int
	scale float64 // of the learning rate
	decay float64
}

// The columns of the schedule that Go computes, in float64, for every step.
const (
	columnLR   = iota // learning rate; for Adam ÷ (1 − β1ⁿ)
	columnRoot        // Adam: 1 / √(1 − β2ⁿ)
	columnKeep        // AdamW: learning rate alone, for its weight decay
	columnEMA         // 1 − rate of the moving average
	columns
)

// schedule writes the row of a step, counted from 0.
func (o Optimizer) schedule(step int, row []float32) {
	lr := o.LearningRate * o.Schedule.At(step)
	n := float64(step + 1)
	row[columnLR], row[columnRoot], row[columnKeep] = float32(lr), 1, float32(lr)
	if o.Kind != SGD {
		row[columnLR] = float32(lr / (1 - math.Pow(o.Beta1, n)))
		row[columnRoot] = float32(1 / math.Sqrt(1-math.Pow(o.Beta2, n)))
	}
	row[columnEMA] = float32(1 - math.Min(o.EMA, (1+n)/(10+n)))
}

// slots is the number of tensors that the optimiser keeps for each weight
// beside the weight itself, the moving average included.
func (o Optimizer) slots() []string {
	var s []string
	switch {
	case o.Kind == SGD && o.Momentum > 0:
		s = append(s, "momentum")
	case o.Kind != SGD:
		s = append(s, "m", "v")
	}
	if o.EMA > 0 {
		s = append(s, "ema")
	}
	return s
}

// plan is what is known once the loss has been built for the first time.
type plan struct {
	spec    Spec
	trained []trained // in the order of Spec.Weights, used by the loss
	frozen  int       // elements of the frozen weights that the loss uses
	metrics []string  // of the record, the loss first
	// resident says that the state is where Go does not see it.
	resident bool
}

// newPlan builds the forward pass alone, to see which weights it uses.
func newPlan(s Spec) (*plan, error) {
	p := &plan{spec: s}
	g := onnx.New(s.Name + "_forward")
	loss, used, err := p.lossGraph(g, s.Loss, microInputs(s.Inputs, s.Accumulate))
	if err != nil {
		return nil, err
	}
	p.metrics = []string{"loss"}
	for _, m := range loss.Metrics {
		p.metrics = append(p.metrics, m.Name)
	}
	if s.Optimizer.Clip > 0 {
		p.metrics = append(p.metrics, "gradient_norm")
	}
	for _, w := range s.Weights {
		if !used[w.Name] {
			continue
		}
		freeze, scale, decay := s.group(w.Name)
		if freeze {
			p.frozen += w.Elements()
			continue
		}
		p.trained = append(p.trained, trained{w.Name, w.Shape, scale, decay})
	}
	if len(p.trained) == 0 {
		return nil, errors.New("there is nothing to train: the loss uses no weight that is not frozen")
	}
	return p, nil
}

func microInputs(in []Input, parts int) []Input {
	out := slices.Clone(in)
	for i := range out {
		out[i].Shape = slices.Clone(out[i].Shape)
		out[i].Shape[0] /= parts
	}
	return out
}

// lossGraph makes a graph of the loss alone: batch and, in the order of
// Spec.Weights, the trainable weights go in; loss and metrics come out, [1] each.
func (p *plan) lossGraph(g *onnx.Graph, build LossFunc, inputs []Input) (Loss, map[string]bool, error) {
	var batch []*onnx.Value
	for _, in := range inputs {
		batch = append(batch, g.Input(in.Name, in.Type, in.Shape...))
	}
	given := map[string]*onnx.Value{}
	for _, w := range p.spec.Weights {
		if freeze, _, _ := p.spec.group(w.Name); !freeze {
			given[w.Name] = g.Input(w.Name, w.Type, w.Shape...)
		}
	}
	used := map[string]bool{}
	loss, err := p.call(g, g, build, batch, given, used)
	if err != nil {
		return Loss{}, nil, err
	}
	g.Output("loss", g.Reshape(loss.Value, 1))
	for _, m := range loss.Metrics {
		g.Output("metric/"+m.Name, g.Reshape(m.Value, 1))
	}
	return loss, used, g.Err()
}

// call runs a LossFunc over g; frozen weights become initialisers of root.
func (p *plan) call(root, g *onnx.Graph, build LossFunc, batch []*onnx.Value, given map[string]*onnx.Value, used map[string]bool) (Loss, error) {
	tensors := map[string]onnx.Tensor{}
	for _, w := range p.spec.Weights {
		tensors[w.Name] = w
	}
	weights := func(name string) *onnx.Value {
		if used != nil {
			used[name] = true
		}
		if v, ok := given[name]; ok {
			return v
		}
		if v := root.Lookup(name); v != nil {
			return v
		}
		t, ok := tensors[name]
		if !ok {
			g.Fail(fmt.Errorf("the loss asks for a weight %q, which is not among the weights", name))
			return nil
		}
		return root.Initializer(t)
	}
	loss, err := build(g, batch, weights)
	if err == nil {
		err = g.Err()
	}
	if err != nil {
		return Loss{}, fmt.Errorf("build the loss: %w", err)
	}
	for _, m := range append([]Metric{{"loss", loss.Value}}, loss.Metrics...) {
		if m.Value == nil || m.Value.Elements() != 1 || m.Value.Type() != onnx.Float {
			return Loss{}, fmt.Errorf("build the loss: %q must be one float, it is %v", m.Name, m.Value)
		}
	}
	return loss, nil
}

// state is the values that a step carries on: for each trained weight the
// weight, then its slots.
type state struct {
	weights []*onnx.Value
	slots   [][]*onnx.Value // by slot, then by weight
}

// flat lists the state in the order of the carried values.
func (s state) flat() []*onnx.Value {
	out := slices.Clone(s.weights)
	for _, slot := range s.slots {
		out = append(out, slot...)
	}
	return out
}

func (p *plan) unflatten(v []*onnx.Value) state {
	n := len(p.trained)
	s := state{weights: v[:n]}
	for i := range p.spec.Optimizer.slots() {
		s.slots = append(s.slots, v[(i+1)*n:(i+2)*n])
	}
	return s
}

// stepGraph makes the training graph for up to chunk steps. Its inputs are
// "trips" (with a Loop), "schedule", the batches, the record and the state; its
// outputs are the record and the state and, where that is resident, a number for each
// weight that tells whether it is finite.
//
// The record, one row of metrics for each step, is carried and written into
// rather than stacked: so every shape is fixed whatever the number of steps.
func (p *plan) stepGraph(chunk int) (*onnx.Graph, error) {
	s := p.spec
	g := onnx.New(s.Name + "_training")
	loop := !s.SingleSteps
	var trips *onnx.Value
	rows, steps := []int{columns}, 0
	if loop {
		trips = g.Input("trips", onnx.Int64)
		rows, steps = []int{chunk, columns}, chunk
	}
	schedule := g.Input("schedule", onnx.Float, rows...)
	var batches []*onnx.Value
	for _, in := range s.Inputs {
		batches = append(batches, g.Input("batch/"+in.Name, in.Type, in.parts(steps, s.Accumulate)...))
	}
	record := g.Input("record", onnx.Float, max(chunk, 1), len(p.metrics))
	var in []*onnx.Value
	for _, t := range p.trained {
		in = append(in, g.Input(t.name, onnx.Float, t.shape...))
	}
	for _, slot := range s.Optimizer.slots() {
		for _, t := range p.trained {
			in = append(in, g.Input(slot+"/"+t.name, onnx.Float, t.shape...))
		}
	}
	var failed error
	var out []*onnx.Value
	if loop {
		out, _ = g.Loop(trips, append([]*onnx.Value{record}, in...), func(b *onnx.Graph, i *onnx.Value, carried []*onnx.Value) (next, stacked []*onnx.Value) {
			var batch []*onnx.Value
			for _, v := range batches {
				batch = append(batch, b.Gather(v, i, 0))
			}
			st, row, err := p.step(g, b, batch, b.Gather(schedule, i, 0), p.unflatten(carried[1:]))
			if err != nil {
				failed = err
				return nil, nil
			}
			written := b.Op("ScatterND", nil, carried[0], b.Reshape(i, 1, 1), b.Reshape(row, 1, len(p.metrics)))
			return append([]*onnx.Value{written}, st.flat()...), nil
		})
	} else {
		st, row, err := p.step(g, g, batches, schedule, p.unflatten(in))
		failed = err
		if err == nil {
			out = append([]*onnx.Value{g.Add(g.Scale(record, 0), g.Reshape(row, 1, len(p.metrics)))}, st.flat()...)
		}
	}
	if failed != nil {
		return nil, failed
	}
	for i, v := range out {
		name := "next/record"
		if i > 0 {
			name = "next/" + in[i-1].Name()
		}
		g.Output(name, v)
	}
	if p.resident {
		var sums []*onnx.Value
		for _, w := range out[1 : 1+len(p.trained)] {
			sums = append(sums, g.Reshape(g.Reduce("ReduceSum", g.Sub(w, w), false), 1))
		}
		g.Output("finite", g.Concat(0, sums...))
	}
	return g, g.Err()
}

// step appends one training step to b, whose outermost graph is root.
func (p *plan) step(root, b *onnx.Graph, batch []*onnx.Value, schedule *onnx.Value, st state) (state, *onnx.Value, error) {
	values, gradients, err := p.gradients(root, b, batch, st.weights)
	if err != nil {
		return state{}, nil, err
	}
	o := p.spec.Optimizer
	if o.Clip > 0 {
		defer b.Scope("clip")()
		var sum *onnx.Value
		for _, g := range gradients {
			s := b.Reduce("ReduceSumSquare", g, false)
			if sum == nil {
				sum = s
			} else {
				sum = b.Add(sum, s)
			}
		}
		norm := b.Sqrt(sum)
		values = append(values, norm)
		// As torch.nn.utils.clip_grad_norm_ does.
		factor := b.Op("Min", nil, b.Const(onnx.Float, 1), b.Div(b.Const(onnx.Float, o.Clip), b.Add(norm, b.Const(onnx.Float, 1e-6))))
		for i, g := range gradients {
			gradients[i] = b.Mul(g, factor)
		}
	}
	for i, v := range values {
		values[i] = b.Reshape(v, 1)
	}
	row := values[0]
	if len(values) > 1 {
		row = b.Concat(0, values...)
	}
	next, err := p.update(b, gradients, schedule, st)
	return next, row, err
}

// gradients appends loss, metrics and the gradients of the weights.
func (p *plan) gradients(root, b *onnx.Graph, batch, weights []*onnx.Value) (values, gradients []*onnx.Value, err error) {
	defer b.Scope("loss")()
	target := autodiff.CPU
	if !p.spec.Session.Device.IsCPU() {
		target = autodiff.CUDA
	}
	options := []autodiff.Option{autodiff.For(target)}
	if p.spec.Recompute != nil {
		options = append(options, autodiff.Recompute(p.spec.Recompute))
	}
	at := func(g *onnx.Graph, batch, weights []*onnx.Value) (values, gradients []*onnx.Value, err error) {
		given := map[string]*onnx.Value{}
		for i, t := range p.trained {
			given[t.name] = weights[i]
		}
		loss, err := p.call(root, g, p.spec.Loss, batch, given, nil)
		if err != nil {
			return nil, nil, err
		}
		gradients, err = autodiff.Gradient(g, loss.Value, weights, options...)
		if err == nil {
			err = g.Err()
		}
		if err != nil {
			return nil, nil, fmt.Errorf("differentiate the loss: %w", err)
		}
		for i, v := range gradients {
			if v == nil {
				return nil, nil, fmt.Errorf("differentiate the loss: it does not depend on %q: freeze it", p.trained[i].name)
			}
		}
		values = append(values, loss.Value)
		for _, m := range loss.Metrics {
			values = append(values, m.Value)
		}
		return values, gradients, nil
	}
	parts := p.spec.Accumulate
	if parts == 1 {
		return at(b, batch, weights)
	}
	// The parts' sums are carried; the weights are values of the outer graph.
	var zeros []*onnx.Value
	count := len(p.metrics)
	if p.spec.Optimizer.Clip > 0 {
		count-- // the norm is of the sums
	}
	for range count {
		zeros = append(zeros, b.Filled(onnx.Float, 0, 1))
	}
	for _, t := range p.trained {
		zeros = append(zeros, b.Filled(onnx.Float, 0, t.shape...))
	}
	sums, _ := b.Loop(b.Const(onnx.Int64, float64(parts)), zeros, func(inner *onnx.Graph, i *onnx.Value, carried []*onnx.Value) (next, stacked []*onnx.Value) {
		var part []*onnx.Value
		for _, v := range batch {
			part = append(part, inner.Gather(v, i, 0))
		}
		v, g, e := at(inner, part, weights)
		if e != nil {
			err = e
			return nil, nil
		}
		for j := range v {
			next = append(next, inner.Add(carried[j], inner.Reshape(v[j], 1)))
		}
		for j := range g {
			next = append(next, inner.Add(carried[count+j], g[j]))
		}
		return next, nil
	})
	if err != nil {
		return nil, nil, err
	}
	if b.Err() != nil {
		return nil, nil, b.Err()
	}
	for i, v := range sums {
		sums[i] = b.Scale(v, 1/float64(parts))
	}
	return sums[:count:count], sums[count:], nil
}

// update appends the optimiser.
func (p *plan) update(b *onnx.Graph, gradients []*onnx.Value, schedule *onnx.Value, st state) (state, error) {
	defer b.Scope("update")()
	o := p.spec.Optimizer
	column := func(i int) *onnx.Value { return b.At(schedule, 0, i) }
	var next state
	next.slots = make([][]*onnx.Value, len(st.slots))
	put := func(slot int, v *onnx.Value) { next.slots[slot] = append(next.slots[slot], v) }
	lr := column(columnLR)
	var root, keep, ema *onnx.Value
	if o.Kind != SGD {
		root = column(columnRoot)
	}
	if o.Kind == AdamW {
		keep = column(columnKeep)
	}
	if o.EMA > 0 {
		ema = column(columnEMA)
	}
	rates := map[float64]*onnx.Value{1: lr}
	for i, t := range p.trained {
		w, g := st.weights[i], gradients[i]
		rate, ok := rates[t.scale]
		if !ok {
			rate = b.Scale(lr, t.scale)
			rates[t.scale] = rate
		}
		switch o.Kind {
		case SGD:
			if t.decay > 0 {
				g = b.Add(g, b.Scale(w, t.decay))
			}
			if o.Momentum > 0 {
				g = b.Add(b.Scale(st.slots[0][i], o.Momentum), g)
				put(0, g)
			}
			w = b.Sub(w, b.Mul(g, rate))
		case Adam, AdamW:
			if t.decay > 0 {
				if o.Kind == Adam {
					g = b.Add(g, b.Scale(w, t.decay))
				} else {
					w = b.Sub(w, b.Mul(w, b.Scale(keep, t.scale*t.decay)))
				}
			}
			m := b.Add(b.Scale(st.slots[0][i], o.Beta1), b.Scale(g, 1-o.Beta1))
			v := b.Add(b.Scale(st.slots[1][i], o.Beta2), b.Mul(b.Scale(g, 1-o.Beta2), g))
			put(0, m)
			put(1, v)
			w = b.Sub(w, b.Div(b.Mul(m, rate), b.Add(b.Mul(b.Sqrt(v), root), b.Const(onnx.Float, o.Epsilon))))
		}
		if o.EMA > 0 {
			last := len(st.slots) - 1
			e := st.slots[last][i]
			put(last, b.Sub(e, b.Mul(b.Sub(e, w), ema)))
		}
		next.weights = append(next.weights, w)
	}
	return next, b.Err()
}
