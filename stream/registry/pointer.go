package registry

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/nearmiss/nearmiss/inference/release/envelope"
	"github.com/nearmiss/nearmiss/stream/internal/kv"
	"github.com/nearmiss/nearmiss/stream/internal/text"
)

// Pointer says which release a detector uses.
type Pointer struct {
	Detector   string    `json:"detector"`
	Release    string    `json:"release"`     // digest
	PromotedAt time.Time `json:"promoted_at"` // UTC
	By         string    `json:"by,omitempty"`
	Reason     string    `json:"reason,omitempty"`
	// Below is the revision of the pointer that a rollback returns to, 0 for
	// none.
	Below uint64 `json:"below,omitempty"`
	// RolledBack is the release that a rollback took out of service.
	RolledBack string `json:"rolled_back,omitempty"`
	// Revision of this entry in the bucket; a new one with every change.
	Revision uint64 `json:"-"`
	// StoredAt is when the broker stored it, by the broker's clock.
	StoredAt time.Time `json:"-"`

	head uint64 // newest revision of its key, which cannot be read where it is another one
}

// Keys of the active bucket. Detector names have no slash.
func activeKey(detector string) string { return detector }
func shadowKey(detector string) string { return "shadow/" + detector }
func pinKey(digest string) string      { return "pin/" + digest }

// Active returns a detector's active release, or [ErrNoRelease].
func (r *Registry) Active(ctx context.Context, detector string) (Pointer, error) {
	return r.pointer(ctx, activeKey(detector), detector)
}

// Shadow returns the candidate that scores alongside, or [ErrNoRelease].
func (r *Registry) Shadow(ctx context.Context, detector string) (Pointer, error) {
	return r.pointer(ctx, shadowKey(detector), detector)
}

func (r *Registry) pointer(ctx context.Context, key, detector string) (Pointer, error) {
	e, err := r.points.Get(ctx, key)
	if errors.Is(err, jetstream.ErrKeyNotFound) {
		return Pointer{}, fmt.Errorf("detector %s has no %s release: %w", detector, role(key), ErrNoRelease)
	}
	if errors.Is(err, kv.ErrUnreadable) {
		return Pointer{head: e.Head}, fmt.Errorf("the %s release of %s: %w: %w", role(key), detector, ErrCorrupt, err)
	}
	if err != nil {
		return Pointer{}, fmt.Errorf("read the %s release of %s: %w", role(key), detector, err)
	}
	return pointerOf(e), nil
}

// pointerOf is an entry's pointer, with its place in the bucket.
func pointerOf(e kv.Entry[Pointer]) Pointer {
	p := e.Value
	p.Revision, p.StoredAt, p.head = e.Revision, e.Created.UTC(), e.Head
	return p
}

func role(key string) string {
	if strings.HasPrefix(key, "shadow/") {
		return "shadow"
	}
	return "active"
}

// decodePointer reads a value of the active bucket. Fields that are not known are
// let through: they are a later version's.
func decodePointer(key string, value []byte) (Pointer, error) {
	var p Pointer
	if err := kv.Object(value, &p, false); err != nil {
		return p, err
	}
	detector := strings.TrimPrefix(key, "shadow/")
	switch {
	case !text.IsToken(detector):
		return p, errors.New("the key is no detector's name")
	case p.Detector != "" && p.Detector != detector:
		return p, fmt.Errorf("it is a pointer of detector %q", kv.Clip(p.Detector))
	case !envelope.IsDigest(p.Release):
		return p, errors.New("it names no release")
	}
	p.Detector = detector
	return p, nil
}

// Change is who changes a pointer and why.
type Change struct {
	By     string
	Reason string
	// Expect, when not empty, is the release that must be active: the change
	// fails with [ErrConflict] when another one is. "none" means that there
	// must not be one.
	Expect string
}

// Promote makes a release the active one. It must be in the store, whole.
func (r *Registry) Promote(ctx context.Context, detector, digest string, c Change) (p Pointer, err error) {
	err = r.exclusively(ctx, func(ctx context.Context) error {
		p, err = r.promote(ctx, detector, digest, c)
		return err
	})
	return p, err
}

func (r *Registry) promote(ctx context.Context, detector, digest string, c Change) (Pointer, error) {
	if err := r.check(ctx, digest); err != nil {
		return Pointer{}, err
	}
	old, err := r.Active(ctx, detector)
	if err != nil && !errors.Is(err, ErrNoRelease) && !errors.Is(err, ErrCorrupt) {
		return Pointer{}, err
	}
	if c.Expect != "" && c.Expect != old.Release && !(c.Expect == "none" && old.Release == "") {
		return Pointer{}, fmt.Errorf("promote %s for %s: %s is active, not %s: %w", text.Short(digest), detector, cmp.Or(text.Short(old.Release), "none"), text.Short(c.Expect), ErrConflict)
	}
	if old.Release == digest && old.Revision == old.head {
		return old, nil
	}
	return r.write(ctx, activeKey(detector), Pointer{
		Detector: detector, Release: digest, By: c.By, Reason: c.Reason, Below: old.Revision,
	}, old.head)
}

// Rollback returns to the release that was active before the present one;
// rolling back again goes one further.
func (r *Registry) Rollback(ctx context.Context, detector string, c Change) (p Pointer, err error) {
	err = r.exclusively(ctx, func(ctx context.Context) error {
		p, err = r.rollback(ctx, detector, c)
		return err
	})
	return p, err
}

func (r *Registry) rollback(ctx context.Context, detector string, c Change) (Pointer, error) {
	now, err := r.Active(ctx, detector)
	if err != nil {
		return Pointer{}, err
	}
	if c.Expect != "" && c.Expect != now.Release {
		return Pointer{}, fmt.Errorf("roll back %s: %s is active, not %s: %w", detector, text.Short(now.Release), text.Short(c.Expect), ErrConflict)
	}
	before, err := r.Before(ctx, now)
	if err != nil {
		return Pointer{}, fmt.Errorf("roll back %s: %w", detector, err)
	}
	if err := r.check(ctx, before.Release); err != nil {
		return Pointer{}, fmt.Errorf("roll back %s: %w", detector, err)
	}
	return r.write(ctx, activeKey(detector), Pointer{
		Detector: detector, Release: before.Release, By: c.By, Reason: c.Reason,
		Below: before.Below, RolledBack: now.Release,
	}, now.head)
}

// Before returns the pointer that a rollback from p returns to, or
// [ErrNoPrevious]. Where that one cannot be read, it is the newest before it that
// can.
func (r *Registry) Before(ctx context.Context, p Pointer) (Pointer, error) {
	if p.Below == 0 {
		return Pointer{}, fmt.Errorf("%s is the first release of %s: %w", text.Short(p.Release), p.Detector, ErrNoPrevious)
	}
	all, err := r.History(ctx, p.Detector)
	if err != nil {
		return Pointer{}, err
	}
	for _, h := range all {
		if h.Revision <= p.Below && h.Revision < p.Revision {
			return h, nil
		}
	}
	return Pointer{}, fmt.Errorf("the history of %s no longer reaches back: %w", p.Detector, ErrNoPrevious)
}

// SetShadow has a candidate score alongside the active release; an empty digest
// ends it.
func (r *Registry) SetShadow(ctx context.Context, detector, digest string, c Change) error {
	if digest == "" {
		if err := r.kv.Delete(ctx, shadowKey(detector)); err != nil {
			return fmt.Errorf("end the shadow release of %s: %w", detector, err)
		}
		return nil
	}
	data, err := json.Marshal(Pointer{Detector: detector, Release: digest, PromotedAt: time.Now().UTC(), By: c.By, Reason: c.Reason})
	if err != nil {
		return err
	}
	return r.exclusively(ctx, func(ctx context.Context) error {
		if err := r.check(ctx, digest); err != nil {
			return err
		}
		if _, err := r.kv.Put(ctx, shadowKey(detector), data); err != nil {
			return fmt.Errorf("set the shadow release of %s: %w", detector, err)
		}
		return nil
	})
}

// write is the compare-and-set: rev is the revision that was read, 0 for none.
func (r *Registry) write(ctx context.Context, key string, p Pointer, rev uint64) (Pointer, error) {
	p.PromotedAt = time.Now().UTC()
	var err error
	if p.Revision, err = r.points.Put(ctx, key, p, rev); kv.Conflict(err) {
		err = ErrConflict
	}
	p.head = p.Revision
	if err != nil {
		return Pointer{}, fmt.Errorf("point %s to release %s: %w", key, text.Short(p.Release), err)
	}
	return p, nil
}

// check says whether a release is in the store, whole.
func (r *Registry) check(ctx context.Context, digest string) error {
	if !envelope.IsDigest(digest) {
		return fmt.Errorf("release %q is not a sha256: %w", digest, ErrNoRelease)
	}
	raw, err := r.manifest(ctx, digest)
	if err != nil {
		return err
	}
	files, err := envelope.Parse(raw)
	if err != nil {
		return fmt.Errorf("release %s: %w", text.Short(digest), err)
	}
	for _, f := range files {
		info, err := r.blobs.GetInfo(ctx, f.SHA256)
		if err != nil {
			return fmt.Errorf("%s of release %s: %w", f.Name, text.Short(digest), err)
		}
		if int64(info.Size) != f.Size || storedDigest(info) != f.SHA256 {
			return fmt.Errorf("%s of release %s has %d bytes of sha256 %s, the manifest says %d: %w", f.Name, text.Short(digest), info.Size, text.Short(storedDigest(info)), f.Size, errReplaced)
		}
		if err := r.complete(ctx, info); err != nil {
			return fmt.Errorf("%s of release %s: %w", f.Name, text.Short(digest), err)
		}
	}
	return nil
}

// History returns a detector's pointers, newest first, as far as the bucket
// remembers.
func (r *Registry) History(ctx context.Context, detector string) ([]Pointer, error) {
	entries, err := r.points.History(ctx, activeKey(detector))
	if err != nil {
		return nil, fmt.Errorf("read the releases' history of %s: %w", detector, err)
	}
	var all []Pointer
	for _, e := range entries {
		all = append(all, pointerOf(e))
	}
	return all, nil
}

// Pointers returns the active releases, and the candidates that score
// alongside, by detector. Entries that cannot be read are reported in bad, and
// cost their detector only what was written there.
func (r *Registry) Pointers(ctx context.Context) (active, shadow map[string]Pointer, bad []Bad, err error) {
	entries, bad, err := r.points.List(ctx)
	if err != nil {
		return nil, nil, nil, fmt.Errorf("list active releases: %w", err)
	}
	active, shadow = map[string]Pointer{}, map[string]Pointer{}
	for _, e := range entries {
		into := active
		if strings.HasPrefix(e.Key, "shadow/") {
			into = shadow
		}
		into[e.Value.Detector] = pointerOf(e)
	}
	return active, shadow, bad, nil
}

// Bad is an entry that cannot be read.
type Bad = kv.Bad

// Forget removes a detector's pointers; its releases become collectable.
func (r *Registry) Forget(ctx context.Context, detector string) error {
	for _, k := range []string{activeKey(detector), shadowKey(detector)} {
		if err := r.kv.Purge(ctx, k); err != nil {
			return fmt.Errorf("forget the releases of %s: %w", detector, err)
		}
	}
	return nil
}

// Watch calls changed when it has begun to watch, and whenever a pointer may
// have changed since, until ctx ends.
func (r *Registry) Watch(ctx context.Context, changed func()) error {
	return kv.Changes(ctx, r.kv, changed)
}

// Pin keeps a release from being collected; Unpin lets it go.
func (r *Registry) Pin(ctx context.Context, digest, by string) error {
	return r.exclusively(ctx, func(ctx context.Context) error {
		if err := r.check(ctx, digest); err != nil {
			return err
		}
		if _, err := r.kv.PutString(ctx, pinKey(digest), by); err != nil {
			return fmt.Errorf("pin release %s: %w", text.Short(digest), err)
		}
		return nil
	})
}

// Unpin is the opposite of Pin.
func (r *Registry) Unpin(ctx context.Context, digest string) error {
	if err := r.kv.Purge(ctx, pinKey(digest)); err != nil {
		return fmt.Errorf("unpin release %s: %w", text.Short(digest), err)
	}
	return nil
}

// annotate sets Active, of a detector or, with an empty name, of any, and Pinned.
func (r *Registry) annotate(ctx context.Context, all []Release, detector string) ([]Release, error) {
	keys, err := kv.Keys(ctx, r.kv)
	if err != nil {
		return nil, err
	}
	pointers, _, _, err := r.Pointers(ctx)
	if err != nil {
		return nil, err
	}
	active, pinned := map[string]bool{}, map[string]bool{}
	for _, p := range pointers {
		if detector == "" || p.Detector == detector {
			active[p.Release] = true
		}
	}
	for _, k := range keys {
		if d, ok := strings.CutPrefix(k, "pin/"); ok {
			pinned[d] = true
		}
	}
	for i := range all {
		all[i].Active, all[i].Pinned = active[all[i].Digest], pinned[all[i].Digest]
	}
	return all, nil
}
