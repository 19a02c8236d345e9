package camera

import (
	"bytes"
	"encoding/json"
	"fmt"
	"image"
	"image/png"

	"github.com/nearmiss/nearmiss/internal/synthetic"
)

// SyntheticConfig shapes a synthetic camera.
type SyntheticConfig struct {
	Kind       string  // synthetic.Parts or synthetic.Cells
	Seed       uint64  // the same seed draws the same images
	Size       int     // width and height in pixels; 0 means 256
	DefectRate float64 // probability of a defect, 0-1
	// CleanFirst images have no defect, whatever the rate: a detector may learn
	// from them.
	CleanFirst int
	Count      int     // of images; 0: without end
	FPS        float64 // images a second; 0: as fast as they are taken
}

// Synthetic is a source of drawn images, as PNG files with their ground truth.
func Synthetic(c SyntheticConfig) (*Generated, error) {
	clean, err := synthetic.New(c.Kind, c.Seed, synthetic.Options{Size: c.Size})
	if err != nil {
		return nil, fmt.Errorf("synthetic camera: %w", err)
	}
	mixed, err := synthetic.New(c.Kind, c.Seed, synthetic.Options{Size: c.Size, DefectRate: c.DefectRate})
	if err != nil {
		return nil, fmt.Errorf("synthetic camera: %w", err)
	}
	return &Generated{Count: c.Count, FPS: c.FPS, Make: func(n int) ([]byte, string, error) {
		src := mixed
		if n < c.CleanFirst {
			src = clean
		}
		img, truth := src.At(uint64(n))
		rgba := image.NewNRGBA(image.Rect(0, 0, img.Width, img.Height))
		for i := range img.Width * img.Height {
			copy(rgba.Pix[4*i:], img.Pix[3*i:3*i+3])
			rgba.Pix[4*i+3] = 0xff
		}
		var b bytes.Buffer
		if err := (&png.Encoder{CompressionLevel: png.BestSpeed}).Encode(&b, rgba); err != nil {
			return nil, "", fmt.Errorf("synthetic camera: image %d: %w", n, err)
		}
		t, err := json.Marshal(truth)
		if err != nil {
			return nil, "", fmt.Errorf("synthetic camera: image %d: %w", n, err)
		}
		return b.Bytes(), string(t), nil
	}}, nil
}
