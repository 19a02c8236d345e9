package backbone

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"slices"

	"github.com/nearmiss/nearmiss/inference/onnx"
)

// EncodeHalf returns the weights as a safetensors file of half-precision numbers,
// about two bytes a parameter, that [FromWeights] reads back with the
// preprocessing and the description of where the weights come from. properties
// are kept besides. Weights beyond ±65504 and NaN are refused.
func (m *Model) EncodeHalf(properties map[string]string) ([]byte, error) {
	metadata, err := newMetadata(m.Preprocess, m.Info())
	if err != nil {
		return nil, fmt.Errorf("encode %s: %w", m.Spec.Name(), err)
	}
	for key, v := range properties {
		if _, own := metadata[key]; !own {
			metadata[key] = v
		}
	}
	header := map[string]any{"__metadata__": metadata}
	var data []byte
	for _, t := range m.Tensors() {
		from := len(data)
		for i, v := range t.Float32s() {
			h, ok := onnx.ToHalf(v)
			if !ok {
				return nil, fmt.Errorf("encode %s: element %d of %q is %v, which half precision does not hold", m.Spec.Name(), i, t.Name, v)
			}
			data = binary.LittleEndian.AppendUint16(data, h)
		}
		header[t.Name] = safetensor{"F16", slices.Clone(t.Shape), []int{from, len(data)}}
	}
	text, err := json.Marshal(header) // keys sorted: the same bytes for the same weights
	if err != nil {
		return nil, fmt.Errorf("encode %s: %w", m.Spec.Name(), err)
	}
	for len(text)%8 != 0 {
		text = append(text, ' ')
	}
	out := binary.LittleEndian.AppendUint64(nil, uint64(len(text)))
	return append(append(out, text...), data...), nil
}
