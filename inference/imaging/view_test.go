package imaging

import (
	"bytes"
	"testing"

	"pgregory.net/rapid"
)

func viewImage(w, h int) *Image {
	img := New(w, h)
	for i := range img.Pix {
		img.Pix[i] = uint8(i % 251)
	}
	return img
}

func TestViewCutsAndPaints(t *testing.T) {
	img := viewImage(10, 8)
	before := bytes.Clone(img.Pix)
	v := &View{Region: &Rect{X: 0.2, Y: 0.25, Width: 0.5, Height: 0.5}, Ignore: []Rect{{X: 0.6, Y: 0, Width: 0.4, Height: 1}}}
	out := v.Apply(img)
	if out.Width != 5 || out.Height != 4 {
		t.Fatalf("%d × %d pixels", out.Width, out.Height)
	}
	for y := range 4 {
		for x := range 5 {
			for c := range 3 {
				want := img.Pix[3*((y+2)*10+x+2)+c]
				if x+2 >= 6 {
					want = 128
				}
				if got := out.Pix[3*(y*5+x)+c]; got != want {
					t.Fatalf("pixel %d,%d is %d, want %d", x, y, got, want)
				}
			}
		}
	}
	if !bytes.Equal(before, img.Pix) {
		t.Error("the image was changed")
	}
	var none *View
	if none.Apply(img) != img || none.Validate() != nil {
		t.Error("no view is something")
	}
}

func TestViewKeepsAPixelOfAnyImage(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w, h := rapid.IntRange(1, 40).Draw(t, "w"), rapid.IntRange(1, 40).Draw(t, "h")
		part := func(name string) Rect {
			x, y := rapid.Float64Range(0, 0.99).Draw(t, name+"x"), rapid.Float64Range(0, 0.99).Draw(t, name+"y")
			return Rect{X: x, Y: y, Width: rapid.Float64Range(1e-4, 1-x).Draw(t, name+"w"), Height: rapid.Float64Range(1e-4, 1-y).Draw(t, name+"h")}
		}
		r := part("region")
		v := &View{Region: &r, Ignore: []Rect{part("ignored")}}
		if err := v.Validate(); err != nil {
			t.Fatal(err)
		}
		if out := v.Apply(viewImage(w, h)); !out.Valid() || out.Width > w || out.Height > h {
			t.Fatalf("%d × %d of %d × %d", out.Width, out.Height, w, h)
		}
	})
}

func TestViewValidate(t *testing.T) {
	for _, r := range []Rect{{}, {X: -0.1, Width: 1, Height: 1}, {X: 0.5, Width: 0.6, Height: 1}, {Width: 1, Height: 1.1}} {
		if (&View{Region: &r}).Validate() == nil || (&View{Ignore: []Rect{r}}).Validate() == nil {
			t.Errorf("%v is accepted", r)
		}
	}
}

func TestPreprocessLooksAtTheView(t *testing.T) {
	img := viewImage(64, 64)
	file, err := img.PNG()
	if err != nil {
		t.Fatal(err)
	}
	p := Preprocess{Resize: 16, Crop: 16, Interpolation: Bilinear, Std: [3]float64{1, 1, 1}}
	v := &View{Region: &Rect{X: 0.5, Y: 0.5, Width: 0.5, Height: 0.5}}
	want, got := make([]uint8, p.Bytes()), make([]uint8, p.Bytes())
	if err := p.ApplyImage(img.Crop(32, 32, 32, 32), want); err != nil {
		t.Fatal(err)
	}
	p.View = v
	h, err := p.Apply(file, Limits{}, got)
	if err != nil || h.Width != 64 || h.Height != 64 {
		t.Fatalf("%+v, %v", h, err)
	}
	if !bytes.Equal(got, want) {
		t.Error("the model is not fed with the view")
	}
	if x0, y0, x1, y1 := p.Region(64, 64); x0 != 32 || y0 != 32 || x1 != 64 || y1 != 64 {
		t.Errorf("the model sees %v,%v to %v,%v", x0, y0, x1, y1)
	}
	p.View = &View{Region: &Rect{X: 2}}
	if p.Validate() == nil {
		t.Error("a bad view is accepted")
	}
}
