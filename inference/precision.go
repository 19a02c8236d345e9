package inference

import (
	"fmt"
	"path/filepath"

	"github.com/nearmiss/nearmiss/inference/onnx/lower"
	"github.com/nearmiss/nearmiss/inference/ort"
	"github.com/nearmiss/nearmiss/inference/release"
)

// OpenBackbone loads the ONNX file at path in the form that its device runs fastest,
// with products of a precision, as EmbedOptions has it, and those in 32 bits that float
// names, with 8 bits: on the CPU layer
// normalisations are lowered, which for ViT-Ti and ViT-S is 10 to 19 % of the time of
// an image, and 8 bits are had. 16 bits are had everywhere: on a CPU without such
// arithmetic ONNX Runtime widens them.
func OpenBackbone(path, precision string, float []string, o ort.Options) (*ort.Session, error) {
	var model []byte
	var err error
	switch precision {
	case "", release.Float32:
		if o.Device.IsCPU() {
			return openLowered(path, o)
		}
		return ort.Open(path, o)
	case release.Int8:
		if !o.Device.IsCPU() {
			return nil, errInt8On(o.Device)
		}
		model, err = lower.FileInt8(path, float)
	case release.Half:
		model, err = lower.FileHalf(path)
		o.Half = true
	default:
		return nil, errPrecision(precision)
	}
	if err != nil {
		return nil, fmt.Errorf("compute in %s: %w", precision, err)
	}
	return ort.OpenBytes(model, o)
}

func errInt8On(d ort.Device) error {
	return fmt.Errorf("products in 8 bits are computed on the CPU only, not on %s: take precision %s or %s", d, release.Half, release.Float32)
}

func errPrecision(precision string) error {
	return fmt.Errorf("precision %q is not known: take %s, %s or %s", precision, release.Float32, release.Half, release.Int8)
}

// CheckPrecision says why OpenBackbone will not open the model at path with a
// precision on a device, or nil, in a small part of the time that opening takes.
func CheckPrecision(path, precision string, d ort.Device) (err error) {
	switch precision {
	case "", release.Float32:
	case release.Int8:
		if !d.IsCPU() {
			return errInt8On(d)
		}
		err = lower.CheckInt8(path)
	case release.Half:
		err = lower.CheckHalf(path)
	default:
		return errPrecision(precision)
	}
	if err != nil {
		return fmt.Errorf("compute the backbone %s in %s: %w: take precision %s", path, precision, err, release.Float32)
	}
	return nil
}

// openLowered loads the ONNX file at path lowered for the CPU. Its weights stay where
// they are, in the file, which ONNX Runtime maps: a third of the time that it takes to
// hand them over as bytes.
func openLowered(path string, o ort.Options) (*ort.Session, error) {
	model, ok := lower.FileForCPU(path, false)
	if !ok {
		return ort.Open(path, o)
	}
	beside := o
	beside.Folder = filepath.Dir(path)
	if s, err := ort.OpenBytes(model, beside); err == nil {
		return s, nil
	}
	// A library that cannot map them, or a file system.
	if model, ok = lower.FileForCPU(path, true); !ok {
		return ort.Open(path, o)
	}
	return ort.OpenBytes(model, o)
}
