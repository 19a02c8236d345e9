package lower

import (
	"cmp"
	"errors"
	"fmt"
	"math"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/nearmiss/nearmiss/inference/onnx"
)

// ErrNothingToLower is returned for a model without an operator that fewer bits make
// faster.
var ErrNothingToLower = errors.New("it has nothing that fewer bits make faster")

var errNoInt8 = fmt.Errorf("%w: 8 bits are for matrix products of %d rows and more, which ViTs have and convolutions are not", ErrNothingToLower, leastRows)

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
// An attention whose queries, keys and values are one product becomes one node
// (QAttention, with the same results).
//
// What a picture gives so depends on the others of its batch: for results that do
// not, run one at a time.
//
// The products that float names, by their results, stay in 32 bits.
func FileInt8(path string, float []string) ([]byte, error) {
	g, free, err := openBatch(path)
	if err != nil {
		return nil, err
	}
	defer g.Close()
	if err := haveProducts(g, float); err != nil {
		return nil, err
	}
	allowed := func(n *onnx.Node) bool { return free[n.Outputs[0].Name()] }
	n, err := quantize(g, float, allowed)
	if err != nil {
		return nil, err
	}
	if n == 0 {
		return nil, errNoInt8
	}
	if _, err := rewrite(g, allowed); err != nil {
		return nil, err
	}
	return g.Bytes()
}

// CheckInt8 says why FileInt8 will fail on the model at path, or nil: it looks for
// products and rounds none.
func CheckInt8(path string) error {
	return lookFor(path, errNoInt8, nil, func(n *onnx.Node) bool { _, _, ok := product(n); return ok })
}

// lookFor returns none where no node of the model at path, prepared first if it is to
// be, is such a one.
func lookFor(path string, none error, prepare func(*onnx.Graph) error, such func(*onnx.Node) bool) error {
	g, err := onnx.ReadFile(path, onnx.BindBatch(1))
	if err != nil {
		return err
	}
	defer g.Close()
	if prepare != nil {
		if err := prepare(g); err != nil {
			return err
		}
	}
	if !slices.ContainsFunc(g.Live(), such) {
		return none
	}
	return nil
}

// Product is one that FileInt8 computes in 8 bits.
type Product struct {
	// Name is that of its result, a matrix of rows of so many numbers.
	Name string
	Out  int
	// Gain is by how much it multiplies the variance of noise that all that comes in
	// has: the sum of the squares of a column's weights, on the mean.
	Gain float64
}

// Int8Probe returns the model at path with three further outputs for each product that
// FileInt8 would compute in 8 bits, in their order: the least and the largest number that
// comes in, and what comes of it in 32 bits, rows of Product.Out numbers.
func Int8Probe(path string) (model []byte, products []Product, err error) {
	g, err := onnx.ReadFile(path, onnx.BindBatch(1), onnx.KeepOpen())
	if err != nil {
		return nil, nil, err
	}
	defer g.Close()
	for _, n := range g.Live() {
		w, _, ok := product(n)
		if !ok {
			continue
		}
		x, y := n.Inputs[0], n.Outputs[0]
		axes := onnx.Axes(0, x.Rank())
		name := y.Name()
		restore := g.Scope(name + "/probe") // the model's own nodes may be called as new ones are
		g.Output(name+"/least", g.Reduce("ReduceMin", x, true, axes...))
		g.Output(name+"/largest", g.Reduce("ReduceMax", x, true, axes...))
		rows := g.Reshape(y, -1, w.out)
		g.Output(name+"/rows", rows)
		rows.SetDimName(0, "rows")
		restore()
		sum := 0.0
		for _, v := range w.data {
			sum += float64(v) * float64(v)
		}
		products = append(products, Product{Name: name, Out: w.out, Gain: sum / float64(w.out)})
	}
	if len(products) == 0 {
		return nil, nil, errNoInt8
	}
	if model, err = g.Bytes(); err != nil {
		return nil, nil, err
	}
	return model, products, nil
}

// haveProducts says which of the named products g does not have.
func haveProducts(g *onnx.Graph, names []string) error {
	for _, name := range names {
		if v := g.Lookup(name); v == nil || v.Producer() == nil {
			return fmt.Errorf("it has no product %q, which is to stay in 32 bits", name)
		}
	}
	return nil
}

// quantize puts products in 8 bits in the place of those by weights, but for those that
// are named, and returns how many there were. Where one makes the queries, keys and
// values of an attention, one node computes all of that.
func quantize(g *onnx.Graph, float []string, allowed func(*onnx.Node) bool) (replaced int, err error) {
	eight := func(n *onnx.Node) (q, scales, bias *onnx.Value) {
		if n == nil || slices.Contains(float, n.Outputs[0].Name()) {
			return nil, nil, nil
		}
		w, bias, ok := product(n)
		if !ok {
			return nil, nil, nil
		}
		rounded, s, finite := w.rounded()
		if !finite {
			return nil, nil, nil
		}
		return g.Initializer(onnx.Tensor{Type: onnx.Int8, Shape: []int{w.in, w.out}, Data: rounded}), g.Initializer(onnx.FromFloat32("", s, w.out)), bias
	}
	for _, with := range []func(*onnx.Node) func() []*onnx.Value{
		func(n *onnx.Node) func() []*onnx.Value {
			if !allowed(n) {
				return nil
			}
			of, tokens, heads := selfAttention(n)
			q, scales, bias := eight(of)
			if q == nil {
				return nil
			}
			return func() []*onnx.Value {
				if bias == nil {
					bias = g.Repeated(onnx.Float, 0, q.Dim(1))
				}
				x := g.OpN("DynamicQuantizeLinear", 3, nil, g.Reshape(of.Inputs[0], -1, tokens, q.Dim(0)))
				return []*onnx.Value{g.Reshape(g.Op(onnx.Microsoft+":QAttention", onnx.Attrs{"num_heads": heads},
					x[0], q, bias, x[1], scales, nil, x[2]), -1, q.Dim(1)/3)}
			}
		},
		func(n *onnx.Node) func() []*onnx.Value {
			q, scales, bias := eight(n)
			if q == nil {
				return nil
			}
			return func() []*onnx.Value {
				return []*onnx.Value{g.Op(onnx.Microsoft+":DynamicQuantizeMatMul", nil, n.Input(0), q, scales, nil, bias)}
			}
		},
	} {
		more, err := replaceEach(g, with)
		if err != nil {
			return replaced, fmt.Errorf("lower to 8 bits: %w", err)
		}
		replaced += more
	}
	return replaced, nil
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
	return w, bias, len(w.data) == w.in*w.out
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

// rounded are the weights as int8, row-major [in, out], and the scale of each
// column: weight ≈ scale·int8. finite is false where a weight is not.
func (w weights) rounded() (q []byte, scales []float32, finite bool) {
	q, scales = make([]byte, w.in*w.out), make([]float32, w.out)
	const most float32 = 127
	var bad atomic.Bool
	columns := func(from, to int) {
		inverse := make([]float32, to-from)
		for j := from; j < to; j++ {
			// Without their sign, the bits of floats are in the floats' order, infinity
			// and what is no number last.
			bits, at := uint32(0), j*w.across
			for range w.in {
				bits = max(bits, math.Float32bits(w.data[at])&^(1<<31))
				at += w.down
			}
			largest := math.Float32frombits(bits)
			if !(largest <= math.MaxFloat32) {
				bad.Store(true)
			}
			largest = cmp.Or(largest, most)
			scales[j], inverse[j-from] = largest/most, most/largest
		}
		for i := range w.in {
			row, at := q[i*w.out+from:i*w.out+to], i*w.down+from*w.across
			for j := range row {
				// What is left of a number of at most 2^22 after 1.5·2^23 is added is the
				// integer nearest to it.
				row[j] = byte(math.Float32bits(w.data[at]*inverse[j] + 3<<22))
				at += w.across
			}
		}
	}
	var wg sync.WaitGroup
	parts := min(runtime.GOMAXPROCS(0), w.out)
	for p := range parts {
		wg.Go(func() {
			const block = 64 // columns whose numbers the cache keeps
			end := w.out * (p + 1) / parts
			for from := w.out * p / parts; from < end; from += block {
				columns(from, min(from+block, end))
			}
		})
	}
	wg.Wait()
	return q, scales, !bad.Load()
}
