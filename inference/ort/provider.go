package ort

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"time"

	onnxruntime "github.com/yalue/onnxruntime_go"

	"github.com/nearmiss/nearmiss/inference/onnx/wire"
	"github.com/nearmiss/nearmiss/internal/mapped"
)

// Kinds of devices that have a provider of their own.
const (
	cuda     = "cuda"
	tensorrt = "tensorrt"
)

// setting is an execution provider and its options, by the names that ONNX Runtime has
// for them (https://onnxruntime.ai/docs/execution-providers).
type setting struct {
	kind    string
	options map[string]string
}

// settings are the providers of the device in the order in which they take nodes. The
// CPU's is always there, behind them. TensorRT keeps engines in a folder, if any.
func (o Options) settings(engines string) []setting {
	id := strconv.Itoa(o.Device.ID)
	onCUDA := setting{cuda, map[string]string{
		"device_id": id,
		// HEURISTIC: the other settings either search for minutes or, with
		// DEFAULT, fall back to algorithms that were seen 50 times slower.
		"cudnn_conv_algo_search": "HEURISTIC",
		// Rounding the inputs of float32 products to 10 bits is faster, but scores then
		// differ in the third digit from those of a CPU, which a release's check
		// images would not pass.
		"use_tf32": "0",
	}}
	if o.capture {
		onCUDA.options["enable_cuda_graph"] = "1"
	}
	if o.exact {
		onCUDA.options["arena_extend_strategy"] = "kSameAsRequested" // by default it doubles
	}
	switch o.Device.Kind {
	case cuda:
		return []setting{onCUDA}
	case tensorrt:
		on := setting{tensorrt, map[string]string{"device_id": id}}
		if o.Half {
			on.options["trt_fp16_enable"] = "1"
			on.options["trt_layer_norm_fp32_fallback"] = "1" // else they are in 16 bits, too
		}
		if engines != "" {
			on.options["trt_engine_cache_enable"] = "1"
			on.options["trt_engine_cache_path"] = engines
			on.options["trt_timing_cache_enable"] = "1" // of all models
			on.options["trt_timing_cache_path"] = filepath.Dir(engines)
		}
		return []setting{on, onCUDA} // what TensorRT does not take runs on CUDA
	}
	return nil
}

// envTF32 set to 0 keeps NVIDIA's libraries from rounding the inputs of float32
// products, for which ONNX Runtime's provider of TensorRT has no option.
const envTF32 = "NVIDIA_TF32_OVERRIDE"

// append adds the device's execution providers.
func (o Options) append(so *onnxruntime.SessionOptions, engines string) error {
	switch o.Device.Kind {
	case "", "cpu", cuda, tensorrt:
	default:
		return fmt.Errorf("device %q is not known: use cpu, cuda or tensorrt", o.Device.Kind)
	}
	for _, s := range o.settings(engines) {
		if err := s.append(so); err != nil {
			return deviceError(o.Device, err)
		}
	}
	return nil
}

func (s setting) append(so *onnxruntime.SessionOptions) error {
	if s.kind == cuda {
		p, err := onnxruntime.NewCUDAProviderOptions()
		if err != nil {
			return err
		}
		defer p.Destroy()
		if err := p.Update(s.options); err != nil {
			return err
		}
		return so.AppendExecutionProviderCUDA(p)
	}
	if _, set := os.LookupEnv(envTF32); !set {
		if err := os.Setenv(envTF32, "0"); err != nil {
			return err
		}
	}
	p, err := onnxruntime.NewTensorRTProviderOptions()
	if err != nil {
		return err
	}
	defer p.Destroy()
	if err := p.Update(s.options); err != nil {
		return err
	}
	return so.AppendExecutionProviderTensorRT(p)
}

// mostEngines is of how many models engines are kept; those of the ones that were not
// opened for longest go.
const mostEngines = 16

// engineFolder is where TensorRT keeps its engines for a model, whose external data are
// in dir. TensorRT tells models apart by their structure and not by their weights
// (https://github.com/microsoft/onnxruntime/issues/6455), so that every model has a
// folder of its own. It is empty where nothing can be written: engines are then built
// every time.
func engineFolder(model []byte, dir string) (string, error) {
	h := sha256.New()
	h.Write(model)
	m, err := wire.Parse(model)
	if err != nil {
		return "", fmt.Errorf("not an ONNX model: %w", err)
	}
	for _, name := range m.External {
		f, err := mapped.Within(dir, name)
		if err != nil {
			return "", fmt.Errorf("external data: %w", err)
		}
		h.Write(f.Data)
		if err := f.Close(); err != nil {
			return "", err
		}
	}
	cache, err := CacheDir()
	if err != nil {
		return "", nil // no home: nothing is kept
	}
	all := filepath.Join(cache, "tensorrt", Version)
	folder := filepath.Join(all, hex.EncodeToString(h.Sum(nil)[:16]))
	now := time.Now()
	if errors.Join(os.MkdirAll(folder, 0o755), os.Chtimes(folder, now, now)) != nil {
		return "", nil
	}
	_ = keepLatest(all, mostEngines) // what cannot be removed stays
	return folder, nil
}

// EnginesError is a failure of a session that found engines which TensorRT had kept, and
// had not run yet: another version of TensorRT, or of the driver, refuses to read them,
// when the session is created or at its first run.
type EnginesError struct {
	Err    error
	Folder string // of the engines
}

func (e *EnginesError) Error() string { return e.Err.Error() }

func (e *EnginesError) Unwrap() error { return e.Err }

// Drop removes the engines, so that who opens the model once more has them built again.
func (e *EnginesError) Drop() error {
	if err := errors.Join(os.RemoveAll(e.Folder), os.Mkdir(e.Folder, 0o755)); err != nil {
		return fmt.Errorf("remove engines of TensorRT, after: %w: %w", e.Err, err)
	}
	return nil
}

// blame makes err an EnginesError where that may be its cause.
func (s *Session) blame(err error) error {
	if folder := s.engines.Load(); folder != nil {
		return &EnginesError{err, *folder}
	}
	return err
}

// hasEngines says whether there is anything in a folder of engines.
func hasEngines(folder string) bool {
	if folder == "" {
		return false
	}
	kept, err := os.ReadDir(folder)
	return err == nil && len(kept) > 0
}

// keepLatest removes all folders in dir but the n that were changed last.
func keepLatest(dir string, n int) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	type used struct {
		path string
		at   time.Time
	}
	var folders []used
	for _, e := range entries {
		if info, err := e.Info(); err == nil && info.IsDir() {
			folders = append(folders, used{filepath.Join(dir, e.Name()), info.ModTime()})
		}
	}
	slices.SortFunc(folders, func(a, b used) int { return cmp.Or(b.at.Compare(a.at), cmp.Compare(a.path, b.path)) })
	for _, f := range folders[min(n, len(folders)):] {
		if err := os.RemoveAll(f.path); err != nil {
			return fmt.Errorf("remove engines of TensorRT: %w", err)
		}
	}
	return nil
}
