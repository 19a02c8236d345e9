package backbone

import (
	"fmt"
	"math"

	"github.com/nearmiss/nearmiss/inference/onnx"
	"github.com/nearmiss/nearmiss/inference/onnx/wire"
)

// inliner brings weights from external files into the model.
type inliner struct {
	files onnx.Beside
	keep  bool // leave them where they are
}

// inline returns an initialiser with its data in it.
func (l *inliner) inline(b []byte) ([]byte, error) {
	t, err := wire.ParseTensor(b)
	if err != nil || t.External["location"] == "" || l.keep {
		return b, err
	}
	size := onnx.DataType(t.Elem).Size()
	for _, d := range t.Dims {
		if d < 0 || d > 0 && size > math.MaxInt/int(d) {
			return nil, formatError("the weight %q has the shape %v", t.Name, t.Dims)
		}
		size *= int(d)
	}
	if onnx.DataType(t.Elem).Size() == 0 {
		size = -1
	}
	data, err := l.files.Data(t, size)
	if err != nil {
		return nil, fmt.Errorf("the weight %q: %w", t.Name, err)
	}
	if len(data) > math.MaxInt32 {
		return nil, architectureError("the weight %q alone has %d bytes: export the model in half precision", t.Name, len(data))
	}
	inside, err := wire.Rewrite(b, func(out []byte, f wire.Field) ([]byte, error) {
		if f.Num == wire.TensorExternal || f.Num == wire.TensorLocation {
			return out, nil
		}
		return append(out, f.Raw...), nil
	})
	return wire.AppendBytes(inside, wire.TensorRaw, data), err
}
