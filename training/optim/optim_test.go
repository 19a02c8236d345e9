package optim

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/nearmiss/nearmiss/inference/onnx"
	"github.com/nearmiss/nearmiss/inference/ort"
)

// The tests train y = x·w + b under the mean squared error, whose gradients are
// written down by hand here, in the graph and again in float64.
const (
	examples = 8
	inputs   = 5
)

// linear is the specification; batch inputs are x [n, 5] and y [n].
func linear() Spec {
	w := make([]float32, inputs)
	for i := range w {
		w[i] = 0.3 * float32(i-2)
	}
	return Spec{
		Name:    "linear",
		Weights: []onnx.Tensor{onnx.FromFloat32("w", w, inputs, 1), onnx.FromFloat32("b", []float32{0.5}, 1), onnx.FromFloat32("scale", []float32{1}, 1)},
		Inputs:  []Input{{"x", onnx.Float, []int{examples, inputs}}, {"y", onnx.Float, []int{examples}}},
		Groups:  []Group{{Pattern: "sca?e", Freeze: true}},
		Loss: func(g *onnx.Graph, batch []*onnx.Value, w Weights) (Loss, error) {
			n := batch[0].Dim(0)
			p := g.Mul(g.Reshape(g.Add(g.MatMul(batch[0], w("w")), w("b")), n), w("scale"))
			d := g.Sub(p, batch[1])
			return Loss{
				Value:   g.ReduceMean(g.Mul(d, d), false),
				Metrics: []Metric{{"worst", g.Reduce("ReduceMax", g.Op("Abs", nil, d), false)}},
			}, nil
		},
		Optimizer: Optimizer{Kind: SGD, LearningRate: 0.05},
		Calls:     Calls{Chunk: 4},
		Session:   ort.Options{IntraOpThreads: 1},
	}
}

// inBothPlaces runs a test with the state in Go's memory and in that of the device.
func inBothPlaces(t *testing.T, f func(t *testing.T, linear func() Spec)) {
	for _, state := range []State{OnHost, OnDevice} {
		t.Run("state on "+string(state), func(t *testing.T) {
			f(t, func() Spec {
				s := linear()
				s.State = state
				return s
			})
		})
	}
}

// draw is the batch of a step.
func draw(step int) (x, y []float32) {
	r := rand.New(rand.NewPCG(uint64(step), 7))
	for range examples {
		sum := 1.0
		for i := range inputs {
			v := r.NormFloat64()
			x = append(x, float32(v))
			sum += v * float64(i+1) / 3
		}
		y = append(y, float32(sum+0.1*r.NormFloat64()))
	}
	return x, y
}

var source = SourceFunc(func(_ context.Context, step int, b Batch) error {
	x, y := draw(step)
	copy(b.Float32s("x"), x)
	copy(b.Float32s("y"), y)
	return nil
})

// reference does the steps in float64.
type reference struct {
	p      []float64 // w, then b
	m, v   []float64
	ema    []float64
	losses []float64
	norms  []float64
}

func newReference() *reference {
	r := &reference{m: make([]float64, inputs+1), v: make([]float64, inputs+1)}
	for i := range inputs {
		r.p = append(r.p, float64(0.3*float32(i-2)))
	}
	r.p = append(r.p, 0.5)
	r.ema = slices.Clone(r.p)
	return r
}

func (r *reference) run(o Optimizer, scale func(i int) (lr, decay float64), steps int) {
	o = o.withDefaults()
	for step := range steps {
		x, y := draw(step)
		g := make([]float64, inputs+1)
		var loss float64
		for n := range examples {
			p := r.p[inputs]
			for i := range inputs {
				p += r.p[i] * float64(x[n*inputs+i])
			}
			d := p - float64(y[n])
			loss += d * d / examples
			for i := range inputs {
				g[i] += 2 * d * float64(x[n*inputs+i]) / examples
			}
			g[inputs] += 2 * d / examples
		}
		r.losses = append(r.losses, loss)
		var norm float64
		for _, v := range g {
			norm += v * v
		}
		norm = math.Sqrt(norm)
		r.norms = append(r.norms, norm)
		n := float64(step + 1)
		for i := range g {
			lrScale, decay := scale(i)
			lr := o.LearningRate * o.Schedule.At(step) * lrScale
			if o.Clip > 0 {
				g[i] *= math.Min(1, o.Clip/(norm+1e-6))
			}
			if o.Kind == AdamW {
				r.p[i] -= lr * decay * r.p[i]
			} else {
				g[i] += decay * r.p[i]
			}
			if o.Kind == SGD {
				r.m[i] = o.Momentum*r.m[i] + g[i]
				r.p[i] -= lr * r.m[i]
			} else {
				r.m[i] = o.Beta1*r.m[i] + (1-o.Beta1)*g[i]
				r.v[i] = o.Beta2*r.v[i] + (1-o.Beta2)*g[i]*g[i]
				mh, vh := r.m[i]/(1-math.Pow(o.Beta1, n)), r.v[i]/(1-math.Pow(o.Beta2, n))
				r.p[i] -= lr * mh / (math.Sqrt(vh) + o.Epsilon)
			}
			rate := math.Min(o.EMA, (1+n)/(10+n))
			r.ema[i] = rate*r.ema[i] + (1-rate)*r.p[i]
		}
	}
}

func newTestTrainer(t testing.TB, s Spec) *Trainer {
	t.Helper()
	x, err := New(s)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := x.Close(); err != nil {
			t.Error(err)
		}
	})
	return x
}

func train(t testing.TB, x *Trainer, steps int) (losses, norms []float64) {
	t.Helper()
	err := x.Run(context.Background(), source, steps, RunOptions{Progress: func(_ context.Context, p Progress) error {
		losses, norms = append(losses, p.Losses...), append(norms, p.GradientNorms...)
		if len(p.Metrics["worst"]) != len(p.Losses) {
			t.Errorf("%d losses and %d metrics", len(p.Losses), len(p.Metrics["worst"]))
		}
		return nil
	}})
	if err != nil {
		t.Fatal(err)
	}
	return losses, norms
}

// flatten and bits take what Weights and EMAWeights return.
func flatten(w []onnx.Tensor, err error) []float64 {
	if err != nil {
		panic(err)
	}
	var out []float64
	for _, x := range w[:2] {
		for _, v := range x.Float32s() {
			out = append(out, float64(v))
		}
	}
	return out
}

func compare(t testing.TB, what string, got, want []float64, tolerance float64) {
	t.Helper()
	if len(got) != len(want) {
		t.Fatalf("%s: %d numbers, want %d", what, len(got), len(want))
	}
	for i := range got {
		if !(math.Abs(got[i]-want[i]) <= tolerance*(1+math.Abs(want[i]))) {
			t.Errorf("%s [%d]: got %v, want %v", what, i, got[i], want[i])
		}
	}
}

func TestOptimizers(t *testing.T) { inBothPlaces(t, testOptimizers) }

func testOptimizers(t *testing.T, linear func() Spec) {
	decay := 0.3
	for name, c := range map[string]struct {
		o      Optimizer
		groups []Group
		scale  func(i int) (lr, decay float64)
	}{
		"plain SGD":               {o: Optimizer{Kind: SGD, LearningRate: 0.05}},
		"SGD with weight decay":   {o: Optimizer{Kind: SGD, LearningRate: 0.05, WeightDecay: 0.1}},
		"SGD with momentum":       {o: Optimizer{Kind: SGD, LearningRate: 0.02, Momentum: 0.9, WeightDecay: 0.01}},
		"SGD clipped":             {o: Optimizer{Kind: SGD, LearningRate: 0.05, Clip: 0.5}},
		"Adam":                    {o: Optimizer{Kind: Adam, LearningRate: 0.05}},
		"Adam with weight decay":  {o: Optimizer{Kind: Adam, LearningRate: 0.05, WeightDecay: 0.1, Beta1: 0.8, Beta2: 0.95, Epsilon: 1e-6}},
		"AdamW":                   {o: Optimizer{Kind: AdamW, LearningRate: 0.05, WeightDecay: 0.1}},
		"Adam as the paper's SDE": {o: Optimizer{Kind: Adam, LearningRate: 0.05, Clip: 1, EMA: 0.9, Schedule: Schedule{WarmUp: 7}}},
		"a cosine schedule":       {o: Optimizer{Kind: SGD, LearningRate: 0.05, EMA: 0.999, Schedule: Schedule{Kind: "cosine", Total: 20, Floor: 0.1, WarmUp: 3}}},
		"groups": {
			o:      Optimizer{Kind: AdamW, LearningRate: 0.05, WeightDecay: 0.1},
			groups: []Group{{Pattern: "b", LRScale: 3, WeightDecay: &decay}},
			scale: func(i int) (float64, float64) {
				if i == inputs {
					return 3, 0.3
				}
				return 1, 0.1
			},
		},
	} {
		t.Run(name, func(t *testing.T) {
			if c.scale == nil {
				c.scale = func(int) (float64, float64) { return 1, c.o.WeightDecay }
			}
			s := linear()
			c.o.Clip = cmp.Or(c.o.Clip, math.MaxFloat32) // the norms are recorded where there is clipping
			s.Optimizer, s.Groups = c.o, append(c.groups, s.Groups...)
			x := newTestTrainer(t, s)
			losses, norms := train(t, x, 22)
			want := newReference()
			want.run(c.o, c.scale, 22)
			compare(t, "losses", losses, want.losses, 2e-5)
			compare(t, "norms", norms, want.norms, 2e-5)
			compare(t, "weights", flatten(x.Weights()), want.p, 2e-5)
			if c.o.EMA > 0 {
				compare(t, "averages", flatten(x.EMAWeights()), want.ema, 2e-5)
			}
			if w, err := x.Weights(); x.Step() != 22 || err != nil || w[2].Float32s()[0] != 1 {
				t.Errorf("step %d, frozen weight %v, %v", x.Step(), w, err)
			}
		})
	}
}

// bits are the exact weights.
func bits(w []onnx.Tensor, err error) string {
	if err != nil {
		panic(err)
	}
	var b strings.Builder
	for _, x := range w {
		fmt.Fprintf(&b, "%x ", x.Data)
	}
	return b.String()
}

func TestChunksDoNotMatter(t *testing.T) { inBothPlaces(t, testChunksDoNotMatter) }

func testChunksDoNotMatter(t *testing.T, linear func() Spec) {
	s := linear()
	s.Optimizer = Optimizer{Kind: Adam, LearningRate: 0.05, EMA: 0.9, Clip: 2}
	whole := newTestTrainer(t, s)
	want, _ := train(t, whole, 13)
	for name, change := range map[string]func(s *Spec){
		"chunks of one":        func(s *Spec) { s.Chunk = 1 },
		"chunks of five":       func(s *Spec) { s.Chunk = 5 },
		"one chunk":            func(s *Spec) { s.Chunk = 0 },
		"steps without a Loop": func(s *Spec) { s.SingleSteps = true },
	} {
		t.Run(name, func(t *testing.T) {
			s := s
			change(&s)
			x := newTestTrainer(t, s)
			got, _ := train(t, x, 13)
			if !slices.Equal(got, want) || bits(x.Weights()) != bits(whole.Weights()) || bits(x.EMAWeights()) != bits(whole.EMAWeights()) {
				t.Errorf("losses %v, want %v", got, want)
			}
		})
	}
}

func TestAccumulation(t *testing.T) { inBothPlaces(t, testAccumulation) }

func testAccumulation(t *testing.T, linear func() Spec) {
	s := linear()
	s.Optimizer.Clip = math.MaxFloat32 // only for the norms
	x := newTestTrainer(t, s)
	losses, norms := train(t, x, 9)
	s.Accumulate = 4
	y := newTestTrainer(t, s)
	partLosses, partNorms := train(t, y, 9)
	compare(t, "losses", partLosses, losses, 1e-5)
	compare(t, "norms", partNorms, norms, 1e-5)
	compare(t, "weights", flatten(y.Weights()), flatten(x.Weights()), 1e-5)
}

// TestPlacesAgree: where the state is between calls changes no bit of it, nor of a
// checkpoint, which the other place takes up; on an accelerator, that gpu.sh may name,
// nothing but the order of sums.
func TestPlacesAgree(t *testing.T) {
	device, err := ort.ParseDevice(os.Getenv("NEARMISS_TEST_DEVICE"))
	if err != nil {
		t.Fatal(err)
	}
	for name, o := range map[string]Optimizer{
		"plain SGD":         {Kind: SGD, LearningRate: 0.05},
		"SGD with momentum": {Kind: SGD, LearningRate: 0.02, Momentum: 0.9, WeightDecay: 0.01},
		"Adam":              {Kind: Adam, LearningRate: 0.05, Clip: 1, EMA: 0.9},
		"AdamW":             {Kind: AdamW, LearningRate: 0.05, WeightDecay: 0.1},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			file := func(state State) string { return filepath.Join(dir, string(state)) }
			saved, trainers := map[State]string{}, map[State]*Trainer{}
			for _, state := range []State{OnHost, OnDevice} {
				s := linear()
				s.Optimizer, s.State, s.Session.Device = o, state, device
				x := newTestTrainer(t, s)
				if got, err := x.State(); got != state || err != nil {
					t.Fatalf("the state is on %s, want %s: %v", got, state, err)
				}
				losses, _ := train(t, x, 10)
				if err := x.Save(file(state), losses); err != nil {
					t.Fatal(err)
				}
				b, err := os.ReadFile(file(state))
				if err != nil {
					t.Fatal(err)
				}
				saved[state], trainers[state] = string(b), x
			}
			if device.IsCPU() && saved[OnHost] != saved[OnDevice] {
				t.Error("losses or checkpoints differ")
			}
			host, there := trainers[OnHost], trainers[OnDevice]
			compare(t, "weights after ten steps", flatten(there.Weights()), flatten(host.Weights()), 1e-5)
			for _, x := range trainers {
				if _, err := x.Load(file(OnHost)); err != nil {
					t.Fatal(err)
				}
				train(t, x, 5)
			}
			if device.IsCPU() && (bits(host.Weights()) != bits(there.Weights()) || bits(host.EMAWeights()) != bits(there.EMAWeights())) {
				t.Error("the weights differ after five steps from a checkpoint")
			}
			compare(t, "averages after five more", flatten(there.EMAWeights()), flatten(host.EMAWeights()), 1e-5)
		})
	}
}

// TestNoFileIsLeftBehind: a trainer that is killed leaves no weights on the disk, since none
// are there once its graphs are loaded, which go on without them.
func TestNoFileIsLeftBehind(t *testing.T) {
	dir := t.TempDir()
	t.Setenv("TMPDIR", dir)
	s := linear()
	const n = 9 << 20 // 36 MiB, which ONNX Runtime maps
	s.Weights = append(s.Weights, onnx.FromFloat32("large", make([]float32, n), n))
	s.Groups = append([]Group{{Pattern: "large", Freeze: true}}, s.Groups...)
	loss := s.Loss
	s.Loss = func(g *onnx.Graph, batch []*onnx.Value, w Weights) (Loss, error) {
		l, err := loss(g, batch, w)
		at := g.Cast(g.Scale(g.Reduce("ReduceSum", batch[0], false), 0), onnx.Int64)
		l.Value = g.Add(l.Value, g.Reshape(g.Op("Gather", nil, w("large"), at)))
		return l, err
	}
	want, _ := train(t, newTestTrainer(t, linear()), 8)
	x := newTestTrainer(t, s)
	got, _ := train(t, x, 4)
	if _, _, err := x.Evaluate(t.Context(), source, 1); err != nil {
		t.Fatal(err)
	}
	left, err := os.ReadDir(dir)
	if err != nil || len(left) > 0 {
		t.Errorf("beside a trainer there are %v, %v", left, err)
	}
	more, _ := train(t, x, 4)
	compare(t, "losses", append(got, more...), want, 1e-6)
}

// TestPlaceOfTheState: what nobody asked for may fail and is told, what was asked for may not.
func TestPlaceOfTheState(t *testing.T) {
	cuda := ort.Device{Kind: "cuda"}
	for name, c := range map[string]struct {
		device ort.Device
		wanted State
		want   State
		why    bool // it says why it is not on the device
		fails  bool
	}{
		"a CPU":                              {want: OnHost},
		"a CPU, asked for":                   {wanted: OnDevice, want: OnDevice},
		"an accelerator":                     {device: cuda, want: OnDevice},
		"an accelerator, not wanted":         {device: cuda, wanted: OnHost, want: OnHost},
		"one that is not there":              {device: ort.Device{Kind: "cuda", ID: 99}, want: OnHost, why: true},
		"one that is not there, asked for":   {device: ort.Device{Kind: "cuda", ID: 99}, wanted: OnDevice, fails: true},
		"one that is not there, not wanted ": {device: ort.Device{Kind: "cuda", ID: 99}, wanted: OnHost, want: OnHost},
	} {
		t.Run(name, func(t *testing.T) {
			if c.device == cuda && c.wanted == "" {
				if err := cuda.Usable(); err != nil {
					c.want, c.why = OnHost, true
				}
			}
			x := &Trainer{plan: &plan{spec: Spec{Calls: Calls{State: c.wanted}, Session: ort.Options{Device: c.device}}}}
			defer x.Close()
			err := x.place()
			if (err != nil) != c.fails {
				t.Fatalf("got %v", err)
			}
			if got, why := x.State(); err == nil && (got != c.want || (why != nil) != c.why) {
				t.Errorf("on %s: %v", got, why)
			}
		})
	}
}

func TestResume(t *testing.T) { inBothPlaces(t, testResume) }

func testResume(t *testing.T, linear func() Spec) {
	s := linear()
	s.Optimizer = Optimizer{Kind: Adam, LearningRate: 0.05, EMA: 0.9}
	whole := newTestTrainer(t, s)
	want, _ := train(t, whole, 21)

	path := filepath.Join(t.TempDir(), "checkpoint")
	first := newTestTrainer(t, s)
	head, _ := train(t, first, 10)
	if err := first.Save(path, map[string]int{"epoch": 3}); err != nil {
		t.Fatal(err)
	}
	second := newTestTrainer(t, s)
	extra, err := second.Load(path)
	if err != nil {
		t.Fatal(err)
	}
	if string(extra) != `{"epoch":3}` || second.Step() != 10 {
		t.Errorf("extra %s at step %d", extra, second.Step())
	}
	tail, _ := train(t, second, 11)
	if got := append(head, tail...); !slices.Equal(got, want) {
		t.Errorf("losses %v, want %v", got, want)
	}
	if bits(second.Weights()) != bits(whole.Weights()) || bits(second.EMAWeights()) != bits(whole.EMAWeights()) {
		t.Error("the weights differ from those of an uninterrupted run")
	}

	good, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	before := bits(second.Weights())
	damaged := func(f func(b []byte) []byte) []byte { return f(slices.Clone(good)) }
	for name, b := range map[string][]byte{
		"an empty file":   nil,
		"another file":    []byte("something else altogether"),
		"another version": damaged(func(b []byte) []byte { b[7] = 9; return b }),
		"a cut file":      good[:len(good)-40],
		"a longer file":   append(slices.Clone(good), 0),
		"a changed byte":  damaged(func(b []byte) []byte { b[len(b)-40] ^= 1; return b }),
		"a huge header":   damaged(func(b []byte) []byte { b[12] = 0xff; return b }),
	} {
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := second.Load(path); !errors.Is(err, ErrCheckpoint) {
			t.Errorf("%s: got %v", name, err)
		}
	}
	if bits(second.Weights()) != before || second.Step() != 21 {
		t.Error("a refused checkpoint changed the weights")
	}
	if err := os.WriteFile(path, good, 0o600); err != nil {
		t.Fatal(err)
	}
	s.Optimizer.Kind = AdamW
	other := newTestTrainer(t, s)
	if _, err := other.Load(path); !errors.Is(err, ErrCheckpoint) {
		t.Errorf("another optimiser: got %v", err)
	}
}

func TestRunEnds(t *testing.T) { inBothPlaces(t, testRunEnds) }

func testRunEnds(t *testing.T, linear func() Spec) {
	ctx := context.Background()
	t.Run("where its progress function says so", func(t *testing.T) {
		x := newTestTrainer(t, linear())
		err := x.Run(ctx, source, 100, RunOptions{Progress: func(_ context.Context, p Progress) error {
			if p.Step >= 8 {
				return ErrStop
			}
			return nil
		}})
		if err != nil || x.Step() != 8 {
			t.Errorf("step %d, %v", x.Step(), err)
		}
	})
	t.Run("with its context, between two chunks", func(t *testing.T) {
		x := newTestTrainer(t, linear())
		ctx, cancel := context.WithCancel(ctx)
		err := x.Run(ctx, source, 100, RunOptions{Progress: func(_ context.Context, p Progress) error {
			if p.Step == 12 {
				cancel()
			}
			return nil
		}})
		if !errors.Is(err, context.Canceled) || x.Step() != 12 {
			t.Fatalf("step %d, %v", x.Step(), err)
		}
		y := newTestTrainer(t, linear())
		train(t, y, 12)
		if bits(x.Weights()) != bits(y.Weights()) {
			t.Error("the weights are not those of the last whole chunk")
		}
	})
	t.Run("when a batch cannot be had", func(t *testing.T) {
		x := newTestTrainer(t, linear())
		broken := errors.New("broken")
		err := x.Run(ctx, SourceFunc(func(ctx context.Context, step int, b Batch) error {
			if step == 6 {
				return broken
			}
			return source(ctx, step, b)
		}), 100, RunOptions{})
		if !errors.Is(err, broken) || !strings.Contains(err.Error(), "step 6") || x.Step() != 4 {
			t.Errorf("step %d, %v", x.Step(), err)
		}
	})
	for _, rate := range []float64{1e12, 3e38} { // in a loss, or first in a weight
		t.Run(fmt.Sprintf("when it diverges at rate %g, with the last sound weights", rate), func(t *testing.T) {
			s := linear()
			s.Optimizer.LearningRate, s.Chunk = rate, 1
			x := newTestTrainer(t, s)
			err := x.Run(ctx, source, 100, RunOptions{})
			if !errors.Is(err, ErrDiverged) {
				t.Errorf("got %v", err)
			}
			for _, v := range flatten(x.Weights()) {
				if math.IsNaN(v) || math.IsInf(v, 0) {
					t.Errorf("a weight is %v", v)
				}
			}
		})
	}
}

func TestEvaluate(t *testing.T) { inBothPlaces(t, testEvaluate) }

func testEvaluate(t *testing.T, linear func() Spec) {
	s := linear()
	s.Optimizer.EMA = 0.9
	x := newTestTrainer(t, s)
	train(t, x, 5)
	before := bits(x.Weights())
	w := flatten(x.Weights())
	var want, worst float64
	for step := range 3 {
		bx, by := draw(step)
		var top float64
		for n := range examples {
			p := w[inputs]
			for i := range inputs {
				p += w[i] * float64(bx[n*inputs+i])
			}
			d := p - float64(by[n])
			want += d * d / examples / 3
			top = math.Max(top, math.Abs(d))
		}
		worst += top / 3
	}
	loss, metrics, err := x.Evaluate(context.Background(), source, 3)
	if err != nil {
		t.Fatal(err)
	}
	compare(t, "loss", []float64{loss, metrics["worst"]}, []float64{want, worst}, 1e-5)
	if bits(x.Weights()) != before {
		t.Error("evaluating changed the weights")
	}
}

func TestNewRefuses(t *testing.T) {
	for name, c := range map[string]struct {
		change func(s *Spec)
		want   string
	}{
		"no learning rate":          {func(s *Spec) { s.Optimizer.LearningRate = 0 }, "learning rate"},
		"an unknown optimiser":      {func(s *Spec) { s.Optimizer.Kind = "lion" }, "lion"},
		"an unknown schedule":       {func(s *Spec) { s.Optimizer.Schedule.Kind = "zigzag" }, "zigzag"},
		"a batch that cannot split": {func(s *Spec) { s.Accumulate = 3 }, "3 parts"},
		"nothing to train":          {func(s *Spec) { s.Groups = []Group{{Pattern: "*", Freeze: true}} }, "nothing to train"},
		"an unknown place":          {func(s *Spec) { s.State = "abacus" }, "abacus"},
		"a bad pattern":             {func(s *Spec) { s.Groups = []Group{{Pattern: "[", Freeze: true}} }, "syntax"},
		"a weight that is not there": {func(s *Spec) {
			s.Loss = func(g *onnx.Graph, batch []*onnx.Value, w Weights) (Loss, error) { return Loss{Value: w("nope")}, nil }
		}, "nope"},
		"a loss of many numbers": {func(s *Spec) {
			s.Loss = func(g *onnx.Graph, batch []*onnx.Value, w Weights) (Loss, error) {
				return Loss{Value: g.Add(w("w"), w("b"))}, nil
			}
		}, "one float"},
		"a weight twice": {func(s *Spec) { s.Weights = append(s.Weights, s.Weights[0]) }, "twice"},
	} {
		s := linear()
		c.change(&s)
		if x, err := New(s); err == nil || !strings.Contains(err.Error(), c.want) {
			if err == nil {
				x.Close()
			}
			t.Errorf("%s: got %v", name, err)
		}
	}
}

func TestSchedule(t *testing.T) {
	for _, c := range []struct {
		s    Schedule
		step int
		want float64
	}{
		{Schedule{}, 0, 1},
		{Schedule{}, 1 << 30, 1},
		{Schedule{WarmUp: 5000}, 0, 0},
		{Schedule{WarmUp: 5000}, 2500, 0.5},
		{Schedule{WarmUp: 5000}, 5000, 1},
		{Schedule{Kind: "linear", Total: 10}, 5, 0.5},
		{Schedule{Kind: "linear", Total: 10, Floor: 0.2}, 20, 0.2},
		{Schedule{Kind: "cosine", Total: 10}, 5, 0.5},
		{Schedule{Kind: "cosine", Total: 12, WarmUp: 2}, 2, 1},
		{Schedule{Kind: "cosine", Total: 12, WarmUp: 2, Floor: 0.1}, 12, 0.1},
	} {
		if got := c.s.At(c.step); math.Abs(got-c.want) > 1e-12 {
			t.Errorf("%+v at %d: %v, want %v", c.s, c.step, got, c.want)
		}
	}
}

func FuzzReadCheckpoint(f *testing.F) {
	s := linear()
	x := newTestTrainer(f, s)
	path := filepath.Join(f.TempDir(), "c")
	if err := x.Save(path, nil); err != nil {
		f.Fatal(err)
	}
	good, err := os.ReadFile(path)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Add(good[:20])
	want := x.header()
	f.Fuzz(func(t *testing.T, b []byte) {
		var state [][]byte
		for _, x := range stateBytes(x.next) {
			state = append(state, make([]byte, len(x)))
		}
		if _, err := readCheckpoint(bytes.NewReader(b), want, state); err == nil && !bytes.Equal(b[len(b)-32:], good[len(good)-32:]) && len(b) == len(good) {
			t.Log("another whole checkpoint")
		} else if err != nil && !errors.Is(err, ErrCheckpoint) {
			t.Errorf("untyped error %v", err)
		}
	})
}
