//go:build !unix

package backbone

import (
	"io"
	"os"
)

// mmap reads the whole of f where memory mapping is not available.
func mmap(f *os.File, size int) ([]byte, func() error, error) {
	b := make([]byte, size)
	if _, err := io.ReadFull(f, b); err != nil {
		return nil, nil, err
	}
	return b, func() error { return nil }, nil
}
