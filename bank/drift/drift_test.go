package drift

import (
	"encoding/json"
	"math"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/nearmiss/nearmiss/bank"
)

// camera draws held-out scores and then a stream of scores.
type camera struct {
	r *rand.Rand
	c *bank.Calibration
}

func newCamera(t testing.TB, r *rand.Rand, n int, alpha float64) *camera {
	t.Helper()
	scores := make([]float64, n)
	for i := range scores {
		scores[i] = math.Exp(r.NormFloat64())
	}
	c, err := bank.NewCalibration(scores, alpha)
	if err != nil {
		t.Fatal(err)
	}
	return &camera{r, c}
}

// p is the p-value of a frame whose log score is shifted and spread.
func (c *camera) p(shift, spread float64) float64 {
	return c.c.PValue(math.Exp(shift + spread*c.r.NormFloat64()))
}

func newMonitor(t testing.TB, o Options) *Monitor {
	t.Helper()
	m, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func observe(t testing.TB, m *Monitor, p float64) Status {
	t.Helper()
	s, err := m.Observe(p)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestDensitiesIntegrateToOne(t *testing.T) {
	for i, f := range rankBets {
		const steps = 1_000_000
		s := 0.0
		for j := range steps {
			v := f((float64(j) + 0.5) / steps)
			if !(v >= 0) {
				t.Fatalf("bet %d is negative", i)
			}
			s += v / steps
		}
		if math.Abs(s-1) > 2e-3 { // the powers' pole is cut off by the grid
			t.Errorf("bet %d: integral %v", i, s)
		}
	}
}

// Even with very few held-out normals, whose p-values are far from uniform for
// any one calibration, nothing is found where nothing moved: the chance of a
// false alarm within t frames is at most t/Patience.
func TestFalseAlarmsAreRare(t *testing.T) {
	const frames, runs, patience = 1000, 200, 10_000
	for _, n := range []int{10, 60, 300} {
		r := rand.New(rand.NewPCG(uint64(n), 5))
		drifted := map[Cause]int{}
		var ranks []float64
		for run := range runs {
			const alpha = 0.05
			c := newCamera(t, r, n, alpha)
			m := newMonitor(t, Options{HeldOut: n, Alpha: alpha, Patience: patience, Seed: uint64(run)})
			for range frames {
				observe(t, m, c.p(0, 1))
			}
			drifted[m.Status().Cause]++
			// one more rank from deep in the stream
			if level := int(math.Round(c.p(0, 1)*float64(n+1))) - m.first - 1; level >= 0 {
				m.s.Status.Frames++
				ranks = append(ranks, m.rank(level))
			}
		}
		const bound = float64(frames) / patience
		for _, cause := range []Cause{Scores, Alarms} {
			if share := float64(drifted[cause]) / runs; share > bound+4*math.Sqrt(bound/runs) {
				t.Errorf("n %d: %v found by mistake in %.3f of runs, the bound is %.3f", n, cause, share, bound)
			}
		}
		// Kolmogorov–Smirnov, bound for a chance of 1e-4
		slices.Sort(ranks)
		d := 0.0
		for i, u := range ranks {
			d = max(d, math.Abs(u-float64(i)/float64(len(ranks))), math.Abs(u-float64(i+1)/float64(len(ranks))))
		}
		if limit := 2.23 / math.Sqrt(float64(len(ranks))); d > limit {
			t.Errorf("n %d: ranks are not uniform: distance %.3f, limit %.3f", n, d, limit)
		}
	}
}

func TestDriftIsFound(t *testing.T) {
	for name, c := range map[string]struct {
		shift, spread float64
		within        int
	}{
		"scores rise a little":        {0.4, 1, 1200},
		"scores rise":                 {1, 1, 150},
		"scores fall":                 {-0.7, 1, 400},
		"scores scatter less":         {0, 0.4, 400},
		"everything is anomalous now": {5, 1, 40},
	} {
		t.Run(name, func(t *testing.T) {
			r := rand.New(rand.NewPCG(9, 9))
			const runs = 15
			var took []int
			for run := range runs {
				cam := newCamera(t, r, 400, 0.01)
				m := newMonitor(t, Options{HeldOut: 400, Alpha: 0.01, Seed: uint64(run)})
				const before = 2000
				for range before {
					observe(t, m, cam.p(0, 1))
				}
				if m.Status().Drifted {
					t.Fatalf("found before it was there: %+v", m.Status())
				}
				for i := 1; !m.Status().Drifted && i <= 5000; i++ {
					observe(t, m, cam.p(c.shift, c.spread))
				}
				took = append(took, m.Status().Frames-before)
			}
			slices.Sort(took)
			if median := took[runs/2]; median > c.within {
				t.Errorf("median of %d frames to find it, want at most %d", median, c.within)
			}
		})
	}
}

func TestDefectsAreNotDrift(t *testing.T) {
	r := rand.New(rand.NewPCG(2, 2))
	for run := range 12 {
		cam := newCamera(t, r, 200, 0.01)
		m := newMonitor(t, Options{HeldOut: 200, Alpha: 0.01, Seed: uint64(run)})
		for range 4000 {
			shift := 0.0
			if r.Float64() < 0.03 {
				shift = 8
			}
			if s := observe(t, m, cam.p(shift, 1)); s.Drifted {
				t.Fatalf("run %d: %+v", run, s)
			}
		}
		// A burst far beyond the expected share is reported.
		for range 60 {
			observe(t, m, cam.p(8, 1))
		}
		if s := m.Status(); !s.Drifted || s.Cause != Alarms || s.AlarmShare < 0.4 {
			t.Fatalf("run %d: %+v", run, s)
		}
	}
}

func TestObserveRefusesWhatIsNoPValue(t *testing.T) {
	m := newMonitor(t, Options{HeldOut: 9, Alpha: 0.1})
	for _, p := range []float64{0, -1, 1.1, 0.25, math.NaN(), math.Inf(1)} {
		if _, err := m.Observe(p); err == nil {
			t.Errorf("%v was accepted", p)
		}
	}
	if d := cmp.Diff(Status{Level: 0.5}, m.Status()); d != "" {
		t.Error(d)
	}
	for _, o := range []Options{
		{},
		{HeldOut: 9},
		{HeldOut: 9, Alpha: 1},
		{HeldOut: -1, Alpha: 0.1},
		{HeldOut: 9, Alpha: 0.1, Patience: 0.5},
		{HeldOut: 9, Alpha: 0.1, Defects: 1},
		{HeldOut: 9, Alpha: 0.1, Every: -1},
		{HeldOut: 9, Alpha: math.NaN()},
	} {
		if _, err := New(o); err == nil {
			t.Errorf("%+v was accepted", o)
		}
	}
}

func TestEveryThinsTheStream(t *testing.T) {
	m := newMonitor(t, Options{HeldOut: 9, Alpha: 0.1, Every: 10})
	for range 95 {
		observe(t, m, 0.5)
	}
	if m.Status().Frames != 10 {
		t.Errorf("%+v", m.Status())
	}
}

func TestMonitorSurvivesARestart(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 8))
	cam := newCamera(t, r, 50, 0.05)
	one := newMonitor(t, Options{HeldOut: 50, Alpha: 0.05, Seed: 3, Every: 2})
	for range 501 {
		observe(t, one, cam.p(0.2, 1))
	}
	b, err := json.Marshal(one)
	if err != nil {
		t.Fatal(err)
	}
	var two Monitor
	if err := json.Unmarshal(b, &two); err != nil {
		t.Fatal(err)
	}
	for range 500 {
		p := cam.p(0.2, 1)
		if d := cmp.Diff(observe(t, one, p), observe(t, &two, p)); d != "" {
			t.Fatal(d)
		}
	}
}

func FuzzUnmarshal(f *testing.F) {
	m := newMonitor(f, Options{HeldOut: 9, Alpha: 0.1})
	for _, p := range []float64{0.1, 0.5, 1} {
		observe(f, m, p)
	}
	b, err := json.Marshal(m)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Add([]byte(`{"options":{"held_out":1000000000,"alpha":0.5}}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		var m Monitor
		if json.Unmarshal(b, &m) != nil {
			return
		}
		if s := observe(t, &m, 1); math.IsNaN(s.Evidence) {
			t.Errorf("%+v", s)
		}
	})
}
