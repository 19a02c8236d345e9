package backbone

import (
	"encoding/json"
	"math"
	"os"
	"path/filepath"
	"testing"

	"github.com/nearmiss/nearmiss/inference/imaging"
	"github.com/nearmiss/nearmiss/internal/evaldata"
)

// TestViTTinyForward reproduces the embeddings of real pretrained weights from
// the image files' bytes on: decode, resize, crop, embed.
func TestViTTinyForward(t *testing.T) {
	dir := evaldata.Dir(t)
	b, err := os.ReadFile(filepath.Join(dir, "golden", "vit_tiny_forward.json"))
	if err != nil {
		t.Fatal(err)
	}
	var golden struct {
		Images []struct {
			File      string
			Embedding []float64
		}
	}
	if err := json.Unmarshal(b, &golden); err != nil {
		t.Fatal(err)
	}
	model := filepath.Join(t.TempDir(), "vit.onnx")
	info, err := Import(filepath.Join(dir, "data", "vit_tiny_patch16_224.safetensors"), model, ImportOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if info.Name != "vit_tiny_patch16_224" || info.Params != 5524416 {
		t.Errorf("imported %s with %d parameters", info.Name, info.Params)
	}
	_, pre, err := ReadMetadata(model)
	if err != nil {
		t.Fatal(err)
	}
	n := len(golden.Images)
	pixels := make([]uint8, n*pre.Bytes())
	for i, im := range golden.Images {
		file, err := os.ReadFile(filepath.Join(dir, "data", im.File))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := pre.Apply(file, imaging.Limits{}, pixels[i*pre.Bytes():][:pre.Bytes()]); err != nil {
			t.Fatal(err)
		}
	}
	got := run(t, model, pixels, n, pre.Crop)[OutputEmbedding].Float32s()
	for i, im := range golden.Images {
		var dot, a, b, worst float64
		for j, want := range im.Embedding {
			v := float64(got[i*info.Dim+j])
			dot, a, b = dot+v*want, a+v*v, b+want*want
			worst = max(worst, math.Abs(v-want))
		}
		cosine := dot / math.Sqrt(a*b)
		if !(worst <= 2e-3 && cosine >= 0.99999) {
			t.Errorf("%s: off by %.2g, cosine %.7f; want at most 2e-3 and at least 0.99999", im.File, worst, cosine)
		} else {
			t.Logf("%s: off by %.2g, cosine %.9f", im.File, worst, cosine)
		}
	}
}
