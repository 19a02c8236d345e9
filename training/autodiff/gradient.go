// Package autodiff differentiates ONNX graphs in reverse mode.
//
// [Gradient] walks a graph from a scalar loss to parameters and appends the
// nodes that compute the loss's gradients, so that a training step is an
// ordinary ONNX graph for an ordinary inference runtime. There is no
// intermediate representation: what can be loaded can be trained.
//
//	grads, err := autodiff.Gradient(g, loss, params)
//
// A rule is one small function per operator, in files by family; its comment
// has the formula. In all of them dY is the gradient of the loss with respect
// to the node's output Y. Rules emit only operators that both the CPU and the
// CUDA provider of ONNX Runtime have: no Col2Im, MaxUnpool, Bernoulli,
// GroupNormalization or SoftmaxCrossEntropyLoss. Nodes of these kinds in the
// graph are first decomposed, see decomposeNode.
package autodiff

import (
	"errors"
	"fmt"
	"slices"

	"github.com/nearmiss/nearmiss/inference/onnx"
)

// Target is the kind of device that the graph will run on. It changes how some
// gradients are computed, not what they are.
type Target int

const (
	// CPU prefers what ONNX Runtime's CPU kernels do fastest.
	CPU Target = iota
	// CUDA prefers cuDNN's own data gradients.
	CUDA
)

type options struct {
	target  Target
	segment func(node string) string
}

// Option changes how gradients are built.
type Option func(*options)

// For says which device the graph will run on; the default is [CPU].
func For(t Target) Option { return func(o *options) { o.target = t } }

// Gradient appends to g the nodes that compute the gradient of loss, which has
// one element, with respect to each of params: any floating-point values of g
// or of a graph around it, such as initialisers, inputs, the carried values of
// a Loop body or intermediate results. The gradients have the types and shapes
// of their parameters; one that does not influence the loss gets zeros.
//
// Nodes that do not lie between a parameter and the loss get no gradient nodes.
// Gradient fails on an operator without a rule, naming the node.
func Gradient(g *onnx.Graph, loss *onnx.Value, params []*onnx.Value, opts ...Option) ([]*onnx.Value, error) {
	var o options
	for _, f := range opts {
		f(&o)
	}
	if err := g.Err(); err != nil {
		return nil, fmt.Errorf("gradient: %w", err)
	}
	if loss == nil || loss.Graph() != g {
		return nil, errors.New("gradient: the loss is not a value of the graph")
	}
	if loss.Elements() != 1 {
		return nil, fmt.Errorf("gradient: the loss %v is not a scalar", loss)
	}
	for i, p := range params {
		if p == nil || !p.Type().IsFloat() {
			return nil, fmt.Errorf("gradient: parameter %d (%v) is not a floating-point value", i, p)
		}
	}
	t := &tape{g: g, target: o.target, grads: map[*onnx.Value][]part{}, summed: map[*onnx.Value]*onnx.Value{}}
	if err := t.decompose(params); err != nil {
		return nil, fmt.Errorf("gradient: %w", err)
	}
	t.active = reachable(g, params)
	t.uses = countUses(g)
	t.fused = t.findPatterns(g.Nodes())
	if err := t.run(loss, o); err != nil {
		return nil, fmt.Errorf("gradient: %w", err)
	}
	out := make([]*onnx.Value, len(params))
	for i, p := range params {
		if out[i] = t.gradient(p); out[i] == nil {
			out[i] = g.Filled(p.Type(), 0, p.Shape()...)
		}
	}
	if err := g.Err(); err != nil {
		return nil, fmt.Errorf("gradient: %w", err)
	}
	return out, nil
}

// tape is the state of one call of Gradient.
type tape struct {
	g      *onnx.Graph
	target Target
	active map[*onnx.Value]bool // depends on a parameter
	uses   map[*onnx.Value]int
	grads  map[*onnx.Value][]part
	summed map[*onnx.Value]*onnx.Value
	fused  map[*onnx.Node]rule // last nodes of recognised patterns
}

// part is one contribution to the gradient of a value: all of it, or, where
// axis is not negative, the elements from start on along that axis, zero
// elsewhere.
type part struct {
	value       *onnx.Value
	axis, start int
}

// reachable returns the floating-point values that depend on the parameters.
func reachable(g *onnx.Graph, params []*onnx.Value) map[*onnx.Value]bool {
	active := map[*onnx.Value]bool{}
	for _, p := range params {
		active[p] = true
	}
	for _, n := range g.Nodes() {
		if !slices.ContainsFunc(n.Reads(), func(v *onnx.Value) bool { return active[v] }) {
			continue
		}
		for _, v := range n.Outputs {
			if v.Type().IsFloat() {
				active[v] = true
			}
		}
	}
	return active
}

// countUses returns how many nodes read each value, graph outputs included.
func countUses(g *onnx.Graph) map[*onnx.Value]int {
	uses := map[*onnx.Value]int{}
	for _, n := range g.Nodes() {
		for _, v := range n.Reads() {
			uses[v]++
		}
	}
	for _, v := range g.Outputs() {
		uses[v]++
	}
	return uses
}

// run goes through the nodes from the last to the first and applies the rules.
func (t *tape) run(loss *onnx.Value, o options) error {
	if !t.active[loss] {
		return nil
	}
	t.add(loss, t.g.Filled(loss.Type(), 1, loss.Shape()...))
	runs, labels := t.segments(o.segment)
	for i, nodes := range slices.Backward(runs) {
		if labels[i] != "" && slices.ContainsFunc(nodes, t.due) {
			if err := t.runAgain(nodes); err != nil {
				return err
			}
			continue
		}
		for _, n := range slices.Backward(nodes) {
			if err := t.step(n); err != nil {
				return err
			}
		}
	}
	return t.g.Err()
}

// due reports whether a node has a gradient to pass on.
func (t *tape) due(n *onnx.Node) bool {
	return slices.ContainsFunc(n.Outputs, func(v *onnx.Value) bool { return len(t.grads[v]) > 0 }) &&
		slices.ContainsFunc(n.Reads(), func(v *onnx.Value) bool { return t.active[v] })
}

// step differentiates one node.
func (t *tape) step(n *onnx.Node) error {
	if !t.due(n) {
		return nil
	}
	r := t.fused[n]
	if r == nil {
		r = rules[key(n)]
	}
	if r == nil {
		return fmt.Errorf("no rule for the operator of node %s", n)
	}
	return t.apply(r, n)
}

func (t *tape) apply(r rule, n *onnx.Node) error {
	defer t.g.Scope("grad/" + n.Name)()
	b := &backward{tape: t, node: n}
	r(b)
	if b.err != nil {
		return fmt.Errorf("%s: %w", n, b.err)
	}
	return t.g.Err()
}

func key(n *onnx.Node) string {
	if n.Domain == "" {
		return n.OpType
	}
	return n.Domain + ":" + n.OpType
}

// A rule emits the gradients of a node's inputs from those of its outputs.
type rule func(b *backward)

// rules holds the rule of every operator by name, with the domain and a colon
// before it for other domains than ONNX's own. It is filled by the init
// functions of the files by family.
var rules = map[string]rule{}

func register(r rule, ops ...string) {
	for _, op := range ops {
		rules[op] = r
	}
}

// backward is a rule's view of its node.
type backward struct {
	*tape
	node *onnx.Node
	err  error
}

// failf reports that the rule cannot handle its node.
func (b *backward) failf(format string, args ...any) {
	if b.err == nil {
		b.err = fmt.Errorf(format, args...)
	}
}

// x returns input i, nil when it is absent.
func (b *backward) x(i int) *onnx.Value { return b.node.Input(i) }

// y returns output i.
func (b *backward) y(i int) *onnx.Value { return b.node.Outputs[i] }

// dy returns the gradient of output 0, or zeros when only another output has
// one.
func (b *backward) dy() *onnx.Value { return b.dyOf(0) }

func (b *backward) dyOf(i int) *onnx.Value {
	if d := b.gradient(b.node.Outputs[i]); d != nil {
		return d
	}
	y := b.node.Outputs[i]
	return b.g.Filled(y.Type(), 0, y.Shape()...)
}

// has reports whether output i has a gradient.
func (b *backward) has(i int) bool {
	return i < len(b.node.Outputs) && len(b.grads[b.node.Outputs[i]]) > 0
}

// wants reports whether the gradient of input i is needed.
func (b *backward) wants(i int) bool {
	v := b.x(i)
	return v != nil && b.active[v]
}

// give adds a contribution to the gradient of input i: summed over the axes
// along which the input was broadcast to the contribution's shape.
func (b *backward) give(i int, grad *onnx.Value) {
	if b.wants(i) {
		b.add(b.x(i), b.unbroadcast(grad, b.x(i).Shape()))
	}
}

// givePart adds a contribution that covers the elements from start on along an
// axis of input i.
func (b *backward) givePart(i, axis, start int, grad *onnx.Value) {
	if b.wants(i) {
		v := b.x(i)
		b.grads[v] = append(b.grads[v], part{grad, axis, start})
	}
}

func (t *tape) add(v, grad *onnx.Value) {
	t.grads[v] = append(t.grads[v], part{grad, -1, 0})
}

// unbroadcast sums grad over the axes that were broadcast from shape.
func (b *backward) unbroadcast(grad *onnx.Value, shape []int) *onnx.Value {
	from := grad.Shape()
	if slices.Equal(from, shape) || b.g.Err() != nil {
		return grad
	}
	extra := len(from) - len(shape)
	var axes []int
	for i, d := range from {
		if i < extra || shape[i-extra] == 1 && d != 1 {
			axes = append(axes, i)
		}
	}
	if len(axes) > 0 {
		grad = b.g.ReduceSum(grad, true, axes...)
	}
	return b.reshape(grad, shape)
}

// reshape gives v a shape; it adds no node when v has it.
func (b *backward) reshape(v *onnx.Value, shape []int) *onnx.Value {
	if slices.Equal(v.Shape(), shape) {
		return v
	}
	return reshapeTo(b.g, v, shape)
}

// reshapeTo reshapes to a literal shape, in which a 0 stands for no elements.
func reshapeTo(g *onnx.Graph, v *onnx.Value, shape []int) *onnx.Value {
	return g.Op("Reshape", onnx.Attrs{"allowzero": slices.Contains(shape, 0)}, v, g.Ints(shape...))
}

// gradient returns the sum of the contributions to v's gradient, nil when there
// are none.
func (t *tape) gradient(v *onnx.Value) *onnx.Value {
	parts := t.grads[v]
	if len(parts) == 0 {
		return nil
	}
	if s := t.summed[v]; s != nil {
		return s
	}
	var whole []*onnx.Value
	slicesOf := map[int][]part{} // by axis
	var axes []int
	for _, p := range parts {
		if p.axis < 0 {
			whole = append(whole, p.value)
			continue
		}
		if slicesOf[p.axis] == nil {
			axes = append(axes, p.axis)
		}
		slicesOf[p.axis] = append(slicesOf[p.axis], p)
	}
	for _, axis := range axes {
		whole = append(whole, t.assemble(v, axis, slicesOf[axis])...)
	}
	sum := whole[0]
	for _, w := range whole[1:] {
		sum = t.g.Add(sum, w)
	}
	t.summed[v] = sum
	return sum
}

// assemble joins contributions to stretches of one axis into whole gradients:
// stretches that do not overlap become one Concat, with zeros in between.
func (t *tape) assemble(v *onnx.Value, axis int, parts []part) []*onnx.Value {
	slices.SortStableFunc(parts, func(a, b part) int { return a.start - b.start })
	var out, overlapping []*onnx.Value
	var pieces []*onnx.Value
	end := 0
	gap := func(n int) {
		if n > 0 {
			shape := slices.Clone(v.Shape())
			shape[axis] = n
			pieces = append(pieces, t.g.Filled(v.Type(), 0, shape...))
		}
	}
	for _, p := range parts {
		n := p.value.Dim(axis)
		if p.start < end {
			pads := make([]int, 2*v.Rank())
			pads[axis] = p.start
			pads[v.Rank()+axis] = v.Dim(axis) - p.start - n
			overlapping = append(overlapping, t.g.Pad(p.value, pads...))
			continue
		}
		gap(p.start - end)
		pieces = append(pieces, p.value)
		end = p.start + n
	}
	gap(v.Dim(axis) - end)
	if len(pieces) == 1 {
		out = append(out, pieces[0])
	} else {
		out = append(out, t.g.Concat(axis, pieces...))
	}
	return append(out, overlapping...)
}
