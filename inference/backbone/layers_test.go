package backbone

import (
	"math"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/nearmiss/nearmiss/inference/onnx"
)

const outputPatches = "patch"

// patchModel writes m with its embedding, tokens where asked for, and patch
// vectors after a number of blocks; image normalisation is part of it.
func patchModel(t *testing.T, m *Model, tokens bool, layer int) (path string, grid [2]int) {
	t.Helper()
	g := onnx.New("patches")
	x := g.Input(InputImage, onnx.Uint8, 1, m.Spec.Size, m.Spec.Size, 3)
	f, err := m.Forward(g, x, ForwardOptions{Tokens: tokens, Taps: []Tap{{What: TapPatch, Layer: layer, Around: 3}}})
	if err != nil {
		t.Fatal(err)
	}
	g.Output(OutputEmbedding, f.Embedding)
	if tokens {
		g.Output(OutputTokens, f.Tokens)
	}
	g.Output(outputPatches, f.Taps[0].Value)
	x.SetDimName(0, "N")
	for _, v := range g.Outputs() {
		v.SetDimName(0, "N")
	}
	path = filepath.Join(t.TempDir(), "patches.onnx")
	if err := g.WriteFile(path); err != nil {
		t.Fatal(err)
	}
	return path, f.Taps[0].Grid
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
			path, grid := patchModel(t, m, true, 0)
			if grid != [2]int{5, 5} {
				t.Fatalf("grid %v", grid)
			}
			const n, side, dim = 2, 5, 64
			out := run(t, path, testImages(n, 40), n, 40)
			tokens, got := out[OutputTokens].Float32s(), out[outputPatches].Float32s()
			if shape := out[outputPatches].Shape(); !slices.Equal(shape, []int{n, side * side, dim}) {
				t.Fatalf("shape %v", shape)
			}
			lead := 1 + registers
			at := func(i, x, y, d int) float64 { // of tokens of length 1
				token := tokens[((i*(lead+side*side))+lead+y*side+x)*dim:][:dim]
				length := 0.0
				for _, v := range token {
					length += float64(v) * float64(v)
				}
				return float64(token[d]) / math.Sqrt(length)
			}
			for i := range n {
				for y := range side {
					for x := range side {
						want := make([]float64, dim)
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
						}
						for d := range dim {
							g := float64(got[(i*side*side+y*side+x)*dim+d])
							if w := want[d]; math.Abs(g-w) > 1e-5 {
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
				return run(t, path, testImages(1, spec.Size), 1, spec.Size)[outputPatches].Float32s(), grid
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
			if _, err := m.Forward(g, x, ForwardOptions{Taps: []Tap{{What: TapPatch, Layer: spec.Layers() + 1, Around: 1}}}); err == nil {
				t.Error("a block that is not there is accepted")
			}
		})
	}
}

// TestSelectedVectorsAreThoseOfThePass compares every vector that a selection
// gives with the tokens of plain passes through as many blocks.
func TestSelectedVectorsAreThoseOfThePass(t *testing.T) {
	spec := Spec{Family: ViT, Size: 40, Dim: 64, Depth: 3, Heads: 1, Hidden: 96, Patch: 8, Registers: 2, NormEps: 1e-6}
	m, err := Random(spec, 4)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	file := filepath.Join(dir, "model.onnx")
	if _, err := m.Write(file, Options{Tokens: true}); err != nil {
		t.Fatal(err)
	}
	a, err := Dissect(file)
	if err != nil || a != (Anatomy{Layers: 3, Class: true, PatchLayer: 1}) {
		t.Fatalf("%+v, %v", a, err)
	}
	var all []Selected
	for _, tap := range a.Vectors() {
		all = append(all, Selected{Tap: tap})
	}
	all = append(all, Selected{Tap: Tap{What: TapPatch, Layer: 2, Around: 1}}, Selected{Tap: Tap{What: TapPatch, Layer: 0, Around: 1}})
	if len(all) != 10 || all[0].String() != "class@1" || all[7].String() != "pooled" || all[9].String() != "patch@0" {
		t.Fatalf("%v", all)
	}
	selected := filepath.Join(dir, "selected.onnx")
	s, err := Select(selected, []string{file}, all)
	if err != nil {
		t.Fatal(err)
	}
	if len(s.Dims) != 8 || len(s.Patches) != 2 || s.Patches[0] != (PatchOutput{"patch@2", [2]int{5, 5}, 64}) {
		t.Fatalf("%+v", s)
	}
	images := testImages(2, 40)
	got, want := run(t, selected, images, 2, 40), run(t, file, images, 2, 40)
	vectors, tokens := got[OutputEmbedding].Float32s(), want[OutputTokens].Float32s()
	const lead, count, dim = 3, 28, 64
	for i := range 2 {
		for d := range dim {
			class, pooled := float64(vectors[i*8*dim+6*dim+d]), float64(vectors[i*8*dim+7*dim+d])
			mean := 0.0
			for p := lead; p < count; p++ {
				mean += float64(tokens[(i*count+p)*dim+d]) / (count - lead)
			}
			if math.Abs(class-float64(tokens[i*count*dim+d])) > 1e-5 || math.Abs(pooled-mean) > 1e-5 {
				t.Fatalf("image %d, dimension %d: %v and %v", i, d, class, pooled)
			}
		}
	}
	// Without the outermost of five rows and columns nine patches are left, whose mean
	// and spread these are.
	inner := filepath.Join(dir, "inner.onnx")
	if _, err := Select(inner, []string{file}, []Selected{{Tap: Tap{What: TapPooled, Margin: 3}}, {Tap: Tap{What: TapSpread, Margin: 3}}}); err != nil {
		t.Fatal(err)
	}
	middle := run(t, inner, images, 2, 40)[OutputEmbedding].Float32s()
	for i := range 2 {
		for d := range dim {
			var sum, squares float64
			for y := 1; y < 4; y++ {
				for x := 1; x < 4; x++ {
					v := float64(tokens[(i*count+lead+y*5+x)*dim+d])
					sum, squares = sum+v, squares+v*v
				}
			}
			mean, spread := sum/9, math.Sqrt(squares/9-sum*sum/81)
			if a, b := float64(middle[i*2*dim+d]), float64(middle[i*2*dim+dim+d]); math.Abs(a-mean) > 1e-5 || math.Abs(b-spread) > 1e-4 {
				t.Fatalf("image %d, dimension %d: %v and %v, want %v and %v", i, d, a, b, mean, spread)
			}
		}
	}
	// The class token after two of three blocks is that of a pass that ends there.
	short := filepath.Join(dir, "short.onnx")
	if _, err := Select(short, []string{file}, []Selected{{Tap: Tap{What: TapClass, Layer: 2}}}); err != nil {
		t.Fatal(err)
	}
	ends := run(t, short, images, 2, 40)[OutputEmbedding].Float32s()
	for i := range 2 {
		for d := range dim {
			if a, b := vectors[i*8*dim+2*dim+d], ends[i*dim+d]; math.Abs(float64(a-b)) > 1e-4 {
				t.Fatalf("image %d, dimension %d after two blocks: %v, alone %v", i, d, a, b)
			}
		}
	}
	g, err := onnx.ReadFile(short, onnx.BindBatch(1))
	if err != nil {
		t.Fatal(err)
	}
	defer g.Close()
	for _, w := range g.Initializers() {
		if strings.HasPrefix(w.Name(), "blocks.2.") || w.Name() == "norm.weight" {
			t.Errorf("a model that ends after two blocks has %s", w.Name())
		}
	}
	// Patch vectors have length 1, each its own token's direction.
	patches := got["patch@0"].Float32s()
	length, along, norm := 0.0, 0.0, 0.0
	for d := range dim {
		v, w := float64(patches[7*dim+d]), float64(tokens[(lead+7)*dim+d])
		length, along, norm = length+v*v, along+v*w, norm+w*w
	}
	if math.Abs(length-1) > 1e-5 || math.Abs(along-math.Sqrt(norm)) > 1e-4 {
		t.Errorf("patch of length %v, %v along its token of length %v", length, along, math.Sqrt(norm))
	}
}

func TestConvolutionalNetworksGivePooledStages(t *testing.T) {
	m, err := Random(Spec{Family: ResNet, Size: 64, Dim: 64, Blocks: []int{1, 1, 1, 1}, Widths: []int{16, 24, 32, 64}, Basic: true, NormEps: 1e-5}, 5)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	file, selected := filepath.Join(dir, "model.onnx"), filepath.Join(dir, "selected.onnx")
	if _, err := m.Write(file, Options{}); err != nil {
		t.Fatal(err)
	}
	a, err := Dissect(file)
	if err != nil {
		t.Fatal(err)
	}
	var taps []Selected
	for _, tap := range a.Vectors() {
		taps = append(taps, Selected{Tap: tap})
	}
	s, err := Select(selected, []string{file}, append(taps, Selected{Tap: Tap{What: TapPatch, Layer: 2, Around: 1}}))
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(s.Dims, []int{16, 24, 32, 64, 64}) || s.Patches[0] != (PatchOutput{"patch@2", [2]int{8, 8}, 24}) {
		t.Fatalf("%+v", s)
	}
	images := testImages(1, 64)
	vectors, want := run(t, selected, images, 1, 64)[OutputEmbedding].Float32s(), run(t, file, images, 1, 64)[OutputEmbedding].Float32s()
	for i, v := range want { // the last stage's mean is the embedding
		if last, head := vectors[16+24+32+i], vectors[16+24+32+64+i]; math.Abs(float64(v-last)) > 1e-5 || math.Abs(float64(v-head)) > 1e-5 {
			t.Fatalf("dimension %d: %v and %v, want %v", i, last, head, v)
		}
	}
	for _, tap := range []Tap{{What: TapClass, Layer: 2}, {What: TapPooled, Layer: 2, Margin: 7}, {What: TapSpread, Layer: 2, Margin: -1}, {What: TapPooled}, {What: "logits"}, {What: TapPatch, Layer: 2, Around: 2}} {
		if _, err := Select(filepath.Join(dir, "bad.onnx"), []string{file}, []Selected{{Tap: tap}}); err == nil {
			t.Errorf("%v is accepted", tap)
		}
	}
}

func TestTapsAreRead(t *testing.T) {
	for _, want := range []Tap{{What: TapClass}, {What: TapPooled, Margin: 3}, {What: TapSpread, Layer: 4, Margin: 1}, {What: TapPooled, Layer: 12}, {What: TapPatch, Layer: 4, Around: 1}, {What: TapPatch, Layer: 4, Around: 3}} {
		if got, err := ParseTap(want.String()); err != nil || got != want {
			t.Errorf("%v: %+v, %v", want, got, err)
		}
	}
	for _, bad := range []string{"class@", "class@x", "patch@4x", "patch@a", "patch@4x0", "class@4x3", "pooled@4m", "class@-1", "Class"} {
		if got, err := ParseTap(bad); err == nil {
			t.Errorf("%q is read as %+v", bad, got)
		}
	}
}
