package broker

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
)

// storeLock is the lock of a store's folder.
type storeLock struct{ f *os.File }

// lockStore keeps other brokers from the store folder until release is called or
// this process ends: two servers on one store would destroy it.
func lockStore(dir string) (*storeLock, error) {
	if err := os.MkdirAll(dir, 0o750); err != nil {
		return nil, fmt.Errorf("start broker: %w", err)
	}
	f, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_RDWR|os.O_CREATE, 0o640)
	if err != nil {
		return nil, fmt.Errorf("start broker: %w", err)
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		_ = f.Close()
		if errors.Is(err, syscall.EWOULDBLOCK) {
			return nil, fmt.Errorf("start broker with store %s: %w", dir, ErrInUse)
		}
		return nil, fmt.Errorf("start broker: lock store %s: %w", dir, err)
	}
	return &storeLock{f}, nil
}

func (l *storeLock) release() { _ = l.f.Close() }

// intact says whether the folder still has the file that is locked.
func (l *storeLock) intact() error {
	is, err := l.f.Stat()
	if err != nil {
		return err
	}
	there, err := os.Stat(l.f.Name())
	if err != nil {
		return err
	}
	if !os.SameFile(is, there) {
		return errors.New("its lock file is another one")
	}
	return nil
}

// isFull says whether a write failed for want of room.
func isFull(err error) bool {
	return errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT)
}
