package trainer

import (
	"archive/tar"
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"

	"github.com/nearmiss/nearmiss/stream"
	"github.com/nearmiss/nearmiss/stream/internal/text"
)

// maxFolder bounds a folder that is saved as a checkpoint, in bytes.
const maxFolder = 8 << 30

// SaveFolder is [Task.SaveCheckpoint] of all regular files below a folder. They
// must not change meanwhile. What is saved already is not saved again: a job that
// kills one trainer after the other at the same place has not got on.
func (t *Task) SaveFolder(ctx context.Context, dir string) error {
	f, err := os.CreateTemp(t.Dir, ".checkpoint-")
	if err != nil {
		return fmt.Errorf("save checkpoint: %w", err)
	}
	defer os.Remove(f.Name())
	w, content := bufio.NewWriterSize(f, 1<<20), sha256.New()
	if err = errors.Join(packFolder(w, content, dir), w.Flush(), f.Close()); err != nil {
		return fmt.Errorf("save checkpoint: pack %s: %w", dir, err)
	}
	sum := content.Sum(nil)
	if bytes.Equal(sum, t.saved) {
		return nil
	}
	if err := t.SaveCheckpoint(ctx, f.Name()); err != nil {
		return err
	}
	t.saved = sum
	return nil
}

// RestoreFolder puts the files of the last checkpoint, which SaveFolder made,
// into a folder. It returns false when there is no checkpoint.
func (t *Task) RestoreFolder(dir string) (bool, error) {
	if t.Checkpoint == "" {
		return false, nil
	}
	f, err := os.Open(t.Checkpoint)
	if err != nil {
		return false, fmt.Errorf("restore checkpoint: %w", err)
	}
	defer f.Close()
	if err := unpackFolder(bufio.NewReaderSize(f, 1<<20), dir); err != nil {
		return false, fmt.Errorf("restore checkpoint: unpack into %s: %w", dir, err)
	}
	content := sha256.New()
	if err := packFolder(io.Discard, content, dir); err != nil {
		return false, fmt.Errorf("restore checkpoint: read %s: %w", dir, err)
	}
	t.saved = content.Sum(nil)
	return true, nil
}

// packFolder writes a tar archive of the regular files below dir. content gets
// their names and what is in them, but not when they were written.
func packFolder(w, content io.Writer, dir string) error {
	tw := tar.NewWriter(w)
	total := int64(0)
	err := filepath.WalkDir(dir, func(file string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		if total += info.Size(); total > maxFolder {
			return fmt.Errorf("more than %d bytes", int64(maxFolder))
		}
		name, err := filepath.Rel(dir, file)
		if err != nil {
			return err
		}
		if err := tw.WriteHeader(&tar.Header{Name: filepath.ToSlash(name), Mode: 0o644, Size: info.Size(), ModTime: info.ModTime(), Format: tar.FormatPAX}); err != nil {
			return err
		}
		if _, err := fmt.Fprintf(content, "%q %d\n", name, info.Size()); err != nil {
			return err
		}
		in, err := os.Open(file)
		if err != nil {
			return err
		}
		_, err = io.Copy(io.MultiWriter(tw, content), in)
		return errors.Join(err, in.Close())
	})
	return errors.Join(err, tw.Close())
}

// unpackFolder writes what packFolder packed below dir, and nothing outside it.
func unpackFolder(r io.Reader, dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer root.Close()
	tr := tar.NewReader(r)
	for total := int64(0); ; {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if h.Typeflag != tar.TypeReg || !fs.ValidPath(h.Name) || h.Name == "." {
			return fmt.Errorf("%q is no file of a checkpoint: %w", text.Clip(h.Name), stream.ErrBadMessage)
		}
		if total += h.Size; h.Size < 0 || total > maxFolder {
			return fmt.Errorf("more than %d bytes: %w", int64(maxFolder), stream.ErrBadMessage)
		}
		if err := root.MkdirAll(path.Dir(h.Name), 0o755); err != nil {
			return err
		}
		f, err := root.Create(h.Name)
		if err != nil {
			return err
		}
		_, err = io.Copy(f, tr)
		if err := errors.Join(err, f.Close()); err != nil {
			return err
		}
		if err := root.Chtimes(h.Name, h.ModTime, h.ModTime); err != nil {
			return err
		}
	}
}
