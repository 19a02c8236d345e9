package training

import (
	"errors"
	"math"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

func TestSplitPartitionsTheIndices(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.IntRange(4, 500).Draw(t, "n")
		share := rapid.Float64Range(0.01, 0.5).Draw(t, "share")
		seed := rapid.Uint64().Draw(t, "seed")
		train, held, err := Split(n, share, 2, seed)
		if err != nil {
			t.Fatal(err)
		}
		if len(held) < 1 || len(train) < 2 {
			t.Fatalf("%d train, %d held out", len(train), len(held))
		}
		all := slices.Sorted(slices.Values(append(slices.Clone(train), held...)))
		for i, v := range all {
			if i != v {
				t.Fatalf("index %d is missing or there twice", i)
			}
		}
		if len(all) != n {
			t.Fatalf("%d indices of %d", len(all), n)
		}
		again, _, _ := Split(n, share, 2, seed)
		if !slices.Equal(train, again) {
			t.Fatal("the same seed gave another split")
		}
	})
}

func TestSplitDependsOnTheSeed(t *testing.T) {
	a, _, _ := Split(100, 0.2, 2, 1)
	b, _, _ := Split(100, 0.2, 2, 2)
	if cmp.Equal(a, b) {
		t.Fatal("two seeds gave one split")
	}
}

func TestSplitRefusesTooFewImages(t *testing.T) {
	for _, n := range []int{0, 1, 2} {
		if _, _, err := Split(n, 0.2, 2, 1); err == nil {
			t.Errorf("%d images were accepted", n)
		}
	}
	for share, want := range map[float64]string{0.2: "at least 3 are", 0.9: "at least 16 are", math.Nextafter(1, 0): "are needed"} {
		if _, _, err := Split(2, share, 2, 1); !errors.Is(err, ErrTooFew) || !strings.Contains(err.Error(), want) {
			t.Errorf("two images, share %v: %v, want %q", share, err, want)
		}
	}
	for _, share := range []float64{0, 1, -0.1, 2} {
		if _, _, err := Split(100, share, 2, 1); err == nil {
			t.Errorf("share %v was accepted", share)
		}
	}
}

func TestNormalsForTheWantedFalseAlarmRate(t *testing.T) {
	for _, c := range []struct {
		alpha, share float64
		want         int
	}{
		{0.01, 0.2, 493}, // round(0.2·493) = 99 held out, 1/100
		{0.05, 0.2, 93},  // round(0.2·93) = 19 held out, 1/20
		{0.5, 0.5, 1},
		{0.01, 0.5, 197},
	} {
		got := normalsFor(c.alpha, c.share)
		if got != c.want {
			t.Errorf("alpha %v of share %v: %d images, want %d", c.alpha, c.share, got, c.want)
		}
	}
}
