package training

import (
	"errors"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/nearmiss/nearmiss/inference/backbone"
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
}

// tryBudget is sized on a copy.
func (p Plan) tryBudget(t *testing.T) ([]SizedTime, error) {
	return p.sized(t.Context(), t.TempDir())
}
