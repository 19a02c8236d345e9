package sde

import (
	"bytes"
	"math"
	"testing"

	"github.com/nearmiss/nearmiss/inference/imaging"
)

// gradient is a picture in which every pixel differs.
func gradient(w, h int) *imaging.Image {
	im := imaging.New(w, h)
	for y := range h {
		for x := range w {
			im.SetRGB(x, y, uint8(255*x/w), uint8(255*y/h), uint8((x*7+y*13)%256))
		}
	}
	return im
}

func TestASetKeepsItsPixels(t *testing.T) {
	im := gradient(8, 8)
	s, err := newSet(Pictures{im, gradient(24, 16)}, 8, 3)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(s.at(0).Pix, im.Pix) {
		t.Error("an image of the network's size changed")
	}
	for _, r := range [][2]float64{{-1, 1}, {0, 1}} {
		x := make([]float32, s.dim())
		s.put(x, 0, r[0], r[1], 0)
		if got := toPicture(quantise(x, r[0], r[1]), 3, 8); !bytes.Equal(got.Pix, im.Pix) {
			t.Errorf("range %v: the way there and back changed the image", r)
		}
	}
	grey, err := newSet(Pictures{im}, 4, 1)
	if err != nil {
		t.Fatal(err)
	}
	g := grey.at(0)
	for i := 0; i < len(g.Pix); i += 3 {
		if g.Pix[i] != g.Pix[i+1] || g.Pix[i] != g.Pix[i+2] {
			t.Fatal("a grey image has colour")
		}
	}
	if _, err := newSet(Pictures{}, 8, 3); err == nil {
		t.Error("no images were accepted")
	}
	if _, err := newSet(Pictures{im}, 8, 2); err == nil {
		t.Error("two channels were accepted")
	}
}

func TestSymmetriesAreEightAndRight(t *testing.T) {
	im := gradient(6, 6)
	s, err := newSet(Pictures{im}, 6, 3)
	if err != nil {
		t.Fatal(err)
	}
	turned := func(a symmetry) *imaging.Image {
		x := make([]float32, s.dim())
		s.put(x, 0, 0, 1, a)
		return toPicture(quantise(x, 0, 1), 3, 6)
	}
	var seen [][]uint8
	for _, a := range Dihedral.all() {
		p := turned(a).Pix
		for _, q := range seen {
			if bytes.Equal(p, q) {
				t.Errorf("symmetry %d equals another one", a)
			}
		}
		seen = append(seen, p)
	}
	if !bytes.Equal(turned(mirror).Pix, im.FlipHorizontal().Pix) {
		t.Error("mirror is not a horizontal flip")
	}
	r := newRand(1, 1, 1)
	counts := map[symmetry]int{}
	for range 8000 {
		counts[Dihedral.draw(r)]++
	}
	for _, a := range Dihedral.all() {
		if counts[a] < 850 || counts[a] > 1150 {
			t.Errorf("symmetry %d was drawn %d times of 8000", a, counts[a])
		}
	}
}

func TestDetailComesBack(t *testing.T) {
	full := gradient(40, 30)
	low := square(full, 10)
	if same := addDetail(full, low, low); !bytes.Equal(same.Pix, full.Pix) {
		t.Error("a fake equal to its normal changed the normal")
	}
	// A constant change at low resolution is the same change at full resolution,
	// in the square that the network saw.
	fake := low.Clone()
	for i := range fake.Pix {
		fake.Pix[i] = uint8(min(int(fake.Pix[i])/2+40, 255))
	}
	dark := low.Clone()
	for i := range dark.Pix {
		dark.Pix[i] = 0
	}
	plus := low.Clone()
	for i := range plus.Pix {
		plus.Pix[i] = 20
	}
	got := addDetail(full, dark, plus)
	for _, p := range [][2]int{{20, 15}, {6, 3}, {33, 28}} {
		r, _, _ := full.RGB(p[0], p[1])
		g, _, _ := got.RGB(p[0], p[1])
		if want := min(int(r)+20, 255); int(g) != want {
			t.Errorf("pixel %v: %d, want %d", p, g, want)
		}
	}
	if r0, _, _ := full.RGB(1, 15); true {
		if r1, _, _ := got.RGB(1, 15); r0 != r1 {
			t.Error("a pixel outside the square changed")
		}
	}
	// Shrinking what was given its details back gives the fake again, nearly.
	back := square(addDetail(full, low, fake), 10)
	sum := 0.0
	for i := range back.Pix {
		if i%3 < 2 { // blue is not smooth
			sum += math.Abs(float64(back.Pix[i])-float64(fake.Pix[i])) / float64(len(back.Pix)*2/3)
		}
	}
	if mean := sum; mean > 4 {
		t.Errorf("the detailed fake shrinks to something %.1f levels from the fake", mean)
	}
}
