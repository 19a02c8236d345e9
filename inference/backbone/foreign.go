package backbone

import (
	"slices"

	"google.golang.org/protobuf/encoding/protowire"

	"github.com/nearmiss/nearmiss/inference/imaging"
)

// A foreign ONNX model is not decoded into a graph, so that operators which
// inference/onnx does not know can be served too: the normalisation is spliced
// in front, and pooling behind, in the protobuf bytes, and nothing else is
// touched. Field numbers are those of onnx.proto.

// foreignModel is what the splice needs to know of a model.
type foreignModel struct {
	graph    []byte
	opset    int
	metadata map[string]string

	inputs, outputs []tensorInfo // graph inputs without initialisers
	values          map[string]tensorInfo
	produced        map[string]bool // by a node or an initialiser
	external        []string        // locations of external data
	params          int
}

// isONNX says whether b looks like a ModelProto with a graph.
func isONNX(b []byte) bool {
	found := false
	err := eachField(b, func(f field) error {
		if f.tag > 30 {
			return formatError("not a model")
		}
		found = found || f.tag == modelGraph && f.typ == protowire.BytesType
		return nil
	})
	return err == nil && found
}

// looksONNX says whether b starts as a ModelProto, which may be cut off.
func looksONNX(b []byte) bool {
	if len(b) < 4 || b[0] != 0x08 || b[1] == 0 || b[1] > 30 { // ir_version
		return false
	}
	fields := 0
	err := eachField(b, func(f field) error {
		if f.tag > 30 {
			fields = -1 << 20
		}
		fields++
		return nil
	})
	return fields > 1 || err != nil && fields == 1
}

func parseForeign(b []byte) (*foreignModel, error) {
	m := &foreignModel{metadata: map[string]string{}, values: map[string]tensorInfo{}, produced: map[string]bool{}}
	err := eachField(b, func(f field) error {
		switch f.tag {
		case modelGraph:
			if m.graph != nil {
				return formatError("the model has two graphs")
			}
			m.graph = f.val
		case modelOpset:
			domain, version := "", 0
			if err := eachField(f.val, func(f field) error {
				switch f.tag {
				case 1:
					domain = string(f.val)
				case 2:
					version = int(f.num)
				}
				return nil
			}); err != nil {
				return err
			}
			if domain == "" || domain == "ai.onnx" {
				m.opset = version
			}
		case modelMetadata:
			key, value, err := stringEntry(f.val)
			m.metadata[key] = value
			return err
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	if m.graph == nil {
		return nil, formatError("no graph in the ONNX file")
	}
	inputs := []tensorInfo{}
	initial := map[string]bool{}
	err = eachField(m.graph, func(f field) error {
		switch f.tag {
		case graphNode:
			return eachField(f.val, func(f field) error {
				if f.tag == nodeOutput && len(f.val) > 0 {
					m.produced[string(f.val)] = true
				}
				return nil
			})
		case graphInitializer:
			name, elements, external, err := initializer(f.val)
			if err != nil {
				return err
			}
			initial[name], m.produced[name] = true, true
			m.params += elements
			if external != "" && !slices.Contains(m.external, external) {
				m.external = append(m.external, external)
			}
		case graphInput, graphOutput, graphValueInfo:
			t, err := parseTensorInfo(f.val)
			if err != nil {
				return err
			}
			switch f.tag {
			case graphInput:
				inputs = append(inputs, t)
			case graphOutput:
				m.outputs = append(m.outputs, t)
			}
			if _, seen := m.values[t.name]; !seen {
				m.values[t.name] = t
			}
		}
		return nil
	})
	for _, t := range inputs { // IR version 3 lists initialisers as inputs too
		if !initial[t.name] {
			m.inputs = append(m.inputs, t)
		}
	}
	return m, err
}

// foreignPreprocess settles how images are prepared for a model whose file does
// not say it, and says where that is from. A model that takes bytes normalises them
// itself.
func foreignPreprocess(in tensorInfo, size int, o ImportOptions) (pre imaging.Preprocess, from string, err error) {
	pre = DefaultPreprocess(Spec{Family: Foreign, Size: size}, "onnx")
	switch side := readSidecar(o.path, 0); {
	case in.elem == elemUint8:
		pre.Mean, pre.Std, from = [3]float64{}, [3]float64{1, 1, 1}, "the model normalises by itself"
	case o.Preprocess != nil || o.Mean != nil && o.Std != nil:
		from = "as asked for"
	case o.Arch != "":
		r, ok := named(o.Arch, ViT)
		if !ok {
			return pre, "", architectureError("what images %q wants is not known: give --mean and --std", o.Arch)
		}
		pre, from = r.apply(pre), "that of "+r.word+", as asked for"
	default:
		var ok bool
		if pre, ok = side.preprocess(pre); ok {
			from = side.file + " beside the model"
			o.note("images are prepared as %s beside the model says", side.file)
			break
		}
		from = "not known: give --mean and --std"
		if !o.inspect {
			return pre, "", architectureError("how images are normalised for the model is not in the file: give --mean and --std as its publisher has them, " +
				"for samples in 0..1 (often 0.485,0.456,0.406 and 0.229,0.224,0.225, or 0.5 and 0.5; 0 and 1 for a model that normalises by itself)")
		}
	}
	pre, err = o.apply(pre, size)
	return pre, from, err
}

// imageInput finds the input that takes the image, and its size and layout.
func (m *foreignModel) imageInput(o ImportOptions) (in tensorInfo, size int, nchw bool, err error) {
	var names []string
	for _, t := range m.inputs {
		names = append(names, t.name)
		if o.Input == t.name || o.Input == "" && len(m.inputs) == 1 {
			in = t
		}
	}
	if in.name == "" {
		return in, 0, false, architectureError("cannot choose the image input among %q: name one with --input", names)
	}
	if len(m.inputs) > 1 {
		return in, 0, false, architectureError("the model needs %d inputs %q, an image backbone has one", len(m.inputs), names)
	}
	if in.elem != elemFloat && in.elem != elemFloat16 && in.elem != elemUint8 {
		return in, 0, false, architectureError("input %q has element type %d, want float, float16 or uint8", in.name, in.elem)
	}
	if !in.known || len(in.dims) != 4 {
		return in, 0, false, architectureError("input %q has dimensions %v, want a batch of images of rank 4", in.name, in.dims)
	}
	h, w := in.dims[2], in.dims[3]
	switch {
	case in.dims[1] == 3 && in.dims[3] != 3 && in.elem != elemUint8:
		nchw = true
	case in.dims[3] == 3:
		h, w = in.dims[1], in.dims[2]
	case in.dims[1] < 0 && in.elem != elemUint8: // all open: torch's habit
		nchw = true
	default:
		return in, 0, false, architectureError("input %q has dimensions %v, want [N 3 S S] or [N S S 3] (uint8: the latter)", in.name, in.dims)
	}
	if h > 0 && w > 0 && h != w {
		return in, 0, false, architectureError("input %q is %d×%d pixels, want a square", in.name, h, w)
	}
	side := max(h, w)
	switch {
	case side < 0 && o.Size == 0:
		return in, 0, false, architectureError("input %q leaves the image's size open: give one with --size", in.name)
	case side < 0:
		side = int64(o.Size)
	case o.Size != 0 && int64(o.Size) != side:
		return in, 0, false, architectureError("the model takes %d px, not the %d px asked for", side, o.Size)
	}
	if side < 8 || side > 4096 {
		return in, 0, false, architectureError("an input of %d px is not between 8 and 4096", side)
	}
	return in, int(side), nchw, nil
}
