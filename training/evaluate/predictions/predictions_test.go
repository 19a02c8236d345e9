package predictions

import (
	"encoding/csv"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/parquet-go/parquet-go"

	"github.com/nearmiss/nearmiss/inference/heatmap"
	"github.com/nearmiss/nearmiss/training/evaluate"
)

func rows() (all []Row, normal, anomalous []float64) {
	r := rand.New(rand.NewPCG(1, 2))
	for i := range 60 {
		bad := i%3 == 0
		score := float64(int(10*r.Float64())) / 4 // with ties
		label := "good"
		if bad {
			score, label = score+1, "crack"
			anomalous = append(anomalous, score)
		} else {
			normal = append(normal, score)
		}
		row := Row{
			Path: fmt.Sprintf("test/%s/%d, \"the\" one.png", label, i), Label: label, Score: &score, P: new(1 / float64(i+1)), Truth: &bad,
			Parts: map[string]float64{"class": score, "patch": 2 * score}, Method: "knn", Normal: "good", Seed: new(uint64(i)),
		}
		if bad {
			row.Regions = []heatmap.Region{{X: 1, Y: 2, Width: 30, Height: 40, Area: 500, Peak: 0.75}, {X: 9, Width: 1, Height: 1, Area: 1, Peak: 0.5, Faint: true}}
		}
		all = append(all, row)
	}
	return all, normal, anomalous
}

func TestTables(t *testing.T) {
	all, normal, anomalous := rows()
	want := evaluate.AUROC(normal, anomalous)
	lost := Row{Path: "gone.png", Reason: "unreadable: it is gone"}
	for _, format := range Formats {
		file := filepath.Join(t.TempDir(), "table"+format)
		w, err := Create(file)
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range append(all, lost) {
			if err := w.Write(r); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := os.Stat(file); err == nil {
			t.Errorf("%s: half a table is there", format)
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		got := read(t, file)
		if len(got) != len(all)+1 {
			t.Fatalf("%s: %d rows", format, len(got))
		}
		if diff := cmp.Diff(all, got[:len(all)]); diff != "" {
			t.Errorf("%s: %s", format, diff)
		}
		if last := got[len(all)]; last.Score != nil || last.Truth != nil || last.Reason != lost.Reason {
			t.Errorf("%s: %+v", format, last)
		}
		var n, a []float64
		for _, r := range got[:len(all)] {
			if *r.Truth {
				a = append(a, *r.Score)
			} else {
				n = append(n, *r.Score)
			}
		}
		if auroc := evaluate.AUROC(n, a); auroc != want {
			t.Errorf("%s: AUROC %g, want %g", format, auroc, want)
		}
	}
}

// read reads a table as another program would: by its columns' names.
func read(t *testing.T, file string) (out []Row) {
	t.Helper()
	switch filepath.Ext(file) {
	case ".parquet":
		rows, err := parquet.ReadFile[parquetRow](file)
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range rows {
			r := Row{
				Path: p.Path, Label: p.Label, Score: p.Score, P: p.P, Truth: p.Truth, Anomalous: p.Anomalous, Threshold: p.Threshold,
				Method: p.Method, Normal: p.Normal, Seed: p.Seed, Reason: p.Reason,
			}
			for _, part := range p.Parts {
				if r.Parts == nil {
					r.Parts = map[string]float64{}
				}
				r.Parts[part.Name] = part.Score
			}
			for _, g := range p.Regions {
				r.Regions = append(r.Regions, heatmap.Region{X: int(g.X), Y: int(g.Y), Width: int(g.Width), Height: int(g.Height), Area: int(g.Area), Peak: g.Peak, Faint: g.Faint})
			}
			out = append(out, r)
		}
	case ".jsonl":
		b, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for l := range strings.Lines(string(b)) {
			var r Row
			if err := json.Unmarshal([]byte(l), &r); err != nil {
				t.Fatal(err)
			}
			if len(r.Regions) == 0 {
				r.Regions = nil
			}
			out = append(out, r)
		}
	case ".csv":
		f, err := os.Open(file)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		lines, err := csv.NewReader(f).ReadAll()
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(columns, lines[0]); diff != "" {
			t.Error(diff)
		}
		for _, l := range lines[1:] {
			fields := map[string]json.RawMessage{}
			for i, name := range columns {
				switch name {
				case "path", "label", "method", "normal", "reason":
					fields[name], _ = json.Marshal(l[i])
				default:
					if l[i] != "" {
						fields[name] = json.RawMessage(l[i])
					}
				}
			}
			b, err := json.Marshal(fields)
			if err != nil {
				t.Fatal(err)
			}
			var r Row
			if err := json.Unmarshal(b, &r); err != nil {
				t.Fatal(err)
			}
			out = append(out, r)
		}
	}
	return out
}

// TestTheRecipeInPandas runs recipe.py where Python has pandas.
func TestTheRecipeInPandas(t *testing.T) {
	python := os.Getenv("NEARMISS_PYTHON")
	if python == "" {
		python = "python3"
	}
	if err := exec.CommandContext(t.Context(), python, "-c", "import pandas, pyarrow").Run(); err != nil {
		t.Skip("there is no Python with pandas and pyarrow here (NEARMISS_PYTHON names one)")
	}
	all, normal, anomalous := rows()
	for _, format := range Formats {
		file := filepath.Join(t.TempDir(), "table"+format)
		w, err := Create(file)
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range all {
			if err := w.Write(r); err != nil {
				t.Fatal(err)
			}
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		out, err := exec.CommandContext(t.Context(), python, "recipe.py", file).Output()
		if err != nil {
			t.Fatalf("%s: %v", format, err)
		}
		var got struct {
			AUROC         float64
			Rows, Regions int
		}
		if err := json.Unmarshal(out, &got); err != nil {
			t.Fatalf("%s: %v: %s", format, err, out)
		}
		if want := evaluate.AUROC(normal, anomalous); got.AUROC < want-1e-12 || got.AUROC > want+1e-12 || got.Rows != 60 || got.Regions != 40 {
			t.Errorf("%s: pandas finds %+v, want AUROC %g", format, got, want)
		}
	}
}

func TestATableThatFailsLeavesNothing(t *testing.T) {
	dir := t.TempDir()
	w, err := Create(filepath.Join(dir, "t.parquet"))
	if err != nil {
		t.Fatal(err)
	}
	w.Abort()
	if left, _ := os.ReadDir(dir); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
	if _, err := Create(filepath.Join(dir, "t.xlsx")); err == nil || !strings.Contains(err.Error(), ".parquet") {
		t.Error(err)
	}
}
