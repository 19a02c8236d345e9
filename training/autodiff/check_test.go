package autodiff

import (
	"context"
	"flag"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"github.com/nearmiss/nearmiss/inference/onnx"
	"github.com/nearmiss/nearmiss/inference/ort"
)

func TestMain(m *testing.M) {
	flag.Parse()
	// The same shapes and values in every run, unless asked otherwise.
	asked := map[string]bool{}
	flag.Visit(func(f *flag.Flag) { asked[f.Name] = true })
	for name, value := range map[string]string{"rapid.seed": "1", "rapid.checks": "50", "rapid.nofailfile": "true"} {
		if !asked[name] {
			if err := flag.Set(name, value); err != nil {
				panic(err)
			}
		}
	}
	os.Exit(m.Run())
}

// bench is a graph under test with values for its inputs.
type bench struct {
	*rapid.T
	g      *onnx.Graph
	rng    *rand.Rand
	values map[*onnx.Value]array
	params []*onnx.Value
}

func newBench(t *rapid.T, opset int) *bench {
	seed := rapid.Uint64Range(1, 1<<40).Draw(t, "seed")
	return &bench{t, onnx.NewOpset("test", opset), rand.New(rand.NewPCG(seed, 1)), map[*onnx.Value]array{}, nil}
}

func (b *bench) n(low, high int, name string) int { return rapid.IntRange(low, high).Draw(b.T, name) }

func (b *bench) flip(name string) bool { return rapid.Bool().Draw(b.T, name) }

// input adds a graph input with values f of standard normal ones.
func (b *bench) input(f func(float64) float64, shape ...int) *onnx.Value {
	v := b.g.Input(fmt.Sprintf("x%d", len(b.values)), onnx.Float, shape...)
	a := newArray(shape...)
	for i := range a.data {
		a.data[i] = float64(float32(f(b.rng.NormFloat64())))
	}
	b.values[v] = a
	return v
}

// x adds a normally distributed parameter.
func (b *bench) x(shape ...int) *onnx.Value {
	return b.param(func(v float64) float64 { return v }, shape...)
}

func (b *bench) param(f func(float64) float64, shape ...int) *onnx.Value {
	v := b.input(f, shape...)
	b.params = append(b.params, v)
	return v
}

// positive is for parameters of logarithms, roots and divisors.
func positive(v float64) float64 { return 0.5 + math.Abs(v) }

// integers adds an int64 input with values below n.
func (b *bench) integers(n int, shape ...int) *onnx.Value {
	v := b.g.Input(fmt.Sprintf("i%d", len(b.values)), onnx.Int64, shape...)
	a := newArray(shape...)
	for i := range a.data {
		a.data[i] = float64(b.rng.IntN(n))
	}
	b.values[v] = a
	return v
}

// shape draws a shape of the given rank.
func (b *bench) shape(rank int) []int {
	s := make([]int, rank)
	for i := range s {
		s[i] = b.n(1, 4, fmt.Sprintf("dim%d", i))
	}
	return s
}

// broadcastable turns some dimensions of a shape into 1 or drops leading ones.
func (b *bench) broadcastable(shape []int) []int {
	s := slices.Clone(shape)
	for i := range s {
		if b.flip("narrow") {
			s[i] = 1
		}
	}
	return s[b.n(0, len(s), "dropped"):]
}

// checkRule builds a graph many times and compares the gradients of Σ c·y, with
// random c, against central differences of the float64 reference, and, for the
// first draws, what ONNX Runtime computes against both.
func checkRule(t *testing.T, build func(b *bench) *onnx.Value) {
	t.Helper()
	for _, target := range []Target{CPU, CUDA} {
		draws := 0
		rapid.Check(t, func(rt *rapid.T) {
			draws++
			b := newBench(rt, onnx.DefaultOpset)
			b.check(build(b), target, draws <= 2)
		})
	}
}

func (b *bench) check(y *onnx.Value, target Target, run bool) {
	b.Helper()
	if err := b.g.Err(); err != nil {
		b.Fatal(err)
	}
	weights := b.g.Initializer(onnx.FromFloat32("", b.floats(y.Elements()), y.Shape()...))
	loss := b.g.ReduceSum(b.g.Mul(y, weights), false)
	want := make([][]float64, len(b.params))
	for i, p := range b.params {
		want[i] = b.differences(loss, p)
	}
	grads, err := Gradient(b.g, loss, b.params, For(target))
	if err != nil {
		b.Fatal(err)
	}
	got, err := evaluate(b.g, b.values, grads...)
	if err != nil {
		b.Fatal(err)
	}
	for i, p := range b.params {
		b.compare("reference", p, got[i].data, want[i], 2e-6)
	}
	if run {
		for i, data := range runGraph(b, b.g, b.values, grads...) {
			b.compare("ONNX Runtime", b.params[i], data, got[i].data, 2e-4)
		}
	}
}

func (b *bench) floats(n int) []float32 {
	out := make([]float32, n)
	for i := range out {
		out[i] = float32(b.rng.NormFloat64())
	}
	return out
}

// differences returns central differences of the loss in the elements of p, NaN
// for those that are left out when there are many.
func (b *bench) differences(loss, p *onnx.Value) []float64 {
	const h = 1e-5
	data := b.values[p].data
	out := make([]float64, len(data))
	at := func(i int, v float64) float64 {
		before := data[i]
		data[i] = v
		r, err := evaluate(b.g, b.values, loss)
		if err != nil {
			b.Fatal(err)
		}
		data[i] = before
		return r[0].data[0]
	}
	for i := range data {
		out[i] = math.NaN()
	}
	for range min(len(data), 10) {
		i := b.rng.IntN(len(data))
		out[i] = (at(i, data[i]+h) - at(i, data[i]-h)) / (2 * h)
	}
	return out
}

func (b *bench) compare(who string, p *onnx.Value, got, want []float64, tolerance float64) {
	b.Helper()
	if len(got) != len(want) {
		b.Fatalf("%s: gradient of %s has %d elements, wants %d", who, p.Name(), len(got), len(want))
	}
	scale := 1.0
	for _, w := range want {
		if !math.IsNaN(w) {
			scale = math.Max(scale, math.Abs(w))
		}
	}
	for i, w := range want {
		if math.IsNaN(w) {
			continue
		}
		if d := math.Abs(got[i] - w); !(d <= tolerance*scale) {
			b.Fatalf("%s: gradient of %s%v at %d is %v, wants %v", who, p.Name(), p.Shape(), i, got[i], w)
		}
	}
}

// runGraph computes values with ONNX Runtime; they become graph outputs.
func runGraph(t fataler, g *onnx.Graph, inputs map[*onnx.Value]array, values ...*onnx.Value) [][]float64 {
	t.Helper()
	first := len(g.Outputs())
	for i, v := range values {
		g.Output(fmt.Sprintf("result%d", i), v)
	}
	model, err := g.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	s, err := ort.OpenBytes(model, ort.Options{IntraOpThreads: 1})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	var in []*ort.Tensor
	for _, v := range g.Inputs() {
		in = append(in, tensor(t, v.Type(), inputs[v]))
	}
	out, err := s.Run(context.Background(), in)
	if err != nil {
		t.Fatal(err)
	}
	defer ort.CloseAll(append(in, out...)...)
	result := make([][]float64, len(values))
	for i, v := range out[first:] {
		for _, f := range v.Float32s() {
			result[i] = append(result[i], float64(f))
		}
	}
	return result
}

type fataler interface {
	Helper()
	Fatal(args ...any)
}

func tensor(t fataler, typ onnx.DataType, a array) *ort.Tensor {
	t.Helper()
	var out *ort.Tensor
	var err error
	switch typ {
	case onnx.Int64:
		ints := make([]int64, len(a.data))
		for i, v := range a.data {
			ints[i] = int64(v)
		}
		out, err = ort.NewTensor(a.shape, ints)
	default:
		floats := make([]float32, len(a.data))
		for i, v := range a.data {
			floats[i] = float32(v)
		}
		out, err = ort.NewTensor(a.shape, floats)
	}
	if err != nil {
		t.Fatal(err)
	}
	return out
}
