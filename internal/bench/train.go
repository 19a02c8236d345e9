package bench

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/nearmiss/nearmiss/internal/cputime"
	"github.com/nearmiss/nearmiss/training/optim"
)

// TrainOptions say how Train measures.
type TrainOptions struct {
	// Rounds is how often forward pass and step take turns. Default 5.
	Rounds int
	// Steps is the number of steps in one round's Loop. Default 2.
	Steps int
	// Single also measures steps as single calls, without a Loop.
	Single bool
	// State is where weights and the optimiser's state are between calls, as optim.Spec has it.
	State optim.State
	// Profile also finds out where the time of a step goes, by operator.
	Profile bool
	// Progress, if set, is called with the name of the part that begins.
	Progress func(part string)
}

// TrainResult is what a training step costs.
type TrainResult struct {
	Name      string  `json:"name"`
	Device    string  `json:"device"`
	Batch     int     `json:"batch"`
	Threads   int     `json:"threads"` // 0: ONNX Runtime's choice
	Trained   int     `json:"trained_parameters"`
	Frozen    int     `json:"frozen_parameters"`
	BuildTime float64 `json:"build_seconds"` // of the training graph, until it is loaded
	// State is where weights and the optimiser's state are between calls: host or device;
	// StateWhy says why they are not on a device that is no CPU.
	State    optim.State `json:"state"`
	StateWhy string      `json:"state_why,omitempty"`

	// Forward is the forward pass with the loss, all weights constant, as in
	// service. Step is a whole training step in a Loop.
	Forward Seconds `json:"forward"`
	Step    Seconds `json:"step"`
	// SingleStep is a step as a call of its own; zero where not measured.
	SingleStep Seconds `json:"single_step"`
	Ratio      float64 `json:"ratio"` // Step ÷ Forward, medians
	// RatioCPU is the same in processor time, which a busy machine disturbs
	// less; 0 where it is unknown.
	RatioCPU float64 `json:"ratio_cpu"`

	// GFLOP counts the matrix products and convolutions, 2 for each
	// multiplication with addition.
	ForwardGFLOP float64 `json:"forward_gflop"`
	StepGFLOP    float64 `json:"step_gflop"`
	// RatioGFLOP is what Ratio would be if only these counted.
	RatioGFLOP        float64 `json:"ratio_gflop"`
	ForwardGFLOPPerS  float64 `json:"forward_gflop_per_second"`
	StepGFLOPPerS     float64 `json:"step_gflop_per_second"`
	PeakMemoryBytes   int64   `json:"peak_memory_bytes"`   // of the process during steps; 0 where unknown
	BeforeMemoryBytes int64   `json:"before_memory_bytes"` // of the process before the training graph was made

	// Operators has the share of each kind of operator in a step's time, the
	// largest first; empty where not measured.
	Operators []OperatorTime `json:"operators,omitempty"`
	// UpdateShare, BackwardShare and ForwardShare divide the same time by what
	// the operators are for: optimiser and clipping, gradients, the rest.
	UpdateShare   float64 `json:"update_share,omitempty"`
	BackwardShare float64 `json:"backward_share,omitempty"`
	ForwardShare  float64 `json:"forward_share,omitempty"`
}

// Seconds is a time over several rounds.
type Seconds struct {
	Median float64 `json:"seconds"`
	Min    float64 `json:"min"`
	Max    float64 `json:"max"`
	CPU    float64 `json:"cpu_seconds"` // processor time, the mean of the rounds
}

// OperatorTime is the time of one kind of operator.
type OperatorTime struct {
	Operator string  `json:"operator"`
	Share    float64 `json:"share"`
	Seconds  float64 `json:"seconds"` // in one step
}

// rounds collects the times of one part.
type rounds struct {
	wall []float64
	cpu  float64
}

func (r *rounds) seconds() Seconds {
	if len(r.wall) == 0 {
		return Seconds{}
	}
	v := slices.Clone(r.wall)
	slices.Sort(v)
	return Seconds{v[len(v)/2], v[0], v[len(v)-1], r.cpu / float64(len(v))}
}

// Train measures a training step and its forward pass. The batches come from
// src; the weights change.
func Train(ctx context.Context, s optim.Spec, src optim.Source, o TrainOptions) (_ TrainResult, err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("bench training of %s: %w", s.Name, err)
		}
	}()
	o.Rounds = cmp.Or(max(o.Rounds, 0), 5)
	o.Steps = cmp.Or(max(o.Steps, 0), 2)
	if o.Progress == nil {
		o.Progress = func(string) {}
	}
	runtime.GC()
	r := TrainResult{Name: s.Name, Device: s.Session.Device.String(), Threads: s.Session.IntraOpThreads}
	resetPeak()
	_, r.BeforeMemoryBytes = memory()
	s.Chunk, s.SingleSteps, s.State = o.Steps, false, o.State
	o.Progress("build")
	start := time.Now()
	loop, err := optim.New(s)
	if err != nil {
		return r, err
	}
	defer loop.Close()
	r.BuildTime = time.Since(start).Seconds()
	r.Batch = s.Inputs[0].Shape[0]
	var why error
	if r.State, why = loop.State(); why != nil {
		r.StateWhy = why.Error()
	}
	cost, err := loop.Cost(o.Steps)
	if err != nil {
		return r, err
	}
	r.Trained, r.Frozen = cost.Trained, cost.Frozen
	r.ForwardGFLOP, r.StepGFLOP = 1e-9*float64(cost.Forward), 1e-9*float64(cost.Step)
	r.RatioGFLOP = r.StepGFLOP / r.ForwardGFLOP

	steps := func(t *optim.Trainer, n int, into *rounds) error {
		var waited float64
		start, cpu := time.Now(), cputime.Seconds()
		err := t.Run(ctx, src, n, optim.RunOptions{Progress: func(_ context.Context, p optim.Progress) error {
			waited += p.Waited
			return nil
		}})
		into.wall = append(into.wall, (time.Since(start).Seconds()-waited)/float64(n))
		into.cpu += (cputime.Seconds() - cpu) / float64(n)
		return err
	}
	// The peak is that of the training session, before the others are there.
	o.Progress("first steps")
	if err := steps(loop, o.Steps, &rounds{}); err != nil {
		return r, err
	}
	r.PeakMemoryBytes, _ = memory()

	forward, err := loop.Forward()
	if err != nil {
		return r, err
	}
	defer forward.Close()
	pass := func(into *rounds) error {
		start, cpu := time.Now(), cputime.Seconds()
		if err := forward.Run(ctx); err != nil {
			return err
		}
		into.wall = append(into.wall, time.Since(start).Seconds())
		into.cpu += cputime.Seconds() - cpu
		return nil
	}
	var single *optim.Trainer
	if o.Single {
		s := s
		s.SingleSteps = true
		if single, err = optim.New(s); err != nil {
			return r, err
		}
		defer single.Close()
		if err := steps(single, 1, &rounds{}); err != nil {
			return r, err
		}
	}
	if err := pass(&rounds{}); err != nil {
		return r, err
	}
	var forwards, loops, singles rounds
	for round := range o.Rounds {
		o.Progress(fmt.Sprintf("round %d of %d", round+1, o.Rounds))
		if err := pass(&forwards); err != nil {
			return r, err
		}
		if err := steps(loop, o.Steps, &loops); err != nil {
			return r, err
		}
		if single != nil {
			if err := steps(single, o.Steps, &singles); err != nil {
				return r, err
			}
		}
	}
	r.Forward, r.Step, r.SingleStep = forwards.seconds(), loops.seconds(), singles.seconds()
	r.Ratio = r.Step.Median / r.Forward.Median
	if r.Forward.CPU > 0 {
		r.RatioCPU = r.Step.CPU / r.Forward.CPU
	}
	r.ForwardGFLOPPerS = r.ForwardGFLOP / r.Forward.Median
	r.StepGFLOPPerS = r.StepGFLOP / r.Step.Median
	if o.Profile {
		o.Progress("profile")
		if err := r.profile(s, func(t *optim.Trainer) error {
			return steps(t, o.Steps, &rounds{})
		}, o.Steps); err != nil {
			return r, err
		}
	}
	return r, nil
}

// profile runs steps under ONNX Runtime's profiler and reads its trace.
func (r *TrainResult) profile(s optim.Spec, run func(t *optim.Trainer) error, steps int) error {
	dir, err := os.MkdirTemp("", "nearmiss-profile-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	s.Session.Profile = filepath.Join(dir, "trace")
	t, err := optim.New(s)
	if err != nil {
		return err
	}
	err = run(t)
	if e := t.Close(); err == nil { // closing writes the trace
		err = e
	}
	if err != nil {
		return err
	}
	files, err := filepath.Glob(filepath.Join(dir, "trace*.json"))
	if err != nil || len(files) != 1 {
		return fmt.Errorf("the profiler left %d files", len(files))
	}
	b, err := os.ReadFile(files[0])
	if err != nil {
		return err
	}
	return r.readTrace(b, steps)
}

// readTrace sums up the node events of an ONNX Runtime trace. Nodes that hold a
// subgraph are left out: their time is that of the nodes in it.
func (r *TrainResult) readTrace(b []byte, steps int) error {
	var events []struct {
		Cat, Name string
		Dur       float64 // µs
		Args      struct {
			OpName string `json:"op_name"`
		}
	}
	if err := json.Unmarshal(b, &events); err != nil {
		return fmt.Errorf("read the profiler's trace: %w", err)
	}
	byOp := map[string]float64{}
	var total, update, backward float64
	for _, e := range events {
		op := e.Args.OpName
		if e.Cat != "Node" || !strings.HasSuffix(e.Name, "_kernel_time") || op == "Loop" || op == "If" {
			continue
		}
		byOp[op] += e.Dur
		total += e.Dur
		switch {
		case strings.Contains(e.Name, "grad/"):
			backward += e.Dur
		case strings.Contains(e.Name, "update/") || strings.Contains(e.Name, "clip/"):
			update += e.Dur
		}
	}
	if total == 0 {
		return fmt.Errorf("read the profiler's trace: it has no operators")
	}
	for op, d := range byOp {
		r.Operators = append(r.Operators, OperatorTime{op, d / total, d * 1e-6 / float64(steps)})
	}
	slices.SortFunc(r.Operators, func(a, b OperatorTime) int {
		return cmp.Or(cmp.Compare(b.Share, a.Share), cmp.Compare(a.Operator, b.Operator))
	})
	r.UpdateShare, r.BackwardShare = update/total, backward/total
	r.ForwardShare = 1 - r.UpdateShare - r.BackwardShare
	return nil
}

// memory is the largest and the present resident size of this process, in
// bytes, 0 where the system does not tell.
func memory() (peak, now int64) {
	b, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return 0, 0
	}
	field := func(name string) int64 {
		_, rest, ok := bytes.Cut(b, []byte("\n"+name+":"))
		if !ok {
			return 0
		}
		words := strings.Fields(string(rest[:min(len(rest), 64)]))
		if len(words) == 0 {
			return 0
		}
		kib, _ := strconv.ParseInt(words[0], 10, 64)
		return kib << 10
	}
	return field("VmHWM"), field("VmRSS")
}

// resetPeak makes the system forget the largest size so far (Linux; elsewhere
// nothing happens).
func resetPeak() { _ = os.WriteFile("/proc/self/clear_refs", []byte("5"), 0) }
