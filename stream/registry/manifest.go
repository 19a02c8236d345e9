package registry

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sort"
	"strings"
)

// ManifestName is the manifest's file name in a release folder.
const ManifestName = "manifest.json"

const (
	maxManifest = 16 << 20 // bytes
	maxFiles    = 1000
)

// File is one file of a release.
type File struct {
	Name   string // slash-separated path below the release folder
	SHA256 string // lower-case hexadecimal
	Size   int64  // bytes
}

// parseManifest reads the files member of a manifest, and nothing else, in the
// order of their names. Errors are [ErrBadManifest].
func parseManifest(b []byte) ([]File, error) {
	var m struct {
		Files map[string]struct {
			SHA256 string `json:"sha256"`
			Size   int64  `json:"size"`
		} `json:"files"`
	}
	dec := json.NewDecoder(bytes.NewReader(b))
	if err := dec.Decode(&m); err != nil {
		return nil, fmt.Errorf("%w: %v", ErrBadManifest, err)
	}
	if m.Files == nil {
		return nil, fmt.Errorf("%w: it has no files member", ErrBadManifest)
	}
	if len(m.Files) > maxFiles {
		return nil, fmt.Errorf("%w: it names %d files, at most %d are taken", ErrBadManifest, len(m.Files), maxFiles)
	}
	files := make([]File, 0, len(m.Files))
	for name, f := range m.Files {
		if !safeName(name) {
			return nil, fmt.Errorf("%w: file name %q", ErrBadManifest, name)
		}
		if !isDigest(f.SHA256) || f.Size < 0 {
			return nil, fmt.Errorf("%w: file %s has sha256 %q and size %d", ErrBadManifest, name, f.SHA256, f.Size)
		}
		files = append(files, File{Name: name, SHA256: f.SHA256, Size: f.Size})
	}
	sort.Slice(files, func(i, j int) bool { return files[i].Name < files[j].Name })
	return files, nil
}

// safeName accepts relative slash-separated paths that stay in their folder on
// every system.
func safeName(name string) bool {
	if name == "" || len(name) > 255 || name == ManifestName || strings.ContainsAny(name, "\\:\x00") {
		return false
	}
	for part := range strings.SplitSeq(name, "/") {
		if part == "" || part[0] == '.' {
			return false
		}
	}
	return true
}

func isDigest(s string) bool {
	if len(s) != 2*sha256.Size || strings.ToLower(s) != s {
		return false
	}
	_, err := hex.DecodeString(s)
	return err == nil
}

// readManifest reads a release folder's manifest and its digest.
func readManifest(dir string) (raw []byte, digest string, files []File, err error) {
	path := filepath.Join(dir, ManifestName)
	fi, err := os.Stat(path)
	if err != nil {
		return nil, "", nil, fmt.Errorf("read release %s: %w", dir, err)
	}
	if fi.Size() > maxManifest {
		return nil, "", nil, fmt.Errorf("read release %s: %w: %d bytes", dir, ErrBadManifest, fi.Size())
	}
	if raw, err = os.ReadFile(path); err != nil {
		return nil, "", nil, fmt.Errorf("read release %s: %w", dir, err)
	}
	if files, err = parseManifest(raw); err != nil {
		return nil, "", nil, fmt.Errorf("read release %s: %w", dir, err)
	}
	d := sha256.Sum256(raw)
	return raw, hex.EncodeToString(d[:]), files, nil
}

// checkFile says whether the file at path has the size and digest of f.
func checkFile(path string, f File) error {
	in, err := os.Open(path)
	if err != nil {
		return err
	}
	defer in.Close()
	h := sha256.New()
	n, err := io.CopyBuffer(struct{ io.Writer }{h}, struct{ io.Reader }{in}, make([]byte, 1<<20))
	if err != nil {
		return err
	}
	if got := hex.EncodeToString(h.Sum(nil)); n != f.Size || got != f.SHA256 {
		return fmt.Errorf("%w: %s has %d bytes of sha256 %s, the manifest says %d of %s", ErrCorrupt, f.Name, n, got, f.Size, f.SHA256)
	}
	return nil
}
