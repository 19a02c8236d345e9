package ort

import (
	"fmt"
	"runtime"
	"strconv"
	"strings"

	onnxruntime "github.com/yalue/onnxruntime_go"
)

// Device says where a session computes.
type Device struct {
	Kind string // "cpu", "cuda" or "tensorrt"; empty means cpu
	ID   int    // which of several accelerators, from 0
}

// ParseDevice reads "cpu", "cuda", "cuda:1", "tensorrt" or "tensorrt:0".
func ParseDevice(s string) (Device, error) {
	kind, id, numbered := strings.Cut(strings.ToLower(strings.TrimSpace(s)), ":")
	d := Device{Kind: kind}
	switch kind {
	case "", "cpu":
		d.Kind = "cpu"
		if numbered && id != "0" {
			return Device{}, fmt.Errorf("device %q: there is only one cpu", s)
		}
		return d, nil
	case "cuda", "tensorrt":
	default:
		return Device{}, fmt.Errorf("device %q is not known: use cpu, cuda, cuda:N, tensorrt or tensorrt:N", s)
	}
	if numbered {
		n, err := strconv.Atoi(id)
		if err != nil || n < 0 {
			return Device{}, fmt.Errorf("device %q: %q is not a number of a device", s, id)
		}
		d.ID = n
	}
	return d, nil
}

func (d Device) String() string {
	kind := d.Kind
	if kind == "" {
		kind = "cpu"
	}
	if kind == "cpu" || d.ID == 0 {
		return kind
	}
	return kind + ":" + strconv.Itoa(d.ID)
}

// Providers returns the execution providers that can really be used in this
// process, best first, by their ONNX Runtime names. A provider whose own
// libraries (CUDA, cuDNN, TensorRT) are missing is not listed.
func Providers() ([]string, error) {
	if err := Load(); err != nil {
		return nil, err
	}
	var out []string
	for _, p := range []struct {
		name string
		kind string
	}{{"TensorrtExecutionProvider", "tensorrt"}, {"CUDAExecutionProvider", "cuda"}} {
		if runtime.GOOS == "darwin" {
			break
		}
		so, err := onnxruntime.NewSessionOptions()
		if err != nil {
			return nil, fmt.Errorf("create session options: %s", oneLine(err))
		}
		if err := appendProvider(so, Device{Kind: p.kind}, false); err == nil {
			out = append(out, p.name)
		}
		_ = so.Destroy()
	}
	return append(out, "CPUExecutionProvider"), nil
}

// appendProvider adds the device's execution provider; the CPU's is always
// there, behind the others.
//
// tf32 lets an accelerator round the inputs of float32 products to 10 bits.
func appendProvider(so *onnxruntime.SessionOptions, d Device, tf32 bool) error {
	id := strconv.Itoa(d.ID)
	switch d.Kind {
	case "", "cpu":
		return nil
	case "tensorrt":
		o, err := onnxruntime.NewTensorRTProviderOptions()
		if err != nil {
			return deviceError(d, err)
		}
		defer o.Destroy()
		if err := o.Update(map[string]string{"device_id": id}); err != nil {
			return deviceError(d, err)
		}
		if err := so.AppendExecutionProviderTensorRT(o); err != nil {
			return deviceError(d, err)
		}
		// What TensorRT does not take runs on CUDA.
		return appendProvider(so, Device{Kind: "cuda", ID: d.ID}, tf32)
	case "cuda":
		o, err := onnxruntime.NewCUDAProviderOptions()
		if err != nil {
			return deviceError(d, err)
		}
		defer o.Destroy()
		// HEURISTIC: the other settings either search for minutes or, with
		// DEFAULT, fall back to algorithms that were seen 50 times slower.
		if err := o.Update(map[string]string{
			"device_id":              id,
			"cudnn_conv_algo_search": "HEURISTIC",
			"use_tf32":               map[bool]string{false: "0", true: "1"}[tf32],
		}); err != nil {
			return deviceError(d, err)
		}
		if err := so.AppendExecutionProviderCUDA(o); err != nil {
			return deviceError(d, err)
		}
		return nil
	}
	return fmt.Errorf("device %q is not known: use cpu, cuda or tensorrt", d.Kind)
}

func deviceError(d Device, err error) error {
	return fmt.Errorf("use device %s: %s: the ONNX Runtime library must be built for it; "+
		`give one with "nearmiss runtime install --from FILE", or use --device cpu`, d, oneLine(err))
}
