//go:build !unix

package onnx

import (
	"io"
	"os"
)

// mapOpen reads an open file where it cannot be mapped.
func mapOpen(f *os.File) (*mappedFile, error) {
	data, err := io.ReadAll(f)
	if err != nil {
		return nil, err
	}
	return &mappedFile{data: data}, nil
}
