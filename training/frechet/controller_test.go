package frechet

import (
	"bytes"
	"image"
	"image/color"
	"image/png"
	"math"
	"slices"
	"strings"
	"testing"
)

func TestTargetsAreRead(t *testing.T) {
	for s, want := range map[string]Target{"r=0.3": {Ratio, 0.3}, "fid=40": {FID, 40}, "steps=2000": {Steps, 2000}} {
		got, err := ParseTarget(s)
		if err != nil || got != want {
			t.Errorf("%q: got %v, %v", s, got, err)
		}
		if got.String() != s {
			t.Errorf("%q prints as %q", s, got)
		}
	}
	for _, s := range []string{"", "r", "r=", "r=0", "r=1.5", "r=-1", "fid=NaN", "fid=Inf", "steps=1.5", "kid=3", "r=0.3x"} {
		if _, err := ParseTarget(s); err == nil {
			t.Errorf("%q was accepted", s)
		}
	}
}

func FuzzParseTarget(f *testing.F) {
	for _, s := range []string{"r=0.3", "fid=40", "steps=2000", "steps=1e300", "r=0x1p-2"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		got, err := ParseTarget(s)
		if err == nil && !(got.Value > 0 && !math.IsInf(got.Value, 0)) {
			t.Errorf("%q: accepted as %v", s, got)
		}
	})
}

// run feeds ratios, one every 100 steps from 0, and returns the step at which
// the controller stopped, −1 if it did not.
func run(c *Controller, ratios ...float64) int {
	for i, r := range ratios {
		if c.Observe(Probe{Step: 100 * i, Measurement: Measurement{Ratio: r, FD: 100 * r}}) {
			return 100 * i
		}
	}
	return -1
}

func TestTheControllerStopsAtItsTarget(t *testing.T) {
	c := NewController(Target{Ratio, 0.3}, ControllerOptions{})
	if at := run(c, 1, 0.8, 0.44, 0.4, 0.29, 0.1); at != 400 {
		t.Fatalf("stopped at %d, want 400", at)
	}
	if got := c.Keep(); !slices.Equal(got, []int{400, 300, 200}) {
		t.Errorf("kept %v, want 400, 300 and 200", got)
	}
	want := []Share{{200, 0.2}, {300, 0.4}, {400, 0.4}}
	if got := c.Mix(); !slices.Equal(got, want) {
		t.Errorf("mix: got %v, want %v", got, want)
	}
	if !strings.Contains(c.Reason(), "reached r=0.3 at step 400") || !c.Reached() {
		t.Errorf("reason: %s", c.Reason())
	}
}

func TestTheControllerRefusesToOvershoot(t *testing.T) {
	c := NewController(Target{FID, 40}, ControllerOptions{})
	if at := run(c, 3, 0.9, 0.5, 0.12); at != 300 {
		t.Fatalf("stopped at %d, want 300", at)
	}
	if got := c.Keep(); !slices.Equal(got, []int{200}) {
		t.Errorf("kept %v, want 200 alone: 300 is far past the target, 100 far before it", got)
	}
	if !strings.Contains(c.Reason(), "passed fid=40") {
		t.Errorf("reason: %s", c.Reason())
	}
}

func TestTheControllerStopsAtMemorisedCopies(t *testing.T) {
	c := NewController(Target{Ratio, 0.1}, ControllerOptions{})
	run(c, 1, 0.6, 0.4)
	if !c.Observe(Probe{Step: 300, Measurement: Measurement{Ratio: 0.3}, Copies: CopyReport{Share: 0.4}}) {
		t.Fatal("went on although two fakes in five are copies")
	}
	if got := c.Keep(); !slices.Equal(got, []int{200}) {
		t.Errorf("kept %v, want 200: the best one that did not copy", got)
	}
	if !strings.Contains(c.Reason(), "memorising") {
		t.Errorf("reason: %s", c.Reason())
	}
}

func TestATargetThatIsNotReachedIsSaid(t *testing.T) {
	c := NewController(Target{Ratio, 0.1}, ControllerOptions{})
	if at := run(c, 1, 0.6, 0.4, 0.45); at != -1 {
		t.Fatalf("stopped at %d", at)
	}
	if got := c.Keep(); got[0] != 200 {
		t.Errorf("kept %v, want the nearest, 200, first", got)
	}
	if !strings.Contains(c.Reason(), "not reached") || c.Reached() {
		t.Errorf("reason: %s", c.Reason())
	}
	if NewController(Target{Ratio, 0.1}, ControllerOptions{}).Mix() != nil {
		t.Error("a mix without a probe")
	}
}

func TestATargetInSteps(t *testing.T) {
	c := NewController(Target{Steps, 300}, ControllerOptions{})
	if at := run(c, 1, 0.1, 0.05, 0.01, 0.001); at != 300 {
		t.Fatalf("stopped at %d, want 300", at)
	}
	if got := c.Keep(); !slices.Equal(got, []int{300}) || !c.Reached() {
		t.Errorf("kept %v, reached %v; want 300 alone, reached: 200 steps are too few beside it", got, c.Reached())
	}
}

func TestTheCurveIsAPicture(t *testing.T) {
	var probes []Probe
	for i := range 8 {
		probes = append(probes, Probe{Step: 100 * i, Measurement: Measurement{Ratio: math.Exp(-float64(i) / 3), FD: 10}, Copies: CopyReport{Share: float64(i) / 50}})
	}
	for _, target := range []Target{{Ratio, 0.3}, {FID, 40}, {Steps, 500}} {
		var b bytes.Buffer
		if err := WriteCurve(&b, "early stopping", probes, target, 400); err != nil {
			t.Fatal(err)
		}
		im, err := png.Decode(&b)
		if err != nil {
			t.Fatal(err)
		}
		colours := map[color.Color]bool{}
		for y := range im.Bounds().Dy() {
			for x := range im.Bounds().Dx() {
				colours[im.At(x, y)] = true
			}
		}
		if len(colours) < 10 {
			t.Errorf("%s: the picture has %d colours only", target, len(colours))
		}
	}
	if err := WriteCurve(&bytes.Buffer{}, "", nil, Target{Ratio, 0.3}, 0); err == nil {
		t.Error("a curve without probes was drawn")
	}
	probes[3].Ratio = math.NaN()
	if err := WriteCurve(&bytes.Buffer{}, "", probes, Target{Ratio, 0.3}, 0); err == nil {
		t.Error("a curve with a distance that is not a number was drawn")
	}
}

func TestTheContactSheetHoldsItsImagesInColumns(t *testing.T) {
	fill := func(c color.RGBA) image.Image {
		im := image.NewRGBA(image.Rect(0, 0, 4, 4))
		for i := range 16 {
			im.SetRGBA(i%4, i/4, c)
		}
		return im
	}
	red, blue := color.RGBA{R: 255, A: 255}, color.RGBA{B: 255, A: 255}
	s := Sheet([]Column{
		{Title: []string{"noise", "r 1.0"}, Images: []image.Image{fill(red), fill(blue)}},
		{Title: []string{"real"}, Images: []image.Image{fill(blue)}},
	}, 40)
	if w := s.Bounds().Dx(); w != 2*43+3 {
		t.Errorf("width: got %d", w)
	}
	if w := Sheet([]Column{{Title: []string{"step 12000"}, Images: []image.Image{fill(red)}}}, 40).Bounds().Dx(); w < 10*7 {
		t.Errorf("a title of ten letters has %d pixels", w)
	}
	head := s.Bounds().Dy() - 2*43
	for _, c := range []struct {
		x, y int
		want color.RGBA
	}{
		{23, head + 20, red},
		{23, head + 63, blue},
		{66, head + 20, blue},
		{66, head + 63, color.RGBA{255, 255, 255, 255}},
	} {
		if got := s.RGBAAt(c.x, c.y); got != c.want {
			t.Errorf("pixel %d,%d: got %v, want %v", c.x, c.y, got, c.want)
		}
	}
}
