package backbone

import (
	"context"
	"fmt"
	"path/filepath"
	"testing"

	"github.com/nearmiss/nearmiss/inference/ort"
)

// tableOne are the backbones of the paper's Table 1 and ViT-Ti, at their real
// sizes.
var tableOne = []Spec{
	Tiny,
	Small,
	Base,
	{Family: ViT, Dim: 768, Depth: 12, Heads: 12, Hidden: 3072, Patch: 32, Size: 224, ClassPos: true, NormEps: 1e-6},
	{Family: ResNet, Blocks: []int{3, 8, 36, 3}, Widths: []int{256, 512, 1024, 2048}, Dim: 2048, Size: 224, NormEps: 1e-5},
	{
		Family: Hybrid, Blocks: []int{3, 4, 9}, Widths: []int{256, 512, 1024}, Dim: 768, Depth: 12, Heads: 12, Hidden: 3072,
		Patch: 1, Size: 224, ClassPos: true, NormEps: 1e-6, GroupEps: 1e-5, StdEps: 1e-8,
	},
	{Family: ConvNeXt, Blocks: []int{3, 3, 27, 3}, Widths: []int{128, 256, 512, 1024}, Hidden: 4, Dim: 1024, Size: 224, NormEps: 1e-6},
}

// BenchmarkForward writes and loads every backbone with random weights and
// embeds batches: go test -bench Forward -benchtime 3x ./inference/backbone
func BenchmarkForward(b *testing.B) {
	for _, spec := range tableOne {
		b.Run(spec.Name(), func(b *testing.B) {
			const batch = 8
			m, err := Random(spec, 1)
			if err != nil {
				b.Fatal(err)
			}
			path := filepath.Join(b.TempDir(), "model.onnx")
			info, err := m.Write(path, Options{})
			if err != nil {
				b.Fatal(err)
			}
			s, err := ort.Open(path, ort.Options{})
			if err != nil {
				b.Fatal(err)
			}
			defer s.Close()
			in, err := ort.NewTensor([]int{batch, info.Size, info.Size, 3}, testImages(batch, info.Size))
			if err != nil {
				b.Fatal(err)
			}
			defer in.Close()
			for b.Loop() {
				out, err := s.Run(context.Background(), []*ort.Tensor{in})
				if err != nil {
					b.Fatal(err)
				}
				ort.CloseAll(out...)
			}
			b.ReportMetric(float64(batch*b.N)/b.Elapsed().Seconds(), "images/s")
			b.ReportMetric(float64(info.Params)/1e6, "Mparams")
		})
	}
}

// BenchmarkImport reads weights from a mapped file and writes the model.
func BenchmarkImport(b *testing.B) {
	m, err := Random(Base, 1)
	if err != nil {
		b.Fatal(err)
	}
	var ws []drawn
	for _, t := range m.Tensors() {
		ws = append(ws, drawn{Name: t.Name, Shape: t.Shape, Scale: 0.02})
	}
	src := filepath.Join(b.TempDir(), "base.safetensors")
	writeFile(b, src, encodeSafetensors(ws))
	dst := filepath.Join(b.TempDir(), "base.onnx")
	b.SetBytes(int64(4 * m.Info().Params))
	for b.Loop() {
		if _, err := Import(src, dst, ImportOptions{}); err != nil {
			b.Fatal(err)
		}
	}
}

func ExampleRandom() {
	m, err := Random(Tiny, 7)
	if err != nil {
		fmt.Println(err)
		return
	}
	info := m.Info()
	fmt.Println(info.Name, info.Dim, info.Params)
	// Output: vit_tiny_patch16_224 192 5524416
}
