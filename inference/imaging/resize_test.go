package imaging

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"testing"

	"pgregory.net/rapid"

	"github.com/nearmiss/nearmiss/inference/imaging/internal/resample"
)

// pattern is the picture that testdata/make_goldens.py resamples.
func pattern(w, h int) *Image {
	m := New(w, h)
	for y := range h {
		for x := range w {
			n := uint32(x)*2654435761 + uint32(y)*40503 + uint32(x*y)*97
			n = (n ^ n>>15) * 2246822519
			n ^= n >> 13
			r := uint32(x*255/max(w-1, 1)) + n%32
			g := uint32(y*255/max(h-1, 1)) + n>>8%16
			b := uint32(20)
			if (x/5+y/3)%2 == 0 {
				b = 230
			}
			m.SetRGB(x, y, uint8(r), uint8(g), uint8(b+n>>16%20))
		}
	}
	return m
}

func TestResizeIsPillowsToTheBit(t *testing.T) {
	raw, err := os.ReadFile("testdata/resize.json")
	if err != nil {
		t.Fatal(err)
	}
	var cases []struct {
		From, To [2]int
		Filter   Interpolation
		SHA256   string
	}
	if err := json.Unmarshal(raw, &cases); err != nil {
		t.Fatal(err)
	}
	if len(cases) < 40 {
		t.Fatalf("only %d cases", len(cases))
	}
	for _, c := range cases {
		got := Resize(pattern(c.From[0], c.From[1]), c.To[0], c.To[1], c.Filter)
		if d := digest(got.Pix); d != c.SHA256 {
			t.Errorf("%v to %v %s: pixels differ from Pillow's", c.From, c.To, c.Filter)
		}
	}
}

func digest(b []byte) string {
	d := sha256.Sum256(b)
	return hex.EncodeToString(d[:])
}

func TestWindowEqualsCropOfTheWhole(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		side := rapid.IntRange(1, 70)
		m := pattern(side.Draw(t, "w"), side.Draw(t, "h"))
		w, h := side.Draw(t, "outW"), side.Draw(t, "outH")
		win := window{w: rapid.IntRange(1, w).Draw(t, "cropW"), h: rapid.IntRange(1, h).Draw(t, "cropH")}
		win.x = rapid.IntRange(0, w-win.w).Draw(t, "x")
		win.y = rapid.IntRange(0, h-win.h).Draw(t, "y")
		ip := rapid.SampledFrom([]Interpolation{Bilinear, Bicubic}).Draw(t, "filter")

		whole := Resize(m, w, h, ip).Crop(win.x, win.y, win.w, win.h)
		dst := make([]uint8, 3*win.w*win.h)
		resampleWindow(dst, m, w, h, win, ip)
		if !bytes.Equal(dst, whole.Pix) {
			t.Fatal("the window's pixels differ from the whole image's")
		}
	})
}

func TestUniformImagesStayUniform(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		side := rapid.IntRange(1, 200)
		m := New(side.Draw(t, "w"), side.Draw(t, "h"))
		v := rapid.Uint8().Draw(t, "level")
		for i := range m.Pix {
			m.Pix[i] = v
		}
		ip := rapid.SampledFrom([]Interpolation{Bilinear, Bicubic}).Draw(t, "filter")
		for _, got := range Resize(m, side.Draw(t, "outW"), side.Draw(t, "outH"), ip).Pix {
			if got != v {
				t.Fatalf("level %d became %d", v, got)
			}
		}
	})
}

func TestShorterSideAndCropRounding(t *testing.T) {
	for _, c := range []struct {
		w, h, size     int
		torchvision    bool
		wantW, wantH   int
		crop           int
		cropX0, cropY0 int
	}{
		{112, 116, 248, false, 248, 257, 224, 12, 16}, // 256.86; 16.5
		{112, 116, 248, true, 248, 256, 224, 12, 16},
		{640, 480, 256, false, 341, 256, 224, 58, 16}, // 341.33; 58.5
		{480, 640, 256, true, 256, 341, 224, 16, 58},
		{100, 100, 227, false, 227, 227, 224, 1, 1},
		{100, 100, 227, true, 227, 227, 224, 2, 2}, // 1.5 goes to the even 2
	} {
		w, h := shorterTo(c.w, c.h, c.size, c.torchvision)
		x, y := centerOffset(w, c.crop, c.torchvision), centerOffset(h, c.crop, c.torchvision)
		if w != c.wantW || h != c.wantH || x != c.cropX0 || y != c.cropY0 {
			t.Errorf("%d×%d to %d (torchvision %v): got %d×%d, crop at %d,%d", c.w, c.h, c.size, c.torchvision, w, h, x, y)
		}
	}
}

func TestApplyEqualsResizeAndCrop(t *testing.T) {
	p := Preprocess{Resize: 40, Crop: 32, Interpolation: Bicubic, Std: [3]float64{1, 1, 1}}
	for _, size := range [][2]int{{50, 90}, {91, 47}, {20, 20}, {40, 40}, {32, 40}} {
		m := pattern(size[0], size[1])
		b, err := m.PNG()
		if err != nil {
			t.Fatal(err)
		}
		got := make([]uint8, p.Bytes())
		h, err := p.Apply(b, Limits{}, got)
		if err != nil {
			t.Fatal(err)
		}
		if h.Width != size[0] || h.Height != size[1] || h.Format != PNG {
			t.Errorf("header %+v of a %v png", h, size)
		}
		want := ResizeShorter(m, p.Resize, p.Interpolation).CenterCrop(p.Crop, p.Crop)
		if !bytes.Equal(got, want.Pix) {
			t.Errorf("%v: pixels differ", size)
		}
	}
	squash := Preprocess{Crop: 24, Squash: true, Interpolation: Bilinear, Std: [3]float64{1, 1, 1}}
	got := make([]uint8, squash.Bytes())
	if err := squash.ApplyImage(pattern(50, 20), got); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, Resize(pattern(50, 20), 24, 24, Bilinear).Pix) {
		t.Error("squashed pixels differ from the plain resize")
	}
}

func TestPreprocessRefusesNonsense(t *testing.T) {
	good := Preprocess{Resize: 32, Crop: 32, Interpolation: Bicubic, Std: [3]float64{1, 1, 1}}
	if err := good.Validate(); err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]func(*Preprocess){
		"crop larger than resize": func(p *Preprocess) { p.Resize = 31 },
		"no crop":                 func(p *Preprocess) { p.Crop = 0 },
		"unknown interpolation":   func(p *Preprocess) { p.Interpolation = "lanczos" },
		"zero std":                func(p *Preprocess) { p.Std[1] = 0 },
	} {
		p := good
		change(&p)
		if p.Validate() == nil {
			t.Errorf("%s: accepted", name)
		}
		if p.ApplyImage(pattern(40, 40), make([]uint8, 32*32*3)) == nil {
			t.Errorf("%s: applied", name)
		}
	}
	if good.ApplyImage(pattern(40, 40), make([]uint8, 5)) == nil {
		t.Error("a destination of 5 bytes was accepted")
	}
	if good.ApplyImage(&Image{Width: 4, Height: 4}, make([]uint8, good.Bytes())) == nil {
		t.Error("an image without pixels was accepted")
	}
}

func TestRegionUndoesResizeAndCrop(t *testing.T) {
	p := Preprocess{Resize: 256, Crop: 224, Interpolation: Bicubic, Std: [3]float64{1, 1, 1}}
	x0, y0, x1, y1 := p.Region(512, 1024)
	if x0 != 32 || x1 != 480 || y0 != 288 || y1 != 736 {
		t.Errorf("region %g,%g to %g,%g", x0, y0, x1, y1)
	}
}

// What vector instructions make of a row is what the plain loops make of it, for all
// kinds of windows and sizes.
func TestResamplingIsTheSameByVectors(t *testing.T) {
	if !resample.Available {
		t.Skip("this machine has no such instructions")
	}
	r := rand.New(rand.NewPCG(5, 5))
	noise := func(n int) []uint8 {
		p := make([]uint8, n)
		for i := range p {
			p[i] = [...]uint8{0, 255, uint8(r.Uint32())}[r.IntN(3)] // extremes overshoot
		}
		return p
	}
	fast := 0
	for range 400 {
		in, out := 1+r.IntN(400), 1+r.IntN(300)
		lo := r.IntN(out)
		hi := lo + 1 + r.IntN(out-lo)
		ip := []Interpolation{Bilinear, Bicubic}[r.IntN(2)]
		taps := makeTaps(in, float64(in)-r.Float64()/2, out, lo, hi, ip)
		taps.pair(in)
		fast += len(taps.paired.at)

		row := noise(3 * in)
		got, want := noise(3*(hi-lo)+1), make([]uint8, 3*(hi-lo))
		guard := got[3*(hi-lo)]
		horizontalRow(got[:3*(hi-lo)], row, taps)
		horizontalPlain(want, row, taps, 0)
		if !bytes.Equal(got[:len(want)], want) || got[len(want)] != guard {
			t.Fatalf("%d to %d..%d of %d pixels, %s: a row differs", in, lo, hi, out, ip)
		}

		stride := 1 + r.IntN(200)
		rows := noise(in * stride)
		got, want = make([]uint8, (hi-lo)*stride), make([]uint8, (hi-lo)*stride)
		verticalPass(got, rows, stride, 0, taps)
		for i, first := range taps.first {
			k := taps.k[i*taps.width : i*taps.width+taps.n[i]]
			verticalPlain(want[i*stride:(i+1)*stride], rows[first*stride:], stride, k, make([]int32, stride), 0)
		}
		if !bytes.Equal(got, want) {
			t.Fatalf("%d to %d..%d of %d rows of %d, %s: they differ", in, lo, hi, out, stride, ip)
		}
	}
	if fast < 10_000 {
		t.Errorf("only %d pixels were made by vectors", fast)
	}
}

func BenchmarkPreprocess(b *testing.B) {
	p := Preprocess{Resize: 248, Crop: 224, Interpolation: Bicubic, Std: [3]float64{1, 1, 1}}
	dst := make([]uint8, p.Bytes())
	for _, size := range [][2]int{{120, 120}, {640, 480}, {1920, 1080}} {
		m := pattern(size[0], size[1])
		b.Run(fmt.Sprintf("%dx%d", size[0], size[1]), func(b *testing.B) {
			for b.Loop() {
				if err := p.ApplyImage(m, dst); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
