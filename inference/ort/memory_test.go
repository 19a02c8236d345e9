package ort

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// TestPlacesAreTheHeaders: the numbers of the functions are those of the header that the
// binding was built with.
func TestPlacesAreTheHeaders(t *testing.T) {
	dir, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", "github.com/yalue/onnxruntime_go").Output()
	if err != nil {
		t.Fatal(err)
	}
	header, err := os.ReadFile(filepath.Join(strings.TrimSpace(string(dir)), "onnxruntime_c_api.h"))
	if err != nil {
		t.Fatal(err)
	}
	_, body, ok := bytes.Cut(header, []byte("\nstruct OrtApi {"))
	if !ok {
		t.Fatal("the header has no struct OrtApi")
	}
	body, _, _ = bytes.Cut(body, []byte("\n};"))
	body = regexp.MustCompile(`(?s)/\*.*?\*/|//[^\n]*`).ReplaceAll(body, nil)
	var names []string
	for _, m := range regexp.MustCompile(`ORT_API2_STATUS\(\s*(\w+)|ORT_CLASS_(RELEASE)\w*\(\s*(\w+)|ORT_API_CALL\s*\*\s*(\w+)\s*\)`).FindAllSubmatch(body, -1) {
		name := string(m[1]) + string(m[3]) + string(m[4])
		if len(m[2]) > 0 {
			name = "Release" + name
		}
		names = append(names, name)
	}
	for want, at := range map[string]int{
		"GetErrorMessage": getErrorMessage, "CreateTensorAsOrtValue": createTensorAsOrtValue,
		"CreateMemoryInfo": createMemoryInfo, "ReleaseStatus": releaseStatus, "ReleaseMemoryInfo": releaseMemoryInfo,
		"ReleaseValue": releaseValue, "CreateAllocator": createAllocator, "ReleaseAllocator": releaseAllocator,
	} {
		if len(names) <= at || names[at] != want {
			t.Errorf("%s is at %d of the header's %d functions, not at %d", want, slices.Index(names, want), len(names), at)
		}
	}
}

// tested are the options of a session on the device whose memory is tested: the CPU, or
// what gpu.sh says.
func tested(t *testing.T) Options {
	t.Helper()
	d, err := ParseDevice(os.Getenv("NEARMISS_TEST_DEVICE"))
	if err != nil {
		t.Fatal(err)
	}
	return Options{Device: d, IntraOpThreads: 1}
}

func openMemory(t *testing.T) *Memory {
	t.Helper()
	m, err := OpenMemory(tested(t))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := m.Close(); err != nil {
			t.Error(err)
		}
	})
	return m
}

func deviceTensor(t *testing.T, m *Memory, typ Type, shape ...int) *Tensor {
	t.Helper()
	x, err := m.Tensor(typ, shape...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(x.Close)
	return x
}

func TestMemory(t *testing.T) {
	ctx := context.Background()
	t.Run("outputs of one run stay and become the inputs of the next", func(t *testing.T) {
		m := openMemory(t)
		s := openBytes(t, addModel(2, 2), tested(t))
		one := tensor[float32](t, []int{2, 2}, 1, 2, 3, 4)
		cur, next := deviceTensor(t, m, Float, 2, 2), deviceTensor(t, m, Float, 2, 2)
		if err := m.Copy(cur, one); err != nil {
			t.Fatal(err)
		}
		for range 9 {
			if err := s.RunInto(ctx, []*Tensor{cur, one}, []*Tensor{next}); err != nil {
				t.Fatal(err)
			}
			cur, next = next, cur
		}
		got := tensor[float32](t, []int{2, 2}, 0, 0, 0, 0)
		if err := m.Copy(got, cur); err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff([]float32{10, 20, 30, 40}, got.Float32s()); d != "" {
			t.Error(d)
		}
		if err := s.RunInto(ctx, []*Tensor{cur, cur}, []*Tensor{got}); err != nil { // to Go's memory at once
			t.Fatal(err)
		}
		if d := cmp.Diff([]float32{20, 40, 60, 80}, got.Float32s()); d != "" {
			t.Error(d)
		}
	})
	t.Run("every type and number of dimensions is copied, scalars too", func(t *testing.T) {
		m := openMemory(t)
		for _, typ := range []Type{Float, Float16, BFloat16, Double, Uint8, Int8, Uint16, Int16, Int32, Int64, Uint32, Uint64, Bool} {
			for _, shape := range [][]int{{}, {3}, {2, 1, 3, 1, 2}} {
				from, err := Zeros(typ, shape...)
				if err != nil {
					t.Fatal(err)
				}
				defer from.Close()
				for i := range from.Bytes() {
					from.Bytes()[i] = byte(i % 2)
				}
				to, err := Zeros(typ, shape...)
				if err != nil {
					t.Fatal(err)
				}
				defer to.Close()
				there := deviceTensor(t, m, typ, shape...)
				err = errors.Join(m.Copy(there, from), m.Copy(to, there))
				if len(shape) == 0 && err != nil && strings.Contains(err.Error(), "a scalar of") {
					continue // the binding has none of this type
				}
				if err != nil || !bytes.Equal(from.Bytes(), to.Bytes()) || !there.OnDevice() || to.OnDevice() {
					t.Errorf("%s%v: %v became %v: %v", typ, shape, from.Bytes(), to.Bytes(), err)
				}
			}
		}
	})
	t.Run("a tensor that outlives its memory keeps it", func(t *testing.T) {
		m := openMemory(t)
		x := deviceTensor(t, m, Float, 1000)
		if err := m.Close(); err != nil {
			t.Fatal(err)
		}
		s := openBytes(t, addModel(1000), tested(t))
		if err := s.RunInto(ctx, []*Tensor{tensor(t, []int{1000}, make([]float32, 1000)...), tensor(t, []int{1000}, make([]float32, 1000)...)}, []*Tensor{x}); err != nil {
			t.Error(err)
		}
		if _, err := m.Tensor(Float, 1); !errors.Is(err, ErrClosed) {
			t.Errorf("another tensor of a closed memory: %v", err)
		}
		if err := m.Copy(x, x); !errors.Is(err, ErrClosed) {
			t.Errorf("a copy in a closed memory: %v", err)
		}
		if m.allocator == nil {
			t.Error("the allocator went before the tensor")
		}
		x.Close()
		x.Close()
		if m.allocator != nil || m.tensors != 0 || len(m.copies) != 0 {
			t.Errorf("after the last tensor: %+v", m)
		}
	})
	t.Run("what cannot be is refused", func(t *testing.T) {
		m := openMemory(t)
		x := deviceTensor(t, m, Float, 2)
		if err := m.Copy(x, tensor[float32](t, []int{3}, 1, 2, 3)); err == nil || !strings.Contains(err.Error(), "float[3] to float[2]") {
			t.Errorf("another shape: %v", err)
		}
		if err := m.Copy(x, tensor[int32](t, []int{2}, 1, 2)); err == nil {
			t.Error("another type is copied")
		}
		for _, shape := range [][]int{{0}, {-1}, {1 << 31, 1 << 31, 1 << 31}} {
			if _, err := m.Tensor(Float, shape...); err == nil {
				t.Errorf("a tensor of shape %v", shape)
			}
		}
		if _, err := m.Tensor(Float, 1<<50); err == nil || strings.Contains(err.Error(), "\n") {
			t.Errorf("more than there is: %v", err)
		}
		for name, read := range map[string]func(){
			"Bytes": func() { x.Bytes() }, "Len": func() { x.Len() }, "Float32s": func() { x.Float32s() },
		} {
			func() {
				defer func() {
					if recover() == nil {
						t.Errorf("%s of a tensor on a device gives something", name)
					}
				}()
				read()
			}()
		}
	})
	t.Run("a memory that does not give back what was written is found out", func(t *testing.T) {
		m := openMemory(t)
		defer m.copies[Float].Close()
		for op, right := range map[string]bool{"Neg": false, "Ceil": false, "Identity": true} {
			m.copies[Float] = openBytes(t, model(graph([][]byte{node(op, []string{"x"}, []string{"y"})},
				[][]byte{valueInfo("x", Float, 2, 3)}, [][]byte{valueInfo("y", Float, 2, 3)})), tested(t))
			if err := m.try(); (err == nil) != right || err != nil && !strings.Contains(err.Error(), "was written and") {
				t.Errorf("%s: %v", op, err)
			}
		}
	})
	t.Run("a device that is not there has no memory, and says why", func(t *testing.T) {
		if _, err := OpenMemory(Options{Device: Device{Kind: "cuda", ID: 99}}); err == nil || !strings.Contains(err.Error(), "device cuda:99") {
			t.Errorf("got %v", err)
		}
		m, err := OpenMemory(Options{})
		if err != nil {
			t.Fatal(err)
		}
		defer m.Close()
		s, err := m.copier(Float)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := m.api.allocator(s.s, Device{Kind: "cuda"}); err == nil {
			t.Error("a session on the CPU gives memory of another device")
		}
	})
}

// TestMemoryIsShared: goroutines make, use and drop tensors of one memory while the
// collector runs, and it is closed before the last of them.
func TestMemoryIsShared(t *testing.T) {
	m := openMemory(t)
	s := openBytes(t, addModel(-1), tested(t))
	var wg sync.WaitGroup
	for w := range 4 {
		wg.Go(func() {
			for i := range 50 {
				n := 1 + (w*50+i)%300
				data := make([]float32, n)
				for j := range data {
					data[j] = float32(w + j)
				}
				err := func() error {
					x, err := NewTensor([]int{n}, data)
					if err != nil {
						return err
					}
					defer x.Close()
					sum, err := m.Tensor(Float, n)
					if err != nil {
						return err
					}
					if i%2 == 0 { // the others are left to the collector
						defer sum.Close()
					}
					if err := s.RunInto(context.Background(), []*Tensor{x, x}, []*Tensor{sum}); err != nil {
						return err
					}
					if err := m.Copy(x, sum); err != nil {
						return err
					}
					for j, v := range data {
						if v != 2*float32(w+j) {
							return fmt.Errorf("goroutine %d, run %d: [%d] = %v", w, i, j, v)
						}
					}
					return nil
				}()
				if err != nil {
					t.Error(err)
					return
				}
				if i%10 == 0 {
					runtime.GC()
				}
			}
		})
	}
	wg.Wait()
}

// captureAdd captures addModel for n numbers.
func captureAdd(t *testing.T, n int, opened func(o Options)) (*Captured, error) {
	zeros, err := Zeros(Float, n)
	if err != nil {
		return nil, err
	}
	defer zeros.Close()
	return Capture(context.Background(), tested(t), func(o Options) (Model, error) {
		opened(o)
		return OpenBytes(addModel(-1), o)
	}, []*Tensor{zeros, zeros}, []*Tensor{zeros})
}

func TestCaptured(t *testing.T) {
	ctx := context.Background()
	c, err := captureAdd(t, 3, func(o Options) {
		if !o.capture {
			t.Error("the model is not opened to be captured")
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for w := range 4 {
		wg.Go(func() {
			for i := range 50 {
				x, y := make([]float32, 3), make([]float32, 3)
				for j := range x {
					x[j] = float32(1000*w + 10*i + j)
				}
				in, err := NewTensor([]int{3}, x)
				if err != nil {
					t.Error(err)
					return
				}
				defer in.Close()
				out, err := NewTensor([]int{3}, y)
				if err != nil {
					t.Error(err)
					return
				}
				defer out.Close()
				if err := errors.Join(c.Run(ctx, []*Tensor{in, in}, []*Tensor{nil}), c.Run(ctx, []*Tensor{in, in}, []*Tensor{out})); err != nil {
					t.Error(err)
					return
				}
				for j := range y {
					if y[j] != 2*x[j] {
						t.Errorf("goroutine %d, run %d: %v of %v", w, i, y, x)
						return
					}
				}
			}
		})
	}
	wg.Wait()
	three, two := tensor[float32](t, []int{3}, 1, 2, 3), tensor[float32](t, []int{2}, 1, 2)
	for name, in := range map[string][]*Tensor{"an input too few": {three}, "another shape": {three, two}, "another type": {three, tensor[int64](t, []int{3}, 1, 2, 3)}} {
		if err := c.Run(ctx, in, []*Tensor{three}); err == nil {
			t.Errorf("%s is taken", name)
		}
	}
	if err := c.Run(ctx, []*Tensor{three, three}, []*Tensor{two}); err == nil {
		t.Error("an output of another shape is taken")
	}
	ended, cancel := context.WithCancel(ctx)
	cancel()
	if err := c.Run(ended, []*Tensor{three, three}, []*Tensor{three}); !errors.Is(err, context.Canceled) {
		t.Errorf("after its context ended: %v", err)
	}
	for range 2 {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	}
	if err := c.Run(ctx, []*Tensor{three, three}, []*Tensor{three}); !errors.Is(err, ErrClosed) {
		t.Errorf("a closed one: %v", err)
	}
	broken := errors.New("broken")
	if c, err := Capture(ctx, Options{}, func(Options) (Model, error) { return (*Session)(nil), broken }, []*Tensor{three}, nil); c != nil || !errors.Is(err, broken) {
		t.Errorf("a model that cannot be opened: %v", err)
	}
}

// TestNothingLeaks: memories, sessions, tensors and captured models that are closed are gone.
func TestNothingLeaks(t *testing.T) {
	const n = 1 << 18 // 1 MiB
	x := tensor(t, []int{n}, make([]float32, n)...)
	round := func() {
		m, err := OpenMemory(Options{})
		if err != nil {
			t.Fatal(err)
		}
		s, err := OpenBytes(addModel(n), Options{IntraOpThreads: 1})
		if err != nil {
			t.Fatal(err)
		}
		y, err := m.Tensor(Float, n)
		if err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(s.RunInto(context.Background(), []*Tensor{x, x}, []*Tensor{y}), m.Close(), s.Close()); err != nil {
			t.Fatal(err)
		}
		y.Close()
		c, err := captureAdd(t, n, func(Options) {})
		if err != nil {
			t.Fatal(err)
		}
		if err := c.Close(); err != nil {
			t.Fatal(err)
		}
	}
	m := openMemory(t)
	s := openBytes(t, addModel(n), Options{IntraOpThreads: 1})
	cur, next := deviceTensor(t, m, Float, n), deviceTensor(t, m, Float, n)
	step := func() {
		y, err := m.Tensor(Float, n)
		if err != nil {
			t.Fatal(err)
		}
		defer y.Close()
		if err := errors.Join(s.RunInto(context.Background(), []*Tensor{cur, x}, []*Tensor{next}), m.Copy(y, next), m.Copy(x, y)); err != nil {
			t.Fatal(err)
		}
		cur, next = next, cur
	}
	for range 100 {
		round()
		step()
	}
	before := resident(t)
	for range 1000 {
		round()
		step()
	}
	// One tensor in ten would be 100 MiB.
	if grown := resident(t) - before; grown > 32<<20 {
		t.Errorf("1,000 memories, sessions and tensors of 1 MiB, and steps with them, leave %d MiB behind", grown>>20)
	} else {
		t.Logf("grown by %d KiB", grown>>10)
	}
}

// resident is the memory of this process, in bytes.
func resident(t *testing.T) int {
	t.Helper()
	b, err := os.ReadFile("/proc/self/statm")
	if err != nil {
		t.Skipf("the system does not tell: %v", err)
	}
	var size, pages int
	if _, err := fmt.Sscan(string(b), &size, &pages); err != nil {
		t.Fatal(err)
	}
	return pages * os.Getpagesize()
}
