package holdout

import (
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/nearmiss/nearmiss/bank"
	"github.com/nearmiss/nearmiss/inference/imaging"
)

const dim = 16

// window embeds a window that slides over a strip of random columns: overlap is
// the share that a frame has in common with the next one. Every frame has noise of
// its own.
func window(r *rand.Rand, n int, overlap float64) []float32 {
	const width = 200 // columns of a window
	step := int(math.Round(width * (1 - overlap)))
	strip := make([][dim]float64, n*step+width)
	for i := range strip {
		for j := range dim {
			strip[i][j] = r.NormFloat64()
		}
	}
	rows := make([]float32, n*dim)
	for i := range n {
		for j := range dim {
			sum := 0.0
			for _, c := range strip[i*step : i*step+width] {
				sum += c[j]
			}
			rows[i*dim+j] = float32(sum/math.Sqrt(width) + 0.1*r.NormFloat64())
		}
	}
	return rows
}

func named(n int) []Shot {
	shots := make([]Shot, n)
	for i := range shots {
		shots[i].Name = fmt.Sprintf("frame-%d.png", i)
	}
	return shots
}

// falseAlarms promises 5 % on the first 250 frames and counts on the later ones.
func falseAlarms(t *testing.T, rows []float32, train, held []int) (c *bank.Calibration, rate float64) {
	t.Helper()
	b, err := bank.New(bank.Options{Dim: dim})
	if err != nil {
		t.Fatal(err)
	}
	at := func(i int) []float32 { return rows[i*dim : (i+1)*dim] }
	for _, i := range train {
		if err := b.Add(uint64(i), at(i)); err != nil {
			t.Fatal(err)
		}
	}
	var out []float32
	for _, i := range held {
		out = append(out, at(i)...)
	}
	if c, err = b.Calibrate(t.Context(), out, 0.05); err != nil {
		t.Fatal(err)
	}
	scores, err := b.Scores(t.Context(), rows[250*dim:])
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range scores {
		if c.Anomalous(s) {
			rate += 1 / float64(len(scores))
		}
	}
	return c, rate
}

func TestThePromiseHoldsOnVideo(t *testing.T) {
	for _, overlap := range []float64{0.9, 0.97} {
		random, blocks, promise, worth := 0.0, 0.0, 0.0, 0.0
		const seeds = 10
		for seed := range uint64(seeds) {
			r := rand.New(rand.NewPCG(seed, 1))
			rows := window(r, 550, overlap)
			order := r.Perm(250)
			_, far := falseAlarms(t, rows, order[50:], order[:50])
			random += far / seeds

			s := Draw(named(250), rows[:250*dim], Options{Share: 0.2, Need: bank.HeldOutFor(0.05), K: 2, Seed: seed})
			if s == nil {
				t.Fatalf("overlap %g, seed %d: the order is not seen", overlap, seed)
			}
			c, far := falseAlarms(t, rows, s.Train, s.Held)
			blocks += far / seeds
			promise += c.Resting(s.HeldWorth, s.Alike).Promise() / seeds
			worth += s.Worth / seeds
		}
		t.Logf("overlap %g: 250 frames are worth %.0f; false alarms %.1f %% held out at random, %.1f %% as blocks, promised %.1f %%",
			overlap, worth, 100*random, 100*blocks, 100*promise)
		if random < 0.2 {
			t.Errorf("overlap %g: %.1f %% false alarms where any are held out: this video shows nothing", overlap, 100*random)
		}
		if blocks > max(0.1, promise) {
			t.Errorf("overlap %g: %.1f %% false alarms, promised %.1f %%", overlap, 100*blocks, 100*promise)
		}
		different := 550 * (1 - overlap) * 250 / 550 // windows that have nothing in common
		if worth < 0.7*different || worth > 3*different {
			t.Errorf("overlap %g: 250 frames are worth %.1f pictures, and %.0f have nothing in common", overlap, worth, different)
		}
		if overlap > 0.95 && promise < 0.07 {
			t.Errorf("overlap %g: %.1f %% is promised for frames that are worth %.1f", overlap, 100*promise, worth)
		}
	}
}

func TestNothingNearAHeldOutFrameIsInTheBank(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.IntRange(60, 400).Draw(t, "n")
		overlap := rapid.Float64Range(0.8, 0.97).Draw(t, "overlap")
		share := rapid.Float64Range(0.1, 0.4).Draw(t, "share")
		seed := rapid.Uint64().Draw(t, "seed")
		rows := window(rand.New(rand.NewPCG(seed, 2)), n, overlap)
		o := Options{Share: share, Need: 19, K: 2, Seed: seed}
		s := Draw(named(n), rows, o)
		if s == nil {
			t.Fatal("the order is not seen")
		}
		all := slices.Sorted(slices.Values(slices.Concat(s.Train, s.Held, s.Near)))
		for i, v := range all {
			if i != v || len(all) != n {
				t.Fatalf("%d + %d + %d places are not those of %d frames", len(s.Train), len(s.Held), len(s.Near), n)
			}
		}
		for _, h := range s.Held {
			for _, d := range []int{-1, 1} {
				if slices.Contains(s.Train, h+d) {
					t.Fatalf("frame %d is held out and frame %d is in the bank", h, h+d)
				}
			}
		}
		if lost := len(s.Near); lost > len(s.Held)+2 {
			t.Fatalf("%d frames are lost for %d that are held out", lost, len(s.Held))
		}
		if s.Worth < 1 || s.Worth > float64(n) || s.HeldWorth < 1 || s.HeldWorth > float64(len(s.Held)) {
			t.Fatalf("worth %g of %d, held out %g of %d", s.Worth, n, s.HeldWorth, len(s.Held))
		}
		if again := Draw(named(n), rows, o); !cmp.Equal(s, again) {
			t.Fatal("the same seed gave another split")
		}
	})
}

// TestIndependentNormalsAreLeftAlone: no order is seen in independent draws, in
// runs of a few kinds, or in kinds with names of their own.
func TestIndependentNormalsAreLeftAlone(t *testing.T) {
	for seed := range uint64(100) {
		r := rand.New(rand.NewPCG(seed, 3))
		n := 24 + r.IntN(300)
		rows := make([]float32, n*dim)
		kinds := 1 + r.IntN(3)
		shots := named(n)
		for i := range n {
			kind := i * kinds / n
			if seed%2 == 0 {
				shots[i].Name = fmt.Sprintf("kind %d/%d.png", kind, i)
			} else if kinds == 3 || n < 128 {
				kind = 0 // runs under one name that are short look like bursts
			}
			far := math.Exp(r.NormFloat64()) // heavy tails
			for j := range dim {
				rows[i*dim+j] = float32(far*r.NormFloat64() + 30*float64(kind))
			}
		}
		if s := Draw(shots, rows, Options{Share: 0.2, K: 2, Seed: seed}); s != nil {
			t.Errorf("seed %d: %d independent normals of %d kinds are worth %.1f", seed, n, kinds, s.Worth)
		}
	}
}

// TestFramesOfACameraAreOrderedByTime: two cameras take turns and names are
// random; only camera and time tell the order.
func TestFramesOfACameraAreOrderedByTime(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 4))
	a, b := window(r, 120, 0.9), window(r, 120, 0.9)
	begin := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	var shots []Shot
	var rows []float32
	for _, i := range r.Perm(240) {
		s := Shot{Name: fmt.Sprintf("%x", r.Uint64()), Camera: "a", At: begin.Add(time.Duration(i/2) * time.Second)}
		of := a
		if i%2 == 1 {
			s.Camera, of = "b", b
		}
		shots, rows = append(shots, s), append(rows, of[i/2*dim:(i/2+1)*dim]...)
	}
	s := Draw(shots, rows, Options{Share: 0.2, K: 2})
	if s == nil {
		t.Fatal("the order is not seen")
	}
	if s.Worth < 12 || s.Worth > 80 {
		t.Errorf("240 frames of 90 %% overlap are worth %.1f pictures", s.Worth)
	}
	for _, h := range s.Held {
		for _, i := range s.Train {
			if d := shots[h].At.Sub(shots[i].At).Abs(); shots[h].Camera == shots[i].Camera && d <= time.Second {
				t.Fatalf("a frame %v from a held-out one is in the bank", d)
			}
		}
	}
}

// TestBurstsAreHeldOutWhole: ten pictures each of thirty parts.
func TestBurstsAreHeldOutWhole(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 5))
	var shots []Shot
	var rows []float32
	for part := range 30 {
		var of [dim]float64
		for j := range of {
			of[j] = r.NormFloat64()
		}
		for i := range 10 {
			shots = append(shots, Shot{Name: fmt.Sprintf("part %d/%d.png", part, i)})
			for _, v := range of {
				rows = append(rows, float32(v+0.05*r.NormFloat64()))
			}
		}
	}
	s := Draw(shots, rows, Options{Share: 0.2, K: 2})
	if s == nil {
		t.Fatal("the order is not seen")
	}
	if s.Worth < 20 || s.Worth > 60 {
		t.Errorf("300 pictures of 30 parts are worth %.1f", s.Worth)
	}
	var held, train [30]int
	for _, i := range s.Held {
		held[i/10]++
	}
	for _, i := range s.Train {
		train[i/10]++
	}
	for part := range held {
		if held[part] > 0 && train[part] > 0 {
			t.Errorf("part %d is held out %d times, and %d times in the bank", part, held[part], train[part])
		}
	}
}

func TestNaturalOrder(t *testing.T) {
	names := []string{"a", "a1", "a2", "a10", "a010b", "b", "b/9.png", "b/10.png", "c"}
	got := slices.Clone(names)
	slices.Reverse(got)
	slices.SortFunc(got, natural)
	if diff := cmp.Diff(names, got); diff != "" {
		t.Error(diff)
	}
}

// textured draws a picture of its own.
func textured(r *rand.Rand) *imaging.Image {
	m := imaging.New(96, 64)
	base := r.IntN(40)
	for y := range m.Height {
		for x := range m.Width {
			v := uint8(100 + base + r.IntN(20))
			m.SetRGB(x, y, v, v, v)
		}
	}
	for range 6 {
		x0, y0, v := r.IntN(80), r.IntN(48), uint8(r.IntN(256))
		for y := range 16 {
			for x := range 16 {
				m.SetRGB(x0+x, y0+y, v, v/2, 255-v)
			}
		}
	}
	return m
}

func TestCopiesShowTheSameAsAnother(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 6))
	var looks []Thumb
	var want []int
	for i := range 40 {
		m := textured(r)
		looks, want = append(looks, ThumbOf(m)), append(want, -1)
		if i%4 == 0 { // the same with noise, as from a sensor, and again
			for range 2 {
				noisy := imaging.New(m.Width, m.Height)
				for j, v := range m.Pix {
					noisy.Pix[j] = uint8(max(0, min(255, int(v)+int(3*r.NormFloat64()))))
				}
				looks, want = append(looks, ThumbOf(noisy)), append(want, len(want)-1)
				if want[len(want)-2] >= 0 {
					want[len(want)-1] = want[len(want)-2]
				}
			}
		}
		if i%4 == 1 { // one more part on it: another picture
			other := imaging.New(m.Width, m.Height)
			copy(other.Pix, m.Pix)
			for y := range 12 {
				for x := range 12 {
					other.SetRGB(40+x, 20+y, 255, 255, 255)
				}
			}
			looks, want = append(looks, ThumbOf(other)), append(want, -1)
		}
	}
	if diff := cmp.Diff(want, Copies(looks)); diff != "" {
		t.Error(diff)
	}
}
