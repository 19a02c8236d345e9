package imaging

import (
	"encoding/json"
	"math"
	"os"
	"path/filepath"
	"testing"

	"github.com/nearmiss/nearmiss/internal/evaldata"
)

func TestPreprocessMatchesPyTorchStatistics(t *testing.T) {
	shared := evaldata.Dir(t)
	raw, err := os.ReadFile(filepath.Join(shared, "golden", "vit_tiny_forward.json"))
	if err != nil {
		t.Fatal(err)
	}
	var golden struct {
		Images []struct {
			File      string  `json:"file"`
			PixelMean float64 `json:"pixel_mean"`
			PixelStd  float64 `json:"pixel_std"`
		} `json:"images"`
	}
	if err := json.Unmarshal(raw, &golden); err != nil {
		t.Fatal(err)
	}
	if len(golden.Images) != 12 {
		t.Fatalf("%d images in the golden file, want 12", len(golden.Images))
	}
	p := Preprocess{Resize: 248, Crop: 224, Interpolation: Bicubic, Mean: [3]float64{.5, .5, .5}, Std: [3]float64{.5, .5, .5}}
	dst := make([]uint8, p.Bytes())
	for _, g := range golden.Images {
		b, err := os.ReadFile(filepath.Join(shared, "data", filepath.FromSlash(g.File)))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := p.Apply(b, Limits{}, dst); err != nil {
			t.Fatal(err)
		}
		var sum, sum2 float64
		for i, v := range dst {
			x := (float64(v)/255 - p.Mean[i%3]) / p.Std[i%3]
			sum += x
			sum2 += x * x
		}
		n := float64(len(dst))
		mean := sum / n
		std := math.Sqrt((sum2 - n*mean*mean) / (n - 1)) // torch's default divides by n − 1
		if math.Abs(mean-g.PixelMean) > 1e-6 || math.Abs(std-g.PixelStd) > 1e-6 {
			t.Errorf("%s: mean %.8f std %.8f, PyTorch has %.8f and %.8f", g.File, mean, std, g.PixelMean, g.PixelStd)
		}
	}
}
