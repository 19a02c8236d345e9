package finetune

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"math"
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

// Config is one fine-tune.
type Config struct {
	// Backbone is the ONNX file to start from, imported by inference/backbone.
	Backbone string
	// Out is the ONNX file that is written: the same model with tuned weights.
	Out string
	// Normals and Fakes are the training images.
	Normals, Fakes Set
	// HeldNormals and HeldFakes are images that are not trained on: the loss on
	// them is reported after each epoch, and can end the training
	// (Recipe.Patience). Both or neither.
	HeldNormals, HeldFakes Set
	// Recipe says how to train.
	Recipe Recipe

	// Start is the head to start from, for a backbone of its dimension; nil: as the
	// recipe says.
	Start *Head

	// Session says where and with how many threads.
	Session ort.Options
	// Chunk is the number of steps in one call of ONNX Runtime, between which
	// progress is reported and cancelling takes effect; 0: optim chooses.
	Chunk int
	// Recompute computes the activations of each block again when its gradients
	// are due, instead of keeping them: less memory for more time.
	Recompute bool

	// Checkpoint is a folder: the state of training is saved there after every
	// epoch, every five minutes and when ctx ends; a run that finds its state there
	// goes on from it. Empty: no checkpoints.
	Checkpoint string

	// Progress, if set, is called after each chunk of steps and each epoch.
	Progress func(Progress)

	// head replaces the drawn head, in tests.
	head []onnx.Tensor
}

// Progress is how far a run is.
type Progress struct {
	Epoch    int     `json:"epoch"` // whole epochs done
	Epochs   int     `json:"epochs"`
	Step     int     `json:"step"` // steps done
	Steps    int     `json:"steps"`
	Loss     float64 `json:"loss"`      // mean of the last chunk
	Accuracy float64 `json:"accuracy"`  // 0..1, of the last chunk, before its updates
	HeldLoss float64 `json:"held_loss"` // after the last epoch; NaN-free: −1 before the first
	Seconds  float64 `json:"seconds"`   // per step, mean of the last chunk
	// Images counts what was trained on, for images per second.
	Images int `json:"images"`
}

// Epoch is what one epoch gave.
type Epoch struct {
	Loss         float64  `json:"loss"`     // mean of its steps, before each update
	Accuracy     float64  `json:"accuracy"` // 0..1
	HeldLoss     *float64 `json:"held_loss,omitempty"`
	HeldAccuracy *float64 `json:"held_accuracy,omitempty"`
}

// Result is what a run gave.
type Result struct {
	Backbone backbone.Info `json:"backbone"`
	Epochs   []Epoch       `json:"epochs"`
	Best     int           `json:"best"`    // the epoch, from 1, whose weights were kept
	Stopped  string        `json:"stopped"` // why: "epochs" or "converged"
	Steps    int           `json:"steps"`
	Trained  int           `json:"trained"` // numbers that were trained, head included
	Frozen   int           `json:"frozen"`  // numbers that were not
	Resumed  int           `json:"resumed,omitempty"`
	Seconds  float64       `json:"seconds"` // of this process
	// Dropout is the probability in use: 0 for foreign models.
	Dropout float64 `json:"dropout"`
	// ServedDifference is the largest relative difference between the scores that
	// the trainer's weights and the written file give; at most MaxDifference.
	ServedDifference float64 `json:"served_difference"`
	// Head has the classifier that was trained along and is not part of the file.
	Head Head `json:"-"`
}

// Head is the linear classifier on the embedding: row 0 of Weight [2, D] and
// Bias[0] for normal, 1 for fake.
type Head struct {
	Weight []float32
	Bias   []float32
}

// state is kept in checkpoints beside the weights.
type state struct {
	Fingerprint string  `json:"fingerprint"`
	Epochs      []Epoch `json:"epochs"`
	Best        int     `json:"best"`
	Since       int     `json:"since"` // epochs since the best
	// Of the epoch in progress.
	Loss, Accuracy float64
	Count          int
}

// ErrServed: the written model does not score as the trained one.
var ErrServed = errors.New("the served model differs from the trained one")

// MaxDifference bounds Result.ServedDifference.
const MaxDifference = 1e-5

// Run fine-tunes and writes cfg.Out. When ctx ends it saves a checkpoint, where
// it has a folder for that, and returns ctx's error; nothing is written to Out
// unless the run is whole and its check holds.
func Run(ctx context.Context, cfg Config) (_ *Result, err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("fine-tune %s: %w", cfg.Backbone, err)
		}
	}()
	start := time.Now()
	if err := cfg.validate(); err != nil {
		return nil, err
	}
	r := &runner{Config: cfg}
	defer func() { err = errors.Join(err, r.close()) }()
	if err := r.open(); err != nil {
		return nil, err
	}
	if err := r.train(ctx); err != nil {
		return nil, err
	}
	if err := r.export(ctx); err != nil {
		return nil, err
	}
	r.result.Seconds = time.Since(start).Seconds()
	return r.result, nil
}

func (c Config) validate() error {
	errs := []error{c.Recipe.Validate()}
	fail := func(format string, a ...any) { errs = append(errs, fmt.Errorf(format, a...)) }
	if c.Normals == nil || c.Normals.Len() == 0 {
		fail("there are no normal images")
	}
	if c.Fakes == nil || c.Fakes.Len() == 0 {
		fail("there are no fakes")
	}
	if (c.HeldNormals == nil) != (c.HeldFakes == nil) {
		fail("held-out images need normals and fakes")
	} else if c.HeldNormals != nil && c.HeldNormals.Len()*c.HeldFakes.Len() == 0 {
		fail("held-out images need normals and fakes")
	}
	if c.Recipe.Patience > 0 && c.HeldNormals == nil {
		fail("stopping by convergence needs held-out images")
	}
	if c.Out == "" {
		fail("no file is given for the tuned model")
	}
	return errors.Join(errs...)
}

// runner is one run.
type runner struct {
	Config
	net     *network
	drop    dropout
	trainer *optim.Trainer
	feed    *feeder
	held    *feeder // nil: nothing is held out
	cache   *cacheRoom
	part    int // images in a part of a step
	state   state
	result  *Result
	temp    string // folder for the best weights where no checkpoints are kept
	saved   time.Time
}

func (r *runner) close() error {
	var errs []error
	if r.trainer != nil {
		errs = append(errs, r.trainer.Close())
	}
	if r.net != nil {
		errs = append(errs, r.net.Close())
	}
	if r.temp != "" {
		errs = append(errs, os.RemoveAll(r.temp))
	}
	return errors.Join(errs...)
}

// cachedImages are those whose activations stay in a processor's second cache, for the
// most part: a step of ViT-S in such parts takes 0.96 of the time of 16 images at once.
const cachedImages = 4

// openNetwork reads the backbone, and has steps made of small parts where these are
// faster and nobody says otherwise. A checkpoint may be taken up in parts of another size.
func (r *runner) openNetwork() (err error) {
	r.part = cmp.Or(r.Recipe.MicroBatch, r.Recipe.Batch)
	if r.net, err = openNetwork(r.Backbone, r.part); err != nil {
		return err
	}
	if r.Recipe.MicroBatch == 0 && r.Recipe.Batch%cachedImages == 0 && r.net.own != nil && r.Session.Device.IsCPU() {
		r.part = cachedImages
	}
	return nil
}

// open reads the backbone, builds the training graph and takes up a checkpoint.
func (r *runner) open() (err error) {
	if err := r.openNetwork(); err != nil {
		return err
	}
	if r.drop, err = findDropout(r.net, r.Recipe.Dropout); err != nil {
		return err
	}
	spec, err := r.spec()
	if err != nil {
		return err
	}
	if r.trainer, err = optim.New(spec); err != nil {
		return err
	}
	r.feed = r.newFeeder(r.Normals, r.Fakes, false)
	if r.HeldNormals != nil {
		r.held = r.newFeeder(r.HeldNormals, r.HeldFakes, true)
	}
	r.result = &Result{Backbone: r.net.info, Dropout: 0}
	if r.drop.active() {
		r.result.Dropout = r.Recipe.Dropout
	}
	trained := map[string]bool{}
	for _, name := range r.trainer.Trained() {
		trained[name] = true
	}
	for _, w := range spec.Weights {
		if trained[w.Name] {
			r.result.Trained += w.Elements()
		} else {
			r.result.Frozen += w.Elements()
		}
	}
	return r.resume()
}

const (
	cacheBytes = 1 << 30         // of memory for resized images
	saveEvery  = 5 * time.Minute // between checkpoints within an epoch
)

// newFeeder reads batches from two sets; middle is for evaluation.
func (r *runner) newFeeder(normals, fakes Set, middle bool) *feeder {
	if r.cache == nil {
		r.cache = &cacheRoom{left: cacheBytes}
	}
	sized := func(s Set) *resized {
		return &resized{set: s, pre: r.net.pre, kept: map[int]*imaging.Image{}, room: r.cache}
	}
	rec := r.Recipe
	return &feeder{
		pre: r.net.pre, normals: sized(normals), fakes: sized(fakes),
		batch: rec.Batch, noise: r.drop.width, seed: rec.Seed, middle: middle, noCrop: rec.NoCrop, noFlip: rec.NoFlip,
	}
}

// spec is the training step.
func (r *runner) spec() (optim.Spec, error) {
	rec, pre := r.Recipe, r.net.pre
	dim := r.net.info.Dim
	if r.net.own == nil {
		for _, v := range r.net.graph.Outputs() {
			if v.Name() == backbone.OutputEmbedding {
				dim = v.Dim(1)
			}
		}
	}
	patterns, err := r.net.frozen(rec)
	if err != nil {
		return optim.Spec{}, err
	}
	var groups []optim.Group
	for _, p := range patterns {
		groups = append(groups, optim.Group{Pattern: p, Freeze: true})
	}
	top := r.head
	if r.Start != nil {
		if len(r.Start.Weight) != 2*dim || len(r.Start.Bias) != 2 {
			return optim.Spec{}, fmt.Errorf("the head to start from has %d weights, the backbone's embedding takes %d", len(r.Start.Weight), 2*dim)
		}
		top = []onnx.Tensor{onnx.FromFloat32(HeadWeight, r.Start.Weight, 2, dim), onnx.FromFloat32(HeadBias, r.Start.Bias, 2)}
	}
	if top == nil {
		top = head(dim, rec.Seed)
		if rec.ZeroHead {
			for _, w := range top {
				clear(w.Float32s())
			}
		}
	}
	if rec.HeadRate > 0 {
		groups = append(groups, optim.Group{Pattern: HeadWeight, LRScale: rec.HeadRate}, optim.Group{Pattern: HeadBias, LRScale: rec.HeadRate})
	}
	inputs := []optim.Input{
		{Name: inputImage, Type: onnx.Uint8, Shape: []int{rec.Batch, pre.Crop, pre.Crop, 3}},
		{Name: inputTarget, Type: onnx.Float, Shape: []int{rec.Batch, 2}},
	}
	evalInputs := []optim.Input{inputs[0], inputs[1]}
	if r.drop.active() {
		inputs = append(inputs, optim.Input{Name: inputNoise, Type: onnx.Int64, Shape: []int{rec.Batch, r.drop.width}})
	}
	if r.part != rec.Batch { // held-out batches are as large as one part
		for i := range evalInputs {
			s := append([]int{r.part}, evalInputs[i].Shape[1:]...)
			evalInputs[i].Shape = s
		}
	}
	var recompute func(node string) string
	if r.Recompute {
		recompute = segments
	}
	return optim.Spec{
		Name:       "fine-tune " + r.net.info.Name,
		Weights:    append(append([]onnx.Tensor{}, r.net.weights...), top...),
		Inputs:     inputs,
		Loss:       lossOf(r.net, r.drop),
		Eval:       lossOf(r.net, dropout{}),
		EvalInputs: evalInputs,
		Groups:     groups,
		Optimizer:  rec.Optimizer,
		Accumulate: rec.Batch / r.part,
		Calls:      optim.Calls{Chunk: r.Chunk},
		Session:    r.Session,
		Recompute:  recompute,
	}, nil
}

// segments labels the nodes of a network by its blocks, for recomputation.
func segments(node string) string {
	for part := range strings.SplitSeq(node, "/") {
		for _, prefix := range []string{"blocks.", "layer", "stages."} {
			if strings.HasPrefix(part, prefix) {
				return part
			}
		}
	}
	return ""
}

// fingerprint names everything that a checkpoint depends on.
func (r *runner) fingerprint() (string, error) {
	h := sha256.New()
	held := [2]int{}
	if r.held != nil {
		held = [2]int{r.HeldNormals.Len(), r.HeldFakes.Len()}
	}
	err := json.NewEncoder(h).Encode([]any{r.net.info, r.net.pre, r.Recipe, r.Normals.Len(), r.Fakes.Len(), held, r.Start})
	return hex.EncodeToString(h.Sum(nil)), err
}

func (r *runner) checkpoint(name string) string { return filepath.Join(r.Checkpoint, name) }

const (
	lastFile = "finetune.ckpt"
	bestFile = "finetune-best.ckpt"
)

func (r *runner) resume() (err error) {
	if r.state.Fingerprint, err = r.fingerprint(); err != nil {
		return err
	}
	r.saved = time.Now()
	if r.Checkpoint == "" {
		return nil
	}
	if err := os.MkdirAll(r.Checkpoint, 0o755); err != nil {
		return err
	}
	extra, err := r.trainer.Load(r.checkpoint(lastFile))
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	var s state
	if err := json.Unmarshal(extra, &s); err != nil {
		return fmt.Errorf("%s: %w", r.checkpoint(lastFile), err)
	}
	if s.Fingerprint != r.state.Fingerprint {
		return fmt.Errorf("%s is of another run (other images, backbone or recipe): remove it or use another folder", r.checkpoint(lastFile))
	}
	r.state = s
	r.result.Resumed = r.trainer.Step()
	return nil
}

func (r *runner) save() error {
	r.saved = time.Now()
	if r.Checkpoint == "" {
		return nil
	}
	return r.trainer.Save(r.checkpoint(lastFile), r.state)
}

// bestPath is where the best epoch's weights are.
func (r *runner) bestPath() (string, error) {
	if r.Checkpoint != "" {
		return r.checkpoint(bestFile), nil
	}
	if r.temp == "" {
		dir, err := os.MkdirTemp("", "nearmiss-finetune-")
		if err != nil {
			return "", err
		}
		r.temp = dir
	}
	return filepath.Join(r.temp, bestFile), nil
}

// train runs the epochs that are left.
func (r *runner) train(ctx context.Context) error {
	steps := r.feed.steps()
	s := &r.state
	for len(s.Epochs) < r.Recipe.Epochs && !r.converged() {
		left := (len(s.Epochs)+1)*steps - r.trainer.Step()
		err := r.trainer.Run(ctx, r.feed, left, optim.RunOptions{Progress: func(_ context.Context, p optim.Progress) error {
			r.account(p)
			if time.Since(r.saved) >= saveEvery {
				return r.save()
			}
			return nil
		}})
		if err != nil {
			if ctx.Err() != nil {
				err = errors.Join(err, r.save())
			}
			return err
		}
		if err := r.endEpoch(ctx); err != nil {
			if ctx.Err() != nil { // evaluated again when the run is taken up
				err = errors.Join(err, r.save())
			}
			return err
		}
	}
	r.result.Stopped = "epochs"
	if r.converged() {
		r.result.Stopped = "converged"
	}
	r.result.Epochs, r.result.Best, r.result.Steps = s.Epochs, s.Best, r.trainer.Step()
	if r.Recipe.Patience > 0 && s.Best != len(s.Epochs) {
		path, err := r.bestPath()
		if err != nil {
			return err
		}
		_, err = r.trainer.Load(path)
		return err
	}
	r.result.Best = len(s.Epochs)
	return nil
}

func (r *runner) converged() bool {
	return r.Recipe.Patience > 0 && r.state.Since >= r.Recipe.Patience
}

// account adds a chunk's steps to the epoch and reports.
func (r *runner) account(p optim.Progress) {
	s := &r.state
	loss, accuracy := 0.0, 0.0
	for i, l := range p.Losses {
		loss += l
		accuracy += p.Metrics[metricAccuracy][i]
	}
	n := len(p.Losses)
	s.Loss, s.Accuracy, s.Count = s.Loss+loss, s.Accuracy+accuracy, s.Count+n
	if r.Progress == nil || n == 0 {
		return
	}
	steps := r.feed.steps()
	out := Progress{
		Epoch: len(s.Epochs), Epochs: r.Recipe.Epochs, Step: p.Step, Steps: steps * r.Recipe.Epochs,
		Loss: loss / float64(n), Accuracy: accuracy / float64(n), HeldLoss: -1,
		Seconds: p.Seconds / float64(n), Images: min(p.Step*r.Recipe.Batch, p.Step/steps*r.feed.examples()+p.Step%steps*r.Recipe.Batch),
	}
	if len(s.Epochs) > 0 {
		if h := s.Epochs[len(s.Epochs)-1].HeldLoss; h != nil {
			out.HeldLoss = *h
		}
	}
	r.Progress(out)
}

// endEpoch evaluates, remembers the best weights and saves.
func (r *runner) endEpoch(ctx context.Context) error {
	s := &r.state
	e := Epoch{Loss: s.Loss / float64(max(s.Count, 1)), Accuracy: s.Accuracy / float64(max(s.Count, 1))}
	best := math.Inf(1)
	if s.Best > 0 {
		if h := s.Epochs[s.Best-1].HeldLoss; h != nil {
			best = *h
		}
	}
	if r.held != nil {
		loss, accuracy, err := r.evaluate(ctx)
		if err != nil {
			return err
		}
		e.HeldLoss, e.HeldAccuracy = &loss, &accuracy
	}
	s.Epochs = append(s.Epochs, e)
	s.Loss, s.Accuracy, s.Count = 0, 0, 0
	if e.HeldLoss == nil || *e.HeldLoss < best*(1-r.Recipe.MinFall) {
		s.Best, s.Since = len(s.Epochs), 0
		if r.Recipe.Patience > 0 {
			path, err := r.bestPath()
			if err != nil {
				return err
			}
			if err := r.trainer.Save(path, nil); err != nil {
				return err
			}
		}
	} else {
		s.Since++
	}
	return r.save()
}

// evaluate is the mean loss and accuracy over the held-out images: batches are
// weighted by their real images, so that the last one may be partial.
func (r *runner) evaluate(ctx context.Context) (loss, accuracy float64, err error) {
	h := r.held
	h.batch = r.part
	total, n := h.examples(), h.steps()
	// The partial batch's mean is over fewer images: scale it to its share.
	src := optim.SourceFunc(func(ctx context.Context, step int, b optim.Batch) error {
		if err := h.Fill(ctx, step, b); err != nil {
			return err
		}
		real := min(h.batch, total-step*h.batch)
		share := float32(real*n) / float32(total)
		for i, t := range b.Float32s(inputTarget) {
			b.Float32s(inputTarget)[i] = t * share
		}
		return nil
	})
	loss, metrics, err := r.trainer.Evaluate(ctx, src, n)
	return loss, metrics[metricAccuracy], err
}
