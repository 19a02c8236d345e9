//go:build unix

package backbone

import (
	"os"
	"syscall"
)

// mmap maps the whole of f read-only. The mapping outlives the file handle.
// A file that is truncated by another process while it is mapped faults on
// access, as with every mapped file: weight files are replaced, not rewritten.
func mmap(f *os.File, size int) ([]byte, func() error, error) {
	b, err := syscall.Mmap(int(f.Fd()), 0, size, syscall.PROT_READ, syscall.MAP_SHARED)
	if err != nil {
		return nil, nil, &os.PathError{Op: "mmap", Path: f.Name(), Err: err}
	}
	return b, func() error { return syscall.Munmap(b) }, nil
}
