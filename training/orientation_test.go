package training

import (
	"math/rand/v2"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/nearmiss/nearmiss/bank"
	"github.com/nearmiss/nearmiss/inference/imaging"
	"github.com/nearmiss/nearmiss/inference/release"
	"github.com/nearmiss/nearmiss/training/dataset"
)

// Squares that lie anywhere look the same however the picture is turned, those in
// the upper half only when it is mirrored, and those in a corner not at all.
func TestFitSeesHowNormalsLie(t *testing.T) {
	backbone := smallBackbone(t)
	for want, place := range map[imaging.Symmetry][2]int{imaging.Dihedral: {31, 31}, imaging.Flip: {31, 8}, imaging.NoSymmetry: {8, 8}} {
		plan := Plan{
			Detector:    "squares",
			Seed:        6,
			Out:         filepath.Join(t.TempDir(), "release"),
			Data:        Data{Normals: squaresIn(t, 300, place[0], place[1])},
			Model:       Model{Backbone: backbone, AutoSymmetry: true},
			Calibration: Calibration{Settle: true},
			Score:       Score{Groups: Class()},
		}
		res, err := Fit(t.Context(), plan)
		if err != nil {
			t.Fatal(err)
		}
		o := res.Orientation
		if o == nil || o.Choice != want || res.Symmetry != want || o.Normals != orientationNormals {
			t.Fatalf("squares in %v: %+v, symmetry %q", place, o, res.Symmetry)
		}
		if o.Turned > o.TurnedHigh || o.Mirrored > o.MirroredHigh || !strings.Contains(o.String(), "60 normals") {
			t.Errorf("%v", o)
		}
		prov, d := provenanceOf(t, plan.Out)
		if diff := cmp.Diff(prov.Orientation, o); diff != "" || d.Embedder().Preprocess().Symmetry != want {
			t.Errorf("in the release: %s, symmetry %q", diff, d.Embedder().Preprocess().Symmetry)
		}
		// The same release comes of a symmetry that is given, and then nothing is
		// looked at.
		given := plan
		given.Model.AutoSymmetry, given.Model.Symmetry, given.Out = false, want, filepath.Join(t.TempDir(), "given")
		same, err := Fit(t.Context(), given)
		if err != nil {
			t.Fatal(err)
		}
		if same.Threshold != res.Threshold || same.Orientation != nil {
			t.Errorf("threshold %v, and %v where the symmetry is given; %v", res.Threshold, same.Threshold, same.Orientation)
		}
	}
}

func TestAdviceOnSymmetryChangesNothing(t *testing.T) {
	plan := Plan{
		Detector:    "squares",
		Seed:        5,
		Out:         filepath.Join(t.TempDir(), "release"),
		Data:        Data{Normals: squares(t, 100)},
		Model:       Model{Backbone: smallBackbone(t), Advise: true},
		Calibration: Calibration{Settle: true},
		Score:       Score{Groups: Class()},
	}
	res, err := Fit(t.Context(), plan)
	if err != nil {
		t.Fatal(err)
	}
	if o := res.Orientation; o == nil || o.Choice != imaging.Dihedral || res.Symmetry != imaging.NoSymmetry {
		t.Errorf("%+v, symmetry %q", o, res.Symmetry)
	}
	plan.Model.AutoSymmetry, plan.Model.Symmetry = true, imaging.Flip
	if err := plan.Validate(); err == nil || !strings.Contains(err.Error(), "choose one") {
		t.Errorf("given and to be found: %v", err)
	}
}

func TestFitymiLearnsAtTheSymmetryThatItFinds(t *testing.T) {
	plan := fitymiPlan(t, 100, "warp")
	plan.Model.AutoSymmetry, plan.Tuning.Gate.Off = true, true
	if _, err := Fit(t.Context(), plan); err != nil {
		t.Fatal(err)
	}
	if _, d := provenanceOf(t, plan.Out); d.Embedder().Preprocess().Symmetry != imaging.Dihedral {
		t.Errorf("symmetry %q", d.Embedder().Preprocess().Symmetry)
	}
}

// A symmetry that is found scores as the same one that is given.
func TestSymmetryIsFoundUnderTheProtocols(t *testing.T) {
	var items []dataset.Item
	for _, im := range squares(t, 80) {
		b, err := im.Read()
		if err != nil {
			t.Fatal(err)
		}
		items = append(items, dataset.FromBytes(im.Name, dataset.Train, "square", b))
	}
	var scores [2][]float64
	for i, auto := range []bool{false, true} {
		plan := Plan{Method: KNN, Model: Model{Backbone: smallBackbone(t), Symmetry: imaging.Dihedral}, Host: Host{Work: t.TempDir()}, Score: Score{Groups: Class()}}
		if auto {
			plan.Model.Symmetry, plan.Model.AutoSymmetry = imaging.NoSymmetry, true
		}
		m, err := ForEvaluation(plan, nil, nil)
		if err != nil {
			t.Fatal(err)
		}
		s, err := m.Fit(t.Context(), items[:70], 1)
		if err != nil {
			t.Fatal(err)
		}
		if scores[i], err = s.Score(t.Context(), items[70:]); err != nil {
			t.Fatal(err)
		}
		if err := m.(*evaluation).Close(); err != nil {
			t.Error(err)
		}
	}
	if diff := cmp.Diff(scores[0], scores[1]); diff != "" {
		t.Error(diff)
	}
}

func TestOrientationTakesNoChances(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 1))
	draw := func(n int, shifts ...float64) (ways [][]float64) {
		for _, s := range shifts {
			way := make([]float64, n)
			for i := range way {
				way[i] = r.NormFloat64() + s
			}
			ways = append(ways, way)
		}
		return ways
	}
	for name, c := range map[string]struct {
		ways [][]float64
		want imaging.Symmetry
	}{
		"no difference":              {draw(60, 0, 0, 0, 0, 0, 0, 0, 0), imaging.Dihedral},
		"no difference, few normals": {draw(8, 0, 0, 0, 0, 0, 0, 0, 0), imaging.NoSymmetry},
		"some turns":                 {draw(200, 0, 0, 3, 3, 0, 3, 3, 0), imaging.Flip},
		"only turned by a half":      {draw(60, 0, 1, 0, 0, 0, 0, 0, 0), imaging.NoSymmetry},
		"all":                        {draw(60, 0, 1, 1, 1, 1, 1, 1, 1), imaging.NoSymmetry},
	} {
		if o := orientationOf(c.ways, 1); o.Choice != c.want {
			t.Errorf("%s: %+v", name, o)
		}
	}
	few := Plan{Score: Score{K: 2}}
	b := &scoreBuilder{model: &model{parts: make([]release.Part, 1)}}
	if o, err := orient(t.Context(), b, make([]Image, 3), nil, few); err != nil || o.Choice != imaging.NoSymmetry || !strings.Contains(o.String(), "too few") {
		t.Errorf("%v, %v", o, err)
	}
}

func TestANormalIsNotComparedWithItself(t *testing.T) {
	near := []bank.Neighbour{{ID: 3, Distance: 0}, {ID: 7, Distance: 1}, {ID: 1, Distance: 2}}
	if a, b := scoreWithout(near, 3, 2), scoreWithout(near, 9, 2); a != 3 || b != 1 {
		t.Errorf("%v and %v", a, b)
	}
}
