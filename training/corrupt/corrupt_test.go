package corrupt

import (
	"bytes"
	"math"
	"testing"

	"pgregory.net/rapid"

	"github.com/nearmiss/nearmiss/inference/imaging"
)

// picture is a textured image: rings and stripes.
func picture(w, h int, phase float64) *imaging.Image {
	m := imaging.New(w, h)
	for y := range h {
		for x := range w {
			v := math.Hypot(float64(x-w/2), float64(y-h/2))
			m.SetRGB(x, y, uint8(128+100*math.Sin(v/3+phase)), uint8(128+80*math.Sin(float64(x)/4+phase)), uint8(128+60*math.Cos(float64(y)/5)))
		}
	}
	return m
}

func distance(a, b *imaging.Image) float64 {
	sum := 0.0
	for i := range a.Pix {
		d := float64(a.Pix[i]) - float64(b.Pix[i])
		sum += d * d
	}
	return math.Sqrt(sum / float64(len(a.Pix)))
}

func TestEveryKindChangesAPictureAndGrowsWithItsStrength(t *testing.T) {
	img, donor := picture(96, 80, 0), picture(96, 80, 2)
	for _, k := range Kinds {
		var weak, strong float64
		for seed := range uint64(12) {
			for strength, sum := range map[float64]*float64{0.2: &weak, 1: &strong} {
				before := img.Clone()
				out, err := Apply(k, img, donor, strength, seed)
				if err != nil {
					t.Fatal(err)
				}
				if !out.Valid() || out.Width != img.Width || out.Height != img.Height {
					t.Fatalf("%s: %d×%d", k, out.Width, out.Height)
				}
				if !bytes.Equal(before.Pix, img.Pix) {
					t.Fatalf("%s changes its argument", k)
				}
				d := distance(img, out)
				if d == 0 {
					t.Errorf("%s, strength %v, seed %d: nothing changed", k, strength, seed)
				}
				*sum += d
			}
		}
		if strong < 1.2*weak {
			t.Errorf("%s: changes by %.2f at 0.2 and %.2f at 1", k, weak/12, strong/12)
		}
	}
}

func TestLocalKindsLeaveMostOfThePicture(t *testing.T) {
	img, donor := picture(128, 128, 0), picture(128, 128, 2)
	for _, k := range Kinds {
		if k == Warp || k == Mix || k.Family() == Global {
			continue
		}
		for seed := range uint64(8) {
			out, err := Apply(k, img, donor, 0.5, seed)
			if err != nil {
				t.Fatal(err)
			}
			changed := 0
			for i := 0; i < len(img.Pix); i += 3 {
				if !bytes.Equal(img.Pix[i:i+3], out.Pix[i:i+3]) {
					changed++
				}
			}
			if share := float64(changed) / (128 * 128); share > 0.45 {
				t.Errorf("%s, seed %d: %.0f %% of the pixels change", k, seed, 100*share)
			}
		}
	}
}

func TestAnySizeWorksAndEqualSeedsGiveEqualImages(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		size := rapid.IntRange(1, 40)
		img := picture(size.Draw(t, "w"), size.Draw(t, "h"), 0)
		donor := picture(size.Draw(t, "dw"), size.Draw(t, "dh"), 1)
		k := rapid.SampledFrom(Kinds).Draw(t, "kind")
		strength := rapid.Float64Range(0.01, 1).Draw(t, "strength")
		seed := rapid.Uint64().Draw(t, "seed")
		a, err := Apply(k, img, donor, strength, seed)
		if err != nil {
			t.Fatal(err)
		}
		b, _ := Apply(k, img, donor, strength, seed)
		if !bytes.Equal(a.Pix, b.Pix) {
			t.Fatal("equal seeds give different images")
		}
	})
}

func TestNonsenseIsRefused(t *testing.T) {
	img := picture(8, 8, 0)
	for name, f := range map[string]func() error{
		"an unknown kind":  func() error { _, err := Apply("rust", img, img, 0.5, 1); return err },
		"strength nought":  func() error { _, err := Apply(Warp, img, img, 0, 1); return err },
		"strength NaN":     func() error { _, err := Apply(Warp, img, img, math.NaN(), 1); return err },
		"a damaged image":  func() error { _, err := Apply(Warp, &imaging.Image{Width: 3, Height: 3}, img, 0.5, 1); return err },
		"no donor":         func() error { _, err := Apply(Mix, img, nil, 0.5, 1); return err },
		"too much of that": func() error { _, err := Apply(Mix, img, img, 1.5, 1); return err },
	} {
		if f() == nil {
			t.Errorf("%s is accepted", name)
		}
	}
}
