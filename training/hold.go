package training

import (
	"context"
	"fmt"
	"math"
	"path/filepath"
	"runtime"

	"golang.org/x/sync/errgroup"

	"github.com/nearmiss/nearmiss/bank"
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

// split divides the usable normals into those of the bank and those held out.
func (f *fitting) split(ctx context.Context) error {
	copies, err := f.copies(ctx)
	if err != nil {
		return err
	}
	w := &worth{Normals: len(f.of)}
	for _, first := range copies {
		if first >= 0 {
			w.Copies++
		}
	}
	different := len(f.of) - w.Copies
	if w.Copies > 0 && different >= max(fewestDifferent, 2*(f.K+1)) {
		f.leave(copies)
		w.Normals = len(f.of)
	} else {
		w.Kept = w.Copies > 0
	}

	shots := make([]holdout.Shot, len(f.of))
	for j, i := range f.of {
		m := f.Normals[i]
		shots[j] = holdout.Shot{Name: filepath.ToSlash(m.Name), Camera: m.Camera, At: m.At}
	}
	s := holdout.Draw(shots, f.rows, holdout.Options{Share: f.HeldOut, Need: bank.HeldOutFor(f.Alpha), K: f.K, Seed: f.Seed})
	if s != nil && len(s.Train) < f.K {
		s = nil
	}
	if s != nil {
		f.train, f.held = s.Train, s.Held
		w.Pictures, w.HeldOut, w.Alike = s.Worth, min(s.HeldWorth, float64(len(s.Held))), s.Alike
		for _, j := range s.Near {
			f.all[f.of[j]].Use = NotUsedNear
		}
	} else {
		if f.train, f.held, err = Split(len(f.of), f.HeldOut, f.K, f.Seed); err != nil {
			return err
		}
		w.Pictures = float64(len(f.of))
	}
	if w.Kept && float64(different) < w.Pictures {
		w.Pictures = float64(different)
		if held := max(1, f.HeldOut*w.Pictures); w.HeldOut == 0 || held < w.HeldOut {
			w.HeldOut = min(held, float64(len(f.held)))
		}
	}
	if s != nil || w.Copies > 0 {
		f.worth = w
	}
	return nil
}

// copies are, for each usable normal, the place in of of the one that it shows
// the same as, or -1.
func (f *fitting) copies(ctx context.Context) ([]int, error) {
	looks := make([]holdout.Look, len(f.of))
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(runtime.GOMAXPROCS(0))
	for j, i := range f.of {
		g.Go(func() error {
			if err := ctx.Err(); err != nil {
				return err
			}
			b, err := f.Normals[i].Read()
			if err != nil {
				return fmt.Errorf("read normal image %s: %w", f.Normals[i].Name, err)
			}
			m, err := f.View.Decode(b, f.Limits)
			if err != nil {
				return fmt.Errorf("normal image %s: %w", f.Normals[i].Name, err)
			}
			looks[j] = holdout.LookAt(m)
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	return holdout.Copies(looks), nil
}

// leave puts copies aside.
func (f *fitting) leave(copies []int) {
	dim := len(f.rows) / len(f.of)
	var of []int
	var rows []float32
	var patches [][]float32
	for j, i := range f.of {
		if first := copies[j]; first >= 0 {
			f.all[i].Use, f.all[i].Reason = NotUsedTwice, "shows the same as "+f.all[f.of[first]].Name
			continue
		}
		of, rows = append(of, i), append(rows, f.rows[j*dim:(j+1)*dim]...)
		if f.patches.rows != nil {
			patches = append(patches, f.patches.rows[j])
		}
	}
	f.of, f.rows, f.patches.rows = of, rows, patches
}

// rest tells the main bank and the result what the held-out normals are worth.
func (f *fitting) rest(main *bank.Bank, res *Result) {
	w := f.worth
	if w == nil {
		return
	}
	res.Worth = w.Pictures
	if w.HeldOut > 0 {
		main.Rest(w.HeldOut, w.Alike)
	}
	asked := res.Alpha
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
	if res.Alpha > asked {
		text += fmt.Sprintf("; the threshold was set for false alarms in %.3g %% of normal pictures, and no less than %.2g %% can be promised", 100*asked, 100*res.Alpha)
		if w.Alike > 0 {
			need := float64(bank.HeldOutFor(asked)) * float64(len(f.held)) / w.HeldOut / f.HeldOut
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
