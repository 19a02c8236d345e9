package training

import (
	"fmt"
	"math"
	"path/filepath"
	"strings"
	"testing"

	"github.com/nearmiss/nearmiss/inference/imaging"
)

// parts are pictures of a striped rectangle that takes the given part of a frame of
// noise, as bright as level.
func parts(t *testing.T, n int, r imaging.Rect, level float64) []Image {
	t.Helper()
	const w, h = 120, 80
	out := make([]Image, n)
	for i := range out {
		m := imaging.New(w, h)
		for y := range h {
			for x := range w {
				v := level/2 + float64((x*7+y*13+i*5)%3)
				if fx, fy := float64(x)/w, float64(y)/h; fx >= r.X && fx < r.X+r.Width && fy >= r.Y && fy < r.Y+r.Height && (x/4+y/4+i)%2 == 0 {
					v = 2 * level
				}
				m.SetRGB(x, y, uint8(v), uint8(v), uint8(v))
			}
		}
		b, err := m.PNG()
		if err != nil {
			t.Fatal(err)
		}
		out[i] = Image{Name: fmt.Sprintf("part-%d.png", i), Read: func() ([]byte, error) { return b, nil }}
	}
	return out
}

func TestTheFrameIsWhereNormalsShowAnything(t *testing.T) {
	want := imaging.Rect{X: 0.25, Y: 0.2, Width: 0.5, Height: 0.5}
	f := frame(parts(t, 12, want, 100), Data{})
	if f.Box == nil || f.Gamma != 1 {
		t.Fatalf("%+v", f)
	}
	b := *f.Box
	for _, off := range []float64{want.X - b.X, want.Y - b.Y, b.X + b.Width - want.X - want.Width, b.Y + b.Height - want.Y - want.Height} {
		if off < 0 || off > 0.1 {
			t.Errorf("box %+v of a part in %+v", b, want)
		}
	}
	if f := frame(parts(t, 12, imaging.Rect{Width: 1, Height: 1}, 100), Data{}); f.Box != nil {
		t.Errorf("a part that fills the frame: %+v", f.Box)
	}
	dark := frame(parts(t, 12, want, 20), Data{})
	if dark.Box == nil || !(dark.Gamma < 1 && dark.Gamma >= framingGamma) || !strings.Contains(dark.String(), "gamma") {
		t.Errorf("%+v: %v", dark, dark)
	}
	broken := []Image{{Name: "x", Read: func() ([]byte, error) { return []byte("x"), nil }}}
	if f := frame(broken, Data{}); f.changes() || f.String() == "" {
		t.Errorf("nothing to look at: %+v", f)
	}
}

func TestFitLooksWhereNormalsShowAnything(t *testing.T) {
	rect := imaging.Rect{X: 0.25, Y: 0.2, Width: 0.5, Height: 0.5}
	plan := Plan{
		Detector: "parts", Seed: 5, Out: filepath.Join(t.TempDir(), "release"), Data: Data{Normals: parts(t, 30, rect, 20)},
		Model: Model{Backbone: smallBackbone(t)}, Calibration: Calibration{Settle: true}, Score: Score{Coreset: 60},
	}
	res, err := Fit(t.Context(), plan)
	if err != nil {
		t.Fatal(err)
	}
	prov, d := provenanceOf(t, plan.Out)
	p := d.Embedder().Preprocess()
	if res.Framing == nil || p.View == nil || p.View.Region == nil || math.Abs(p.View.Region.X-0.22) > 0.1 || p.Tone == nil || !(p.Tone.Gamma < 1) || prov.Framing == nil {
		t.Fatalf("%+v, view %+v, tone %+v", res.Framing, p.View, p.Tone)
	}
	// A region that is given stays, and all of the frame is taken where that is asked.
	given := &imaging.View{Region: &imaging.Rect{Width: 0.5, Height: 0.5}}
	for name, change := range map[string]func(*Plan){
		"given": func(p *Plan) { p.Data.View = given }, "all": func(p *Plan) { p.Data.Frame = FrameAll },
	} {
		q := plan
		q.Out = filepath.Join(t.TempDir(), name)
		change(&q)
		res, err := Fit(t.Context(), q)
		if err != nil {
			t.Fatal(err)
		}
		_, d := provenanceOf(t, q.Out)
		if v := d.Embedder().Preprocess().View; res.Framing != nil || name == "all" && v != nil || name == "given" && v.Region.Width != 0.5 {
			t.Errorf("%s: %+v, view %+v", name, res.Framing, v)
		}
	}
}
