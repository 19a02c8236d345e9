package wire

import (
	"fmt"
	"slices"
)

// Model is what a model says of itself, without its nodes and weights.
type Model struct {
	Graph    []byte // a GraphProto, which aliases what was parsed
	Opset    int    // of ONNX's own operators
	Metadata map[string]string

	Inputs, Outputs []ValueInfo          // inputs that are no initialisers
	Values          map[string]ValueInfo // all that are declared
	Produced        map[string]bool      // by a node or an initialiser
	External        []string             // files with external data
	Params          int                  // weights that are floats
}

// Parse reads a ModelProto. Of weights it touches the heads only.
func Parse(b []byte) (*Model, error) {
	m := &Model{Metadata: map[string]string{}, Values: map[string]ValueInfo{}, Produced: map[string]bool{}}
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
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	if m.Graph == nil {
		return nil, fmt.Errorf("%w: no graph in the ONNX file", ErrFormat)
	}
	initial, outside := map[string]bool{}, map[string]bool{}
	err = Each(m.Graph, func(f Field) error {
		switch f.Num {
		case GraphNode:
			return EachOf(f.Val, NodeOutput, func(f Field) error {
				if len(f.Val) > 0 {
					m.Produced[string(f.Val)] = true
				}
				return nil
			})
		case GraphInitializer:
			name, floats, external, err := Initializer(f.Val)
			if err != nil {
				return err
			}
			initial[name], m.Produced[name] = true, true
			m.Params += floats
			if external != "" && !outside[external] {
				outside[external] = true
				m.External = append(m.External, external)
			}
		case GraphInput, GraphOutput, GraphValueInfo:
			t, err := ParseValueInfo(f.Val)
			if err != nil {
				return err
			}
			switch f.Num {
			case GraphInput:
				m.Inputs = append(m.Inputs, t)
			case GraphOutput:
				m.Outputs = append(m.Outputs, t)
			}
			if _, seen := m.Values[t.Name]; !seen {
				m.Values[t.Name] = t
			}
		}
		return nil
	})
	// IR version 3 lists initialisers as inputs too.
	m.Inputs = slices.DeleteFunc(m.Inputs, func(t ValueInfo) bool { return initial[t.Name] })
	return m, err
}
