package main

import (
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/nearmiss/nearmiss/inference"
	"github.com/nearmiss/nearmiss/inference/imaging"
	"github.com/nearmiss/nearmiss/internal/synthetic"
	"github.com/nearmiss/nearmiss/training"
)

// spotted draws machined parts of 1,024 × 1,024 pixels, each with a dark disc of a
// diameter on it; 0: none.
type spotted struct {
	source *synthetic.Source
	r      *rand.Rand
}

func (s spotted) draw(diameter float64) (*imaging.Image, error) {
	m, _ := s.source.Next()
	if diameter == 0 {
		return m, nil
	}
	for range 10_000 {
		x, y := 100+s.r.IntN(m.Width-200), 100+s.r.IntN(m.Height-200)
		sum, count := 0, 0
		for v := y - 20; v <= y+20; v += 5 {
			for u := x - 20; u <= x+20; u += 5 {
				sum, count = sum+int(m.Pix[3*(v*m.Width+u)]), count+1
			}
		}
		if sum < 90*count { // beside the part
			continue
		}
		for v := y - 50; v <= y+50; v++ {
			for u := x - 50; u <= x+50; u++ {
				cover := min(max(diameter/2+0.5-math.Hypot(float64(u-x), float64(v-y)), 0), 1)
				for c := range 3 {
					p := &m.Pix[3*(v*m.Width+u)+c]
					*p = uint8(float64(*p) * (1 - 0.6*cover))
				}
			}
		}
		return m, nil
	}
	return nil, fmt.Errorf("no place on the part is bright")
}

// TestPricesOfInputsAndTiles measures what larger inputs and tiles cost and find, for
// training/RESULTS.md (make prices): NEARMISS_PRICES names the backbone. It takes ten
// minutes.
func TestPricesOfInputsAndTiles(t *testing.T) {
	backbone := os.Getenv("NEARMISS_PRICES")
	if backbone == "" {
		t.Skip("make prices BACKBONE=FILE.onnx measures larger inputs and tiles, for ten minutes")
	}
	const learnt, good, each = 60, 20, 12
	source, err := synthetic.New(synthetic.Parts, 7, synthetic.Options{Size: 1024})
	if err != nil {
		t.Fatal(err)
	}
	s := spotted{source, rand.New(rand.NewPCG(1, 2))}
	files := func(n int, diameter float64) (out [][]byte) {
		for range n {
			m, err := s.draw(diameter)
			if err != nil {
				t.Fatal(err)
			}
			b, err := m.JPEG(95)
			if err != nil {
				t.Fatal(err)
			}
			out = append(out, b)
		}
		return out
	}
	var normals []training.Image
	for i, b := range files(learnt, 0) {
		normals = append(normals, training.Image{Name: fmt.Sprint(i, ".jpg"), Read: func() ([]byte, error) { return b, nil }})
	}
	tests := [][][]byte{files(good, 0)}
	diameters := []float64{13, 18, 25, 36, 50}
	for _, d := range diameters {
		tests = append(tests, files(each, d))
	}
	for _, m := range []training.Model{{Tiles: training.TilesNone}, {Tiles: "2x2"}, {Size: 448}, {Tiles: "3x3"}, {Size: 672}} {
		m.Backbone, m.Light, m.Sharpness = backbone, training.LightUsual, training.SharpnessUsual
		p := training.Plan{
			Detector: "parts", Seed: 1, Out: filepath.Join(t.TempDir(), "release"), Data: training.Data{Normals: normals},
			Model: m, Calibration: training.Calibration{Alpha: 0.05}, Host: training.Host{Threads: 1},
		}
		res, err := training.Fit(t.Context(), p)
		if err != nil {
			t.Fatal(err)
		}
		d, err := inference.Open(t.Context(), p.Out, inference.Options{Embed: inference.EmbedOptions{Threads: 1, Workers: 1}})
		if err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		var found []string
		for i, some := range tests {
			scores, err := d.Score(t.Context(), some)
			if err != nil {
				t.Fatal(err)
			}
			n := 0
			for _, v := range scores {
				if v.Anomalous {
					n++
				}
			}
			if i == 0 {
				found = append(found, fmt.Sprintf("%d of %d good ones", n, good))
			} else {
				found = append(found, fmt.Sprintf("%.0f px %d of %d", diameters[i-1], n, each))
			}
		}
		took := time.Since(began) / time.Duration(good+each*len(diameters))
		if err := d.Close(); err != nil {
			t.Fatal(err)
		}
		t.Logf("input %d, tiles %s, %d passes: %v a frame, banks of %.1f MiB, called anomalous: %v; %s",
			res.Resolution.Size, res.Resolution.Tiles, res.Resolution.Passes, took.Round(time.Millisecond), float64(res.Cost.Banks)/(1<<20), found, res.Resolution)
	}
}
