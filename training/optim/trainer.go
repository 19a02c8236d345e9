package optim

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"time"

	"github.com/nearmiss/nearmiss/inference/onnx"
	"github.com/nearmiss/nearmiss/inference/onnx/lower"
	"github.com/nearmiss/nearmiss/inference/ort"
)

var (
	// ErrDiverged: a loss or a weight became NaN or infinite. The weights are those of the
	// last chunk that was sound.
	ErrDiverged = errors.New("training diverged: lower the learning rate, clip the gradients, or warm up for longer")
	// ErrStop may be returned by a Progress function: Run ends, without an error.
	ErrStop = errors.New("stop training")
)

// Source gives the batches.
type Source interface {
	// Fill writes the batch of a step, counted from 0, into b: every element.
	// The same step must always give the same batch. It is called from another
	// goroutine than Run's, for the steps in order.
	Fill(ctx context.Context, step int, b Batch) error
}

// SourceFunc is a function as a Source.
type SourceFunc func(ctx context.Context, step int, b Batch) error

// Fill calls f.
func (f SourceFunc) Fill(ctx context.Context, step int, b Batch) error { return f(ctx, step, b) }

// Batch is the memory of one batch. It holds what an earlier batch left in it.
type Batch struct {
	inputs []Input
	step   int // its place in the tensors
	memory []*ort.Tensor
}

func batchOf[T ort.Element](b Batch, name string) []T {
	for i, in := range b.inputs {
		if in.Name == name {
			n := onnx.Elements(in.Shape)
			return ort.Data[T](b.memory[i])[b.step*n : (b.step+1)*n : (b.step+1)*n]
		}
	}
	panic(fmt.Sprintf("optim: a batch has no input %q", name))
}

// Float32s is the memory of a float input, row-major in the input's shape. Like
// the others, it panics when there is no such input of this type.
func (b Batch) Float32s(name string) []float32 { return batchOf[float32](b, name) }

// Uint8s is the memory of a uint8 input.
func (b Batch) Uint8s(name string) []uint8 { return batchOf[uint8](b, name) }

// Int64s is the memory of an int64 input.
func (b Batch) Int64s(name string) []int64 { return batchOf[int64](b, name) }

// Trainer trains the weights of a Spec. Its methods must not be called at the
// same time.
type Trainer struct {
	*plan
	chunk   int
	session *ort.Session
	eval    *ort.Session // made by the first Evaluate
	step    int

	device    *ort.Memory   // where the state is; nil: in Go's memory
	why       error         // no device has it although the session has one
	cur, next []*ort.Tensor // the state, in the order of state.flat
	record    [2]*ort.Tensor
	finite    *ort.Tensor // with a device: 0 for each weight that is, else NaN
	sets      [2]feed
}

// feed is the memory of one chunk's inputs.
type feed struct {
	trips    *ort.Tensor
	schedule *ort.Tensor
	batches  []*ort.Tensor
}

// New builds the training graph and loads it. The caller closes the Trainer.
func New(s Spec) (_ *Trainer, err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("train %s: %w", s.Name, err)
		}
	}()
	s.Name = cmp.Or(s.Name, "model")
	s.Accumulate = max(s.Accumulate, 1)
	s.Optimizer = s.Optimizer.withDefaults()
	if err := s.validate(); err != nil {
		return nil, err
	}
	p, err := newPlan(s)
	if err != nil {
		return nil, err
	}
	t := &Trainer{plan: p, chunk: s.Chunk}
	defer func() {
		if err != nil {
			t.Close()
		}
	}()
	if t.chunk <= 0 {
		bytes := 0
		for _, in := range s.Inputs {
			bytes += onnx.Elements(in.Shape) * in.Type.Size()
		}
		t.chunk = min(10, max(1, 64<<20/max(bytes, 1)))
	}
	if s.SingleSteps {
		t.chunk = 1
	}
	if err := t.place(); err != nil {
		return nil, err
	}
	g, err := p.stepGraph(t.chunk)
	if err != nil {
		return nil, err
	}
	if t.session, err = t.load(g); err != nil {
		return nil, err
	}
	if err := t.allocate(); err != nil {
		return nil, err
	}
	return t, nil
}

// load gives a graph to ONNX Runtime through a file whose weights it can map,
// so that frozen weights are not copied on the way. What is mapped outlasts the file, and
// nothing is left of it when the process is killed.
func (t *Trainer) load(g *onnx.Graph) (*ort.Session, error) {
	dir, err := os.MkdirTemp("", "nearmiss-train-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	if t.spec.Session.Device.IsCPU() {
		if err := lower.ForCPU(g); err != nil {
			return nil, err
		}
	}
	file := filepath.Join(dir, "graph.onnx")
	if err := g.WriteFile(file, onnx.ExternalAbove(32<<20)); err != nil {
		return nil, err
	}
	return ort.Open(file, t.spec.Session)
}

// allocate makes the state, twice, and the memory of two chunks.
func (t *Trainer) allocate() error {
	if t.resident {
		var err error
		if t.finite, err = ort.Zeros(onnx.Float, len(t.trained)); err != nil {
			return err
		}
	}
	for side, list := range []*[]*ort.Tensor{&t.cur, &t.next} {
		for range 1 + len(t.spec.Optimizer.slots()) {
			for _, w := range t.trained {
				x, err := t.tensor(w.shape)
				if err != nil {
					return err
				}
				*list = append(*list, x)
			}
		}
		var err error
		if t.record[side], err = ort.Zeros(onnx.Float, t.chunk, len(t.metrics)); err != nil {
			return err
		}
		f := &t.sets[side]
		schedule, steps := []int{columns}, 0
		if !t.spec.SingleSteps {
			if f.trips, err = ort.Zeros(onnx.Int64); err != nil {
				return err
			}
			schedule, steps = []int{t.chunk, columns}, t.chunk
		}
		if f.schedule, err = ort.Zeros(onnx.Float, schedule...); err != nil {
			return err
		}
		for _, in := range t.spec.Inputs {
			x, err := ort.Zeros(in.Type, in.parts(steps, t.spec.Accumulate)...)
			if err != nil {
				return err
			}
			f.batches = append(f.batches, x)
		}
	}
	at, n := t.places(), len(t.trained)
	given := make([][]float32, n)
	for _, w := range t.spec.Weights {
		if i, ok := at[w.Name]; ok {
			given[i] = w.Float32s()
		}
	}
	for i, x := range t.cur {
		v := given[i%n]
		if i >= n && (t.spec.Optimizer.EMA == 0 || i < len(t.cur)-n) {
			if !t.resident {
				continue // there are zeros, and none of their pages was touched
			}
			v = make([]float32, len(v))
		}
		if err := t.write(x, v); err != nil {
			return err
		}
	}
	return nil
}

func (t *Trainer) places() map[string]int {
	at := make(map[string]int, len(t.trained))
	for i, w := range t.trained {
		at[w.name] = i
	}
	return at
}

// Progress is what a chunk of steps gave.
type Progress struct {
	Step int // steps done, in all
	// Losses has the loss of each step of the chunk, before its update.
	Losses []float64
	// GradientNorms has the global norms before clipping, where there is clipping.
	GradientNorms []float64
	// Metrics has the metrics of the loss, by name.
	Metrics map[string][]float64
	// Seconds is the time of the chunk, Waited the part of it spent waiting for
	// batches.
	Seconds, Waited float64
}

// RunOptions adjust a Run.
type RunOptions struct {
	// Progress, if set, is called after each chunk of steps. The weights of the
	// Trainer are then those after Progress.Step steps, and may be saved or
	// evaluated; the source fills the next batches meanwhile. ErrStop ends the run early; another error fails it.
	Progress func(ctx context.Context, p Progress) error
}

// Run does the next steps. When ctx ends, or on an error, the weights are those
// of the last whole chunk, and Step says how many steps that were.
func (t *Trainer) Run(ctx context.Context, src Source, steps int, o RunOptions) (err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("train %s: step %d: %w", t.spec.Name, t.step, err)
		}
	}()
	if t.session == nil {
		return ort.ErrClosed
	}
	fills, stop := context.WithCancel(ctx)
	pending := t.prepare(fills, src, 0, t.step, min(t.chunk, steps))
	defer func() { // no fill may outlive the run
		stop()
		if pending != nil {
			<-pending
		}
	}()
	for side := 0; steps > 0; side = 1 - side {
		n := min(t.chunk, steps)
		start := time.Now()
		err := <-pending
		pending = nil
		if err != nil {
			return fmt.Errorf("fill the batches: %w", err)
		}
		waited := time.Since(start)
		if steps -= n; steps > 0 {
			pending = t.prepare(fills, src, 1-side, t.step+n, min(t.chunk, steps))
		}
		f := t.sets[side]
		var in []*ort.Tensor
		if f.trips != nil {
			f.trips.Int64s()[0] = int64(n)
			in = append(in, f.trips)
		}
		in = append(append(in, f.schedule), f.batches...)
		in = append(append(in, t.record[0]), t.cur...)
		out := append([]*ort.Tensor{t.record[1]}, t.next...)
		if t.resident {
			out = append(out, t.finite)
		}
		if err := t.session.RunInto(ctx, in, out); err != nil {
			return err
		}
		p := t.progress(n)
		for i, l := range p.Losses {
			if math.IsNaN(l) || math.IsInf(l, 0) {
				return fmt.Errorf("%w: the loss of step %d is %v", ErrDiverged, t.step+i, l)
			}
		}
		// The last update of a chunk shows in no loss of it.
		for i, w := range t.trained {
			if t.resident && !finite(t.finite.Float32s()[i:i+1]) || !t.resident && !finite(t.next[i].Float32s()) {
				return fmt.Errorf("%w: after step %d, %s is not finite", ErrDiverged, t.step+n-1, w.name)
			}
		}
		t.cur, t.next = t.next, t.cur
		t.step += n
		p.Step, p.Seconds, p.Waited = t.step, time.Since(start).Seconds(), waited.Seconds()
		if o.Progress != nil {
			if err := o.Progress(ctx, p); errors.Is(err, ErrStop) {
				return nil
			} else if err != nil {
				return err
			}
		}
	}
	return nil
}

func finite(v []float32) bool {
	for _, x := range v {
		if x-x != 0 { // NaN or infinite
			return false
		}
	}
	return true
}

// prepare fills the inputs of n steps in the background.
func (t *Trainer) prepare(ctx context.Context, src Source, side, step, n int) chan error {
	done := make(chan error, 1)
	go func() {
		f := t.sets[side]
		for i := range n {
			if err := ctx.Err(); err != nil {
				done <- err
				return
			}
			t.spec.Optimizer.schedule(step+i, f.schedule.Float32s()[i*columns:(i+1)*columns])
			if err := src.Fill(ctx, step+i, Batch{t.spec.Inputs, i, f.batches}); err != nil {
				done <- fmt.Errorf("step %d: %w", step+i, err)
				return
			}
		}
		done <- nil
	}()
	return done
}

// progress turns the record into numbers.
func (t *Trainer) progress(n int) Progress {
	p := Progress{Metrics: map[string][]float64{}}
	m := len(t.metrics)
	rows := t.record[1].Float32s()
	for i := range n {
		for j, name := range t.metrics {
			v := float64(rows[i*m+j])
			switch {
			case j == 0:
				p.Losses = append(p.Losses, v)
			case name == "gradient_norm" && j == m-1:
				p.GradientNorms = append(p.GradientNorms, v)
			default:
				p.Metrics[name] = append(p.Metrics[name], v)
			}
		}
	}
	return p
}

// Step is the number of steps done.
func (t *Trainer) Step() int { return t.step }

// Trained lists the names of the weights that are updated.
func (t *Trainer) Trained() []string {
	var out []string
	for _, w := range t.trained {
		out = append(out, w.name)
	}
	return out
}

// Evaluate computes the mean loss and metrics over n batches, steps 0..n−1 of
// the source, with the present weights and without changing them.
func (t *Trainer) Evaluate(ctx context.Context, src Source, n int) (loss float64, metrics map[string]float64, err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("evaluate %s: %w", t.spec.Name, err)
		}
	}()
	if t.session == nil {
		return 0, nil, ort.ErrClosed
	}
	inputs := t.spec.EvalInputs
	build := t.spec.Eval
	if build == nil {
		build = t.spec.Loss
	}
	if inputs == nil {
		inputs = t.spec.Inputs
	}
	if t.eval == nil {
		g := onnx.New(t.spec.Name + "_evaluation")
		if _, _, err := t.lossGraph(g, build, inputs); err != nil {
			return 0, nil, err
		}
		s, err := t.load(g)
		if err != nil {
			return 0, nil, err
		}
		t.eval = s
	}
	var in []*ort.Tensor
	defer func() { ort.CloseAll(in[:min(len(in), len(inputs))]...) }()
	for _, x := range inputs {
		m, err := ort.Zeros(x.Type, x.Shape...)
		if err != nil {
			return 0, nil, err
		}
		in = append(in, m)
	}
	at := t.places()
	var unused []*ort.Tensor // trainable weights that the loss of training does not use
	defer func() { ort.CloseAll(unused...) }()
	for _, w := range t.spec.Weights {
		if freeze, _, _ := t.spec.group(w.Name); freeze {
			continue
		}
		if i, ok := at[w.Name]; ok {
			in = append(in, t.cur[i])
			continue
		}
		m, err := ort.NewTensor(w.Shape, w.Float32s())
		if err != nil {
			return 0, nil, err
		}
		unused = append(unused, m)
		in = append(in, m)
	}
	metrics = map[string]float64{}
	names := t.eval.Outputs()
	for step := range n {
		if err := src.Fill(ctx, step, Batch{inputs, 0, in[:len(inputs)]}); err != nil {
			return 0, nil, fmt.Errorf("fill batch %d: %w", step, err)
		}
		out, err := t.eval.Run(ctx, in)
		if err != nil {
			return 0, nil, err
		}
		for i, x := range out {
			v := float64(x.Float32s()[0]) / float64(n)
			if i == 0 {
				loss += v
			} else {
				metrics[names[i].Name[len("metric/"):]] += v
			}
		}
		ort.CloseAll(out...)
	}
	return loss, metrics, nil
}

// Close gives back the graphs and the memory.
func (t *Trainer) Close() error {
	var errs []error
	for _, s := range []*ort.Session{t.session, t.eval} {
		if s != nil {
			errs = append(errs, s.Close())
		}
	}
	t.session, t.eval = nil, nil
	ort.CloseAll(t.cur...)
	ort.CloseAll(t.next...)
	ort.CloseAll(t.record[:]...)
	t.finite.Close()
	for _, f := range t.sets {
		ort.CloseAll(f.trips, f.schedule)
		ort.CloseAll(f.batches...)
	}
	if t.device != nil {
		errs = append(errs, t.device.Close())
	}
	return errors.Join(errs...)
}
