package pretrain

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/nearmiss/nearmiss/inference/backbone"
	"github.com/nearmiss/nearmiss/inference/imaging"
	"github.com/nearmiss/nearmiss/inference/onnx"
	"github.com/nearmiss/nearmiss/inference/ort"
	"github.com/nearmiss/nearmiss/training/optim"
)

// Config says what is trained, and how. [Starter] is the one of the starter
// backbone.
type Config struct {
	Spec backbone.Spec `json:"spec"`
	Seed uint64        `json:"seed"` // of the weights and of everything drawn
	// Steps of the optimiser.
	Steps        int     `json:"steps"`
	LearningRate float64 `json:"learning_rate"`
	WeightDecay  float64 `json:"weight_decay"`
	Temperature  float64 `json:"temperature"` // what cosines are divided by

	// Designs are drawn before the training, PoolNormals normal and PoolMarred
	// marred pictures of each: about 77 kB and 3 ms for a picture.
	Designs     int `json:"designs"`
	PoolNormals int `json:"pool_normals"`
	PoolMarred  int `json:"pool_marred"`
	// A batch has BatchDesigns designs with BatchNormals (at least 2) normal and
	// BatchMarred marred images each.
	BatchDesigns int `json:"batch_designs"`
	BatchNormals int `json:"batch_normals"`
	BatchMarred  int `json:"batch_marred"`
	// Appearances is the number of different colours, sections, mirrorings and turns in a
	// batch, which the designs share: with fewer than designs, colours alone do
	// not tell designs apart.
	Appearances int `json:"looks"`
	// Head is the width of a layer between the embedding and the loss, which is
	// dropped after the training; 0: none.
	Head int `json:"head"`
	// Thumbnail weighs a second loss: to draw, from the embedding, the image at
	// 8 × 8 pixels; 0: none. It keeps colours and their places in the embedding,
	// which the first loss alone forgets as far as it can.
	Thumbnail float64 `json:"thumbnail"`
	// Corrupt is the share, 0..1, of the marred images that are normal ones with
	// a local corruption (training/corrupt) instead of a drawn defect.
	Corrupt float64 `json:"corrupt"`

	// Session has the options of ONNX Runtime; its threads also draw.
	Session ort.Options `json:"-"`
	// Work is a folder for checkpoints, from which the same training goes on;
	// empty: none.
	Work string `json:"-"`
	// Every is the number of steps between two checkpoints. Default 200.
	Every int `json:"-"`
	// Progress, if set, is called now and then.
	Progress func(Progress) `json:"-"`
}

// Starter is how the starter backbone of the repository was trained.
func Starter() Config {
	return Config{
		Spec: backbone.Spec{
			Family: backbone.ViT, Size: 112, Dim: 192, Depth: 3, Heads: 3, Hidden: 768, Patch: 16, ClassPos: true, NormEps: 1e-6,
		},
		Seed: 1, Steps: 6400, LearningRate: 1.5e-3, WeightDecay: 0.05, Temperature: 0.1,
		Designs: 1200, PoolNormals: 8, PoolMarred: 6,
		BatchDesigns: 12, BatchNormals: 3, BatchMarred: 2, Appearances: 6, Head: 384, Thumbnail: 4, Corrupt: 0.3,
	}
}

// batch is the number of images in a batch.
func (c Config) batch() int { return c.BatchDesigns * (c.BatchNormals + c.BatchMarred) }

// Stages of a training.
const (
	StageDraw  = "draw"
	StageTrain = "train"
)

// Progress is how far a training is.
type Progress struct {
	Stage string
	Done  int // designs drawn, or steps
	Total int
	Loss  float64            // mean over the latest steps; 0 before the first
	Parts map[string]float64 // of the loss, not weighed, likewise: contrast, thumbnail
	Left  time.Duration      // of this stage, as estimated; 0: not known yet
}

// Result is a trained backbone.
type Result struct {
	Model  *backbone.Model
	Losses []float64 // of each step that this call made
	From   int       // the first of them
}

// ErrConfig is wrapped by every error about a Config that cannot be trained.
var ErrConfig = errors.New("cannot train such a backbone")

// Validate reports settings that make no training.
func (c Config) Validate() error {
	var errs []error
	fail := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	if c.Spec.Family != backbone.ViT {
		fail("family %q: only ViTs are trained", c.Spec.Family)
	}
	errs = append(errs, c.Spec.Validate())
	if c.Steps < 1 {
		fail("%d steps", c.Steps)
	}
	for name, v := range map[string]float64{"learning rate": c.LearningRate, "temperature": c.Temperature} {
		if !(v > 0) || math.IsInf(v, 0) {
			fail("the %s %v must be positive", name, v)
		}
	}
	if !(c.Corrupt >= 0 && c.Corrupt <= 1) {
		fail("the share of corruptions %v is not between 0 and 1", c.Corrupt)
	}
	if c.PoolNormals < c.BatchNormals || c.BatchNormals < 2 {
		fail("%d normal images of %d: draw at least as many, and show at least 2", c.BatchNormals, c.PoolNormals)
	}
	if c.PoolMarred < 1 || c.BatchMarred < 1 {
		fail("%d marred images of %d: at least 1 is needed", c.BatchMarred, c.PoolMarred)
	}
	if c.Appearances < 1 || c.Head < 0 || !(c.Thumbnail >= 0) {
		fail("%d looks, a head of width %d and a weight of %v", c.Appearances, c.Head, c.Thumbnail)
	}
	if c.Spec.Size%thumbSide != 0 {
		fail("%d pixels are no multiple of %d", c.Spec.Size, thumbSide)
	}
	if c.BatchDesigns < 2 || c.Designs < c.BatchDesigns {
		fail("%d designs of %d: draw at least as many, and show at least 2", c.BatchDesigns, c.Designs)
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("%w: %w", ErrConfig, err)
	}
	return nil
}

// CheckpointFile is the name of the checkpoint in Work.
const CheckpointFile = "pretrain.checkpoint"

// Train draws the pictures and trains the backbone. When ctx ends, what was
// learnt lies in Work, and the same call goes on from there.
func Train(ctx context.Context, c Config) (*Result, error) {
	if err := c.Validate(); err != nil {
		return nil, err
	}
	r, err := train(ctx, c)
	if err != nil {
		return nil, fmt.Errorf("pretrain %s: %w", c.Spec.Name(), err)
	}
	return r, nil
}

func train(ctx context.Context, c Config) (_ *Result, err error) {
	c.Every = cmp.Or(max(c.Every, 0), 200)
	if c.Progress == nil {
		c.Progress = func(Progress) {}
	}
	m, err := backbone.Random(c.Spec, c.Seed)
	if err != nil {
		return nil, err
	}
	// The whole picture, as the training shows it.
	m.Preprocess = imaging.Preprocess{
		Resize: c.Spec.Size, Crop: c.Spec.Size, Interpolation: imaging.Bicubic, Mean: m.Preprocess.Mean, Std: m.Preprocess.Std,
	}
	t, err := optim.New(c.optim(m))
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, t.Close()) }()
	if err := c.resume(t); err != nil {
		return nil, err
	}
	start := time.Now()
	p, err := drawPool(ctx, c, c.Session.IntraOpThreads, func(done int) {
		c.Progress(Progress{Stage: StageDraw, Done: done, Total: c.Designs, Left: left(start, done, c.Designs)})
	})
	if err != nil {
		return nil, err
	}
	res := &Result{Model: m, From: t.Step()}
	if err := c.run(ctx, t, p, res); err != nil {
		return nil, err
	}
	averages, err := t.EMAWeights()
	if err != nil {
		return nil, err
	}
	for _, w := range averages {
		if strings.HasPrefix(w.Name, "head.") {
			continue
		}
		if err := m.Set(w.Name, w.Float32s()); err != nil {
			return nil, err
		}
	}
	m.Format, m.Source, m.Seed = backbone.FormatStarter, "drawn pictures", c.Seed
	return res, nil
}

func (c Config) optim(m *backbone.Model) optim.Spec {
	n := c.batch()
	return optim.Spec{
		Name:    "pretrain",
		Weights: append(m.Tensors(), c.head()...),
		Inputs: []optim.Input{
			{Name: inputImage, Type: onnx.Uint8, Shape: []int{n, c.Spec.Size, c.Spec.Size, 3}},
			{Name: inputTarget, Type: onnx.Float, Shape: []int{n, n}},
		},
		Groups: c.undecayed(),
		Optimizer: optim.Optimizer{
			Kind: optim.AdamW, LearningRate: c.LearningRate, WeightDecay: c.WeightDecay, Clip: 1, EMA: 0.99,
			Schedule: optim.Schedule{Kind: "cosine", Total: c.Steps, Floor: 0.01, WarmUp: c.Steps / 20},
		},
		Loss: func(g *onnx.Graph, batch []*onnx.Value, w optim.Weights) (optim.Loss, error) {
			f, err := m.Forward(g, batch[0], backbone.ForwardOptions{Param: w.Param})
			if err != nil {
				return optim.Loss{}, err
			}
			e := f.Embedding
			if c.Head > 0 {
				e = g.Gelu(g.Gemm(e, w(headIn), w(headBias), onnx.Attrs{"transB": 1}))
				e = g.Gemm(e, w(headOut), nil, onnx.Attrs{"transB": 1})
			}
			loss := c.contrast(g, e, batch[1])
			metrics := []optim.Metric{{Name: "contrast", Value: loss}}
			if c.Thumbnail > 0 {
				small := c.thumbnail(g, f.Embedding, batch[0], w)
				metrics = append(metrics, optim.Metric{Name: "thumbnail", Value: small})
				loss = g.Add(loss, g.Scale(small, c.Thumbnail))
			}
			return optim.Loss{Value: loss, Metrics: metrics}, nil
		},
		Session: c.Session,
	}
}

// Names of the head's weights, which no backbone has.
const (
	headIn   = "head.0.weight"
	headBias = "head.0.bias"
	headOut  = "head.1.weight"

	thumbWeight = "head.thumbnail.weight"
	thumbBias   = "head.thumbnail.bias"
)

// headDim is the number of dimensions that the loss sees behind a head.
const headDim = 128

func (c Config) head() []onnx.Tensor {
	r := rand.New(rand.NewPCG(c.Seed, 0x68656164))
	draw := func(name string, out, in int) onnx.Tensor {
		w := make([]float32, out*in)
		for i := range w {
			w[i] = float32(r.NormFloat64() / math.Sqrt(float64(in)))
		}
		return onnx.FromFloat32(name, w, out, in)
	}
	var out []onnx.Tensor
	if c.Head > 0 {
		out = append(out, draw(headIn, c.Head, c.Spec.Dim), onnx.FromFloat32(headBias, make([]float32, c.Head), c.Head), draw(headOut, headDim, c.Head))
	}
	if c.Thumbnail > 0 {
		const pixels = 3 * thumbSide * thumbSide
		out = append(out, draw(thumbWeight, pixels, c.Spec.Dim), onnx.FromFloat32(thumbBias, make([]float32, pixels), pixels))
	}
	return out
}

// undecayed are the weights that do not shrink: norms, biases, positions.
func (c Config) undecayed() []optim.Group {
	var none float64
	var out []optim.Group
	for _, p := range []string{"*.bias", "*norm*", "cls_token", "pos_embed"} {
		out = append(out, optim.Group{Pattern: p, WeightDecay: &none})
	}
	return out
}

// contrast is the supervised contrastive loss of embeddings [N, D]: the mean,
// over the normal images, of the cross entropy between target [N, N] and the
// softmax of the cosines to all other images.
func (c Config) contrast(g *onnx.Graph, e, target *onnx.Value) *onnx.Value {
	n, anchors := c.batch(), float64(c.BatchDesigns*c.BatchNormals)
	length := g.Sqrt(g.Add(g.ReduceSum(g.Mul(e, e), true, 1), g.ConstLike(e, 1e-6)))
	u := g.Div(e, length)
	logits := g.Scale(g.MatMul(u, g.Transpose(u, 1, 0)), 1/c.Temperature)
	self := make([]float32, n*n) // an image is not compared with itself
	for i := range n {
		self[i*n+i] = -1e4
	}
	logits = g.Add(logits, g.Initializer(onnx.FromFloat32("", self, n, n)))
	return g.Scale(g.ReduceSum(g.Mul(target, g.LogSoftmax(logits, -1)), false, 0, 1), -1/anchors)
}

// thumbSide is the side of a thumbnail, in pixels.
const thumbSide = 8

// thumbnail is the mean squared error of a linear guess, from the embedding, of
// the image [N, S, S, 3] at 8 × 8 pixels, samples −1 to 1.
func (c Config) thumbnail(g *onnx.Graph, e, image *onnx.Value, w optim.Weights) *onnx.Value {
	n, cell := c.batch(), c.Spec.Size/thumbSide
	x := g.Reshape(g.Cast(image, onnx.Float), n, thumbSide, cell, thumbSide, cell, 3)
	x = g.Reshape(g.ReduceMean(x, false, 2, 4), n, thumbSide*thumbSide*3)
	x = g.Sub(g.Scale(x, 2.0/255), g.ConstLike(x, 1))
	d := g.Sub(g.Gemm(e, w(thumbWeight), w(thumbBias), onnx.Attrs{"transB": 1}), x)
	return g.ReduceMean(g.Mul(d, d), false, 0, 1)
}

// resume loads the checkpoint of the same training, if there is one.
func (c Config) resume(t *optim.Trainer) error {
	if c.Work == "" {
		return nil
	}
	if err := os.MkdirAll(c.Work, 0o755); err != nil {
		return err
	}
	path := filepath.Join(c.Work, CheckpointFile)
	if _, err := os.Stat(path); errors.Is(err, os.ErrNotExist) {
		return nil
	}
	made, err := t.Load(path)
	if err != nil {
		return err
	}
	mine, err := json.Marshal(c)
	if err != nil {
		return err
	}
	if string(mine) != string(made) {
		return fmt.Errorf("%w: %s belongs to a training with other settings: remove it, or choose another folder", ErrConfig, path)
	}
	return nil
}

func (c Config) run(ctx context.Context, t *optim.Trainer, p pool, res *Result) error {
	path := filepath.Join(c.Work, CheckpointFile)
	save := func() error {
		if c.Work == "" {
			return nil
		}
		return t.Save(path, c)
	}
	start, from, mean, parts := time.Now(), t.Step(), 0.0, map[string]float64{}
	follow := func(was, v float64) float64 {
		if was == 0 {
			return v
		}
		return was + 0.05*(v-was)
	}
	saved := from
	err := t.Run(ctx, &feeder{c, p}, c.Steps-from, optim.RunOptions{Progress: func(_ context.Context, now optim.Progress) error {
		for _, l := range now.Losses {
			mean = follow(mean, l)
		}
		for name, all := range now.Metrics {
			for _, v := range all {
				parts[name] = follow(parts[name], v)
			}
		}
		res.Losses = append(res.Losses, now.Losses...)
		c.Progress(Progress{
			Stage: StageTrain, Done: now.Step, Total: c.Steps, Loss: mean, Parts: maps.Clone(parts), Left: left(start, now.Step-from, c.Steps-from),
		})
		if now.Step-saved < c.Every {
			return nil
		}
		saved = now.Step
		return save()
	}})
	if err != nil {
		if ctx.Err() != nil {
			return errors.Join(err, save())
		}
		return err
	}
	return save()
}

// left estimates the time that the rest takes.
func left(start time.Time, done, total int) time.Duration {
	if done < 1 {
		return 0
	}
	return time.Since(start) * time.Duration(total-done) / time.Duration(done)
}
