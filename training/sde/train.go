package sde

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"

	"github.com/nearmiss/nearmiss/inference/onnx"
	"github.com/nearmiss/nearmiss/inference/ort"
	"github.com/nearmiss/nearmiss/training/optim"
)

// TrainOptions say how a score network learns. The zero value of a field with a
// default means the default; the defaults are the paper's.
type TrainOptions struct {
	Batch        int     `json:"batch"`         // images a step; default 128
	LearningRate float64 `json:"learning_rate"` // of Adam (0.9, 0.999, 1e-8); default 2e-4
	Warmup       int     `json:"warmup"`        // steps over which the learning rate rises from 0; default 5000, negative for none
	Clip         float64 `json:"clip"`          // largest norm of the gradient; default 1
	// EMA is the decay of the averaged weights, which samples are made with;
	// default 0.9999 for vp and subvp, 0.999 otherwise. The average starts with
	// decay min(EMA, (1+n)/(10+n)) at step n.
	EMA     float64 `json:"ema"`
	Augment Augment `json:"augment"` // default Flip
	Seed    uint64  `json:"seed"`    // of weights, noise, times, order and flips
	// Session says where and with how many threads to compute.
	Session ort.Options `json:"-"`
	// Log gets one JSON object a line for every LogEvery-th step (default 50).
	Log      io.Writer `json:"-"`
	LogEvery int       `json:"-"`
}

func (o TrainOptions) withDefaults(s SDE) (TrainOptions, error) {
	o.Batch = cmp.Or(o.Batch, 128)
	o.LearningRate = cmp.Or(o.LearningRate, 2e-4)
	o.Warmup = cmp.Or(o.Warmup, 5000)
	o.Clip = cmp.Or(o.Clip, 1)
	if o.EMA == 0 {
		o.EMA = 0.999
		if n := s.Name(); n == "vp" || n == "subvp" {
			o.EMA = 0.9999
		}
	}
	o.Augment = cmp.Or(o.Augment, Flip)
	o.LogEvery = cmp.Or(o.LogEvery, 50)
	switch {
	case o.Batch < 1:
		return o, fmt.Errorf("train score network: batch of %d", o.Batch)
	case !(o.LearningRate > 0) || !(o.Clip > 0) || !(o.EMA > 0 && o.EMA < 1):
		return o, fmt.Errorf("train score network: learning rate %g, clip %g, ema %g: want positive numbers, ema below 1", o.LearningRate, o.Clip, o.EMA)
	case !slices.Contains(Augments, o.Augment):
		return o, fmt.Errorf("train score network: unknown augmentation %q, take one of %v", o.Augment, Augments)
	}
	return o, nil
}

// StepInfo is what one training step says of itself, and one line of the log.
type StepInfo struct {
	Step         int     `json:"step"` // steps done, this one included
	Loss         float64 `json:"loss"`
	GradientNorm float64 `json:"gradient_norm"` // before clipping
	LearningRate float64 `json:"learning_rate"`
	ImagesPerS   float64 `json:"images_per_s"` // over the steps computed in one call
}

// Trainer trains one network on one set of images. It is not safe for
// concurrent use.
type Trainer struct {
	sde   SDE
	net   Network
	o     TrainOptions
	data  *Set
	optim *optim.Trainer
	fixed []Param // the network's weights as they began, with those that stay
}

// newTrainer prepares to train a network on a set of images of its size. The
// caller closes it.
func newTrainer(s SDE, n Network, data *Set, o TrainOptions) (*Trainer, error) {
	t, err := untrained(s, n, data, o)
	if err != nil {
		return nil, err
	}
	t.optim, err = optim.New(t.spec())
	return t, err
}

// untrained is a Trainer without what runs its steps.
func untrained(s SDE, n Network, data *Set, o TrainOptions) (*Trainer, error) {
	o, err := o.withDefaults(s)
	if err != nil {
		return nil, err
	}
	if data.Size != n.Size || data.Channels != n.Channels {
		return nil, fmt.Errorf("train score network: images of %d×%d×%d, network for %d×%d×%d",
			data.Channels, data.Size, data.Size, n.Channels, n.Size, n.Size)
	}
	t := &Trainer{sde: s, net: n, o: o, data: data}
	t.fixed, err = n.Init(o.Seed)
	return t, err
}

// Names of the training graph's inputs.
const (
	inputNoised = "x"      // [batch, C, H, W] what the network sees
	inputLabel  = "label"  // [batch] its noise level
	inputTarget = "target" // [batch, C, H, W] what it should say
)

func (t *Trainer) spec() optim.Spec {
	shape := []int{t.o.Batch, t.net.Channels, t.net.Size, t.net.Size}
	spec := optim.Spec{
		Name: "score network",
		Inputs: []optim.Input{
			{Name: inputNoised, Type: onnx.Float, Shape: shape},
			{Name: inputLabel, Type: onnx.Float, Shape: shape[:1]},
			{Name: inputTarget, Type: onnx.Float, Shape: shape},
		},
		Loss: func(g *onnx.Graph, batch []*onnx.Value, w optim.Weights) (optim.Loss, error) {
			return optim.Loss{Value: t.net.loss(g, batch[0], batch[1], batch[2], w, lossScale(t.sde, t.data.dim()))}, nil
		},
		Optimizer: optim.Optimizer{
			Kind: optim.Adam, LearningRate: t.o.LearningRate, Clip: t.o.Clip, EMA: t.o.EMA,
			Schedule: optim.Schedule{WarmUp: max(t.o.Warmup, 0)},
		},
		Session: t.o.Session,
	}
	for _, p := range t.fixed {
		spec.Weights = append(spec.Weights, onnx.FromFloat32(p.Name, p.Data, p.Shape...))
		if p.Fixed {
			spec.Groups = append(spec.Groups, optim.Group{Pattern: p.Name, Freeze: true})
		}
	}
	return spec
}

// loss appends the network in training mode and its loss.
func (n Network) loss(g *onnx.Graph, x, label, target *onnx.Value, w func(name string) *onnx.Value, scale float64) *onnx.Value {
	u := n.attach(g, x, label, true, func(name string, _ []int, _ initial) *onnx.Value { return w(name) })
	d := g.Sub(u.f, target)
	return g.Scale(g.ReduceMean(g.Mul(d, d), false), scale)
}

// Close releases the training graph.
func (t *Trainer) Close() error { return t.optim.Close() }

// Steps is the number of steps done.
func (t *Trainer) Steps() int { return t.optim.Step() }

// Run trains for some steps. each, which may be nil, is called after every step, some
// time after it was done. When ctx ends, Steps says how far training came.
func (t *Trainer) Run(ctx context.Context, steps int, each func(StepInfo)) error {
	return t.optim.Run(ctx, newFeed(t), steps, optim.RunOptions{Progress: func(_ context.Context, p optim.Progress) error {
		for i, loss := range p.Losses {
			info := StepInfo{Step: p.Step - len(p.Losses) + 1 + i, Loss: loss, GradientNorm: p.GradientNorms[i]}
			info.LearningRate = t.o.LearningRate
			if t.o.Warmup > 0 {
				info.LearningRate *= min(1, float64(info.Step-1)/float64(t.o.Warmup))
			}
			info.ImagesPerS = float64(t.o.Batch*len(p.Losses)) / p.Seconds
			if t.o.Log != nil && (info.Step%t.o.LogEvery == 0 || info.Step == 1) {
				if err := logLine(t.o.Log, "step", info); err != nil {
					return err
				}
			}
			if each != nil {
				each(info)
			}
		}
		return nil
	}})
}

// feed makes the batches of training: what step n sees depends on the seed and
// on n alone.
type feed struct {
	t     *Trainer
	clean []float32
	order []int // of an epoch
	epoch int
}

func newFeed(t *Trainer) *feed {
	return &feed{t: t, clean: make([]float32, t.o.Batch*t.data.dim()), epoch: -1}
}

// Fill is optim.Source's.
func (f *feed) Fill(_ context.Context, step int, b optim.Batch) error {
	t := f.t
	r := newRand(t.o.Seed, streamTrain, uint64(step))
	lo, hi := t.sde.Range()
	dim := t.data.dim()
	for i := range t.o.Batch {
		t.data.put(f.clean[i*dim:(i+1)*dim], f.pick(step*t.o.Batch+i), lo, hi, t.o.Augment.draw(r))
	}
	in := inputs{b.Float32s(inputNoised), b.Float32s(inputLabel), b.Float32s(inputTarget)}
	in.draw(t.sde, f.clean, r)
	return nil
}

// pick is the image at a place of the endless sequence of shuffled epochs.
func (f *feed) pick(at int) int {
	if e := at / f.t.data.n; e != f.epoch {
		f.epoch = e
		f.order = newRand(f.t.o.Seed, streamData, uint64(e)).Perm(f.t.data.n)
	}
	return f.order[at%f.t.data.n]
}

// Averaged are copies of the averaged weights, to sample with.
func (t *Trainer) Averaged() ([]Param, error) {
	all, err := t.optim.EMAWeights()
	if err != nil {
		return nil, err
	}
	ps := slices.Clone(t.fixed)
	for i, w := range all {
		ps[i].Data = w.Float32s()
	}
	return ps, nil
}

// resumable is what a training checkpoint says of its training.
type resumable struct {
	SDE     string       `json:"sde"`
	Network Network      `json:"network"`
	Options TrainOptions `json:"options"`
}

func (t *Trainer) resumable() resumable { return resumable{t.sde.Name(), t.net, t.o} }

// Save writes the whole state of training to a file.
func (t *Trainer) Save(path string) error { return t.optim.Save(path, t.resumable()) }

// Load goes on from a file that Save wrote in a training with the same diffusion,
// network and options, as if it had not been interrupted. (Masks of dropout are
// drawn from the beginning of their sequence again.)
func (t *Trainer) Load(path string) error {
	raw, err := t.optim.Load(path)
	if err != nil {
		return err
	}
	want, err := json.Marshal(t.resumable())
	if err != nil {
		return err
	}
	if string(raw) != string(want) {
		return fmt.Errorf("go on from %s: it is of another training, %s, than this one, %s", path, raw, want)
	}
	return nil
}

// logLine writes one JSON object with its kind.
func logLine(w io.Writer, kind string, v any) error {
	raw, err := json.Marshal(v)
	if err != nil {
		return err
	}
	line := append([]byte(`{"kind":"`+kind+`",`), raw[1:]...)
	if _, err := w.Write(append(line, '\n')); err != nil {
		return fmt.Errorf("write training log: %w", err)
	}
	return nil
}

// networkKey is the entry of a network file's metadata that says what it is.
const networkKey = "nearmiss.score_network"

// ErrNetwork marks a file that holds no score network.
var ErrNetwork = errors.New("not a score network")

// Trained is a network with its weights, ready to sample from.
type Trained struct {
	SDE     string  `json:"sde"`
	Network Network `json:"network"`
	Step    int     `json:"step"` // of training
	Params  []Param `json:"-"`
}

// WriteFile writes the network as an ONNX model for one image a call: inputs
// "x" [1, C, H, W] and "label" [1], output "f". What they mean depends on the
// diffusion, which its metadata name.
func (t Trained) WriteFile(path string) error {
	g, err := t.Network.Graph(1, t.Params)
	if err != nil {
		return err
	}
	raw, err := json.Marshal(t)
	if err != nil {
		return err
	}
	g.SetMetadata(networkKey, string(raw))
	return g.WriteFile(path)
}

// readTrained reads a network that [Trained.WriteFile] wrote.
func readTrained(path string) (Trained, error) {
	var t Trained
	g, err := onnx.ReadFile(path)
	if err != nil {
		return t, err
	}
	defer g.Close()
	if err := json.Unmarshal([]byte(g.Metadata()[networkKey]), &t); err != nil {
		return t, fmt.Errorf("read %s: %w: %w", path, ErrNetwork, err)
	}
	if t.Params, err = t.Network.Init(0); err != nil {
		return t, fmt.Errorf("read %s: %w: %w", path, ErrNetwork, err)
	}
	for i, p := range t.Params {
		v := g.Lookup(p.Name)
		if v == nil || v.Const() == nil || v.Type() != onnx.Float || !slices.Equal(v.Shape(), p.Shape) {
			return t, fmt.Errorf("read %s: %w: weight %s %v is missing", path, ErrNetwork, p.Name, p.Shape)
		}
		t.Params[i].Data = slices.Clone(v.Const().Float32s())
	}
	return t, nil
}
