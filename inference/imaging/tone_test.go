package imaging

import (
	"bytes"
	"math"
	"math/rand/v2"
	"slices"
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
		if tone.Apply(p); math.Abs(brightnessOf(p)-0.3) > 0.002 {
			t.Errorf("brightness %v", brightnessOf(p))
		}
	}
	for i := range usual {
		if d := math.Abs(float64(usual[i]) - float64(dark[i])); d > 2 {
			t.Fatalf("sample %d: %d, and %d of the dark picture", i, usual[i], dark[i])
		}
	}
	black := make([]uint8, 30)
	if tone.Apply(black); brightnessOf(black) != 0 {
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
	nan := math.NaN()
	for _, bad := range []Tone{
		{Brightness: 1},
		{Brightness: -1},
		{Gamma: -1},
		{Gamma: nan},
		{Levels: []float64{0.2, 0.1}},
		{Levels: []float64{-0.1}},
		{Levels: []float64{0.1, 1.1}},
		{Levels: []float64{nan}},
		{Levels: []float64{0.1, nan}},
		{Levels: []float64{0.1}, Brightness: 0.5},
		{Levels: make([]float64, 256)},
		{Colours: [][]float64{{0.1}, {0.1}, {0.1}}},
		{Levels: []float64{0.1}, Colours: [][]float64{{0.1}, {0.1}}},
		{Levels: []float64{0.1}, Colours: [][]float64{{0.1}, {0.1}, {0.1, 0.2}}},
		{Levels: []float64{0.1}, Colours: [][]float64{{0.1}, {0.1}, {nan}}},
		{Levels: []float64{0.1}, Colours: [][]float64{{0.1}, {0.1}, {0.1}}, Grey: true},
		{Floor: -0.1},
		{Floor: 1},
		{Floor: nan},
		{Ceiling: 1.1},
		{Ceiling: nan},
		{Floor: 0.5, Ceiling: 0.5},
	} {
		if bad.Validate() == nil {
			t.Errorf("%+v is accepted", bad)
		}
	}
}

// Whatever gain and offset a picture is seen with, its levels are brought to the usual
// ones, and what a dark one lost is lost to all.
func TestToneUndoesGainAndOffset(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	usual := make([]float64, 3000) // samples of a dark picture with a few bright spots
	for i := range usual {
		usual[i] = 18 + 6*r.NormFloat64()
		if i%20 == 0 {
			usual[i] = 100 + 50*r.Float64()
		}
	}
	seen := func(gain, offset float64) []uint8 {
		pix := make([]uint8, len(usual))
		for i, v := range usual {
			pix[i] = uint8(min(max(math.Round(gain*math.Round(max(v, 0))+offset), 0), 255))
		}
		return pix
	}
	as := seen(1, 0)
	tone := &Tone{Levels: LevelsOf(as, 19), Floor: 0.05 / 0.9, Ceiling: 0.95 / 1.1, Gamma: 0.5}
	if err := tone.Validate(); err != nil {
		t.Fatal(err)
	}
	tone.Apply(as)
	if least := slices.Min(as); math.Abs(float64(least)-255*math.Sqrt(0.05/0.9)) > 1 {
		t.Errorf("the darkest sample is %d", least)
	}
	differs := func(pix []uint8) float64 {
		d := 0.0
		for i, v := range pix {
			d += math.Abs(float64(v)-float64(as[i])) / float64(len(pix))
		}
		return d
	}
	for _, gain := range []float64{0.9, 1, 1.1} {
		for _, offset := range []float64{-12.75, -6, 0, 6, 12.75} {
			pix := seen(gain, offset)
			before := differs(pix)
			if tone.Apply(pix); differs(pix) > 0.9 || differs(pix) > before/20 {
				t.Errorf("gain %v and offset %v: samples differ by %.2f, before by %.2f", gain, offset, differs(pix), before)
			}
		}
	}
	// One that has nothing in common with them stays what it is, or nearly so.
	for what, pix := range map[string][]uint8{"black": make([]uint8, 300), "white": bytes.Repeat([]byte{255}, 300), "grey": bytes.Repeat([]byte{128}, 300)} {
		was := float64(pix[0])
		(&Tone{Levels: tone.Levels}).Apply(pix)
		if d := math.Abs(float64(pix[0]) - was); d > 255*mostLevelOffset+1 || (what != "grey" && d > 0) {
			t.Errorf("%s becomes %d", what, pix[0])
		}
	}
}

// A slight cast is undone, on top of other light; what has another colour keeps it.
func TestToneUndoesSlightCasts(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 4))
	usual := make([][3]float64, 2000)
	for i := range usual {
		v := 60 + 60*r.Float64()
		usual[i] = [3]float64{v, 0.8 * v, 0.5*v + 10*r.Float64()}
	}
	seen := func(cast [3]float64, gain, offset float64) (pix []uint8) {
		for _, p := range usual {
			for c, v := range p {
				pix = append(pix, uint8(math.Round(gain*cast[c]*v+offset)))
			}
		}
		return pix
	}
	as := seen([3]float64{1, 1, 1}, 1, 0)
	tone := &Tone{Levels: LevelsOf(as, 19)}
	for _, levels := range ColourLevelsOf(as, 19) {
		tone.Colours = append(tone.Colours, levels)
	}
	if err := tone.Validate(); err != nil {
		t.Fatal(err)
	}
	differs := func(pix []uint8) float64 {
		d := 0.0
		for i, v := range pix {
			d += math.Abs(float64(v)-float64(as[i])) / float64(len(pix))
		}
		return d
	}
	common := &Tone{Levels: tone.Levels}
	for _, cast := range [][3]float64{{1, 1, 1}, {0.95, 1, 1.05}, {1.05, 0.95, 1}, {1, 1.05, 0.95}} {
		for _, gain := range []float64{0.9, 1, 1.1} {
			pix, without := seen(cast, gain, 5), seen(cast, gain, 5)
			tone.Apply(pix)
			common.Apply(without)
			if differs(pix) > 1 || cast != [3]float64{1, 1, 1} && differs(pix) > differs(without)/2 {
				t.Errorf("cast %v at a gain of %v: samples differ by %.2f, with the same gain for all colours by %.2f", cast, gain, differs(pix), differs(without))
			}
		}
	}
	blue := seen([3]float64{0.5, 1, 1.5}, 1, 0)
	if tone.Apply(blue); differs(blue) < 10 {
		t.Errorf("another colour differs by %.2f", differs(blue))
	}
}

// A camera whose pictures are all grey cannot show a cast.
func TestToneReadsGrey(t *testing.T) {
	grey := New(12, 8)
	for i := range grey.Pix {
		grey.Pix[i] = uint8(20 + 5*(i/3%40))
	}
	cast := grey.Clone()
	for i, v := range cast.Pix {
		cast.Pix[i] = uint8(math.Round([3]float64{1.05, 0.99, 0.97}[i%3] * float64(v)))
	}
	if !grey.IsGrey() || cast.IsGrey() {
		t.Fatal("what is grey is not told from what has a cast")
	}
	p := Preprocess{Crop: 8, Squash: true, Interpolation: Bilinear, Std: [3]float64{1, 1, 1}}
	q := p
	q.Tone = &Tone{Grey: true}
	prepared := func(p Preprocess, m *Image) []uint8 {
		out := make([]uint8, p.Bytes())
		if err := p.ApplyImage(m, out); err != nil {
			t.Fatal(err)
		}
		return out
	}
	as := prepared(p, grey)
	if !bytes.Equal(prepared(q, grey), as) {
		t.Error("what is grey is changed")
	}
	for i, v := range prepared(q, cast) {
		if d := math.Abs(float64(v) - float64(as[i])); d > 2 || i%3 > 0 && v != prepared(q, cast)[i-1] {
			t.Fatalf("sample %d: %d, without the cast %d", i, v, as[i])
		}
	}
	alone := slices.Clone(cast.Pix)
	q.Tone.Apply(alone)
	if !(&Image{Pix: alone, Width: 12, Height: 8}).IsGrey() {
		t.Error("samples keep their cast")
	}
}

func TestLevelsOf(t *testing.T) {
	pix := make([]uint8, 256)
	for i := range pix {
		pix[i] = uint8(i)
	}
	for i, v := range LevelsOf(pix, 3) {
		if want := (64*float64(i+1) - 0.5) / 255; math.Abs(v-want) > 1e-9 {
			t.Errorf("level %d of evenly spread samples: %v, want %v", i, v, want)
		}
	}
	for _, v := range LevelsOf(nil, 3) {
		if v != 0 {
			t.Errorf("of no samples: %v", v)
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
	if got := brightnessOf(a); math.Abs(got-0.5) > 0.01 {
		t.Errorf("brightness %v", got)
	}
	p.Tone.Brightness = 2
	if _, err := p.Apply(file, Limits{}, a); err == nil {
		t.Error("a tone that makes no sense is applied")
	}
}

func BenchmarkTone(b *testing.B) {
	pix := make([]uint8, 3*224*224)
	for i := range pix {
		pix[i] = uint8(40 + i%100)
	}
	tone := &Tone{Levels: LevelsOf(pix, 19), Floor: 0.05, Ceiling: 0.9, Gamma: 0.5}
	for _, levels := range ColourLevelsOf(pix, 19) {
		tone.Colours = append(tone.Colours, levels)
	}
	b.SetBytes(int64(len(pix)))
	for b.Loop() {
		tone.Apply(pix)
	}
}

// Apply changes the samples of a picture, red, green and blue of each pixel, in place.
func (t *Tone) Apply(pix []uint8) {
	if t.ReadsGrey() {
		toGrey(pix)
	}
	t.applyAs(pix, pix)
}
