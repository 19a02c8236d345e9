package training

import (
	"cmp"
	"context"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"runtime"
	"slices"

	"golang.org/x/sync/errgroup"

	"github.com/nearmiss/nearmiss/bank"
	"github.com/nearmiss/nearmiss/inference"
	"github.com/nearmiss/nearmiss/inference/imaging"
	"github.com/nearmiss/nearmiss/inference/release"
	"github.com/nearmiss/nearmiss/training/holdout"
)

// worth is what the normals are worth, where that is less than their number.
type worth struct {
	Normals int `json:"normals"` // that differ
	// Pictures is how many independent pictures would be as different as these
	// normals are.
	Pictures float64 `json:"pictures"`
	// HeldOut is how many independent held-out normals would tell as much, 0:
	// each of them counts.
	HeldOut float64 `json:"held_out,omitempty"`
	// Alike is how many frames in a row say as much as one.
	Alike float64 `json:"alike,omitempty"`
	// Copies show the same as another normal; they count once, unless too few
	// different ones would be left.
	Copies int  `json:"copies,omitempty"`
	Kept   bool `json:"copies_kept,omitempty"`
}

// fewestDifferent normals are left when copies are put aside, or none is.
const fewestDifferent = 8

// halves are the usable normals, at places in of: those of the bank, and those that
// are held out.
type halves struct {
	train, held []int
	// folded: those of the bank calibrate, too, by banks of the others.
	folded bool
	worth  *worth // nil: each normal counts
	crop   crop
}

// crop is how much of the normals the model sees.
type crop struct {
	share         float64 // of a normal's pixels, the median
	width, height int     // of such a normal
}

// smallShare of a picture, by area: where the model sees less of it a warning says so.
const smallShare = 0.8

// cropOf measures the shapes of normals.
func cropOf(p imaging.Preprocess, shapes []imaging.Header) crop {
	var all []crop
	for _, h := range shapes {
		x0, y0, x1, y1 := p.Region(h.Width, h.Height)
		all = append(all, crop{(x1 - x0) * (y1 - y0) / float64(h.Width) / float64(h.Height), h.Width, h.Height})
	}
	if len(all) == 0 || p.View != nil && p.View.Region != nil { // what is outside is not to be seen
		return crop{share: 1}
	}
	slices.SortFunc(all, func(a, b crop) int { return cmp.Compare(a.share, b.share) })
	return all[len(all)/2]
}

// split divides the usable normals into those of the bank and those held out, and
// puts copies aside.
func split(ctx context.Context, p Plan, x *embedded) (halves, error) {
	var out halves
	copies, shapes, err := x.copies(ctx, p.Data)
	if err != nil {
		return out, err
	}
	out.crop = cropOf(x.b.model.e.Preprocess(), shapes)
	w := &worth{Normals: len(x.of)}
	for _, first := range copies {
		if first >= 0 {
			w.Copies++
		}
	}
	different := len(x.of) - w.Copies
	if w.Copies > 0 && different >= max(fewestDifferent, 2*(p.Score.K+1)) {
		x.leave(copies)
		w.Normals = len(x.of)
	} else {
		w.Kept = w.Copies > 0
	}

	shots := make([]holdout.Shot, len(x.of))
	for j, i := range x.of {
		m := x.images[i]
		shots[j] = holdout.Shot{Name: filepath.ToSlash(m.Name), Camera: m.Camera, At: m.At}
	}
	s := holdout.Draw(shots, x.n.part(x.b.model.parts[0]), holdout.Options{Share: p.Calibration.HeldOut, Need: bank.HeldOutFor(p.Calibration.Alpha), K: p.Score.K, Seed: p.Seed})
	if s != nil && len(s.Train) < p.Score.K {
		s = nil
	}
	if s != nil {
		out.train, out.held = s.Train, s.Held
		w.Pictures, w.HeldOut, w.Alike = s.Worth, min(s.HeldWorth, float64(len(s.Held))), s.Alike
		for _, j := range s.Near {
			x.all[x.of[j]].Use = NotUsedNear
		}
	} else {
		out.folded = p.folds() && len(x.b.scored()) > 1 && !w.Kept
		if out.train, out.held, err = Split(len(x.of), p.Calibration.HeldOut, p.Score.K, p.Seed); err != nil {
			return out, err
		}
		w.Pictures = float64(len(x.of))
	}
	if w.Kept && float64(different) < w.Pictures {
		w.Pictures = float64(different)
		if held := max(1, p.Calibration.HeldOut*w.Pictures); w.HeldOut == 0 || held < w.HeldOut {
			w.HeldOut = min(held, float64(len(out.held)))
		}
	}
	if s != nil || w.Copies > 0 {
		out.worth = w
	}
	return out, nil
}

// copies are, for each usable normal, the place in of of the one that it shows
// the same as, or -1; shapes tell their sizes.
func (x *embedded) copies(ctx context.Context, d Data) (copies []int, shapes []imaging.Header, err error) {
	thumbs := make([]holdout.Thumb, len(x.of))
	shapes = make([]imaging.Header, len(x.of))
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(runtime.GOMAXPROCS(0))
	for j, i := range x.of {
		g.Go(func() error {
			if err := ctx.Err(); err != nil {
				return err
			}
			b, err := x.images[i].Read()
			if err != nil {
				return fmt.Errorf("read normal image %s: %w", x.images[i].Name, err)
			}
			if shapes[j], err = imaging.Inspect(b, d.Limits); err != nil {
				return fmt.Errorf("normal image %s: %w", x.images[i].Name, err)
			}
			m, err := d.View.Decode(b, d.Limits)
			if err != nil {
				return fmt.Errorf("normal image %s: %w", x.images[i].Name, err)
			}
			thumbs[j] = holdout.ThumbOf(m)
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return nil, nil, err
	}
	return holdout.Copies(thumbs), shapes, nil
}

// leave puts copies aside.
func (x *embedded) leave(copies []int) {
	var of, kept []int
	for j, i := range x.of {
		if first := copies[j]; first >= 0 {
			x.all[i].Use, x.all[i].Reason = NotUsedTwice, "shows the same as "+x.all[x.of[first]].Name
			continue
		}
		of, kept = append(of, i), append(kept, j)
	}
	replay, vary := x.n.replay, x.n.vary // of x.of as it is then
	n := x.n.at(kept)
	n.replay, n.vary = replay, vary
	x.of, x.n = of, n
}

// rest notes in the main bank and the result what the held-out normals are worth.
func (h halves) rest(main *bank.Bank, c Calibration, res *Result) {
	if s := h.crop; s.share < smallShare {
		res.warn("the model sees %.0f %% of a picture of %d×%d pixels, from its middle, and finds no defect elsewhere: let it see all of it with --see %s, or name the part that counts as the detector's region",
			100*s.share, s.width, s.height, SeeWhole)
	}
	w := h.worth
	if w == nil {
		return
	}
	res.Worth = w.Pictures
	if w.HeldOut > 0 {
		main.Rest(w.HeldOut, w.Alike)
	}
	wanted := res.Alpha
	res.Alpha = main.Calibration().Promise()
	res.Smallest = max(res.Smallest, 1/(main.Calibration().Worth()+1))
	narrow := w.Pictures < 0.8*float64(w.Normals) || w.Kept
	if !narrow {
		return
	}
	text := fmt.Sprintf("your %d normals are worth about %s", w.Normals, plural(int(math.Round(w.Pictures)), "different picture"))
	switch {
	case w.Kept && w.Alike == 0:
		text += ": the others show the same"
	default:
		text += fmt.Sprintf(": any %.0f in a row resemble one another, so whole stretches were held out", math.Ceil(w.Alike))
	}
	if res.Alpha > wanted {
		text += fmt.Sprintf("; the threshold was set for false alarms in %.3g %% of normal pictures, and no less than %.2g %% can be promised", 100*wanted, 100*res.Alpha)
		if w.Alike > 0 {
			need := float64(bank.HeldOutFor(wanted)) * float64(len(h.held)) / w.HeldOut / c.HeldOut
			text += fmt.Sprintf(". Learn from a longer time: about %d such frames, or as many as now, but only one in %.0f", int(math.Ceil(need/50)*50), math.Ceil(need/float64(w.Normals)))
		} else {
			text += ". Learn from pictures that differ as much as normal ones may: more parts, other light, a longer time"
		}
	}
	res.warn("%s", text)
}

func plural(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}

// preflight is what is bound to fail, whatever the images show: it is said before
// hours of work and not after them.
func (p Plan) preflight() error {
	if _, err := os.Lstat(p.Out); err == nil {
		return fmt.Errorf("write release %s: %w", p.Out, release.ErrExists)
	}
	if p.Model.Precision != PrecisionAuto {
		if err := inference.CheckPrecision(p.Model.Backbone, p.Model.Precision, p.Host.Device); err != nil {
			return fmt.Errorf("%w: %w", ErrPlan, err)
		}
	}
	if err := p.Host.Device.Usable(); err != nil {
		return err
	}
	n, share := len(p.Data.Normals), p.Calibration.HeldOut
	if _, _, err := Split(n, share, p.Score.K, p.Seed); err != nil {
		return err
	}
	if p.folds() {
		share = 1
	}
	// Frames that resemble one another may have up to twice as many held out.
	if most := heldOutOf(n, min(2*share, 0.5)); !p.Calibration.Settle && p.Calibration.Alpha < bank.SmallestAlpha(max(most, heldOutOf(n, share))) {
		return p.Calibration.outOfReach(heldOutOf(n, share), share)
	}
	return nil
}

// folds says whether normals of the bank may calibrate: where a share to be held out
// was asked for they do not, nor where a network was tuned to them, nor where
// the bank can calibrate itself anew, which that of one part does.
func (p Plan) folds() bool {
	parts := slices.Concat(p.Score.Groups...)
	return p.Calibration.folds && p.Method == KNN && len(parts) != 1
}

// outOfReach says that so many normals, which are a share of all, cannot promise what
// is asked.
func (c Calibration) outOfReach(n int, share float64) error {
	return fmt.Errorf("%d normals that calibrate cannot promise a false-alarm rate of %g, the smallest is %.3g: give %d different normal images, hold out more, or ask for less",
		n, c.Alpha, bank.SmallestAlpha(n), normalsFor(c.Alpha, share))
}
