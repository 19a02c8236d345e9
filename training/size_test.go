package training

import (
	"errors"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/nearmiss/nearmiss/inference/backbone"
	"github.com/nearmiss/nearmiss/inference/imaging"
)

func TestInputSizes(t *testing.T) {
	t.Parallel()
	small := smallBackbone(t)
	info, _, err := backbone.ReadMetadata(small)
	if err != nil {
		t.Fatal(err)
	}
	plan := Plan{
		Detector: "squares", Seed: 1, Out: filepath.Join(t.TempDir(), "release"), Data: Data{Normals: squares(t, 30)},
		Model: Model{Backbone: small, Size: 2 * info.Size}, Calibration: Calibration{Settle: true}, Score: Score{Coreset: 50},
	}
	res, err := Fit(t.Context(), plan)
	if err != nil {
		t.Fatal(err)
	}
	prov, d := provenanceOf(t, plan.Out)
	r := res.Resolution
	if r == nil || r.Size != 2*info.Size || d.Embedder().Preprocess().Crop != r.Size || prov.Backbone != filepath.Base(small) {
		t.Fatalf("%+v, the model takes %d pixels, of backbone %s", r, d.Embedder().Preprocess().Crop, prov.Backbone)
	}
	if grid := float64(r.Size) / float64(info.Spec.Patch); r.Across*grid > float64(r.Width)+1e-6 || r.Across <= 0 || !strings.Contains(r.String(), "patch") {
		t.Errorf("%+v: %s", r, r)
	}
	// No time at all leaves the smallest input, and frames of few pixels no larger one.
	for _, budget := range []time.Duration{time.Nanosecond, time.Hour} {
		p := plan
		p.Model.Size, p.Model.Budget = 0, budget
		tried, err := p.withDefaults().tryBudget(t)
		if err != nil || len(tried) != 1 || tried[0].Size != info.Size || !(tried[0].Milliseconds > 0) {
			t.Errorf("within %v: %+v, %v", budget, tried, err)
		}
	}
	plan.Model.Budget = time.Second
	if err := plan.Validate(); !errors.Is(err, ErrPlan) {
		t.Errorf("both a size and a budget: %v", err)
	}
	plan.Model.Budget, plan.Model.Backbone = 0, foreignBackbone(t)
	plan.Out = filepath.Join(t.TempDir(), "foreign")
	if _, err := Fit(t.Context(), plan); !errors.Is(err, ErrPlan) {
		t.Errorf("a foreign model of another size: %v", err)
	}
	plan.Model.Size, plan.Model.Budget = 0, time.Hour // which it has its size for all the same
	if res, err = Fit(t.Context(), plan); err != nil || len(res.Resolution.Tried) != 1 || res.Resolution.Tiles != TilesNone {
		t.Errorf("a foreign model and a budget: %+v, %v", res, err)
	}
}

// What tiles cost, and what the next step would, is said.
func TestAResolutionIsSaid(t *testing.T) {
	t.Parallel()
	r := Resolution{Size: 224, Tiles: "2x2", Passes: 5, Width: 1024, Height: 768, Across: 40, Down: 30, finer: imaging.Tiles{Rows: 3, Columns: 3}, by: 0.7}
	want := "the model sees frames of 1024×768 pixels at 224×224 and in 2x2 tiles of that size (5 inputs a picture, of which --tiles none leaves 1), " +
		"a patch is 40×30 pixels of the frame, and a defect of less than 28 pixels is hard to find: " +
		"--tiles 3x3 would bring that to 19 for about 2 times the time, and --budget 200ms takes what that time allows"
	if got := r.String(); got != want {
		t.Errorf("%s, want %s", got, want)
	}
	r = Resolution{Size: 224, Tiles: TilesNone, Passes: 1, Width: 300, Height: 300, Tried: []SizedTime{{224, "", 20}, {224, "1x2", 60}}}
	want = "the model sees frames of 300×300 pixels at 224×224; a picture takes about 20 ms at 224, 60 ms at 224 in tiles of 1x2"
	if got := r.String(); got != want {
		t.Errorf("%s, want %s", got, want)
	}
}

// Where there is time the input is as large as the frames' shorter side has pixels
// for, and a work folder that another backbone was fitted in serves this one, too.
func TestInputSizesGrowWithTheBudget(t *testing.T) {
	t.Parallel()
	m, err := imaging.New(400, 300).PNG()
	if err != nil {
		t.Fatal(err)
	}
	frame := Image{Name: "frame.png", Read: func() ([]byte, error) { return m, nil }}
	dir := t.TempDir()
	for _, dim := range []int{64, 32} {
		net, err := backbone.Random(backbone.Spec{
			Family: backbone.ViT, Dim: dim, Depth: 1, Heads: 1, Hidden: 64, Patch: 16, Size: 32, ClassPos: true, NormEps: 1e-6,
		}, 1)
		if err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(t.TempDir(), "small.onnx")
		if _, err := net.Write(path, backbone.Options{}); err != nil {
			t.Fatal(err)
		}
		plan := Plan{Data: Data{Normals: []Image{frame}}, Model: Model{Backbone: path, Budget: time.Hour, Tiles: TilesNone}}.withDefaults()
		tried, err := plan.sized(t.Context(), dir)
		if err != nil || len(tried) != 2 || tried[0].Size != 32 || tried[1].Size != 224 {
			t.Fatalf("%+v, %v", tried, err)
		}
		if info, _, err := backbone.ReadMetadata(plan.Model.Backbone); err != nil || info.Size != 224 || info.Dim != dim {
			t.Errorf("%+v, %v, want %d dimensions", info, err, dim)
		}
	}
}

// tryBudget is sized on a copy.
func (p Plan) tryBudget(t *testing.T) ([]SizedTime, error) {
	return p.sized(t.Context(), t.TempDir())
}
