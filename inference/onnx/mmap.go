package onnx

import (
	"fmt"
	"os"
	"syscall"
)

// mapOpen maps an open regular file.
func mapOpen(f *os.File) (*mappedFile, error) {
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("%s is not a regular file", f.Name())
	}
	if info.Size() == 0 {
		return &mappedFile{}, nil
	}
	data, err := syscall.Mmap(int(f.Fd()), 0, int(info.Size()), syscall.PROT_READ, syscall.MAP_PRIVATE)
	if err != nil {
		return nil, fmt.Errorf("map %s: %w", f.Name(), err)
	}
	return &mappedFile{data: data, close: func() error { return syscall.Munmap(data) }}, nil
}
