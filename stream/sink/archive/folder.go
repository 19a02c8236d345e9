package archive

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/google/renameio/v2"
	"golang.org/x/sys/unix"
)

// Marker is the file by which a folder says that it is the archive. A mount that
// is away leaves an empty folder, and the system's disk must not be filled.
const Marker = ".nearmiss-archive"

type folder struct {
	root    string
	minFree uint64
	mu      sync.Mutex // of the index
}

// ready says whether the folder is there and has room.
func (f *folder) ready() error {
	if _, err := os.Stat(filepath.Join(f.root, Marker)); err != nil {
		if errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("%s is not marked as an archive; is its disk there? If it is: touch %s", f.root, filepath.Join(f.root, Marker))
		}
		return err
	}
	var st unix.Statfs_t
	if err := unix.Statfs(f.root, &st); err != nil {
		return fmt.Errorf("%s: %w", f.root, err)
	}
	if free := st.Bavail * uint64(st.Bsize); free < f.minFree {
		return fmt.Errorf("%s has %d MiB left, less than %d", f.root, free>>20, f.minFree>>20)
	}
	return nil
}

func (f *folder) put(_ context.Context, key, _ string, data []byte) error {
	if err := f.ready(); err != nil {
		return err
	}
	to := filepath.Join(f.root, filepath.FromSlash(key))
	if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
		return err
	}
	return renameio.WriteFile(to, data, 0o644) // a temporary file, fsync, rename
}

func (f *folder) note(day time.Time, line []byte) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	index, err := os.OpenFile(filepath.Join(f.root, "index-"+day.Format("20060102")+".jsonl"), os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	_, err = index.Write(line)
	return errors.Join(err, index.Sync(), index.Close())
}

func (f *folder) close() {}
