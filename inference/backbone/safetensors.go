package backbone

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"slices"
)

// The safetensors format: a little-endian uint64 n, n bytes of JSON
//
//	{"__metadata__": {string: string}, name: {"dtype": "F32", "shape": [...], "data_offsets": [begin, end]}, ...}
//
// and the tensors' bytes, offsets counted from the end of the JSON. Source: the
// format section of github.com/huggingface/safetensors.

// maxSafetensorsHeader is the bound on the JSON header that the reference
// implementation sets too.
const maxSafetensorsHeader = 100_000_000

// safetensor is one tensor of the header.
type safetensor struct {
	DType   string `json:"dtype"`
	Shape   []int  `json:"shape"`
	Offsets []int  `json:"data_offsets"`
}

var safetensorsTypes = map[string]elementType{
	"F32": typeF32, "F64": typeF64, "F16": typeF16, "BF16": typeBF16, "I64": typeI64,
	"I32": typeI32, "I16": typeI16, "I8": typeI8, "U8": typeU8, "BOOL": typeBool,
}

func isSafetensors(b []byte) bool {
	if len(b) < 10 {
		return false
	}
	n := binary.LittleEndian.Uint64(b)
	return n >= 2 && n <= maxSafetensorsHeader && b[8] == '{'
}

func readSafetensors(b []byte) (*Weights, error) {
	n := binary.LittleEndian.Uint64(b)
	if n > uint64(len(b)-8) {
		return nil, formatError("safetensors header of %d bytes in a file of %d: truncated", n, len(b))
	}
	data := b[8+n:]
	w := newWeights("safetensors")

	type span struct {
		begin, end int
		name       string
	}
	var spans []span
	// Token by token: a map would silently keep the last of two equal names.
	dec := json.NewDecoder(bytes.NewReader(b[8 : 8+n]))
	if _, err := dec.Token(); err != nil {
		return nil, formatError("safetensors header: %v", err)
	}
	for dec.More() {
		tok, err := dec.Token()
		if err != nil {
			return nil, formatError("safetensors header: %v", err)
		}
		name, _ := tok.(string)
		if name == "__metadata__" {
			if err := dec.Decode(&w.Metadata); err != nil {
				return nil, formatError("safetensors metadata: %v", err)
			}
			continue
		}
		var h safetensor
		if err := dec.Decode(&h); err != nil {
			return nil, formatError("safetensors tensor %q: %v", name, err)
		}
		typ, ok := safetensorsTypes[h.DType]
		if !ok {
			return nil, formatError("safetensors tensor %q has element type %q, which is not read", name, h.DType)
		}
		size, err := byteSize(h.Shape, typ)
		if err != nil {
			return nil, fmt.Errorf("safetensors tensor %q: %w", name, err)
		}
		if len(h.Offsets) != 2 || h.Offsets[0] < 0 || h.Offsets[1] < h.Offsets[0] || h.Offsets[1] > len(data) {
			return nil, formatError("safetensors tensor %q has offsets %v in %d bytes of data: truncated or corrupt", name, h.Offsets, len(data))
		}
		if h.Offsets[1]-h.Offsets[0] != size {
			return nil, formatError("safetensors tensor %q of shape %v has %d bytes, want %d", name, h.Shape, h.Offsets[1]-h.Offsets[0], size)
		}
		raw := data[h.Offsets[0]:h.Offsets[1]:h.Offsets[1]]
		if err := w.add(name, entry{typ, h.Shape, func() ([]byte, error) { return raw, nil }}); err != nil {
			return nil, err
		}
		if size > 0 {
			spans = append(spans, span{h.Offsets[0], h.Offsets[1], name})
		}
	}
	if _, err := dec.Token(); err != nil {
		return nil, formatError("safetensors header: %v", err)
	}
	slices.SortFunc(spans, func(a, b span) int { return a.begin - b.begin })
	for i := 1; i < len(spans); i++ {
		if spans[i].begin < spans[i-1].end {
			return nil, formatError("safetensors tensors %q and %q overlap", spans[i-1].name, spans[i].name)
		}
	}
	return w, nil
}
