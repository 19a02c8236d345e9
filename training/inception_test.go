package training

import (
	"encoding/json"
	"path/filepath"
	"strings"
	"testing"

	"github.com/nearmiss/nearmiss/inference"
	"github.com/nearmiss/nearmiss/inference/backbone"
	"github.com/nearmiss/nearmiss/inference/imaging"
	"github.com/nearmiss/nearmiss/inference/onnx"
	"github.com/nearmiss/nearmiss/training/frechet"
	"github.com/nearmiss/nearmiss/training/sde"
)

// wideModel is a model of another program that gives so many features: values of
// the picture as they are.
func wideModel(t *testing.T, features int) string {
	t.Helper()
	g := onnx.New("wide")
	x := g.Input(backbone.InputImage, onnx.Uint8, 1, 32, 32, 3)
	e := g.Slice(g.Flatten(g.Scale(g.Cast(x, onnx.Float), 1.0/255), 1), 1, 0, features)
	g.Output(backbone.OutputEmbedding, e)
	x.SetDimName(0, "N")
	e.SetDimName(0, "N")
	p, err := json.Marshal(imaging.Preprocess{Resize: 32, Crop: 32, Interpolation: imaging.Bilinear, Mean: [3]float64{0.5, 0.5, 0.5}, Std: [3]float64{0.5, 0.5, 0.5}})
	if err != nil {
		t.Fatal(err)
	}
	g.SetMetadata(backbone.MetadataPreprocess, string(p))
	path := filepath.Join(t.TempDir(), "wide.onnx")
	if err := g.WriteFile(path); err != nil {
		t.Fatal(err)
	}
	return path
}

// TestFIDIsMeasuredInInceptionsSpace: the target is compared with distances in the
// space of the model that is named for it, not in the detector's own.
func TestFIDIsMeasuredInInceptionsSpace(t *testing.T) {
	plan := fitymiPlan(t, 30, "sde")
	o := &plan.Tuning.SDE
	o.Network = sde.Network{Size: 8, Channels: 3, Width: 8, Multipliers: []int{1}, Blocks: 1}
	o.MaxSteps, o.ProbeEvery, o.Probes, o.Mix = 4, 4, 8, false
	o.Train.Batch, o.Steps = 4, 3
	plan.Tuning.Members = 1
	o.Stop = frechet.Target{Kind: frechet.FID, Value: 40}
	if _, err := Fit(t.Context(), plan); err == nil || !strings.Contains(err.Error(), "--inception") {
		t.Errorf("a FID target without Inception: %v", err)
	}
	plan.Tuning.MeasureBy(smallBackbone(t))
	if _, err := Fit(t.Context(), plan); err == nil || !strings.Contains(err.Error(), "FID's Inception") {
		t.Errorf("a ViT in Inception's place: %v", err)
	}
	plan.Tuning.MeasureBy(wideModel(t, 1000))
	if _, err := Fit(t.Context(), plan); err == nil || !strings.Contains(err.Error(), "2048 features") {
		t.Errorf("a thousand classes in the place of 2048 features: %v", err)
	}

	model := wideModel(t, 2048)
	plan.Tuning.MeasureBy(model)
	if _, err := Fit(t.Context(), plan); err != nil {
		t.Fatal(err)
	}
	prov, _ := provenanceOf(t, plan.Out)
	curve := prov.Learning.Fakes[0].Curve
	// What the normals and noise are apart in that space, computed here.
	e, err := inference.NewEmbedder(model, inference.EmbedOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer e.Close()
	var files [][]byte
	for _, n := range plan.Data.Normals {
		b, _ := n.Read()
		files = append(files, b)
	}
	all, err := e.Embed(t.Context(), files)
	if err != nil {
		t.Fatal(err)
	}
	var rows [][]float32
	for _, v := range all {
		rows = append(rows, v.Vector)
	}
	ref, err := frechet.NewReference(rows, 8, 1)
	if err != nil {
		t.Fatal(err)
	}
	// Samples of an untrained network are far from all of them: about as far as a
	// grey picture. The detector's own model has other units.
	if len(curve) < 2 || curve[0].FD < ref.Floor() || curve[0].FD > 50*ref.Floor() {
		t.Errorf("curve %+v; two halves of the normals are %.3g apart in that space", curve, ref.Floor())
	}
	if prov.Learning.Tuning.SDE.Stop != (frechet.Target{Kind: frechet.FID, Value: 40}) {
		t.Errorf("target %s", prov.Learning.Tuning.SDE.Stop)
	}
}

func TestThePapersHighResolutionRecipe(t *testing.T) {
	p, err := Profile("paper-high")
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Validate(); err != nil {
		t.Fatal(err)
	}
	n := p.SDE.Network
	if n.Size != 256 || len(n.Multipliers) != 7 || n.OutputPyramid != "skip" || p.SDE.SDE != "ve" || p.SDE.Sampler != sde.PredictorCorrector || p.SDE.Train.Batch != 64 {
		t.Errorf("generator: %+v", p.SDE)
	}
	if p.Recipe.Epochs != 150 || p.Recipe.Optimizer.LearningRate != 5e-3 || p.Recipe.Batch != 16 || p.Members != 1 {
		t.Errorf("fine-tune: %+v", p.Recipe)
	}
	p.MeasureBy("inception.onnx")
	if p.SDE.Stop.Value != 200 {
		t.Errorf("it stops at %s", p.SDE.Stop)
	}
	low, err := Profile("paper")
	if err != nil {
		t.Fatal(err)
	}
	low.MeasureBy("inception.onnx")
	if low.SDE.Stop.Value != 40 || low.SDE.Network.Size != 32 || low.Recipe.Epochs != 30 {
		t.Errorf("%+v", low)
	}
}
