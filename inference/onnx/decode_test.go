package onnx

import (
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/nearmiss/nearmiss/inference/onnx/wire"
)

func TestPyTorchExportsGetTheShapesOfONNXRuntime(t *testing.T) {
	b, err := os.ReadFile("testdata/shapes.json")
	if err != nil {
		t.Fatal(err)
	}
	var models map[string]map[string][]int
	if err := json.Unmarshal(b, &models); err != nil {
		t.Fatal(err)
	}
	for file, want := range models {
		t.Run(file, func(t *testing.T) {
			g, err := ReadFile(filepath.Join("testdata", file), BindBatch(2))
			if err != nil {
				t.Fatal(err)
			}
			defer g.Close()
			for name, shape := range want {
				v := g.Lookup(name)
				if v == nil || !slices.Equal(v.Shape(), shape) {
					t.Errorf("%s is %v, ONNX Runtime makes it %v", name, v, shape)
				}
			}
		})
	}
}

func TestOpenDimensionsMustBeBound(t *testing.T) {
	if _, err := ReadFile("testdata/vit_17_open.onnx"); err == nil || !strings.Contains(err.Error(), `dimension 0 ("n") is open`) {
		t.Errorf("got %v", err)
	}
	g, err := ReadFile("testdata/vit_17_open.onnx", BindBatch(5))
	if err != nil {
		t.Fatal(err)
	}
	defer g.Close()
	if got := g.Outputs()[0].Shape(); !slices.Equal(got, []int{5, 3}) {
		t.Errorf("output shape is %v", got)
	}
}

func TestUnknownOperatorIsNamedWithItsNode(t *testing.T) {
	g := New("g")
	g.Output("y", g.Op("Neg", nil, g.Input("x", Float, 2)))
	g.Nodes()[0].OpType = "Frobnicate"
	b, err := g.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Decode(b); err == nil || !strings.Contains(err.Error(), `Frobnicate "Neg": shape inference does not know this operator`) {
		t.Errorf("got %v", err)
	}
}

// Names of a model go into errors and into other programs.
func TestNamesAreUTF8(t *testing.T) {
	for what, spoil := range map[string]func(g *Graph){
		"an input":     func(g *Graph) { g.inputs[0].name = "x\xff" },
		"an output":    func(g *Graph) { g.nodes[0].Outputs[0].name = "y\xff" },
		"a node":       func(g *Graph) { g.nodes[0].Name = "n\xff" },
		"an attribute": func(g *Graph) { g.nodes[0].Attrs["a\xff"] = int64(1) },
	} {
		g := New("g")
		g.Output("y", g.Op("Neg", nil, g.Input("x", Float, 2)))
		spoil(g)
		b, err := g.Bytes()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := Decode(b); err == nil || !strings.Contains(err.Error(), "UTF-8") {
			t.Errorf("%s: error %v", what, err)
		}
	}
}

// TestNodesThatAreReadKeepTheirNames to themselves: what is built on them is called
// otherwise, but for an output, whose name the user has chosen.
func TestNodesThatAreReadKeepTheirNames(t *testing.T) {
	g := New("g")
	x := g.Input("x", Float, 2)
	first, second := g.Op("Neg", nil, x), g.Op("Neg", nil, x)
	g.Output("y", first)
	g.Output("z", second)
	g.nodes[0].Name, g.nodes[1].Name = "Abs", "feature"
	b, err := g.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	d, err := Decode(b)
	if err != nil {
		t.Fatal(err)
	}
	for range 3 {
		d.Op("Abs", nil, d.Lookup("y"))
	}
	d.Output("feature", d.Op("Relu", nil, d.Lookup("z")))
	if err := d.Err(); err != nil {
		t.Fatal(err)
	}
	seen := map[string]bool{}
	for _, n := range d.Nodes() {
		if seen[n.Name] {
			t.Errorf("two nodes are called %s", n.Name)
		}
		seen[n.Name] = true
	}
	if d.Lookup("feature") == nil || d.Lookup("y") == nil || d.Lookup("z") == nil {
		t.Error("an output has another name")
	}
}

// FuzzDecode: whatever the bytes, Decode returns, without a panic and without
// allocating far more than it was given.
func FuzzDecode(f *testing.F) {
	files, err := filepath.Glob("testdata/*.onnx")
	if err != nil {
		f.Fatal(err)
	}
	for _, path := range files {
		b, err := os.ReadFile(path)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Add(wire.AppendBytes(nil, wire.ModelGraph, ""))
	f.Fuzz(func(t *testing.T, b []byte) {
		g, err := Decode(b, BindBatch(2))
		if err != nil {
			return
		}
		again, err := g.Bytes()
		if err != nil {
			return // no outputs
		}
		if _, err := Decode(again); err != nil {
			t.Errorf("what was decoded does not decode again: %v", err)
		}
	})
}
