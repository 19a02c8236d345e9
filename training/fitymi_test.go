package training

import (
	"context"
	"encoding/json"
	"errors"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/nearmiss/nearmiss/inference"
	"github.com/nearmiss/nearmiss/inference/backbone"
	"github.com/nearmiss/nearmiss/inference/imaging"
	"github.com/nearmiss/nearmiss/training/corrupt"
	"github.com/nearmiss/nearmiss/training/frechet"
	"github.com/nearmiss/nearmiss/training/sde"
)

// quick is a tuning that takes a second: two short fine-tunes on warps.
func quick(t testing.TB, sources string) *Tuning {
	t.Helper()
	tune, err := Profile("cpu")
	if err != nil {
		t.Fatal(err)
	}
	if tune.Sources, err = ParseSources(sources); err != nil {
		t.Fatal(err)
	}
	tune.PerNormal, tune.Members, tune.Recipe.Epochs, tune.Recipe.Batch, tune.LeastSteps = 2, 2, 1, 8, 0
	tune.Gate.Resamples, tune.Gate.Strengths = 100, []float64{0.5}
	tune.Gate.Kinds = []corrupt.Kind{"swirl", "shade", "tint"}
	return &tune
}

func fitymiPlan(t testing.TB, n int, sources string) Plan {
	t.Helper()
	dir := t.TempDir()
	return Plan{
		Detector:    "squares",
		Method:      FITYMI,
		Out:         filepath.Join(dir, "release"),
		Seed:        5,
		Tuning:      quick(t, sources),
		Data:        Data{Normals: squares(t, n)},
		Model:       Model{Backbone: smallBackbone(t)},
		Host:        Host{Work: filepath.Join(dir, "work"), Threads: 1},
		Calibration: Calibration{Settle: true},
		Score:       Score{Groups: Class()},
	}
}

func provenanceOf(t *testing.T, dir string) (Provenance, *inference.Detector) {
	t.Helper()
	d, err := inference.Open(t.Context(), dir, inference.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	var prov Provenance
	if err := json.Unmarshal(d.Release().Manifest.Training, &prov); err != nil {
		t.Fatal(err)
	}
	return prov, d
}

func TestFitymiWritesAReleaseAndSaysHowItCameAbout(t *testing.T) {
	plan := fitymiPlan(t, 50, "warp=3,cutpaste=1")
	plan.Tuning.Gate.Off = true // so that the tuned model is served
	var steps []string
	plan.Host.Progress = func(p Progress) {
		if len(steps) == 0 || steps[len(steps)-1] != p.Step {
			steps = append(steps, p.Step)
		}
		if tuning := strings.HasPrefix(p.Step, "finetune-"); (tuning && p.Done > 0) != (p.Loss != nil) || p.Frechet != nil {
			t.Errorf("%s %d/%d: loss %v, Fréchet %v", p.Step, p.Done, p.Total, p.Loss, p.Frechet)
		}
	}
	res, err := Fit(t.Context(), plan)
	if err != nil {
		t.Fatal(err)
	}
	if res.Published != "tuned" || res.Bank != 40 || res.HeldOut != 10 {
		t.Fatalf("%+v", res)
	}
	if want := []string{"embed", "finetune-1", "finetune-2", "gate", "embed again", "bank", "maps", "calibrate"}; !slices.Equal(steps, want) {
		t.Errorf("steps %v, want %v", steps, want)
	}
	prov, d := provenanceOf(t, plan.Out)
	l := prov.Learning
	switch {
	case l == nil || l.Fitted != 32 || l.Validation != 8:
		t.Fatalf("%+v", l)
	case len(l.Fakes) != 2 || l.Fakes[0].Count != 48 || l.Fakes[1].Count != 16:
		t.Errorf("fakes %+v", l.Fakes)
	case len(l.Members) != 2 || l.Members[0].Seed == l.Members[1].Seed || l.Members[0].Result.Epochs[0].HeldLoss == nil:
		t.Errorf("members %+v", l.Members)
	case len(l.Gate.Candidates) != 2 || l.Gate.Held != 8 || l.Gate.Frozen["shade"] == 0 || l.Gate.Frozen["swirl"] != 0 || l.Gate.Frozen[EvidenceFakes] == 0:
		t.Errorf("gate %+v", l.Gate)
	case prov.Runtime == "" || prov.K != 2 || l.Seconds["finetune-1"] == 0:
		t.Errorf("provenance %+v", prov)
	}
	frozen, err := os.ReadFile(plan.Model.Backbone)
	if err != nil {
		t.Fatal(err)
	}
	if served, err := os.ReadFile(filepath.Join(plan.Out, "backbone.onnx")); err != nil || string(served) == string(frozen) {
		t.Errorf("the served backbone is the frozen one (%v)", err)
	}
	if d.Info().Method != "fitymi" {
		t.Errorf("method %s", d.Info().Method)
	}
}

func TestFitymiPublishesTheFrozenBackboneWhereTuningDoesNotHelp(t *testing.T) {
	plan := fitymiPlan(t, 40, "shade")
	plan.Tuning.Recipe.Optimizer.LearningRate = 1e-9 // changes nothing
	res, err := Fit(t.Context(), plan)
	if err != nil {
		t.Fatal(err)
	}
	if res.Published != "frozen" || !strings.Contains(strings.Join(res.Warnings, " "), "frozen backbone is published") {
		t.Fatalf("%+v", res)
	}
	knn := plan
	knn.Method, knn.Tuning, knn.Out = KNN, nil, plan.Out+"-knn"
	if _, err := Fit(t.Context(), knn); err != nil {
		t.Fatal(err)
	}
	_, a := provenanceOf(t, plan.Out)
	_, b := provenanceOf(t, knn.Out)
	if a.Info().Model != b.Info().Model || a.Info().Bank != b.Info().Bank {
		t.Error("the release differs from that of knn in more than its manifest")
	}
}

func TestFitymiGoesOnWhereItWasInterrupted(t *testing.T) {
	whole := fitymiPlan(t, 40, "warp")
	whole.Tuning.Gate.Off = true
	if _, err := Fit(t.Context(), whole); err != nil {
		t.Fatal(err)
	}
	_, want := provenanceOf(t, whole.Out)

	plan := whole
	plan.Out, plan.Host.Work = whole.Out+"-2", whole.Host.Work+"-2"
	ctx, cancel := context.WithCancel(t.Context())
	plan.Host.Progress = func(p Progress) {
		if p.Step == "finetune-2" && p.Done > 0 {
			cancel()
		}
	}
	if _, err := Fit(ctx, plan); !errors.Is(err, context.Canceled) {
		t.Fatalf("error %v", err)
	}
	if _, err := os.Stat(plan.Out); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("an interrupted fit leaves a release: %v", err)
	}
	if seed, ok := WorkSeed(plan.Host.Work); !ok || seed != plan.Seed {
		t.Errorf("the work folder says seed %d, %v", seed, ok)
	}
	var steps []string
	plan.Host.Progress = func(p Progress) { steps = append(steps, p.Step) }
	if _, err := Fit(t.Context(), plan); err != nil {
		t.Fatal(err)
	}
	if slices.Contains(steps, "finetune-1") {
		t.Error("the first fine-tune is done again")
	}
	prov, got := provenanceOf(t, plan.Out)
	if !slices.Equal(prov.Learning.Resumed, []string{"finetune-1"}) {
		t.Errorf("resumed %v", prov.Learning.Resumed)
	}
	if got.Info().Model != want.Info().Model || got.Info().Bank != want.Info().Bank {
		t.Error("the interrupted run ends elsewhere")
	}
}

func TestFitymiLearnsFromAGeneratorsFakes(t *testing.T) {
	for name, source := range map[string]string{"diffused normals": "sdedit", "samples from noise": "sde"} {
		t.Run(name, func(t *testing.T) {
			plan := fitymiPlan(t, 30, source)
			o := &plan.Tuning.SDE
			o.Network = sde.Network{Size: 8, Channels: 3, Width: 8, Multipliers: []int{1}, Blocks: 1}
			o.Stop, o.MaxSteps, o.ProbeEvery, o.Probes, o.Mix = frechet.Target{Kind: frechet.Steps, Value: 4}, 4, 4, 8, false
			o.Train.Batch, o.Steps = 4, 3
			plan.Tuning.Members = 1
			var last Progress
			plan.Host.Progress = func(p Progress) {
				if p.Step == "fakes-1: train" {
					last = p
				}
			}
			if _, err := Fit(t.Context(), plan); err != nil {
				t.Fatal(err)
			}
			if last.Loss == nil || *last.Loss <= 0 || last.Frechet == nil || *last.Frechet <= 0 || last.Ratio == nil {
				t.Errorf("the last step of the generator says %+v", last)
			}
			prov, _ := provenanceOf(t, plan.Out)
			f := prov.Learning.Fakes[0]
			if f.Stop == "" || len(f.Curve) == 0 || f.Count != 36 || f.HeldOut != 6 {
				t.Errorf("%+v", f)
			}
			if small := map[string]int{"sdedit": 0, "sde": 8}[source]; f.Small != small {
				t.Errorf("fakes of %d pixels are small, want %d", f.Small, small)
			}
			// what was made serves as a folder of fakes, too
			made, err := filepath.Glob(filepath.Join(plan.Host.Work, "fakes-1-*"))
			if err != nil || len(made) != 1 {
				t.Fatal(made, err)
			}
			plan.Tuning.Sources = []Source{{Kind: FolderSource, Path: made[0], Share: 1}}
			plan.Out += "-2"
			if _, err := Fit(t.Context(), plan); err != nil {
				t.Fatal(err)
			}
			prov, _ = provenanceOf(t, plan.Out)
			if f := prov.Learning.Fakes[0]; f.Count != 36 || f.HeldOut != 6 {
				t.Errorf("%+v", f)
			}
		})
	}
}

func TestLogisticFindsTheDirection(t *testing.T) {
	r := rand.New(rand.NewPCG(5, 5))
	const dim, n = 20, 60
	draw := func(shift float64) (out []float32) {
		for range n {
			for j := range dim {
				v := 7 + r.NormFloat64() // far from the origin
				if j == 3 {
					v += shift
				}
				out = append(out, float32(v))
			}
		}
		return out
	}
	h := logistic(draw(0), draw(4), dim, 0.01)
	right := 0
	for label, rows := range [][]float32{draw(0), draw(4)} {
		for i := range n {
			z := [2]float32{h.Bias[0], h.Bias[1]}
			for j, v := range rows[i*dim : (i+1)*dim] {
				z[0] += h.Weight[j] * v
				z[1] += h.Weight[dim+j] * v
			}
			if (z[1] > z[0]) == (label == 1) {
				right++
			}
		}
	}
	if right < 2*n*9/10 {
		t.Errorf("%d of %d are told apart", right, 2*n)
	}
	if h := logistic([]float32{1, 1}, []float32{1, 1}, 2, 0.01); !finite(h.Weight) || !finite(h.Bias) {
		t.Errorf("equal rows give %+v", h)
	}
}

// With the full score a fine-tuned network's vectors join those of the frozen one,
// which gives the patches, and the gate compares with the frozen full score.
func TestFitymiJoinsTheFullScore(t *testing.T) {
	plan := fitymiPlan(t, 40, "warp")
	plan.Score.Groups, plan.Score.Coreset = nil, 60
	plan.Tuning.Members, plan.Tuning.Gate.Off = 1, true
	res, err := Fit(t.Context(), plan)
	if err != nil {
		t.Fatal(err)
	}
	if res.Published != "tuned" || res.Score != FullScore {
		t.Fatalf("%+v", res)
	}
	prov, d := provenanceOf(t, plan.Out)
	var tuned, frozen int
	for _, p := range prov.Parts {
		switch {
		case p.Frozen:
			frozen++
		case p.isPatch():
			t.Errorf("%s is of the fine-tuned network", p)
		default:
			tuned++
		}
	}
	if tuned < 4 || frozen <= tuned || !slices.Contains(d.Info().Parts, "class-unit") {
		t.Errorf("%d parts of the fine-tuned network, %d of the frozen one: %v", tuned, frozen, d.Info().Parts)
	}
	if v := prov.Learning.Gate; len(v.Frozen) == 0 || v.Held < 2 {
		t.Errorf("%+v", v)
	}
	b, err := plan.Data.Normals[0].Read()
	if err != nil {
		t.Fatal(err)
	}
	if s, err := d.Score(t.Context(), [][]byte{b, redSquare(t, plan.Data.Normals[1])}); err != nil || !(s[1].Score > s[0].Score) || s[1].Map == nil {
		t.Errorf("%+v, %v", s, err)
	}
	// Where nothing is published, all is frozen.
	plan.Out, plan.Tuning.Gate.Off, plan.Tuning.Gate.Least = filepath.Join(t.TempDir(), "frozen"), false, 1000
	plan.Tuning.Gate.Most = 1000
	if res, err = Fit(t.Context(), plan); err != nil || res.Published != "frozen" {
		t.Fatalf("%+v, %v", res, err)
	}
	prov, _ = provenanceOf(t, plan.Out)
	for _, p := range prov.Parts {
		if p.Frozen {
			t.Errorf("%s of a release with one network", p)
		}
	}
}

func TestFewNormalsMakeEnoughSteps(t *testing.T) {
	plan := fitymiPlan(t, 20, "warp")
	plan.Tuning.Members, plan.Tuning.LeastSteps = 1, 10
	if _, err := Fit(t.Context(), plan); err != nil {
		t.Fatal(err)
	}
	prov, _ := provenanceOf(t, plan.Out)
	if steps := prov.Learning.Members[0].Result.Steps; steps < 10 || steps > 14 {
		t.Errorf("%d steps", steps)
	}
}

func TestPartsAreGivenByOneModel(t *testing.T) {
	model := smallBackbone(t)
	dst := filepath.Join(t.TempDir(), "combined.onnx")
	groups, err := ParseScore("class+pooled+frozen-class+patch@1")
	if err != nil {
		t.Fatal(err)
	}
	c, err := Score{Groups: groups}.compose(model, backbone.Anatomy{Layers: 1, Class: true, PatchLayer: 1}, true)
	if err != nil {
		t.Fatal(err)
	}
	// The frozen network is another file with the same weights.
	frozen := filepath.Join(t.TempDir(), "frozen.onnx")
	if b, err := os.ReadFile(model); err != nil || os.WriteFile(frozen, b, 0o600) != nil {
		t.Fatal(err)
	}
	m, err := c.open(t.Context(), dst, networks{served: model, frozen: frozen}, Data{}, Model{}, Host{})
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	if p := m.parts[3]; p.Width < 2 || p.Width != p.Height || p.Output != "patch@1" || m.parts[2].From != 128 {
		t.Errorf("%+v", m.parts)
	}
	var files [][]byte
	for _, s := range squares(t, 5) {
		b, _ := s.Read()
		files = append(files, b)
	}
	plain := embedAll(t, model, files)
	got := embedAll(t, dst, files)
	for i := range files {
		if len(got[i]) != 3*64 {
			t.Fatalf("%d dimensions", len(got[i]))
		}
		for j, v := range plain[i] {
			if !close32(got[i][j], v) || !close32(got[i][128+j], v) {
				t.Fatalf("image %d, dimension %d: %v and %v, want %v", i, j, got[i][j], got[i][128+j], v)
			}
		}
	}
	if slices.Equal(got[0][64:128], got[1][64:128]) || !finite(got[0][64:128]) {
		t.Error("the pooled part does not depend on the image")
	}
}

func embedAll(t *testing.T, model string, files [][]byte) [][]float32 {
	t.Helper()
	e, err := inference.NewEmbedder(model, inference.EmbedOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer e.Close()
	all, err := e.Embed(t.Context(), files)
	if err != nil {
		t.Fatal(err)
	}
	out := make([][]float32, len(all))
	for i, v := range all {
		if v.Err != nil {
			t.Fatal(v.Err)
		}
		out[i] = v.Vector
	}
	return out
}

func close32(a, b float32) bool { return math.Abs(float64(a-b)) <= 1e-4*(1+math.Abs(float64(b))) }

func finite(v []float32) bool {
	return !slices.ContainsFunc(v, func(x float32) bool { return math.IsNaN(float64(x)) || math.IsInf(float64(x), 0) })
}

func TestKNNOnSeveralParts(t *testing.T) {
	plan := Plan{
		Detector:    "squares",
		Seed:        1,
		Out:         filepath.Join(t.TempDir(), "release"),
		Data:        Data{Normals: squares(t, 40)},
		Model:       Model{Backbone: smallBackbone(t)},
		Calibration: Calibration{Settle: true},
		Score:       Score{Groups: [][]Part{{classPart, pooledPart}}},
	}
	if _, err := Fit(t.Context(), plan); err != nil {
		t.Fatal(err)
	}
	prov, d := provenanceOf(t, plan.Out)
	if d.Info().Dim != 128 || !slices.Equal(d.Info().Parts, []string{"class", "pooled"}) || prov.Score != "class+pooled" || len(prov.Parts) != 2 {
		t.Errorf("%d dimensions, score %v, %v", d.Info().Dim, d.Info().Parts, prov.Score)
	}
	if _, err := os.Stat(plan.Out + ".work"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the work folder stays: %v", err)
	}
}

func TestSourcesOfFakesAreRead(t *testing.T) {
	for text, want := range map[string][]Source{
		"none":             {},
		"sdedit":           {{Kind: SDEditSource, Share: 1}},
		"sde=3, warp":      {{Kind: SDESource, Share: 3}, {Kind: "warp", Share: 1, Weak: 0.2, Strong: 0.8}},
		"folder:a/b=0.5":   {{Kind: FolderSource, Path: "a/b", Share: 0.5}},
		"cutpaste,scar=.5": {{Kind: "cutpaste", Share: 1, Weak: 0.2, Strong: 0.8}, {Kind: "scar", Share: 0.5, Weak: 0.2, Strong: 0.8}},
	} {
		got, err := ParseSources(text)
		if err != nil {
			t.Errorf("%q: %v", text, err)
		} else if d := cmp.Diff(want, got); d != "" {
			t.Errorf("%q: %s", text, d)
		}
	}
	for _, text := range []string{"", "rust", "warp=0", "warp=x", "folder", "sde:x", "warp=-1", "warp,,mix", "warp=Inf"} {
		if _, err := ParseSources(text); err == nil {
			t.Errorf("%q is accepted", text)
		}
	}
}

func TestTimeLeftCountsTheFineTunesToCome(t *testing.T) {
	at := time.Unix(0, 0)
	c := &clock{fineTunes: 3, now: func() time.Time { return at }}
	for _, s := range []struct {
		after       time.Duration
		step        string
		done, total int
		want        time.Duration
	}{
		{0, "embed", 0, 100, 0},
		{10 * time.Second, "embed", 20, 100, 40 * time.Second},
		{0, "finetune-1", 10, 30, 0}, // taken up at step 10
		{5 * time.Second, "finetune-1", 20, 30, 5*time.Second + 2*15*time.Second},
		{0, "finetune-3", 0, 30, 0},
		{time.Second, "finetune-3", 1, 30, 29*time.Second + 30*time.Second},
	} {
		at = at.Add(s.after)
		if left := c.left(s.step, s.done, s.total); left != s.want {
			t.Errorf("%s %d/%d: %v left, want %v", s.step, s.done, s.total, left, s.want)
		}
	}
}

func TestProfilesAreValid(t *testing.T) {
	for _, name := range Profiles {
		p, err := Profile(name)
		if err == nil {
			err = p.Validate()
		}
		if err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if _, err := json.Marshal(p); err != nil {
			t.Error(err)
		}
	}
	if _, err := Profile("abacus"); err == nil {
		t.Error("an unknown profile is accepted")
	}
}

func TestATuningIsReadOverItsProfile(t *testing.T) {
	gpu, err := Profile("gpu")
	if err != nil {
		t.Fatal(err)
	}
	got, err := ParseTuning([]byte(`{"profile":"gpu","members":7,"sources":[{"kind":"warp","share":1}],"sde":{"max_steps":9}}`))
	if err != nil {
		t.Fatal(err)
	}
	want := gpu
	want.Members, want.SDE.MaxSteps, want.Sources = 7, 9, []Source{{Kind: "warp", Share: 1, Weak: 0.2, Strong: 0.8}}
	text := func(v Tuning) string {
		b, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	if diff := cmp.Diff(text(want), text(got)); diff != "" {
		t.Error(diff)
	}
	// What a release records is read back as it was.
	again, err := ParseTuning([]byte(text(got)))
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(text(got), text(again)); diff != "" {
		t.Error(diff)
	}
	for _, bad := range []string{``, `[]`, `{"profile":"abacus"}`, `{"membres":2}`, `{"members":0}`, `{"sources":[{"kind":"warp"}]}`} {
		if _, err := ParseTuning([]byte(bad)); err == nil {
			t.Errorf("%s is accepted", bad)
		}
	}
}

func FuzzParseTuning(f *testing.F) {
	f.Add([]byte(`{"profile":"gpu","members":7,"sources":[{"kind":"warp","share":1}]}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		if got, err := ParseTuning(b); err == nil && got.Validate() != nil {
			t.Errorf("%s gives %+v", b, got)
		}
	})
}

func TestNormalsMeetSmallFakesOnEqualTerms(t *testing.T) {
	normals := squares(t, 40)
	tune, _ := Profile("cpu")
	l := &tuningRun{plan: Plan{Tuning: &tune, Seed: 3, Data: Data{Limits: imaging.DefaultLimits()}, Score: Score{Groups: Class()}}, normals: normals}
	count := func() int {
		n := 0
		set := l.matched([]int{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19})
		for i := range set.Len() {
			m, err := set.Image(i)
			if err != nil {
				t.Fatal(err)
			}
			if m.Width == 16 {
				n++
			}
		}
		return n
	}
	if n := count(); n != 0 {
		t.Errorf("%d normals are made small although no fakes are", n)
	}
	l.fakes.small = 16
	if n := count(); n < 5 || n > 15 {
		t.Errorf("%d of 20 normals are made small, want about half", n)
	}
}
