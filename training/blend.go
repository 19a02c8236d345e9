package training

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/nearmiss/nearmiss/inference/backbone"
	"github.com/nearmiss/nearmiss/inference/onnx"
)

// blend writes a copy of the frozen backbone with the weights
// (1−share)·frozen + share·mean(tuned). A share of 1 over one tuned file gives
// that file's weights.
func blend(dst, frozen string, tuned []string, share float64) (err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("average the weights of %d fine-tunes: %w", len(tuned), err)
		}
	}()
	read := func(path string) (map[string]onnx.Tensor, func() error, error) {
		g, err := onnx.ReadFile(path, onnx.BindBatch(1))
		if err != nil {
			return nil, nil, err
		}
		out := map[string]onnx.Tensor{}
		for _, v := range g.Initializers() {
			if t := v.Const(); t != nil && t.Type == onnx.Float {
				out[v.Name()] = *t
			}
		}
		return out, g.Close, nil
	}
	base, end, err := read(frozen)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, end()) }()
	sums := map[string][]float64{}
	for _, path := range tuned {
		other, end, err := read(path)
		if err != nil {
			return err
		}
		for name, t := range other {
			old, ok := base[name]
			if !ok || !slices.Equal(old.Shape, t.Shape) || (sums[name] == nil && slices.Equal(old.Data, t.Data)) && len(tuned) == 1 {
				continue
			}
			if sums[name] == nil {
				sums[name] = make([]float64, t.Elements())
			}
			for i, v := range t.Float32s() {
				sums[name][i] += float64(v)
			}
		}
		if err := end(); err != nil {
			return err
		}
	}
	var out []onnx.Tensor
	for name, sum := range sums {
		old := base[name]
		mixed := make([]float32, len(sum))
		same := true
		for i, v := range old.Float32s() {
			mixed[i] = float32((1-share)*float64(v) + share*sum[i]/float64(len(tuned)))
			same = same && mixed[i] == v
		}
		if !same {
			out = append(out, onnx.FromFloat32(name, mixed, old.Shape...))
		}
	}
	slices.SortFunc(out, func(a, b onnx.Tensor) int { return strings.Compare(a.Name, b.Name) })
	return backbone.ReplaceWeights(frozen, dst, out)
}
