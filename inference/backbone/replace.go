package backbone

import (
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"

	"github.com/google/renameio/v2"

	"github.com/nearmiss/nearmiss/inference/onnx"
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
	m, err := parseForeign(data)
	if err != nil {
		return err
	}
	byName := map[string]onnx.Tensor{}
	for _, w := range weights {
		byName[w.Name] = w
	}
	var g []byte
	err = eachField(m.graph, func(f field) error {
		if f.tag != graphInitializer {
			g = append(g, f.raw...)
			return nil
		}
		name, elements, _, err := initializer(f.val)
		if err != nil {
			return err
		}
		w, ok := byName[name]
		if !ok {
			g = append(g, f.raw...)
			return nil
		}
		delete(byName, name)
		if w.Type != onnx.Float || elements != w.Elements() || len(w.Data) != 4*elements {
			return architectureError("weight %q has %d elements, the new one is %s%v", name, elements, w.Type, w.Shape)
		}
		var t []byte
		for _, d := range w.Shape {
			t = appendInt(t, tensorDims, int64(d))
		}
		t = appendBytes(appendText(appendInt(t, tensorType, elemFloat), tensorName, name), tensorRaw, w.Data)
		g = appendBytes(g, graphInitializer, t)
		return nil
	})
	if err != nil {
		return err
	}
	if len(byName) > 0 {
		return architectureError("the model has no initialisers %s", sortedNames(slices.Collect(maps.Keys(byName)), 6))
	}
	var out []byte
	err = eachField(data, func(f field) error {
		if f.tag == modelGraph {
			out = appendBytes(out, modelGraph, g)
		} else {
			out = append(out, f.raw...)
		}
		return nil
	})
	if err != nil {
		return err
	}
	if len(out) > math.MaxInt32 {
		return architectureError("the model reaches the 2 GiB of one protobuf message")
	}
	if err := copyExternal(src, dst, m.external); err != nil {
		return err
	}
	return renameio.WriteFile(dst, out, 0o644)
}
