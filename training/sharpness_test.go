package training

import (
	"errors"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/nearmiss/nearmiss/inference/imaging"
	"github.com/nearmiss/nearmiss/inference/release"
	"github.com/nearmiss/nearmiss/training/evaluate"
)

func TestWhatIsDoneAboutBlur(t *testing.T) {
	t.Parallel()
	broken := errors.New("broken")
	for name, c := range map[string]struct {
		want                 string
		usual, whole, varied float64
		blind                string // the one that sees less
		choice               string
		closed               []string
	}{
		"steady":          {SharpnessAuto, 0.1, 0, 0, "", SharpnessUsual, nil},
		"whole pictures":  {SharpnessAuto, 0.5, 0.1, 0, "", SharpnessWhole, []string{SharpnessUsual}},
		"patches, too":    {SharpnessAuto, 0.5, 0.4, 0.1, "", SharpnessVaried, []string{SharpnessWhole, SharpnessUsual}},
		"not by much":     {SharpnessAuto, 0.3, 0.25, 0.25, "", SharpnessUsual, []string{SharpnessWhole, SharpnessVaried}},
		"copies blind":    {SharpnessAuto, 0.5, 0.4, 0, SharpnessVaried, SharpnessUsual, []string{SharpnessWhole, SharpnessVaried}},
		"too few to say":  {SharpnessAuto, math.NaN(), 0, 0, "", SharpnessUsual, nil},
		"asked for":       {SharpnessVaried, 0, 0, 0.5, SharpnessVaried, SharpnessVaried, nil},
		"whole asked for": {SharpnessWhole, 0, 0.5, 0, SharpnessWhole, SharpnessWhole, nil},
		"copies fail":     {SharpnessAuto, 0.5, -1, 0, "", "", []string{SharpnessUsual}},
	} {
		var closed []string
		best, report, err := inSharpness(c.want, func(choice string) (io.Closer, effect, error) {
			blur := map[string]float64{SharpnessUsual: c.usual, SharpnessWhole: c.whole, SharpnessVaried: c.varied}[choice]
			if blur < 0 {
				return nil, effect{}, broken
			}
			e := effect{light: 1, blur: blur, found: 0.8}
			if choice == c.blind {
				e.found = 0.7
			}
			return scoreInLight{choice, &closed}, e, nil
		})
		if (err != nil) != (c.choice == "") || !cmp.Equal(closed, c.closed) {
			t.Errorf("%s: closed %v, %v", name, closed, err)
			continue
		}
		if err == nil && (report.Choice != c.choice || best.(scoreInLight).choice != c.choice || slices.Contains(closed, c.choice)) {
			t.Errorf("%s: %+v, %+v", name, report, best)
		}
		if told := err == nil && strings.Contains(report.String(), "harder to see"); told != (name == "copies blind") {
			t.Errorf("%s: %s", name, report)
		}
	}
}

// weaves are n different images of a fine pattern, which a blur takes away.
func weaves(t *testing.T, n int) []Image {
	t.Helper()
	r := rand.New(rand.NewPCG(7, 8))
	images := make([]Image, n)
	for i := range images {
		img := imaging.New(32, 32)
		for y := range 32 {
			for x := range 32 {
				v := uint8(60 + 80*((x/4+y/4)%2) + r.IntN(90))
				img.SetRGB(x, y, v, v, v)
			}
		}
		b, err := img.PNG()
		if err != nil {
			t.Fatal(err)
		}
		images[i] = Image{Name: fmt.Sprintf("weave-%d.png", i), Read: func() ([]byte, error) { return b, nil }}
	}
	return images
}

// With blurred copies among the normals a blurred picture is one of them.
func TestFitSeesWhatABlurDoes(t *testing.T) {
	all := weaves(t, 100)
	learnt, later := all[:80], all[80:]
	blurred := make([][]byte, len(later))
	for i, img := range later {
		b, err := img.Read()
		if err != nil {
			t.Fatal(err)
		}
		m, err := imaging.Decode(b, imaging.Limits{})
		if err != nil {
			t.Fatal(err)
		}
		if blurred[i], err = evaluate.Blur(m, img.Name, 1, 2).PNG(); err != nil {
			t.Fatal(err)
		}
	}
	p, copied := map[string]float64{}, map[string]int{} // mean p-values, and patches of copies
	for _, want := range []string{SharpnessUsual, SharpnessWhole, SharpnessVaried, SharpnessAuto} {
		plan := Plan{
			Detector: "weaves", Seed: 5, Out: filepath.Join(t.TempDir(), "release"), Data: Data{Normals: learnt, Frame: FrameAll},
			Model: Model{Backbone: smallBackbone(t), Light: LightUsual, Sharpness: want}, Calibration: Calibration{Settle: true}, Score: Score{Coreset: 100},
		}
		res, err := Fit(t.Context(), plan)
		if err != nil {
			t.Fatal(err)
		}
		prov, d := provenanceOf(t, plan.Out)
		if diff := cmp.Diff(prov.Sharpness, res.Sharpness); diff != "" {
			t.Errorf("%s: the release says otherwise: %s", want, diff)
		}
		each := 1
		if want != SharpnessUsual {
			each = 3
		}
		if d.Bank().Len() != each*res.Bank || d.Release().Manifest.Bank.Images() != res.Bank {
			t.Errorf("%s: %d entries for %d normals", want, d.Bank().Len(), res.Bank)
		}
		if r := res.Sharpness; want == SharpnessAuto && (r.Choice != SharpnessVaried || !(*r.Usual > 0.5) || !(*r.Varied < sensitiveAlarms)) {
			t.Errorf("%v", r)
		}
		for _, part := range d.Parts() {
			for _, id := range part.Bank.IDs() {
				if image := release.ImageOf(id); part.About.IsPatch() && image != release.OriginalOf(image) {
					copied[want]++
				}
			}
		}
		scores, err := d.Score(t.Context(), blurred)
		if err != nil {
			t.Fatal(err)
		}
		for _, s := range scores {
			p[want] += s.PValue / float64(len(scores))
		}
	}
	if copied[SharpnessUsual]+copied[SharpnessWhole] > 0 || copied[SharpnessVaried] == 0 {
		t.Errorf("patches of copies in the banks: %v", copied)
	}
	if p[SharpnessUsual] > 0.1 || p[SharpnessWhole] > 0.1 || p[SharpnessVaried] < 0.3 || math.Abs(p[SharpnessAuto]-p[SharpnessVaried]) > 0.01 {
		t.Errorf("mean p-values of blurred pictures: %v", p)
	}
}
