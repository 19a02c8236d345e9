package onnx

import (
	"errors"
	"fmt"
	"path/filepath"
	"slices"

	"google.golang.org/protobuf/encoding/protowire"

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
	err = fieldsOf(f.Data, fieldModelGraph, func(graph []byte) error {
		return fieldsOf(graph, fieldGraphInitializer, func(tensor []byte) error {
			return fieldsOf(tensor, fieldTensorExternal, func(entry []byte) error {
				var key, value string
				err := errors.Join(
					fieldsOf(entry, 1, func(b []byte) error { key = string(b); return nil }),
					fieldsOf(entry, 2, func(b []byte) error { value = string(b); return nil }))
				if key != "location" || slices.Contains(names, value) {
					return err
				}
				if !filepath.IsLocal(value) {
					return fmt.Errorf("external data: %q is not a path inside the model's folder", value)
				}
				names = append(names, value)
				return err
			})
		})
	})
	if err != nil {
		return nil, fmt.Errorf("read onnx model %s: %w", path, err)
	}
	return names, nil
}

// fieldTensorExternal is TensorProto.external_data.
const fieldTensorExternal = 13

// fieldsOf hands the fields of a number and of length-delimited type to take.
func fieldsOf(b []byte, number protowire.Number, take func([]byte) error) error {
	for len(b) > 0 {
		num, typ, n := protowire.ConsumeTag(b)
		if n < 0 {
			return protowire.ParseError(n)
		}
		m := protowire.ConsumeFieldValue(num, typ, b[n:])
		if m < 0 {
			return protowire.ParseError(m)
		}
		if num == number && typ == protowire.BytesType {
			content, _ := protowire.ConsumeBytes(b[n:])
			if err := take(content); err != nil {
				return err
			}
		}
		b = b[n+m:]
	}
	return nil
}
