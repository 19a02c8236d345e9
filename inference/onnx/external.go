package onnx

import (
	"errors"
	"fmt"
	"path/filepath"
	"strconv"

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

// Beside reads the data that a model's tensors have in other files.
type Beside struct {
	// Dir is the model's folder, in which the files lie; empty: they are not at hand.
	Dir   string
	files map[string]*mapped.File
}

// Data are the bytes of a tensor whose data lie outside, by its shape size of them; −1
// for a type whose size is not known, of which there are as many as the model says. They
// are mapped until Close. An error that wraps [wire.ErrFormat] says that the file is not
// what the model says.
func (b *Beside) Data(t wire.Tensor, size int) ([]byte, error) {
	location := t.External["location"]
	if b.Dir == "" {
		return nil, fmt.Errorf("its data are in the file %q: read the model with ReadFile or give ExternalDir", location)
	}
	number := func(key string, def int) (int, error) {
		text := t.External[key]
		if text == "" {
			return def, nil
		}
		n, err := strconv.ParseInt(text, 10, 64)
		if err != nil || n < 0 || n > maxElements {
			return 0, fmt.Errorf("external data: %s %q is not valid: %w", key, text, wire.ErrFormat)
		}
		return int(n), nil
	}
	offset, err := number("offset", 0)
	if err != nil {
		return nil, err
	}
	length, err := number("length", size)
	if err != nil {
		return nil, err
	}
	data, err := b.file(location)
	if err != nil {
		return nil, err
	}
	if length < 0 || size >= 0 && length != size || offset > len(data) || length > len(data)-offset {
		return nil, fmt.Errorf("external data: %d bytes at %d of %q, which has %d, are not the %d that the shape needs: truncated, or of another model: %w",
			length, offset, location, len(data), size, wire.ErrFormat)
	}
	return data[offset : offset+length : offset+length], nil
}

// file maps one of the files. Its name comes from the model, so it must stay inside the
// folder, also through symbolic links.
func (b *Beside) file(location string) ([]byte, error) {
	if f := b.files[location]; f != nil {
		return f.Data, nil
	}
	if !filepath.IsLocal(location) {
		return nil, fmt.Errorf("external data: %q is not a path inside the model's folder: %w", location, wire.ErrFormat)
	}
	m, err := mapped.Within(b.Dir, location)
	if err != nil {
		return nil, fmt.Errorf("external data of the model, which have to lie beside it: %w", err)
	}
	if b.files == nil {
		b.files = map[string]*mapped.File{}
	}
	b.files[location] = m
	return m.Data, nil
}

// Close unmaps the files.
func (b *Beside) Close() error {
	var errs []error
	for _, f := range b.files {
		errs = append(errs, f.Close())
	}
	return errors.Join(errs...)
}
