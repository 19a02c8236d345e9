// Package envelope is what those who move a release must know of it: that its
// manifest names every file by digest and size, and nothing of what is in them.
// Package release reads the rest, package registry stores and fetches by this
// alone. It is the one place where bytes are compared with what a manifest says:
// whoever brings a release in does it once, with [Read] and [Checked.Check], and
// tells those who open it.
package envelope

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
)

// ManifestName is the manifest's file name in a release folder.
const ManifestName = "manifest.json"

// MaxManifest bounds a manifest in bytes.
const MaxManifest = 16 << 20

const (
	maxFiles = 1000
	maxName  = 255 // bytes
)

var (
	// ErrCorrupt: a file is missing, or does not have the digest or the size that
	// names it.
	ErrCorrupt = errors.New("corrupt release")
	// ErrManifest: a manifest cannot be understood.
	ErrManifest = errors.New("bad manifest")
)

// File is the digest and size of one file.
type File struct {
	SHA256 string `json:"sha256"` // lower-case hexadecimal
	Size   int64  `json:"size"`   // bytes
}

// Entry is one file of a release.
type Entry struct {
	Name string // slash-separated path below the release folder
	File
}

// Files are those of a release but for the manifest, by their names.
type Files map[string]File

// Validate reports every name, digest and size that cannot be.
func (f Files) Validate() error {
	if len(f) > maxFiles {
		return fmt.Errorf("%d files are named, at most %d are taken", len(f), maxFiles)
	}
	var errs []error
	for _, e := range f.Sorted() {
		if err := CheckName(e.Name); err != nil {
			errs = append(errs, err)
		}
		if !IsDigest(e.SHA256) {
			errs = append(errs, fmt.Errorf("file %q: %q is not a SHA-256", e.Name, e.SHA256))
		}
		if e.Size < 0 {
			errs = append(errs, fmt.Errorf("file %q: size %d", e.Name, e.Size))
		}
	}
	return errors.Join(errs...)
}

// Sorted lists the files by name.
func (f Files) Sorted() []Entry {
	all := make([]Entry, 0, len(f))
	for _, name := range slices.Sorted(maps.Keys(f)) {
		all = append(all, Entry{name, f[name]})
	}
	return all
}

// CheckName admits a slash-separated path that stays in its folder on every
// system, has no hidden part and is not the manifest's.
func CheckName(name string) error {
	hidden := slices.ContainsFunc(strings.Split(name, "/"), func(part string) bool { return strings.HasPrefix(part, ".") })
	if name == "" || len(name) > maxName || name == ManifestName || hidden || name != path.Clean(name) ||
		!filepath.IsLocal(name) || strings.ContainsAny(name, "\\:\x00") {
		return fmt.Errorf("file %q: not a name inside a release", name)
	}
	return nil
}

// IsDigest says whether s is a SHA-256 in lower-case hexadecimal.
func IsDigest(s string) bool {
	if len(s) != 2*sha256.Size || strings.ToLower(s) != s {
		return false
	}
	_, err := hex.DecodeString(s)
	return err == nil
}

// Digest is the SHA-256 of a manifest, in lower-case hexadecimal: the release's
// name.
func Digest(manifest []byte) string {
	d := sha256.Sum256(manifest)
	return hex.EncodeToString(d[:])
}

// Parse reads the files member of a manifest, and nothing else, in the order of
// their names. Errors are [ErrManifest].
func Parse(manifest []byte) ([]Entry, error) {
	var m struct {
		Files Files `json:"files"`
	}
	if err := json.NewDecoder(bytes.NewReader(manifest)).Decode(&m); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrManifest, err)
	}
	if m.Files == nil {
		return nil, fmt.Errorf("%w: it has no files member", ErrManifest)
	}
	if err := m.Files.Validate(); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrManifest, err)
	}
	return m.Files.Sorted(), nil
}

// Envelope is a release folder's manifest and the files that it names.
type Envelope struct {
	Dir      string
	Manifest []byte
	Digest   string
	Files    []Entry // by name
}

// Read reads the manifest of the release folder dir. The files are not read.
func Read(dir string) (*Envelope, error) {
	raw, err := ReadManifest(dir)
	if err != nil {
		return nil, fmt.Errorf("read release %s: %w", dir, err)
	}
	files, err := Parse(raw)
	if err != nil {
		return nil, fmt.Errorf("read release %s: %w", dir, err)
	}
	return &Envelope{Dir: dir, Manifest: raw, Digest: Digest(raw), Files: files}, nil
}

// ReadManifest reads the bytes of the manifest of the release folder dir, which
// are bounded.
func ReadManifest(dir string) ([]byte, error) {
	f, err := os.Open(filepath.Join(dir, ManifestName))
	if errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("it has no %s and is no release, which nearmiss fit makes: %w", ManifestName, os.ErrNotExist)
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	raw, err := io.ReadAll(io.LimitReader(f, MaxManifest+1))
	if err == nil && len(raw) > MaxManifest {
		err = fmt.Errorf("%w: more than %d bytes", ErrManifest, MaxManifest)
	}
	return raw, err
}

// Sum reads the file at path for its digest and size, until ctx ends.
func Sum(ctx context.Context, path string) (File, error) {
	in, err := os.Open(path)
	if err != nil {
		return File{}, err
	}
	defer in.Close()
	return Copy(ctx, io.Discard, in)
}

// Copy copies in to out and returns the digest and size of what went by. It
// stops when ctx ends.
func Copy(ctx context.Context, out io.Writer, in io.Reader) (File, error) {
	h := sha256.New()
	n, err := io.CopyBuffer(io.MultiWriter(out, h), bounded{ctx, in}, make([]byte, 1<<20))
	return File{SHA256: hex.EncodeToString(h.Sum(nil)), Size: n}, err
}

// bounded is a reader that fails when ctx ends.
type bounded struct {
	ctx context.Context
	in  io.Reader
}

func (b bounded) Read(p []byte) (int, error) {
	if err := b.ctx.Err(); err != nil {
		return 0, err
	}
	return b.in.Read(p)
}

// Compare is [ErrCorrupt] unless got is what the manifest says of e.
func (e Entry) Compare(got File) error {
	if got != e.File {
		return fmt.Errorf("%w: %s has %d bytes of SHA-256 %s, the manifest says %d of %s",
			ErrCorrupt, e.Name, got.Size, got.SHA256, e.Size, e.SHA256)
	}
	return nil
}

// CheckSize is [ErrCorrupt] unless there is a file with the size of e at path.
func (e Entry) CheckSize(path string) error {
	info, err := os.Stat(path)
	switch {
	case err != nil:
		return fmt.Errorf("%w: %w", ErrCorrupt, err)
	case !info.Mode().IsRegular():
		return fmt.Errorf("%w: %s is not a file", ErrCorrupt, e.Name)
	case info.Size() != e.Size:
		return fmt.Errorf("%w: %s has %d bytes, the manifest says %d", ErrCorrupt, e.Name, info.Size(), e.Size)
	}
	return nil
}

// Path is where a file with this slash-separated name lies in the folder dir.
func Path(dir, name string) string { return filepath.Join(dir, filepath.FromSlash(name)) }

// Check reads every file and compares it with the manifest.
func (e *Envelope) Check(ctx context.Context, c *Checked) error {
	for _, f := range e.Files {
		if err := c.Check(ctx, Path(e.Dir, f.Name), f); err != nil {
			return err
		}
	}
	return nil
}
