package registry

import (
	"cmp"
	"context"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/cenkalti/backoff/v4"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/nearmiss/nearmiss/inference/release/envelope"
	"github.com/nearmiss/nearmiss/stream/internal/kv"
	"github.com/nearmiss/nearmiss/stream/internal/lease"
	"github.com/nearmiss/nearmiss/stream/internal/object"
	"github.com/nearmiss/nearmiss/stream/internal/text"
)

// Config names the registry's buckets and its folder on this machine.
type Config struct {
	ActiveBucket    string // key-value bucket of the pointers
	ArtifactsBucket string // object store of the files
	// CacheDir holds downloaded releases. Processes of one machine can share
	// it. Required by Get, not by the others.
	CacheDir string
	// ChunkSize of uploads in bytes. Default 256 KiB less 4 KiB, at most half
	// the broker's payload limit.
	ChunkSize uint32
}

// Registry is a broker's releases and pointers. It is safe for concurrent use.
type Registry struct {
	cfg    Config
	js     jetstream.JetStream
	kv     jetstream.KeyValue
	points kv.Store[Pointer] // in kv
	blobs  jetstream.ObjectStore
	stream jetstream.Stream // behind blobs, to count an object's chunks
	// whole are files of the cache that were compared with their digests.
	whole envelope.Checked
}

// Metadata keys of the objects.
const (
	metaKind     = "nearmiss-kind" // manifest or file
	metaDetector = "nearmiss-detector"
	kindManifest = "manifest"
	kindFile     = "file"
)

// Open connects a registry to buckets that exist.
func Open(ctx context.Context, js jetstream.JetStream, cfg Config) (*Registry, error) {
	bucket, err := js.KeyValue(ctx, cfg.ActiveBucket)
	if err != nil {
		return nil, fmt.Errorf("open bucket %s: %w", cfg.ActiveBucket, err)
	}
	blobs, err := js.ObjectStore(ctx, cfg.ArtifactsBucket)
	if err != nil {
		return nil, fmt.Errorf("open object store %s: %w", cfg.ArtifactsBucket, err)
	}
	s, err := js.Stream(ctx, object.StreamOf(cfg.ArtifactsBucket))
	if err != nil {
		return nil, fmt.Errorf("open object store %s: %w", cfg.ArtifactsBucket, err)
	}
	cfg.ChunkSize = cmp.Or(cfg.ChunkSize, 256<<10-4<<10)
	if limit := js.Conn().MaxPayload() / 2; limit > 0 && int64(cfg.ChunkSize) > limit {
		cfg.ChunkSize = uint32(limit)
	}
	return &Registry{
		cfg: cfg, js: js, kv: bucket, blobs: blobs, stream: s,
		points: kv.Store[Pointer]{Bucket: bucket, Decode: decodePointer, Skip: func(key string) bool { return strings.HasPrefix(key, pinKey("")) }},
	}, nil
}

// CollectLease is a key of the bucket of pointers, which is there while a program collects,
// stores the last of a release, or points to one. Programs of earlier versions pass over
// pins, and take all else for pointers: during an upgrade they would report it.
const CollectLease = "pin/turn"

// exclusively does what counts on a release while no other program collects, and collects
// while nobody counts on one: what is looked for is then still there when it is used.
func (r *Registry) exclusively(ctx context.Context, do func(context.Context) error) error {
	return lease.Of(r.kv, CollectLease).HoldIfPossible(ctx, do)
}

// Release is what the registry knows of one release.
type Release struct {
	Digest   string           `json:"release"`  // SHA-256 of the manifest
	Detector string           `json:"detector"` // for which it was put
	StoredAt time.Time        `json:"stored_at"`
	Active   bool             `json:"active"` // it is its detector's active release
	Pinned   bool             `json:"pinned"` // it is never collected
	Files    []envelope.Entry `json:"-"`      // set by Show only
	Manifest []byte           `json:"-"`      // set by Show only
}

// Put stores the release in folder dir for a detector and returns its digest.
// Files that are in the store already are not sent again. A release is there
// only when all of it is there.
func (r *Registry) Put(ctx context.Context, detector, dir string) (string, error) {
	e, err := envelope.Read(dir)
	if err != nil {
		return "", err
	}
	putFiles := func(ctx context.Context) error {
		for _, f := range e.Files {
			if err := r.putFile(ctx, envelope.Path(dir, f.Name), f); err != nil {
				return fmt.Errorf("store %s of release %s: %w", f.Name, text.Short(e.Digest), err)
			}
		}
		return nil
	}
	if err := putFiles(ctx); err != nil { // which may take long
		return "", err
	}
	return e.Digest, r.exclusively(ctx, func(ctx context.Context) error {
		if err := putFiles(ctx); err != nil { // that a collection has removed meanwhile
			return err
		}
		if err := r.putManifest(ctx, detector, e.Digest, e.Manifest); err != nil {
			return fmt.Errorf("store release %s: %w", text.Short(e.Digest), err)
		}
		return nil
	})
}

// Digest is the digest of the release in a folder.
func Digest(dir string) (string, error) {
	e, err := envelope.Read(dir)
	if err != nil {
		return "", err
	}
	return e.Digest, nil
}

func (r *Registry) putManifest(ctx context.Context, detector, digest string, raw []byte) error {
	if r.has(ctx, digest, int64(len(raw))) {
		return r.share(ctx, detector, digest)
	}
	_, err := r.blobs.Put(ctx, jetstream.ObjectMeta{
		Name:     digest,
		Metadata: map[string]string{metaKind: kindManifest, metaDetector: detector},
		Opts:     &jetstream.ObjectMetaOptions{ChunkSize: r.cfg.ChunkSize},
	}, strings.NewReader(string(raw)))
	return err
}

// share notes that a release that is in the store is a further detector's, too.
func (r *Registry) share(ctx context.Context, detector, digest string) error {
	info, err := r.blobs.GetInfo(ctx, digest)
	if err != nil {
		return err
	}
	of := strings.Split(info.Metadata[metaDetector], ",")
	if slices.Contains(of, detector) {
		return nil
	}
	meta := info.ObjectMeta
	meta.Metadata = map[string]string{metaKind: kindManifest, metaDetector: strings.Join(append(of, detector), ",")}
	return r.blobs.UpdateMeta(ctx, digest, meta)
}

func (r *Registry) putFile(ctx context.Context, path string, f envelope.Entry) error {
	if err := f.CheckSize(path); err != nil {
		return err
	}
	if r.has(ctx, f.SHA256, f.Size) {
		return nil
	}
	if err := r.whole.Check(ctx, path, f); err != nil {
		return err
	}
	in, err := os.Open(path)
	if err != nil {
		return err
	}
	defer in.Close()
	ctx, cancel := context.WithTimeout(ctx, transferTime(f.Size))
	defer cancel()
	info, err := r.blobs.Put(ctx, jetstream.ObjectMeta{
		Name:     f.SHA256,
		Metadata: map[string]string{metaKind: kindFile},
		Opts:     &jetstream.ObjectMetaOptions{ChunkSize: r.cfg.ChunkSize},
	}, object.Chunked{Reader: in})
	if err != nil {
		return err
	}
	if int64(info.Size) != f.Size || storedDigest(info) != f.SHA256 {
		return fmt.Errorf("%w: the file changed while it was sent", ErrCorrupt)
	}
	return nil
}

// has says whether an object is there with all its chunks.
func (r *Registry) has(ctx context.Context, digest string, size int64) bool {
	info, err := r.blobs.GetInfo(ctx, digest)
	return err == nil && int64(info.Size) == size && storedDigest(info) == digest && r.complete(ctx, info) == nil
}

// storedDigest is the digest that the Object Store computed of an object (it
// writes SHA-256=<URL-safe base64>), as hexadecimal.
func storedDigest(info *jetstream.ObjectInfo) string {
	b, err := base64.URLEncoding.DecodeString(strings.TrimPrefix(info.Digest, "SHA-256="))
	if err != nil {
		return ""
	}
	return hex.EncodeToString(b)
}

// complete compares the chunks that an object has with those it should have.
func (r *Registry) complete(ctx context.Context, info *jetstream.ObjectInfo) error {
	if info.Chunks == 0 {
		return nil
	}
	n, err := object.Stored(ctx, r.stream, r.cfg.ArtifactsBucket, info)
	if err != nil {
		return err
	}
	if n != uint64(info.Chunks) {
		return fmt.Errorf("%w: object %s has %d chunks of %d", ErrCorrupt, text.Short(info.Name), n, info.Chunks)
	}
	return nil
}

// Get makes sure that a release lies in the cache folder, whole and verified,
// and returns its folder. What is damaged there is fetched again; what is
// damaged in the store is [ErrCorrupt].
func (r *Registry) Get(ctx context.Context, digest string) (string, error) {
	if !envelope.IsDigest(digest) {
		return "", fmt.Errorf("release %q is not a sha256: %w", digest, ErrNoRelease)
	}
	if r.cfg.CacheDir == "" {
		return "", errors.New("get a release: no cache folder is configured")
	}
	dir := filepath.Join(r.cfg.CacheDir, "releases", digest)
	if r.verify(ctx, dir, digest) == nil {
		now := time.Now() // Evict goes by it
		_ = os.Chtimes(dir, now, now)
		return dir, nil
	}
	if err := os.RemoveAll(dir); err != nil {
		return "", fmt.Errorf("remove damaged copy of release %s: %w", text.Short(digest), err)
	}
	raw, err := r.manifest(ctx, digest)
	if err != nil {
		return "", err
	}
	files, err := envelope.Parse(raw)
	if err != nil {
		return "", fmt.Errorf("release %s: %w", text.Short(digest), err)
	}
	if err := os.MkdirAll(filepath.Dir(dir), 0o755); err != nil {
		return "", fmt.Errorf("make the release cache: %w", err)
	}
	tmp, err := os.MkdirTemp(filepath.Dir(dir), ".get-")
	if err != nil {
		return "", fmt.Errorf("make the release cache: %w", err)
	}
	defer os.RemoveAll(tmp)
	for _, f := range files {
		if err := r.fetch(ctx, f, envelope.Path(tmp, f.Name)); err != nil {
			return "", fmt.Errorf("get %s of release %s: %w", f.Name, text.Short(digest), err)
		}
	}
	if err := os.WriteFile(filepath.Join(tmp, envelope.ManifestName), raw, 0o644); err != nil {
		return "", fmt.Errorf("write release %s: %w", text.Short(digest), err)
	}
	if err := os.Rename(tmp, dir); err != nil && r.verify(ctx, dir, digest) != nil { // another process may have been faster
		return "", fmt.Errorf("write release %s: %w", text.Short(digest), err)
	}
	return dir, nil
}

// verify says whether dir holds the release, whole.
func (r *Registry) verify(ctx context.Context, dir, digest string) error {
	e, err := envelope.Read(dir)
	if err != nil {
		return err
	}
	if e.Digest != digest {
		return fmt.Errorf("%w: manifest of %s is that of %s", ErrCorrupt, text.Short(digest), text.Short(e.Digest))
	}
	return e.Check(ctx, &r.whole)
}

// manifest fetches a release's manifest and checks its digest.
func (r *Registry) manifest(ctx context.Context, digest string) ([]byte, error) {
	info, err := r.blobs.GetInfo(ctx, digest)
	if errors.Is(err, jetstream.ErrObjectNotFound) || err == nil && info.Metadata[metaKind] != kindManifest {
		return nil, fmt.Errorf("release %s: %w", text.Short(digest), ErrNoRelease)
	}
	if err != nil {
		return nil, fmt.Errorf("find release %s: %w", text.Short(digest), err)
	}
	if info.Size > envelope.MaxManifest {
		return nil, fmt.Errorf("release %s: %w: %d bytes", text.Short(digest), ErrBadManifest, info.Size)
	}
	if err := r.complete(ctx, info); err != nil {
		return nil, fmt.Errorf("release %s: %w", text.Short(digest), err)
	}
	raw, err := object.Read(ctx, r.js, r.cfg.ArtifactsBucket, digest, envelope.MaxManifest)
	if errors.Is(err, object.ErrBad) || errors.Is(err, object.ErrMissing) {
		err = fmt.Errorf("%w: %w", ErrCorrupt, err)
	}
	if err != nil {
		return nil, fmt.Errorf("get release %s: %w", text.Short(digest), err)
	}
	if envelope.Digest(raw) != digest {
		return nil, fmt.Errorf("%w: the manifest of release %s has another digest", ErrCorrupt, text.Short(digest))
	}
	return raw, nil
}

// fetch brings one file to path: from the cache of files when it is there, else
// from the store.
func (r *Registry) fetch(ctx context.Context, f envelope.Entry, path string) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	blob := filepath.Join(r.cfg.CacheDir, "blobs", f.SHA256)
	if r.whole.Check(ctx, blob, f) != nil {
		if err := os.MkdirAll(filepath.Dir(blob), 0o755); err != nil {
			return err
		}
		// An object that is replaced while it is read comes out damaged: try again.
		b := backoff.WithMaxRetries(backoff.NewExponentialBackOff(backoff.WithInitialInterval(100*time.Millisecond)), 3)
		if err := backoff.Retry(func() error {
			err := r.download(ctx, f, blob)
			if errors.Is(err, ErrNoRelease) || errors.Is(err, errIncomplete) || errors.Is(err, errReplaced) {
				return backoff.Permanent(err)
			}
			return err
		}, backoff.WithContext(b, ctx)); err != nil {
			return err
		}
	}
	if os.Link(blob, path) == nil {
		return nil
	}
	return copyFile(blob, path) // another file system, or one without links
}

var (
	errIncomplete = fmt.Errorf("%w: chunks are missing", ErrCorrupt)
	errReplaced   = fmt.Errorf("%w: it is another object", ErrCorrupt)
)

func (r *Registry) download(ctx context.Context, f envelope.Entry, path string) (err error) {
	info, err := r.blobs.GetInfo(ctx, f.SHA256)
	if errors.Is(err, jetstream.ErrObjectNotFound) {
		return fmt.Errorf("object %s is not in the store: %w", text.Short(f.SHA256), ErrNoRelease)
	}
	if err != nil {
		return err
	}
	if int64(info.Size) != f.Size || storedDigest(info) != f.SHA256 {
		return fmt.Errorf("object %s has %d bytes of sha256 %s, the manifest says %d: %w", text.Short(f.SHA256), info.Size, text.Short(storedDigest(info)), f.Size, errReplaced)
	}
	// Reading an object without its chunks would wait for the deadline.
	if err := r.complete(ctx, info); errors.Is(err, ErrCorrupt) {
		return fmt.Errorf("object %s: %w", text.Short(f.SHA256), errIncomplete)
	} else if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, transferTime(f.Size))
	defer cancel()
	out, err := os.CreateTemp(filepath.Dir(path), ".get-")
	if err != nil {
		return err
	}
	defer os.Remove(out.Name())
	defer out.Close()
	// Its digest is the manifest's, as was seen above.
	if err := object.Copy(ctx, r.js, r.cfg.ArtifactsBucket, info, out); errors.Is(err, object.ErrBad) {
		return fmt.Errorf("%w: object %s has other bytes than its metadata say", ErrCorrupt, text.Short(f.SHA256))
	} else if err != nil {
		return err
	}
	if err := errors.Join(out.Chmod(0o644), out.Sync(), out.Close()); err != nil {
		return err
	}
	return os.Rename(out.Name(), path)
}

// Show returns one release with its manifest.
func (r *Registry) Show(ctx context.Context, digest string) (Release, error) {
	info, err := r.blobs.GetInfo(ctx, digest)
	if err != nil && !errors.Is(err, jetstream.ErrObjectNotFound) {
		return Release{}, fmt.Errorf("find release %s: %w", text.Short(digest), err)
	}
	raw, err := r.manifest(ctx, digest)
	if err != nil {
		return Release{}, err
	}
	files, err := envelope.Parse(raw)
	if err != nil {
		return Release{}, fmt.Errorf("release %s: %w", text.Short(digest), err)
	}
	first, _, _ := strings.Cut(info.Metadata[metaDetector], ",")
	rel := Release{Digest: digest, Detector: first, StoredAt: info.ModTime, Files: files, Manifest: raw}
	all, err := r.annotate(ctx, []Release{rel}, "")
	if err != nil {
		return Release{}, err
	}
	return all[0], nil
}

// List returns a detector's releases, oldest first; an empty detector means all.
func (r *Registry) List(ctx context.Context, detector string) ([]Release, error) {
	infos, err := r.list(ctx)
	if err != nil {
		return nil, err
	}
	// What is or was active is a detector's, whatever it was stored for.
	pointed := map[string]bool{}
	if detector != "" {
		history, err := r.History(ctx, detector)
		if err != nil {
			return nil, err
		}
		for _, p := range history {
			pointed[p.Release] = true
		}
	}
	var all []Release
	for _, i := range infos {
		of := strings.Split(i.Metadata[metaDetector], ",")
		if i.Metadata[metaKind] != kindManifest || detector != "" && !slices.Contains(of, detector) && !pointed[i.Name] {
			continue
		}
		rel := Release{Digest: i.Name, Detector: of[0], StoredAt: i.ModTime}
		if detector != "" {
			rel.Detector = detector
		}
		all = append(all, rel)
	}
	slices.SortFunc(all, func(a, b Release) int { return a.StoredAt.Compare(b.StoredAt) })
	return r.annotate(ctx, all, detector)
}

func (r *Registry) list(ctx context.Context) ([]*jetstream.ObjectInfo, error) {
	infos, _, err := object.List(ctx, r.js, r.cfg.ArtifactsBucket)
	if err != nil {
		return nil, fmt.Errorf("list releases: %w", err)
	}
	return infos, nil
}

// Resolve finds the full digest of a release of the detector by its first
// characters, at least four.
func (r *Registry) Resolve(ctx context.Context, detector, prefix string) (string, error) {
	if envelope.IsDigest(prefix) {
		return prefix, nil
	}
	if len(prefix) < 4 {
		return "", fmt.Errorf("release %q: give at least 4 characters of its digest: %w", prefix, ErrNoRelease)
	}
	all, err := r.List(ctx, detector)
	if err != nil {
		return "", err
	}
	var found []string
	for _, rel := range all {
		if strings.HasPrefix(rel.Digest, prefix) {
			found = append(found, rel.Digest)
		}
	}
	switch len(found) {
	case 1:
		return found[0], nil
	case 0:
		return "", fmt.Errorf("release %s of detector %s: %w", prefix, detector, ErrNoRelease)
	default:
		return "", fmt.Errorf("release %s of detector %s: %d releases begin so, give more characters: %w", prefix, detector, len(found), ErrNoRelease)
	}
}

// transferTime is how long moving n bytes may take: a minute, and a second for
// every 2 MiB.
func transferTime(n int64) time.Duration {
	return time.Minute + time.Duration(n>>21)*time.Second
}

func copyFile(from, to string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	return errors.Join(err, out.Close())
}
