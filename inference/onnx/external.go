package onnx

import (
	"errors"
	"fmt"
	"path/filepath"

	"github.com/nearmiss/nearmiss/inference/onnx/wire"
	"github.com/nearmiss/nearmiss/internal/mapped"
)

// External lists the files that hold weights of the model at path, slash-separated
// and relative to its folder. A model without them is whole by itself.
func External(path string) (names []string, err error) {
	f, err := mapped.Open(path)
	if err != nil {
		return nil, fmt.Errorf("read onnx model: %w", err)
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	m, err := wire.Parse(f.Data)
	if err != nil {
		return nil, fmt.Errorf("read onnx model %s: %w", path, err)
	}
	for _, name := range m.External {
		if !filepath.IsLocal(name) {
			return nil, fmt.Errorf("read onnx model %s: external data: %q is not a path inside the model's folder", path, name)
		}
	}
	return m.External, nil
}
