package training

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
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
		"copies too dear": {SharpnessAuto, 0.3, 0.05, 0, "", SharpnessUsual, nil},
		"not by much":     {SharpnessAuto, 0.4, 0.35, 0.3, "", SharpnessUsual, []string{SharpnessWhole, SharpnessVaried}},
		"copies blind":    {SharpnessAuto, 0.5, 0.4, 0, SharpnessVaried, SharpnessUsual, []string{SharpnessWhole, SharpnessVaried}},
		"too few to say":  {SharpnessAuto, math.NaN(), 0, 0, "", SharpnessUsual, nil},
		"asked for":       {SharpnessVaried, 0, 0, 0.5, SharpnessVaried, SharpnessVaried, nil},
		"whole asked for": {SharpnessWhole, 0, 0.5, 0, SharpnessWhole, SharpnessWhole, nil},
		"copies fail":     {SharpnessAuto, 0.5, -1, 0, "", "", []string{SharpnessUsual}},
	} {
		var closed []string
		best, report, err := inSharpness(c.want, []string{SharpnessUsual, SharpnessWhole, SharpnessVaried}, func(choice string) (io.Closer, effect, error) {
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

// What is tried one after the other makes anew only what changes, and comes to the same as
// what is made from the start.
func TestRemediesForBlurAreMadeOfTheOneBefore(t *testing.T) {
	t.Parallel()
	images := weaves(t, 60)
	var read atomic.Int32
	for i := range images {
		file := images[i].Read
		images[i].Read = func() ([]byte, error) { read.Add(1); return file() }
	}
	for name, c := range map[string]struct {
		score, choice string
		most          int
		reads         int32
	}{
		"whole pictures":              {"spread@1:unit|patch@1:placed:top1:mean", SharpnessWhole, 0, 60},
		"patches, too":                {FullScore, SharpnessVaried, 0, 60},
		"patches for maps alone":      {"spread@1:unit|class", SharpnessWhole, 0, 60},
		"patches, embedded each time": {FullScore, SharpnessVaried, 1, 60 + 60 + 60},
	} {
		plan := Plan{
			Detector: "weaves", Seed: 5, Out: "none", Data: Data{Normals: images},
			Model: Model{Backbone: smallBackbone(t), Sharpness: SharpnessAuto}, Score: Score{Coreset: 100}, Host: Host{Batch: 1}, // batches form by chance, and round otherwise
		}.withDefaults()
		var err error
		if plan.Score.Groups, err = ParseScore(c.score); err != nil {
			t.Fatal(err)
		}
		nets := networks{served: plan.Model.Backbone, frozen: plan.Model.Backbone}
		x, err := embed(t.Context(), plan, nets, filepath.Join(t.TempDir(), "model.onnx"), images, "embed")
		if err != nil {
			t.Fatal(err)
		}
		defer x.Close()
		x.b.folded, x.b.blur, x.b.most = true, true, c.most
		var all []int
		for i := range images {
			all = append(all, i)
		}
		build := func() *builtScore {
			t.Helper()
			s, err := x.b.build(t.Context(), x.n.at(all[12:]), x.n.at(all[:12]))
			if err != nil {
				t.Fatal(err)
			}
			return s
		}
		usual := build()
		read.Store(0)
		one, report, err := usual.sharpen(t.Context(), plan.Model, LightUsual)
		if err != nil || report.Choice != c.choice || read.Load() != c.reads {
			t.Fatalf("%s: %v, %v, and %d images read, want %s and %d", name, err, report, read.Load(), c.choice, c.reads)
		}
		x.b.copies = one.copies
		other := build()
		for _, s := range []*builtScore{one, other} {
			if err := s.draw(t.Context()); err != nil {
				t.Fatal(err)
			}
			defer s.Close()
		}
		if !slices.Equal(one.folded, other.folded) || one.effect.blur != other.effect.blur || one.effect.found != other.effect.found || one.heldOut != other.heldOut {
			t.Errorf("%s: normals score %v and %v, %+v and %+v", name, one.folded, other.folded, one.effect, other.effect)
		}
		if diff := cmp.Diff([]any{one.Join(), one.foldedMaps}, []any{other.Join(), other.foldedMaps}); diff != "" {
			t.Errorf("%s: %s", name, diff)
		}
		for i, p := range one.Parts() {
			q := other.Parts()[i]
			var files [2]bytes.Buffer
			if err := errors.Join(p.Bank.Encode(&files[0]), q.Bank.Encode(&files[1])); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(p.About, q.About); diff != "" || !bytes.Equal(files[0].Bytes(), files[1].Bytes()) {
				t.Errorf("%s: part %s has %d and %d entries; %s", name, p.About.Name, p.Bank.Len(), q.Bank.Len(), diff)
			}
		}
	}
}
