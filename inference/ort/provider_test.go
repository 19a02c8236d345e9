package ort

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/nearmiss/nearmiss/inference/onnx"
)

func TestProviderSettings(t *testing.T) {
	onCUDA := func(id string) map[string]string {
		return map[string]string{"device_id": id, "cudnn_conv_algo_search": "HEURISTIC", "use_tf32": "0"}
	}
	cache := filepath.Join("cache", "1.27.0", "abc")
	for name, c := range map[string]struct {
		o       Options
		engines string
		want    []setting
	}{
		"nothing said": {Options{}, "", nil},
		"cpu":          {Options{Device: Device{Kind: "cpu"}, Half: true}, "", nil},
		"cuda":         {Options{Device: Device{Kind: "cuda", ID: 1}}, "", []setting{{"cuda", onCUDA("1")}}},
		"cuda, captured": {Options{Device: Device{Kind: "cuda"}, capture: true}, "", []setting{
			{"cuda", map[string]string{"device_id": "0", "cudnn_conv_algo_search": "HEURISTIC", "use_tf32": "0", "enable_cuda_graph": "1"}},
		}},
		"cuda, where the device says that models are captured": {Options{Device: Device{Kind: "cuda", Graph: true}}, "", []setting{{"cuda", onCUDA("0")}}},
		"cuda, of which every byte is counted": {Options{Device: Device{Kind: "cuda"}, exact: true}, "", []setting{
			{"cuda", map[string]string{"device_id": "0", "cudnn_conv_algo_search": "HEURISTIC", "use_tf32": "0", "arena_extend_strategy": "kSameAsRequested"}},
		}},
		"cuda, fp16": {Options{Device: Device{Kind: "cuda"}, Half: true}, "", []setting{{"cuda", onCUDA("0")}}},
		"tensorrt":   {Options{Device: Device{Kind: "tensorrt", ID: 2}}, "", []setting{{"tensorrt", map[string]string{"device_id": "2"}}, {"cuda", onCUDA("2")}}},
		"tensorrt, fp16, with a cache": {Options{Device: Device{Kind: "tensorrt"}, Half: true}, cache, []setting{
			{"tensorrt", map[string]string{
				"device_id": "0", "trt_fp16_enable": "1", "trt_layer_norm_fp32_fallback": "1",
				"trt_engine_cache_enable": "1", "trt_engine_cache_path": cache,
				"trt_timing_cache_enable": "1", "trt_timing_cache_path": filepath.Dir(cache),
			}},
			{"cuda", onCUDA("0")},
		}},
	} {
		if d := cmp.Diff(c.want, c.o.settings(c.engines), cmp.AllowUnexported(setting{})); d != "" {
			t.Errorf("%s: %s", name, d)
		}
	}
	if _, err := OpenBytes(addModel(2), Options{Device: Device{Kind: "abacus"}}); err == nil || !strings.Contains(err.Error(), "use cpu, cuda or tensorrt") {
		t.Errorf("an unknown device: %v", err)
	}
}

// TestEveryModelHasItsOwnEngines: weights alone tell two models apart, wherever they
// are, and the same model finds its folder again.
func TestEveryModelHasItsOwnEngines(t *testing.T) {
	t.Setenv(EnvCache, t.TempDir())
	write := func(weight float32, beside bool) (model []byte, dir string) {
		dir = t.TempDir()
		g := onnx.New("m")
		w := make([]float32, 1024)
		w[7] = weight
		g.Output("y", g.MatMul(g.Input("x", onnx.Float, 1, 1024), g.Initializer(onnx.FromFloat32("w", w, 1024, 1))))
		path := filepath.Join(dir, "m.onnx")
		var o []onnx.WriteOption
		if beside {
			o = append(o, onnx.ExternalAbove(0))
		}
		if err := g.WriteFile(path, o...); err != nil {
			t.Fatal(err)
		}
		model, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		return model, dir
	}
	seen := map[string]string{}
	for _, beside := range []bool{false, true} {
		for _, weight := range []float32{1, 2} {
			name := fmt.Sprint(weight, beside)
			model, dir := write(weight, beside)
			folder, err := engineFolder(model, dir)
			if err != nil {
				t.Fatal(err)
			}
			if info, err := os.Stat(folder); err != nil || !info.IsDir() {
				t.Errorf("%s: %s: %v", name, folder, err)
			}
			if other := seen[folder]; other != "" {
				t.Errorf("%s and %s share a folder", name, other)
			}
			seen[folder] = name
			model, dir = write(weight, beside)
			if again, err := engineFolder(model, dir); err != nil || again != folder {
				t.Errorf("%s: %s the first time, %s the second: %v", name, folder, again, err)
			}
			if beside {
				if _, err := engineFolder(model, t.TempDir()); err == nil {
					t.Errorf("%s: its weights are missing, and nobody says so", name)
				}
			}
		}
	}
	for i := range mostEngines {
		model, dir := write(float32(3+i), false)
		if folder, err := engineFolder(model, dir); folder == "" || err != nil {
			t.Fatal(folder, err)
		}
	}
	if left, err := filepath.Glob(filepath.Join(os.Getenv(EnvCache), "tensorrt", Version, "*")); err != nil || len(left) != mostEngines {
		t.Errorf("%d folders of engines are kept, want %d: %v", len(left), mostEngines, err)
	}
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv(EnvCache, file)
	model, dir := write(1, false)
	if folder, err := engineFolder(model, dir); folder != "" || err != nil {
		t.Errorf("where nothing can be written: %q, %v", folder, err)
	}
}

// TestWhichFailuresEnginesAreBlamedFor: of a session that found some, what fails before
// anything ran, and nothing after.
func TestWhichFailuresEnginesAreBlamedFor(t *testing.T) {
	fails := func(s *Session) error {
		_, err := s.Run(t.Context(), []*Tensor{tensor[float32](t, []int{3, 2}, 1, 2, 3, 4, 5, 6), tensor[float32](t, []int{2, 2}, 1, 2, 3, 4)})
		if err == nil {
			t.Fatal("rows of unequal numbers were added")
		}
		return err
	}
	open := func(folder string) *Session {
		s := openBytes(t, addModel(-1, 2), Options{})
		if hasEngines(folder) { // as with TensorRT
			s.engines.Store(&folder)
		}
		return s
	}
	folder := t.TempDir()
	var stale *EnginesError
	for name, where := range map[string]string{"no folder": "", "an empty folder": folder, "no such folder": filepath.Join(folder, "x")} {
		if err := fails(open(where)); errors.As(err, &stale) {
			t.Errorf("%s: %v", name, err)
		}
	}
	file := filepath.Join(folder, "x.engine")
	if err := os.WriteFile(file, []byte("old"), 0o600); err != nil {
		t.Fatal(err)
	}
	s := open(folder)
	x := tensor[float32](t, []int{1, 2}, 1, 2)
	ended, end := context.WithCancel(t.Context())
	end()
	if _, err := s.Run(ended, []*Tensor{x, x}); err == nil || errors.As(err, &stale) {
		t.Errorf("a run that its caller ended: %v", err)
	}
	if err := fails(s); !errors.As(err, &stale) || !strings.HasPrefix(err.Error(), "run model in memory: ") {
		t.Fatalf("%v", err)
	}
	if out, err := s.Run(t.Context(), []*Tensor{x, x}); err != nil {
		t.Fatal(err)
	} else {
		CloseAll(out...)
	}
	if err := fails(s); errors.As(err, new(*EnginesError)) {
		t.Errorf("after a run that was well: %v", err)
	}
	if err := stale.Drop(); err != nil {
		t.Fatal(err)
	}
	if left, err := os.ReadDir(folder); err != nil || len(left) != 0 {
		t.Errorf("what is left of the engines: %v, %v", left, err)
	}
}

func TestTheLatestEnginesAreKept(t *testing.T) {
	dir := t.TempDir()
	at := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	for i, name := range []string{"b", "d", "a", "c"} { // oldest first
		folder := filepath.Join(dir, name)
		if err := os.Mkdir(folder, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(folder, "x.engine"), []byte("engine"), 0o600); err != nil {
			t.Fatal(err)
		}
		when := at.Add(time.Duration(i) * time.Hour)
		if err := os.Chtimes(folder, when, when); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "timing.cache"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := keepLatest(dir, 2); err != nil {
		t.Fatal(err)
	}
	var left []string
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		left = append(left, e.Name())
	}
	if d := cmp.Diff([]string{"a", "c", "timing.cache"}, left); d != "" {
		t.Error(d)
	}
}
