package training

import (
	"maps"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/nearmiss/nearmiss/training/corrupt"
	"github.com/nearmiss/nearmiss/training/evaluate"
)

// scoresOf draws evidence of n normals: anomalies lie shift above them, and all
// scores are moved by noise.
func scoresOf(base *rand.Rand, n int, shift, noise float64) func(r *rand.Rand) evidence {
	type unit struct{ normal, warp, swirl float64 }
	units := make([]unit, n)
	for i := range units {
		z := base.NormFloat64()
		units[i] = unit{z, z + shift + base.NormFloat64(), z + shift + base.NormFloat64()}
	}
	return func(r *rand.Rand) evidence {
		e := evidence{anomalies: map[string][]float64{}}
		move := func(v float64) float64 { return v + noise*r.NormFloat64() }
		for _, u := range units {
			e.normals = append(e.normals, move(u.normal))
			e.anomalies["warp"] = append(e.anomalies["warp"], move(u.warp))
			e.anomalies["swirl"] = append(e.anomalies["swirl"], move(u.swirl))
		}
		return e
	}
}

func TestGateSeldomPublishesWhatIsNoBetter(t *testing.T) {
	g := defaultGate().forSources([]Source{{Kind: "warp"}})
	g.Resamples = 200
	passed := 0
	const trials = 200
	for trial := range uint64(trials) {
		r := rand.New(rand.NewPCG(1, trial))
		draw := scoresOf(r, 25, 1, 0.5)
		_, best := g.judge(draw(r), []string{"a", "b"}, []float64{0.5, 1}, []evidence{draw(r), draw(r)}, trial)
		if best >= 0 {
			passed++
		}
	}
	// One in ten is allowed by the confidence; the bootstrap is a little narrow
	// with so few normals.
	if share := float64(passed) / trials; share > 0.16 {
		t.Errorf("%.0f %% of useless candidates pass", 100*share)
	}
}

func TestGateSeldomPublishesWhatLosesMoreThanTheMargin(t *testing.T) {
	g := defaultGate()
	g.Resamples = 200
	lost, same := 0, 0
	const trials = 200
	for trial := range uint64(trials) {
		r := rand.New(rand.NewPCG(7, trial))
		// Anomalies 0.3 lower: the AUROC falls by about 0.07.
		frozen := scoresOf(r, 40, 1, 0.1)
		before := frozen(r)
		after := frozen(r)
		if _, best := g.judge(before, []string{"a"}, []float64{1}, []evidence{after}, trial); best >= 0 {
			same++
		}
		for _, scores := range after.anomalies {
			for i := range scores {
				scores[i] -= 0.3
			}
		}
		if _, best := g.judge(before, []string{"a"}, []float64{1}, []evidence{after}, trial); best >= 0 {
			lost++
		}
	}
	if share := float64(lost) / trials; share > 0.1 {
		t.Errorf("%.0f %% of candidates that lose more than the margin pass", 100*share)
	}
	if share := float64(same) / trials; share < 0.9 {
		t.Errorf("only %.0f %% of candidates that are as good pass", 100*share)
	}
}

func TestGatePublishesWhatIsBetter(t *testing.T) {
	g := defaultGate()
	passed := 0
	const trials = 40
	for trial := range uint64(trials) {
		r := rand.New(rand.NewPCG(2, trial))
		weak := scoresOf(r, 40, 0.5, 1.5)(r)
		strong := scoresOf(r, 40, 2, 0.1)(r)
		if _, best := g.judge(weak, []string{"a"}, []float64{1}, []evidence{strong}, trial); best == 0 {
			passed++
		}
	}
	if passed < trials*9/10 {
		t.Errorf("only %d of %d clear gains pass", passed, trials)
	}
}

func TestGateHoldsBack(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 3))
	weak, strong := scoresOf(r, 30, 0.5, 0)(r), scoresOf(r, 30, 3, 0)(r)
	few := func(e evidence, n int) evidence {
		out := evidence{normals: e.normals[:n], anomalies: map[string][]float64{}}
		for k, v := range e.anomalies {
			out.anomalies[k] = v[:n]
		}
		return out
	}
	with := func(e evidence, real ...float64) evidence {
		out := evidence{normals: e.normals, anomalies: map[string][]float64{EvidenceReal: real}}
		maps.Copy(out.anomalies, e.anomalies)
		return out
	}
	g := defaultGate().forSources(nil)
	for name, c := range map[string]struct {
		frozen, tuned evidence
		off           bool
		want          int
		reason        string
	}{
		"a clear gain passes":               {weak, strong, false, 0, "raises the mean"},
		"a loss does not":                   {strong, weak, false, -1, "harder to find"},
		"the same does not":                 {weak, weak, false, -1, "does not surely help"},
		"too few normals tell nothing":      {few(weak, 4), few(strong, 4), false, -1, "too few"},
		"real anomalies must not get worse": {with(weak, 9, 9, 9), with(strong, -9, 9, 9), false, -1, "real anomalies harder"},
		"switched off, it says so":          {strong, weak, true, 0, "the gate is off"},
	} {
		g.Off = c.off
		v, best := g.judge(c.frozen, []string{"the candidate"}, []float64{1}, []evidence{c.tuned}, 1)
		if best != c.want || !strings.Contains(v.Reason, c.reason) {
			t.Errorf("%s: candidate %d, %q", name, best, v.Reason)
		}
		if (v.Published == "tuned") != (best >= 0) {
			t.Errorf("%s: published %q", name, v.Published)
		}
	}
}

func TestGateMeasuresAUROC(t *testing.T) {
	r := rand.New(rand.NewPCG(4, 4))
	e := scoresOf(r, 20, 1, 0)(r)
	e.anomalies["warp"] = append(e.anomalies["warp"], e.anomalies["swirl"]...) // two rounds
	e.anomalies[EvidenceReal] = []float64{1, 2, e.normals[3]}
	c := newComparison(e)
	for name, scores := range e.anomalies {
		if want := evaluate.AUROC(e.normals, scores); !near(c.auroc[name], want) {
			t.Errorf("%s: AUROC %v, want %v", name, c.auroc[name], want)
		}
	}
	// real anomalies weigh as much as the others together
	want := 0.5*c.auroc[EvidenceReal] + 0.25*(c.auroc["warp"]+c.auroc["swirl"])
	if !near(c.mean, want) {
		t.Errorf("mean %v, want %v", c.mean, want)
	}
}

func near(a, b float64) bool { return a-b < 1e-9 && b-a < 1e-9 }

func TestGateJudgesByKindsThatWereNotTrainedOn(t *testing.T) {
	g := defaultGate()
	kinds := g.kinds([]Source{{Kind: "warp"}, {Kind: SDEditSource}})
	if len(kinds) != len(corrupt.Kinds)-3 {
		t.Errorf("%v", kinds)
	}
	for _, k := range kinds {
		if k.Family() == corrupt.Shape {
			t.Errorf("the gate judges by %s although warps were trained on", k)
		}
	}
}

func TestGateRefusesWhatMakesOneKindHarder(t *testing.T) {
	r := rand.New(rand.NewPCG(6, 6))
	frozen, tuned := scoresOf(r, 40, 1, 0)(r), scoresOf(r, 40, 1, 0)(r)
	tuned.normals = frozen.normals
	tuned.anomalies["warp"], tuned.anomalies["swirl"] = nil, nil
	for i := range frozen.normals {
		tuned.anomalies["warp"] = append(tuned.anomalies["warp"], frozen.anomalies["warp"][i]+6)
		tuned.anomalies["swirl"] = append(tuned.anomalies["swirl"], frozen.anomalies["swirl"][i]-0.7)
	}
	v, best := defaultGate().forSources(nil).judge(frozen, []string{"a"}, []float64{1}, []evidence{tuned}, 1)
	if best >= 0 || v.Candidates[0].Low <= 0 || len(v.Candidates[0].Harder) != 1 || v.Candidates[0].Harder[0] != "swirl" {
		t.Errorf("%+v", v)
	}
}

// What a generator's fakes are for, spoilt normals do not foretell: of candidates
// that do no harm, the one that learnt most is taken; where there are real
// anomalies, or only corruptions were learnt from, the one that is surely best.
func TestGateRanksByWhatForetells(t *testing.T) {
	small := Candidate{Blend: 0.5, Low: 0.01}
	for name, c := range map[string]struct {
		margin float64
		large  Candidate
		want   bool // the large one
	}{
		"harmless":              {0.03, Candidate{Blend: 1, Low: -0.01}, true},
		"no margin":             {0, Candidate{Blend: 1, Low: 0.005}, false},
		"no margin, better":     {0, Candidate{Blend: 1, Low: 0.02}, true},
		"beyond the margin":     {0.03, Candidate{Blend: 1, Low: -0.04}, false},
		"one kind harder":       {0.03, Candidate{Blend: 1, Low: 0.02, Harder: []string{"blur"}}, false},
		"real anomalies":        {0.03, Candidate{Blend: 1, Low: 0.005}, false},
		"real anomalies, surer": {0.03, Candidate{Blend: 1, Low: 0.02}, true},
	} {
		a, b := small, c.large
		if strings.HasPrefix(name, "real") {
			a.AUROC = map[string]float64{EvidenceReal: 0.9}
			b.AUROC = a.AUROC
		}
		g := Gate{Margin: c.margin}
		if g.less(a, b) != c.want || g.less(b, a) == c.want {
			t.Errorf("%s: %v, %v", name, g.less(a, b), g.less(b, a))
		}
	}
}
