package training

import (
	"errors"
	"io"
	"math"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/nearmiss/nearmiss/inference"
	"github.com/nearmiss/nearmiss/inference/imaging"
	"github.com/nearmiss/nearmiss/inference/release"
)

func TestCopiesFitIntoTheBank(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		normals int
		turned  imaging.Symmetry
		tiles   imaging.Tiles
		light   string
		blurred string
		want    int
	}{
		{20, imaging.NoSymmetry, imaging.Tiles{}, LightUsual, SharpnessUsual, 0},
		{20, imaging.NoSymmetry, imaging.Tiles{}, LightVaried, SharpnessUsual, 2},
		{20, imaging.NoSymmetry, imaging.Tiles{}, LightUsual, SharpnessWhole, 2},
		{20, imaging.Flip, imaging.Tiles{}, LightUsual, SharpnessUsual, 1},
		{20, imaging.Dihedral, imaging.Tiles{}, LightVaried, SharpnessUsual, 9},
		{20, imaging.Dihedral, imaging.Tiles{}, LightVaried, SharpnessWhole, 11},
		{20, imaging.Dihedral, imaging.Tiles{Rows: 2, Columns: 2}, LightVaried, SharpnessUsual, 9},
		{20, imaging.Dihedral, imaging.Tiles{Rows: 1, Columns: 2}, LightVaried, SharpnessUsual, 5},
		{400, imaging.Dihedral, imaging.Tiles{}, LightUsual, SharpnessUsual, 3},
		{500, imaging.NoSymmetry, imaging.Tiles{}, LightVaried, SharpnessWhole, 3},
		{900, imaging.Dihedral, imaging.Tiles{}, LightVaried, SharpnessUsual, 2},
		{1500, imaging.Dihedral, imaging.Tiles{}, LightVaried, SharpnessWhole, 0},
	} {
		if got := copyingOf(c.normals, Model{found: found{turned: c.turned, tiles: c.tiles}}, c.light, c.blurred); got.count() != c.want {
			t.Errorf("%d normals, %q, light %s, sharpness %s: %+v, want %d copies", c.normals, c.turned, c.light, c.blurred, got, c.want)
		}
	}
	seen := map[int]bool{}
	for _, way := range orientations(imaging.Dihedral) {
		seen[way] = true
	}
	if len(seen) != imaging.Dihedral.Count()-1 || seen[0] {
		t.Errorf("turns %v", orientations(imaging.Dihedral))
	}
}

// A normal leaves the banks with its copies, and one that joins late is no copy of
// another.
func TestCopiesLeaveWithTheirNormal(t *testing.T) {
	t.Parallel()
	images := squares(t, 21)
	dir := t.TempDir()
	first, more, less := filepath.Join(dir, "first"), filepath.Join(dir, "more"), filepath.Join(dir, "less")
	had, err := Fit(t.Context(), Plan{
		Detector: "squares", Out: first, Seed: 5, Data: Data{Normals: images[:20]}, Model: Model{Backbone: smallBackbone(t), Turned: "dihedral"},
		Calibration: Calibration{Settle: true}, Score: Score{Groups: [][]Part{{classPart, patchPart}}, Coreset: 400},
	})
	if err != nil {
		t.Fatal(err)
	}
	entries := func(dir string) (d *inference.Detector, ids []uint64) {
		_, d = provenanceOf(t, dir)
		ids = d.Bank().IDs()
		slices.Sort(ids)
		return d, ids
	}
	d, before := entries(first)
	if len(before) != 8*had.Bank {
		t.Fatalf("%d entries of %d normals and seven copies of each", len(before), had.Bank)
	}
	b, err := images[20].Read()
	if err != nil {
		t.Fatal(err)
	}
	s, err := d.Score(t.Context(), [][]byte{b})
	if err != nil {
		t.Fatal(err)
	}
	for i, n := range s[0].Nearest { // normals, each once, in order
		if n.ID >= 20 || i > 0 && (n.Distance < s[0].Nearest[i-1].Distance || n.ID == s[0].Nearest[i-1].ID) {
			t.Errorf("nearest %+v", s[0].Nearest)
		}
	}
	res, err := Extend(t.Context(), Extension{Derivation: Derivation{Release: first, Out: more}, Normals: images[20:]})
	if err != nil || res.Bank != had.Bank+1 {
		t.Fatalf("%+v, %v", res, err)
	}
	if _, ids := entries(more); len(ids) != len(before)+1 || !slices.Contains(ids, 20) {
		t.Errorf("with another normal: %v", ids)
	}
	known, err := release.ReadNormals(first)
	if err != nil {
		t.Fatal(err)
	}
	gone := known[slices.IndexFunc(known, func(n Normal) bool { return n.Use == UsedInBank })]
	res, err = Retract(t.Context(), Retraction{Derivation: Derivation{Release: first, Out: less}, Names: func(n string) bool { return n == gone.Name }})
	if err != nil || res.Bank != had.Bank-1 {
		t.Fatalf("%+v, %v", res, err)
	}
	d, ids := entries(less)
	if len(ids) != len(before)-8 || d.Release().Manifest.Bank.Images() != res.Bank {
		t.Errorf("without %s: %d entries of %d normals", gone.Name, len(ids), d.Release().Manifest.Bank.Images())
	}
	for _, p := range d.Parts() {
		for _, id := range p.Bank.IDs() {
			if p.About.IsPatch() {
				id = release.ImageOf(id)
			}
			if release.OriginalOf(id) == gone.ID {
				t.Fatalf("part %s has an entry of what was retracted", p.About.Name)
			}
		}
	}
	// As many entries as neighbours are no normals.
	most := func(name string) bool {
		return name != gone.Name && !slices.ContainsFunc(known, func(n Normal) bool { return n.Name == name && n.Use != UsedInBank })
	}
	if _, err := Retract(t.Context(), Retraction{Derivation: Derivation{Release: first, Out: filepath.Join(dir, "one")}, Names: most}); !errors.Is(err, ErrNeeded) {
		t.Errorf("with one normal and its copies left: %v", err)
	}
}

func TestIDsOfCopies(t *testing.T) {
	t.Parallel()
	const image = 1<<40 - 1
	for _, copy := range []int{0, 1, 255} {
		id := release.CopyID(image, copy)
		patch := release.PatchID(id, 1<<16-1)
		if release.OriginalOf(id) != image || release.ImageOf(patch) != id || copy == 0 && id != image {
			t.Errorf("copy %d has id %x, its patch %x", copy, id, patch)
		}
	}
	if n := release.Originals([]uint64{3, release.CopyID(3, 1), release.CopyID(3, 2), image, release.CopyID(image, 1)}); n != 2 {
		t.Errorf("%d normals, want 2", n)
	}
}

// scoreInLight is a score that knows whether it was closed.
type scoreInLight struct {
	choice string
	closed *[]string
}

func (s scoreInLight) Close() error {
	*s.closed = append(*s.closed, s.choice)
	return nil
}

func TestWhatIsDoneAboutLight(t *testing.T) {
	t.Parallel()
	broken := errors.New("broken")
	for name, c := range map[string]struct {
		want                string
		usual, even, varied float64
		blind               string // the one that sees less
		choice              string
		closed              []string
	}{
		"steady":              {LightAuto, 0.1, 0, 0, "", LightUsual, nil},
		"evened out it holds": {LightAuto, 0.3, 0.1, 0, "", LightEven, []string{LightUsual}},
		"not by much":         {LightAuto, 0.3, 0.25, 0.15, "", LightVaried, []string{LightEven, LightUsual}},
		"nothing helps":       {LightAuto, 0.3, 0.25, 0.29, "", LightUsual, []string{LightEven, LightVaried}},
		"each a little":       {LightAuto, 0.9, 0.5, 0.4, "", LightEven, []string{LightUsual, LightVaried}},
		"too few to say":      {LightAuto, math.NaN(), 0, 0, "", LightUsual, nil},
		"asked for":           {LightVaried, 0, 0, 0.5, LightVaried, LightVaried, nil},
		"even fails":          {LightAuto, 0.3, -1, 0, "", "", []string{LightUsual}},
		"even is blind":       {LightAuto, 0.9, 0, 0.4, LightEven, LightVaried, []string{LightEven, LightUsual}},
		"usual is blind":      {LightAuto, 0.9, 0, 0, LightUsual, LightEven, []string{LightUsual}},
	} {
		var closed []string
		best, report, err := inLight(c.want, func(choice string) (io.Closer, effect, error) {
			alarms := map[string]float64{LightUsual: c.usual, LightEven: c.even, LightVaried: c.varied}[choice]
			if alarms < 0 {
				return nil, effect{}, broken
			}
			found := 0.8
			if choice == c.blind {
				found = 0.7
			}
			return scoreInLight{choice, &closed}, effect{alarms, math.NaN(), found}, nil
		})
		if (err != nil) != (c.choice == "") || !cmp.Equal(closed, c.closed) {
			t.Errorf("%s: closed %v, %v", name, closed, err)
			continue
		}
		if err == nil && (report.Choice != c.choice || best.(scoreInLight).choice != c.choice || slices.Contains(closed, c.choice)) {
			t.Errorf("%s: %+v, %+v", name, report, best)
		}
		if told := err == nil && strings.Contains(report.String(), "harder to see"); told != (c.blind == LightEven) {
			t.Errorf("%s: %s", name, report)
		}
	}
}
