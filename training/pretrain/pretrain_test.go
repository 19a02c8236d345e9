package pretrain

import (
	"context"
	"errors"
	"math"
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
	"github.com/nearmiss/nearmiss/internal/synthetic"
)

func TestMain(m *testing.M) { eventually.Main(m) }

// tiny is a training of seconds.
func tiny() Config {
	return Config{
		Spec:  backbone.Spec{Family: backbone.ViT, Size: 32, Dim: 64, Depth: 1, Heads: 1, Hidden: 64, Patch: 8, ClassPos: true, NormEps: 1e-6},
		Seed:  1,
		Steps: 25, LearningRate: 2e-3, WeightDecay: 0.05, Temperature: 0.1, Designs: 8, PoolNormals: 3, PoolMarred: 2,
		BatchDesigns: 4, BatchNormals: 2, BatchMarred: 1, Appearances: 2, Head: 32, Thumbnail: 1, Corrupt: 0.3,
		Session: ort.Options{IntraOpThreads: 1}, Every: 10,
	}
}

func TestTrainingLowersTheLoss(t *testing.T) {
	c := tiny()
	c.Steps = 60
	r, err := Train(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	mean := func(v []float64) (sum float64) {
		for _, x := range v {
			sum += x / float64(len(v))
		}
		return sum
	}
	if first, last := mean(r.Losses[:10]), mean(r.Losses[50:]); !(last < first-0.1) {
		t.Errorf("the loss went from %.3f to %.3f", first, last)
	}
	if got := r.Model.Info(); got.Format != backbone.FormatStarter || got.Seed != 1 {
		t.Errorf("info %+v", got)
	}
	if p := r.Model.Preprocess; p.Crop != 32 || p.Resize != 32 {
		t.Errorf("preprocess %+v", p)
	}
}

func TestInterruptedTrainingGoesOnBitForBit(t *testing.T) {
	whole, err := Train(t.Context(), tiny())
	if err != nil {
		t.Fatal(err)
	}

	c := tiny()
	c.Work = filepath.Join(t.TempDir(), "work")
	ctx, cancel := context.WithCancel(t.Context())
	c.Progress = func(p Progress) {
		if p.Stage == StageTrain {
			cancel()
		}
	}
	if _, err := Train(ctx, c); !errors.Is(err, context.Canceled) {
		t.Fatalf("a cancelled training says %v", err)
	}
	other := c
	other.LearningRate *= 2
	if _, err := Train(t.Context(), other); !errors.Is(err, ErrConfig) {
		t.Errorf("the checkpoint of other settings: %v", err)
	}
	c.Progress = nil
	rest, err := Train(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	if rest.From == 0 || rest.From+len(rest.Losses) != c.Steps {
		t.Errorf("went on at step %d with %d steps", rest.From, len(rest.Losses))
	}
	if d := cmp.Diff(whole.Losses[rest.From:], rest.Losses); d != "" {
		t.Errorf("losses (-whole +resumed):\n%s", d)
	}
	want := whole.Model.Tensors()
	for i, w := range rest.Model.Tensors() {
		if !slices.Equal(w.Float32s(), want[i].Float32s()) {
			t.Errorf("%s differs", w.Name)
		}
	}
	// Trained to the end, there is nothing left to do.
	again, err := Train(t.Context(), c)
	if err != nil || len(again.Losses) != 0 {
		t.Errorf("after the end: %v, %d steps", err, len(again.Losses))
	}
}

func TestTrainingStopsWhileItDraws(t *testing.T) {
	c := tiny()
	ctx, cancel := context.WithCancel(t.Context())
	c.Progress = func(Progress) { cancel() }
	if _, err := Train(ctx, c); !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
}

func TestDamagedCheckpointIsRefused(t *testing.T) {
	c := tiny()
	c.Work = t.TempDir()
	path := filepath.Join(c.Work, CheckpointFile)
	if err := os.WriteFile(path, []byte("no checkpoint"), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := Train(t.Context(), c); err == nil || !strings.Contains(err.Error(), path) {
		t.Errorf("%v", err)
	}
}

func TestSettingsAreChecked(t *testing.T) {
	for name, change := range map[string]func(*Config){
		"steps":       func(c *Config) { c.Steps = 0 },
		"rate":        func(c *Config) { c.LearningRate = math.NaN() },
		"temperature": func(c *Config) { c.Temperature = 0 },
		"one normal":  func(c *Config) { c.BatchNormals = 1 },
		"marred":      func(c *Config) { c.BatchMarred = 0 },
		"designs":     func(c *Config) { c.Designs = 3 },
		"looks":       func(c *Config) { c.Appearances = 0 },
		"share":       func(c *Config) { c.Corrupt = 1.5 },
		"family":      func(c *Config) { c.Spec.Family = backbone.ResNet },
		"shape":       func(c *Config) { c.Spec.Patch = 7 },
	} {
		c := tiny()
		change(&c)
		if _, err := Train(t.Context(), c); !errors.Is(err, ErrConfig) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := Starter().Validate(); err != nil {
		t.Error(err)
	}
}

func TestWhatIsHeldOutIsNeverDrawn(t *testing.T) {
	for _, kind := range synthetic.Kinds() {
		held := Held(kind)
		if len(held.Families) == 0 || len(held.Defects) == 0 {
			t.Errorf("%s: nothing is held out", kind)
		}
		for _, d := range held.Defects {
			if !slices.Contains(synthetic.Defects(kind), d) {
				t.Errorf("%s has no defect %q", kind, d)
			}
		}
		seen := map[int]bool{}
		for n := range 60 {
			class, defects := trainedOn(kind, n)
			if seen[class] {
				t.Errorf("%s: class %d comes twice", kind, class)
			}
			seen[class] = true
			if slices.Contains(held.Families, class%synthetic.BasicClasses(kind)) {
				t.Errorf("%s: class %d is held out", kind, class)
			}
			for _, d := range defects {
				if slices.Contains(held.Defects, d) {
					t.Errorf("%s: defect %s is held out", kind, d)
				}
			}
		}
	}
	type key struct {
		kind string
		nth  int
	}
	seen := map[key]bool{}
	for i := range 100 {
		kind, nth := share(i)
		if seen[key{kind, nth}] {
			t.Errorf("design %d: number %d of %s comes twice", i, nth, kind)
		}
		seen[key{kind, nth}] = true
	}
}

func TestTargetsPairTheNormalsOfADesign(t *testing.T) {
	c := tiny()
	c.BatchNormals = 3
	n := c.batch()
	each := c.BatchNormals + c.BatchMarred
	target := make([]float32, n*n)
	c.pair(target)
	for i := range n {
		for j := range n {
			want := float32(0)
			if i != j && i/each == j/each && i%each < c.BatchNormals && j%each < c.BatchNormals {
				want = 0.5
			}
			if target[i*n+j] != want {
				t.Errorf("target[%d, %d] is %v, want %v", i, j, target[i*n+j], want)
			}
		}
	}
}

// The loss against the same computed by hand.
func TestContrastiveLoss(t *testing.T) {
	c := tiny()
	c.BatchDesigns = 2
	n, dim := c.batch(), 3
	e := make([]float32, n*dim)
	for i := range e {
		e[i] = float32(math.Sin(float64(3*i + 1)))
	}
	target := make([]float32, n*n)
	c.pair(target)

	want, anchors := 0.0, 0
	cosine := func(i, j int) float64 {
		var ab, aa, bb float64
		for k := range dim {
			a, b := float64(e[i*dim+k]), float64(e[j*dim+k])
			ab, aa, bb = ab+a*b, aa+a*a, bb+b*b
		}
		return ab / math.Sqrt(aa*bb)
	}
	for i := range n {
		var sum float64
		for j := range n {
			if j != i {
				sum += math.Exp(cosine(i, j) / c.Temperature)
			}
		}
		for j := range n {
			if target[i*n+j] > 0 {
				want -= float64(target[i*n+j]) * (cosine(i, j)/c.Temperature - math.Log(sum))
				anchors++
			}
		}
	}
	want /= float64(anchors) // one partner each

	g := onnx.New("loss")
	l := c.contrast(g, g.Input("e", onnx.Float, n, dim), g.Input("target", onnx.Float, n, n))
	g.Output("loss", l)
	b, err := g.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	s, err := ort.OpenBytes(b, ort.Options{IntraOpThreads: 1})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	x, err := ort.NewTensor([]int{n, dim}, e)
	if err != nil {
		t.Fatal(err)
	}
	defer x.Close()
	y, err := ort.NewTensor([]int{n, n}, target)
	if err != nil {
		t.Fatal(err)
	}
	defer y.Close()
	out, err := s.Run(t.Context(), []*ort.Tensor{x, y})
	if err != nil {
		t.Fatal(err)
	}
	defer ort.CloseAll(out...)
	if got := float64(out[0].Float32s()[0]); math.Abs(got-want) > 1e-3 {
		t.Errorf("loss %v, want %v", got, want)
	}
}

// A probe of an "embedding" that is the picture itself finds blots, and one that
// is constant finds nothing.
func TestProbe(t *testing.T) {
	p := Probe{Designs: 1, Normals: 6, Tests: 6, Seed: 1}
	measure := func(vector func(m *imaging.Image) []float32) []Seen {
		s, err := p.Run(t.Context(), func(_ context.Context, images []*imaging.Image) (out [][]float32, err error) {
			for _, m := range images {
				out = append(out, vector(m))
			}
			return out, nil
		})
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	for _, s := range measure(func(*imaging.Image) []float32 { return []float32{1} }) {
		if s.AUROC != 0.5 || s.Unknown != 0.5 {
			t.Errorf("a constant tells marred %s from normal ones: %+v", s.Kind, s)
		}
	}
	for _, s := range measure(func(m *imaging.Image) []float32 {
		small := imaging.Resize(m, 16, 16, imaging.Bilinear)
		var out []float32
		for _, v := range small.Pix {
			out = append(out, float32(v))
		}
		return out
	}) {
		if !(s.AUROC > 0.4 && s.AUROC <= 1) {
			t.Errorf("pixels: %+v", s)
		}
	}
}
