package training

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/nearmiss/nearmiss/bank"
	"github.com/nearmiss/nearmiss/inference"
	"github.com/nearmiss/nearmiss/inference/release"
)

// Extension says which normals join the bank of a release.
type Extension struct {
	Derivation

	// Normals join its bank, but for those whose bytes it has already.
	Normals []Image
}

// extended is the provenance of an extended release.
type extended struct {
	Tool    string          `json:"tool,omitempty"`
	Extends string          `json:"extends"` // digest of the release that was extended
	Added   int             `json:"added"`   // normals
	Before  json.RawMessage `json:"before,omitempty"`
}

// Extend writes a release with the same model and further normals in its bank,
// without training. Every part's bank grows. The calibration stays: a larger bank makes the scores of
// normals smaller, never larger, so its false-alarm rate holds as it was
// promised.
func Extend(ctx context.Context, x Extension) (*Result, error) {
	start := time.Now()
	d, err := x.open(ctx)
	if err != nil {
		return nil, err
	}
	defer d.Close()
	rel := d.Release()
	known, err := release.ReadNormals(x.Release)
	if err != nil {
		return nil, err
	}
	have := map[string]bool{}
	var next uint64
	for _, n := range known {
		if n.Use != NotUsedReject {
			have[n.SHA256] = true
		}
		next = max(next, n.ID+1)
	}
	for _, id := range d.Bank().IDs() {
		next = max(next, release.OriginalOf(id)+1)
	}

	var found []*inference.Embedding
	added, of, err := embedNormals(ctx, d.Embedder(), x.Normals, func(_ int, e *inference.Embedding) error {
		found = append(found, e)
		return nil
	}, func(int, int) {})
	if err != nil {
		return nil, err
	}
	for i := range added {
		added[i].ID = next + uint64(i)
	}
	joined := 0
	for j, i := range of {
		if have[added[i].SHA256] {
			added[i].Use = NotUsedTwice
			continue
		}
		if err := join(ctx, d.Parts(), d.Embedder().PatchOutputs(), added[i].ID, found[j]); err != nil {
			return nil, fmt.Errorf("add normal image %s to the bank: %w", added[i].Name, err)
		}
		added[i].Use = UsedInBank
		joined++
	}
	if joined == 0 {
		return nil, fmt.Errorf("extend release %s: %w", x.Release, ErrNothingNew)
	}

	thumbs, err := keptThumbnails(x.Release, x.NoImages)
	if err != nil {
		return nil, err
	}
	if thumbs != nil {
		if err := thumbs.Add(ctx, added, func(i int) ([]byte, error) { return x.Normals[i].Read() }, rel.Manifest.Model.Preprocess.View, x.Limits); err != nil {
			return nil, err
		}
	}
	res, err := rewrite(ctx, d, x.Out, slices.Concat(known, added), thumbs, x.NoImages, extended{
		Tool: x.Tool, Extends: rel.Digest, Added: joined, Before: rel.Manifest.Training,
	})
	if err != nil {
		return nil, err
	}
	res.Images, res.Seconds = len(x.Normals), time.Since(start).Seconds()
	res.count(added)
	return res, nil
}

// rewrite writes a release of a detector whose bank has changed since it was
// loaded. nil thumbs are left out.
func rewrite(ctx context.Context, d *inference.Detector, out string, normals []Normal, thumbs release.Thumbnails, noImages bool, provenance any) (*Result, error) {
	rel, b := d.Release(), d.Bank()
	m := rel.Manifest
	lines, err := release.EncodeNormals(normals)
	if err != nil {
		return nil, err
	}
	spec := inference.ReleaseSpec{
		Detector: m.Detector, Method: m.Method, Model: rel.Path(m.Model.File), Embedder: d.Embedder(), Parts: d.Parts(), Join: d.Join(),
		RandomWeights: m.Model.RandomWeights, StarterWeights: m.Model.StarterWeights, Folded: m.Calibration.Folded,
		Files:    map[string][]byte{release.NormalsName: lines},
		Training: provenance,
	}
	if thumbs != nil {
		if spec.Files[release.ThumbnailsName], err = thumbs.Archive(); err != nil {
			return nil, err
		}
	}
	for i := range spec.Parts {
		a := &spec.Parts[i].About
		if own := spec.Parts[i].Bank; own.K() != a.Bank.K {
			a.Bank.Recall, a.Bank.Excess = nil, nil
			if r := own.Report(); r.Wanted != bank.Exact {
				a.Bank.Recall, a.Bank.Excess = &r.Recall, &r.FirstExcess
			}
			// The part's own scores calibrate, or k would not have changed.
			if s := median(b.Calibration().HeldOut()); a.Scored && s > 0 && !math.IsInf(s, 0) {
				a.Scale = s
			}
		}
	}
	if spec.Check, err = keptChecks(d, noImages); err != nil {
		return nil, err
	}
	r, err := inference.WriteRelease(ctx, out, spec)
	if err != nil {
		return nil, err
	}
	now := r.Manifest
	res := &Result{
		Release: out, Digest: r.Digest, Bank: now.Bank.Images(), HeldOut: now.Calibration.HeldOut, Folded: now.Calibration.Folded,
		Alpha: now.Calibration.Alpha, Smallest: now.Calibration.SmallestAlpha, Index: string(b.Index().Kind()),
		Score: strings.Join(d.Info().Parts, "+"),
	}
	for _, p := range spec.Parts {
		if p.About.IsPatch() {
			res.Patches += p.Bank.Len()
		}
	}
	if c := now.Calibration; c.Promised > 0 {
		res.Alpha, res.Smallest = c.Promised, max(res.Smallest, 1/(c.Worth+1))
	}
	if t := now.Calibration.Threshold; t != nil {
		res.Threshold = *t
	}
	return res, nil
}

// join puts an image into the bank of every part; outputs are those of its patches.
// Of its patches those join that are farther from the bank than the coreset left
// any patch of a normal, so that the bank stays small.
func join(ctx context.Context, parts []inference.Part, outputs []string, id uint64, e *inference.Embedding) error {
	for _, p := range parts {
		a := p.About
		if !a.IsPatch() {
			if err := p.Bank.Add(id, inference.Row(a, e.Vector)); err != nil {
				return err
			}
			continue
		}
		patches := e.Patches[slices.Index(outputs, a.Output)]
		distances, err := inference.NearestDistances(ctx, p.Bank, patches)
		if err != nil {
			return err
		}
		for i, d := range distances {
			if float64(d) <= a.Radius*a.Radius {
				continue
			}
			if err := p.Bank.Add(release.PatchID(id, i), patches[i*a.Dim:(i+1)*a.Dim]); err != nil {
				return err
			}
		}
	}
	return nil
}

// ErrNothingNew: every image is in the bank already, or cannot be read.
var ErrNothingNew = errors.New("there is no new image to add")

// keptThumbnails are those of the release in dir, unless it may hold no image of
// a normal any more.
func keptThumbnails(dir string, noImages bool) (release.Thumbnails, error) {
	if noImages {
		return nil, nil
	}
	return release.ReadThumbnails(dir)
}
