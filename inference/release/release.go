package release

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/nearmiss/nearmiss/inference/release/envelope"
)

var (
	// ErrCorrupt: a file of the release is missing, or is not the one that the
	// manifest names.
	ErrCorrupt = envelope.ErrCorrupt
	// ErrExists: there is already something where the release should go.
	ErrExists = errors.New("it already exists, and releases do not change: choose another folder or remove it")
)

// Release is a release on disk.
type Release struct {
	Dir      string
	Manifest Manifest
	// Digest is the SHA-256 of manifest.json, in lower-case hexadecimal: the
	// release's name.
	Digest string
}

// Open reads the manifest in dir and checks that every file is there with its
// size. It does not read them: see Verify.
func Open(dir string) (*Release, error) {
	b, err := envelope.ReadManifest(dir)
	if err != nil {
		return nil, fmt.Errorf("open release %s: %w", dir, err)
	}
	m, err := ParseManifest(b)
	if err != nil {
		return nil, fmt.Errorf("open release %s: %w", dir, err)
	}
	for _, e := range m.Files.Sorted() {
		if err := e.CheckSize(envelope.Path(dir, e.Name)); err != nil {
			return nil, fmt.Errorf("open release %s: %w", dir, err)
		}
	}
	return &Release{Dir: dir, Manifest: m, Digest: envelope.Digest(b)}, nil
}

// Path is where a file of the release lies.
func (r *Release) Path(name string) string { return envelope.Path(r.Dir, name) }

// Verify reads every file and compares its SHA-256 with the manifest.
func (r *Release) Verify(ctx context.Context) error {
	e := envelope.Envelope{Dir: r.Dir, Files: r.Manifest.Files.Sorted()}
	if err := e.Check(ctx, nil); err != nil {
		return fmt.Errorf("verify release %s: %w", r.Dir, err)
	}
	return nil
}

// Builder collects the files of a new release. Exactly one of Commit and Abort
// ends it; an Abort after a Commit does nothing, so it can be deferred.
type Builder struct {
	dir     string
	staging string
	copied  envelope.Files // that AddFile read, so that Commit need not
}

// Create starts a release that Commit will put at dir, which must not exist.
// Until then its files lie in a hidden folder beside dir.
func Create(dir string) (*Builder, error) {
	if _, err := os.Lstat(dir); err == nil {
		return nil, fmt.Errorf("create release %s: %w", dir, ErrExists)
	}
	parent := filepath.Dir(filepath.Clean(dir))
	if err := os.MkdirAll(parent, 0o755); err != nil {
		return nil, fmt.Errorf("create release %s: %w", dir, err)
	}
	staging, err := os.MkdirTemp(parent, ".release-")
	if err != nil {
		return nil, fmt.Errorf("create release %s: %w", dir, err)
	}
	if err := os.Chmod(staging, 0o755); err != nil {
		return nil, fmt.Errorf("create release %s: %w", dir, err)
	}
	return &Builder{dir: dir, staging: staging, copied: envelope.Files{}}, nil
}

// Path returns where the caller writes the file that will have this
// slash-separated name in the release. Its folder exists.
func (b *Builder) Path(name string) (string, error) {
	if err := envelope.CheckName(name); err != nil {
		return "", err
	}
	delete(b.copied, name)
	p := envelope.Path(b.staging, name)
	if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
		return "", fmt.Errorf("create release %s: %w", b.dir, err)
	}
	return p, nil
}

// AddBytes writes a file of the release.
func (b *Builder) AddBytes(name string, content []byte) error {
	p, err := b.Path(name)
	if err != nil {
		return err
	}
	if err := os.WriteFile(p, content, 0o644); err != nil {
		return fmt.Errorf("create release %s: %w", b.dir, err)
	}
	return nil
}

// AddFile copies a file into the release.
func (b *Builder) AddFile(ctx context.Context, name, from string) error {
	p, err := b.Path(name)
	if err != nil {
		return err
	}
	src, err := os.Open(from)
	if err != nil {
		return fmt.Errorf("create release %s: %w", b.dir, err)
	}
	defer src.Close()
	dst, err := os.OpenFile(p, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o644)
	if err != nil {
		return fmt.Errorf("create release %s: %w", b.dir, err)
	}
	file, err := envelope.Copy(ctx, dst, src)
	if err := errors.Join(err, dst.Close()); err != nil {
		return fmt.Errorf("create release %s: copy %s: %w", b.dir, from, err)
	}
	b.copied[name] = file
	return nil
}

// Commit hashes what was written, fills in Files, SchemaVersion and (where it
// is zero) CreatedAt of the manifest, and puts the release in place by one
// rename. On an error nothing is there.
func (b *Builder) Commit(ctx context.Context, m Manifest) (*Release, error) {
	r, err := b.commit(ctx, m)
	if err != nil {
		b.Abort()
		return nil, fmt.Errorf("write release %s: %w", b.dir, err)
	}
	return r, nil
}

func (b *Builder) commit(ctx context.Context, m Manifest) (*Release, error) {
	m.SchemaVersion = m.version()
	if m.CreatedAt.IsZero() {
		m.CreatedAt = time.Now().UTC().Truncate(time.Second)
	}
	m.Files = envelope.Files{}
	var dirs []string
	err := filepath.WalkDir(b.staging, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() {
			dirs = append(dirs, p)
			return nil
		}
		rel, err := filepath.Rel(b.staging, p)
		if err != nil {
			return err
		}
		name := filepath.ToSlash(rel)
		if err := envelope.CheckName(name); err != nil {
			return err
		}
		if err := syncPath(p); err != nil {
			return err
		}
		if f, ok := b.copied[name]; ok {
			m.Files[name] = f
			return nil
		}
		m.Files[name], err = envelope.Sum(ctx, p)
		return err
	})
	if err != nil {
		return nil, err
	}
	if err := m.Validate(); err != nil {
		return nil, err
	}
	text, err := json.MarshalIndent(m, "", "  ")
	if err != nil {
		return nil, err
	}
	text = append(text, '\n')
	manifest := filepath.Join(b.staging, ManifestName)
	if err := os.WriteFile(manifest, text, 0o644); err != nil {
		return nil, err
	}
	for _, p := range append(dirs, manifest) {
		if err := syncPath(p); err != nil {
			return nil, err
		}
	}
	if _, err := os.Lstat(b.dir); err == nil {
		return nil, ErrExists
	}
	// A folder that appeared since cannot be replaced: rename refuses one that
	// has something in it.
	if err := os.Rename(b.staging, b.dir); err != nil {
		return nil, err
	}
	b.staging = ""
	if err := syncPath(filepath.Dir(filepath.Clean(b.dir))); err != nil {
		return nil, err
	}
	return Open(b.dir)
}

// Abort removes what was collected.
func (b *Builder) Abort() {
	if b.staging != "" {
		_ = os.RemoveAll(b.staging)
		b.staging = ""
	}
}

// syncPath makes a file or folder durable.
func syncPath(name string) error {
	f, err := os.Open(name)
	if err != nil {
		return err
	}
	err = f.Sync()
	if strings.Contains(fmt.Sprint(err), "invalid argument") {
		err = nil // some file systems cannot sync folders
	}
	return errors.Join(err, f.Close())
}
