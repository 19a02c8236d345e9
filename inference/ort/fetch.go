package ort

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// Fetch writes the library for a platform, such as linux/arm64, to a file: for
// archives that carry it. It is checked as [Install] checks it, and not loaded.
func Fetch(ctx context.Context, platform, file string, progress func(stage string, done, total int64)) error {
	return installer{digest: packageDigest, libraries: packaged, pack: npmPack}.fetch(ctx, platform, file, progress)
}

func (i installer) fetch(ctx context.Context, platform, file string, progress func(stage string, done, total int64)) error {
	want, ok := i.libraries[platform]
	if !ok {
		return fmt.Errorf("fetch ONNX Runtime: %s has no library for %s", packageSpec, platform)
	}
	goos, goarch, _ := strings.Cut(platform, "/")
	staging, err := os.MkdirTemp(filepath.Dir(file), ".fetch-")
	if err != nil {
		return fmt.Errorf("fetch ONNX Runtime: %w", err)
	}
	defer os.RemoveAll(staging)
	progress("download "+packageSpec+" with npm", 0, 0)
	archive, err := i.pack(ctx, staging)
	if err != nil {
		return err
	}
	staged := filepath.Join(staging, filepath.Base(file))
	if err := i.extract(ctx, archive, staged, want, InstallOptions{Progress: progress}); err != nil {
		return fmt.Errorf("fetch ONNX Runtime from npm's %s: %w", packageSpec, err)
	}
	if err := checkLibrary(staged, goos, goarch); err != nil {
		return fmt.Errorf("fetch ONNX Runtime: %w", err)
	}
	return os.Rename(staged, file)
}

// bundledPath is where an archive has the library: beside the program.
func bundledPath(executable, goos string) string {
	if real, err := filepath.EvalSymlinks(executable); err == nil {
		executable = real
	}
	return filepath.Join(filepath.Dir(executable), libraryName(goos))
}
