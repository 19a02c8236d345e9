package evaluate

import (
	"encoding/json"
	"errors"
	"math"
	"math/rand/v2"
	"os"
	"slices"
	"testing"

	"pgregory.net/rapid"
)

// pairs is AUROC by its definition.
func pairs(normal, anomalous []float64) float64 {
	wins := 0.0
	for _, a := range anomalous {
		for _, n := range normal {
			switch {
			case a > n:
				wins++
			case a == n:
				wins += 0.5
			}
		}
	}
	return wins / float64(len(normal)*len(anomalous))
}

func TestAUROCIsTheShareOfPairsInOrder(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		// few different values make many ties
		score := rapid.Map(rapid.IntRange(0, 9), func(i int) float64 { return float64(i) / 3 })
		n := rapid.SliceOfN(score, 1, 40).Draw(t, "normal")
		a := rapid.SliceOfN(score, 1, 40).Draw(t, "anomalous")
		if got, want := AUROC(n, a), pairs(n, a); math.Abs(got-want) > 1e-12 {
			t.Fatalf("got %v, want %v", got, want)
		}
		if got := AUROC(a, n); math.Abs(got-(1-pairs(n, a))) > 1e-12 {
			t.Fatalf("exchanging the sides gave %v", got)
		}
		// The curve's area is the same number.
		roc, area := ROC(n, a), 0.0
		for i := 1; i < len(roc); i++ {
			area += (roc[i].FPR - roc[i-1].FPR) * (roc[i].TPR + roc[i-1].TPR) / 2
		}
		if math.Abs(area-pairs(n, a)) > 1e-12 {
			t.Fatalf("the curve's area is %v, want %v", area, pairs(n, a))
		}
		last := roc[len(roc)-1]
		if roc[0].FPR != 0 || roc[0].TPR != 0 || last.FPR != 1 || last.TPR != 1 {
			t.Fatalf("the curve goes from %v to %v", roc[0], last)
		}
	})
}

func TestAUROCExtremes(t *testing.T) {
	for _, c := range []struct {
		n, a []float64
		want float64
	}{
		{[]float64{1, 2}, []float64{3, 4}, 1},
		{[]float64{3, 4}, []float64{1, 2}, 0},
		{[]float64{1, 1}, []float64{1, 1}, 0.5},
		{[]float64{0}, []float64{math.Inf(1)}, 1},
		{nil, []float64{1}, math.NaN()},
		{[]float64{1}, nil, math.NaN()},
		{[]float64{math.NaN()}, []float64{1}, math.NaN()},
		{[]float64{1}, []float64{math.NaN()}, math.NaN()},
	} {
		got := AUROC(c.n, c.a)
		if got != c.want && !(math.IsNaN(got) && math.IsNaN(c.want)) {
			t.Errorf("%v against %v: %v, want %v", c.n, c.a, got, c.want)
		}
		if math.IsNaN(c.want) && (ROC(c.n, c.a) != nil || !math.IsNaN(AveragePrecision(c.n, c.a)) || !math.IsNaN(fprAtTPR(c.n, c.a, 0.9))) {
			t.Errorf("%v against %v: a figure was made of nothing", c.n, c.a)
		}
	}
}

type golden struct {
	Cases []struct {
		Normal           []float64
		Anomalous        []float64
		AUROC            float64
		AveragePrecision float64 `json:"average_precision"`
		FPR95            float64 `json:"fpr95"`
	}
	Pixels struct {
		Images []struct {
			Scores        []float32
			Mask          []uint8
			Width, Height int
		}
		AUROC, PRO float64
		Regions    int
	}
}

// The golden file is made by testdata/make_goldens.py with numpy and scipy.
func readGolden(t *testing.T) golden {
	t.Helper()
	b, err := os.ReadFile("testdata/golden.json")
	if err != nil {
		t.Fatal(err)
	}
	var g golden
	if err := json.Unmarshal(b, &g); err != nil {
		t.Fatal(err)
	}
	return g
}

func TestFiguresAgreeWithPython(t *testing.T) {
	g := readGolden(t)
	if len(g.Cases) == 0 {
		t.Fatal("no cases")
	}
	for i, c := range g.Cases {
		for name, v := range map[string][2]float64{
			"auroc":             {AUROC(c.Normal, c.Anomalous), c.AUROC},
			"average precision": {AveragePrecision(c.Normal, c.Anomalous), c.AveragePrecision},
			"fpr at 95":         {fprAtTPR(c.Normal, c.Anomalous, 0.95), c.FPR95},
		} {
			if math.Abs(v[0]-v[1]) > 1e-9 {
				t.Errorf("case %d: %s is %v, in Python %v", i, name, v[0], v[1])
			}
		}
	}
}

func TestPixelFiguresAgreeWithPython(t *testing.T) {
	g := readGolden(t).Pixels
	var p Pixels
	for _, m := range g.Images {
		if err := p.Add(m.Scores, m.Mask, m.Width, m.Height); err != nil {
			t.Fatal(err)
		}
	}
	if p.Regions() != g.Regions {
		t.Errorf("%d regions, in Python %d", p.Regions(), g.Regions)
	}
	area, err := auroc(&p)
	if err != nil {
		t.Fatal(err)
	}
	overlap, err := pro(&p, PROLimit)
	if err != nil {
		t.Fatal(err)
	}
	if math.Abs(area-g.AUROC) > 1e-9 || math.Abs(overlap-g.PRO) > 1e-9 {
		t.Errorf("pixel auroc %v, pro %v; in Python %v and %v", area, overlap, g.AUROC, g.PRO)
	}
}

func TestPixelAUROCIsThatOfThePixels(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	var p Pixels
	var normal, marked []float64
	for range 5 {
		scores, mask := make([]float32, 12*9), make([]uint8, 12*9)
		for i := range scores {
			scores[i] = float32(r.IntN(20))
			if r.IntN(4) == 0 {
				mask[i] = 255
				scores[i] += 3
				marked = append(marked, float64(scores[i]))
			} else {
				normal = append(normal, float64(scores[i]))
			}
		}
		if err := p.Add(scores, mask, 12, 9); err != nil {
			t.Fatal(err)
		}
	}
	got, err := auroc(&p)
	if err != nil || math.Abs(got-AUROC(normal, marked)) > 1e-12 {
		t.Errorf("got %v (%v), want %v", got, err, AUROC(normal, marked))
	}
}

func TestPROWeighsRegionsAlike(t *testing.T) {
	// One region of 6 pixels that is found, one of a single pixel that is not.
	mask := []uint8{
		1, 1, 1, 0, 0, 0,
		1, 1, 1, 0, 0, 1,
		0, 0, 0, 0, 0, 0,
	}
	scores := make([]float32, len(mask))
	for i := range scores {
		scores[i] = float32(i%7) / 100
		if mask[i] == 1 {
			scores[i] = 1
		}
	}
	scores[11] = -1
	var p Pixels
	if err := p.Add(scores, mask, 6, 3); err != nil {
		t.Fatal(err)
	}
	if p.Regions() != 2 {
		t.Fatalf("%d regions", p.Regions())
	}
	if got, err := pro(&p, PROLimit); err != nil || math.Abs(got-0.5) > 1e-12 {
		t.Errorf("pro %v, %v; want one half", got, err)
	}
	perfect := slices.Clone(scores)
	perfect[11] = 2
	var q Pixels
	if err := q.Add(perfect, mask, 6, 3); err != nil {
		t.Fatal(err)
	}
	if got, err := pro(&q, PROLimit); err != nil || math.Abs(got-1) > 1e-12 {
		t.Errorf("pro %v, %v; want 1", got, err)
	}
}

// Several groups are measured as if they were one, and the pixels that are seen
// as if there were no others.
func TestPixelsOfGroupsAndOfWhatIsSeen(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 4))
	var groups []*Pixels
	var all, seen Pixels
	unseen, marked := 0, 0
	for range 3 {
		g := &Pixels{}
		for range 4 {
			const w, h, border = 10, 8, 3 // columns that are not seen
			scores, mask := make([]float32, w*h), make([]uint8, w*h)
			var crop []float32
			var cropMask []uint8
			for i := range scores {
				scores[i] = float32(r.IntN(30))
				if r.IntN(3) == 0 {
					mask[i] = 1
					marked++
					scores[i] += 5
				}
				if i%w < border {
					scores[i] = Uncovered
					unseen += int(mask[i])
					continue
				}
				crop, cropMask = append(crop, scores[i]), append(cropMask, mask[i])
			}
			// Regions are cut where the view ends, and keep what they are.
			isolated := slices.Clone(mask)
			for i := range isolated {
				if i%w == border || i%w == border-1 {
					isolated[i] = 0
				}
			}
			for i := range cropMask {
				if i%(w-border) == 0 {
					cropMask[i] = 0
				}
			}
			for i := range mask {
				if mask[i] != isolated[i] {
					marked--
					if i%w < border {
						unseen--
					}
				}
			}
			if err := errors.Join(g.Add(scores, isolated, w, h), all.Add(scores, isolated, w, h), seen.Add(crop, cropMask, w-border, h)); err != nil {
				t.Fatal(err)
			}
		}
		groups = append(groups, g)
	}
	f, err := measurePixels(groups...)
	if err != nil {
		t.Fatal(err)
	}
	for name, pair := range map[string][2]float64{
		"auroc": {f.AUROC, must(t)(auroc(&all))}, "pro": {f.PRO, must(t)(pro(&all, PROLimit))},
		"seen auroc": {f.CoveredAUROC, must(t)(auroc(&seen))}, "seen pro": {f.CoveredPRO, must(t)(pro(&seen, PROLimit))},
		"seen": {f.Covered, 1 - float64(unseen)/float64(marked)},
	} {
		if math.Abs(pair[0]-pair[1]) > 1e-9 {
			t.Errorf("%s is %v, want %v", name, pair[0], pair[1])
		}
	}
	if f.Regions != all.Regions() {
		t.Errorf("%d regions, want %d", f.Regions, all.Regions())
	}
}

func must(t *testing.T) func(float64, error) float64 {
	return func(v float64, err error) float64 {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

func TestPixelsRefuseNonsense(t *testing.T) {
	var p Pixels
	if _, err := auroc(&p); err == nil {
		t.Error("a figure of nothing")
	}
	if err := p.Add(make([]float32, 5), nil, 2, 3); err == nil {
		t.Error("a map of the wrong size was taken")
	}
	if err := p.Add(make([]float32, 6), make([]uint8, 5), 2, 3); err == nil {
		t.Error("a mask of the wrong size was taken")
	}
	if err := p.Add([]float32{float32(math.NaN())}, nil, 1, 1); err == nil {
		t.Error("NaN was taken")
	}
	if _, err := pro(&p, 0); err == nil {
		t.Error("a limit of 0 was taken")
	}
}

// auroc and pro are the measures of one group of images.
func auroc(p *Pixels) (float64, error) { return pixelGroups{p}.auroc(false) }

func pro(p *Pixels, limit float64) (float64, error) { return pixelGroups{p}.pro(limit, false) }
