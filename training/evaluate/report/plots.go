package report

import (
	"fmt"
	"html/template"
	"math"
	"slices"
	"strings"

	"github.com/nearmiss/nearmiss/training/evaluate"
)

// The curves' colours, one for each kind of anomaly, distinct for the colour-
// blind (Okabe and Ito).
var colours = []string{"#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000"}

// Sizes of a plot, in its own units.
const (
	plotSize = 250.0
	plotLeft = 46.0 // for what is written beside it
	plotTop  = 8.0
	plotFoot = 46.0 // for what is written below it
	legend   = 14.0 // of a line
)

// plot is an SVG picture under way: a square, its axes, and lines of a legend.
type plot struct {
	lines int
	body  strings.Builder
}

// x and y place a share, 0..1, in the picture.
func x(v float64) float64 { return plotLeft + v*plotSize }
func y(v float64) float64 { return plotTop + (1-v)*plotSize }

// tick is a mark at a share of an axis.
type tick struct {
	at   float64
	text string
}

// percents are the marks of an axis from 0 to 100 %.
var percents = []tick{{0, "0 %"}, {0.25, "25 %"}, {0.5, "50 %"}, {0.75, "75 %"}, {1, "100 %"}}

func (p *plot) axes(across, up string, xs, ys []tick) {
	for _, t := range xs {
		fmt.Fprintf(&p.body, `<line x1="%.1f" x2="%.1f" y1="%.1f" y2="%.1f" stroke="#e8e8e8"/>`, x(t.at), x(t.at), y(1), y(0)+4)
		anchor := "middle"
		if t.at == 1 {
			anchor = "end"
		}
		fmt.Fprintf(&p.body, `<text x="%.1f" y="%.1f" text-anchor="%s">%s</text>`, x(t.at), y(0)+15, anchor, template.HTMLEscapeString(t.text))
	}
	for _, t := range ys {
		fmt.Fprintf(&p.body, `<line x1="%.1f" x2="%.1f" y1="%.1f" y2="%.1f" stroke="#e8e8e8"/>`, x(0)-4, x(1), y(t.at), y(t.at))
		fmt.Fprintf(&p.body, `<text x="%.1f" y="%.1f" text-anchor="end">%s</text>`, x(0)-6, y(t.at)+3.5, template.HTMLEscapeString(t.text))
	}
	fmt.Fprintf(&p.body, `<rect x="%g" y="%g" width="%g" height="%g" fill="none" stroke="#999"/>`, x(0), y(1), plotSize, plotSize)
	fmt.Fprintf(&p.body, `<text x="%g" y="%g" text-anchor="middle">%s</text>`, x(0.5), y(0)+29, template.HTMLEscapeString(across))
	fmt.Fprintf(&p.body, `<text x="10" y="%g" text-anchor="middle" transform="rotate(-90 10 %g)">%s</text>`, y(0.5), y(0.5), template.HTMLEscapeString(up))
}

func (p *plot) line(points [][2]float64, colour string, width float64) {
	fmt.Fprintf(&p.body, `<polyline fill="none" stroke="%s" stroke-width="%g" points="`, colour, width)
	for _, q := range points {
		fmt.Fprintf(&p.body, "%.1f,%.1f ", x(q[0]), y(q[1]))
	}
	p.body.WriteString(`"/>`)
}

// key adds a line to the legend; mark draws its sign between x = 0 and 20.
func (p *plot) key(text, mark string) {
	at := y(0) + plotFoot + legend*float64(p.lines)
	fmt.Fprintf(&p.body, `<g transform="translate(%g %g)">%s<text x="26" y="4">%s</text></g>`, plotLeft, at, mark, template.HTMLEscapeString(text))
	p.lines++
}

func (p *plot) svg(label string) template.HTML {
	// What comes from outside, names of labels, is escaped where it is written.
	return template.HTML(fmt.Sprintf(`<svg viewBox="0 0 %g %g" role="img" aria-label="%s">%s</svg>`,
		plotLeft+plotSize+10, plotTop+plotSize+plotFoot+legend*float64(p.lines), label, p.body.String()))
}

func stroke(colour string, width float64) string {
	return fmt.Sprintf(`<line x1="0" x2="20" y1="0" y2="0" stroke="%s" stroke-width="%g"/>`, colour, width)
}

// curves calls draw for all anomalies of a run, and for each label where there are
// several, but not more than can be distinguished.
func curves(run evaluate.Run, draw func(normal, anomalous []float64, name, colour string, width float64)) {
	var labels []string
	for _, s := range run.Scored {
		if s.Anomalous && !slices.Contains(labels, s.Item.Label) {
			labels = append(labels, s.Item.Label)
		}
	}
	slices.Sort(labels)
	if len(labels) == 1 || len(labels) >= len(colours) {
		labels = nil
	}
	for i, l := range labels { // the main one on top
		n, a := run.Split(l)
		draw(n, a, l, colours[i+1], 1.2)
	}
	n, a := run.Split("")
	draw(n, a, "all anomalies", colours[0], 2.4)
}

// rocSVG draws the receiver operating characteristic.
func rocSVG(run evaluate.Run) template.HTML {
	var p plot
	p.axes("false alarms", "anomalies found", percents, percents)
	p.line([][2]float64{{0, 0}, {1, 1}}, "#ccc", 1)
	p.key("AUROC", "")
	curves(run, func(normal, anomalous []float64, name, colour string, width float64) {
		var points [][2]float64
		for _, q := range thin(evaluate.ROC(normal, anomalous), 400) {
			points = append(points, [2]float64{q.FPR, q.TPR})
		}
		p.line(points, colour, width)
		p.key(fmt.Sprintf("%s %.1f %%", name, 100*evaluate.AUROC(normal, anomalous)), stroke(colour, width))
	})
	return p.svg("receiver operating characteristic")
}

// precisionSVG draws precision against recall.
func precisionSVG(run evaluate.Run) template.HTML {
	var p plot
	p.axes("anomalies found (recall)", "alarms that are right (precision)", percents, percents)
	p.key("average precision, best F1", "")
	curves(run, func(normal, anomalous []float64, name, colour string, width float64) {
		var points [][2]float64
		for _, q := range thin(evaluate.PrecisionRecall(normal, anomalous), 400) {
			points = append(points, [2]float64{q.Recall, q.Precision})
		}
		p.line(points, colour, width)
		p.key(fmt.Sprintf("%s %.1f %%, %.1f %%", name, 100*evaluate.AveragePrecision(normal, anomalous), 100*evaluate.BestF1(normal, anomalous).F1), stroke(colour, width))
	})
	return p.svg("precision and recall")
}

// thin drops points of long curves, keeping the ends.
func thin[T any](p []T, most int) []T {
	if len(p) <= most {
		return p
	}
	out := make([]T, 0, most)
	for i := range most {
		out = append(out, p[i*(len(p)-1)/(most-1)])
	}
	return out
}

// histogramSVG draws both kinds' scores as shares, on a logarithmic axis where
// scores are positive and spread over more than a factor of 20, and the threshold
// that separates them best.
func histogramSVG(normal, anomalous []float64) template.HTML {
	const bins = 40
	lo, hi := math.Inf(1), math.Inf(-1)
	for _, s := range slices.Concat(normal, anomalous) {
		if !math.IsInf(s, 0) {
			lo, hi = min(lo, s), max(hi, s)
		}
	}
	if lo > hi { // none is finite
		lo, hi = 0, 1
	}
	log := lo > 0 && hi > 20*lo
	place := func(s float64) float64 { // share of the axis
		a, z := lo, hi
		if log {
			s, a, z = math.Log(s), math.Log(a), math.Log(z)
		}
		if z <= a {
			return 1
		}
		return min(1, max(0, (s-a)/(z-a)))
	}
	count := func(scores []float64) (h [bins]float64) {
		for _, s := range scores {
			h[min(bins-1, int(place(s)*bins))] += 1 / float64(len(scores))
		}
		return h
	}
	n, a := count(normal), count(anomalous)
	top := max(slices.Max(n[:]), slices.Max(a[:]))
	name := "score"
	if log {
		name = "score, logarithmic"
	}
	xs := []tick{{0, fmt.Sprintf("%.3g", lo)}}
	if hi > lo {
		mid := (lo + hi) / 2
		if log {
			mid = math.Sqrt(lo * hi)
		}
		xs = append(xs, tick{0.5, fmt.Sprintf("%.3g", mid)}, tick{1, fmt.Sprintf("%.3g", hi)})
	}
	var p plot
	p.axes(name, "share of the images", xs, []tick{{0, "0"}, {0.5, fmt.Sprintf("%.2g %%", 50*top)}, {1, fmt.Sprintf("%.2g %%", 100*top)}})
	for i, h := range [][bins]float64{n, a} {
		for j, v := range h {
			if v > 0 {
				fmt.Fprintf(&p.body, `<rect x="%.1f" y="%.1f" width="%.1f" height="%.1f" fill="%s" fill-opacity=".5"/>`,
					x(float64(j)/bins), y(v/top), plotSize/bins, v/top*plotSize, colours[i])
			}
		}
		p.key([]string{"normal", "anomalous"}[i], fmt.Sprintf(`<rect x="0" y="-5" width="20" height="9" fill="%s" fill-opacity=".5"/>`, colours[i]))
	}
	if best := evaluate.BestF1(normal, anomalous); best.F1 > 0 {
		at := x(place(best.Threshold))
		fmt.Fprintf(&p.body, `<line x1="%.1f" x2="%.1f" y1="%g" y2="%g" stroke="#222" stroke-dasharray="4 3"/>`, at, at, y(1), y(0))
		p.key(fmt.Sprintf("threshold of the best F1: %.4g", best.Threshold), `<line x1="0" x2="20" y1="0" y2="0" stroke="#222" stroke-dasharray="4 3"/>`)
	}
	return p.svg("histogram of the scores")
}
