package training

import (
	"fmt"
	"os"

	"github.com/nearmiss/nearmiss/inference"
	"github.com/nearmiss/nearmiss/internal/synthetic"
)

// checkImages is how many images a release carries, so that whoever loads it
// can compare scores.
const checkImages = 4

// checks are held-out normals, or drawn pictures where a release may hold no
// image of a normal: any image tells whether a model and a bank compute the
// same here as there.
func checks(held []Image, noImages bool) ([][]byte, error) {
	if noImages {
		return drawnChecks()
	}
	var out [][]byte
	for _, m := range held[:min(checkImages, len(held))] {
		file, err := m.Read()
		if err != nil {
			return nil, fmt.Errorf("read normal image %s: %w", m.Name, err)
		}
		out = append(out, file)
	}
	return out, nil
}

// keptChecks are those of the release that d serves, or drawn pictures.
func keptChecks(d *inference.Detector, noImages bool) ([][]byte, error) {
	if noImages {
		return drawnChecks()
	}
	rel := d.Release()
	var out [][]byte
	for _, c := range rel.Manifest.Check {
		file, err := os.ReadFile(rel.Path(c.File))
		if err != nil {
			return nil, err
		}
		out = append(out, file)
	}
	return out, nil
}

// drawnChecks are pictures of nothing real, the same every time.
func drawnChecks() ([][]byte, error) {
	s, err := synthetic.New(synthetic.Parts, 1, synthetic.Options{Classes: checkImages})
	if err != nil {
		return nil, err
	}
	out := make([][]byte, checkImages)
	for i := range out {
		m, _ := s.At(uint64(i))
		if out[i], err = m.PNG(); err != nil {
			return nil, err
		}
	}
	return out, nil
}
