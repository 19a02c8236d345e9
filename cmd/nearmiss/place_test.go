package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"image"
	"image/png"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/nearmiss/nearmiss/inference/backbone"
	"github.com/nearmiss/nearmiss/inference/heatmap"
	"github.com/nearmiss/nearmiss/inference/imaging"
	"github.com/nearmiss/nearmiss/inference/release"
	"github.com/nearmiss/nearmiss/internal/eventually"
	"github.com/nearmiss/nearmiss/stream"
)

// spot is where the images of drawPlates have their defect: 20 × 20 pixels from
// here, in frames of plateW × plateH.
var spot = image.Pt(150, 40)

const plateW, plateH, spotSide = 240, 120, 20

// drawPlates writes n grey, grainy plates, with a checkered spot where asked.
func drawPlates(t *testing.T, dir string, n int, seed uint64, defect bool) {
	t.Helper()
	for i := range n {
		r := rand.New(rand.NewPCG(seed, uint64(i)))
		m := imaging.New(plateW, plateH)
		for y := range plateH {
			for x := range plateW {
				v := uint8(110 + x/12 + r.IntN(12))
				if p := image.Pt(x, y).Sub(spot); defect && p.X >= 0 && p.Y >= 0 && p.X < spotSide && p.Y < spotSide {
					v = uint8((p.X/4 + p.Y/4) % 2 * 255)
				}
				m.SetRGB(x, y, v, v, v)
			}
		}
		b, err := m.PNG()
		if err != nil {
			t.Fatal(err)
		}
		name := filepath.Join(dir, fmt.Sprintf("plate%02d.png", i))
		if err := errors.Join(os.MkdirAll(dir, 0o755), os.WriteFile(name, b, 0o644)); err != nil {
			t.Fatal(err)
		}
	}
}

// drawTruth writes the masks of the first n plates with a spot.
func drawTruth(t *testing.T, dir string, n int) {
	t.Helper()
	truth := imaging.New(plateW, plateH)
	for y := range spotSide {
		for x := range spotSide {
			truth.SetRGB(spot.X+x, spot.Y+y, 255, 255, 255)
		}
	}
	b, err := truth.PNG()
	if err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	for i := range n {
		write(t, filepath.Join(dir, fmt.Sprintf("plate%02d_mask.png", i)), string(b))
	}
}

// patchModel is a small ViT of random weights that has patches.
func patchModel(t *testing.T) string {
	t.Helper()
	needRuntime(t)
	model := filepath.Join(t.TempDir(), "model.onnx")
	spec := backbone.Spec{Family: backbone.ViT, Dim: 64, Depth: 2, Heads: 2, Hidden: 128, Patch: 8, Size: 64, ClassPos: true, NormEps: 1e-6}
	if _, err := writeRandomBackbone(spec, 3, model); err != nil {
		t.Fatal(err)
	}
	return model
}

// atSpot says whether a region lies on the defect.
func atSpot(x, y, w, h int) bool {
	box, defect := image.Rect(x, y, x+w, y+h), image.Rectangle{Min: spot, Max: spot.Add(image.Pt(spotSide, spotSide))}
	hit := box.Intersect(defect)
	return hit.Dx()*hit.Dy() > spotSide*spotSide/2 && box.Dx() < 4*spotSide && box.Dy() < 4*spotSide
}

func TestScoreShowsWhereImagesAreStrange(t *testing.T) {
	model, dir := patchModel(t), t.TempDir()
	normals, shown := filepath.Join(dir, "normals"), filepath.Join(dir, "shown")
	drawPlates(t, normals, 40, 1, false)
	drawPlates(t, filepath.Join(shown, "bad"), 2, 2, true)
	drawPlates(t, filepath.Join(shown, "good"), 2, 3, false)
	release := filepath.Join(dir, "release")
	program(t, 0, "fit", "--normals", normals, "--backbone", model, "--out", release, "--score", "patch", "--alpha", "0.15")

	heat := filepath.Join(dir, "heat")
	text, _ := program(t, 0, "score", "--release", release, shown, "--heatmap", heat, "--heatmap-all", "--json")
	lines := readLines[scoreLine](t, text)
	if len(lines) != 4 {
		t.Fatalf("%d lines", len(lines))
	}
	for _, l := range lines {
		bad := strings.Contains(l.Image, "bad")
		if bad && (!*l.Anomalous || len(l.Regions) == 0 || l.Regions[0].Faint || !atSpot(l.Regions[0].X, l.Regions[0].Y, l.Regions[0].Width, l.Regions[0].Height)) {
			t.Errorf("%s: %v, %+v", l.Image, *l.Anomalous, l.Regions)
		}
		name, err := filepath.Rel(shown, l.Image)
		if err != nil {
			t.Fatal(err)
		}
		if l.Overlay != filepath.Join(heat, name)+".overlay.png" || l.Heat != filepath.Join(heat, name)+".heat.png" {
			t.Errorf("%s and %s", l.Overlay, l.Heat)
		}
		b, err := os.ReadFile(l.Heat)
		if err != nil {
			t.Fatal(err)
		}
		raw, err := png.Decode(bytes.NewReader(b))
		if err != nil {
			t.Fatal(err)
		}
		grey, ok := raw.(*image.Gray16)
		if !ok || grey.Bounds() != image.Rect(0, 0, plateW, plateH) {
			t.Fatalf("the raw map is a %T of %v", raw, raw.Bounds())
		}
		if at := grey.Gray16At(spot.X+spotSide/2, spot.Y+spotSide/2).Y; bad != (at > 32768) {
			t.Errorf("%s: %d at the spot", l.Image, at)
		}
		if at := grey.Gray16At(10, 60).Y; at != 0 {
			t.Errorf("%s: %d where the model does not look", l.Image, at)
		}
		if over, err := os.ReadFile(l.Overlay); err != nil || !bytes.HasPrefix(over, []byte("\x89PNG")) {
			t.Errorf("overlay: %v", err)
		}
	}

	// Without --heatmap-all normal images get none, and regions come unasked.
	few := filepath.Join(dir, "few")
	program(t, 0, "score", "--release", release, shown, "--heatmap", few)
	for _, l := range lines {
		name, _ := filepath.Rel(shown, l.Image)
		if _, err := os.Stat(filepath.Join(few, name+".heat.png")); (err == nil) != *l.Anomalous {
			t.Errorf("%s, anomalous %v: %v", name, *l.Anomalous, err)
		}
	}
	text, _ = program(t, 0, "score", "--release", release, filepath.Join(shown, "bad"))
	if strings.Count(text, "heat 0.") != 2 {
		t.Errorf("text: %s", text)
	}

	_, errs := program(t, exitUsage, "score", "--release", release, filepath.Join(shown, "bad"), filepath.Join(shown, "good"), "--heatmap", heat)
	if !strings.Contains(errs, "one name") {
		t.Errorf("two images with one name: %s", errs)
	}
	program(t, exitUsage, "score", "--release", release, shown, "--heatmap-all")

	without := filepath.Join(dir, "without")
	program(t, 0, "fit", "--normals", normals, "--backbone", model, "--out", without, "--no-patches", "--alpha", "0.15")
	_, errs = program(t, 1, "score", "--release", without, shown, "--heatmap", heat)
	if !strings.Contains(errs, "no bank of patches") {
		t.Errorf("a release without patches: %s", errs)
	}
}

func TestAlarmsCarryEvidence(t *testing.T) {
	model, dir := patchModel(t), t.TempDir()
	normals, bad := filepath.Join(dir, "normals"), filepath.Join(dir, "bad")
	drawPlates(t, normals, 40, 1, false)
	drawPlates(t, bad, 3, 2, true)
	fitted := filepath.Join(dir, "release")
	program(t, 0, "fit", "--normals", normals, "--backbone", model, "--out", fitted, "--detector", "plates", "--score", "patch", "--alpha", "0.15")
	if thumbs, err := release.ReadThumbnails(fitted); err != nil || len(thumbs) != 32 {
		t.Fatalf("%d thumbnails of 32 normals in the bank, %v", len(thumbs), err)
	}
	url := startBroker(t)
	program(t, 0, "releases", "plates", "publish", fitted, "--promote", "--server", url)
	l := listen(t, url)
	w := start(t, "worker", "--server", url, "--data", t.TempDir())
	w.logged("release is in service")
	program(t, 0, "camera", bad, "--detector", "plates", "--camera", "one", "--server", url)
	eventually.True(t, "every frame has raised its alarm", func() bool {
		_, events := l.seen()
		return len(events) == 3
	})
	w.stop()
	_, events := l.seen()
	for _, e := range events {
		if len(e.Regions) == 0 || !atSpot(e.Regions[0].X, e.Regions[0].Y, e.Regions[0].Width, e.Regions[0].Height) || e.Pictures == "" || e.NoPictures != "" {
			t.Errorf("%+v", e)
		}
	}

	text, _ := program(t, 0, "evidence", "list", "plates", "--server", url, "--json")
	list := readLines[stream.EvidenceInfo](t, text)
	if len(list) != 3 {
		t.Fatalf("%s", text)
	}
	out := filepath.Join(dir, "evidence")
	text, _ = program(t, 0, "evidence", "get", "plates", list[1].Event, "--out", out, "--server", url, "--json")
	var got struct {
		Event eventLine
		Files []string
	}
	if err := json.Unmarshal([]byte(text), &got); err != nil {
		t.Fatal(err)
	}
	if got.Event.ID != list[1].Event || len(got.Event.Regions) == 0 || len(got.Files) != 5 {
		t.Errorf("%s", text)
	}
	for _, name := range []string{"overlay.jpg", "thumbnail.jpg", "normal-1.jpg", "normal-2.jpg"} {
		b, err := os.ReadFile(filepath.Join(out, name))
		if err != nil {
			t.Fatal(err)
		}
		if m, err := imaging.Decode(b, imaging.Limits{}); err != nil || m.Width != 2*m.Height {
			t.Errorf("%s: %v", name, err)
		}
	}
	file, err := os.ReadFile(filepath.Join(out, "heat.png"))
	if err != nil {
		t.Fatal(err)
	}
	sheet, err := png.Decode(bytes.NewReader(file))
	if err != nil {
		t.Fatal(err)
	}
	heat, ok := sheet.(*image.Paletted)
	if !ok || heat.Rect != image.Rect(0, 0, 64, 32) || len(file) > 4<<10 {
		t.Fatalf("the heat is a %T of %v in %d bytes", sheet, sheet.Bounds(), len(file))
	}
	at := func(x, y int) uint8 { return heat.ColorIndexAt(x*64/plateW, y*32/plateH) }
	if hot, cold, unseen := at(spot.X+spotSide/2, spot.Y+spotSide/2), at(80, 60), at(10, 60); hot <= 128 || cold == 0 || cold >= hot || unseen != 0 {
		t.Errorf("heat: %d at the spot, %d beside it, %d where the model does not look", hot, cold, unseen)
	}
	program(t, 0, "evidence", "get", "plates", "--last", "--out", out, "--server", url)
	program(t, exitUsage, "evidence", "get", "plates", "--out", out, "--server", url)
	_, errs := program(t, 1, "evidence", "get", "plates", "0123", "--out", out, "--server", url)
	if !strings.Contains(errs, "time is over") {
		t.Error(errs)
	}
}

func TestEvalShowsWhereDefectsAre(t *testing.T) {
	model, dir := patchModel(t), t.TempDir()
	data := filepath.Join(dir, "plates")
	drawPlates(t, filepath.Join(data, "train/good"), 20, 1, false)
	drawPlates(t, filepath.Join(data, "test/good"), 8, 2, false)
	drawPlates(t, filepath.Join(data, "test/spot"), 5, 3, true)
	drawTruth(t, filepath.Join(data, "ground_truth/spot"), 5)
	page, sheet := filepath.Join(dir, "page.html"), filepath.Join(dir, "sheet.png")
	text, _ := program(t, 0, "eval", "--data", data, "--protocol", "mvtec", "--backbone", model, "--score", "patch", "--out", page, "--sheet", sheet, "--json")
	var r struct {
		PixelAUROC float64 `json:"pixel_auroc"`
		PRO        float64 `json:"pro"`
		Pixels     map[string]struct {
			Seen      float64 `json:"seen"`
			SeenAUROC float64 `json:"seen_auroc"`
		} `json:"pixels"`
	}
	if err := json.Unmarshal([]byte(text), &r); err != nil {
		t.Fatal(err)
	}
	if r.PixelAUROC < 0.9 || r.PRO < 0.8 || r.Pixels["spot"].Seen != 1 || r.Pixels["all"].SeenAUROC < 0.9 {
		t.Errorf("%s", text)
	}
	if b, err := os.ReadFile(page); err != nil || !bytes.Contains(b, []byte("spot 1 of 5")) || !bytes.Contains(b, []byte("PRO of what is seen")) {
		t.Errorf("the page shows no heatmaps: %v", err)
	}
	if b, err := os.ReadFile(sheet); err != nil || !bytes.HasPrefix(b, []byte("\x89PNG")) {
		t.Errorf("no sheet: %v", err)
	}
	text, _ = program(t, 0, "eval", "--data", data, "--protocol", "mvtec", "--backbone", model, "--score", "patch", "--no-pixels")
	if strings.Contains(text, "pixels") {
		t.Error(text)
	}
	_, errs := program(t, 1, "eval", "--data", data, "--protocol", "mvtec", "--backbone", model, "--score", "class", "--sheet", sheet)
	if !strings.Contains(errs, "patches") {
		t.Errorf("a sheet of a score without patches: %s", errs)
	}
}

func TestPlacesAreNamedForPeople(t *testing.T) {
	for want, regions := range map[string][]heatmap.Region{
		"":                                  nil,
		"  at 1,2 3×4 heat 0.50 (faint)":    {{X: 1, Y: 2, Width: 3, Height: 4, Peak: 0.5, Faint: true}},
		"  at 1,2 3×4 heat 0.71 and 2 more": {{X: 1, Y: 2, Width: 3, Height: 4, Peak: 0.71}, {}, {}},
	} {
		if got := whereText(spots(regions)); got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}
