package ort

import (
	"cmp"
	"errors"
	"fmt"
	"regexp"
	"runtime"
	"strconv"
	"strings"

	onnxruntime "github.com/yalue/onnxruntime_go"
)

// Device says where a session computes.
type Device struct {
	Kind string // "cpu", "cuda" or "tensorrt"; empty means cpu
	ID   int    // which of several accelerators, from 0
	// Graph says that models are to be captured: see [Captured]. Sessions take no notice.
	Graph bool
}

// ParseDevice reads "cpu", "cuda", "cuda:1", "cuda+graph", "cuda:1+graph", "tensorrt" or
// "tensorrt:0", and "cpu+graph", which goes the same way with nothing recorded.
func ParseDevice(s string) (Device, error) {
	name, graph := strings.CutSuffix(strings.ToLower(strings.TrimSpace(s)), withGraph)
	kind, id, numbered := strings.Cut(name, ":")
	d := Device{Kind: kind, Graph: graph}
	if graph && kind != cuda && kind != "cpu" {
		return Device{}, fmt.Errorf("device %q: only cuda has graphs", s)
	}
	switch kind {
	case "", "cpu":
		d.Kind = "cpu"
		if numbered && id != "0" {
			return Device{}, fmt.Errorf("device %q: there is only one cpu", s)
		}
		return d, nil
	case "cuda", "tensorrt":
	default:
		return Device{}, fmt.Errorf("device %q is not known: use cpu, cuda, cuda:N, cuda+graph, cuda:N+graph, tensorrt or tensorrt:N", s)
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

// IsCPU says whether d is the CPU.
func (d Device) IsCPU() bool { return d.Kind == "" || d.Kind == "cpu" }

const withGraph = "+graph"

func (d Device) String() string {
	s := cmp.Or(d.Kind, "cpu")
	if s != "cpu" && d.ID != 0 {
		s += ":" + strconv.Itoa(d.ID)
	}
	if d.Graph {
		s += withGraph
	}
	return s
}

// Provider is an execution provider: what runs a model on a kind of device.
type Provider struct {
	Name   string `json:"name"`   // as ONNX Runtime calls it
	Device string `json:"device"` // as --device takes it
	Usable bool   `json:"usable"` // in this process, now
	// Why says what is missing where it is not usable: the library was built
	// without it, or its own libraries (CUDA, cuDNN, TensorRT) or a device.
	Why string `json:"why,omitempty"`
}

// Providers returns the execution providers that are known here, best first. Each
// is tried: one whose own libraries are missing is not usable.
func Providers() ([]Provider, error) {
	if err := Load(); err != nil {
		return nil, err
	}
	out := []Provider{
		{Name: "TensorrtExecutionProvider", Device: "tensorrt"},
		{Name: "CUDAExecutionProvider", Device: "cuda"},
		{Name: "CPUExecutionProvider", Device: "cpu"},
	}
	for i := range out {
		p := &out[i]
		if p.Device != "cpu" && runtime.GOOS == "darwin" {
			p.Why = "there is none for macOS"
			continue
		}
		if err := (Device{Kind: p.Device}).Usable(); err != nil {
			p.Why = reason(err)
		} else {
			p.Usable = true
		}
	}
	return out, nil
}

// Usable says why no session can use the device in this process, or nil.
func (d Device) Usable() error {
	if err := Load(); err != nil {
		return err
	}
	so, err := onnxruntime.NewSessionOptions()
	if err != nil {
		return fmt.Errorf("create session options: %s", oneLine(err))
	}
	defer so.Destroy()
	return Options{Device: d}.append(so, "")
}

// reason is what is wrong, without what else ONNX Runtime says of its own files.
func reason(err error) string {
	var unusable *unusableError
	if !errors.As(err, &unusable) {
		return oneLine(err)
	}
	text := oneLine(unusable.err)
	missing := ""
	if m := missingLibrary.FindStringSubmatch(text); m != nil {
		missing = m[1]
	}
	switch {
	case isProvider(missing), strings.Contains(text, "not enabled in this build"):
		return `the library is built without it: "nearmiss runtime install --cuda" gets one that has it`
	case missing != "":
		return "its library " + missing + " is not found: install it, or name its folder in LD_LIBRARY_PATH"
	}
	return text
}

var missingLibrary = regexp.MustCompile(`([^\s:/]+\.so[.0-9]*): cannot open shared object file`)

// unusableError is why a device cannot be used.
type unusableError struct {
	device Device
	err    error // of ONNX Runtime
}

func (e *unusableError) Error() string {
	return fmt.Sprintf("use device %s: %s; \"nearmiss runtime info\" says what can be used here; --device cpu always can", e.device, reason(e))
}

func deviceError(d Device, err error) error { return &unusableError{d, err} }
