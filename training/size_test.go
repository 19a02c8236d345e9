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
