package inference

import (
	"context"
	"fmt"

	"github.com/nearmiss/nearmiss/inference/ort"
)

// Tried is what a model gave when it was run for a trial.
type Tried struct {
	Shape []int
	Data  []float32 // nil for other than float32
}

// RunOnce runs the model at path, which takes uint8 images [N, S, S, 3], on so
// many copies of one drawn image, and returns its outputs by name.
func RunOnce(path string, images int) (map[string]Tried, error) {
	s, err := ort.Open(path, ort.Options{})
	if err != nil {
		return nil, err
	}
	defer s.Close()
	in := s.Inputs()
	if len(in) != 1 || in[0].Type != ort.Uint8 || len(in[0].Shape) != 4 || in[0].Shape[1] < 1 || in[0].Shape[2] < 1 {
		return nil, fmt.Errorf("run %s: its input is %v, want one uint8 image [N, S, S, 3]", path, in)
	}
	shape := []int{images, in[0].Shape[1], in[0].Shape[2], 3}
	pixels := make([]uint8, images*shape[1]*shape[2]*3)
	size := len(pixels) / images
	for i := range pixels {
		j := i % size
		pixels[i] = uint8(j*j>>7 ^ j*13)
	}
	x, err := ort.NewTensor(shape, pixels)
	if err != nil {
		return nil, err
	}
	defer x.Close()
	outs, err := s.Run(context.Background(), []*ort.Tensor{x})
	if err != nil {
		return nil, err
	}
	defer ort.CloseAll(outs...)
	found := map[string]Tried{}
	for i, o := range s.Outputs() {
		v := Tried{Shape: outs[i].Shape()}
		if outs[i].Type() == ort.Float {
			v.Data = outs[i].Float32s()
		}
		found[o.Name] = v
	}
	return found, nil
}
