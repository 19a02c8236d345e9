package sde

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"image/png"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/nearmiss/nearmiss/inference/imaging"
	"github.com/nearmiss/nearmiss/training/frechet"
)

// blobs are pictures of one bright disc on a dark ground, of 12×12 pixels.
func blobs(n int) Pictures {
	var ps Pictures
	for i := range n {
		r := newRand(8, 8, uint64(i))
		im := imaging.New(12, 12)
		cx, cy, rad := 4+4*r.Float64(), 4+4*r.Float64(), 2+2*r.Float64()
		for y := range 12 {
			for x := range 12 {
				dx, dy := float64(x)-cx, float64(y)-cy
				v := uint8(40)
				if dx*dx+dy*dy < rad*rad {
					v = 220
				}
				im.SetRGB(x, y, v, v/2+uint8(r.IntN(10)), 90)
			}
		}
		ps = append(ps, im)
	}
	return ps
}

// pixels is an extractor of 4×4 mean colours.
type pixels struct{}

func (pixels) Vectors(_ context.Context, images []*imaging.Image) ([][]float32, error) {
	var out [][]float32
	for _, im := range images {
		small := imaging.Resize(im, 4, 4, imaging.Bilinear)
		v := make([]float32, len(small.Pix))
		for i, p := range small.Pix {
			v[i] = float32(p) / 64
		}
		out = append(out, v)
	}
	return out, nil
}

func testOptions() Options {
	return Options{
		SDE: "edm", Network: Network{Size: 8, Channels: 3, Width: 16, Multipliers: []int{1, 2}, Blocks: 1, Attention: []int{4}},
		Train:    TrainOptions{Batch: 16, LearningRate: 3e-3, Warmup: 20, EMA: 0.98, Session: oneThread},
		MaxSteps: 100, ProbeEvery: 10, Probes: 30, Batch: 30,
		Stop: frechet.Target{Kind: frechet.Ratio, Value: 0.35}, Mix: true, N: 36, DropCopies: true,
		Seed: 3, Extractor: pixels{},
	}
}

func TestGenerateStopsEarlyAndWritesWhatItMade(t *testing.T) {
	dir := t.TempDir()
	normals := blobs(60)
	var log bytes.Buffer
	o := testOptions()
	o.Log = &log
	m, err := Generate(t.Context(), normals, dir, o)
	if err != nil {
		t.Fatal(err)
	}
	if !m.Reached || m.Probes[len(m.Probes)-1].Step == o.MaxSteps {
		t.Errorf("target reached: %v, probes %+v, %s", m.Reached, m.Probes, m.Stop)
	}
	if first, last := m.Probes[0].Ratio, m.Probes[len(m.Probes)-1].Ratio; first != 1 || last > 0.35 {
		t.Errorf("r went from %.2f to %.2f, want from 1 to below 0.35", first, last)
	}
	if len(m.Fakes) != o.N {
		t.Errorf("%d fakes, want %d", len(m.Fakes), o.N)
	}
	for _, f := range m.Fakes {
		raw, err := os.ReadFile(filepath.Join(dir, f.File))
		if err != nil {
			t.Fatal(err)
		}
		if im, err := png.Decode(bytes.NewReader(raw)); err != nil || im.Bounds().Dx() != 8 {
			t.Errorf("%s: %v", f.File, err)
		}
	}
	for _, name := range []string{SheetFile, CurveFile} {
		raw, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := png.Decode(bytes.NewReader(raw)); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	raw, err := os.ReadFile(filepath.Join(dir, ManifestFile))
	if err != nil {
		t.Fatal(err)
	}
	var read Manifest
	if err := json.Unmarshal(raw, &read); err != nil || read.Normals != 60 || len(read.Mix) == 0 || read.Options.Seed != 3 {
		t.Errorf("manifest: %v, %+v", err, read)
	}
	for _, s := range read.Mix {
		if _, err := os.Stat(filepath.Join(dir, strings.Replace("step-000000.onnx", "000000", sixDigits(s.Step), 1))); err != nil {
			t.Errorf("checkpoint of step %d: %v", s.Step, err)
		}
	}
	kinds := map[string]int{}
	for line := range strings.Lines(log.String()) {
		var v struct{ Kind string }
		if err := json.Unmarshal([]byte(line), &v); err != nil {
			t.Fatalf("log line %q: %v", line, err)
		}
		kinds[v.Kind]++
	}
	if kinds["probe"] != len(m.Probes) || kinds["outcome"] != 1 || kinds["step"] == 0 {
		t.Errorf("log lines: %v", kinds)
	}

	again, err := Generate(t.Context(), normals, t.TempDir(), testOptions())
	if err != nil {
		t.Fatal(err)
	}
	if a, b := m.Final, again.Final; a == nil || b == nil || a.FD != b.FD {
		t.Errorf("the same seed gave other fakes: %+v, %+v", a, b)
	}
}

func sixDigits(n int) string {
	s := "00000" + string(rune('0'+n%10))
	for i := 4; i >= 0; i-- {
		n /= 10
		s = s[:i] + string(rune('0'+n%10)) + s[i+1:]
	}
	return s
}

func TestGenerateFromNormals(t *testing.T) {
	dir := t.TempDir()
	normals := blobs(12)
	o := testOptions()
	o.Stop, o.Extractor, o.MaxSteps = frechet.Target{Kind: frechet.Steps, Value: 60}, nil, 0
	o.MaxSteps = 1000
	o.N, o.Edit, o.EditFrom, o.Detail = 10, 0.3, 0.1, DetailResidual
	m, err := Generate(t.Context(), normals, dir, o)
	if err != nil {
		t.Fatal(err)
	}
	if !m.Reached || m.Probes[len(m.Probes)-1].Step != 60 {
		t.Errorf("stopped at %+v: %s", m.Probes, m.Stop)
	}
	low, high := 1.0, 0.0
	starts := map[string]bool{}
	for _, f := range m.Fakes {
		raw, err := os.ReadFile(filepath.Join(dir, f.File))
		if err != nil {
			t.Fatal(err)
		}
		im, err := png.Decode(bytes.NewReader(raw))
		if err != nil || im.Bounds().Dx() != 12 {
			t.Fatalf("%s: %v, %v, want the normal's own size", f.File, err, im.Bounds())
		}
		low, high = min(low, f.Edit), max(high, f.Edit)
		starts[f.From] = true
	}
	if low != 0.1 || high != 0.3 {
		t.Errorf("levels from %g to %g, want 0.1 to 0.3", low, high)
	}
	if len(starts) != 10 {
		t.Errorf("ten fakes start from %d normals", len(starts))
	}
	if _, err := os.Stat(filepath.Join(dir, CurveFile)); err == nil {
		t.Error("a curve without distances was drawn")
	}
}

func TestGenerateGoesOnAfterAnInterruption(t *testing.T) {
	whole, broken := t.TempDir(), t.TempDir()
	normals := blobs(20)
	o := testOptions()
	o.MaxSteps, o.Stop.Value = 20, 0.01
	want, err := Generate(t.Context(), normals, whole, o)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	o.Progress = func(p Progress) {
		if p.Loss != nil && p.Probe != nil && p.Stage == "train" && p.Done == 10 {
			cancel()
		}
	}
	if _, err := Generate(ctx, normals, broken, o); !errors.Is(err, context.Canceled) {
		t.Fatalf("got %v, want a cancelled run", err)
	}
	o.Progress, o.Resume = nil, true
	got, err := Generate(t.Context(), normals, broken, o)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want.Probes, got.Probes); diff != "" {
		t.Errorf("the curve of an interrupted run differs: %s", diff)
	}
	if got.Reached || len(got.Fakes) != o.N {
		t.Errorf("%d fakes, reached %v: %s", len(got.Fakes), got.Reached, got.Stop)
	}
	for _, name := range []string{SheetFile, CurveFile, got.Fakes[0].File} {
		a, err1 := os.ReadFile(filepath.Join(whole, name))
		b, err2 := os.ReadFile(filepath.Join(broken, name))
		if err1 != nil || err2 != nil || !bytes.Equal(a, b) {
			t.Errorf("%s of an interrupted run differs (%v, %v)", name, err1, err2)
		}
	}
	o.Resume = true
	if _, err := Generate(t.Context(), normals, t.TempDir(), o); err == nil {
		t.Error("a run was taken up where there is none")
	}
}

func TestGenerateRefuses(t *testing.T) {
	for want, change := range map[string]func(*Options){
		"at least one fake":      func(o *Options) { o.N = 0 },
		"probe every":            func(o *Options) { o.ProbeEvery = 0 },
		"need a feature":         func(o *Options) { o.Extractor = nil },
		"edit from":              func(o *Options) { o.Edit = 2 },
		"detail residual":        func(o *Options) { o.Detail = DetailResidual },
		"detail \"sharp\"":       func(o *Options) { o.Detail = "sharp" },
		"names for":              func(o *Options) { o.Names = []string{"a"} },
		"unknown, take one":      func(o *Options) { o.SDE = "ddim" },
		"want at least 4 normal": func(o *Options) { o.Seed = 99 },
	} {
		o := testOptions()
		change(&o)
		normals := blobs(8)
		if o.Seed == 99 {
			normals = blobs(3)
		}
		if _, err := Generate(t.Context(), normals, t.TempDir(), o); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got %v", want, err)
		}
	}
}

func TestProfiles(t *testing.T) {
	for _, name := range Profiles {
		for _, s := range append([]string{""}, Names...) {
			for _, size := range []int{32, 64, 128, 256} {
				if name == "paper-high" && (size < 256 || s != "" && s != "ve") {
					if _, err := Profile(name, s, size, 3); err == nil {
						t.Errorf("%s, %q at %d px was accepted", name, s, size)
					}
					continue
				}
				o, err := Profile(name, s, size, 3)
				if err != nil {
					t.Errorf("%s, %q at %d px: %v", name, s, size, err)
					continue
				}
				if o.Network.Size != size || o.SDE == "" || o.MaxSteps == 0 {
					t.Errorf("%s, %q at %d px: %+v", name, s, size, o)
				}
			}
		}
	}
	if _, err := Profile("tpu", "", 32, 3); err == nil {
		t.Error("an unknown profile was accepted")
	}
	paper, _ := Profile("paper", "", 32, 3)
	if paper.SDE != "vp" || paper.Network.Width != 128 || paper.Network.Dropout != 0.1 || paper.Sampler != EulerMaruyama {
		t.Errorf("the paper's profile: %+v", paper)
	}
}
