package evaluate

import (
	"context"
	"math"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/nearmiss/nearmiss/inference/imaging"
	"github.com/nearmiss/nearmiss/training/dataset"
)

func TestPartialAUROC(t *testing.T) {
	normal := make([]float64, 100)
	for i := range normal {
		normal[i] = float64(i)
	}
	for name, c := range map[string]struct {
		anomalous []float64
		most      float64
		want      float64
	}{
		"all above":            {[]float64{200, 300}, 0.05, 1},
		"all below":            {[]float64{-1, -2}, 0.05, 0},
		"half above":           {[]float64{200, -1}, 0.05, 0.5},
		"found at two of five": {[]float64{97.5}, 0.05, 0.6},
		"as likely as normals": {normal, 0.1, 0.05},
		"all of it":            {[]float64{49.5}, 1, 0.5},
	} {
		if got := partialAUROC(normal, c.anomalous, c.most); math.Abs(got-c.want) > 1e-9 {
			t.Errorf("%s: %v, want %v", name, got, c.want)
		}
	}
	if got := partialAUROC(nil, normal, 0.05); !math.IsNaN(got) {
		t.Errorf("without normals: %v", got)
	}
}

func TestSuitesAreRead(t *testing.T) {
	b, err := os.ReadFile("../suite.yaml")
	if err != nil {
		t.Fatal(err)
	}
	s, err := ParseSuite(b, "/data")
	if err != nil || len(s.Sets) != 6 {
		t.Fatalf("%+v, %v", s, err)
	}
	want := SuiteSet{Name: "wbc, ten splits", Data: "/data/wbc", Protocol: ProtocolOneVsRest, Repeats: 10, Resplit: 0.8}
	if d := cmp.Diff(want, s.Sets[1]); d != "" {
		t.Error(d)
	}
	for text, says := range map[string]string{
		"":         "no sets",
		"sets: []": "no sets",
		"sets:\n- {data: a, protocol: mvtec}\n- {data: b/a, protocol: mvtec}": "two sets",
		"sets:\n- {protocol: mvtec}":                                          "no data",
		"sets:\n- {data: a}":                                                  "protocol",
		"sets:\n- {data: a, protocol: mvtec, repeats: -1}":                    "repeats",
		"sets:\n- {data: a, protocol: mvtec, resplit: 1}":                     "share",
		"sets:\n- {data: a, protocol: mvtec, colour: red}":                    "colour",
	} {
		if _, err := ParseSuite([]byte(text), "/"); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%q: %v", text, err)
		}
	}
}

func FuzzParseSuite(f *testing.F) {
	f.Add([]byte("sets:\n- {data: a, protocol: mvtec, repeats: 2}"))
	f.Fuzz(func(t *testing.T, b []byte) {
		if s, err := ParseSuite(b, "/"); err == nil && len(s.Sets) == 0 {
			t.Error("a suite without sets")
		}
	})
}

func TestASuiteIsSummedUp(t *testing.T) {
	rows := []SuiteRow{
		{Set: "a", Method: "x", AUROC: 0.9, AveragePrecision: 0.8, Partial: 0.5},
		{Set: "a", Method: "y|z", AUROC: 0.7, AveragePrecision: 0.6, Partial: 0.1},
		{Set: "b", Method: "x", AUROC: 0.5, AveragePrecision: 1, Partial: 0.7, Cost: &Cost{Milliseconds: 12, Banks: 3 << 20}, Light: &Light{AUROC: 0.45, Usual: 0.05, Alarms: 0.08}},
	}
	got := Summary(rows)
	want := []SuiteRow{
		{Set: "mean", Method: "x", AUROC: 0.7, AveragePrecision: 0.9, Partial: 0.6},
		{Set: "worst", Method: "x", AUROC: 0.5, AveragePrecision: 0.8, Partial: 0.5},
		{Set: "mean", Method: "y|z", AUROC: 0.7, AveragePrecision: 0.6, Partial: 0.1},
		{Set: "worst", Method: "y|z", AUROC: 0.7, AveragePrecision: 0.6, Partial: 0.1},
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
	table := SuiteTable(append(rows, got...))
	for _, line := range []string{"| b | x | 50.0 | 100.0 | 70.0 |  |  |  | 12 | 3 | 45.0, 5.0 → 8.0 |", `| worst | y\|z | 70.0 | 60.0 | 10.0 |`} {
		if !strings.Contains(table, line) {
			t.Errorf("%q is not in\n%s", line, table)
		}
	}
}

// brightness scores images by their mean sample.
type brightness struct{}

func (brightness) Name() string { return "brightness" }
func (brightness) Fit(context.Context, []dataset.Item, uint64) (Scorer, error) {
	return brightness{}, nil
}

func (brightness) Score(_ context.Context, items []dataset.Item) ([]float64, error) {
	out := make([]float64, len(items))
	for i, it := range items {
		b, err := it.Read()
		if err != nil {
			return nil, err
		}
		m, err := imaging.Decode(b, imaging.Limits{})
		if err != nil {
			return nil, err
		}
		for _, v := range m.Pix {
			out[i] += float64(v) / float64(len(m.Pix))
		}
	}
	return out, nil
}

// What looks at brightness alone is fooled by light, and the figures say so.
func TestOtherLightIsMeasured(t *testing.T) {
	set := &dataset.Set{Name: "greys", Layout: dataset.LayoutMVTec}
	grey := func(split, label string, n int, level uint8) {
		for i := range n {
			m := imaging.New(8, 8)
			for j := range m.Pix {
				m.Pix[j] = level + uint8(i%5)
			}
			b, err := m.PNG()
			if err != nil {
				t.Fatal(err)
			}
			set.Items = append(set.Items, dataset.FromBytes(label+string(rune('a'+i))+split+".png", split, label, b))
		}
	}
	grey(dataset.Train, dataset.Good, 5, 120)
	grey(dataset.Test, dataset.Good, 20, 120)
	grey(dataset.Test, "bright", 10, 130)
	r, err := MVTec(t.Context(), set, brightness{}, Options{Light: LightOther})
	if err != nil {
		t.Fatal(err)
	}
	if r.AUROC != 1 || r.Light == nil || r.Light.AUROC > 0.9 || r.Light.Alarms < 0.2 {
		t.Errorf("AUROC %v, other light %+v", r.AUROC, r.Light)
	}
	again, err := MVTec(t.Context(), set, brightness{}, Options{Light: LightOther})
	if err != nil || *again.Light != *r.Light {
		t.Errorf("the same light gives %+v and %+v, %v", r.Light, again.Light, err)
	}
}

// Each change does what it says: colours differ after a cast and are alike else, and a
// blur takes contrast from what is fine and leaves what is even.
func TestChangesOfLight(t *testing.T) {
	fine := imaging.New(120, 120)
	for i := range fine.Pix {
		fine.Pix[i] = uint8(100 + 50*(i/3%2))
	}
	file, err := fine.PNG()
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []Change{LightOther, LightCast, LightBlur, LightLens} {
		seen, differs, contrast := map[string]bool{}, false, 0
		for _, it := range c.items([]dataset.Item{dataset.FromBytes("a", dataset.Test, dataset.Good, file)}) {
			b, err := it.Read()
			if err != nil {
				t.Fatal(err)
			}
			seen[string(b)] = true
			m, err := imaging.Decode(b, imaging.Limits{})
			if err != nil {
				t.Fatal(err)
			}
			for i := 0; i < len(m.Pix); i += 3 {
				differs = differs || m.Pix[i] != m.Pix[i+1]
				if v := float64(m.Pix[i]); v < 100*0.9-12.75-1 || v > 150*1.1+12.75+1 {
					t.Fatalf("%s: a sample of %v", c, v)
				}
			}
			contrast = max(contrast, int(slices.Max(m.Pix))-int(slices.Min(m.Pix)))
		}
		if len(seen) < lightDraws-1 || differs != (c == LightCast) || (contrast < 45) != (c == LightBlur || c == LightLens) {
			t.Errorf("%s: %d pictures, colours differ %v, contrast %d", c, len(seen), differs, contrast)
		}
	}
}

// A point becomes a disc of the radius asked for, of the same light.
func TestALensOutOfFocusMakesDiscs(t *testing.T) {
	const side, middle = 41, 20
	for _, radius := range []float64{1, 1.5, 2} {
		point := imaging.New(side, side)
		point.SetRGB(middle, middle, 0, 255, 0)
		m := discs(point, radius)
		var sum, across, down float64
		for y := range side {
			for x := range side {
				v, dx, dy := float64(m.Pix[3*(y*side+x)+1]), float64(x-middle), float64(y-middle)
				sum, across, down = sum+v, across+v*dx*dx, down+v*dy*dy
				if far := math.Hypot(dx, dy) > radius+1; far && v > 0 {
					t.Errorf("radius %v: %v at %v, %v", radius, v, dx, dy)
				}
			}
		}
		// Along an axis the mean square is a quarter of that of the radius, and that of a pixel a
		// twelfth; in whole pixels that is nearly so.
		want := radius*radius/4 + 1.0/12
		if math.Abs(sum-255) > 8 || math.Abs(across-down) > 1e-9 || math.Abs(across/sum-want) > 0.1 {
			t.Errorf("radius %v: a sum of %v, spreads of %v and %v, want %v", radius, sum, across/sum, down/sum, want)
		}
	}
}

// A change that moves normals as often up as down raises no more alarms, however few
// they are; and each normal counts as much, in whatever run.
func TestAThresholdForLightIsFair(t *testing.T) {
	for n := 2; n <= 60; n++ {
		var normals []float64
		for i := range n {
			normals = append(normals, float64(i*i))
		}
		threshold, share := alarmsAt(normals)
		up := 0
		for _, v := range normals {
			for _, moved := range []float64{v - 0.1, v + 0.1} {
				if moved > threshold {
					up++
				}
			}
		}
		if got := float64(up) / float64(2*n); math.Abs(got-share) > 1e-12 || share == 0 || share > max(0.075, 1/float64(n)) {
			t.Errorf("of %d normals %v are above, and %v when they move", n, share, got)
		}
	}
	if at, share := alarmsAt([]float64{1, 2, 2, 2}); at != 1.5 || share != 0.75 {
		t.Errorf("equals: %v are above %v", share, at)
	}
	got := meanLight([]Run{{Light: &Light{AUROC: 1, Usual: 0.1, Alarms: 0.2, Normals: 30}}, {}, {Light: &Light{AUROC: 0.5, Usual: 0.5, Alarms: 0.6, Normals: 10}}})
	if d := cmp.Diff(&Light{AUROC: 0.75, Usual: 0.2, Alarms: 0.3, Normals: 40}, got, cmpopts.EquateApprox(0, 1e-12)); d != "" {
		t.Error(d)
	}
}
