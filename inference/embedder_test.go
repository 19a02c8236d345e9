package inference

import (
	"context"
	"errors"
	"image/color"
	"math"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/nearmiss/nearmiss/inference/imaging"
	"github.com/nearmiss/nearmiss/inference/onnx"
	"github.com/nearmiss/nearmiss/inference/ort"
)

func near(a, b []float32) bool {
	if len(a) != len(b) {
		return false
	}
	for i := range a {
		if !(math.Abs(float64(a[i]-b[i])) < 1e-5) {
			return false
		}
	}
	return true
}

func TestEmbed(t *testing.T) {
	ctx := context.Background()
	for name, c := range map[string]struct {
		batch int
		o     EmbedOptions
	}{
		"any batch, all cores":               {0, EmbedOptions{}},
		"any batch, one thread, one worker":  {0, EmbedOptions{Threads: 1, Workers: 1, Queue: 1}},
		"batches of one":                     {0, EmbedOptions{Batch: 1}},
		"a model for one image":              {1, EmbedOptions{}},
		"a model for four, partly filled":    {4, EmbedOptions{Threads: 2}},
		"a model for four in batches of two": {4, EmbedOptions{Batch: 2}},
		"patches that are asked for":         {0, EmbedOptions{Patches: []string{outputTokens}}},
	} {
		t.Run(name, func(t *testing.T) {
			e := newTestEmbedder(t, writeModel(t, c.batch, 1, false), c.o)
			if e.Dim() != 6 {
				t.Fatalf("%d dimensions", e.Dim())
			}
			files, want := images(t, 37, 1)
			got, err := e.Embed(ctx, files)
			if err != nil {
				t.Fatal(err)
			}
			for i, g := range got {
				if g.Err != nil || !near(g.Vector, want[i]) || g.Width != side || g.Height != side {
					t.Fatalf("image %d: got %+v, want %v", i, g, want[i])
				}
				if len(g.Patches) != len(c.o.Patches) {
					t.Fatalf("image %d: patches of %d outputs", i, len(g.Patches))
				}
				for _, p := range g.Patches {
					if len(p) != side*side*3 || math.Abs(float64(p[0]-want[i][0])) > 1e-5 {
						t.Fatalf("image %d: %d numbers of patches from %v, want %v", i, len(p), p[0], want[i][0])
					}
				}
			}
		})
	}
}

func TestEmbedFromManyGoroutines(t *testing.T) {
	e := newTestEmbedder(t, writeModel(t, 0, 1, false), EmbedOptions{Queue: 3})
	files, want := images(t, 50, 2)
	var wg sync.WaitGroup
	for w := range 8 {
		wg.Go(func() {
			for i := w; i < len(files); i += 3 {
				n := min(1+i%4, len(files)-i)
				got, err := e.Embed(context.Background(), files[i:i+n])
				if err != nil {
					t.Error(err)
					return
				}
				for j, g := range got {
					if !near(g.Vector, want[i+j]) {
						t.Errorf("image %d got another's embedding", i+j)
					}
				}
			}
		})
	}
	wg.Wait()
}

func TestEmbedOtherSources(t *testing.T) {
	ctx := context.Background()
	e := newTestEmbedder(t, writeModel(t, 0, 1, false), EmbedOptions{})
	files, want := images(t, 3, 3)
	var decoded []*imaging.Image
	var pixels [][]uint8
	for _, f := range files {
		m, err := imaging.Decode(f, imaging.Limits{})
		if err != nil {
			t.Fatal(err)
		}
		decoded = append(decoded, m)
		p := make([]uint8, e.Preprocess().Bytes())
		if err := e.Preprocess().ApplyImage(m, p); err != nil {
			t.Fatal(err)
		}
		pixels = append(pixels, p)
	}
	a, err := e.EmbedImages(ctx, decoded)
	if err != nil {
		t.Fatal(err)
	}
	b, err := e.EmbedPixels(ctx, pixels)
	if err != nil {
		t.Fatal(err)
	}
	for i := range want {
		if !near(a[i].Vector, want[i]) || !near(b[i].Vector, want[i]) {
			t.Errorf("image %d: %v and %v, want %v", i, a[i].Vector, b[i].Vector, want[i])
		}
	}
	if _, err := e.EmbedPixels(ctx, [][]uint8{{1, 2, 3}}); err == nil {
		t.Error("too few pixels were accepted")
	}
}

func TestEmbedRefusesImagesOneByOne(t *testing.T) {
	e := newTestEmbedder(t, writeModel(t, 0, 1, true), EmbedOptions{})
	good, want := halves(t, color.RGBA{128, 0, 0, 255}, color.RGBA{0, 255, 0, 255})
	dark, _ := halves(t, color.RGBA{0, 0, 0, 255}, color.RGBA{0, 0, 0, 255})
	got, err := e.Embed(context.Background(), [][]byte{good, nil, []byte("no image"), good[:40], dark, good})
	if err != nil {
		t.Fatal(err)
	}
	for _, i := range []int{0, 5} {
		if got[i].Err != nil || !near(got[i].Vector, want) {
			t.Errorf("image %d: %+v", i, got[i])
		}
	}
	var codes []imaging.Code
	for _, i := range []int{1, 2, 3} {
		r := imaging.Rejection(got[i].Err)
		if r == nil || got[i].Vector != nil {
			t.Fatalf("image %d: %+v", i, got[i])
		}
		codes = append(codes, r.Code)
	}
	if d := cmp.Diff([]imaging.Code{imaging.CodeEmpty, imaging.CodeUnsupported, imaging.CodeTruncated}, codes); d != "" {
		t.Error(d)
	}
	if !errors.Is(got[4].Err, ErrNotFinite) || got[4].Vector != nil {
		t.Errorf("a NaN embedding: %+v", got[4])
	}
}

func TestEmbedEnds(t *testing.T) {
	files, _ := images(t, 5, 4)
	t.Run("with its context", func(t *testing.T) {
		e := newTestEmbedder(t, writeModel(t, 0, 1, false), EmbedOptions{})
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		if _, err := e.Embed(ctx, files); !errors.Is(err, context.Canceled) {
			t.Errorf("got %v", err)
		}
		if got, err := e.Embed(context.Background(), files); err != nil || len(got) != 5 {
			t.Errorf("afterwards: %v", err)
		}
	})
	t.Run("when the embedder is closed", func(t *testing.T) {
		e := newTestEmbedder(t, writeModel(t, 0, 1, false), EmbedOptions{})
		if err := e.Close(); err != nil {
			t.Fatal(err)
		}
		if _, err := e.Embed(context.Background(), files); !errors.Is(err, ErrClosed) {
			t.Errorf("got %v", err)
		}
	})
}

func TestNewEmbedderRefuses(t *testing.T) {
	path := writeModel(t, 0, 1, false)
	wrong := preprocess()
	wrong.Crop, wrong.Resize = 4, 4
	for name, c := range map[string]struct {
		path string
		o    EmbedOptions
		want string
	}{
		"a file that is not there": {path + "x", EmbedOptions{}, "no such file"},
		"another size of images":   {path, EmbedOptions{Preprocess: &wrong}, "4×4"},
		"a negative batch":         {path, EmbedOptions{Batch: -1}, "batches of -1 images"},
	} {
		if _, err := NewEmbedder(c.path, c.o); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: got %v", name, err)
		}
	}
}

func TestCollect(t *testing.T) {
	fill := func(n int) chan int {
		c := make(chan int, 10)
		for i := range n {
			c <- i
		}
		return c
	}
	t.Run("takes what is ready up to the limit", func(t *testing.T) {
		if got := collect(fill(6), 4, 1); len(got) != 4 {
			t.Errorf("got %v", got)
		}
		if got := collect(fill(3), 4, 1); len(got) != 3 {
			t.Errorf("got %v", got)
		}
	})
	t.Run("leaves other collectors their share", func(t *testing.T) {
		if got := collect(fill(6), 8, 2); len(got) != 3 {
			t.Errorf("got %v", got)
		}
	})
	t.Run("waits for the first alone", func(t *testing.T) {
		c := make(chan int)
		go func() { c <- 1 }()
		if got := collect(c, 3, 1); len(got) != 1 {
			t.Errorf("got %v", got)
		}
	})
	t.Run("ends when the channel is closed", func(t *testing.T) {
		c := fill(1)
		close(c)
		if got := collect(c, 3, 1); len(got) != 1 {
			t.Errorf("got %v", got)
		}
		if got := collect(c, 3, 1); got != nil {
			t.Errorf("got %v", got)
		}
	})
}

// refuses is a model whose first runs fail by reason of engines that cannot be read.
type refuses struct {
	session
	err    error
	closed *int
}

func (r refuses) RunInto(context.Context, []*ort.Tensor, []*ort.Tensor) error { return r.err }

func (r refuses) Close() error {
	*r.closed++
	return r.session.Close()
}

// TestEnginesThatCannotBeReadAreBuiltAgain: once, whether that shows when the model is
// opened or at its first run.
func TestEnginesThatCannotBeReadAreBuiltAgain(t *testing.T) {
	path := writeModel(t, 0, 1, false)
	unreadable := errors.New("serialised by another version")
	for name, c := range map[string]struct {
		atOpen, kept, always bool
		opened, closed       int
	}{
		"at the first run":                 {false, true, false, 2, 1},
		"when it is opened":                {true, true, false, 2, 0},
		"they were not to blame":           {false, true, true, 2, 2},
		"a run that fails without engines": {false, false, true, 1, 1},
		"a model that cannot be opened":    {true, false, true, 1, 0},
		"not to blame when it is opened":   {true, true, true, 2, 0},
	} {
		folder := t.TempDir()
		if err := os.WriteFile(filepath.Join(folder, "x.engine"), []byte("old"), 0o600); err != nil {
			t.Fatal(err)
		}
		opened, closed := 0, 0
		e, err := newEmbedder(path, EmbedOptions{Threads: 1}, func(path, precision string, float []string, o ort.Options) (session, error) {
			opened++
			var err error
			if kept, e := os.ReadDir(folder); e != nil {
				t.Error(e)
			} else if len(kept) > 0 || c.always {
				err = unreadable
				if len(kept) > 0 && c.kept {
					err = &ort.EnginesError{Err: unreadable, Folder: folder}
				}
			}
			if c.atOpen && err != nil {
				return nil, err
			}
			s, e := openSession(path, precision, float, o)
			if e != nil || err == nil {
				return s, e
			}
			return refuses{s, err, &closed}, nil
		})
		if c.always != errors.Is(err, unreadable) || opened != c.opened || closed != c.closed {
			t.Errorf("%s: opened %d and closed %d times: %v", name, opened, closed, err)
		}
		if left, err := os.ReadDir(folder); err != nil || (len(left) == 0) != c.kept {
			t.Errorf("%s: what is left of the engines: %v, %v", name, left, err)
		}
		if err != nil {
			continue
		}
		files, want := images(t, 1, 1)
		if got, err := e.Embed(t.Context(), files); err != nil || !near(got[0].Vector, want[0]) {
			t.Errorf("%s: %v, %v", name, got, err)
		}
		if err := e.Close(); err != nil {
			t.Error(err)
		}
	}
}

// TestModelsOfHugeInputsAreRefused: what a file of some bytes says is not believed.
func TestModelsOfHugeInputsAreRefused(t *testing.T) {
	path := writeModel(t, 1<<34, 1, false)
	if e, err := NewEmbedder(path, EmbedOptions{}); err == nil || !strings.Contains(err.Error(), "more than 1024 MiB") {
		if err == nil {
			e.Close()
		}
		t.Errorf("a batch of 2³⁴ images: %v", err)
	}
	g := onnx.New("wide")
	x := g.Input(inputImage, onnx.Uint8, 1, 1<<20, 1<<20, 3)
	g.Output(outputEmbedding, g.ReduceMean(g.Cast(x, onnx.Float), false, 1, 2))
	path = filepath.Join(t.TempDir(), "wide.onnx")
	if err := g.WriteFile(path); err != nil {
		t.Fatal(err)
	}
	if _, err := RunOnce(path, 2); err == nil || !strings.Contains(err.Error(), "more than 1024 MiB") {
		t.Errorf("a picture of 2²⁰ pixels a side: %v", err)
	}
}
