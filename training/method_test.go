package training

import (
	"fmt"
	"io"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/nearmiss/nearmiss/inference/imaging"
	"github.com/nearmiss/nearmiss/training/dataset"
	"github.com/nearmiss/nearmiss/training/evaluate"
)

// twoClasses are squares, and squares with a bar through them.
func twoClasses(t *testing.T, n int) *dataset.Set {
	t.Helper()
	set := &dataset.Set{Name: "squares", Layout: dataset.LayoutClasses}
	for i, s := range squares(t, 2*n) {
		b, err := s.Read()
		if err != nil {
			t.Fatal(err)
		}
		label := []string{"plain", "barred"}[i%2]
		if label == "barred" {
			m, err := imaging.Decode(b, imaging.DefaultLimits())
			if err != nil {
				t.Fatal(err)
			}
			for x := range m.Width {
				for y := range 4 {
					m.SetRGB(x, 18+y, 250, 20, 20)
				}
			}
			if b, err = m.PNG(); err != nil {
				t.Fatal(err)
			}
		}
		split := dataset.Train
		if i >= 2*n*2/3 {
			split = dataset.Test
		}
		set.Items = append(set.Items, dataset.FromBytes(s.Name, split, label, b))
	}
	return set
}

// oneVsRest is what a plan has under the protocol, which tells what it learns.
func oneVsRest(t *testing.T, set *dataset.Set, plan Plan, s *Shared, learnt func(Learning)) *evaluate.Result {
	t.Helper()
	m, err := ForEvaluation(plan, s, learnt)
	if err != nil {
		t.Fatal(err)
	}
	defer m.(io.Closer).Close()
	r, err := evaluate.OneVsRest(t.Context(), set, m, evaluate.Options{Seed: 4})
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func TestFitymiUnderTheProtocols(t *testing.T) {
	set := twoClasses(t, 30)
	plan := Plan{Method: FITYMI, Tuning: quick(t, "warp"), Model: Model{Backbone: smallBackbone(t)}, Host: Host{Work: t.TempDir(), Threads: 1}, Score: Score{Groups: Class()}}
	plan.Tuning.Members = 1
	var heard []Learning
	run := func() *evaluate.Result {
		heard = nil
		return oneVsRest(t, set, plan, nil, func(l Learning) { heard = append(heard, l) })
	}
	first := run()
	if first.Method != "fitymi" || len(heard) != 2 || heard[0].Fitted != 14 || heard[0].Validation != 6 || len(heard[0].Resumed) != 0 {
		t.Fatalf("%+v, %+v", first, heard)
	}
	if first.AUROC < 0.8 {
		t.Errorf("AUROC %.3f: red bars are hardly found", first.AUROC)
	}
	// Everything is there the second time, and k may be another.
	second := run()
	if len(heard[0].Resumed) != 2 || second.AUROC != first.AUROC {
		t.Errorf("resumed %v, AUROC %v instead of %v", heard[0].Resumed, second.AUROC, first.AUROC)
	}
	plan.Score.K = 5
	if run(); len(heard[0].Resumed) != 1 {
		t.Errorf("with another k %v is resumed", heard[0].Resumed)
	}

	plan = Plan{Method: KNN, Model: Model{Backbone: plan.Model.Backbone}, Host: Host{Work: plan.Host.Work}, Score: Score{Groups: [][]Part{{classPart, pooledPart}}}}
	if r := run(); r.Method != "knn class+pooled" || r.AUROC < 0.8 {
		t.Errorf("%s: AUROC %.3f", r.Method, r.AUROC)
	}
}

func TestPlansForEvaluationAreChecked(t *testing.T) {
	ok := Plan{Model: Model{Backbone: filepath.Join("any", "file.onnx")}, Host: Host{Work: "work"}, Score: Score{Groups: Class()}}
	for name, change := range map[string]func(*Plan){
		"no work folder":  func(p *Plan) { p.Host.Work = "" },
		"unknown method":  func(p *Plan) { p.Method = "guess" },
		"unknown part":    func(p *Plan) { p.Score.Groups = [][]Part{{{Statistic: "left"}}} },
		"no backbone":     func(p *Plan) { p.Model.Backbone = "" },
		"part twice":      func(p *Plan) { p.Score.Groups = [][]Part{{classPart, classPart}} },
		"negative shares": func(p *Plan) { p.Method, p.Tuning = FITYMI, &Tuning{Stopping: -1} },
	} {
		p := ok
		change(&p)
		if _, err := ForEvaluation(p, nil, nil); err == nil || !strings.Contains(err.Error(), "bad plan") {
			t.Errorf("%s: error %v", name, err)
		}
	}
}

// TestSharedKeepsWithinItsMemory: what is kept of images has a bound, and the scores are
// those of one that keeps all.
func TestSharedKeepsWithinItsMemory(t *testing.T) {
	set := twoClasses(t, 12)
	plan := Plan{Method: KNN, Model: Model{Backbone: smallBackbone(t)}, Host: Host{Work: t.TempDir(), Threads: 1}}
	measure := func(s *Shared) *evaluate.Result { return oneVsRest(t, set, plan, s, nil) }
	size := func(s *Shared) (sum int) {
		for _, k := range s.models {
			sum += k.features.Size()
		}
		return sum
	}
	var all Shared
	defer all.Close()
	want := measure(&all)
	views := len(all.models) // one for each class, whose normals have their own box
	image := size(&all) / all.models[0].features.Len() / views
	few := Shared{most: 5 * image}
	defer few.Close()
	for range 2 {
		got := measure(&few)
		for i, run := range got.Runs {
			if d := cmp.Diff(want.Runs[i].Scored, run.Scored, cmpopts.IgnoreUnexported(dataset.Item{}), cmpopts.EquateApprox(1e-4, 0)); d != "" {
				t.Fatal(d)
			}
		}
		if got := size(&few); got > few.most || got < 4*image {
			t.Errorf("%d bytes are kept where %d may be, of %d an image", got, few.most, image)
		}
		for _, k := range few.models {
			if k.users != 0 {
				t.Errorf("view %s has %d users when all is done", k.key, k.users)
			}
		}
	}
	// The views that nobody uses are few.
	opened := 0
	for i := range 3 * mostViews {
		k, err := few.get(fmt.Sprint(i), func() (*cachedModel, error) {
			opened++
			return plan.withDefaults().cachedModel(t.Context(), networks{served: plan.Model.Backbone, frozen: plan.Model.Backbone})
		})
		if err != nil {
			t.Fatal(err)
		}
		if err := k.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if len(few.models) != mostViews || opened != 3*mostViews {
		t.Errorf("%d views are kept of %d, want %d of %d", len(few.models), opened, mostViews, 3*mostViews)
	}
	if _, err := few.get(fmt.Sprint(3*mostViews-1), nil); err != nil { // still there
		t.Error(err)
	}
}

// TestEvaluationDoesWithoutMaps: what only heatmaps need changes no score, and is not
// made where nobody asks for it; draws for false alarms embed each image once.
func TestEvaluationDoesWithoutMaps(t *testing.T) {
	set := twoClasses(t, 15)
	plan := Plan{Method: KNN, Model: Model{Backbone: smallBackbone(t)}, Host: Host{Work: t.TempDir(), Threads: 1}, Score: Score{Groups: Class()}}
	var scored [2][]evaluate.Scored
	var banks [2]int
	for i, no := range []bool{false, true} {
		plan.Score.NoMaps = no
		var shared Shared
		defer shared.Close()
		m, err := ForEvaluation(plan, &shared, nil)
		if err != nil {
			t.Fatal(err)
		}
		r, err := evaluate.OneVsRest(t.Context(), set, m, evaluate.Options{Normal: []string{"plain"}})
		if err != nil {
			t.Fatal(err)
		}
		scored[i], banks[i] = r.Runs[0].Scored, len(shared.models[0].b.parts)
	}
	if d := cmp.Diff(scored[0], scored[1], cmpopts.IgnoreUnexported(dataset.Item{}), cmpopts.EquateApprox(1e-4, 0)); d != "" {
		t.Error(d)
	}
	if banks[0] != 2 || banks[1] != 1 {
		t.Errorf("%d parts with maps and %d without", banks[0], banks[1])
	}

	var shared Shared
	defer shared.Close()
	plan.Score, plan.Model.Light = Score{}, LightUsual
	m, err := ForEvaluation(plan, &shared, nil)
	if err != nil {
		t.Fatal(err)
	}
	items := set.Select("", "plain")
	if _, err := evaluate.MethodAlarms(t.Context(), items, m, []float64{0.2}, 2, 1); err != nil {
		t.Fatal(err)
	}
	if len(shared.models) != 1 || shared.models[0].features.Len() != len(items) {
		t.Errorf("%d views and %d of %d images after two draws", len(shared.models), shared.models[0].features.Len(), len(items))
	}
}

// An evaluation looks at pictures as Fit does where the normals decide: with blurred copies
// where these help, unless it is told otherwise, and at large frames in tiles.
func TestEvaluationLooksAsFitDoes(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		normals   []Image
		sharpness string
		copies    int
		tiles     string
	}{
		"a fine pattern": {weaves(t, 40), "", 2, TilesNone},
		"large frames":   {plates(t, 6, 6, 400, 400, 1), SharpnessUsual, 0, "2x2"},
	} {
		plan := Plan{
			Detector: "same", Seed: 5, Out: filepath.Join(t.TempDir(), "release"), Data: Data{Normals: c.normals, Frame: FrameAll},
			Model: Model{Backbone: smallBackbone(t), Light: LightUsual, Sharpness: c.sharpness}, Calibration: Calibration{Settle: true}, Score: Score{Coreset: 20}, Host: Host{Threads: 1},
		}
		res, err := Fit(t.Context(), plan)
		if err != nil {
			t.Fatal(err)
		}
		_, d := provenanceOf(t, plan.Out)
		plan.Host.Work = t.TempDir()
		m, err := ForEvaluation(plan, nil, nil)
		if err != nil {
			t.Fatal(err)
		}
		var items []dataset.Item
		for _, img := range c.normals {
			b, err := img.Read()
			if err != nil {
				t.Fatal(err)
			}
			items = append(items, dataset.FromBytes(img.Name, dataset.Train, "good", b))
		}
		scorer, err := m.Fit(t.Context(), items, plan.Seed)
		if err != nil {
			t.Fatal(err)
		}
		s := scorer.(*evaluatedScore)
		if fitted, evaluated := d.Bank().Len()/res.Bank-1, s.score.Bank().Len()/len(items)-1; fitted != c.copies || evaluated != c.copies {
			t.Errorf("%s: %d copies of a normal in a release and %d in an evaluation, want %d", name, fitted, evaluated, c.copies)
		}
		if diff := cmp.Diff(d.Embedder().Preprocess().Tiles, s.Preprocess().Tiles); diff != "" || res.Resolution.Tiles != c.tiles {
			t.Errorf("%s: tiles %s; a release and an evaluation differ: %s", name, res.Resolution.Tiles, diff)
		}
		for _, closer := range []io.Closer{s, m.(io.Closer)} {
			if err := closer.Close(); err != nil {
				t.Error(err)
			}
		}
	}
}
