package finetune

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/nearmiss/nearmiss/inference/backbone"
	"github.com/nearmiss/nearmiss/inference/imaging"
	"github.com/nearmiss/nearmiss/inference/onnx"
	"github.com/nearmiss/nearmiss/inference/ort"
	"github.com/nearmiss/nearmiss/internal/eventually"
	"github.com/nearmiss/nearmiss/training/optim"
)

func TestMain(m *testing.M) { eventually.Main(m) }

// TestTorchExport fine-tunes a model that PyTorch exported at operator set 17,
// of which this project knows nothing, and compares every loss and the tuned
// embeddings with PyTorch's own training.
func TestTorchExport(t *testing.T) {
	b, err := os.ReadFile(filepath.Join("testdata", "torch_small.json"))
	if err != nil {
		t.Fatal(err)
	}
	var golden struct {
		Images    []int
		Labels    []int
		Losses    []float64
		Embedding [][]float64
	}
	if err := json.Unmarshal(b, &golden); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "torch.onnx")
	half := [3]float64{0.5, 0.5, 0.5}
	if _, err := backbone.Import(filepath.Join("testdata", "torch_small.onnx"), path, backbone.ImportOptions{
		LoadOptions: backbone.LoadOptions{Size: 24, Mean: &half, Std: &half},
	}); err != nil {
		t.Fatal(err)
	}
	const n = 8
	recipe := Paper()
	recipe.Batch, recipe.Dropout = n, 0
	recipe.Optimizer = optim.Optimizer{Kind: optim.SGD, LearningRate: 0.05, WeightDecay: 1e-3}
	top := []onnx.Tensor{onnx.FromFloat32(HeadWeight, make([]float32, 64), 2, 32), onnx.FromFloat32(HeadBias, make([]float32, 2), 2)}
	for i := range top[0].Float32s() {
		top[0].Float32s()[i] = float32(0.1 * math.Sin(float64(i)))
	}
	r := &runner{Config: Config{Recipe: recipe, head: top, Backbone: path, Out: filepath.Join(t.TempDir(), "tuned.onnx")}, part: n, result: &Result{}}
	if r.net, err = openNetwork(path, n); err != nil {
		t.Fatal(err)
	}
	defer r.close()
	spec, err := r.spec()
	if err != nil {
		t.Fatal(err)
	}
	if r.trainer, err = optim.New(spec); err != nil {
		t.Fatal(err)
	}
	var images Pictures
	for i := range n {
		m := imaging.New(24, 24)
		for j := range m.Pix {
			m.Pix[j] = uint8(golden.Images[i*len(m.Pix)+j])
		}
		images = append(images, m)
	}
	var losses []float64
	err = r.trainer.Run(context.Background(), optim.SourceFunc(func(_ context.Context, _ int, b optim.Batch) error {
		pix, target := b.Uint8s(inputImage), b.Float32s(inputTarget)
		clear(target)
		for i, m := range images {
			copy(pix[i*len(m.Pix):], m.Pix)
			target[2*i+golden.Labels[i]] = 1
		}
		return nil
	}), len(golden.Losses), optim.RunOptions{Progress: func(_ context.Context, p optim.Progress) error {
		losses = append(losses, p.Losses...)
		return nil
	}})
	if err != nil {
		t.Fatal(err)
	}
	for i, want := range golden.Losses {
		if !(math.Abs(losses[i]-want) <= 1e-4*math.Abs(want)) {
			t.Errorf("loss before step %d: %v, PyTorch has %v", i, losses[i], want)
		}
	}

	// The written file serves the tuned weights, at any batch size.
	r.feed = feederOf(r.net.pre, images[:4], images[4:], n)
	if err := r.export(context.Background()); err != nil {
		t.Fatal(err)
	}
	got := serve(t, r.Out, images)
	for i, row := range golden.Embedding {
		for j, want := range row {
			if math.Abs(float64(got[i*32+j])-want) > 2e-4 {
				t.Fatalf("tuned embedding %d,%d is %v, PyTorch has %v", i, j, got[i*32+j], want)
			}
		}
	}
	g, err := onnx.ReadFile(r.Out, onnx.BindBatch(1))
	if err != nil {
		t.Fatal(err)
	}
	defer g.Close()
	if g.Opset() != 17 {
		t.Errorf("operator set %d, want the model's own 17", g.Opset())
	}
}

func feederOf(pre imaging.Preprocess, normals, fakes Set, batch int) *feeder {
	r := &runner{Config: Config{Recipe: Recipe{Batch: batch}}}
	r.net = &network{pre: pre}
	return r.newFeeder(normals, fakes, false)
}

// serve embeds images with a model file.
func serve(t *testing.T, path string, images Pictures) []float32 {
	t.Helper()
	_, pre, err := backbone.ReadMetadata(path)
	if err != nil {
		t.Fatal(err)
	}
	pix := make([]uint8, len(images)*pre.Bytes())
	for i, m := range images {
		copy(pix[i*pre.Bytes():], m.CenterCrop(pre.Crop, pre.Crop).Pix)
	}
	s, err := ort.Open(path, ort.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	in, err := ort.NewTensor([]int{len(images), pre.Crop, pre.Crop, 3}, pix)
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	out, err := s.Run(context.Background(), []*ort.Tensor{in})
	if err != nil {
		t.Fatal(err)
	}
	defer ort.CloseAll(out...)
	return slices.Clone(out[0].Float32s())
}

// pictures are noisy images; marked ones have a small bright square.
func pictures(seed uint64, n int, marked bool) Pictures {
	r := rand.New(rand.NewPCG(seed, 1))
	var out Pictures
	for range n {
		m := imaging.New(40, 36)
		for i := range m.Pix {
			m.Pix[i] = uint8(80 + r.IntN(60))
		}
		if marked {
			x0, y0 := 12+r.IntN(8), 12+r.IntN(8)
			for y := range 10 {
				for x := range 10 {
					m.SetRGB(x0+x, y0+y, 230, 220, 200)
				}
			}
		}
		out = append(out, m)
	}
	return out
}

// tinyViT writes a small ViT of 32 px with random weights.
func tinyViT(t testing.TB) string {
	t.Helper()
	m, err := backbone.Random(backbone.Spec{
		Family: backbone.ViT, Dim: 64, Depth: 2, Heads: 1, Hidden: 64, Patch: 8, Size: 32, ClassPos: true, NormEps: 1e-6,
	}, 3)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "vit.onnx")
	if _, err := m.Write(path, backbone.Options{}); err != nil {
		t.Fatal(err)
	}
	return path
}

func config(t testing.TB) Config {
	rec := Paper()
	rec.Batch, rec.Epochs, rec.Optimizer.LearningRate, rec.Seed = 8, 3, 0.02, 11
	return Config{
		Backbone: tinyViT(t), Out: filepath.Join(t.TempDir(), "tuned.onnx"),
		Normals: pictures(1, 21, false), Fakes: pictures(2, 30, true),
		HeldNormals: pictures(3, 7, false), HeldFakes: pictures(4, 6, true),
		Recipe: rec, Chunk: 2, Session: ort.Options{IntraOpThreads: 1},
	}
}

func read(t *testing.T, path string) []byte {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestRun(t *testing.T) {
	ctx := context.Background()
	cfg := config(t)
	var last Progress
	reports := 0
	cfg.Progress = func(p Progress) {
		if p.Step <= last.Step {
			t.Errorf("progress goes from step %d to %d", last.Step, p.Step)
		}
		last, reports = p, reports+1
	}
	res, err := Run(ctx, cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Run("it learns, and says what it did", func(t *testing.T) {
		first, end := res.Epochs[0], res.Epochs[2]
		if !(*end.HeldLoss < *first.HeldLoss && *end.HeldLoss < 0.5 && *end.HeldAccuracy > 0.8) {
			t.Errorf("held-out loss went from %.3f to %.3f, accuracy to %.2f", *first.HeldLoss, *end.HeldLoss, *end.HeldAccuracy)
		}
		// 42 images in batches of 8: six steps an epoch, the last of two images.
		if res.Steps != 18 || res.Stopped != "epochs" || res.Best != 3 || res.Dropout != 0.1 || last.Step != 18 || last.Steps != 18 || last.Images != 126 {
			t.Errorf("result %+v, last progress %+v", res, last)
		}
		if len(res.Head.Weight) != 128 || len(res.Head.Bias) != 2 {
			t.Errorf("head of %d and %d", len(res.Head.Weight), len(res.Head.Bias))
		}
		block := 64*2 + 3*64*64 + 3*64 + 64*64 + 64 + 64*2 + 2*64*64 + 2*64
		if res.Frozen != block || res.Trained != res.Backbone.Params-block+130 {
			t.Errorf("%d numbers trained, %d frozen, of %d; a block has %d", res.Trained, res.Frozen, res.Backbone.Params, block)
		}
	})
	t.Run("frozen weights are untouched, the others are not", func(t *testing.T) {
		a, b := weights(t, cfg.Backbone), weights(t, cfg.Out)
		for name, w := range a {
			if same := bytes.Equal(w.Data, b[name].Data); same != strings.HasPrefix(name, "blocks.0.") {
				t.Errorf("%s: unchanged is %v", name, same)
			}
		}
	})
	t.Run("again, the same to the bit", func(t *testing.T) {
		again := cfg
		again.Out = filepath.Join(t.TempDir(), "again.onnx")
		again.Progress = nil
		if _, err := Run(ctx, again); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(read(t, cfg.Out), read(t, again.Out)) {
			t.Error("two runs with one seed give two models")
		}
	})
	t.Run("interrupted and resumed, the same to the bit", func(t *testing.T) {
		again := cfg
		again.Out = filepath.Join(t.TempDir(), "again.onnx")
		again.Checkpoint = t.TempDir()
		for _, stop := range []int{4, 10, 12} { // within the first, within and at the end of the second epoch
			cctx, cancel := context.WithCancel(ctx)
			again.Progress = func(p Progress) {
				if p.Step >= stop {
					cancel()
				}
			}
			if _, err := Run(cctx, again); !errors.Is(err, context.Canceled) {
				t.Fatalf("stopped at %d: %v", stop, err)
			}
			cancel()
			if _, err := os.Stat(again.Out); err == nil {
				t.Fatal("a model was written by an interrupted run")
			}
		}
		again.Progress = nil
		resumed, err := Run(ctx, again)
		if err != nil {
			t.Fatal(err)
		}
		if resumed.Resumed < 12 {
			t.Errorf("resumed at step %d", resumed.Resumed)
		}
		if d := cmp.Diff(res.Epochs, resumed.Epochs); d != "" {
			t.Error(d)
		}
		if !bytes.Equal(read(t, cfg.Out), read(t, again.Out)) {
			t.Error("the resumed run gives another model")
		}
		again.Recipe.Seed++
		if _, err := Run(ctx, again); err == nil || !strings.Contains(err.Error(), "another run") {
			t.Errorf("another recipe takes up the checkpoint: %v", err)
		}
	})
	t.Run("in micro-batches or not, nearly the same", func(t *testing.T) {
		again := cfg
		again.Out = filepath.Join(t.TempDir(), "again.onnx")
		again.Progress = nil
		again.Recipe.MicroBatch = again.Recipe.Batch
		whole, err := Run(ctx, again)
		if err != nil {
			t.Fatal(err)
		}
		for i, e := range whole.Epochs {
			if math.Abs(e.Loss-res.Epochs[i].Loss) > 1e-4 || math.Abs(*e.HeldLoss-*res.Epochs[i].HeldLoss) > 1e-4 {
				t.Errorf("epoch %d: loss %v and %v, parts have %v and %v", i, e.Loss, *e.HeldLoss, res.Epochs[i].Loss, *res.Epochs[i].HeldLoss)
			}
		}
	})
}

// TestParts: on the CPU steps are made of parts of four, where nobody says otherwise.
func TestParts(t *testing.T) {
	for name, c := range map[string]struct {
		batch, micro int
		device       ort.Device
		parts        int
	}{
		"two of four":             {8, 0, ort.Device{}, 2},
		"four do not divide it":   {6, 0, ort.Device{}, 1},
		"asked for all":           {8, 8, ort.Device{}, 1},
		"asked for two at a time": {8, 2, ort.Device{}, 4},
		"on a GPU":                {8, 0, ort.Device{Kind: "cuda"}, 1},
	} {
		cfg := config(t)
		cfg.Recipe.Batch, cfg.Recipe.MicroBatch, cfg.Session.Device = c.batch, c.micro, c.device
		spec, _, closeStep, err := Step(cfg)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if spec.Accumulate != c.parts || spec.EvalInputs[0].Shape[0] != c.batch/c.parts {
			t.Errorf("%s: %d parts, held-out batches of %v", name, spec.Accumulate, spec.EvalInputs[0].Shape)
		}
		if err := closeStep(); err != nil {
			t.Error(err)
		}
	}
}

// TestACheckpointOfAGPUIsTakenUpOnTheCPU: parts that nobody asked for are not what a run is
// known by, and neither were they to earlier programs.
func TestACheckpointOfAGPUIsTakenUpOnTheCPU(t *testing.T) {
	var names []string
	for _, device := range []ort.Device{{}, {Kind: "cuda"}} {
		r := &runner{Config: config(t)}
		r.Recipe.Batch, r.Session.Device = 8, device
		if err := r.openNetwork(); err != nil {
			t.Fatal(err)
		}
		name, err := r.fingerprint()
		if err != nil {
			t.Fatal(err)
		}
		names = append(names, name)
		if err := r.close(); err != nil {
			t.Error(err)
		}
	}
	if names[0] != names[1] {
		t.Error("the CPU takes the checkpoint for one of another run")
	}
}

func weights(t *testing.T, path string) map[string]onnx.Tensor {
	t.Helper()
	g, err := onnx.ReadFile(path, onnx.BindBatch(1))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { g.Close() })
	m, _, err := backbone.FromONNX(g)
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]onnx.Tensor{}
	for _, w := range m.Tensors() {
		out[w.Name] = w
	}
	return out
}

func TestZeroHead(t *testing.T) {
	c := config(t)
	c.Recipe.ZeroHead, c.Recipe.Epochs = true, 1
	c.Recipe.Optimizer.LearningRate = 1e-12
	res, err := Run(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	// A head of zeros knows nothing: the loss is ln 2.
	if e := res.Epochs[0]; math.Abs(e.Loss-math.Ln2) > 1e-4 || math.Abs(*e.HeldLoss-math.Ln2) > 1e-4 {
		t.Errorf("%+v", e)
	}
	c.Out += ".2"
	c.Recipe.HeadRate = 1e10 // 0.01 for the head alone
	if res, err = Run(t.Context(), c); err != nil {
		t.Fatal(err)
	}
	if slices.Max(res.Head.Weight) == 0 || math.Abs(*res.Epochs[0].HeldLoss-math.Ln2) < 1e-6 {
		t.Errorf("the head does not learn: loss %v on held-out images, %v", *res.Epochs[0].HeldLoss, res.Head.Weight)
	}
	for name, w := range weights(t, c.Out) {
		if before := weights(t, c.Backbone)[name]; before.Elements() > 1 {
			for i, v := range w.Float32s() {
				if math.Abs(float64(v-before.Float32s()[i])) > 1e-6 {
					t.Fatalf("%s moves, too", name)
				}
			}
		}
	}
}

func TestPatience(t *testing.T) {
	cfg := config(t)
	// The held-out labels are the wrong way round, so the loss there only rises.
	cfg.HeldNormals, cfg.HeldFakes = cfg.HeldFakes, cfg.HeldNormals
	cfg.Recipe.Epochs, cfg.Recipe.Patience, cfg.Recipe.Dropout = 20, 2, 0
	cfg.Recipe.FreezeBlocks = 0
	res, err := Run(context.Background(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	if res.Stopped != "converged" || len(res.Epochs) != res.Best+2 {
		t.Errorf("%s after %d epochs, the best was %d", res.Stopped, len(res.Epochs), res.Best)
	}
	best := cfg
	best.Recipe.Epochs, best.Recipe.Patience = res.Best, 0
	best.Out = filepath.Join(t.TempDir(), "best.onnx")
	if _, err := Run(context.Background(), best); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(read(t, cfg.Out), read(t, best.Out)) {
		t.Error("the weights that were kept are not the best epoch's")
	}
}

func TestRefused(t *testing.T) {
	for name, change := range map[string]func(*Config){
		"no fakes":                          func(c *Config) { c.Fakes = Pictures{} },
		"no normals":                        func(c *Config) { c.Normals = nil },
		"half of a held-out set":            func(c *Config) { c.HeldFakes = nil },
		"patience without a yardstick":      func(c *Config) { c.HeldNormals, c.HeldFakes, c.Recipe.Patience = nil, nil, 3 },
		"no epochs":                         func(c *Config) { c.Recipe.Epochs = 0 },
		"micro-batch that does not divide":  func(c *Config) { c.Recipe.MicroBatch = 3 },
		"more frozen blocks than there are": func(c *Config) { c.Recipe.FreezeBlocks = 5 },
		"everything frozen":                 func(c *Config) { c.Recipe.Freeze = []string{"*"} },
		"dropout of all":                    func(c *Config) { c.Recipe.Dropout = 1 },
		"no learning rate":                  func(c *Config) { c.Recipe.Optimizer.LearningRate = 0 },
		"a broken image": func(c *Config) {
			c.Normals = unreadable{}
		},
	} {
		t.Run(name, func(t *testing.T) {
			cfg := config(t)
			change(&cfg)
			_, err := Run(context.Background(), cfg)
			if err == nil {
				t.Fatal("accepted")
			}
			if _, e := os.Stat(cfg.Out); e == nil {
				t.Error("a model was written")
			}
			t.Log(err)
		})
	}
}

// TestDropout: the masks keep the right share in every row and column, scale
// it, and differ between places, rows and steps.
func TestDropout(t *testing.T) {
	const n, rows, cols, p = 4, 50, 256, 0.1
	d := dropout{p: p, offset: map[string]int{"a": 0, "b": rows}, rows: map[string]int{"a": rows, "b": rows}, width: 2 * rows}
	g := onnx.New("masks")
	noise := g.Input("noise", onnx.Int64, n, 2*rows)
	x := g.Input("x", onnx.Float, n*rows, cols)
	hook := d.in(g, noise)
	g.Output("a", hook(x, "a"))
	g.Output("b", hook(x, "b"))
	model, err := g.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	s, err := ort.OpenBytes(model, ort.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	f := &feeder{seed: 5}
	mask := func(step uint64) [2][]bool {
		r := f.stream(drawNoise, step)
		draws := make([]int64, n*2*rows)
		for i := range draws {
			draws[i] = int64(int32(r.Uint32()))
		}
		ones := make([]float32, n*rows*cols)
		for i := range ones {
			ones[i] = 1
		}
		in0, _ := ort.NewTensor([]int{n, 2 * rows}, draws)
		in1, _ := ort.NewTensor([]int{n * rows, cols}, ones)
		defer ort.CloseAll(in0, in1)
		out, err := s.Run(context.Background(), []*ort.Tensor{in0, in1})
		if err != nil {
			t.Fatal(err)
		}
		defer ort.CloseAll(out...)
		var kept [2][]bool
		for i := range 2 {
			for _, v := range out[i].Float32s() {
				if v != 0 && v != float32(1/(1-p)) {
					t.Fatalf("an activation of 1 became %v", v)
				}
				kept[i] = append(kept[i], v != 0)
			}
		}
		return kept
	}
	share := func(a []bool) float64 {
		k := 0
		for _, v := range a {
			if v {
				k++
			}
		}
		return float64(k) / float64(len(a))
	}
	m, again, other := mask(1), mask(1), mask(2)
	if !slices.Equal(m[0], again[0]) {
		t.Error("one step has two masks")
	}
	all := n * rows * cols
	for name, a := range map[string][]bool{"a": m[0], "b": m[1], "next step": other[0]} {
		if s := share(a); math.Abs(s-0.9) > 0.01 {
			t.Errorf("%s keeps %.3f of all", name, s)
		}
		worst := 0.0
		for i := range n * rows {
			worst = max(worst, math.Abs(share(a[i*cols:(i+1)*cols])-0.9))
		}
		if worst > 0.12 { // six standard deviations
			t.Errorf("%s has a row that is off by %.3f", name, worst)
		}
		col := make([]bool, n*rows)
		for j := range cols {
			for i := range col {
				col[i] = a[i*cols+j]
			}
			if s := share(col); math.Abs(s-0.9) > 0.13 {
				t.Errorf("%s keeps %.3f of column %d", name, s, j)
			}
		}
		// Neighbours in rows and columns drop independently: both with p².
		for _, step := range []int{1, 7, cols} {
			both := 0
			for i := 0; i+step < all; i++ {
				if !a[i] && !a[i+step] {
					both++
				}
			}
			if r := float64(both) / float64(all); math.Abs(r-p*p) > 0.003 {
				t.Errorf("%s drops two at distance %d with %.4f, want %.4f", name, step, r, p*p)
			}
		}
	}
	for name, pair := range map[string][2][]bool{"places": m, "steps": {m[0], other[0]}} {
		both := 0
		for i := range all {
			if !pair[0][i] && !pair[1][i] {
				both++
			}
		}
		if r := float64(both) / float64(all); math.Abs(r-p*p) > 0.003 {
			t.Errorf("two %s drop the same with %.4f, want %.4f", name, r, p*p)
		}
	}
}

func TestFeeder(t *testing.T) {
	pre := imaging.Preprocess{Resize: 36, Crop: 32, Interpolation: imaging.Bilinear, Mean: [3]float64{}, Std: [3]float64{1, 1, 1}}
	t.Run("an epoch has every normal once and as many fakes", func(t *testing.T) {
		for _, fakes := range []int{3, 10, 25} {
			f := feederOf(pre, pictures(1, 10, false), pictures(2, fakes, true), 4)
			seen := map[int]bool{}
			for epoch := range 3 {
				count := map[example]int{}
				for _, e := range f.orderOf(epoch) {
					count[e]++
					if e.fake {
						seen[e.index] = true
					}
				}
				n, m, most := 0, 0, 0
				for e, k := range count {
					if e.fake {
						m += k
						most = max(most, k)
					} else {
						n += k
						if k != 1 {
							t.Errorf("normal %d comes %d times", e.index, k)
						}
					}
				}
				if n != 10 || m != 10 || most > (10+fakes-1)/fakes {
					t.Errorf("%d fakes: %d normals, %d fakes, one of them %d times", fakes, n, m, most)
				}
			}
			if fakes == 25 && len(seen) < 18 {
				t.Errorf("three epochs show %d of 25 fakes", len(seen))
			}
		}
	})
	t.Run("views are crops of the resized image, some mirrored", func(t *testing.T) {
		f := feederOf(pre, pictures(1, 1, false), pictures(2, 1, true), 4)
		whole, err := f.normals.image(0)
		if err != nil {
			t.Fatal(err)
		}
		found, mirrored, places := 0, 0, map[[2]int]bool{}
		dst := make([]uint8, pre.Bytes())
		for place := range 60 {
			if err := f.view(dst, example{false, 0}, uint64(place)); err != nil {
				t.Fatal(err)
			}
			for y := 0; y+32 <= whole.Height; y++ {
				for x := 0; x+32 <= whole.Width; x++ {
					c := whole.Crop(x, y, 32, 32)
					switch {
					case bytes.Equal(c.Pix, dst):
					case bytes.Equal(c.FlipHorizontal().Pix, dst):
						mirrored++
					default:
						continue
					}
					found++
					places[[2]int{x, y}] = true
				}
			}
		}
		if found != 60 || mirrored < 15 || mirrored > 45 || len(places) < 20 {
			t.Errorf("%d of 60 views are crops, %d mirrored, at %d places", found, mirrored, len(places))
		}
	})
}

func TestScoreDifference(t *testing.T) {
	a := []float32{0, 0, 1, 0, 0, 2, 5, 5}
	if d := scoreDifference(a, a, 4); d != 0 {
		t.Errorf("equal embeddings differ by %v", d)
	}
	b := slices.Clone(a)
	b[7] = 5.0001
	if d := scoreDifference(a, b, 4); !(d > 1e-5 && d < 1e-4) {
		t.Errorf("off by %v", d)
	}
	copies := []float32{1, 1.001, 9, 13, 40, 90}
	near := []float32{1, 1.0010001, 9, 13, 40, 90}
	if d := scoreDifference(copies, near, 6); d > MaxDifference {
		t.Errorf("rounding between copies counts as %v", d)
	}
	b[7] = float32(math.NaN())
	if d := scoreDifference(a, b, 4); d <= MaxDifference {
		t.Errorf("NaN is off by %v", d)
	}
}

// mobile is a small network of mobile inverted bottlenecks.
func mobile(act string, squeeze int, late bool) backbone.Spec {
	s := backbone.Spec{
		Family: backbone.MobileNet, Blocks: []int{1, 2}, Dim: 32, Size: 64, NormEps: 1e-3,
		Mobile: &backbone.Mobile{Stem: 8, Head: 32, Act: act, Late: late, Hard: late, Same: !late},
	}
	s.Mobile.Blocks = []backbone.MobileBlock{
		{Stage: 0, Hidden: 8, Width: 8, Kernel: 3, Stride: 2, Squeeze: squeeze, Act: act},
		{Stage: 1, Hidden: 32, Width: 12, Kernel: 5, Stride: 2, Squeeze: squeeze, Act: act},
		{Stage: 1, Hidden: 48, Width: 12, Kernel: 3, Stride: 1, Squeeze: squeeze, Act: act},
	}
	return s
}

// TestFamilies: every family can be tuned, and serves what was trained.
func TestFamilies(t *testing.T) {
	for _, s := range []backbone.Spec{
		{Family: backbone.ResNet, Blocks: []int{1, 1, 1, 1}, Widths: []int{64, 64, 128, 128}, Dim: 128, Size: 64, NormEps: 1e-5},
		{Family: backbone.ConvNeXt, Blocks: []int{1, 1, 1, 1}, Widths: []int{16, 32, 48, 64}, Hidden: 4, Dim: 64, Size: 64, NormEps: 1e-6},
		{
			Family: backbone.Hybrid, Blocks: []int{1, 1}, Widths: []int{128, 128}, Dim: 64, Depth: 2, Heads: 1, Hidden: 64,
			Patch: 1, Size: 32, ClassPos: true, NormEps: 1e-6, GroupEps: 1e-5, StdEps: 1e-8,
		},
		{ // DINOv2 with registers and SwiGLU
			Family: backbone.ViT, Dim: 64, Depth: 2, Heads: 2, Hidden: 48, Patch: 8, Size: 32, ClassPos: true, Registers: 2, LayerScale: true, Gated: true, NormEps: 1e-6,
		},
		{Family: backbone.ViT, Dim: 64, Depth: 2, Heads: 2, Hidden: 64, Patch: 8, Size: 32, Registers: 4, LayerScale: true, Rope: 100, NormEps: 1e-5},        // DINOv3
		{Family: backbone.ViT, Dim: 64, Depth: 2, Heads: 2, Hidden: 80, Patch: 8, Size: 32, ClassPos: true, Distilled: true, NormEps: 1e-6},                  // DeiT
		{Family: backbone.ViT, Dim: 64, Depth: 2, Heads: 1, Hidden: 96, Patch: 8, Size: 32, NoClass: true, MeanPool: true, PoolNorm: true, NormEps: 1e-6},    // pooled
		{Family: backbone.ViT, Dim: 64, Depth: 2, Heads: 1, Hidden: 72, Patch: 8, Size: 32, ClassPos: true, PreNorm: true, Act: "quick_gelu", NormEps: 1e-5}, // CLIP
		{Family: backbone.ResNet, Blocks: []int{1, 1, 1, 1}, Widths: []int{64, 64, 64, 128}, Dim: 128, Size: 64, Wide: 2, NormEps: 1e-5},
		mobile("relu6", 0, false), // EfficientNet-Lite, MobileNetV2
		mobile("silu", 4, false),  // EfficientNet
		mobile("hard_swish", 4, true),
	} {
		t.Run(s.Name(), func(t *testing.T) {
			m, err := backbone.Random(s, 4)
			if err != nil {
				t.Fatal(err)
			}
			cfg := config(t)
			cfg.Backbone = filepath.Join(t.TempDir(), "m.onnx")
			if _, err := m.Write(cfg.Backbone, backbone.Options{}); err != nil {
				t.Fatal(err)
			}
			cfg.Normals, cfg.Fakes = pictures(1, 8, false), pictures(2, 8, true)
			cfg.Recipe.Epochs, cfg.Recipe.Optimizer.LearningRate = 2, 1e-3
			res, err := Run(context.Background(), cfg)
			if err != nil {
				t.Fatal(err)
			}
			t.Logf("loss %.3f to %.3f, served scores differ by %.2g", res.Epochs[0].Loss, res.Epochs[1].Loss, res.ServedDifference)
			// Stages from the second half on have changed, statistics never do.
			a, b := weights(t, cfg.Backbone), weights(t, cfg.Out)
			stages := s.Stages()
			for name, w := range a {
				same := bytes.Equal(w.Data, b[name].Data)
				frozen := strings.Contains(name, "running_") || strings.HasPrefix(name, stages[0])
				if frozen && !same {
					t.Errorf("%s changed", name)
				}
				if strings.HasPrefix(name, stages[len(stages)-1]) && strings.HasSuffix(name, "weight") && same {
					t.Errorf("%s did not change", name)
				}
			}
		})
	}
}

// unreadable is a Set whose images cannot be read.
type unreadable struct{}

func (unreadable) Len() int { return 3 }
func (unreadable) Image(int) (*imaging.Image, error) {
	return imaging.Decode([]byte("no image"), imaging.Limits{})
}
