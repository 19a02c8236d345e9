package inference

import (
	"cmp"
	"context"
	"errors"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/nearmiss/nearmiss/inference/imaging"
	"github.com/nearmiss/nearmiss/inference/ort"
)

// capturing is the device whose captured runs are tested: with nothing recorded on the
// CPU, or what gpu.sh says.
func capturing(t *testing.T) ort.Device {
	t.Helper()
	d, err := ort.ParseDevice(cmp.Or(os.Getenv("NEARMISS_TEST_DEVICE"), "cpu"))
	if err != nil {
		t.Fatal(err)
	}
	d.Graph = true
	return d
}

// TestCapturedRunsGiveTheSame: from many goroutines, with batches of every size, patches,
// tiles, and in 16 bits.
func TestCapturedRunsGiveTheSame(t *testing.T) {
	ctx := context.Background()
	device := capturing(t)
	for name, c := range map[string]struct {
		model string
		o     EmbedOptions
		sizes []int
	}{
		"any batch":               {writeModel(t, 0, 1, false), EmbedOptions{Batch: 5}, []int{1, 5}},
		"batches of one":          {writeModel(t, 0, 1, false), EmbedOptions{Batch: 1}, []int{1}},
		"a model for four":        {writeModel(t, 4, 1, false), EmbedOptions{}, []int{4}},
		"patches":                 {writeModel(t, 0, 1, false), EmbedOptions{Batch: 3, Patches: []string{outputTokens}}, []int{1, 3}},
		"tiles":                   {writeTileModel(t, 0, 4), EmbedOptions{Batch: 8, Tiles: imaging.Tiles{Columns: 2, Rows: 2}, Patches: []string{"patches"}}, []int{5, 8}},
		"more tiles than a batch": {writeTileModel(t, 0, 4), EmbedOptions{Batch: 3, Tiles: imaging.Tiles{Columns: 2, Rows: 2}, Patches: []string{"patches"}}, []int{3}},
		"all symmetries":          {writeModel(t, 0, 1, false), EmbedOptions{Batch: 16, Symmetry: imaging.Dihedral}, []int{8, 16}},
	} {
		t.Run(name, func(t *testing.T) {
			c.o.Threads = 3
			plainly := c.o
			plainly.Device = device
			plainly.Device.Graph = false
			plain := newTestEmbedder(t, c.model, plainly)
			c.o.Device = device
			e := newTestEmbedder(t, c.model, c.o)
			if sizes, why := e.Captured(); !slices.Equal(sizes, c.sizes) || why != nil || e.Options().Device != device {
				t.Fatalf("captured are %v, want %v: %v", sizes, c.sizes, why)
			}
			files, _ := images(t, 33, 7)
			want, err := plain.Embed(ctx, files)
			if err != nil {
				t.Fatal(err)
			}
			var wg sync.WaitGroup
			for w := range 4 {
				wg.Go(func() {
					for at := w; at < len(files); at += 3 {
						n := min(1+at%6, len(files)-at)
						got, err := e.Embed(ctx, files[at:at+n])
						if err != nil {
							t.Error(err)
							return
						}
						for i, g := range got {
							same := g.Err == nil && near(g.Vector, want[at+i].Vector) && len(g.Patches) == len(c.o.Patches)
							for k, p := range g.Patches {
								same = same && near(p, want[at+i].Patches[k])
							}
							if !same {
								t.Errorf("image %d: %+v, want %+v", at+i, g, want[at+i])
							}
						}
					}
				})
			}
			wg.Wait()
		})
	}
}

// recording stands for a recording that is wrong.
type recording struct {
	session
	run    func(in, out []*ort.Tensor) error
	closed *int
}

func (r recording) RunInto(_ context.Context, in, out []*ort.Tensor) error { return r.run(in, out) }

func (r recording) Close() error {
	*r.closed++
	return r.session.Close()
}

// TestWrongRecordingsAreNotUsed: the model then runs as it did, and says why.
func TestWrongRecordingsAreNotUsed(t *testing.T) {
	path := writeModel(t, 0, 1, false)
	broken := errors.New("the graph cannot be captured")
	constant := func(s session) func(in, out []*ort.Tensor) error {
		return func(in, out []*ort.Tensor) error {
			given := slices.Clone(out)
			if err := s.RunInto(context.Background(), in, given); err != nil {
				return err
			}
			m, err := ort.OpenMemory(ort.Options{})
			if err != nil {
				return err
			}
			defer m.Close()
			for i, x := range given {
				one, err := ort.Zeros(ort.Float, x.Shape()...)
				if err != nil {
					return err
				}
				defer one.Close()
				for j := range one.Float32s() {
					one.Float32s()[j] = 1
				}
				if err := m.Copy(x, one); err != nil {
					return err
				}
				out[i] = x
			}
			return nil
		}
	}
	for name, c := range map[string]struct {
		run  func(s session) func(in, out []*ort.Tensor) error // nil: cannot be opened
		want string
	}{
		"a model that says the same of every picture":       {constant, "is the same to 0"},
		"a model that cannot be captured when it is opened": {nil, broken.Error()},
		"or when it runs": {func(s session) func(in, out []*ort.Tensor) error {
			return func(in, out []*ort.Tensor) error { return broken }
		}, broken.Error()},
		"a recording that does not read its input": {func(s session) func(in, out []*ort.Tensor) error {
			var once sync.Once
			return func(in, out []*ort.Tensor) (err error) {
				once.Do(func() { err = s.RunInto(context.Background(), in, out) })
				return err
			}
		}, "off, relative"},
		"a recording that lags behind by a run": {func(s session) func(in, out []*ort.Tensor) error {
			var last []*ort.Tensor
			return func(in, out []*ort.Tensor) error {
				now := make([]*ort.Tensor, len(out))
				if err := s.RunInto(context.Background(), in, now); err != nil {
					return err
				}
				if last == nil {
					last = now
				}
				echo, err := ort.OpenMemory(ort.Options{})
				if err != nil {
					return err
				}
				defer echo.Close()
				for i := range out {
					if err := echo.Copy(out[i], last[i]); err != nil {
						return err
					}
				}
				last = now
				return nil
			}
		}, "off, relative"},
	} {
		t.Run(name, func(t *testing.T) {
			opened, closed := 0, 0
			e, err := newEmbedder(path, EmbedOptions{Device: ort.Device{Graph: true}, Batch: 2}, func(path, precision string, float []string, o ort.Options) (session, error) {
				opened++
				if opened > 1 && c.run == nil {
					return nil, broken
				}
				s, err := openSession(path, precision, float, o)
				if opened == 1 && c.want != "is the same to 0" || err != nil {
					return s, err
				}
				return recording{s, c.run(s), &closed}, nil
			})
			if err != nil {
				t.Fatal(err)
			}
			sizes, why := e.Captured()
			if len(sizes) > 0 || why == nil || !strings.Contains(why.Error(), c.want) || e.Options().Device.Graph {
				t.Errorf("captured are %v: %v, want %q", sizes, why, c.want)
			}
			files, want := images(t, 9, 3)
			if c.want == "is the same to 0" {
				for i := range want {
					want[i] = []float32{1, 1, 1, 1, 1, 1}
				}
				opened++ // all of them are counted
			}
			got, err := e.Embed(t.Context(), files)
			if err != nil {
				t.Fatal(err)
			}
			for i, g := range got {
				if !near(g.Vector, want[i]) {
					t.Errorf("image %d: %v, want %v", i, g.Vector, want[i])
				}
			}
			if err := e.Close(); err != nil {
				t.Error(err)
			}
			if c.run != nil && closed != opened-1 {
				t.Errorf("%d copies of the model were opened and %d closed", opened-1, closed)
			}
		})
	}
}

// TestSwapsOfCapturedReleases: while pictures are scored one release takes the place of
// another, on the device, with the scores of the CPU.
func TestSwapsOfCapturedReleases(t *testing.T) {
	ctx := context.Background()
	device := capturing(t)
	files, _ := images(t, 8, 21)
	var dirs []string
	var want [][]float64
	for _, scale := range []float64{1, 3} {
		dir, _, _ := writeTestRelease(t, writeModel(t, 0, scale, false))
		d, err := Open(ctx, dir, Options{Embed: EmbedOptions{Threads: 1}})
		if err != nil {
			t.Fatal(err)
		}
		scores, err := d.Score(ctx, files)
		if err != nil {
			t.Fatal(err)
		}
		var s []float64
		for _, x := range scores {
			s = append(s, x.Score)
		}
		if err := d.Close(); err != nil {
			t.Fatal(err)
		}
		dirs, want = append(dirs, dir), append(want, s)
	}
	type serving struct {
		d    *Detector
		want []float64
		used sync.WaitGroup
	}
	var mu sync.Mutex
	var now *serving
	take := func() *serving {
		mu.Lock()
		defer mu.Unlock()
		now.used.Add(1)
		return now
	}
	open := func(i int) *serving {
		d, err := Open(ctx, dirs[i%2], Options{Embed: EmbedOptions{Device: device, Threads: 2, Batch: 4}})
		if err != nil {
			t.Fatal(err)
		}
		if sizes, why := d.Embedder().Captured(); why != nil || !slices.Equal(sizes, []int{1, 4}) || d.Info().Device != device.String() {
			t.Fatalf("captured are %v on %s: %v", sizes, d.Info().Device, why)
		}
		return &serving{d: d, want: want[i%2]}
	}
	now = open(0)
	ended := make(chan struct{})
	var scorers sync.WaitGroup
	for w := range 3 {
		scorers.Go(func() {
			for at := w; ; at++ {
				select {
				case <-ended:
					return
				default:
				}
				s, i, n := take(), at%len(files), 1+at%2
				n = min(n, len(files)-i)
				got, err := s.d.Score(ctx, files[i:i+n])
				s.used.Done()
				if err != nil {
					t.Error(err)
					return
				}
				for j, g := range got {
					if d := g.Score - s.want[i+j]; g.Err != nil || !(d*d <= 1e-6*s.want[i+j]*s.want[i+j]+1e-12) {
						t.Errorf("image %d: score %g, want %g: %v", i+j, g.Score, s.want[i+j], g.Err)
						return
					}
				}
			}
		})
	}
	for i := range 10 {
		next := open(i + 1)
		mu.Lock()
		last := now
		now = next
		mu.Unlock()
		last.used.Wait()
		if err := last.d.Close(); err != nil {
			t.Error(err)
		}
	}
	close(ended)
	scorers.Wait()
	if err := now.d.Close(); err != nil {
		t.Error(err)
	}
}
