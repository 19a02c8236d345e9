package inference

import (
	"context"
	"fmt"
	"time"

	"github.com/nearmiss/nearmiss/inference/ort"
)

// Tried is what a model gave when it was run for a trial.
type Tried struct {
	Shape []int
	Data  []float32 // nil for other than float32
}

// TimeOnce is the time that the backbone at path takes for one image on one
// thread: the least of five runs.
func TimeOnce(ctx context.Context, path string) (time.Duration, error) {
	e, err := NewEmbedder(path, EmbedOptions{Threads: 1, Workers: 1, Batch: 1})
	if err != nil {
		return 0, err
	}
	defer e.Close()
	pixels := [][]uint8{make([]uint8, e.Preprocess().Bytes())}
	least := time.Duration(0)
	for range 5 {
		began := time.Now()
		if _, err := e.EmbedPixels(ctx, pixels); err != nil {
			return 0, err
		}
		if took := time.Since(began); least == 0 || took < least {
			least = took
		}
	}
	return least, nil
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
	if in[0].Shape[1] > mostInput/3/images/in[0].Shape[2] {
		return nil, fmt.Errorf("run %s: %d images of its input %v are more than %d MiB", path, images, in[0].Shape, mostInput>>20)
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
