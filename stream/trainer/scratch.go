package trainer

import (
	"errors"
	"os"
	"path/filepath"
	"syscall"
)

// sweep removes the jobs' folders that trainers left below root when they died:
// a folder belongs to a living process as long as its lock file is locked,
// whatever container the process is in.
func sweep(root string) error {
	old, err := filepath.Glob(filepath.Join(root, "job-*"))
	if err != nil {
		return err
	}
	for _, d := range old {
		if f, err := lock(filepath.Join(d, ".lock")); err == nil {
			_ = os.RemoveAll(d)
			_ = f.Close()
		}
	}
	return nil
}

// scratch makes a folder for one job below root.
func scratch(root string) (dir string, remove func(), err error) {
	if err := os.MkdirAll(root, 0o755); err != nil {
		return "", nil, err
	}
	if err := sweep(root); err != nil {
		return "", nil, err
	}
	// The folder gets its name when it is locked: nobody may take it between.
	tmp, err := os.MkdirTemp(root, ".new-")
	if err != nil {
		return "", nil, err
	}
	f, err := lock(filepath.Join(tmp, ".lock"))
	if err != nil {
		return "", nil, errors.Join(err, os.RemoveAll(tmp))
	}
	dir = filepath.Join(root, "job-"+filepath.Base(tmp)[len(".new-"):])
	if err := os.Rename(tmp, dir); err != nil {
		_ = f.Close()
		return "", nil, errors.Join(err, os.RemoveAll(tmp))
	}
	return dir, func() {
		_ = os.RemoveAll(dir)
		_ = f.Close()
	}, nil
}

// lock opens and locks a file, or fails at once when another process has it.
func lock(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}
