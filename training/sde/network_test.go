package sde

import (
	"encoding/json"
	"fmt"
	"hash/fnv"
	"math"
	"os"
	"strings"
	"testing"

	"github.com/nearmiss/nearmiss/inference/onnx"
)

// The table of the design: weights and forward operations of the paper's sizes.
func TestCostsAreThePublishedOnes(t *testing.T) {
	for _, c := range []struct {
		preset         string
		size           int
		params, gflops float64
	}{
		{"ddpm++", 32, 61.8, 21.7},
		{"ddpm++-deep", 32, 106.6, 37.1},
		{"ddpm++", 64, 61.8, 83.7},
		{"ncsn++", 32, 62.8, 21.8},
		{"ncsn++-deep", 32, 107.6, 37.2},
		{"ncsn++", 64, 62.7, 84.0},
		{"ncsn++-256", 256, 65.6, 532},
		{"small", 32, 7.0, 3.5},
		{"tiny", 32, 2.5, 0.92},
		{"medium", 32, 9.9, 3.55},
		{"medium", 64, 9.9, 13.6},
	} {
		n, err := Preset(c.preset, c.size, 3)
		if err != nil {
			t.Fatal(err)
		}
		params, flops, err := n.Cost()
		if err != nil {
			t.Fatal(err)
		}
		t.Logf("%s at %d px: %.2fM weights, %.2f GFLOP an image", c.preset, c.size, float64(params)/1e6, float64(flops)/1e9)
		if p := float64(params) / 1e6; math.Abs(p-c.params) > 0.11 {
			t.Errorf("%s at %d px: %.2fM weights, want %.1fM", c.preset, c.size, p, c.params)
		}
		if f := float64(flops) / 1e9; math.Abs(f/c.gflops-1) > 0.02 {
			t.Errorf("%s at %d px: %.2f GFLOP, want %.2f", c.preset, c.size, f, c.gflops)
		}
	}
}

func TestEverySizeBuilds(t *testing.T) {
	for _, preset := range Presets {
		for _, size := range []int{32, 64, 128, 256} {
			for _, channels := range []int{1, 3} {
				if preset == "ncsn++-256" && size < 64 {
					continue
				}
				n, err := Preset(preset, size, channels)
				if err != nil {
					t.Errorf("%s at %d px: %v", preset, size, err)
					continue
				}
				n.Width = 8 // the same graph with small tensors
				b, err := n.build(2, true, blank)
				if err != nil {
					t.Errorf("%s at %d px, %d channels: %v", preset, size, channels, err)
				} else if got, want := fmt.Sprint(b.f.Shape()), fmt.Sprint(b.x.Shape()); got != want {
					t.Errorf("%s at %d px, %d channels: output %s for input %s", preset, size, channels, got, want)
				}
			}
		}
	}
	n := Network{Size: 12, Channels: 2, Width: 20, Multipliers: []int{1, 3}, Blocks: 1, Attention: []int{6}, FIR: true, InputPyramid: "residual"}
	if _, err := n.build(3, true, blank); err != nil {
		t.Errorf("uncommon sizes: %v", err)
	}
}

func TestNetworksAreRefused(t *testing.T) {
	good := Network{Size: 8, Channels: 3, Width: 8, Multipliers: []int{1, 2}, Blocks: 1}
	for want, change := range map[string]func(*Network){
		"channels":    func(n *Network) { n.Channels = 0 },
		"width":       func(n *Network) { n.Width = 6 },
		"blocks":      func(n *Network) { n.Blocks = 0 },
		"multipliers": func(n *Network) { n.Multipliers = nil },
		"levels need": func(n *Network) { n.Size = 9 },
		"dropout":     func(n *Network) { n.Dropout = 1 },
		"pyramids":    func(n *Network) { n.InputPyramid = "sum" },
	} {
		n := good
		change(&n)
		if _, err := n.Init(1); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got %v", want, err)
		}
	}
	if _, err := Preset("huge", 32, 3); err == nil {
		t.Error("an unknown preset was accepted")
	}
	ps, err := good.Init(1)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := good.Graph(1, ps[1:]); err == nil {
		t.Error("weights that lack one were accepted")
	}
	if _, err := good.Graph(1, append(ps, ps[0])); err == nil {
		t.Error("one weight too many was accepted")
	}
}

func TestInitialWeights(t *testing.T) {
	n := Network{Size: 8, Channels: 3, Width: 32, Multipliers: []int{1, 2}, Blocks: 1, Attention: []int{4}}
	a, err := n.Init(1)
	if err != nil {
		t.Fatal(err)
	}
	b, _ := n.Init(1)
	c, _ := n.Init(2)
	for i, p := range a {
		top := float32(0)
		for j, v := range p.Data {
			top = max(top, v, -v)
			if v != b[i].Data[j] {
				t.Fatalf("%s: the same seed gave other weights", p.Name)
			}
		}
		switch {
		case strings.HasSuffix(p.Name, ".bias"):
			if top != 0 {
				t.Errorf("%s: starts at %g, want 0", p.Name, top)
			}
		case strings.Contains(p.Name, "norm"):
			if top != 1 {
				t.Errorf("%s: starts at %g, want 1", p.Name, top)
			}
		case strings.Contains(p.Name, "conv1.") || strings.HasPrefix(p.Name, "out.conv") || strings.HasSuffix(p.Name, "attention.out.weight"):
			if top > 1e-5 || top == 0 {
				t.Errorf("%s: starts at %g, want near zero", p.Name, top)
			}
		default:
			if top < 1e-3 || p.Data[0] == c[i].Data[0] {
				t.Errorf("%s: starts within %g, or ignores the seed", p.Name, top)
			}
		}
	}
	// U(±√(3/((9·3 + 9·32)/2))) for the first convolution.
	if got, want := float64(a[firstOf(a, "in.weight")].Data[0]), math.Sqrt(3/(9*35/2.)); math.Abs(got) > want {
		t.Errorf("in.weight: %g is outside ±%g", got, want)
	}
}

func firstOf(ps []Param, name string) int {
	for i, p := range ps {
		if p.Name == name {
			return i
		}
	}
	return -1
}

type networkCase struct {
	Name string
	Network
	Label     []float32
	Output    []float64
	Loss      float64
	Gradients map[string]float64
}

func networkCases(t testing.TB) []networkCase {
	t.Helper()
	raw, err := os.ReadFile("testdata/network.json")
	if err != nil {
		t.Fatal(err)
	}
	var cases []networkCase
	if err := json.Unmarshal(raw, &cases); err != nil {
		t.Fatal(err)
	}
	return cases
}

// lcg repeats testdata/network.py's generator.
func lcg(name string, shape []int, scale, shift float64) []float32 {
	h := fnv.New32a()
	h.Write([]byte(name))
	s := h.Sum32()
	out := make([]float32, onnx.Elements(shape))
	for i := range out {
		s = s*1664525 + 1013904223
		out[i] = float32(scale*(2*float64(s)/(1<<32)-1) + shift)
	}
	return out
}

func (c networkCase) params(t testing.TB) []Param {
	t.Helper()
	ps, err := c.Init(0)
	if err != nil {
		t.Fatal(err)
	}
	for i, p := range ps {
		switch {
		case strings.HasSuffix(p.Name, "norm.weight"), strings.HasSuffix(p.Name, "norm0.weight"), strings.HasSuffix(p.Name, "norm1.weight"):
			ps[i].Data = lcg(p.Name, p.Shape, 0.3, 1)
		case p.Fixed:
			ps[i].Data = lcg(p.Name, p.Shape, 2, 0)
		default:
			fan := 4
			if len(p.Shape) > 1 {
				fan = onnx.Elements(p.Shape[1:])
			}
			ps[i].Data = lcg(p.Name, p.Shape, 0.5/math.Sqrt(float64(fan)), 0)
		}
	}
	return ps
}

func TestForwardEqualsPyTorch(t *testing.T) {
	for _, c := range networkCases(t) {
		t.Run(c.Name, func(t *testing.T) {
			g, err := c.Graph(2, c.params(t))
			if err != nil {
				t.Fatal(err)
			}
			got := runGraph(t, g, lcg("x", g.Inputs()[0].Shape(), 1.5, 0), c.Label)[0]
			for i, want := range c.Output {
				if e := math.Abs(float64(got[7*i]) - want); e > 2e-5 {
					t.Fatalf("output %d: got %.6f, want %.6f", 7*i, got[7*i], want)
				}
			}
		})
	}
}
