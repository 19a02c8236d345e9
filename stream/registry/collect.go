package registry

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/nearmiss/nearmiss/inference/release/envelope"
	"github.com/nearmiss/nearmiss/stream/internal/kv"
	"github.com/nearmiss/nearmiss/stream/internal/object"
	"github.com/nearmiss/nearmiss/stream/internal/text"
)

// CollectOptions says what a collection may remove.
type CollectOptions struct {
	// Keep is how many releases of a detector stay for rollback, counted from
	// the newest pointers backwards, besides those that are active, shadow or
	// pinned. Default 5; negative: none.
	Keep int
	// Grace protects what is younger: a release may be on its way into the
	// store. Default an hour; negative: none.
	Grace time.Duration
	// DryRun removes nothing and reports what would go.
	DryRun bool
}

// Collected is what a collection removed.
type Collected struct {
	Releases []string `json:"releases"` // digests
	Files    int      `json:"files"`    // that no release names any more
	Chunks   int      `json:"chunks"`   // of uploads that never ended
	Bytes    uint64   `json:"bytes"`    // of the files
	Kept     int      `json:"kept"`     // releases that stay
}

// Collect removes releases that nobody can need any more, and files and chunks
// that belong to no release. It never removes what is active, shadow, pinned,
// or young.
func (r *Registry) Collect(ctx context.Context, o CollectOptions) (out Collected, err error) {
	err = r.exclusively(ctx, func(ctx context.Context) error {
		out, err = r.collect(ctx, o)
		return err
	})
	return out, err
}

func (r *Registry) collect(ctx context.Context, o CollectOptions) (Collected, error) {
	o.Keep = cmp.Or(o.Keep, 5)
	o.Grace = cmp.Or(o.Grace, time.Hour)
	young := time.Now().Add(-max(o.Grace, 0))
	var out Collected

	infos, err := r.list(ctx)
	if err != nil {
		return out, err
	}
	keep, err := r.needed(ctx, o.Keep)
	if err != nil {
		return out, err
	}
	named := map[string]bool{} // files that a release names
	for _, i := range infos {
		if i.Metadata[metaKind] != kindManifest {
			continue
		}
		if !keep[i.Name] && i.ModTime.Before(young) {
			out.Releases = append(out.Releases, i.Name)
			if !o.DryRun {
				if err := r.blobs.Delete(ctx, i.Name); err != nil && !errors.Is(err, jetstream.ErrObjectNotFound) {
					return out, fmt.Errorf("collect release %s: %w", text.Short(i.Name), err)
				}
			}
			continue
		}
		out.Kept++
		raw, err := r.manifest(ctx, i.Name)
		if errors.Is(err, ErrCorrupt) || errors.Is(err, ErrBadManifest) || errors.Is(err, ErrNoRelease) {
			continue // it cannot be loaded either: no file is needed for its sake
		}
		if err != nil {
			return out, fmt.Errorf("collect: cannot find which files release %s needs: %w", text.Short(i.Name), err)
		}
		files, err := envelope.Parse(raw)
		if err != nil {
			continue
		}
		for _, f := range files {
			named[f.SHA256] = true
		}
	}
	for _, i := range infos {
		if i.Metadata[metaKind] != kindFile || named[i.Name] || !i.ModTime.Before(young) {
			continue
		}
		out.Files++
		out.Bytes += i.Size
		if !o.DryRun {
			if err := r.blobs.Delete(ctx, i.Name); err != nil && !errors.Is(err, jetstream.ErrObjectNotFound) {
				return out, fmt.Errorf("collect file %s: %w", text.Short(i.Name), err)
			}
		}
	}
	if out.Chunks, err = object.Orphans(ctx, r.js, r.cfg.ArtifactsBucket, young, o.DryRun); err != nil {
		return out, fmt.Errorf("collect: %w", err)
	}
	return out, nil
}

// needed returns the releases that must stay.
func (r *Registry) needed(ctx context.Context, keep int) (map[string]bool, error) {
	need := map[string]bool{}
	active, shadow, _, err := r.Pointers(ctx)
	if err != nil {
		return nil, err
	}
	for _, p := range shadow {
		need[p.Release] = true
	}
	for detector, p := range active {
		need[p.Release] = true
		history, err := r.History(ctx, detector)
		if err != nil {
			return nil, err
		}
		left := max(keep, 0)
		seen := map[string]bool{p.Release: true}
		for _, h := range history {
			if !seen[h.Release] && left > 0 {
				seen[h.Release], need[h.Release] = true, true
				left--
			}
		}
	}
	keys, err := kv.Keys(ctx, r.kv)
	if err != nil {
		return nil, err
	}
	for _, k := range keys {
		if d, ok := strings.CutPrefix(k, "pin/"); ok {
			need[d] = true
		}
	}
	return need, nil
}
