package training

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"time"

	"github.com/nearmiss/nearmiss/bank"
	"github.com/nearmiss/nearmiss/inference/release"
)

// Readjustment says how a release is to decide otherwise.
type Readjustment struct {
	Derivation

	// K is the number of neighbours in a score, Alpha the false-alarm rate, 0..1.
	// Where the held-out normals cannot promise it, the smallest that they can is
	// taken, with a warning.
	K     int
	Alpha float64
}

// readjusted is the provenance of a readjusted release.
type readjusted struct {
	Tool      string          `json:"tool,omitempty"`
	Readjusts string          `json:"readjusts"` // digest of the release that was readjusted
	K         int             `json:"k"`
	Alpha     float64         `json:"alpha"`
	Before    json.RawMessage `json:"before,omitempty"`
}

// ErrUnchanged: the release decides as it is asked to.
var ErrUnchanged = errors.New("the release decides so already")

// ErrCannotReadjust: the release does not keep what it takes; train anew.
var ErrCannotReadjust = errors.New("the release does not keep the held-out normals that it takes: train anew")

// Readjust writes a release with the same model and bank that decides with
// another number of neighbours, or another false-alarm rate, without training:
// the normals that were held out are scored anew. It fails with ErrUnchanged
// where there is nothing to change.
func Readjust(ctx context.Context, x Readjustment) (*Result, error) {
	start := time.Now()
	d, err := x.open(ctx)
	if err != nil {
		return nil, err
	}
	defer d.Close()
	b, c := d.Bank(), d.Bank().Calibration()
	if c == nil || x.K != b.K() && len(d.Info().Parts) > 1 {
		return nil, fmt.Errorf("readjust release %s: %w", x.Release, ErrCannotReadjust)
	}
	alpha := max(x.Alpha, c.SmallestAlpha())
	if x.K == b.K() && alpha == c.Alpha() {
		return nil, fmt.Errorf("readjust release %s: %w", x.Release, ErrUnchanged)
	}
	if _, err := b.Readjust(ctx, x.K, alpha); errors.Is(err, bank.ErrNoHeldOut) {
		return nil, fmt.Errorf("readjust release %s: %w", x.Release, ErrCannotReadjust)
	} else if err != nil {
		return nil, err
	}
	known, err := release.ReadNormals(x.Release)
	if err != nil {
		return nil, err
	}
	thumbs, err := keptThumbnails(x.Release, x.NoImages)
	if err != nil {
		return nil, err
	}
	rel := d.Release()
	res, err := rewrite(ctx, d, x.Out, known, thumbs, x.NoImages, readjusted{Tool: x.Tool, Readjusts: rel.Digest, K: x.K, Alpha: alpha, Before: rel.Manifest.Training})
	if err != nil {
		return nil, err
	}
	res.Seconds = time.Since(start).Seconds()
	if x.Alpha < alpha {
		res.warn("%d held-out normals can promise no false-alarm rate below %.3g %%, and that is what the threshold promises", c.Len(), 100*alpha)
	}
	if asked := max(x.Alpha, alpha); res.Alpha > asked {
		res.warn("the held-out normals resemble one another and are worth about %s: no false-alarm rate below %.2g %% can be promised",
			plural(int(math.Round(b.Calibration().Worth())), "independent one"), 100*res.Alpha)
	}
	return res, nil
}
