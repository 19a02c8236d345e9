package optim

import (
	"fmt"
	"slices"

	"github.com/nearmiss/nearmiss/inference/onnx"
	"github.com/nearmiss/nearmiss/inference/ort"
)

// State is a place of weights.
type State string

// The places that can be asked for.
const (
	OnHost   State = "host"   // Go's memory: they go in and out at every call
	OnDevice State = "device" // ONNX Runtime's, on the session's device; New fails where that has none
)

// place finds where the state is to be.
func (t *Trainer) place() (err error) {
	wanted := t.spec.State
	if wanted == OnHost || wanted == "" && t.spec.Session.Device.IsCPU() {
		return nil
	}
	t.device, err = ort.OpenMemory(t.spec.Session)
	if err != nil && wanted == "" {
		t.why, err = err, nil
	}
	t.resident = t.device != nil
	return err
}

// State says where the weights and the optimiser's state are between calls, and why that
// is Go's memory where the session's device is no CPU and nobody asked for it.
func (t *Trainer) State() (State, error) {
	if t.resident {
		return OnDevice, nil
	}
	return OnHost, t.why
}

// tensor makes one tensor of the state: zeros, or on a device anything.
func (t *Trainer) tensor(shape []int) (*ort.Tensor, error) {
	if t.resident {
		return t.device.Tensor(onnx.Float, shape...)
	}
	return ort.Zeros(onnx.Float, shape...)
}

// write sets a tensor of the state.
func (t *Trainer) write(x *ort.Tensor, v []float32) error {
	if !t.resident {
		copy(x.Float32s(), v)
		return nil
	}
	from, err := ort.NewTensor(x.Shape(), v)
	if err != nil {
		return err
	}
	defer from.Close()
	return t.device.Copy(x, from)
}

// fetch calls f with a tensor of the state in Go's memory: itself, or a copy that ends with
// the call.
func (t *Trainer) fetch(x *ort.Tensor, f func(*ort.Tensor) error) error {
	if !t.resident {
		return f(x)
	}
	here, err := ort.Zeros(x.Type(), x.Shape()...)
	if err != nil {
		return err
	}
	defer here.Close()
	if err := t.device.Copy(here, x); err != nil {
		return err
	}
	return f(here)
}

// Weights returns all weights in the order of the Spec: copies of the trained
// ones as they are now, and the frozen ones as they were given.
func (t *Trainer) Weights() ([]onnx.Tensor, error) { return t.weights(0) }

// EMAWeights is Weights with the moving averages in the place of the trained
// weights; the same as Weights where the optimiser keeps none.
func (t *Trainer) EMAWeights() ([]onnx.Tensor, error) {
	if t.spec.Optimizer.EMA == 0 {
		return t.weights(0)
	}
	return t.weights(len(t.cur) - len(t.trained))
}

func (t *Trainer) weights(from int) ([]onnx.Tensor, error) {
	at := t.places()
	out := slices.Clone(t.spec.Weights)
	for i, w := range out {
		j, ok := at[w.Name]
		if !ok {
			continue
		}
		if err := t.fetch(t.cur[from+j], func(x *ort.Tensor) error {
			out[i] = onnx.FromFloat32(w.Name, slices.Clone(x.Float32s()), w.Shape...)
			return nil
		}); err != nil {
			return nil, fmt.Errorf("read the weights of %s: %w", t.spec.Name, err)
		}
	}
	return out, nil
}
