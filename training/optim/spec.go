package optim

import (
	"cmp"
	"errors"
	"fmt"
	"math"
	"path"
	"strings"

	"github.com/nearmiss/nearmiss/inference/onnx"
	"github.com/nearmiss/nearmiss/inference/ort"
)

// Spec says what is trained, and how.
type Spec struct {
	// Name is for messages and for checkpoints, which refuse another name.
	Name string
	// Weights are all weights of the model, float32, trainable and frozen. The
	// initial values of trainable ones are copied; those of frozen ones are
	// aliased and must not change.
	Weights []onnx.Tensor
	// Inputs are the parts of one step's batch.
	Inputs []Input
	// Loss appends the forward pass and the loss of training.
	Loss LossFunc
	// Eval appends the forward pass and the loss of Evaluate, for instance
	// without dropout; nil means Loss.
	Eval LossFunc
	// EvalInputs are the parts of a batch for Eval; nil means Inputs.
	EvalInputs []Input
	// Groups set weights apart by name; the first whose pattern matches counts.
	Groups []Group

	Optimizer Optimizer
	// Accumulate splits the batch of each step into so many parts along the
	// first axis of every input, whose gradients are averaged: for batches that
	// do not fit in memory at once. Default 1.
	Accumulate int
	// Session has the options of ONNX Runtime.
	Session ort.Options
	Calls

	// Recompute trades about a third more time for memory: see
	// autodiff.Recompute. It labels the nodes of the loss, whose names begin with
	// the names of the graphs around them, by segment; nil keeps everything.
	Recompute func(node string) string
}

// Calls says how steps become calls of ONNX Runtime.
type Calls struct {
	// Chunk is the largest number of steps in one call of ONNX Runtime.
	// Default: 10, or less where ten batches exceed 64 MiB.
	Chunk int
	// SingleSteps runs each step as a call of its own instead of a Loop.
	SingleSteps bool
	// State is where the trained weights and the optimiser's state are between calls of
	// ONNX Runtime. Default: on the session's device, where that is no CPU and has
	// memory for them that can be had; else in Go's memory.
	State State
}

// Input is one part of a batch.
type Input struct {
	Name  string
	Type  onnx.DataType
	Shape []int // the first dimension is the number of examples
}

// parts is the input's shape where its examples come in so many parts; with
// steps > 0, for as many steps.
func (in Input) parts(steps, parts int) (shape []int) {
	if steps > 0 {
		shape = append(shape, steps)
	}
	if parts > 1 {
		shape = append(shape, parts)
	}
	return append(append(shape, in.Shape[0]/parts), in.Shape[1:]...)
}

// Weights gives the value that stands for a weight in the graph being built:
// one that the optimiser updates, or an initialiser where it is frozen.
type Weights func(name string) *onnx.Value

// Param is for backbone.ForwardOptions.
func (w Weights) Param(t onnx.Tensor) *onnx.Value { return w(t.Name) }

// LossFunc appends a forward pass and its loss to g. The batch is in the order
// of the inputs, with the first dimension divided by Accumulate. It may be
// called several times, for several graphs, and must do the same each time.
type LossFunc func(g *onnx.Graph, batch []*onnx.Value, w Weights) (Loss, error)

// Loss is what a LossFunc returns.
type Loss struct {
	Value *onnx.Value // one float: the mean over the batch's examples
	// Metrics are further single floats to be recorded at every step, such as
	// the accuracy.
	Metrics []Metric
}

// Metric is a named single number.
type Metric struct {
	Name  string
	Value *onnx.Value
}

// Group sets options for the weights whose names match a pattern.
type Group struct {
	// Pattern is matched against the whole name: * stands for any characters,
	// ? for one, [0-5] for one of a set.
	Pattern string
	// Freeze keeps the weights as they are.
	Freeze bool
	// LRScale multiplies the learning rate; 0 means 1.
	LRScale float64
	// WeightDecay replaces the optimiser's; nil keeps it.
	WeightDecay *float64
}

func (g Group) matches(name string) bool {
	// path.Match keeps * from crossing slashes, which mean nothing here.
	const instead = "\x1f"
	ok, err := path.Match(strings.ReplaceAll(g.Pattern, "/", instead), strings.ReplaceAll(name, "/", instead))
	return ok && err == nil
}

// Kind names an optimiser.
type Kind string

// The optimisers, as PyTorch defines them.
const (
	SGD   Kind = "sgd"
	Adam  Kind = "adam"  // weight decay is added to the gradient
	AdamW Kind = "adamw" // weight decay shrinks the weight itself
)

// Optimizer is the rule that updates the weights.
type Optimizer struct {
	Kind         Kind    `json:"kind"`
	LearningRate float64 `json:"learning_rate"`
	WeightDecay  float64 `json:"weight_decay,omitempty"`
	// Momentum of SGD, 0..1.
	Momentum float64 `json:"momentum,omitempty"`
	// Beta1, Beta2 and Epsilon of Adam; 0 means 0.9, 0.999 and 1e-8.
	Beta1   float64 `json:"beta1,omitempty"`
	Beta2   float64 `json:"beta2,omitempty"`
	Epsilon float64 `json:"epsilon,omitempty"`
	// Clip bounds the global L2 norm of the gradients; 0 does not.
	Clip float64 `json:"clip,omitempty"`
	// EMA is the rate of the moving average of the weights, 0..1; 0 keeps none.
	// The rate of step n, counted from 1, is min(EMA, (1+n)/(10+n)).
	EMA float64 `json:"ema,omitempty"`
	// Schedule changes the learning rate over the steps.
	Schedule Schedule `json:"schedule"`
}

// Schedule is a learning rate's factor over the steps.
type Schedule struct {
	// Kind is "constant" (or empty), "linear" or "cosine": the way from 1 down
	// to Floor at step Total.
	Kind string `json:"kind,omitempty"`
	// Total is the step at which linear and cosine reach Floor.
	Total int `json:"total,omitempty"`
	// Floor is the last factor, 0..1.
	Floor float64 `json:"floor,omitempty"`
	// WarmUp lets the factor rise linearly from 0 at step 0 to 1 at step WarmUp.
	WarmUp int `json:"warm_up,omitempty"`
}

// At is the factor of a step, counted from 0.
func (s Schedule) At(step int) float64 {
	f := 1.0
	if s.Kind == "linear" || s.Kind == "cosine" {
		x := 1.0
		if s.Total > s.WarmUp {
			x = math.Min(1, math.Max(0, float64(step-s.WarmUp)/float64(s.Total-s.WarmUp)))
		}
		if s.Kind == "cosine" {
			x = (1 - math.Cos(math.Pi*x)) / 2
		}
		f = 1 - (1-s.Floor)*x
	}
	if step < s.WarmUp {
		f *= float64(step) / float64(s.WarmUp)
	}
	return f
}

func (o Optimizer) withDefaults() Optimizer {
	if o.Kind == Adam || o.Kind == AdamW {
		o.Beta1 = cmp.Or(o.Beta1, 0.9)
		o.Beta2 = cmp.Or(o.Beta2, 0.999)
		o.Epsilon = cmp.Or(o.Epsilon, 1e-8)
	}
	return o
}

func (o Optimizer) validate() error {
	var errs []error
	fail := func(format string, args ...any) { errs = append(errs, fmt.Errorf("optimiser: "+format, args...)) }
	if o.Kind != SGD && o.Kind != Adam && o.Kind != AdamW {
		fail("kind %q: use sgd, adam or adamw", o.Kind)
	}
	if !(o.LearningRate > 0) || math.IsInf(o.LearningRate, 0) {
		fail("learning rate %v must be positive", o.LearningRate)
	}
	for name, v := range map[string]float64{"momentum": o.Momentum, "beta1": o.Beta1, "beta2": o.Beta2, "ema": o.EMA} {
		if !(v >= 0 && v < 1) {
			fail("%s %v must lie in [0, 1)", name, v)
		}
	}
	for name, v := range map[string]float64{"weight decay": o.WeightDecay, "epsilon": o.Epsilon, "clip": o.Clip} {
		if !(v >= 0) {
			fail("%s %v must not be negative", name, v)
		}
	}
	switch o.Schedule.Kind {
	case "", "constant":
	case "linear", "cosine":
		if o.Schedule.Total < 1 {
			fail("a %s schedule needs its total number of steps", o.Schedule.Kind)
		}
	default:
		fail("schedule %q: use constant, linear or cosine", o.Schedule.Kind)
	}
	if o.Schedule.WarmUp < 0 || !(o.Schedule.Floor >= 0) {
		fail("schedule %+v: nothing may be negative", o.Schedule)
	}
	return errors.Join(errs...)
}

func (s Spec) validate() error {
	var errs []error
	fail := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	errs = append(errs, s.Optimizer.validate())
	if s.State != "" && s.State != OnHost && s.State != OnDevice {
		fail("state on %q: want %s or %s", s.State, OnHost, OnDevice)
	}
	if s.Loss == nil {
		fail("no loss is given")
	}
	if len(s.Inputs) == 0 {
		fail("a batch has no inputs")
	}
	for _, in := range s.Inputs {
		if len(in.Shape) == 0 || in.Shape[0] < 1 || in.Shape[0]%s.Accumulate != 0 {
			fail("input %q of shape %v cannot be split into %d parts", in.Name, in.Shape, s.Accumulate)
		}
	}
	seen := map[string]bool{}
	for _, w := range s.Weights {
		if w.Type != onnx.Float {
			fail("weight %q is %s: only float32 is trained", w.Name, w.Type)
		}
		if seen[w.Name] || w.Name == "" {
			fail("weight %q is there twice, or has no name", w.Name)
		}
		seen[w.Name] = true
	}
	for _, g := range s.Groups {
		if _, err := path.Match(g.Pattern, ""); err != nil {
			fail("group %q: %w", g.Pattern, err)
		}
		if g.LRScale < 0 {
			fail("group %q: learning rate scale %v", g.Pattern, g.LRScale)
		}
	}
	return errors.Join(errs...)
}

// group returns the options of a weight.
func (s Spec) group(name string) (freeze bool, scale, decay float64) {
	scale, decay = 1, s.Optimizer.WeightDecay
	for _, g := range s.Groups {
		if !g.matches(name) {
			continue
		}
		if g.LRScale > 0 {
			scale = g.LRScale
		}
		if g.WeightDecay != nil {
			decay = *g.WeightDecay
		}
		return g.Freeze, scale, decay
	}
	return false, scale, decay
}
