package backbone

import (
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"

	"github.com/google/renameio/v2"

	"github.com/nearmiss/nearmiss/inference/onnx"
	"github.com/nearmiss/nearmiss/inference/onnx/wire"
)

// ReplaceWeights copies the ONNX model src to dst, atomically, with the data of
// the named float initialisers replaced; their shapes must not change. Nothing
// else of the file changes, so a model of any origin keeps its operator set,
// open dimensions and metadata. External data files of other initialisers are
// copied beside dst.
func ReplaceWeights(src, dst string, weights []onnx.Tensor) (err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("replace weights of %s: %w", src, err)
		}
	}()
	data, unmap, err := mapFile(src)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, unmap()) }()
	m, err := wire.Parse(data)
	if err != nil {
		return err
	}
	byName := map[string]onnx.Tensor{}
	for _, w := range weights {
		byName[w.Name] = w
	}
	g, err := wire.Rewrite(m.Graph, func(g []byte, f wire.Field) ([]byte, error) {
		if f.Num != wire.GraphInitializer {
			return append(g, f.Raw...), nil
		}
		name, elements, _, err := wire.Initializer(f.Val)
		if err != nil {
			return nil, err
		}
		w, ok := byName[name]
		if !ok {
			return append(g, f.Raw...), nil
		}
		delete(byName, name)
		if w.Type != onnx.Float || elements != w.Elements() || len(w.Data) != 4*elements {
			return nil, architectureError("weight %q has %d elements, the new one is %s%v", name, elements, w.Type, w.Shape)
		}
		var t []byte
		for _, d := range w.Shape {
			t = wire.AppendInt(t, wire.TensorDims, int64(d))
		}
		t = wire.AppendBytes(wire.AppendBytes(wire.AppendInt(t, wire.TensorType, wire.Float), wire.TensorName, name), wire.TensorRaw, w.Data)
		return wire.AppendBytes(g, wire.GraphInitializer, t), nil
	})
	if err != nil {
		return err
	}
	if len(byName) > 0 {
		return architectureError("the model has no initialisers %s", sortedNames(slices.Collect(maps.Keys(byName)), 6))
	}
	out, err := wire.Rewrite(data, func(out []byte, f wire.Field) ([]byte, error) {
		if f.Num == wire.ModelGraph {
			return wire.AppendBytes(out, wire.ModelGraph, g), nil
		}
		return append(out, f.Raw...), nil
	})
	if err != nil {
		return err
	}
	if len(out) > math.MaxInt32 {
		return architectureError("the model reaches the 2 GiB of one protobuf message")
	}
	if err := copyExternal(src, dst, m.External); err != nil {
		return err
	}
	return renameio.WriteFile(dst, out, 0o644)
}
