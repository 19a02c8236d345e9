package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// writable says at the start what would keep a file from being written at the end.
func writable(flag, file string) error {
	if file == "" {
		return nil
	}
	if info, err := os.Stat(file); err == nil && info.IsDir() {
		return usageError{fmt.Errorf("%s %s: it is a folder, name a file", flag, file)}
	}
	f, err := os.CreateTemp(filepath.Dir(file), ".nearmiss-*")
	if err != nil {
		return usageError{fmt.Errorf("%s %s: nothing can be written there: %w", flag, file, err)}
	}
	_ = f.Close()
	return os.Remove(f.Name())
}

// writableFolder is writable for a folder that is made where it is missing.
func writableFolder(flag, dir string) error {
	if dir == "" {
		return nil
	}
	above := existing(dir)
	info, err := os.Stat(above)
	switch {
	case err != nil:
		return usageError{fmt.Errorf("%s %s: nothing can be written there: %w", flag, dir, err)}
	case !info.IsDir():
		return usageError{fmt.Errorf("%s %s: %s is a file, name a folder", flag, dir, above)}
	}
	return writable(flag, filepath.Join(above, ".nearmiss"))
}

// existing is dir, or the first of the folders that it lies in that is there.
func existing(dir string) string {
	above := filepath.Clean(dir)
	for {
		if _, err := os.Stat(above); !errors.Is(err, fs.ErrNotExist) || above == filepath.Dir(above) {
			return above
		}
		above = filepath.Dir(above)
	}
}
