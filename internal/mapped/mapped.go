// Package mapped gives the content of large files without reading them.
package mapped

import (
	"errors"
	"fmt"
	"os"
	"syscall"
)

// File is the content of a regular file, read-only: writing to Data ends the
// program. It outlives the open file. The file may be removed or replaced by
// another meanwhile, which leaves Data as it was, but must not be cut short or
// written to: touching what is no longer there ends the program, too.
type File struct {
	// Data is nil after Close, and for an empty file.
	Data []byte
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
	data, err := syscall.Mmap(int(f.Fd()), 0, size, syscall.PROT_READ, syscall.MAP_SHARED)
	if err != nil {
		return nil, fmt.Errorf("map %s: %w", f.Name(), err)
	}
	return &File{Data: data}, nil
}

// Close gives the memory back. Data must not be read then.
func (f *File) Close() error {
	data := f.Data
	f.Data = nil
	if data == nil {
		return nil
	}
	return syscall.Munmap(data)
}
