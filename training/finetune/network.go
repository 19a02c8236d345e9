package finetune

import (
	"fmt"
	"strings"

	"github.com/nearmiss/nearmiss/inference/backbone"
	"github.com/nearmiss/nearmiss/inference/imaging"
	"github.com/nearmiss/nearmiss/inference/onnx"
	"github.com/nearmiss/nearmiss/training/optim"
)

// network is an imported backbone whose forward pass can be built over other
// values than its initialisers.
type network struct {
	path  string
	info  backbone.Info
	pre   imaging.Preprocess
	graph *onnx.Graph
	own   *backbone.Model // nil: a foreign model
	// names are the trainable initialisers of a foreign model.
	names   map[*onnx.Value]string
	weights []onnx.Tensor // the backbone's, trainable or not
	fixed   []string      // names that are never trained
}

// openNetwork reads an ONNX file that was imported by inference/backbone, for
// batches of n images.
func openNetwork(path string, n int) (_ *network, err error) {
	info, pre, err := backbone.ReadMetadata(path)
	if err != nil {
		return nil, err
	}
	if info.Family == "" {
		return nil, fmt.Errorf("%s was not imported: run \"nearmiss backbone import\" first", path)
	}
	g, err := onnx.ReadFile(path, onnx.BindBatch(n))
	if err != nil {
		return nil, fmt.Errorf("read backbone %s: %w", path, err)
	}
	net := &network{path: path, info: info, pre: pre, graph: g}
	defer func() {
		if err != nil {
			net.Close()
		}
	}()
	own, ok, err := backbone.FromONNX(g)
	if err != nil {
		return nil, err
	}
	if ok {
		net.own = own
		net.weights = own.Tensors()
		for _, w := range net.weights {
			if !own.Trainable(w.Name) {
				net.fixed = append(net.fixed, w.Name)
			}
		}
		return net, nil
	}
	return net, net.findForeign(n)
}

// findForeign lists what can be trained in a foreign model: every float
// initialiser of more than one element that reaches the embedding, but for the
// statistics of BatchNormalization and the normalisation that import put there.
func (n *network) findForeign(batch int) error {
	if d := n.graph.Inputs()[0].Dim(0); d != batch {
		return fmt.Errorf("%s takes exactly %d images at a time: use micro-batches of %d", n.path, d, d)
	}
	statistics := map[*onnx.Value]bool{}
	for _, node := range n.graph.Nodes() {
		if node.OpType == "BatchNormalization" {
			statistics[node.Input(3)], statistics[node.Input(4)] = true, true
		}
	}
	live := map[*onnx.Value]bool{}
	for _, out := range n.graph.Outputs() {
		if out.Name() == backbone.OutputEmbedding {
			markDependencies(out, live)
		}
	}
	n.names = map[*onnx.Value]string{}
	for _, v := range n.graph.Initializers() {
		if v.Type() != onnx.Float || v.Elements() < 2 || !live[v] || statistics[v] || strings.HasPrefix(v.Name(), "nearmiss/") {
			continue
		}
		t := *v.Const()
		t.Name = v.Name()
		n.names[v] = v.Name()
		n.weights = append(n.weights, t)
	}
	if len(n.weights) == 0 {
		return fmt.Errorf("%s has no float32 weights to train", n.path)
	}
	return nil
}

// markDependencies collects everything that v depends on.
func markDependencies(v *onnx.Value, seen map[*onnx.Value]bool) {
	if v == nil || seen[v] {
		return
	}
	seen[v] = true
	if p := v.Producer(); p != nil {
		for _, in := range p.Reads() {
			markDependencies(in, seen)
		}
	}
}

func (n *network) Close() error { return n.graph.Close() }

// forward appends the backbone to g and returns the embedding [N, D].
func (n *network) forward(g *onnx.Graph, image *onnx.Value, w optim.Weights, drop func(x *onnx.Value, site string) *onnx.Value) (*onnx.Value, error) {
	if n.own != nil {
		f, err := n.own.Forward(g, image, backbone.ForwardOptions{Param: w.Param, Dropout: drop})
		return f.Embedding, err
	}
	replace := map[*onnx.Value]*onnx.Value{n.graph.Inputs()[0]: image}
	for v, name := range n.names {
		replace[v] = w(name)
	}
	outputs, _, err := g.Inline(n.graph, replace)
	if err != nil {
		return nil, err
	}
	for i, v := range n.graph.Outputs() {
		if v.Name() == backbone.OutputEmbedding {
			return outputs[i], nil
		}
	}
	return nil, fmt.Errorf("%s has no output %q", n.path, backbone.OutputEmbedding)
}

// frozen lists the name patterns that a recipe keeps fixed.
func (n *network) frozen(r Recipe) ([]string, error) {
	out := append([]string{}, n.fixed...)
	if n.own != nil {
		stages := n.own.Spec.Stages()
		k := r.FreezeBlocks
		if k < 0 {
			k = len(stages) / 2
		}
		if k > len(stages) {
			return nil, fmt.Errorf("%s has %d blocks, %d cannot be frozen", n.info.Name, len(stages), k)
		}
		for _, s := range stages[:k] {
			out = append(out, s+"*")
		}
		if k > 0 { // what lies in front of the blocks
			switch n.own.Spec.Family {
			case backbone.ResNet, backbone.ConvNeXt, backbone.MobileNet:
				out = append(out, "conv1.*", "bn1.*", "stem.*", "conv_stem.*")
			}
		}
	} else if r.FreezeBlocks > 0 {
		return nil, fmt.Errorf("%s is a foreign model without known blocks: freeze weights by name", n.path)
	}
	return append(out, r.Freeze...), nil
}
