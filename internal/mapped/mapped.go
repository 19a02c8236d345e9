// Package mapped gives the content of large files without reading them.
package mapped

import (
	"errors"
	"fmt"
	"os"
)

// File is the content of a regular file, read-only: writing to Data ends the
// program. It outlives the open file. The file may be removed or replaced by
// another meanwhile, which leaves Data as it was, but must not be cut short or
// written to: touching what is no longer there ends the program, too. Where files
// cannot be mapped (outside Unix) the content is read.
type File struct {
	// Data is nil after Close, and for an empty file.
	Data  []byte
	close func() error
}

// ErrNotFile is wrapped where what is to be mapped is a folder or a device.
var ErrNotFile = errors.New("not a regular file")

// Open maps all of the file at path.
func Open(path string) (*File, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return of(f)
}

// Within maps the file that name says below a folder, out of which it cannot lead,
// not by symbolic links either.
func Within(dir, name string) (*File, error) {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, err
	}
	defer root.Close()
	f, err := root.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return of(f)
}

// of maps all of an open file, which may be closed then.
func of(f *os.File) (*File, error) {
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("%s is %w", f.Name(), ErrNotFile)
	}
	size := int(info.Size())
	if int64(size) != info.Size() {
		return nil, fmt.Errorf("%s has %d bytes, too many for this machine's addresses", f.Name(), info.Size())
	}
	if size == 0 {
		return &File{}, nil
	}
	data, unmap, err := mapOpen(f, size)
	if err != nil {
		return nil, fmt.Errorf("map %s: %w", f.Name(), err)
	}
	return &File{Data: data, close: unmap}, nil
}

// Close gives the memory back. Nothing may look at Data then.
func (f *File) Close() error {
	end := f.close
	f.Data, f.close = nil, nil
	if end == nil {
		return nil
	}
	return end()
}
