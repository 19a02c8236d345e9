package lower

import (
	"errors"
	"fmt"
	"math"
	"runtime"
	"slices"
	"sync"

	"github.com/nearmiss/nearmiss/inference/onnx"
)

// ErrNothingToQuantize is returned for a model without a product that 8 bits make
// faster: ViTs have many, convolutions are none.
var ErrNothingToQuantize = errors.New("it has no matrix product that is large enough for 8 bits")

// Below these sizes of a product [rows, in]·[in, out] its rounding costs more time
// than its arithmetic saves, as where the class token alone is computed; the rows
// are those of one image.
const (
	leastRows  = 16
	leastInner = 64
	leastOuter = 64
)

// FileInt8 returns the model at path lowered as FileForCPU does it, and with its
// products by weights computed in 8 bits: weights are rounded once, each column by a
// scale of its own, and what comes in at every run, by one scale and zero point for
// all of it (ONNX Runtime's operator DynamicQuantizeMatMul, which its integer
// kernels compute, with VNNI or AMX where the processor has them).
//
// What a picture gives so depends on the others of its batch: for results that do
// not, run one at a time.
func FileInt8(path string) ([]byte, error) {
	g, free, err := openBatch(path)
	if err != nil {
		return nil, err
	}
	defer g.Close()
	n, err := quantize(g)
	if err != nil {
		return nil, err
	}
	if n == 0 {
		return nil, ErrNothingToQuantize
	}
	if _, err := rewrite(g, func(n *onnx.Node) bool { return free[n.Outputs[0].Name()] }); err != nil {
		return nil, err
	}
	return g.Bytes()
}

// quantize puts products in 8 bits in the place of those by weights and returns how
// many there were.
func quantize(g *onnx.Graph) (replaced int, err error) {
	for _, n := range slices.Clone(g.Nodes()) {
		w, bias, ok := product(n)
		if !ok {
			continue
		}
		err := g.Replace(n, func() []*onnx.Value {
			defer g.Scope(n.Name)()
			q, scales := w.rounded()
			return []*onnx.Value{g.Op(onnx.Microsoft+":DynamicQuantizeMatMul", nil, n.Input(0),
				g.Initializer(onnx.Tensor{Type: onnx.Int8, Shape: []int{w.in, w.out}, Data: q}),
				g.Initializer(onnx.FromFloat32("", scales, w.out)), nil, bias)}
		})
		if err != nil {
			return replaced, fmt.Errorf("lower to 8 bits: %w", err)
		}
		replaced++
	}
	return replaced, g.Err()
}

// weights are those of a product, element (i, j) at i·down + j·across.
type weights struct {
	data         []float32
	in, out      int
	down, across int
}

// product says whether n multiplies enough rows of an image by weights, and gives
// these and what is added, or nil.
func product(n *onnx.Node) (w weights, bias *onnx.Value, ok bool) {
	if n.Domain != "" || len(n.Inputs) < 2 {
		return w, nil, false
	}
	x, b := n.Inputs[0], n.Inputs[1]
	if x.Type() != onnx.Float || x.Rank() < 2 || b.Rank() != 2 {
		return w, nil, false
	}
	w = weights{in: b.Dim(0), out: b.Dim(1), down: b.Dim(1), across: 1}
	switch n.OpType {
	case "MatMul":
	case "Gemm":
		a := n.Attrs
		if a.Int("transA", 0) != 0 || a.Float("alpha", 1) != 1 || a.Float("beta", 1) != 1 {
			return w, nil, false
		}
		if a.Int("transB", 0) != 0 {
			w = weights{in: b.Dim(1), out: b.Dim(0), down: 1, across: b.Dim(1)}
		}
		if bias = n.Input(2); bias != nil && (bias.Rank() != 1 || bias.Dim(0) != w.out) {
			return w, nil, false
		}
	default:
		return w, nil, false
	}
	if x.Elements()/max(w.in, 1) < leastRows || w.in < leastInner || w.out < leastOuter {
		return w, nil, false
	}
	w.data = known(b)
	return w, bias, len(w.data) == w.in*w.out && finite(w.data)
}

// known are the numbers of a value that is an initialiser, or one in another shape,
// or rows of one; nil of others.
func known(v *onnx.Value) []float32 {
	if c := v.Const(); c != nil {
		return c.Float32s()
	}
	n := v.Producer()
	if n == nil || n.Domain != "" {
		return nil
	}
	switch n.OpType {
	case "Reshape", "Identity":
		return known(n.Inputs[0])
	case "Slice":
		from := n.Inputs[0]
		var at [4]int64 // start, end, axis, step
		for i, def := range []int64{0, 0, 0, 1} {
			at[i] = def
			if in := n.Input(i + 1); in != nil {
				c := in.Const()
				if c == nil || len(c.Ints()) != 1 {
					return nil
				}
				at[i] = c.Ints()[0]
			}
		}
		data, row := known(from), from.Elements()/max(from.Dim(0), 1)
		end := at[0] + int64(v.Dim(0))
		if at[2] != 0 || at[3] != 1 || at[0] < 0 || end > int64(from.Dim(0)) || len(data) != from.Elements() {
			return nil
		}
		return data[int(at[0])*row : int(end)*row]
	}
	return nil
}

func finite(v []float32) bool {
	for _, x := range v {
		if f := float64(x); math.IsNaN(f) || math.IsInf(f, 0) {
			return false
		}
	}
	return true
}

// rounded are the weights as int8, row-major [in, out], and the scale of each
// column: weight ≈ scale·int8.
func (w weights) rounded() (q []byte, scales []float32) {
	q, scales = make([]byte, w.in*w.out), make([]float32, w.out)
	const most = 127
	columns := func(from, to int) {
		for j := from; j < to; j++ {
			largest := float32(0)
			for i := range w.in {
				largest = max(largest, float32(math.Abs(float64(w.data[i*w.down+j*w.across]))))
			}
			if largest == 0 {
				scales[j] = 1
				continue
			}
			scales[j] = largest / most
		}
		for i := range w.in {
			for j := from; j < to; j++ {
				q[i*w.out+j] = byte(int8(math.RoundToEven(float64(w.data[i*w.down+j*w.across] / scales[j]))))
			}
		}
	}
	var wg sync.WaitGroup
	parts := min(runtime.GOMAXPROCS(0), w.out)
	for p := range parts {
		wg.Go(func() { columns(w.out*p/parts, w.out*(p+1)/parts) })
	}
	wg.Wait()
	return q, scales
}
