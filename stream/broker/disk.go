package broker

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/nats-io/nats-server/v2/server"
)

// The server takes a full disk badly: it disables its store, or single streams, until it
// is started again. So the limit is what the disk has room for, frames are refused before it
// is reached, and should the disk be full all the same, for others write to it,
// the server is started again when there is room.

// errNoRoom: the server has given its store up.
var errNoRoom = errors.New("the disk is full")

// diskEvery is how often the disk and the folder are checked.
const diskEvery = time.Second

// leastStore is the smallest store that is worth a start, in bytes.
const leastStore = 32 << 20

// FreeBytes is the room that the file system of dir has for this process.
func FreeBytes(dir string) (int64, error) {
	var st syscall.Statfs_t
	if err := syscall.Statfs(dir, &st); err != nil {
		return 0, err
	}
	return int64(st.Bavail) * int64(st.Bsize), nil
}

// bound sets the store's limit to what the configuration says or, if that is less,
// to nine tenths of what the disk has room for.
func (b *Broker) bound() error {
	free, err := b.cfg.Free(b.cfg.StoreDir)
	if err != nil {
		return fmt.Errorf("start broker with store %s: find out how much room there is: %w", b.cfg.StoreDir, err)
	}
	used := int64(0)
	_ = filepath.WalkDir(b.cfg.StoreDir, func(_ string, e fs.DirEntry, err error) error {
		if err == nil && e.Type().IsRegular() {
			if i, err := e.Info(); err == nil {
				used += i.Size()
			}
		}
		return nil
	})
	b.limit = min(b.cfg.MaxStore, (used+free)/10*9)
	if b.limit < leastStore {
		return fmt.Errorf("start broker with store %s: its disk has room for %d MiB, at least %d are needed: make room, or choose another folder", b.cfg.StoreDir, b.limit>>20, leastStore>>20)
	}
	if b.limit < b.cfg.MaxStore {
		b.log.Warn().Int64("limit", b.limit).Int64("max_store", b.cfg.MaxStore).Msg("the disk has less room than the store may take: the limit is nine tenths of what there is")
	}
	return nil
}

// reserved is what the limits of the streams in the store are together: with less
// the server would not let them be made smaller, and with that alone none be made that
// has no limit, which it takes for one byte.
func (b *Broker) reserved() (sum int64) {
	files, _ := filepath.Glob(filepath.Join(b.cfg.StoreDir, "jetstream", "*", "streams", "*", "meta.inf"))
	for _, f := range files {
		var m struct {
			MaxBytes int64 `json:"max_bytes"`
		}
		if data, err := os.ReadFile(f); err == nil && json.Unmarshal(data, &m) == nil && m.MaxBytes > 0 && m.MaxBytes < 1<<50 {
			sum += m.MaxBytes
		}
	}
	return sum
}

// Limit is what the store may take, in bytes; call it after Ready.
func (b *Broker) Limit() int64 { return b.limit }

// Full says in a sentence why no more frames should be taken, or nothing.
func (b *Broker) Full() string {
	if s := b.full.Load(); s != nil {
		return *s
	}
	return ""
}

// watchDisk looks after the disk and the folder until ctx ends, or something is so
// wrong that the server cannot go on.
func (b *Broker) watchDisk(ctx context.Context, srv *server.Server, lock *storeLock) error {
	low := min(b.limit/10, 1<<30)
	tick := time.Tick(diskEvery)
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick:
		}
		full, err := b.intact(lock)
		if err != nil {
			return err
		}
		if !srv.JetStreamEnabled() {
			return errNoRoom
		}
		free, err := b.cfg.Free(b.cfg.StoreDir)
		if err != nil {
			continue
		}
		if b.stuck.Load() && !full && free > b.enough() {
			return errNoRoom
		}
		used := int64(0)
		if v, err := srv.Jsz(nil); err == nil {
			used = int64(v.Store)
		}
		was, why := b.Full(), ""
		switch {
		case full && free >= low:
			why = fmt.Sprintf("the disk of %s takes nothing more, though it has %d MiB left (a quota, or too many files): make room, and frames are taken again", b.cfg.StoreDir, free>>20)
		case free < low, was != "" && free < low+low/2, b.stuck.Load():
			why = fmt.Sprintf("the disk of %s has %d MiB left: make room, and frames are taken again", b.cfg.StoreDir, free>>20)
		case used > b.limit/10*9, was != "" && used > b.limit/20*17:
			why = fmt.Sprintf("the store in %s holds %d MiB of at most %d (broker.max_store): raise it, or remove what is not needed", b.cfg.StoreDir, used>>20, b.limit>>20)
		}
		if (was == "") != (why == "") {
			b.log.Warn().Str("full", why).Int64("free", free).Int64("used", used).Int64("limit", b.limit).Msg("room on the disk")
		}
		b.full.Store(&why)
	}
}

// enough is the room in bytes with which a server is started again: twice what is too
// little.
func (b *Broker) enough() int64 { return min(b.limit/5, 2<<30) }

// waitForRoom waits until there is [Broker.enough].
func (b *Broker) waitForRoom(ctx context.Context, lock *storeLock) error {
	why := fmt.Sprintf("the disk of %s is full", b.cfg.StoreDir)
	b.full.Store(&why)
	for ctx.Err() == nil {
		full, err := b.intact(lock)
		if err != nil {
			return err
		}
		if free, err := b.cfg.Free(b.cfg.StoreDir); err == nil && !full && free > b.enough() {
			b.log.Info().Int64("free", free).Msg("there is room on the disk: the broker starts again")
			return nil
		}
		select {
		case <-ctx.Done():
		case <-time.After(diskEvery):
		}
	}
	return nil
}

// intact says whether the store's folder is still the one that was locked, and can
// be written; or that it is full, whatever room is said to be left: a quota may have
// been used up.
func (b *Broker) intact(lock *storeLock) (full bool, err error) {
	if err := lock.intact(); err != nil {
		return false, fmt.Errorf("the store %s is gone or another one: put it back and start again: %w", b.cfg.StoreDir, err)
	}
	probe := filepath.Join(b.cfg.StoreDir, ".writable")
	size := 1
	if b.stuck.Load() { // a server that finds no room again would be started again and again
		size = 1 << 20
	}
	err = b.write(probe, size)
	if err != nil && !isFull(err) {
		return false, fmt.Errorf("the store %s cannot be written: make it writable and start again: %w", b.cfg.StoreDir, err)
	}
	return err != nil, nil
}

func writeProbe(path string, size int) error {
	return errors.Join(os.WriteFile(path, make([]byte, size), 0o600), os.Remove(path))
}
