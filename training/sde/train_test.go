package sde

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"math"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"gonum.org/v1/gonum/mat"

	"github.com/nearmiss/nearmiss/inference/imaging"
	"github.com/nearmiss/nearmiss/inference/onnx"
	"github.com/nearmiss/nearmiss/inference/ort"
	"github.com/nearmiss/nearmiss/training/autodiff"
	"github.com/nearmiss/nearmiss/training/optim"
)

// The loss and its gradient with respect to every weight, against PyTorch.
func TestGradientsEqualPyTorch(t *testing.T) {
	for _, c := range networkCases(t) {
		t.Run(c.Name, func(t *testing.T) {
			g := onnx.New("gradient")
			image := []int{2, c.Channels, c.Size, c.Size}
			x, label := g.Input("x", onnx.Float, image...), g.Input("label", onnx.Float, 2)
			target := g.Input("target", onnx.Float, image...)
			inputs := [][]float32{lcg("x", image, 1.5, 0), c.Label, lcg("target", image, 1, 0)}
			weights := map[string]*onnx.Value{}
			var trained []*onnx.Value
			for _, p := range c.params(t) {
				weights[p.Name] = g.Input(p.Name, onnx.Float, p.Shape...)
				inputs = append(inputs, p.Data)
				if !p.Fixed {
					trained = append(trained, weights[p.Name])
				}
			}
			loss := c.loss(g, x, label, target, func(name string) *onnx.Value { return weights[name] }, 1)
			grads, err := autodiff.Gradient(g, loss, trained)
			if err != nil {
				t.Fatal(err)
			}
			g.Output("loss", g.Reshape(loss, 1))
			for i, v := range grads {
				g.Output("gradient/"+trained[i].Name(), v)
			}
			out := runGraph(t, g, inputs...)
			if e := math.Abs(float64(out[0][0]) - c.Loss); e > 1e-5*c.Loss {
				t.Errorf("loss: got %.7f, want %.7f", out[0][0], c.Loss)
			}
			largest := 0.0
			for _, v := range c.Gradients {
				largest = max(largest, v)
			}
			seen := 0
			for i, v := range g.Outputs()[1:] {
				name := strings.TrimPrefix(v.Name(), "gradient/")
				want, ok := c.Gradients[name]
				if !ok {
					t.Errorf("gradient of %s: PyTorch has none", name)
					continue
				}
				seen++
				norm := 0.0
				for _, d := range out[1+i] {
					norm += float64(d) * float64(d)
				}
				if norm = math.Sqrt(norm); math.Abs(norm-want) > 1e-3*want+1e-6*largest {
					t.Errorf("gradient of %s: norm %.6g, want %.6g", name, norm, want)
				}
			}
			if seen != len(c.Gradients) {
				t.Errorf("%d gradients, want %d", seen, len(c.Gradients))
			}
		})
	}
}

// gaussianSet holds n grey images of 4×4 pixels, normally distributed with the
// returned mean and covariance (of what the bytes hold, in [−1, 1]).
func gaussianSet(t testing.TB, n int, s SDE) (set *Set, mean []float64, cov *mat.SymDense) {
	t.Helper()
	const side, d = 4, 16
	rng := rand.New(rand.NewPCG(1, 9))
	var pics Pictures
	for range n {
		im := imaging.New(side, side)
		common := rng.NormFloat64()
		for y := range side {
			for x := range side {
				v := 0.1*float64(x-y) + 0.15*common + 0.15*rng.NormFloat64()
				b := uint8(math.Round(min(max((v+1)/2, 0), 1) * 255))
				im.SetRGB(x, y, b, b, b)
			}
		}
		pics = append(pics, im)
	}
	set, err := newSet(pics, side, 1)
	if err != nil {
		t.Fatal(err)
	}
	lo, hi := s.Range()
	all := make([]float32, n*d)
	for i := range n {
		set.put(all[i*d:(i+1)*d], i, lo, hi, 0)
	}
	mean, cov = moments(all, d)
	return set, mean, cov
}

var oneThread = ort.Options{IntraOpThreads: 1}

// On normally distributed images the trained score approaches the closed form.
func TestTheTrainedScoreApproachesTheAnalyticOne(t *testing.T) {
	net := Network{Size: 4, Channels: 1, Width: 24, Multipliers: []int{1}, Blocks: 1}
	for _, name := range Names {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := testSDE(t, name)
			set, mean, cov := gaussianSet(t, 2000, s)
			tr, err := newTrainer(s, net, set, TrainOptions{
				Batch: 48, LearningRate: 4e-3, Warmup: 10, EMA: 0.96, Augment: NoAugment, Seed: 1, Session: oneThread,
			})
			if err != nil {
				t.Fatal(err)
			}
			defer closing(t, tr)
			exact := gaussian{s, mean, cov}
			before := scoreError(t, s, net, averaged(t, tr), exact)
			if err := tr.Run(t.Context(), 160, nil); err != nil {
				t.Fatal(err)
			}
			after := scoreError(t, s, net, averaged(t, tr), exact)
			t.Logf("relative squared error of the score: %.3f before training, %.4f after", before, after)
			if after > 0.1 || before < 3*after { // edm's untrained network already points to the mean
				t.Errorf("relative squared error of the score: %.3f before training, %.4f after; want it below 0.1", before, after)
			}
		})
	}
}

// scoreError is the mean squared error of a network's score over that of no
// score at all, at five noise levels from a third to ten times the data's width.
func scoreError(t testing.TB, s SDE, n Network, ps []Param, exact gaussian) float64 {
	t.Helper()
	const batch, d = 200, 16
	m, err := newNetworkModel(s, n, ps, batch, oneThread)
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	var chol mat.Cholesky
	if !chol.Factorize(exact.cov) {
		t.Fatal("the covariance is singular")
	}
	var l mat.TriDense
	chol.LTo(&l)
	rng := rand.New(rand.NewPCG(3, 3))
	lo, hi := s.Range()
	total := 0.0
	for _, sigma := range []float64{0.07, 0.2, 0.5, 1, 2} {
		tm := s.Time(sigma * (hi - lo) / 2)
		scale, std := s.Marginal(tm)
		x := make([]float32, batch*d)
		for i := range batch {
			z := mat.NewVecDense(d, nil)
			for j := range d {
				z.SetVec(j, rng.NormFloat64())
			}
			var v mat.VecDense
			v.MulVec(&l, z)
			for j := range d {
				x[i*d+j] = float32(scale*(exact.mean[j]+v.AtVec(j)) + std*rng.NormFloat64())
			}
		}
		got, want := make([]float32, batch*d), make([]float32, batch*d)
		if err := errors.Join(m.Score(t.Context(), got, x, batch, tm), exact.Score(t.Context(), want, x, batch, tm)); err != nil {
			t.Fatal(err)
		}
		e, ref := 0.0, 0.0
		for i := range got {
			e += math.Pow(float64(got[i]-want[i]), 2)
			ref += math.Pow(float64(want[i]), 2)
		}
		total += e / ref / 5
	}
	return total
}

func closing(t testing.TB, tr *Trainer) {
	if err := tr.Close(); err != nil {
		t.Error(err)
	}
}

// testTrainer trains a very small network on fifty images.
func testTrainer(t testing.TB, o TrainOptions, dropout float64) *Trainer {
	t.Helper()
	s := testSDE(t, "edm")
	set, _, _ := gaussianSet(t, 50, s)
	o.Session = oneThread
	tr, err := newTrainer(s, Network{Size: 4, Channels: 1, Width: 8, Multipliers: []int{1}, Blocks: 1, Dropout: dropout}, set, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { closing(t, tr) })
	return tr
}

func losses(t testing.TB, tr *Trainer, steps int) []float64 {
	t.Helper()
	var out []float64
	if err := tr.Run(t.Context(), steps, func(i StepInfo) { out = append(out, i.Loss) }); err != nil {
		t.Fatal(err)
	}
	return out
}

func TestTrainingGoesOnFromACheckpoint(t *testing.T) {
	o := TrainOptions{Batch: 8, LearningRate: 1e-3, Warmup: 3, Seed: 4}
	whole := testTrainer(t, o, 0)
	losses(t, whole, 10)
	path := filepath.Join(t.TempDir(), "half.ckpt")
	if err := whole.Save(path); err != nil {
		t.Fatal(err)
	}
	want := losses(t, whole, 10)

	half := testTrainer(t, o, 0)
	if err := half.Load(path); err != nil {
		t.Fatal(err)
	}
	if half.Steps() != 10 {
		t.Fatalf("resumed at step %d, want 10", half.Steps())
	}
	if got := losses(t, half, 10); !slices.Equal(got, want) {
		t.Errorf("losses after resuming %v, without interruption %v", got, want)
	}
	for i, p := range averaged(t, half) {
		if !slices.Equal(p.Data, averaged(t, whole)[i].Data) {
			t.Errorf("%s differs after resuming", p.Name)
		}
	}
	o.Seed = 5
	if err := testTrainer(t, o, 0).Load(path); err == nil || !strings.Contains(err.Error(), "another training") {
		t.Errorf("going on with another seed: got %v", err)
	}
}

func TestATrainedNetworkIsReadBack(t *testing.T) {
	tr := testTrainer(t, TrainOptions{Batch: 4, LearningRate: 1e-3, Warmup: -1}, 0)
	losses(t, tr, 3)
	want := Trained{SDE: "edm", Network: tr.net, Step: 3, Params: averaged(t, tr)}
	path := filepath.Join(t.TempDir(), "net.onnx")
	if err := want.WriteFile(path); err != nil {
		t.Fatal(err)
	}
	got, err := readTrained(path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	g := onnx.New("other")
	g.Output("y", g.Neg(g.Input("x", onnx.Float, 1)))
	other := filepath.Join(t.TempDir(), "other.onnx")
	if err := g.WriteFile(other); err != nil {
		t.Fatal(err)
	}
	if _, err := readTrained(other); !errors.Is(err, ErrNetwork) {
		t.Errorf("a model that is no score network: got %v", err)
	}
}

func TestTheTrainingLogIsJSONLines(t *testing.T) {
	var log bytes.Buffer
	tr := testTrainer(t, TrainOptions{Batch: 4, Warmup: 4, LearningRate: 1e-3, Log: &log, LogEvery: 2}, 0)
	losses(t, tr, 5)
	var steps []int
	var rates []float64
	for line := range strings.Lines(log.String()) {
		var v struct {
			Kind string
			StepInfo
		}
		if err := json.Unmarshal([]byte(line), &v); err != nil || v.Kind != "step" || v.GradientNorm <= 0 || v.ImagesPerS <= 0 {
			t.Fatalf("line %q: %v", line, err)
		}
		steps, rates = append(steps, v.Step), append(rates, v.LearningRate)
	}
	if !slices.Equal(steps, []int{1, 2, 4}) {
		t.Errorf("steps logged: %v, want 1, 2 and 4", steps)
	}
	if rates[0] != 0 || math.Abs(rates[2]-7.5e-4) > 1e-9 {
		t.Errorf("learning rates %v: want a rise from 0 to 0.001 over 4 steps", rates)
	}
}

func TestDropoutDrawsAnotherMaskEveryStep(t *testing.T) {
	// One image, one network and almost no learning: what differs between steps
	// is noise, the same in both runs, and the masks.
	o := TrainOptions{Batch: 8, LearningRate: 1e-3, Warmup: -1, Seed: 3}
	plain, dropped := losses(t, testTrainer(t, o, 0), 30), losses(t, testTrainer(t, o, 0.5), 30)
	same := 0
	for i := range plain {
		if plain[i] == dropped[i] {
			same++
		}
	}
	if same > 1 { // in the first step the residual branches are zero
		t.Errorf("%d of 30 steps have the same loss with dropout as without", same)
	}
}

func TestTrainingRefuses(t *testing.T) {
	s := testSDE(t, "vp")
	set, _, _ := gaussianSet(t, 10, s)
	net := Network{Size: 4, Channels: 1, Width: 8, Multipliers: []int{1}, Blocks: 1}
	for want, change := range map[string]func(*Network, *TrainOptions){
		"images of":     func(n *Network, _ *TrainOptions) { n.Size = 8 },
		"batch":         func(_ *Network, o *TrainOptions) { o.Batch = -1 },
		"learning rate": func(_ *Network, o *TrainOptions) { o.LearningRate = -1 },
		"augmentation":  func(_ *Network, o *TrainOptions) { o.Augment = "shear" },
	} {
		n, o := net, TrainOptions{Batch: 2}
		change(&n, &o)
		if _, err := newTrainer(s, n, set, o); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got %v", want, err)
		}
	}
	tr := testTrainer(t, TrainOptions{Batch: 4}, 0)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := tr.Run(ctx, 3, nil); !errors.Is(err, context.Canceled) || tr.Steps() != 0 {
		t.Errorf("a cancelled run: got %v at step %d", err, tr.Steps())
	}
	wild := testTrainer(t, TrainOptions{Batch: 4, LearningRate: 1e30, Warmup: -1}, 0)
	if err := wild.Run(t.Context(), 30, nil); !errors.Is(err, optim.ErrDiverged) {
		t.Errorf("a learning rate of 1e30: got %v", err)
	}
}

func averaged(t testing.TB, tr *Trainer) []Param {
	t.Helper()
	ps, err := tr.Averaged()
	if err != nil {
		t.Fatal(err)
	}
	return ps
}
