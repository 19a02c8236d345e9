package registry

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/nearmiss/nearmiss/inference/release/envelope"
)

// Evict removes releases from this machine's cache that nothing points to and
// that are older than age, and files that no cached release has, and returns
// how many releases went. What is open stays readable for who has it open.
func (r *Registry) Evict(ctx context.Context, age time.Duration) (int, error) {
	need, err := r.needed(ctx, 1)
	if err != nil {
		return 0, err
	}
	old := time.Now().Add(-age)
	aged := func(path string) bool {
		fi, err := os.Stat(path)
		return err == nil && fi.ModTime().Before(old)
	}
	root := filepath.Join(r.cfg.CacheDir, "releases")
	entries, err := os.ReadDir(root)
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, fmt.Errorf("clear the release cache: %w", err)
	}
	gone, named := 0, map[string]bool{}
	for _, e := range entries {
		dir := filepath.Join(root, e.Name())
		if !need[e.Name()] && aged(dir) {
			if err := os.RemoveAll(dir); err != nil {
				return gone, fmt.Errorf("clear the release cache: %w", err)
			}
			if envelope.IsDigest(e.Name()) {
				gone++
			}
			continue
		}
		if e, err := envelope.Read(dir); err == nil {
			for _, f := range e.Files {
				named[f.SHA256] = true
			}
		}
	}
	blobs, err := filepath.Glob(filepath.Join(r.cfg.CacheDir, "blobs", "*"))
	if err != nil {
		return gone, err
	}
	for _, b := range blobs {
		if !named[filepath.Base(b)] && aged(b) {
			if err := os.Remove(b); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return gone, fmt.Errorf("clear the release cache: %w", err)
			}
		}
	}
	return gone, nil
}
