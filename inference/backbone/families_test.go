package backbone

import (
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// family is an entry of testdata/families.json.
type family struct {
	Size      int
	Mean, Std [3]float64
	Arch      string
	Heads     int
	Weights   []listed
	Embedding [][]float64
	Layers    [][][]float64
	Resized   map[string][][]float64
}

// listed is a weight as [name, shape, scale, offset].
type listed struct{ drawn }

func (l *listed) UnmarshalJSON(b []byte) error {
	return json.Unmarshal(b, &[]any{&l.Name, &l.Shape, &l.Scale, &l.Offset})
}

func (f family) file(t *testing.T) string {
	t.Helper()
	ws := make([]drawn, len(f.Weights))
	for i, w := range f.Weights {
		ws[i] = w.drawn
	}
	return writeTemp(t, "weights.safetensors", encodeSafetensors(ws))
}

func (f family) options() ImportOptions {
	return ImportOptions{LoadOptions: LoadOptions{Size: f.Size, Arch: f.Arch, Heads: f.Heads, Mean: &f.Mean, Std: &f.Std}}
}

func readFamilies(t *testing.T) map[string]family {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("testdata", "families.json"))
	if err != nil {
		t.Fatal(err)
	}
	var out map[string]family
	if err := json.Unmarshal(b, &out); err != nil {
		t.Fatal(err)
	}
	return out
}

// TestFamilies imports weights under the names of timm, Hugging Face and others
// and compares embeddings and layers with those of these libraries themselves
// (testdata/families.py).
func TestFamilies(t *testing.T) {
	const tol = 1e-4
	all := readFamilies(t)
	for _, name := range slices.Sorted(maps.Keys(all)) {
		f := all[name]
		t.Run(name, func(t *testing.T) {
			src, dst := f.file(t), filepath.Join(t.TempDir(), "model.onnx")
			if _, err := Import(src, dst, f.options()); err != nil {
				t.Fatal(err)
			}
			images := testImages(2, f.Size)
			near(t, "embedding", run(t, dst, images, 2, f.Size)[OutputEmbedding].Float32s(), f.Embedding, tol)

			a, err := Dissect(dst)
			if err != nil || a.Layers != len(f.Layers) && len(f.Layers) > 0 {
				t.Fatalf("%d layers, want %d (error %v)", a.Layers, len(f.Layers), err)
			}
			for i, want := range f.Layers {
				one := filepath.Join(t.TempDir(), "layer.onnx")
				if _, err := Select(one, []string{dst}, []Selected{{Tap: Tap{What: TapPooled, Layer: i + 1}}}); err != nil {
					t.Fatal(err)
				}
				near(t, fmt.Sprintf("layer %d", i+1), run(t, one, images, 2, f.Size)[OutputEmbedding].Float32s(), want, tol)
			}
			for size, want := range f.Resized {
				o := f.options()
				fmt.Sscan(size, &o.Size)
				if _, err := Import(src, dst, o); err != nil {
					t.Fatal(err)
				}
				near(t, size+" px", run(t, dst, testImages(2, o.Size), 2, o.Size)[OutputEmbedding].Float32s(), want, tol)
			}
		})
	}
}

// TestEveryTensorCounts: no tensor of a network can be added, renamed or left out
// without the import refusing the file by that tensor's name.
func TestEveryTensorCounts(t *testing.T) {
	all := readFamilies(t)
	for _, name := range []string{"timm_dinov2", "timm_registers", "hf_vit", "hf_dinov2_swiglu", "hf_dinov3", "hf_convnext", "hf_resnet", "hf_efficientnet", "timm_lite", "timm_mobilenetv3_small", "lite"} {
		f := all[name]
		ws := make([]drawn, len(f.Weights))
		for i, w := range f.Weights {
			ws[i] = w.drawn
		}
		whole, err := ReadWeights(encodeSafetensors(ws))
		if err != nil {
			t.Fatal(err)
		}
		try := func(without, with string) error {
			w := *whole
			w.names = slices.DeleteFunc(slices.Clone(w.names), func(n string) bool { return n == without })
			w.entries = maps.Clone(w.entries)
			delete(w.entries, without)
			if with != "" {
				w.names, w.entries[with] = append(w.names, with), entry{typ: typeF32, shape: []int{4}}
			}
			o := f.options()
			o.Size = 0
			_, err := FromWeights(&w, o.LoadOptions)
			return err
		}
		t.Run(name, func(t *testing.T) {
			if err := try("", ""); err != nil {
				t.Fatal(err)
			}
			for _, w := range ws {
				if leftOver.MatchString(strings.TrimPrefix(strings.TrimPrefix(w.Name, "embeddings."), "efficientnet.")) || strings.Contains(w.Name, "pooler") {
					continue
				}
				if err := try(w.Name, ""); err == nil && !strings.Contains(w.Name, "k_proj.bias") && !strings.Contains(w.Name, "key.bias") && !strings.Contains(w.Name, "reg") {
					t.Errorf("without %q the file is taken", w.Name)
				}
			}
			at := strings.LastIndex(strings.TrimSuffix(ws[len(ws)/2].Name, ".weight"), ".")
			for _, extra := range []string{ws[len(ws)/2].Name[:at] + ".norm.weight", ws[len(ws)/2].Name[:at] + ".q_bias", strings.TrimSuffix(ws[0].Name, ".weight") + ".extra"} {
				err := try("", extra)
				if err == nil || !strings.Contains(err.Error(), extra) {
					t.Errorf("with %q besides: %v", extra, err)
				}
			}
		})
	}
}
