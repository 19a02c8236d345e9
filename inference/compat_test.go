package inference

import (
	"context"
	"encoding/json"
	"math"
	"os"
	"path/filepath"
	"slices"
	"testing"
)

// TestReleasesOfEarlierVersionsScoreAsBefore opens a release that was made by
// commit e7c20b3, of a small ViT with random weights, with whitened class and
// pooled tokens and patches. want.json is what that version made of the pictures.
func TestReleasesOfEarlierVersionsScoreAsBefore(t *testing.T) {
	dir := filepath.Join("testdata", "release-e7c20b3")
	d, err := Open(context.Background(), filepath.Join(dir, "release"), Options{Maps: MapAll})
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	if got := d.Info().Parts; !slices.Equal(got, []string{"class", "pooled", "patch"}) {
		t.Errorf("parts %v", got)
	}
	b, err := os.ReadFile(filepath.Join(dir, "want.json"))
	if err != nil {
		t.Fatal(err)
	}
	var want []struct {
		Score, Threshold, PValue float64
		Map                      []float64
		Nearest                  []uint64
	}
	if err := json.Unmarshal(b, &want); err != nil {
		t.Fatal(err)
	}
	var files [][]byte
	for i := range want {
		f, err := os.ReadFile(filepath.Join(dir, string(rune('a'+i))+".png"))
		if err != nil {
			t.Fatal(err)
		}
		files = append(files, f)
	}
	got, err := d.Score(context.Background(), files)
	if err != nil {
		t.Fatal(err)
	}
	near := func(a, b float64) bool { return math.Abs(a-b) <= 1e-4*math.Abs(b)+1e-6 }
	for i, w := range want {
		g := got[i]
		if g.Err != nil || !near(g.Score, w.Score) || g.Threshold != w.Threshold || g.PValue != w.PValue {
			t.Errorf("picture %d: %+v, want %+v", i, g, w)
			continue
		}
		for j, n := range g.Nearest {
			if n.ID != w.Nearest[j] {
				t.Errorf("picture %d: nearest %v, want %v", i, g.Nearest, w.Nearest)
			}
		}
		for j, v := range g.Map.Values {
			if !near(float64(v), w.Map[j]) {
				t.Errorf("picture %d, patch %d: %v, want %v", i, j, v, w.Map[j])
			}
		}
		if m, err := d.Heatmap(g); err != nil || m.Threshold() <= 0 {
			t.Errorf("picture %d: no heatmap: %v", i, err)
		}
	}
}
