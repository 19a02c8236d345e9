package backbone

import (
	"bytes"
	"math"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/nearmiss/nearmiss/inference/imaging"
)

func TestHalfPrecisionFileIsReadBack(t *testing.T) {
	spec := Spec{Family: ViT, Size: 32, Dim: 64, Depth: 2, Heads: 1, Hidden: 96, Patch: 16, ClassPos: true, NormEps: 1e-6}
	m, err := Random(spec, 3)
	if err != nil {
		t.Fatal(err)
	}
	m.Preprocess = imaging.Preprocess{Resize: 40, Crop: 32, Interpolation: imaging.Bilinear, Mean: halfMean, Std: imageNetStd}
	m.Format, m.Source = "starter", "here"
	b, err := m.EncodeHalf(map[string]string{"note": "kept"})
	if err != nil {
		t.Fatal(err)
	}
	again, err := m.EncodeHalf(map[string]string{"note": "kept"})
	if err != nil || !bytes.Equal(b, again) {
		t.Errorf("the same weights give other bytes (%v)", err)
	}
	w, err := ReadWeights(b)
	if err != nil {
		t.Fatal(err)
	}
	if w.Metadata["note"] != "kept" {
		t.Errorf("properties: %v", w.Metadata)
	}
	got, err := FromWeights(w, LoadOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(m.Info(), got.Info()); d != "" {
		t.Errorf("(-written +read):\n%s", d)
	}
	if d := cmp.Diff(m.Preprocess, got.Preprocess); d != "" {
		t.Errorf("(-written +read):\n%s", d)
	}
	want := m.Tensors()
	for i, x := range got.Tensors() {
		if x.Name != want[i].Name {
			t.Fatalf("tensor %d is %s, want %s", i, x.Name, want[i].Name)
		}
		for j, v := range x.Float32s() {
			u := want[i].Float32s()[j]
			if d := math.Abs(float64(v - u)); d > math.Abs(float64(u))/2048+1e-7 {
				t.Fatalf("%s[%d] is %v, want %v", x.Name, j, v, u)
			}
		}
	}

	if err := m.Set("norm.bias", append(make([]float32, 63), float32(math.NaN()))); err != nil {
		t.Fatal(err)
	}
	if _, err := m.EncodeHalf(nil); err == nil || !strings.Contains(err.Error(), "norm.bias") {
		t.Errorf("NaN: %v", err)
	}
}
