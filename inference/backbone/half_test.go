package backbone

import (
	"bytes"
	"math"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/nearmiss/nearmiss/inference/imaging"
	"github.com/nearmiss/nearmiss/inference/onnx"
)

func TestHalfPrecisionRoundsToTheNearest(t *testing.T) {
	for h := range 1 << 16 {
		v := onnx.Half(uint16(h))
		if v-v != 0 {
			continue // infinite or NaN
		}
		if got, ok := toHalf(v); !ok || got != uint16(h) {
			t.Fatalf("%#04x is %v, which becomes %#04x (%v)", h, v, got, ok)
		}
		// Half-way to the next number: to the even one. A hair beyond: up.
		next := onnx.Half(uint16(h + 1))
		if next-next != 0 || h&0x7fff == 0x7fff {
			continue
		}
		middle := float32((float64(v) + float64(next)) / 2)
		want := uint16(h + h&1)
		if got, _ := toHalf(middle); got != want {
			t.Fatalf("%v, between %#04x and its successor, becomes %#04x", middle, h, got)
		}
		beyond := math.Nextafter32(middle, next)
		if got, _ := toHalf(beyond); got != uint16(h+1) {
			t.Fatalf("%v, beyond the middle of %#04x and its successor, becomes %#04x", beyond, h, got)
		}
	}
	for _, v := range []float32{65520, -1e9, float32(math.Inf(1)), float32(math.NaN())} {
		if _, ok := toHalf(v); ok {
			t.Errorf("%v is taken for a number of half precision", v)
		}
	}
}

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
