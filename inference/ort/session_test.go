package ort

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func openBytes(t *testing.T, model []byte, o Options) *Session {
	t.Helper()
	s, err := OpenBytes(model, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

func tensor[T Element](t *testing.T, shape []int, data ...T) *Tensor {
	t.Helper()
	x, err := NewTensor(shape, data)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(x.Close)
	return x
}

func TestRun(t *testing.T) {
	ctx := context.Background()
	t.Run("a static model's outputs become the next run's inputs", func(t *testing.T) {
		s := openBytes(t, addModel(2, 2), Options{})
		x := tensor[float32](t, []int{2, 2}, 1, 2, 3, 4)
		a, err := s.Run(ctx, []*Tensor{x, x})
		if err != nil {
			t.Fatal(err)
		}
		b, err := s.Run(ctx, []*Tensor{a[0], x})
		if err != nil {
			t.Fatal(err)
		}
		defer CloseAll(append(a, b...)...)
		if d := cmp.Diff([]float32{3, 6, 9, 12}, b[0].Float32s()); d != "" {
			t.Error(d)
		}
		if d := cmp.Diff([]int{2, 2}, b[0].Shape()); d != "" {
			t.Error(d)
		}
	})
	t.Run("an open dimension is taken from the input", func(t *testing.T) {
		s := openBytes(t, addModel(-1, 2), Options{IntraOpThreads: 1})
		x := tensor[float32](t, []int{3, 2}, 1, 2, 3, 4, 5, 6)
		out, err := s.Run(ctx, []*Tensor{x, x})
		if err != nil {
			t.Fatal(err)
		}
		defer CloseAll(out...)
		if d := cmp.Diff([]int{3, 2}, out[0].Shape()); d != "" {
			t.Error(d)
		}
		if d := cmp.Diff([]float32{2, 4, 6, 8, 10, 12}, out[0].Float32s()); d != "" {
			t.Error(d)
		}
	})
	t.Run("given outputs are written in place", func(t *testing.T) {
		s := openBytes(t, addModel(2), Options{})
		x := tensor[float32](t, []int{2}, 1, 2)
		dst := make([]float32, 2)
		y, err := NewTensor([]int{2}, dst)
		if err != nil {
			t.Fatal(err)
		}
		defer y.Close()
		if err := s.RunInto(ctx, []*Tensor{x, x}, []*Tensor{y}); err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff([]float32{2, 4}, dst); d != "" {
			t.Error(d)
		}
	})
	t.Run("scalars go in and out", func(t *testing.T) {
		s := openBytes(t, addModel(), Options{})
		x, err := NewTensor(nil, []float32{20})
		if err != nil {
			t.Fatal(err)
		}
		defer x.Close()
		x.Float32s()[0] = 21 // what was written later counts
		out, err := s.Run(ctx, []*Tensor{x, x})
		if err != nil {
			t.Fatal(err)
		}
		defer CloseAll(out...)
		if got := out[0].Float32s()[0]; got != 42 || len(out[0].Shape()) != 0 {
			t.Errorf("got %v of shape %v, want a scalar 42", got, out[0].Shape())
		}
	})
	t.Run("no elements is a tensor too", func(t *testing.T) {
		s := openBytes(t, addModel(-1), Options{})
		x := tensor[float32](t, []int{0})
		out, err := s.Run(ctx, []*Tensor{x, x})
		if err != nil {
			t.Fatal(err)
		}
		defer CloseAll(out...)
		if out[0].Len() != 0 {
			t.Errorf("got %d elements", out[0].Len())
		}
	})
	t.Run("many goroutines share one session while the collector runs", func(t *testing.T) {
		s := openBytes(t, addModel(-1), Options{IntraOpThreads: 1})
		var wg sync.WaitGroup
		for w := range 8 {
			wg.Go(func() {
				for i := range 50 {
					n := 1 + (w*50+i)%700
					data := make([]float32, n)
					for j := range data {
						data[j] = float32(w + j)
					}
					x, err := NewTensor([]int{n}, data)
					if err != nil {
						t.Error(err)
						return
					}
					out, err := s.Run(ctx, []*Tensor{x, x})
					if err != nil {
						t.Error(err)
						return
					}
					for j, v := range out[0].Float32s() {
						if v != 2*float32(w+j) {
							t.Errorf("goroutine %d, run %d: [%d] = %v", w, i, j, v)
							return
						}
					}
					if i%10 == 0 {
						runtime.GC() // tensors are dropped without Close here
					}
				}
			})
		}
		wg.Wait()
	})
}

func TestRunRefuses(t *testing.T) {
	ctx := context.Background()
	s := openBytes(t, addModel(-1, 2), Options{})
	good := tensor[float32](t, []int{1, 2}, 1, 2)
	for name, c := range map[string]struct {
		in   []*Tensor
		want string
	}{
		"a missing input":                 {[]*Tensor{good}, "got 1 inputs"},
		"a nil input":                     {[]*Tensor{good, nil}, `input "y": no tensor is given`},
		"another element type":            {[]*Tensor{good, tensor[int64](t, []int{1, 2}, 1, 2)}, `input "y": got int64, want float`},
		"another rank":                    {[]*Tensor{good, tensor[float32](t, []int{2}, 1, 2)}, "got shape [2], want [-1 2]"},
		"a shape that the operator lacks": {[]*Tensor{tensor[float32](t, []int{3, 2}, 1, 2, 3, 4, 5, 6), tensor[float32](t, []int{2, 2}, 1, 2, 3, 4)}, "run model in memory"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := s.Run(ctx, c.in)
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, want an error with %q", err, c.want)
			}
			if err != nil && strings.Contains(err.Error(), "\n") {
				t.Errorf("the error has several lines: %q", err)
			}
		})
	}
	t.Run("an output as large as the model pleases to say", func(t *testing.T) {
		// Without a bound the process ends here.
		for _, n := range []int{1 << 40, 1 << 61, 1<<63 - 1} {
			s := openBytes(t, model(graph([][]byte{node("Add", []string{"x", "y"}, []string{"z"})},
				[][]byte{valueInfo("x", Float, 1, 2), valueInfo("y", Float, 1, 2)}, [][]byte{valueInfo("z", Float, n, 2)})), Options{})
			out, err := s.Run(ctx, []*Tensor{good, good})
			if err != nil || len(out) != 1 || out[0].Len() != 2 {
				t.Errorf("%d rows: %v, %v", n, out, err)
			}
			CloseAll(out...)
		}
	})
	t.Run("an output of which neither the shape nor memory is given, in 16 bits", func(t *testing.T) {
		cast := []byte(join(field(1, []byte("to")), number(3, int64(Float16)), number(20, 2)))
		for name, s := range map[string]*Session{
			"open": openBytes(t, model(graph(
				[][]byte{node("Identity", []string{"x"}, []string{"y"}), node("Cast", []string{"x"}, []string{"z"}, cast)},
				[][]byte{valueInfo("x", Float, -1)}, [][]byte{valueInfo("y", Float, -1), valueInfo("z", Float16, -1)},
			)), Options{}),
			"static": openBytes(t, model(graph(
				[][]byte{node("Identity", []string{"x"}, []string{"y"}), node("Cast", []string{"x"}, []string{"z"}, cast)},
				[][]byte{valueInfo("x", Float, 2)}, [][]byte{valueInfo("y", Float, 2), valueInfo("z", Float16, 2)},
			)), Options{}),
		} {
			x := tensor[float32](t, []int{2}, 1, 2)
			out, err := s.Run(ctx, []*Tensor{x})
			if name == "open" && (err == nil || !strings.Contains(err.Error(), `output "z": give a float16 tensor`)) || name == "static" && err != nil {
				t.Errorf("%s: %v", name, err)
			}
			CloseAll(out...)
			half, err := Zeros(Float16, 2)
			if err != nil {
				t.Fatal(err)
			}
			defer half.Close()
			out = []*Tensor{nil, half}
			if err := s.RunInto(ctx, []*Tensor{x}, out); err != nil || !bytes.Equal(half.Bytes(), []byte{0, 0x3c, 0, 0x40}) {
				t.Errorf("%s, with memory: %v, %v", name, half.Bytes(), err)
			}
			out[0].Close()
		}
	})
	t.Run("a closed session", func(t *testing.T) {
		s := openBytes(t, addModel(2), Options{})
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		if _, err := s.Run(ctx, []*Tensor{good, good}); !errors.Is(err, ErrClosed) {
			t.Errorf("got %v, want %v", err, ErrClosed)
		}
	})
}

func TestRunStopsWhenItsContextEnds(t *testing.T) {
	s := openBytes(t, spinModel(), Options{IntraOpThreads: 1})
	trips := tensor[int64](t, nil, 1<<40) // years
	x := tensor[float32](t, []int{4}, 0, 0, 0, 0)
	// Long enough to be in the middle of the Loop, which would take years.
	ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	if _, err := s.Run(ctx, []*Tensor{trips, x}); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v, want %v", err, context.DeadlineExceeded)
	}
	// The session is as good as before.
	few := tensor[int64](t, nil, 3)
	y := tensor[float32](t, []int{4}, 1, 2, 3, 4)
	out, err := s.Run(context.Background(), []*Tensor{few, y})
	if err != nil {
		t.Fatal(err)
	}
	defer CloseAll(out...)
	if d := cmp.Diff([]float32{8, 16, 24, 32}, out[0].Float32s()); d != "" {
		t.Error(d)
	}
}

func TestOpen(t *testing.T) {
	t.Run("inputs and outputs are those of the model", func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "m.onnx")
		m := append(addModel(-1, 3), field(14, join(field(1, []byte("key")), field(2, []byte("value"))))...)
		if err := os.WriteFile(path, m, 0o600); err != nil {
			t.Fatal(err)
		}
		s, err := Open(path, Options{IntraOpThreads: 1, NoSpinning: true})
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		if d := cmp.Diff(map[string]string{"key": "value"}, s.Metadata()); d != "" {
			t.Error(d)
		}
		want := []Info{{Name: "x", Type: Float, Shape: []int{-1, 3}, Ranked: true}, {Name: "y", Type: Float, Shape: []int{-1, 3}, Ranked: true}}
		if d := cmp.Diff(want, s.Inputs()); d != "" {
			t.Error(d)
		}
		if d := cmp.Diff([]Info{{Name: "z", Type: Float, Shape: []int{-1, 3}, Ranked: true}}, s.Outputs()); d != "" {
			t.Error(d)
		}
	})
	t.Run("what is no model is refused", func(t *testing.T) {
		for name, b := range map[string][]byte{
			"nothing":   nil,
			"text":      []byte("hello, I am not a model"),
			"cut short": addModel(2)[:20],
			"noise":     bytes.Repeat([]byte{0xff}, 100),
			"bad op":    model(graph([][]byte{node("NoSuchOp", []string{"x"}, []string{"z"})}, [][]byte{valueInfo("x", Float, 2)}, [][]byte{valueInfo("z", Float, 2)})),
		} {
			if _, err := OpenBytes(b, Options{}); err == nil {
				t.Errorf("%s: no error", name)
			} else if strings.Contains(err.Error(), "\n") {
				t.Errorf("%s: several lines: %q", name, err)
			}
		}
	})
	t.Run("a device is used, or refused with its reason", func(t *testing.T) {
		providers, err := Providers()
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range providers {
			d, err := ParseDevice(p.Device)
			if err != nil {
				t.Fatal(err)
			}
			s, err := OpenBytes(addModel(2), Options{Device: d})
			if err == nil {
				s.Close()
			}
			if p.Usable != (err == nil) || p.Usable != (p.Why == "") {
				t.Errorf("%+v, and a session says %v", p, err)
			}
			if err != nil && (!strings.Contains(err.Error(), "use device "+p.Device+": "+p.Why) || strings.Contains(err.Error(), "\n")) {
				t.Errorf("got %v, want %s", err, p.Why)
			}
		}
		if last := providers[len(providers)-1]; last.Device != "cpu" || !last.Usable {
			t.Errorf("the last is %+v", last)
		}
	})
}

func TestNewTensor(t *testing.T) {
	for name, f := range map[string]func() (*Tensor, error){
		"too few elements":     func() (*Tensor, error) { return NewTensor([]int{2, 2}, []float32{1, 2, 3}) },
		"a negative dimension": func() (*Tensor, error) { return NewTensor([]int{-1}, []float32{1}) },
		"an overflow":          func() (*Tensor, error) { return Zeros(Float, 1<<31, 1<<31, 1<<31) },
		"an unknown type":      func() (*Tensor, error) { return Zeros(Type(8), 1) },
		"misaligned bytes": func() (*Tensor, error) {
			words := make([]uint64, 3)
			raw := Data[uint8](mustRaw(t, words))
			return NewRaw(Double, []int{1}, raw[1:9])
		},
	} {
		if x, err := f(); err == nil {
			x.Close()
			t.Errorf("%s: no error", name)
		}
	}
}

func mustRaw(t *testing.T, words []uint64) *Tensor {
	t.Helper()
	x, err := NewTensor([]int{len(words)}, words)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(x.Close)
	raw, err := NewRaw(Uint8, []int{8 * len(words)}, x.Bytes())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(raw.Close)
	return raw
}

func TestParseDevice(t *testing.T) {
	for s, want := range map[string]Device{
		"": {Kind: "cpu"}, "cpu": {Kind: "cpu"}, "CUDA": {Kind: "cuda"}, "cuda:1": {Kind: "cuda", ID: 1}, "tensorrt:0": {Kind: "tensorrt"},
		"cuda+graph": {Kind: "cuda", Graph: true}, "Cuda:2+graph": {Kind: "cuda", ID: 2, Graph: true}, "cpu+graph": {Kind: "cpu", Graph: true},
	} {
		got, err := ParseDevice(s)
		if err != nil || got != want {
			t.Errorf("%q: got %v, %v, want %v", s, got, err, want)
		}
		if again, err := ParseDevice(got.String()); err != nil || again != got {
			t.Errorf("%q is printed as %q, and that is %v, %v", s, got, again, err)
		}
	}
	for _, s := range []string{"gpu", "cuda:x", "cuda:-1", "cpu:1", "cuda:", "tensorrt+graph", "+graph", "graph", "cuda+graph:1", "cuda+graphs"} {
		if got, err := ParseDevice(s); err == nil {
			t.Errorf("%q: got %v, want an error", s, got)
		}
	}
}

func TestLocate(t *testing.T) {
	t.Run("a missing library is one line that says what to run", func(t *testing.T) {
		t.Setenv(EnvLibrary, "")
		t.Setenv(EnvCache, t.TempDir())
		_, err := locate()
		if !errors.Is(err, ErrNotInstalled) || !strings.Contains(err.Error(), `run "nearmiss runtime install"`) || strings.Contains(err.Error(), "\n") {
			t.Errorf("got %v", err)
		}
	})
	t.Run("a wrong variable is named", func(t *testing.T) {
		t.Setenv(EnvLibrary, "/nowhere/lib.so")
		if _, err := locate(); err == nil || !strings.Contains(err.Error(), EnvLibrary) {
			t.Errorf("got %v", err)
		}
	})
}

func FuzzReadHeader(f *testing.F) {
	f.Add(addModel(2, -1))
	f.Add(spinModel())
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		h, err := readHeader(b)
		if err == nil && len(h.out) == 0 {
			t.Error("a model without outputs passed")
		}
	})
}
