package imaging

import (
	"math"
	"testing"
)

func TestToneEvensOutLight(t *testing.T) {
	picture := func(gain float64) []uint8 {
		pix := make([]uint8, 300)
		for i := range pix {
			pix[i] = uint8(math.Round(gain * float64(20+i%100)))
		}
		return pix
	}
	tone := &Tone{Brightness: 0.3}
	usual, dark, bright := picture(1), picture(0.8), picture(1.2)
	for _, p := range [][]uint8{usual, dark, bright} {
		if tone.Apply(p); math.Abs(Brightness(p)-0.3) > 0.002 {
			t.Errorf("brightness %v", Brightness(p))
		}
	}
	for i := range usual {
		if d := math.Abs(float64(usual[i]) - float64(dark[i])); d > 2 {
			t.Fatalf("sample %d: %d, and %d of the dark picture", i, usual[i], dark[i])
		}
	}
	black := make([]uint8, 30)
	if tone.Apply(black); Brightness(black) != 0 {
		t.Error("black is made bright")
	}
	faint := []uint8{10, 10, 10}
	if tone.Apply(faint); faint[0] != 20 {
		t.Errorf("a gain of more than 2: %v", faint)
	}
	open := []uint8{0, 64, 255}
	if (&Tone{Gamma: 0.5}).Apply(open); open[0] != 0 || open[1] != 128 || open[2] != 255 {
		t.Errorf("gamma 0.5: %v", open)
	}
	same := picture(1)
	(*Tone)(nil).Apply(same)
	(&Tone{Gamma: 1}).Apply(same)
	for i, v := range picture(1) {
		if same[i] != v {
			t.Fatal("no tone changes samples")
		}
	}
	for _, bad := range []Tone{{Brightness: 1}, {Brightness: -1}, {Gamma: -1}, {Gamma: math.NaN()}} {
		if bad.Validate() == nil {
			t.Errorf("%+v is accepted", bad)
		}
	}
}

// A tone is the last step of the preparation, whatever way the picture comes.
func TestPreprocessAppliesItsTone(t *testing.T) {
	m := New(20, 10)
	for i := range m.Pix {
		m.Pix[i] = uint8(40 + i%50)
	}
	file, err := m.PNG()
	if err != nil {
		t.Fatal(err)
	}
	p := Preprocess{Crop: 8, Squash: true, Interpolation: Bilinear, Std: [3]float64{1, 1, 1}, Tone: &Tone{Brightness: 0.5}}
	a, b := make([]uint8, p.Bytes()), make([]uint8, p.Bytes())
	if _, err := p.Apply(file, Limits{}, a); err != nil {
		t.Fatal(err)
	}
	if err := p.ApplyImage(m, b); err != nil {
		t.Fatal(err)
	}
	for i := range a {
		if a[i] != b[i] {
			t.Fatalf("sample %d: %d from the file, %d from the picture", i, a[i], b[i])
		}
	}
	if got := Brightness(a); math.Abs(got-0.5) > 0.01 {
		t.Errorf("brightness %v", got)
	}
	p.Tone.Brightness = 2
	if _, err := p.Apply(file, Limits{}, a); err == nil {
		t.Error("a tone that makes no sense is applied")
	}
}
