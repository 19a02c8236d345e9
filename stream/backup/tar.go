package backup

import (
	"archive/tar"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/google/renameio/v2"
)

// Pack writes the backup in dir as one tar file, the manifest first.
func Pack(dir, file string) (err error) {
	m, err := Read(dir)
	if err != nil {
		return err
	}
	out, err := renameio.NewPendingFile(file, renameio.WithPermissions(0o600))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, out.Cleanup()) }()
	w := tar.NewWriter(out)
	names := []string{manifestFile}
	for _, e := range m.Streams {
		names = append(names, e.File)
	}
	for _, name := range names {
		if err := pack(w, filepath.Join(dir, name), name); err != nil {
			return fmt.Errorf("pack %s: %w", name, err)
		}
	}
	if err := w.Close(); err != nil {
		return err
	}
	return out.CloseAtomicallyReplace()
}

func pack(w *tar.Writer, path, name string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	if err := w.WriteHeader(&tar.Header{Name: name, Mode: 0o600, Size: info.Size(), ModTime: info.ModTime(), Format: tar.FormatPAX}); err != nil {
		return err
	}
	_, err = io.Copy(w, f)
	return err
}

// Unpack writes the files of a backup that [Pack] has made into dir. A file that the
// manifest, which comes first, does not name, or of another size, is refused.
func Unpack(file, dir string) error {
	f, err := os.Open(file)
	if err != nil {
		return err
	}
	defer f.Close()
	r := tar.NewReader(f)
	h, err := r.Next()
	if err != nil || h.Name != manifestFile || h.Size > maxManifest {
		return fmt.Errorf("%s is no backup: it does not begin with %s", file, manifestFile)
	}
	b, err := io.ReadAll(r)
	if err != nil {
		return fmt.Errorf("unpack %s: %w", file, err)
	}
	m, err := Parse(b)
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(dir, manifestFile), b, 0o600); err != nil {
		return err
	}
	for _, e := range m.Streams {
		h, err := r.Next()
		if err != nil {
			return fmt.Errorf("unpack %s: %w", file, err)
		}
		if h.Name != e.File || h.Size != e.Bytes || h.Typeflag != tar.TypeReg {
			return fmt.Errorf("unpack %s: it has %.60q of %d bytes where its manifest says %s of %d", file, h.Name, h.Size, e.File, e.Bytes)
		}
		if err := unpack(r, filepath.Join(dir, e.File)); err != nil {
			return fmt.Errorf("unpack %s: %w", file, err)
		}
	}
	return nil
}

func unpack(r io.Reader, path string) (err error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	_, err = io.Copy(f, r)
	return err
}
