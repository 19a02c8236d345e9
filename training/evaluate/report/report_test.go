package report

import (
	"bytes"
	"encoding/json"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"math"
	"strings"
	"testing"
	"time"

	"github.com/nearmiss/nearmiss/inference/imaging"
	"github.com/nearmiss/nearmiss/training/dataset"
	"github.com/nearmiss/nearmiss/training/evaluate"
)

func results(t *testing.T) []evaluate.Result {
	t.Helper()
	run := evaluate.Run{Seed: 1, Normal: "a", Train: 9}
	for i := range 12 {
		m := imaging.New(20, 10)
		m.SetRGB(i, 3, 255, 0, 0)
		b, err := m.PNG()
		if err != nil {
			t.Fatal(err)
		}
		label := []string{"a", "b", "<c>"}[i%3]
		run.Scored = append(run.Scored, evaluate.Scored{
			Item:  dataset.FromBytes(fmt.Sprintf("%s/%d.png", label, i), dataset.Test, label, b),
			Score: math.Exp(float64(i*7%5) * 2), Anomalous: label != "a",
		})
	}
	run.Scored = append(run.Scored, evaluate.Scored{Item: dataset.FromBytes("broken", dataset.Test, "b", []byte("no image")), Score: 0.5, Anomalous: true})
	pixel, pro, close := 0.91, 0.72, -3.25
	return []evaluate.Result{
		{
			Protocol: evaluate.ProtocolOneVsRest, Method: "knn", Data: "cells", AUROC: 0.92, Std: 0.01, Repeats: 3, Resplit: 0.8,
			PerClass: map[string]float64{"b": 0.9, "a": 0.94}, Seeds: []uint64{1, 2, 3}, Seconds: 1.25,
			Parts: []evaluate.Part{{Normal: "a", Anomaly: evaluate.Rest, AUROC: 0.94, Train: 9, Normals: 4, Anomalies: 9}}, Runs: []evaluate.Run{run},
		},
		{
			Protocol: evaluate.ProtocolOneVsRest, Method: "fitymi", Data: "cells", AUROC: 0.97, Std: 0.02, Repeats: 3, Resplit: 0.8,
			PerClass: map[string]float64{"a": 0.97},
		},
		{
			Protocol: evaluate.ProtocolMVTec, Method: "knn", Data: "tiles", AUROC: 0.886, Repeats: 1,
			PerDefect: map[string]float64{"crack": 0.88}, PixelAUROC: &pixel, PRO: &pro,
		},
		{
			Protocol: evaluate.ProtocolNear, Method: "knn", Data: "cells", AUROC: 0.8, Repeats: 1, PerClass: map[string]float64{"a": 0.8},
			Bottom: []float64{0.7, 0.8}, Nearest: []float64{0.75, 0.8}, Parts: []evaluate.Part{{Normal: "a", Anomaly: "b", AUROC: 0.8, Closeness: &close}},
		},
	}
}

func TestJSONLines(t *testing.T) {
	var buf bytes.Buffer
	if err := JSONLines(&buf, results(t)); err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(strings.TrimSpace(buf.String()), "\n")
	if len(lines) != 4 {
		t.Fatalf("%d lines", len(lines))
	}
	for _, l := range lines {
		var v map[string]any
		if err := json.Unmarshal([]byte(l), &v); err != nil {
			t.Error(err)
		}
		if v["protocol"] == "" || v["auroc"].(float64) < 0.5 {
			t.Errorf("line %s", l)
		}
	}
}

func TestMarkdown(t *testing.T) {
	var buf bytes.Buffer
	if err := Markdown(&buf, results(t)); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"cells, one-vs-rest: 3 random splits, 80 % for training, AUROC in %",
		"| method | a | b | mean | seconds |",
		"| knn | 94.0 | 90.0 | 92.0 ± 1.0 | 1.2 |",
		"| fitymi | 97.0 | | 97.0 ± 2.0 | 0.0 |",
		"| method | crack | all defects | pixels | PRO | seconds |",
		"| knn | 88.0 | 88.6 | 91.0 | 72.0 | 0.0 |",
		"| knn | hardest (bottom-i) | 70.0 | 80.0 |",
	} {
		if !strings.Contains(buf.String(), want+"\n") {
			t.Errorf("no line %q in\n%s", want, buf.String())
		}
	}
}

func TestHTMLIsOneWellFormedPage(t *testing.T) {
	m := imaging.New(300, 100)
	var buf bytes.Buffer
	err := HTML(t.Context(), &buf, Page{
		Title: "Trial <1>", Notes: []string{"two cores"}, Results: results(t), Worst: 3,
		Sheets: []Sheet{{Title: "Fakes", Caption: "made of nothing", Pictures: []Picture{{m, "fake 1"}, {m, "fake 2"}}}},
		Made:   time.Date(2020, 2, 3, 4, 5, 0, 0, time.UTC),
	})
	if err != nil {
		t.Fatal(err)
	}
	html := buf.String()
	for _, want := range []string{
		"Trial &lt;1&gt;", "3 February 2020, 04:05 UTC", "two cores", "92.0 ± 1.0", "97.0 ± 2.0", "Fakes", "fake 2",
		"learnt from 9 images, tested on 4 normal and 9 anomalous ones", "&lt;c&gt;", "-3.25",
	} {
		if !strings.Contains(html, want) {
			t.Errorf("no %q on the page", want)
		}
	}
	// 3 misses of which "broken" has no picture, 3 alarms, 2 fakes.
	if n := strings.Count(html, `src="data:image/jpeg;base64,`); n != 7 {
		t.Errorf("%d pictures", n)
	}
	if n := strings.Count(html, "<svg"); n != 3 {
		t.Errorf("%d plots", n)
	}
	for _, want := range []string{">50 %</text>", "average precision, best F1", "threshold of the best F1: ", "stroke-dasharray"} {
		if !strings.Contains(html, want) {
			t.Errorf("no %q in the plots", want)
		}
	}
	for _, never := range []string{"http://", "https://", "ZgotmplZ", "NaN"} {
		if strings.Contains(html, never) {
			t.Errorf("%q on the page", never)
		}
	}
	// XML's parser, told of HTML's void elements, finds what is not closed.
	d := xml.NewDecoder(strings.NewReader(html))
	d.Strict, d.AutoClose, d.Entity = false, xml.HTMLAutoClose, xml.HTMLEntity
	depth := 0
	for {
		tok, err := d.Token()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		switch tok.(type) {
		case xml.StartElement:
			depth++
		case xml.EndElement:
			depth--
		}
	}
	if depth != 0 {
		t.Errorf("%d elements are not closed", depth)
	}
}

func TestHTMLOfUniformAndInfiniteScores(t *testing.T) {
	rs := results(t)[:1]
	for i := range rs[0].Runs[0].Scored {
		rs[0].Runs[0].Scored[i].Score = 0
	}
	rs[0].Runs[0].Scored[0].Score = math.Inf(1)
	var buf bytes.Buffer
	if err := HTML(t.Context(), &buf, Page{Title: "flat", Results: rs}); err != nil {
		t.Fatal(err)
	}
	if strings.Contains(buf.String(), "NaN") {
		t.Error("NaN on the page")
	}
}
