package evaluate

import (
	"context"
	"encoding/binary"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/nearmiss/nearmiss/training/dataset"
)

// points are items whose bytes are a point each, and a model that reads it.
func points(n int, seed uint64) ([]dataset.Item, *Features) {
	r := rand.New(rand.NewPCG(seed, 1))
	var items []dataset.Item
	for i := range n {
		b := make([]byte, 8)
		binary.LittleEndian.PutUint32(b, math.Float32bits(float32(r.NormFloat64())))
		binary.LittleEndian.PutUint32(b[4:], math.Float32bits(float32(r.NormFloat64())))
		items = append(items, dataset.FromBytes(fmt.Sprint(i), dataset.Train, "good", b))
	}
	return items, NewFeatures(func(_ context.Context, files [][]byte) ([][]float32, error) {
		out := make([][]float32, len(files))
		for i, b := range files {
			out[i] = []float32{
				math.Float32frombits(binary.LittleEndian.Uint32(b)), math.Float32frombits(binary.LittleEndian.Uint32(b[4:])),
			}
		}
		return out, nil
	})
}

func TestFalseAlarmsAreAsManyAsPromised(t *testing.T) {
	items, f := points(600, 3)
	r, err := FalseAlarms(t.Context(), items, f, 2, []float64{0.01, 0.05, 0.001}, 400, 9)
	if err != nil {
		t.Fatal(err)
	}
	if r.Bank != 360 || r.HeldOut != 120 || r.Test != 120 {
		t.Errorf("%+v", r)
	}
	for _, a := range r.Alarms[:2] {
		// 400 draws of 120 images from the same 600: half a per cent is wide enough
		if math.Abs(a.Rate-a.Expected) > 0.005 || a.Inside < 0.95 || a.Beyond > 0.06 || len(a.Rates) != 400 {
			t.Errorf("%+v", a)
		}
	}
	if a := r.Alarms[2]; a.Rate != 0 || a.Expected != 0 || a.Most != 0 || a.Beyond != 0 {
		t.Errorf("an unreachable rate gives alarms: %+v", a)
	}
}

func TestFalseAlarmsOfAMethodAreThoseOfItsScores(t *testing.T) {
	items, f := points(200, 3)
	alphas := []float64{0.05, 0.1}
	want, err := FalseAlarms(t.Context(), items, f, 2, alphas, 30, 9)
	if err != nil {
		t.Fatal(err)
	}
	got, err := MethodAlarms(t.Context(), items, KNN(f, 2), alphas, 30, 9)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
	if _, err := MethodAlarms(t.Context(), items[:4], KNN(f, 2), alphas, 30, 9); err == nil {
		t.Error("four images are accepted")
	}
}

func TestFalseAlarmsNeedEnoughImages(t *testing.T) {
	items, f := points(4, 1)
	if _, err := FalseAlarms(t.Context(), items, f, 2, []float64{0.5}, 10, 1); err == nil {
		t.Error("four images are accepted")
	}
}

// TestMostAlarmsAreTheQuantile: against draws of a rate and of alarms at it.
func TestMostAlarmsAreTheQuantile(t *testing.T) {
	r := rand.New(rand.NewPCG(5, 6))
	for _, c := range []struct{ rank, n, test int }{{1, 99, 20}, {5, 99, 35}, {38, 761, 190}, {7, 141, 35}} {
		most := mostAlarms(c.rank, c.n, c.test)
		above, least := 0, 0
		const draws = 5_000
		for range draws {
			calibrating := make([]float64, c.n)
			for i := range calibrating {
				calibrating[i] = r.Float64()
			}
			slices.Sort(calibrating)
			alarms := 0
			for range c.test {
				if r.Float64() > calibrating[c.n-c.rank] {
					alarms++
				}
			}
			if alarms > most {
				above++
			}
			if alarms >= most {
				least++
			}
		}
		if above > 0.03*draws || least < 0.02*draws {
			t.Errorf("%+v: %d of %d draws have more than %d alarms, %d no fewer", c, above, draws, most, least)
		}
	}
}
