package onnx

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
)

// DefaultOpset is the operator set of graphs made by [New].
const DefaultOpset = 21

// Microsoft is the domain of ONNX Runtime's own operators.
const Microsoft = "com.microsoft"

// Value is one edge of a graph: a tensor with a static type and shape.
type Value struct {
	name     string
	typ      DataType
	shape    []int
	dimNames map[int]string
	producer *Node
	index    int
	constant *Tensor
	graph    *Graph
	kind     valueKind
	bad      bool // stands in for the result of a node that failed
}

type valueKind uint8

const (
	computed valueKind = iota
	input
	initializer
)

// Name returns the name that is unique in the model.
func (v *Value) Name() string { return v.name }

// Type returns the element type.
func (v *Value) Type() DataType { return v.typ }

// Shape returns the dimensions; the caller must not change them.
func (v *Value) Shape() []int { return v.shape }

// Rank returns the number of dimensions.
func (v *Value) Rank() int { return len(v.shape) }

// Dim returns one dimension; a negative axis counts from the end. It returns 0
// for an axis that does not exist, so that a chain of calls on a graph that
// already failed does not panic.
func (v *Value) Dim(axis int) int {
	if axis < 0 {
		axis += len(v.shape)
	}
	if axis < 0 || axis >= len(v.shape) {
		return 0
	}
	return v.shape[axis]
}

// Elements returns the product of the dimensions.
func (v *Value) Elements() int { return Elements(v.shape) }

// Producer returns the node that computes the value, nil for graph inputs and
// initialisers.
func (v *Value) Producer() *Node { return v.producer }

// Const returns the value when it is known: an initialiser, or the result of
// folding; nil otherwise.
func (v *Value) Const() *Tensor { return v.constant }

// Graph returns the graph that the value belongs to, which is an outer graph
// where a Loop body uses it from outside.
func (v *Value) Graph() *Graph { return v.graph }

// SetDimName writes the dimension of a graph input or output as a named free
// dimension in the file. Shapes inside the graph stay those of the number that
// it was built with: name a dimension only when no Reshape or constant of the
// graph depends on it.
func (v *Value) SetDimName(axis int, name string) {
	if axis < 0 {
		axis += len(v.shape)
	}
	if axis < 0 || axis >= len(v.shape) {
		return
	}
	if v.dimNames == nil {
		v.dimNames = map[int]string{}
	}
	v.dimNames[axis] = name
}

// String returns the name, type and shape.
func (v *Value) String() string {
	if v == nil {
		return "none"
	}
	return fmt.Sprintf("%s %s%v", v.name, v.typ, v.shape)
}

// Node is one operator of a graph.
type Node struct {
	Name    string
	OpType  string
	Domain  string   // empty for ONNX's own operators
	Inputs  []*Value // nil for an optional input that is absent
	Outputs []*Value // an optional output that nobody asked for has an empty name
	Attrs   Attrs
	graph   *Graph
}

// Input returns input i, nil when it is absent.
func (n *Node) Input(i int) *Value {
	if i < len(n.Inputs) {
		return n.Inputs[i]
	}
	return nil
}

// Graph returns the graph that the node is in.
func (n *Node) Graph() *Graph { return n.graph }

// String returns the operator and name, as error messages show it.
func (n *Node) String() string {
	if n.Domain != "" {
		return fmt.Sprintf("%s.%s %q", n.Domain, n.OpType, n.Name)
	}
	return fmt.Sprintf("%s %q", n.OpType, n.Name)
}

// Graph is an ONNX graph under construction, or the body of a Loop or If.
// It is not safe for concurrent use.
type Graph struct {
	name         string
	opset        int
	parent       *Graph // of a subgraph
	inputs       []*Value
	outputs      []*Value
	outputNames  map[*Value]string
	initializers []*Value
	nodes        []*Node
	values       map[string]*Value
	constants    map[string]*Value
	scope        string
	err          error

	rootGraph
}

// rootGraph is what a root graph alone has.
type rootGraph struct {
	names     map[string]int // how often a name was asked for, in all subgraphs; below 0: only a node that was read has it
	metadata  map[string]string
	foldBytes int // what folding has allocated
	release   []func() error
	mapped    map[string][]byte // files that weights lie in, by their names in the model's folder
}

// New returns an empty graph of operator set [DefaultOpset].
func New(name string) *Graph { return NewOpset(name, DefaultOpset) }

// NewOpset returns an empty graph of another operator set, 13 to 23.
func NewOpset(name string, opset int) *Graph {
	g := newGraph(name, opset)
	g.names = map[string]int{}
	g.metadata = map[string]string{}
	g.mapped = map[string][]byte{}
	if opset < minOpset || opset > maxOpset {
		g.fail(fmt.Errorf("operator set %d is not one of %d to %d", opset, minOpset, maxOpset))
	}
	return g
}

const (
	minOpset = 13
	maxOpset = 23
)

func newGraph(name string, opset int) *Graph {
	return &Graph{
		name:        name,
		opset:       opset,
		outputNames: map[*Value]string{},
		values:      map[string]*Value{},
		constants:   map[string]*Value{},
	}
}

// subgraph returns an empty body inside g.
func (g *Graph) subgraph(name string) *Graph {
	b := newGraph(name, g.opset)
	b.parent = g
	b.scope = g.scope
	return b
}

func (g *Graph) root() *Graph {
	for g.parent != nil {
		g = g.parent
	}
	return g
}

// Name returns the graph's name.
func (g *Graph) Name() string { return g.name }

// Opset returns the operator set of the default domain.
func (g *Graph) Opset() int { return g.opset }

// Err returns the first error, nil while there is none.
func (g *Graph) Err() error { return g.root().err }

// Fail records an error as if building a node had failed; only the first
// counts. Packages that build parts of graphs report through it.
func (g *Graph) Fail(err error) { g.fail(err) }

func (g *Graph) fail(err error) {
	if r := g.root(); r.err == nil && err != nil {
		r.err = err
	}
}

// Inputs returns the graph inputs in order.
func (g *Graph) Inputs() []*Value { return g.inputs }

// Outputs returns the graph outputs in order.
func (g *Graph) Outputs() []*Value { return g.outputs }

// Initializers returns the initialisers in order.
func (g *Graph) Initializers() []*Value { return g.initializers }

// Nodes returns the nodes in an order in which they can run.
func (g *Graph) Nodes() []*Node { return g.nodes }

// Lookup returns the value of that name in this graph or, for a subgraph, in
// the graphs around it; nil when there is none.
func (g *Graph) Lookup(name string) *Value {
	for ; g != nil; g = g.parent {
		if v := g.values[name]; v != nil {
			return v
		}
	}
	return nil
}

// SetMetadata sets an entry of the model's metadata_props.
func (g *Graph) SetMetadata(key, value string) { g.root().metadata[key] = value }

// Metadata returns the model's metadata_props; the caller must not change it.
func (g *Graph) Metadata() map[string]string { return g.root().metadata }

// Close unmaps the files that [ReadFile] mapped. Tensors of the graph must not
// be used after it.
func (g *Graph) Close() error {
	var errs []error
	for _, f := range g.release {
		errs = append(errs, f())
	}
	g.release = nil
	return errors.Join(errs...)
}

// Scope puts prefix and a slash before the names of nodes that are built until
// the returned function is called.
//
//	defer g.Scope("blocks.0/attn")()
func (g *Graph) Scope(prefix string) (restore func()) {
	before := g.scope
	g.scope += strings.TrimSuffix(prefix, "/") + "/"
	return func() { g.scope = before }
}

// unique returns a name that no value and no node of the model has yet.
func (g *Graph) unique(name string) string {
	names := g.root().names
	n, taken := names[name]
	if !taken {
		names[name] = 1
		return name
	}
	step := 1
	if n < 0 {
		step = -1
	}
	for ; ; n += step {
		candidate := name + "_" + strconv.Itoa(n*step)
		if _, taken := names[candidate]; !taken {
			names[candidate], names[name] = 1, n+step
			return candidate
		}
	}
}

// claim takes exactly this name, which no other value may have, or fails.
func (g *Graph) claim(name string) error {
	if name == "" {
		return errors.New("a value needs a name")
	}
	names := g.root().names
	if names[name] > 0 {
		return fmt.Errorf("the name %q is already taken", name)
	}
	names[name] = 1
	return nil
}

func (g *Graph) badValue() *Value { return &Value{graph: g, bad: true, name: "invalid"} }

// Input appends a graph input.
func (g *Graph) Input(name string, t DataType, shape ...int) *Value {
	if g.Err() != nil {
		return g.badValue()
	}
	if t.Size() == 0 {
		g.fail(fmt.Errorf("input %q: element type %s is not supported", name, t))
		return g.badValue()
	}
	if _, err := elements(shape); err != nil {
		g.fail(fmt.Errorf("input %q: %w", name, err))
		return g.badValue()
	}
	if err := g.claim(name); err != nil {
		g.fail(fmt.Errorf("input %q: %w", name, err))
		return g.badValue()
	}
	v := &Value{name: name, typ: t, shape: cloneShape(shape), graph: g, kind: input}
	g.inputs = append(g.inputs, v)
	g.values[name] = v
	return v
}

// Initializer appends a constant tensor; an empty name is replaced by a fresh
// one. The tensor's data is not copied.
func (g *Graph) Initializer(t Tensor) *Value {
	if g.Err() != nil {
		return g.badValue()
	}
	if t.Name == "" {
		t.Name = g.unique(g.scope + "const")
	} else if err := g.claim(t.Name); err != nil {
		g.fail(fmt.Errorf("initializer %q: %w", t.Name, err))
		return g.badValue()
	}
	if err := t.check(); err != nil {
		g.fail(err)
		return g.badValue()
	}
	v := &Value{name: t.Name, typ: t.Type, shape: cloneShape(t.Shape), graph: g, kind: initializer, constant: &t}
	g.initializers = append(g.initializers, v)
	g.values[t.Name] = v
	return v
}

// Output declares v to be the graph output of that name. A computed value is
// renamed; an input, an initialiser, a value of an outer graph or one that is
// an output already is passed through an Identity.
func (g *Graph) Output(name string, v *Value) {
	if g.Err() != nil {
		return
	}
	if v == nil || v.bad {
		g.fail(fmt.Errorf("output %q has no value", name))
		return
	}
	if _, already := g.outputNames[v]; already || v.kind != computed || v.graph != g {
		v = g.Op("Identity", nil, v)
		if v.bad {
			return
		}
	}
	if v.name != name {
		g.yield(name)
		if err := g.claim(name); err != nil {
			g.fail(fmt.Errorf("output %q: %w", name, err))
			return
		}
		delete(g.values, v.name)
		v.name = name
		g.values[name] = v
	}
	g.outputNames[v] = name
	g.outputs = append(g.outputs, v)
}

// yield renames a computed value that holds a name and is no output.
func (g *Graph) yield(name string) {
	v := g.values[name]
	if v == nil || v.kind != computed {
		return
	}
	if _, output := g.outputNames[v]; output {
		return
	}
	v.name = g.unique(name)
	g.values[v.name] = v
	delete(g.values, name)
	delete(g.root().names, name)
}

// Op appends a node with one output and returns it. A nil input is an absent
// optional one. The operator may carry its domain before a colon, as in
// "com.microsoft:FusedMatMul".
func (g *Graph) Op(op string, attrs Attrs, in ...*Value) *Value {
	return g.OpN(op, 1, attrs, in...)[0]
}

// OpN appends a node with its first n outputs and returns them. After an error
// it returns stand-ins that later calls pass over in silence.
func (g *Graph) OpN(op string, n int, attrs Attrs, in ...*Value) []*Value {
	failed := func(err error) []*Value {
		g.fail(err)
		out := make([]*Value, n)
		for i := range out {
			out[i] = g.badValue()
		}
		return out
	}
	if g.Err() != nil {
		return failed(nil)
	}
	domain, op := splitDomain(op)
	node := &Node{Name: g.unique(g.scope + op), OpType: op, Domain: domain, Inputs: trimAbsent(in), graph: g}
	var err error
	if node.Attrs, err = attrs.normal(); err != nil {
		return failed(fmt.Errorf("%s: %w", node, err))
	}
	node.Outputs = make([]*Value, n)
	for i := range node.Outputs {
		name := node.Name
		if i > 0 {
			name = g.unique(node.Name + ":" + strconv.Itoa(i))
		}
		node.Outputs[i] = &Value{name: name, producer: node, index: i, graph: g}
	}
	if err := g.append(node); err != nil {
		return failed(err)
	}
	return append([]*Value(nil), node.Outputs...)
}

// append checks the inputs of a node whose outputs have their names, infers
// the outputs and adds the node.
func (g *Graph) append(node *Node) error {
	for i, v := range node.Inputs {
		if v == nil {
			continue
		}
		if v.bad {
			return fmt.Errorf("%s: input %d comes from a node that failed", node, i)
		}
		if !g.sees(v) {
			return fmt.Errorf("%s: input %d (%s) belongs to another graph", node, i, v.name)
		}
	}
	if err := infer(node); err != nil {
		return err
	}
	g.nodes = append(g.nodes, node)
	for _, v := range node.Outputs {
		if v.name != "" {
			g.values[v.name] = v
		}
	}
	return nil
}

// sees reports whether v is a value of g or of a graph around it.
func (g *Graph) sees(v *Value) bool {
	for ; g != nil; g = g.parent {
		if v.graph == g {
			return true
		}
	}
	return false
}

func splitDomain(op string) (domain, name string) {
	if i := strings.LastIndexByte(op, ':'); i >= 0 {
		return op[:i], op[i+1:]
	}
	return "", op
}

// trimAbsent drops absent inputs from the end and copies the rest.
func trimAbsent(in []*Value) []*Value {
	for len(in) > 0 && in[len(in)-1] == nil {
		in = in[:len(in)-1]
	}
	return append([]*Value(nil), in...)
}
