package backbone

import (
	"math"
	"path/filepath"
	"slices"
	"testing"

	"github.com/nearmiss/nearmiss/inference/onnx"
)

// patchModel writes m with its embedding, tokens where asked for, and patch
// vectors after a number of blocks; image normalisation is part of it.
func patchModel(t *testing.T, m *Model, tokens bool, layer int) (path string, grid [2]int) {
	t.Helper()
	g := onnx.New("patches")
	x := g.Input(InputImage, onnx.Uint8, 1, m.Spec.Size, m.Spec.Size, 3)
	f, err := m.Forward(g, x, ForwardOptions{Tokens: tokens, Patches: layer})
	if err != nil {
		t.Fatal(err)
	}
	g.Output(OutputEmbedding, f.Embedding)
	if tokens {
		g.Output(OutputTokens, f.Tokens)
	}
	g.Output(OutputPatches, f.Patches)
	x.SetDimName(0, "N")
	for _, v := range g.Outputs() {
		v.SetDimName(0, "N")
	}
	path = filepath.Join(t.TempDir(), "patches.onnx")
	if err := g.WriteFile(path); err != nil {
		t.Fatal(err)
	}
	return path, f.Grid
}

// TestPatchVectorsAreMeansOfNeighbours compares the graph with loops over the
// tokens of the same pass.
func TestPatchVectorsAreMeansOfNeighbours(t *testing.T) {
	for name, registers := range map[string]int{"a class token": 0, "a class token and registers": 2} {
		t.Run(name, func(t *testing.T) {
			m, err := Random(Spec{
				Family: ViT, Size: 40, Dim: 64, Depth: 3, Heads: 1, Hidden: 96, Patch: 8, Registers: registers,
				ClassPos: registers == 0, NormEps: 1e-6,
			}, 4)
			if err != nil {
				t.Fatal(err)
			}
			path, grid := patchModel(t, m, true, 3)
			if grid != [2]int{5, 5} {
				t.Fatalf("grid %v", grid)
			}
			const n, side, dim = 2, 5, 64
			out := run(t, path, testImages(n, 40), n, 40)
			tokens, got := out[OutputTokens].Float32s(), out[OutputPatches].Float32s()
			if shape := out[OutputPatches].Shape(); !slices.Equal(shape, []int{n, side * side, dim}) {
				t.Fatalf("shape %v", shape)
			}
			lead := 1 + registers
			at := func(i, x, y, d int) float64 {
				return float64(tokens[((i*(lead+side*side))+lead+y*side+x)*dim+d])
			}
			for i := range n {
				for y := range side {
					for x := range side {
						want, length := make([]float64, dim), 0.0
						for d := range dim {
							count := 0.0
							for dy := -1; dy <= 1; dy++ {
								for dx := -1; dx <= 1; dx++ {
									if u, v := x+dx, y+dy; u >= 0 && v >= 0 && u < side && v < side {
										want[d] += at(i, u, v, d)
										count++
									}
								}
							}
							want[d] /= count
							length += want[d] * want[d]
						}
						for d := range dim {
							g := float64(got[(i*side*side+y*side+x)*dim+d])
							if w := want[d] / math.Sqrt(length); math.Abs(g-w) > 1e-5 {
								t.Fatalf("image %d, patch %d,%d, dimension %d: %v, want %v", i, x, y, d, g, w)
							}
						}
					}
				}
			}
		})
	}
}

func TestPatchVectorsComeFromTheirBlock(t *testing.T) {
	for name, spec := range map[string]Spec{
		"vit":      {Family: ViT, Size: 32, Dim: 64, Depth: 3, Heads: 1, Hidden: 96, Patch: 8, ClassPos: true, NormEps: 1e-6},
		"resnet":   {Family: ResNet, Size: 64, Dim: 64, Blocks: []int{1, 1, 1, 1}, Widths: []int{16, 24, 32, 64}, Basic: true, NormEps: 1e-5},
		"convnext": {Family: ConvNeXt, Size: 64, Dim: 64, Blocks: []int{1, 1, 1, 1}, Widths: []int{16, 24, 32, 64}, Hidden: 2, NormEps: 1e-6},
	} {
		t.Run(name, func(t *testing.T) {
			m, err := Random(spec, 5)
			if err != nil {
				t.Fatal(err)
			}
			if l := spec.PatchLayer(); l < 1 || l > spec.Layers() {
				t.Fatalf("usual layer %d of %d", l, spec.Layers())
			}
			patches := func(layer int) ([]float32, [2]int) {
				path, grid := patchModel(t, m, false, layer)
				return run(t, path, testImages(1, spec.Size), 1, spec.Size)[OutputPatches].Float32s(), grid
			}
			// spoil changes the weights of a stage.
			spoil := func(stage int) {
				for _, w := range m.Tensors() {
					if len(w.Shape) < 2 || len(w.Name) < len(spec.Stages()[stage]) || w.Name[:len(spec.Stages()[stage])] != spec.Stages()[stage] {
						continue
					}
					data := slices.Clone(w.Float32s())
					for i := range data {
						data[i] *= -1.5
					}
					if err := m.Set(w.Name, data); err != nil {
						t.Fatal(err)
					}
				}
			}
			before, grid := patches(2)
			if grid[0] < 2 || grid[0] != grid[1] || len(before)%(grid[0]*grid[1]) != 0 {
				t.Fatalf("%d numbers on a grid of %v", len(before), grid)
			}
			spoil(2) // the block after it
			if after, _ := patches(2); !slices.Equal(before, after) {
				t.Error("patches after two blocks depend on the third")
			}
			spoil(1)
			if after, _ := patches(2); slices.Equal(before, after) {
				t.Error("patches after two blocks do not depend on the second")
			}
			g := onnx.New("too many")
			x := g.Input(InputImage, onnx.Uint8, 1, spec.Size, spec.Size, 3)
			if _, err := m.Forward(g, x, ForwardOptions{Patches: spec.Layers() + 1}); err == nil {
				t.Error("a block that is not there is accepted")
			}
		})
	}
}
