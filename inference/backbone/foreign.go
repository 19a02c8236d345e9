package backbone

import (
	"github.com/nearmiss/nearmiss/inference/imaging"
	"github.com/nearmiss/nearmiss/inference/onnx/wire"
)

// A foreign ONNX model is not decoded into a graph, so that operators which
// inference/onnx does not know can be served too: the normalisation is spliced
// in front, and pooling behind, in the protobuf bytes, and nothing else is
// touched.

// isONNX says whether b looks like a ModelProto with a graph.
func isONNX(b []byte) bool {
	found := false
	err := wire.Each(b, func(f wire.Field) error {
		if f.Num > 30 {
			return formatError("not a model")
		}
		found = found || f.Num == wire.ModelGraph && f.Type == wire.Bytes
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
	err := wire.Each(b, func(f wire.Field) error {
		if f.Num > 30 {
			fields = -1 << 20
		}
		fields++
		return nil
	})
	return fields > 1 || err != nil && fields == 1
}

// foreignPreprocess settles how images are prepared for a model whose file does
// not say it, and says where that is from. A model that takes bytes normalises them
// itself.
func foreignPreprocess(in wire.ValueInfo, size int, o ImportOptions) (pre imaging.Preprocess, from string, err error) {
	pre = defaultPreprocess(Spec{Family: Foreign, Size: size}, "onnx")
	switch side := readSidecar(o.path, 0); {
	case in.Elem == wire.Uint8:
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
func imageInput(m *wire.Model, o ImportOptions) (in wire.ValueInfo, size int, nchw bool, err error) {
	var names []string
	for _, t := range m.Inputs {
		names = append(names, t.Name)
		if o.Input == t.Name || o.Input == "" && len(m.Inputs) == 1 {
			in = t
		}
	}
	if in.Name == "" {
		return in, 0, false, architectureError("cannot choose the image input among %q: name one with --input", names)
	}
	if len(m.Inputs) > 1 {
		return in, 0, false, architectureError("the model needs %d inputs %q, an image backbone has one", len(m.Inputs), names)
	}
	if in.Elem != wire.Float && in.Elem != wire.Float16 && in.Elem != wire.Uint8 {
		return in, 0, false, architectureError("input %q has element type %d, want float, float16 or uint8", in.Name, in.Elem)
	}
	if !in.Known || len(in.Dims) != 4 {
		return in, 0, false, architectureError("input %q has dimensions %v, want a batch of images of rank 4", in.Name, in.Dims)
	}
	for i, d := range in.Dims {
		if d == 0 { // some exporters' word for open
			in.Dims[i] = -1
		}
	}
	h, w := in.Dims[2], in.Dims[3]
	switch {
	case in.Dims[1] == 3 && in.Dims[3] != 3 && in.Elem != wire.Uint8:
		nchw = true
	case in.Dims[3] == 3:
		h, w = in.Dims[1], in.Dims[2]
	case in.Dims[1] < 0 && in.Elem != wire.Uint8: // all open: torch's habit
		nchw = true
	default:
		return in, 0, false, architectureError("input %q has dimensions %v, want [N 3 S S] or [N S S 3] (uint8: the latter)", in.Name, in.Dims)
	}
	if h > 0 && w > 0 && h != w {
		return in, 0, false, architectureError("input %q is %d×%d pixels, want a square", in.Name, h, w)
	}
	side := max(h, w)
	switch {
	case side < 0 && o.Size == 0:
		return in, 0, false, architectureError("input %q leaves the image's size open: give one with --size", in.Name)
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
