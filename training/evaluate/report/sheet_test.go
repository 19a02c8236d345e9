package report

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/nearmiss/nearmiss/inference/heatmap"
	"github.com/nearmiss/nearmiss/inference/imaging"
	"github.com/nearmiss/nearmiss/training/dataset"
	"github.com/nearmiss/nearmiss/training/evaluate"
)

// located is a run over magenta images of which those of kind hole are hot.
func located(t *testing.T) evaluate.Run {
	t.Helper()
	half := [3]float64{0.5, 0.5, 0.5}
	run := evaluate.Run{Normal: dataset.Good, Train: 5, Places: &evaluate.Places{
		Preprocess: imaging.Preprocess{Resize: 64, Crop: 64, Interpolation: imaging.Bilinear, Mean: half, Std: half},
	}}
	frame := imaging.New(120, 90)
	for i := 0; i < len(frame.Pix); i += 3 {
		frame.Pix[i], frame.Pix[i+2] = 255, 255
	}
	file, err := frame.PNG()
	if err != nil {
		t.Fatal(err)
	}
	hole := imaging.New(120, 90)
	hole.SetRGB(70, 40, 255, 255, 255)
	truth, err := hole.PNG()
	if err != nil {
		t.Fatal(err)
	}
	mask := filepath.Join(t.TempDir(), "mask.png")
	if err := os.WriteFile(mask, truth, 0o644); err != nil {
		t.Fatal(err)
	}
	var normals []heatmap.Grid
	for i := range 20 {
		g := heatmap.NewGrid(8, 8)
		for j := range g.Values {
			g.Values[j] = 0.1 + 0.01*float32(j%7)
		}
		it := dataset.FromBytes(fmt.Sprintf("%d.png", i), dataset.Test, dataset.Good, file)
		if i%2 == 1 {
			it.Label, it.Defect, it.Masks = "hole", "hole", []string{mask}
			g.Values[3*8+5] = 1
		} else {
			normals = append(normals, g)
		}
		run.Scored = append(run.Scored, evaluate.Scored{Item: it, Score: float64((i * 7) % 20), Anomalous: i%2 == 1, Grid: &g})
	}
	if run.Places.Scale, err = heatmap.NewScale(normals); err != nil {
		t.Fatal(err)
	}
	return run
}

func TestContactSheets(t *testing.T) {
	run := located(t)
	sheet, err := ContactSheet(t.Context(), run, HeatmapOptions{PerKind: 3, Normals: 4, Side: 60})
	if err != nil {
		t.Fatal(err)
	}
	magenta := func(m *imaging.Image) (n int) {
		for i := 0; i < len(m.Pix); i += 3 {
			if m.Pix[i] > 200 && m.Pix[i+1] < 60 && m.Pix[i+2] > 200 {
				n++
			}
		}
		return n
	}
	// Of 7 images, the frame alone is a third of the panels, 60×45 pixels each.
	if n := magenta(sheet); n < 7*60*45 {
		t.Errorf("%d pixels of the images", n)
	}
	bare, err := ContactSheet(t.Context(), run, HeatmapOptions{Side: 60, WithoutImages: true})
	if err != nil {
		t.Fatal(err)
	}
	if n := magenta(bare); n != 0 {
		t.Errorf("%d pixels of images that may not be shown", n)
	}
	blue := 0
	for i := 0; i < len(bare.Pix); i += 3 {
		if bare.Pix[i] == 0 && bare.Pix[i+1] == 110 && bare.Pix[i+2] == 255 {
			blue++
		}
	}
	if blue != 3 { // a hole of one pixel is seen in each of the three
		t.Errorf("%d pixels of outlines", blue)
	}
	run.Places = nil
	for i := range run.Scored {
		run.Scored[i].Grid = nil
	}
	if _, err := ContactSheet(t.Context(), run, HeatmapOptions{}); err == nil {
		t.Error("a sheet of a run without maps")
	}
}

func TestHeatmapsAreSpreadByRank(t *testing.T) {
	run := located(t)
	all := choose(run, HeatmapOptions{PerKind: 3, Normals: 2})
	var captions []string
	for _, s := range all {
		captions = append(captions, s.caption())
	}
	if got := strings.Join(captions, ", "); got != "hole 1 of 10: 3.png, hole 5 of 10: 7.png, hole 10 of 10: 17.png, good 1 of 10: 0.png, good 10 of 10: 14.png" {
		t.Error(got)
	}
	sheet, err := HeatmapSheet(t.Context(), run, HeatmapOptions{PerKind: 1, Normals: 1})
	if err != nil || len(sheet.Pictures) != 6 {
		t.Fatalf("%d pictures, %v", len(sheet.Pictures), err)
	}
	var buf bytes.Buffer
	rs := results(t)
	rs[2].Pixels = map[string]evaluate.PixelFigures{"crack": {AUROC: 0.812, PRO: 0.5, Covered: 0.4, CoveredAUROC: 0.99, CoveredPRO: 0.9, Regions: 7}, evaluate.All: {AUROC: 0.8}}
	if err := HTML(t.Context(), &buf, Page{Title: "heat", Results: rs, Sheets: []Sheet{sheet}}); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"--side: 160px", "hole 5 of 10", "<td>81.2</td>", "PRO of what is seen"} {
		if !strings.Contains(buf.String(), want) {
			t.Errorf("no %q on the page", want)
		}
	}
	if strings.Contains(buf.String(), "ZgotmplZ") {
		t.Error("the template refused a value")
	}
	buf.Reset()
	if err := Markdown(&buf, rs); err != nil {
		t.Fatal(err)
	}
	if want := "| crack | 7 | 81.2 | 50.0 | 40.0 | 99.0 | 90.0 |\n| all |"; !strings.Contains(buf.String(), want) {
		t.Errorf("no %q in\n%s", want, buf.String())
	}
}

// TestGroundTruthTellsNoMaskFromNormal: an empty panel says which it is, and a
// mask is blue on the faded image.
func TestGroundTruthTellsNoMaskFromNormal(t *testing.T) {
	run := located(t)
	truth := map[string]*imaging.Image{}
	for i, s := range run.Scored[:4] {
		name := s.Item.Label
		if i == 3 {
			s.Item.Masks, name = nil, "unknown"
		}
		ps, err := panels(run, shown{s, 1, 1}, HeatmapOptions{}.withDefaults())
		if err != nil || len(ps) != 3 {
			t.Fatal(len(ps), err)
		}
		truth[name] = ps[2]
	}
	blue := func(m *imaging.Image) (n int) {
		for i := 0; i < len(m.Pix); i += 3 {
			if int(m.Pix[i+2]) > int(m.Pix[i])+80 {
				n++
			}
		}
		return n
	}
	if blue(truth["hole"]) == 0 || blue(truth["good"]) > 0 || blue(truth["unknown"]) > 0 {
		t.Errorf("blue: %d of a hole, %d of a good image, %d without a mask", blue(truth["hole"]), blue(truth["good"]), blue(truth["unknown"]))
	}
	if slices.Equal(truth["good"].Pix, truth["unknown"].Pix) {
		t.Error("no mask looks like no defect")
	}
}

func TestShorten(t *testing.T) {
	for text, want := range map[string]string{"short": "short", "0.25  crack 1 of 12: a-very-long-name.jpg": "0.25  crac..ng-name.jpg"} {
		if got := shorten(text, 23); got != want || len(got) > 23 {
			t.Errorf("%q becomes %q", text, got)
		}
	}
}
