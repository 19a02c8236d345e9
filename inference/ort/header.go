package ort

import (
	"errors"
	"fmt"
	"slices"

	"github.com/nearmiss/nearmiss/inference/onnx/wire"
)

// Info describes one input or output of a model.
type Info struct {
	Name string
	Type Type
	// Shape has -1 where the model leaves a dimension open. It is empty for a
	// scalar, and also when Ranked is false.
	Shape  []int
	Ranked bool // whether the model says how many dimensions there are
}

// Static says whether every dimension is fixed by the model.
func (i Info) Static() bool { return i.Ranked && !slices.Contains(i.Shape, -1) }

// header is what a model says about itself, without its nodes and weights. The
// binding can only tell names and shapes by building a second session, so they are
// read from the model itself.
type header struct {
	in, out  []Info
	metadata map[string]string
}

// readHeader reads the header of a model. Of weights it touches the heads only.
func readHeader(model []byte) (header, error) {
	m, err := wire.Parse(model)
	if err == nil && len(m.Outputs) == 0 {
		err = errors.New("it has no output")
	}
	if err != nil {
		return header{}, fmt.Errorf("not an ONNX model: %w", err)
	}
	return header{infos(m.Inputs), infos(m.Outputs), m.Metadata}, nil
}

func infos(values []wire.ValueInfo) []Info {
	out := make([]Info, len(values))
	for i, v := range values {
		out[i] = Info{Name: v.Name, Type: Type(v.Elem), Ranked: v.Known}
		for _, d := range v.Dims {
			out[i].Shape = append(out[i].Shape, int(d))
		}
	}
	return out
}
