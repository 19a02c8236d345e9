package training

import (
	"bytes"
	"errors"
	"image"
	"image/color"
	"image/draw"
	"image/png"
	"path/filepath"
	"strings"
	"testing"

	"github.com/nearmiss/nearmiss/inference/imaging"
	"github.com/nearmiss/nearmiss/training/dataset"
)

// deep is a normal whose samples of 16 bits reach so far; 0: samples of 8 bits.
func deep(t *testing.T, largest int) Image {
	t.Helper()
	var m image.Image
	if largest == 0 {
		m = image.NewGray(image.Rect(0, 0, 4, 4))
	} else {
		g := image.NewGray16(image.Rect(0, 0, 4, 4))
		g.SetGray16(1, 2, color.Gray16{Y: uint16(largest)})
		m = g
	}
	var b bytes.Buffer
	if err := png.Encode(&b, m); err != nil {
		t.Fatal(err)
	}
	return Image{Read: func() ([]byte, error) { return b.Bytes(), nil }}
}

// White is what all normals of a camera need, not what one frame does.
func TestNormalsTellHowManyBitsACameraHas(t *testing.T) {
	normals := func(all ...int) (out []Image) {
		for _, v := range all {
			out = append(out, deep(t, v))
		}
		return out
	}
	region := &imaging.View{Region: &imaging.Rect{Width: 1, Height: 0.5}}
	gone := Image{Read: func() ([]byte, error) { return nil, errors.New("gone") }}
	for _, c := range []struct {
		name    string
		normals []Image
		view    *imaging.View
		bits    int
		noted   bool
	}{
		{"8 bits", normals(0, 0, 0), nil, 0, false},
		{"12 bits, some dim", normals(300, 900, 4000, 300), nil, 12, true},
		{"12 bits, and a region", normals(300, 4000), region, 12, true},
		{"12 bits, and one that is gone", append(normals(300, 4000), gone), nil, 12, true},
		{"16 bits, most dim", normals(300, 900, 60000, 300), nil, 16, false},
		{"somebody says so", normals(300, 900), &imaging.View{Bits: 14}, 14, false},
	} {
		d := Data{Normals: c.normals, View: c.view}
		note, err := d.depth(t.Context())
		if err != nil {
			t.Errorf("%s: %v", c.name, err)
			continue
		}
		got := 0
		if d.View != nil {
			got = d.View.Bits
		}
		if got != c.bits || (note != "") != c.noted || c.noted && !strings.Contains(note, "4095") {
			t.Errorf("%s: %d bits, note %q, want %d bits", c.name, got, note, c.bits)
		}
		if c.view == region && (d.View.Region != region.Region || region.Bits != 0) {
			t.Errorf("%s: the view became %+v, and was changed to %+v", c.name, d.View, region)
		}
	}
}

// Normals are grey where every file has one sample a pixel that stands for no colour: a
// single one with colours is enough to read all in colour.
func TestNormalsTellWhetherACameraIsGrey(t *testing.T) {
	colour, palette := imaging.New(4, 4), image.NewPaletted(image.Rect(0, 0, 4, 4), color.Palette{color.Gray{Y: 9}, color.RGBA{R: 200, A: 255}})
	colour.SetRGB(1, 1, 9, 9, 10)
	rgb, err := colour.PNG()
	if err != nil {
		t.Fatal(err)
	}
	palette.Pix[3] = 1
	var b bytes.Buffer
	if err := png.Encode(&b, palette); err != nil {
		t.Fatal(err)
	}
	of := func(file []byte) Image { return Image{Read: func() ([]byte, error) { return file, nil }} }
	broken := of([]byte("no picture"))
	for what, c := range map[string]struct {
		normals []Image
		light   string
		grey    bool
	}{
		"grey":                 {[]Image{deep(t, 0), deep(t, 0)}, LightAuto, true},
		"grey of 16 bits":      {[]Image{deep(t, 60000)}, LightEven, true},
		"one broken":           {[]Image{broken, deep(t, 0)}, LightVaried, true},
		"as they are":          {[]Image{deep(t, 0)}, LightUsual, false},
		"all broken":           {[]Image{broken}, LightAuto, false},
		"none":                 {nil, LightAuto, false},
		"one in colour":        {[]Image{deep(t, 0), of(rgb)}, LightAuto, false},
		"a palette of colours": {[]Image{deep(t, 0), of(b.Bytes())}, LightAuto, false},
	} {
		p := Plan{Data: Data{Normals: c.normals}, Model: Model{Light: c.light}}
		if err := p.readGrey(t.Context()); err != nil || p.Model.tone.ReadsGrey() != c.grey {
			t.Errorf("%s: tone %+v, %v", what, p.Model.tone, err)
		}
		Framing{Gamma: 0.5}.apply(&p)
		if p.Model.tone.ReadsGrey() != c.grey || p.Model.tone.Gamma != 0.5 {
			t.Errorf("%s, opened shadows: tone %+v", what, p.Model.tone)
		}
	}
}

// A grey camera's pictures are read as grey by what is learnt and by what is measured,
// with their light evened out and without.
func TestWhatIsLearntOfAGreyCameraReadsGrey(t *testing.T) {
	t.Parallel()
	var normals []Image
	var items []dataset.Item
	for _, img := range squares(t, 12) {
		b, err := img.Read()
		if err != nil {
			t.Fatal(err)
		}
		m, err := imaging.Decode(b, imaging.Limits{})
		if err != nil {
			t.Fatal(err)
		}
		grey := image.NewGray(image.Rect(0, 0, m.Width, m.Height))
		draw.Draw(grey, grey.Rect, m.RGBA(), image.Point{}, draw.Src)
		var file bytes.Buffer
		if err := png.Encode(&file, grey); err != nil {
			t.Fatal(err)
		}
		normals = append(normals, Image{Name: img.Name, Read: func() ([]byte, error) { return file.Bytes(), nil }})
		items = append(items, dataset.FromBytes(img.Name, dataset.Train, "square", file.Bytes()))
	}
	for _, light := range []string{LightEven, LightVaried} {
		plan := Plan{
			Detector: "squares", Seed: 5, Out: filepath.Join(t.TempDir(), "release"), Data: Data{Normals: normals},
			Model: Model{Backbone: smallBackbone(t), Light: light}, Calibration: Calibration{Settle: true}, Score: Score{Groups: Class(), NoPatches: true},
		}
		greyIn := func(what string, tone *imaging.Tone) {
			t.Helper()
			if !tone.ReadsGrey() || len(tone.Colours) > 0 || (len(tone.Levels) > 0) != (light == LightEven) {
				t.Errorf("light %s, %s: tone %+v", light, what, tone)
			}
		}
		res, err := Fit(t.Context(), plan)
		if err != nil {
			t.Fatal(err)
		}
		_, d := provenanceOf(t, plan.Out)
		if greyIn("in the release", d.Embedder().Preprocess().Tone); !res.Light.Grey || d.Release().Manifest.SchemaVersion != 3 {
			t.Errorf("light %s: %+v, in a release of version %d", light, res.Light, d.Release().Manifest.SchemaVersion)
		}
		plan.Data, plan.Host.Work = Data{}, t.TempDir()
		m, err := ForEvaluation(plan, nil, nil)
		if err != nil {
			t.Fatal(err)
		}
		s, err := m.Fit(t.Context(), items, 1)
		if err != nil {
			t.Fatal(err)
		}
		e := s.(*evaluatedScore)
		greyIn("under the protocols", e.cached.b.model.e.Preprocess().Tone)
		if err := errors.Join(e.Close(), m.(*evaluation).Close()); err != nil {
			t.Error(err)
		}
	}
}
