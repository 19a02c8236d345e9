package pretrain

import (
	"path/filepath"
	"testing"

	"github.com/nearmiss/nearmiss/inference"
	"github.com/nearmiss/nearmiss/inference/backbone"
	"github.com/nearmiss/nearmiss/inference/backbone/starter"
	"github.com/nearmiss/nearmiss/inference/imaging"
	"github.com/nearmiss/nearmiss/internal/synthetic"
)

// embedder serves a model to a probe.
func embedder(t *testing.T, m *backbone.Model) Embed {
	t.Helper()
	path := filepath.Join(t.TempDir(), "model.onnx")
	if _, err := m.Write(path, backbone.Options{}); err != nil {
		t.Fatal(err)
	}
	e, err := inference.NewEmbedder(path, inference.EmbedOptions{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { e.Close() })
	return e.Vectors
}

// On families that were left out of its training, marred pictures score above
// normal ones. How far, and against random weights: training/RESULTS.md.
func TestStarterScoresDefectsOfUnknownFamiliesAboveNormals(t *testing.T) {
	m, err := starter.Load()
	if err != nil {
		t.Fatal(err)
	}
	seen, err := Probe{Designs: 1, Normals: 30, Tests: 20, Seed: 1}.Run(t.Context(), embedder(t, m))
	if err != nil {
		t.Fatal(err)
	}
	var mean float64
	for _, s := range seen {
		t.Logf("%s: AUROC %.3f, defects of kinds that were left out too %.3f", s.Kind, s.AUROC, s.Unknown)
		mean += s.AUROC / float64(len(seen))
	}
	if !(mean > 0.58) {
		t.Errorf("AUROC %.3f on the mean is hardly better than chance", mean)
	}
}

// Two pictures of one design lie nearer to each other than pictures of two.
func TestStarterKnowsADesignAgain(t *testing.T) {
	m, err := starter.Load()
	if err != nil {
		t.Fatal(err)
	}
	embed := embedder(t, m)
	held := Held(synthetic.Patterns).Families
	var images []*imaging.Image
	for _, class := range held {
		s, err := synthetic.New(synthetic.Patterns, 1, synthetic.Options{Size: 96, Class: class})
		if err != nil {
			t.Fatal(err)
		}
		for i := range uint64(3) {
			img, _ := s.At(i)
			images = append(images, img)
		}
	}
	e, err := embed(t.Context(), images)
	if err != nil {
		t.Fatal(err)
	}
	for i := range e {
		if len(e[i]) != m.Spec.Dim {
			t.Fatalf("an embedding has %d dimensions", len(e[i]))
		}
		var own, other [][]float32
		for j := range e {
			switch {
			case i == j:
			case i/3 == j/3:
				own = append(own, e[j])
			default:
				other = append(other, e[j])
			}
		}
		if a, b := nearest2(own, e[i]), nearest2(other, e[i]); !(a > 0 && a < b) {
			t.Errorf("picture %d: squared distance %v to its own design, %v to another", i, a, b)
		}
	}
}
