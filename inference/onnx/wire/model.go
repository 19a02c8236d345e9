package wire

import (
	"fmt"
	"slices"
)

// Model is what a model says of itself, without its nodes and weights. [ParseHead]
// leaves out what is in the graph.
type Model struct {
	Graph    []byte // a GraphProto, which aliases what was parsed
	Opset    int    // of ONNX's own operators
	Metadata map[string]string
	// Functions are those that the model defines for itself.
	Functions []string

	Inputs, Outputs []ValueInfo          // inputs that are no initialisers
	Values          map[string]ValueInfo // all that are declared
	Produced        map[string]bool      // by a node or an initialiser
	External        []string             // files with external data
	Params          int                  // weights that are floats
}

// ParseHead reads a ModelProto without what is in its graph.
func ParseHead(b []byte) (*Model, error) {
	m := &Model{Metadata: map[string]string{}}
	err := Each(b, func(f Field) error {
		switch f.Num {
		case ModelGraph:
			if m.Graph != nil {
				return fmt.Errorf("%w: the model has two graphs", ErrFormat)
			}
			m.Graph = f.Val
		case ModelOpset:
			domain, version := "", 0
			if err := Each(f.Val, func(f Field) error {
				switch f.Num {
				case 1:
					domain = string(f.Val)
				case 2:
					version = int(f.Int)
				}
				return nil
			}); err != nil {
				return err
			}
			if domain == "" || domain == "ai.onnx" {
				m.Opset = version
			}
		case ModelMetadata:
			key, value, err := Entry(f.Val)
			m.Metadata[key] = value
			return err
		case ModelFunction:
			return EachOf(f.Val, 1, func(f Field) error {
				m.Functions = append(m.Functions, string(f.Val))
				return nil
			})
		}
		return nil
	})
	if err == nil && m.Graph == nil {
		err = fmt.Errorf("%w: no graph in the ONNX file", ErrFormat)
	}
	return m, err
}

// Parse reads a ModelProto. Of weights it touches the heads only.
func Parse(b []byte) (*Model, error) {
	m, err := ParseHead(b)
	if err != nil {
		return nil, err
	}
	g, err := ParseGraph(m.Graph)
	if err != nil {
		return nil, err
	}
	m.Values, m.Produced = map[string]ValueInfo{}, map[string]bool{}
	initial, outside := map[string]bool{}, map[string]bool{}
	for _, b := range g.Nodes {
		n, err := ParseNode(b)
		if err != nil {
			return nil, err
		}
		for _, name := range n.Outputs {
			if name != "" {
				m.Produced[name] = true
			}
		}
	}
	for _, b := range g.Initializers {
		name, floats, external, err := Initializer(b)
		if err != nil {
			return nil, err
		}
		initial[name], m.Produced[name] = true, true
		m.Params += floats
		if external != "" && !outside[external] {
			outside[external] = true
			m.External = append(m.External, external)
		}
	}
	for _, t := range slices.Concat(g.Inputs, g.Outputs, g.Values) {
		if _, seen := m.Values[t.Name]; !seen {
			m.Values[t.Name] = t
		}
	}
	// IR version 3 lists initialisers as inputs too.
	m.Inputs = slices.DeleteFunc(g.Inputs, func(t ValueInfo) bool { return initial[t.Name] })
	m.Outputs = g.Outputs
	return m, nil
}
