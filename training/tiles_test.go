package training

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/nearmiss/nearmiss/inference"
	"github.com/nearmiss/nearmiss/inference/backbone"
	"github.com/nearmiss/nearmiss/inference/imaging"
)

// plates are n frames of w × h pixels of a grey that differs a little; those after the
// first good have a rough place, whose grey is the same on average.
func plates(t testing.TB, n, good, w, h int, seed uint64) []Image {
	t.Helper()
	r := rand.New(rand.NewPCG(seed, 3))
	out := make([]Image, n)
	for i := range out {
		m := imaging.New(w, h)
		light, x0, y0 := 110+r.IntN(30), r.IntN(max(w-12, 1)), r.IntN(max(h-12, 1))
		for y := range h {
			for x := range w {
				v := light + r.IntN(12)
				if inside := x >= x0 && x < x0+12 && y >= y0 && y < y0+12; inside && i >= good {
					v += 90 - 180*((x/2+y/2)%2)
				}
				m.SetRGB(x, y, uint8(v), uint8(v), uint8(v))
			}
		}
		b, err := m.PNG()
		if err != nil {
			t.Fatal(err)
		}
		out[i] = Image{Name: fmt.Sprintf("plate-%d.png", i), Read: func() ([]byte, error) { return b, nil }}
	}
	return out
}

// standOut are how many of the images after the first good ones score above all of these.
func standOut(t testing.TB, d *inference.Detector, images []Image, good int) (found int) {
	t.Helper()
	files := make([][]byte, len(images))
	for i, m := range images {
		files[i], _ = m.Read()
	}
	scores, err := d.Score(t.Context(), files)
	if err != nil {
		t.Fatal(err)
	}
	most := 0.0
	for i, s := range scores {
		switch {
		case s.Err != nil:
			t.Fatal(s.Err)
		case i < good:
			most = max(most, s.Score)
		case s.Score > most:
			found++
		}
	}
	return found
}

// A rough place of twelve pixels in a frame of 128 is missed at the model's 32 pixels
// and found in tiles of them, whatever else is done to pictures.
func TestTilesFindSmallDefects(t *testing.T) {
	t.Parallel()
	const good, bad = 20, 10
	normals, tests := plates(t, 40, 40, 128, 128, 1), plates(t, good+bad, good, 128, 128, 2)
	small := smallBackbone(t)
	for name, c := range map[string]struct {
		change func(p *Plan)
		found  bool
	}{
		"the whole picture": {func(p *Plan) {}, false},
		"tiles":             {func(p *Plan) { p.Model.Tiles = "4x4" }, true},
		"all, in 8 bits":    {func(p *Plan) { p.Model.Tiles, p.Model.Precision = TilesAuto, PrecisionInt8 }, true},
		"copies and symmetry": {func(p *Plan) {
			p.Model.Tiles, p.Model.Turned, p.Model.Symmetry, p.Model.Light = "4x4", "dihedral", imaging.Flip, LightVaried
		}, true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := Plan{
				Detector: "plates", Seed: 3, Out: filepath.Join(t.TempDir(), "release"), Data: Data{Normals: normals, Frame: FrameAll},
				Model: Model{Backbone: small, Light: LightUsual, See: SeeWhole}, Calibration: Calibration{Alpha: 0.05, Settle: true}, Score: Score{Coreset: 400},
			}
			p.Score.Groups, _ = ParseScore("class|patch@1:max")
			c.change(&p)
			res, err := Fit(t.Context(), p)
			if err != nil {
				t.Fatal(err)
			}
			_, d := provenanceOf(t, p.Out)
			tiles := d.Release().Manifest.Model.Preprocess.Tiles
			if (tiles.Count() == 16) != c.found || res.Resolution.Passes != 1+tiles.Count() {
				t.Fatalf("tiles %+v, %+v", tiles, res.Resolution)
			}
			found := standOut(t, d, tests, good)
			if c.found && found < bad-1 || !c.found && found > bad/2 {
				t.Errorf("%d of %d stand out; %s", found, bad, res.Resolution)
			}
		})
	}
}

// A budget goes over sizes and tiles together, and neither has more pixels than the
// frames; without one, large frames are looked at in few tiles.
func TestBudgetChoosesTiles(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		w, h   int
		change func(m *Model)
		size   int
		tiles  string
	}{
		{128, 128, func(m *Model) { m.Budget = time.Hour }, 32, "4x4"},
		{128, 60, func(m *Model) { m.Budget = time.Hour }, 32, "2x4"},
		{128, 40, func(m *Model) { m.Budget = time.Hour }, 32, "1x4"}, // two rows need more than 40 pixels
		{40, 40, func(m *Model) { m.Budget = time.Hour }, 32, TilesNone},
		{128, 128, func(m *Model) { m.Budget = time.Nanosecond }, 32, TilesNone},
		{128, 128, func(m *Model) { m.Budget, m.Tiles = time.Hour, TilesNone }, 32, TilesNone},
		{128, 128, func(m *Model) { m.Budget, m.Tiles = time.Hour, "2x2" }, 32, "2x2"},
		{128, 128, func(m *Model) { m.Tiles = TilesAuto }, 32, "4x4"},
		{399, 600, func(*Model) {}, 32, TilesNone},
		{400, 600, func(*Model) {}, 32, "2x2"},
		{400, 600, func(m *Model) { m.Tiles = TilesNone }, 32, TilesNone},
		{400, 600, func(m *Model) { m.Size = 96 }, 96, TilesNone},
		{400, 600, func(m *Model) { m.Size, m.Tiles = 224, TilesFew }, 224, TilesNone}, // two rows need 416
		{399, 600, func(m *Model) { m.Size, m.Tiles = 96, TilesFew }, 96, TilesNone},
		{300, 300, func(m *Model) { m.Budget, m.Tiles = time.Hour, TilesFew }, 32, TilesNone},
		{400, 600, func(m *Model) { m.Backbone = layeredBackbone(t, 4, 4) }, 32, "2x2"},
		{400, 600, func(m *Model) { m.Backbone = layeredBackbone(t, 4, 2) }, 32, TilesNone}, // tiles are put together of squares
		{400, 600, func(m *Model) { m.Budget, m.Tiles = time.Hour, TilesFew }, 32, "2x2"},
		{300, 300, func(m *Model) { m.Tiles, m.Size = TilesAuto, 96 }, 96, "3x3"},
		{600, 600, func(m *Model) { m.Budget = time.Hour }, 32, "4x4"},                                     // positions were learnt for 32
		{600, 600, func(m *Model) { m.Budget, m.Backbone = time.Hour, rotaryBackbone(t) }, 560, TilesNone}, // the whole, or three rows of 224, which need 608
	} {
		p := Plan{Data: Data{Normals: plates(t, 1, 1, c.w, c.h, 1), Frame: FrameAll}, Model: Model{Backbone: smallBackbone(t)}}
		c.change(&p.Model)
		p = p.withDefaults()
		tried, err := p.sized(t.Context(), t.TempDir())
		if err != nil {
			t.Fatal(err)
		}
		e, err := inference.NewEmbedder(p.Model.Backbone, inference.EmbedOptions{Whole: true})
		if err != nil {
			t.Fatal(err)
		}
		size := e.Preprocess().Crop
		if err := e.Close(); err != nil {
			t.Fatal(err)
		}
		if size != c.size || p.Model.tiles.String() != c.tiles || (p.Model.Budget > 0) != (len(tried) > 0) {
			t.Errorf("%+v: %d pixels in tiles of %s, tried %+v", c, size, p.Model.tiles, tried)
		}
	}
}

// Tiles are taken where they show much more of a frame than the largest input does.
func TestTilesMustShowMuchMore(t *testing.T) {
	t.Parallel()
	tiled := func(pixels float64) sampling {
		return sampling{224, imaging.Tiles{Rows: 2, Columns: 2}, pixels}
	}
	small, large := sampling{size: 224, pixels: 4}, sampling{size: 448, pixels: 2}
	for _, c := range []struct {
		tiles sampling
		asked bool
		want  sampling
	}{
		{tiled(2.1), true, large},
		{tiled(1.7), true, large}, // finer, and not by much
		{tiled(1.5), true, tiled(1.5)},
		{tiled(1.5), false, tiled(1.5)}, // nobody chooses: all ways are in the same tiles
	} {
		if got := best([]sampling{small, c.tiles, large}, c.asked); got != c.want {
			t.Errorf("%+v, chosen by itself %v: %+v, want %+v", c.tiles, c.asked, got, c.want)
		}
	}
}

func TestTilesThatCannotBe(t *testing.T) {
	t.Parallel()
	good := Plan{Detector: "a", Out: "b", Model: Model{Backbone: "c", Tiles: "2x2"}, Data: Data{Normals: make([]Image, 9)}}
	if err := good.Validate(); err != nil {
		t.Error(err)
	}
	for name, change := range map[string]func(p *Plan){
		"no numbers":        func(p *Plan) { p.Model.Tiles = "many" },
		"too many":          func(p *Plan) { p.Model.Tiles = "9x9" },
		"of the middle":     func(p *Plan) { p.Model.See = SeeMiddle },
		"without patches":   func(p *Plan) { p.Score.NoPatches = true },
		"of the class only": func(p *Plan) { p.Score.Groups, p.Model.Tiles = Class(), TilesAuto },
	} {
		p := good
		change(&p)
		if err := p.Validate(); !errors.Is(err, ErrPlan) || !strings.Contains(err.Error(), "tiles") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// What is made of a release of tiles looks at the same tiles.
func TestReleasesOfTilesAreExtended(t *testing.T) {
	t.Parallel()
	images := plates(t, 21, 21, 128, 128, 5)
	dir := t.TempDir()
	p := Plan{
		Detector: "plates", Seed: 3, Out: filepath.Join(dir, "first"), Data: Data{Normals: images[:20], Frame: FrameAll},
		Model: Model{Backbone: smallBackbone(t), Light: LightUsual, See: SeeWhole, Tiles: "2x3"}, Calibration: Calibration{Settle: true}, Score: Score{Coreset: 100},
	}
	had, err := Fit(t.Context(), p)
	if err != nil {
		t.Fatal(err)
	}
	more := filepath.Join(dir, "more")
	res, err := Extend(t.Context(), Extension{Derivation: Derivation{Release: p.Out, Out: more}, Normals: images[20:]})
	if err != nil || res.Bank != had.Bank+1 {
		t.Fatalf("%+v, %v", res, err)
	}
	_, before := provenanceOf(t, p.Out)
	_, after := provenanceOf(t, more)
	was, is := before.Release().Manifest, after.Release().Manifest
	if is.SchemaVersion != 2 || *is.Model.Preprocess.Tiles != *was.Model.Preprocess.Tiles || was.Model.Preprocess.Tiles.String() != "2x3" {
		t.Errorf("tiles %+v of version %d, before %+v", is.Model.Preprocess.Tiles, is.SchemaVersion, was.Model.Preprocess.Tiles)
	}
}

// rotaryBackbone is a small ViT whose positions are those of any input size.
func rotaryBackbone(t *testing.T) string {
	t.Helper()
	m, err := backbone.Random(backbone.Spec{
		Family: backbone.ViT, Dim: 64, Depth: 1, Heads: 1, Hidden: 64, Patch: 8, Size: 32, LayerScale: true, Rope: 100, NormEps: 1e-5,
	}, 1)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "rotary.onnx")
	if _, err := m.Write(path, backbone.Options{}); err != nil {
		t.Fatal(err)
	}
	return path
}

// layeredBackbone is a foreign model that says to have four layers of so many patches.
func layeredBackbone(t *testing.T, width, height int) string {
	l := backbone.Layer{Value: "x", Layout: "tokens", Class: true, Lead: 1, Width: width, Height: height, Dim: 8}
	return foreignBackbone(t, l, l, l, l)
}
