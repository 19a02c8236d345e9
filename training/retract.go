package training

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/nearmiss/nearmiss/inference"
	"github.com/nearmiss/nearmiss/inference/release"
)

// Retraction says which normals leave the bank of a release.
type Retraction struct {
	Derivation

	// Names says by an image's name whether it leaves.
	Names func(name string) bool
}

// retracted is the provenance of a release without some normals.
type retracted struct {
	Tool     string          `json:"tool,omitempty"`
	Retracts string          `json:"retracts"` // digest of the release that they were in
	Removed  int             `json:"removed"`  // normals
	Before   json.RawMessage `json:"before,omitempty"`
}

var (
	// ErrNotThere: none of the images is in the bank.
	ErrNotThere = errors.New("none of the images is in the release")
	// ErrNeeded: too few images would be left.
	ErrNeeded = errors.New("too few images would be left in the bank: add others and train anew")
)

// Retract writes a release with the same model and without some normals in its
// bank, and its thumbnails, without training: the opposite of Extend. Without
// entries that were there when it was calibrated the scores of normals rise; a
// release of one part is calibrated anew, one of several says so.
func Retract(ctx context.Context, x Retraction) (*Result, error) {
	start := time.Now()
	d, err := x.open(ctx)
	if err != nil {
		return nil, err
	}
	defer d.Close()
	known, err := release.ReadNormals(x.Release)
	if err != nil {
		return nil, err
	}
	thumbs, err := keptThumbnails(x.Release, x.NoImages)
	if err != nil {
		return nil, err
	}
	gone := map[uint64]bool{}
	held := 0
	var left []Normal
	for _, n := range known {
		switch {
		case !x.Names(n.Name):
			left = append(left, n)
		case n.Use == UsedInBank:
			gone[n.ID] = true
		case n.Use == UsedToHold: // calibration has been done with it
			held++
			left = append(left, n)
		}
	}
	// An image that came twice stays for the sake of its other name.
	kept := left[:0]
	for _, n := range left {
		if n.Use == NotUsedTwice {
			for _, twin := range known {
				if twin.SHA256 == n.SHA256 && gone[twin.ID] {
					delete(gone, twin.ID)
					n.ID, n.Use = twin.ID, UsedInBank
					break
				}
			}
		}
		kept = append(kept, n)
	}
	if len(gone) == 0 {
		return nil, fmt.Errorf("retract from release %s: %w", x.Release, ErrNotThere)
	}
	if release.Originals(d.Bank().IDs())-len(gone) < max(2, d.Bank().K()) {
		return nil, fmt.Errorf("retract %d images from release %s: %w", len(gone), x.Release, ErrNeeded)
	}
	for _, p := range d.Parts() {
		if err := leave(p, gone); err != nil {
			return nil, fmt.Errorf("retract from release %s: %w", x.Release, err)
		}
	}
	one := len(d.Info().Parts) == 1
	if one {
		if _, err := d.Bank().Recalibrate(ctx); err != nil {
			return nil, fmt.Errorf("retract from release %s: %w", x.Release, err)
		}
	}
	for id := range gone {
		delete(thumbs, id)
	}
	rel := d.Release()
	res, err := rewrite(ctx, d, x.Out, kept, thumbs, x.NoImages, retracted{Tool: x.Tool, Retracts: rel.Digest, Removed: len(gone), Before: rel.Manifest.Training})
	if err != nil {
		return nil, err
	}
	res.Seconds = time.Since(start).Seconds()
	if !one {
		res.warn("the threshold stays as it was without %s: where those were there when it was calibrated, it may be exceeded a little more often until the next training",
			plural(len(gone), "image"))
	}
	if held > 0 {
		res.warn("%s stays in the calibration, which was done with it: train anew", plural(held, "retracted image"))
	}
	return res, nil
}

// leave takes images out of the bank of one part.
func leave(p inference.Part, gone map[uint64]bool) error {
	for _, id := range p.Bank.IDs() {
		image := id
		if p.About.IsPatch() {
			image = release.ImageOf(id)
		}
		if gone[release.OriginalOf(image)] {
			if err := p.Bank.Remove(id); err != nil {
				return err
			}
		}
	}
	return nil
}
