package lower

import (
	"encoding/binary"
	"fmt"
	"math"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/nearmiss/nearmiss/inference/onnx"
)

// FileHalf returns the model at path with its arithmetic in 16 bits where that loses
// little and is faster on accelerators; inputs and outputs stay as they are. The
// operators are divided as PyTorch's automatic mixed precision does it
// (https://docs.pytorch.org/docs/stable/amp.html, op-specific behavior):
//
//   - products by weights, and of activations, are computed in 16 bits;
//   - what only moves numbers or treats each on its own follows what comes in: in 16
//     bits where all of that is, but for vectors of weights, which are rounded;
//   - everything else stays in 32 bits, above all sums and what grows without bound:
//     norms, softmax, means, powers; and so do the sums of residual branches that began
//     in 32 bits, as those of ViTs do with their table of positions.
//
// Batch normalisations become part of the convolution before them first, while they
// still have 32 bits. Weights beyond ±65504 keep their operator in 32 bits.
func FileHalf(path string) ([]byte, error) {
	g, err := onnx.ReadFile(path, onnx.BindBatch(1), onnx.KeepOpen())
	if err != nil {
		return nil, err
	}
	defer g.Close()
	if err := foldNorms(g); err != nil {
		return nil, err
	}
	n, err := halve(g)
	if err != nil {
		return nil, err
	}
	if n == 0 {
		return nil, errNoHalf
	}
	return g.Bytes()
}

var errNoHalf = fmt.Errorf("%w: 16 bits are for matrix products and convolutions by weights of at most ±65504", ErrNothingToLower)

// CheckHalf says why FileHalf will fail on the model at path, or nil, like CheckInt8: it
// looks for a product whose weights 16 bits hold.
func CheckHalf(path string) error {
	h := newHalver(nil)
	return lookFor(path, errNoHalf, foldNorms, func(n *onnx.Node) bool { return slices.Contains(halfProducts, n.OpType) && h.lowers(n) })
}

var (
	halfProducts = []string{"Conv", "ConvTranspose", "MatMul", "Gemm"}
	halfMoves    = []string{
		"Reshape", "Transpose", "Slice", "Split", "Concat", "Squeeze", "Unsqueeze", "Flatten", "Expand", "Gather", "Identity", "DepthToSpace", "SpaceToDepth",
	}
	halfFollows = append([]string{
		"Add", "Sub", "Mul", "Div", "Neg", "Abs", "Relu", "LeakyRelu", "PRelu", "Elu", "Clip", "Sigmoid", "HardSigmoid", "HardSwish", "Tanh", "Erf", "Gelu",
		"MaxPool", "Pad", "Where",
	}, halfMoves...)
)

// halve puts operators of 16 bits in the place of those that are to be, with casts
// where the precision changes, and returns how many products there were. What nobody
// reads of the casts is left out when the graph is written.
func halve(g *onnx.Graph) (products int, err error) {
	h := newHalver(g)
	_, err = replaceEach(g, func(n *onnx.Node) func() []*onnx.Value {
		if !h.lowers(n) {
			return nil
		}
		if slices.Contains(halfProducts, n.OpType) {
			products++
		}
		return func() []*onnx.Value {
			in := slices.Clone(n.Inputs)
			for i, x := range in {
				if isFloat(x) {
					in[i] = h.half(x)
				}
			}
			out := g.OpN(n.OpType, len(n.Outputs), n.Attrs, in...)
			for i := range out {
				out[i] = g.Cast(out[i], onnx.Float)
			}
			return out
		}
	})
	if err != nil {
		err = fmt.Errorf("lower to 16 bits: %w", err)
	}
	return products, err
}

type halver struct {
	g     *onnx.Graph
	known map[*onnx.Value]*onnx.Tensor // of 16 bits; nil where it does not fit
	made  map[*onnx.Value]*onnx.Value  // float values in 16 bits
	moved map[*onnx.Value]bool         // whether from weights that do not fit
}

func newHalver(g *onnx.Graph) *halver {
	return &halver{g: g, known: map[*onnx.Value]*onnx.Tensor{}, made: map[*onnx.Value]*onnx.Value{}, moved: map[*onnx.Value]bool{}}
}

func isFloat(v *onnx.Value) bool { return v != nil && v.Type() == onnx.Float }

// lowers says whether a node is computed in 16 bits.
func (h *halver) lowers(n *onnx.Node) bool {
	if n.Domain != "" || slices.ContainsFunc(n.Outputs, func(v *onnx.Value) bool { return !isFloat(v) || v.Name() == "" || v.Const() != nil }) {
		return false
	}
	product := slices.Contains(halfProducts, n.OpType)
	if !product && !slices.Contains(halfFollows, n.OpType) {
		return false
	}
	comes := product
	for _, x := range n.Inputs {
		if !isFloat(x) {
			continue
		}
		numbers := known(x)
		switch {
		case numbers == nil:
			comes = comes || origin(x) != nil
			if !product && origin(x) == nil || product && h.beyond(x) {
				return false
			}
		case !h.fits(x, numbers) || !product && !isVector(x):
			return false
		}
	}
	return comes
}

// origin is the value of 16 bits that x was widened from, or nil.
func origin(x *onnx.Value) *onnx.Value {
	if n := x.Producer(); n != nil && n.OpType == "Cast" && n.Inputs[0].Type() == onnx.Float16 {
		return n.Inputs[0]
	}
	return nil
}

// isVector says whether at most one dimension is not 1.
func isVector(x *onnx.Value) bool {
	return !slices.ContainsFunc(x.Shape(), func(d int) bool { return d != 1 && d != x.Elements() })
}

// beyond says whether x is moved from weights that 16 bits do not hold.
func (h *halver) beyond(x *onnx.Value) bool {
	if numbers := known(x); numbers != nil {
		return !h.fits(x, numbers)
	}
	bad, seen := h.moved[x]
	if n := x.Producer(); !seen && n != nil && n.Domain == "" && slices.Contains(halfMoves, n.OpType) {
		bad = slices.ContainsFunc(n.Inputs, func(v *onnx.Value) bool { return isFloat(v) && h.beyond(v) })
		h.moved[x] = bad
	}
	return bad
}

// fits says whether 16 bits hold the numbers that x is known to be.
func (h *halver) fits(x *onnx.Value, numbers []float32) bool {
	t, seen := h.known[x]
	if seen {
		return t != nil
	}
	if data, ok := halves(numbers); ok {
		t = &onnx.Tensor{Type: onnx.Float16, Shape: x.Shape(), Data: data}
	}
	h.known[x] = t
	return t != nil
}

// halves are numbers in 16 bits; ok is false where one does not fit.
func halves(numbers []float32) (data []byte, ok bool) {
	data = make([]byte, 2*len(numbers))
	var bad atomic.Bool
	var wg sync.WaitGroup
	part := max(len(numbers)/runtime.GOMAXPROCS(0)+1, 1<<14)
	for from := 0; from < len(numbers); from += part {
		to := min(from+part, len(numbers))
		wg.Go(func() {
			out := data[2*from : 2*to]
			for i, v := range numbers[from:to] {
				h, fits := onnx.ToHalf(v)
				if !fits {
					bad.Store(true)
					return
				}
				binary.LittleEndian.PutUint16(out[2*i:], h)
			}
		})
	}
	wg.Wait()
	return data, !bad.Load()
}

// half is x in 16 bits.
func (h *halver) half(x *onnx.Value) *onnx.Value {
	if v := origin(x); v != nil {
		return v
	}
	if v := h.made[x]; v != nil {
		return v
	}
	if t := h.known[x]; t != nil {
		h.made[x] = h.g.Initializer(*t)
	} else {
		h.made[x] = h.g.Cast(x, onnx.Float16)
	}
	return h.made[x]
}

// foldNorms makes batch normalisations part of the convolutions whose results they
// alone read: y = s·(conv(x, w) + b − mean) + bias with s = scale/√(variance + ε) is
// conv(x, s·w) + s·(b − mean) + bias.
func foldNorms(g *onnx.Graph) error {
	reads := map[*onnx.Value]int{}
	for _, v := range g.Outputs() {
		reads[v]++
	}
	for _, n := range g.Nodes() {
		for _, v := range n.Reads() {
			reads[v]++
		}
	}
	_, err := replaceEach(g, func(n *onnx.Node) func() []*onnx.Value {
		if n.OpType != "BatchNormalization" || n.Domain != "" || len(n.Outputs) != 1 || n.Attrs.Int("training_mode", 0) != 0 {
			return nil
		}
		conv := n.Inputs[0].Producer()
		if conv == nil || conv.OpType != "Conv" || conv.Domain != "" || reads[n.Inputs[0]] != 1 {
			return nil
		}
		w, bias, ok := folded(conv, n)
		if !ok {
			return nil
		}
		return func() []*onnx.Value {
			return []*onnx.Value{g.Op("Conv", conv.Attrs, conv.Inputs[0], g.Initializer(w), g.Initializer(bias))}
		}
	})
	if err != nil {
		return fmt.Errorf("fold batch normalisations: %w", err)
	}
	return nil
}

// folded are the weights and the bias of a convolution with a batch normalisation in
// it; ok is false where they are not known or not finite.
func folded(conv, norm *onnx.Node) (w, bias onnx.Tensor, ok bool) {
	from := conv.Inputs[1]
	channels := from.Dim(0)
	var p [4][]float32 // scale, bias, mean, variance
	for i := range p {
		if p[i] = known(norm.Inputs[i+1]); len(p[i]) != channels {
			return w, bias, false
		}
	}
	before := make([]float32, channels)
	if b := conv.Input(2); b != nil {
		before = known(b)
	}
	numbers := known(from)
	if channels == 0 || len(before) != channels || len(numbers) != from.Elements() {
		return w, bias, false
	}
	size := len(numbers) / channels
	out, add := make([]float32, len(numbers)), make([]float32, channels)
	epsilon := float64(norm.Attrs.Float("epsilon", 1e-5))
	for c := range channels {
		s := float64(p[0][c]) / math.Sqrt(float64(p[3][c])+epsilon)
		shift := s*(float64(before[c])-float64(p[2][c])) + float64(p[1][c])
		if s-s != 0 || shift-shift != 0 {
			return w, bias, false
		}
		add[c] = float32(shift)
		for i := c * size; i < (c+1)*size; i++ {
			out[i] = float32(s * float64(numbers[i]))
		}
	}
	return onnx.FromFloat32("", out, from.Shape()...), onnx.FromFloat32("", add, channels), true
}
