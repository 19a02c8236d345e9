package envelope

import (
	"context"
	"os"
	"sync"
	"time"
)

// Checked remembers which files have been found whole, so that a model of
// hundreds of megabytes is not read again for each of a hundred releases that
// share it. A file counts as the same while its size, its modification time and
// its identity (device and inode) are. The zero value is ready; nil remembers
// nothing. It is safe for concurrent use.
type Checked struct {
	mu       sync.Mutex
	verified map[string]checked // by path
}

type checked struct {
	file File
	info os.FileInfo
}

// settled is how old a modification must be at the least for its time to tell
// the file from a later one: file systems count in ticks of up to two seconds.
const settled = 2 * time.Second

// Check is nil if the file at path is e, and otherwise mostly [ErrCorrupt].
func (c *Checked) Check(ctx context.Context, path string, e Entry) error {
	info, err := os.Stat(path)
	if err != nil {
		return err
	}
	if c.knows(path, e.File, info) {
		return nil
	}
	got, err := Sum(ctx, path)
	if err != nil {
		return err
	}
	if err := e.Compare(got); err != nil {
		return err
	}
	if c != nil && time.Since(info.ModTime()) > settled {
		c.mu.Lock()
		defer c.mu.Unlock()
		if c.verified == nil {
			c.verified = map[string]checked{}
		}
		c.verified[path] = checked{got, info}
	}
	return nil
}

func (c *Checked) knows(path string, f File, info os.FileInfo) bool {
	if c == nil {
		return false
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	was, ok := c.verified[path]
	return ok && was.file == f && was.info.Size() == info.Size() && was.info.ModTime().Equal(info.ModTime()) && os.SameFile(was.info, info)
}
