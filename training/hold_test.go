package training

import (
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/nearmiss/nearmiss/inference"
	"github.com/nearmiss/nearmiss/inference/imaging"
	"github.com/nearmiss/nearmiss/inference/release"
)

// sliding is a window of 64 pixels that moves step pixels a frame over tiles of
// different textures.
func sliding(t testing.TB, n, step int) []Image {
	t.Helper()
	const side = 64
	r := rand.New(rand.NewPCG(3, 3))
	strip := imaging.New(n*step+side, side)
	for x := 0; x < strip.Width; {
		w, base, wave, slope := 20+r.IntN(60), 60+100*r.Float64(), 0.1+r.Float64(), 2*r.Float64()-1
		for ; w > 0 && x < strip.Width; w-- {
			for y := range side {
				v := uint8(base + 40*math.Sin(wave*(float64(x)+slope*float64(y))))
				strip.SetRGB(x, y, v, v, v)
			}
			x++
		}
	}
	out := make([]Image, n)
	for i := range out {
		m := imaging.New(side, side)
		for y := range side {
			for x := range side {
				v := strip.Pix[3*(y*strip.Width+i*step+x)]
				noisy := uint8(max(0, min(255, float64(v)+3*r.NormFloat64())))
				m.SetRGB(x, y, noisy, noisy, noisy)
			}
		}
		b, err := m.PNG()
		if err != nil {
			t.Fatal(err)
		}
		out[i] = Image{Name: fmt.Sprintf("video/%d.png", i), Read: func() ([]byte, error) { return b, nil }}
	}
	return out
}

// TestAVideosNormalsAreHeldOutInStretches learns from a video with 5 % asked and
// counts the alarms on what comes later.
func TestAVideosNormalsAreHeldOutInStretches(t *testing.T) {
	model := smallBackbone(t)
	for _, c := range []struct {
		step int
		says []string
	}{
		{6, []string{"different pictures", "whole stretches"}},
		{2, []string{"different pictures", "can be promised", "Learn from a longer time"}},
	} {
		frames := sliding(t, 550, c.step)
		alarms, promised := 0, 0.0
		const seeds = 3
		for seed := range uint64(seeds) {
			out := filepath.Join(t.TempDir(), "release")
			res, err := Fit(t.Context(), Plan{
				Detector: "video",
				Out:      out,
				Seed:     seed,
				Data:     Data{Normals: frames[:250], NoImages: true},
				Model:    Model{Backbone: model}, Score: Score{Groups: Class(), NoPatches: true},
				Calibration: Calibration{Alpha: 0.05},
			})
			if err != nil {
				t.Fatal(err)
			}
			promised += res.Alpha / seeds
			for _, want := range c.says {
				if !strings.Contains(strings.Join(res.Warnings, "\n"), want) {
					t.Errorf("step %d: %q is not among the notes: %q", c.step, want, res.Warnings)
				}
			}
			if res.Worth < 2 || res.Worth > 125 {
				t.Errorf("step %d: 250 frames are worth %.1f", c.step, res.Worth)
			}
			use := map[string]int{}
			lines, err := release.ReadNormals(out)
			if err != nil {
				t.Fatal(err)
			}
			for i, n := range lines {
				use[n.Use]++
				if i > 0 && lines[i-1].Use == UsedToHold && n.Use == UsedInBank {
					t.Errorf("step %d: frame %d is in the bank, and the one before it is held out", c.step, i)
				}
			}
			if use[UsedInBank] != res.Bank || use[UsedToHold] != res.HeldOut || use[NotUsedNear] == 0 || res.HeldOut < 50 {
				t.Errorf("step %d: %v, %+v", c.step, use, res)
			}
			alarms += alarmsOf(t, out, frames[250:])
		}
		rate := float64(alarms) / 300 / seeds
		t.Logf("step %d: %.1f %% false alarms, %.1f %% promised", c.step, 100*rate, 100*promised)
		if rate > max(0.1, promised) {
			t.Errorf("step %d: %.1f %% false alarms, %.1f %% promised", c.step, 100*rate, 100*promised)
		}
		if c.step == 2 && promised < 0.06 {
			t.Errorf("step %d: %.1f %% is promised", c.step, 100*promised)
		}
	}
}

func alarmsOf(t testing.TB, dir string, frames []Image) (n int) {
	t.Helper()
	d, err := inference.Open(t.Context(), dir, inference.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	var files [][]byte
	for _, f := range frames {
		b, _ := f.Read()
		files = append(files, b)
	}
	scores, err := d.Score(t.Context(), files)
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range scores {
		if s.Anomalous {
			n++
		}
	}
	return n
}

// copiesOf are the image with noise of 1 level, n times.
func copiesOf(t testing.TB, m Image, n int) []Image {
	t.Helper()
	r := rand.New(rand.NewPCG(9, 9))
	b, err := m.Read()
	if err != nil {
		t.Fatal(err)
	}
	img, err := imaging.Decode(b, imaging.Limits{})
	if err != nil {
		t.Fatal(err)
	}
	out := make([]Image, n)
	for i := range out {
		c := imaging.New(img.Width, img.Height)
		for j, v := range img.Pix {
			c.Pix[j] = uint8(max(0, min(255, int(v)+r.IntN(3)-1)))
		}
		file, err := c.PNG()
		if err != nil {
			t.Fatal(err)
		}
		out[i] = Image{Name: fmt.Sprintf("copy-%d.png", i), Read: func() ([]byte, error) { return file, nil }}
	}
	return out
}

// TestNearlyEqualNormalsCountOnce: with copies of one picture on both sides every
// other good picture would raise an alarm.
func TestNearlyEqualNormalsCountOnce(t *testing.T) {
	normals := squares(t, 60)
	given := append(copiesOf(t, normals[0], 100), normals[1:30]...)
	out := filepath.Join(t.TempDir(), "release")
	res, err := Fit(t.Context(), Plan{Detector: "squares", Out: out, Seed: 1, Data: Data{Normals: given}, Model: Model{Backbone: smallBackbone(t)}, Score: Score{Groups: Class()}, Calibration: Calibration{Settle: true, Alpha: 0.1}})
	if err != nil {
		t.Fatal(err)
	}
	if res.Duplicate != 99 || res.Bank+res.HeldOut != 30 || res.Alpha < 1.0/7-1e-9 {
		t.Errorf("%+v", res)
	}
	if n := alarmsOf(t, out, normals[30:]); n > 15 {
		t.Errorf("%d of 30 good pictures raise alarms", n)
	}
}

// TestAStillSceneIsLearnt: nothing moves before the camera, and that is told.
func TestAStillSceneIsLearnt(t *testing.T) {
	out := filepath.Join(t.TempDir(), "release")
	still := copiesOf(t, squares(t, 1)[0], 60)
	res, err := Fit(t.Context(), Plan{Detector: "still", Out: out, Seed: 1, Data: Data{Normals: still[:50]}, Model: Model{Backbone: smallBackbone(t)}, Score: Score{Groups: Class()}, Calibration: Calibration{Settle: true, Alpha: 0.1}})
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(strings.Join(res.Warnings, "\n"), "worth about 1 different picture:") || res.Alpha < 0.5 {
		t.Errorf("%+v", res)
	}
	if n := alarmsOf(t, out, still[50:]); n > 4 {
		t.Errorf("%d of 10 pictures of the same raise alarms", n)
	}
}

// TestNormalsThatAreGoneAreLeftOut: a folder that others write to loses a file
// between its listing and its reading.
func TestNormalsThatAreGoneAreLeftOut(t *testing.T) {
	dir := t.TempDir()
	normals := squares(t, 20)
	normals[3].Read = func() ([]byte, error) { return os.ReadFile(filepath.Join(dir, "gone.png")) }
	normals[4].Read = func() ([]byte, error) { return os.ReadFile(dir) } // a folder that is called like an image
	res, err := Fit(t.Context(), Plan{
		Detector: "squares", Out: filepath.Join(dir, "release"), Data: Data{Normals: normals},
		Model: Model{Backbone: smallBackbone(t)}, Score: Score{Groups: Class()}, Calibration: Calibration{Settle: true},
	})
	if err != nil {
		t.Fatal(err)
	}
	if res.Rejected != 2 || res.Bank+res.HeldOut != 18 || !strings.Contains(strings.Join(res.Warnings, "\n"), normals[3].Name+": it is gone") {
		t.Errorf("%+v", res)
	}
}

// TestFitSaysWhatTheModelDoesNotSee: of long frames only the middle is seen,
// unless all of it is squeezed in.
func TestFitSaysWhatTheModelDoesNotSee(t *testing.T) {
	var long []Image
	for i, n := range squares(t, 20) {
		b, _ := n.Read()
		img, err := imaging.Decode(b, imaging.Limits{})
		if err != nil {
			t.Fatal(err)
		}
		wide := imaging.New(120, 40)
		for y := range 40 {
			for x := range 120 {
				p := img.Pix[3*(y*40+(x+i)%40):]
				wide.SetRGB(x, y, p[0], p[1], p[2])
			}
		}
		if b, err = wide.PNG(); err != nil {
			t.Fatal(err)
		}
		long = append(long, Image{Name: n.Name, Read: func() ([]byte, error) { return b, nil }})
	}
	for see, want := range map[string]bool{SeeMiddle: true, SeeWhole: false} {
		res, err := Fit(t.Context(), Plan{
			Detector: "long", Out: filepath.Join(t.TempDir(), "release"), Data: Data{Normals: long},
			Model: Model{Backbone: smallBackbone(t), See: see}, Score: Score{Groups: Class()}, Calibration: Calibration{Settle: true},
		})
		if err != nil {
			t.Fatal(err)
		}
		if notes := strings.Join(res.Warnings, "\n"); strings.Contains(notes, "of a picture of 120×40 pixels") != want {
			t.Errorf("%s: notes %s", see, notes)
		}
	}
}
