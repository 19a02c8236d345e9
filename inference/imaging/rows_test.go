package imaging

import (
	"bytes"
	"runtime"
	"testing"
)

// preparations are ways from a frame to a model's input.
func preparations() map[string]Preprocess {
	one := [3]float64{1, 1, 1}
	view := &View{Region: &Rect{X: 0.1, Y: 0.2, Width: 0.7, Height: 0.5}, Ignore: []Rect{{X: 0.3, Y: 0.3, Width: 0.2, Height: 0.1}}}
	return map[string]Preprocess{
		"reduced":   {Resize: 12, Crop: 8, Interpolation: Bicubic, Std: one},
		"enlarged":  {Resize: 64, Crop: 60, Interpolation: Bilinear, Std: one},
		"squashed":  {Squash: true, Crop: 10, Interpolation: Bicubic, Std: one},
		"view":      {Resize: 12, Crop: 8, Interpolation: Bicubic, Std: one, View: view},
		"same size": {Resize: 23, Crop: 20, Interpolation: Bicubic, Std: one},
		"ignored":   {Resize: 23, Crop: 23, Interpolation: Bicubic, Std: one, View: &View{Ignore: view.Ignore}},
	}
}

func TestResizingRowsAsTheyComeChangesNothing(t *testing.T) {
	for name := range readGolden(t).Files {
		b := readCase(t, name)
		for how, p := range preparations() {
			got, want := make([]uint8, p.Bytes()), make([]uint8, p.Bytes())
			if _, err := p.Apply(b, Limits{}, got); err != nil {
				t.Fatalf("%s, %s: %v", name, how, err)
			}
			img, err := p.View.Decode(b, Limits{})
			if err != nil {
				t.Fatalf("%s, %s: %v", name, how, err)
			}
			if err := p.ApplyImage(img, want); err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(got, want) {
				t.Errorf("%s, %s: the model's input is not that of the whole picture", name, how)
			}
		}
	}
}

func TestApplyKeepsToTheMemoryThatItForetells(t *testing.T) {
	p := Preprocess{Resize: 248, Crop: 224, Interpolation: Bicubic, Std: [3]float64{1, 1, 1}}
	files := map[string][]byte{"png of 4000×4000": largePNG(t, 4000)}
	jpeg, err := pattern(2000, 1500).JPEG(90)
	if err != nil {
		t.Fatal(err)
	}
	files["jpeg of 2000×1500"] = jpeg
	for name := range readGolden(t).Files {
		files[name] = readCase(t, name)
	}
	tiles := p
	tiles.Squash, tiles.Tiles = true, &Tiles{Rows: 3, Columns: 2, Overlap: 32}
	for _, p := range []Preprocess{p, tiles} {
		keepsToItsMemory(t, p, files)
	}
}

func keepsToItsMemory(t *testing.T, p Preprocess, files map[string][]byte) {
	dst := make([]uint8, p.Bytes())
	for name, b := range files {
		h, err := Inspect(b, Limits{})
		if err != nil {
			t.Fatal(err)
		}
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		if _, err := p.Apply(b, Limits{}, dst); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		runtime.ReadMemStats(&after)
		took, foretold := int64(after.TotalAlloc-before.TotalAlloc), p.Memory(h)
		if took > foretold {
			t.Errorf("%s: %d bytes were allocated, %d foretold", name, took, foretold)
		}
		if whole := 3 * int64(h.Width) * int64(h.Height); whole > 1<<20 && took > whole/2 && turboMemory(h.Width, h.Height) == 0 {
			t.Errorf("%s: %d bytes were allocated, the whole picture has %d", name, took, whole)
		}
	}
}

// largePNG is a grey-blue square that deflates well: a small file that asks for
// much.
func largePNG(t testing.TB, side int) []byte {
	t.Helper()
	row := make([]byte, 1+3*side)
	for x := range side {
		row[3*x+3] = 200
	}
	return pngFile(uint32(side), uint32(side), 8, 2, deflated(t, bytes.Repeat(row, side)))
}
