package report

import (
	"cmp"
	"context"
	_ "embed"
	"encoding/base64"
	"fmt"
	"html/template"
	"io"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/nearmiss/nearmiss/inference/imaging"
	"github.com/nearmiss/nearmiss/training/dataset"
	"github.com/nearmiss/nearmiss/training/evaluate"
)

// Page is what an HTML report shows.
type Page struct {
	Title string
	// Notes are paragraphs below the title: what was run, on which machine.
	Notes   []string
	Results []evaluate.Result
	// Sheets are further pictures, such as fakes or heatmaps.
	Sheets []Sheet
	// Worst is how many misses and false alarms are shown; 0 means 12.
	Worst int
	// Thumb is the longer side of the small images in pixels; 0 means 96.
	Thumb int
	// Made is the date on the page; the zero time leaves it out.
	Made time.Time
}

// Sheet is a contact sheet.
type Sheet struct {
	Title    string
	Caption  string
	Pictures []Picture
	// Side is the longer side of its pictures in pixels; 0 means the page's Thumb.
	Side int
}

// Picture is one image of a sheet.
type Picture struct {
	Image   *imaging.Image
	Caption string
}

//go:embed page.html
var pageSource string

var page = template.Must(template.New("page").Parse(pageSource))

type view struct {
	Title, Made string
	Notes       []string
	Tables      []tableView
	Results     []resultView
	Sheets      []sheetView
}

type tableView struct {
	Caption string
	Columns []string
	Overall string
	Pixels  bool
	Rows    []rowView
}

type rowView struct {
	Method  string
	Cells   []string
	Overall string
	Pixels  []string
	Seconds string
}

type resultView struct {
	Title   string
	Curves  []curveView
	Near    []nearView
	Parts   []partView
	Pixels  []pixelView
	Orders  []orderView
	HasNear bool
}

type curveView struct {
	Name      string
	ROC, Hist template.HTML
	Misses    []thumbView
	Alarms    []thumbView
	Said      string
}

type nearView struct{ Normal, Anomaly, AUROC, Closeness string }

type orderView struct {
	Name   string
	Values []string
}

type partView struct {
	Normal, Anomaly, AUROC, AP, FPR string
	Train, Normals, Anomalies       int
}

type pixelView struct {
	Anomaly, AUROC, PRO, Seen, SeenAUROC, SeenPRO string
	Regions                                       int
}

type thumbView struct {
	Src     template.URL
	Caption string
	Alt     string
}

type sheetView struct {
	Title, Caption string
	Pictures       []thumbView
	Side           int // 0: the page's own
}

// HTML writes one page that needs nothing else: styles, curves and small images
// are in it. Images are read again for their thumbnails; one that cannot be
// read is named without a picture.
func HTML(ctx context.Context, w io.Writer, p Page) error {
	if p.Worst == 0 {
		p.Worst = 12
	}
	if p.Thumb == 0 {
		p.Thumb = 96
	}
	v := view{Title: p.Title, Notes: p.Notes}
	if !p.Made.IsZero() {
		v.Made = p.Made.UTC().Format("2 January 2006, 15:04 UTC")
	}
	for _, g := range group(p.Results) {
		v.Tables = append(v.Tables, tableOf(g))
	}
	for _, r := range p.Results {
		rv, err := p.result(ctx, r)
		if err != nil {
			return err
		}
		v.Results = append(v.Results, rv)
	}
	for _, s := range p.Sheets {
		sv := sheetView{Title: s.Title, Caption: s.Caption, Side: s.Side}
		for _, q := range s.Pictures {
			src, err := thumb(q.Image, cmp.Or(s.Side, p.Thumb))
			if err != nil {
				return fmt.Errorf("sheet %s: %w", s.Title, err)
			}
			sv.Pictures = append(sv.Pictures, thumbView{Src: src, Caption: q.Caption, Alt: q.Caption})
		}
		v.Sheets = append(v.Sheets, sv)
	}
	if err := page.Execute(w, v); err != nil {
		return fmt.Errorf("write report: %w", err)
	}
	return nil
}

func tableOf(g []evaluate.Result) tableView {
	t := tableView{
		Caption: fmt.Sprintf("%s, %s: %s", g[0].Data, g[0].Protocol, splits(g[0])),
		Columns: columnsOf(g), Overall: overall(g[0]),
		Pixels: slices.ContainsFunc(g, func(r evaluate.Result) bool { return r.PixelAUROC != nil }),
	}
	for _, r := range g {
		row := rowView{Method: r.Method, Overall: percent(r.AUROC, r.Std, r.Repeats), Seconds: fmt.Sprintf("%.1f", r.Seconds)}
		for _, c := range t.Columns {
			cell := ""
			if f, ok := figures(r)[c]; ok {
				cell = fmt.Sprintf("%.1f", 100*f)
			}
			row.Cells = append(row.Cells, cell)
		}
		if t.Pixels {
			for _, f := range []*float64{r.PixelAUROC, r.PRO} {
				cell := ""
				if f != nil {
					cell = fmt.Sprintf("%.1f", 100**f)
				}
				row.Pixels = append(row.Pixels, cell)
			}
		}
		t.Rows = append(t.Rows, row)
	}
	return t
}

func (p Page) result(ctx context.Context, r evaluate.Result) (resultView, error) {
	v := resultView{Title: fmt.Sprintf("%s: %s on %s (%s)", r.Method, r.Protocol, r.Data, splits(r))}
	for _, part := range r.Parts {
		v.Parts = append(v.Parts, partView{
			Normal: part.Normal, Anomaly: part.Anomaly, AUROC: percent(part.AUROC, part.Std, r.Repeats),
			AP: fmt.Sprintf("%.1f", 100*part.AveragePrecision), FPR: fmt.Sprintf("%.1f", 100*part.FPR95),
			Train: part.Train, Normals: part.Normals, Anomalies: part.Anomalies,
		})
		if part.Closeness != nil {
			v.HasNear = true
			v.Near = append(v.Near, nearView{part.Normal, part.Anomaly, percent(part.AUROC, part.Std, r.Repeats), fmt.Sprintf("%.2f", *part.Closeness)})
		}
	}
	for _, label := range PixelLabels(r) {
		f := r.Pixels[label]
		p := pixelView{Anomaly: label, Regions: f.Regions}
		for to, v := range map[*string]float64{&p.AUROC: f.AUROC, &p.PRO: f.PRO, &p.Seen: f.Seen, &p.SeenAUROC: f.SeenAUROC, &p.SeenPRO: f.SeenPRO} {
			*to = fmt.Sprintf("%.1f", 100*v)
		}
		v.Pixels = append(v.Pixels, p)
	}
	for _, o := range []struct {
		name string
		v    []float64
	}{{"closest", r.Nearest}, {"hardest (bottom-i)", r.Bottom}} {
		if len(o.v) == 0 {
			continue
		}
		ov := orderView{Name: o.name}
		for _, x := range o.v {
			ov.Values = append(ov.Values, fmt.Sprintf("%.1f", 100*x))
		}
		v.Orders = append(v.Orders, ov)
	}
	if len(r.Runs) == 0 {
		return v, nil
	}
	// Curves and images are of the first repeat; all repeats would say the same
	// many times over.
	for _, run := range r.Runs {
		if run.Seed != r.Runs[0].Seed {
			continue
		}
		if err := ctx.Err(); err != nil {
			return v, err
		}
		normal, anomalous := run.Split("")
		if len(normal) == 0 || len(anomalous) == 0 {
			continue
		}
		c := curveView{
			Name: run.Normal, ROC: rocSVG(run), Hist: histogramSVG(normal, anomalous),
			Said: fmt.Sprintf("learnt from %d images, tested on %d normal and %d anomalous ones; AUROC %.2f %%",
				run.Train, len(normal), len(anomalous), 100*evaluate.AUROC(normal, anomalous)),
		}
		worst := slices.Clone(run.Scored)
		slices.SortStableFunc(worst, func(a, b evaluate.Scored) int {
			switch {
			case a.Score < b.Score:
				return -1
			case a.Score > b.Score:
				return 1
			}
			return strings.Compare(a.Item.Name, b.Item.Name)
		})
		for _, s := range worst {
			if s.Anomalous && len(c.Misses) < p.Worst {
				c.Misses = append(c.Misses, p.thumbOf(s))
			}
		}
		for _, s := range slices.Backward(worst) {
			if !s.Anomalous && len(c.Alarms) < p.Worst {
				c.Alarms = append(c.Alarms, p.thumbOf(s))
			}
		}
		v.Curves = append(v.Curves, c)
	}
	return v, nil
}

func (p Page) thumbOf(s evaluate.Scored) thumbView {
	t := thumbView{Caption: fmt.Sprintf("%s %.4g", s.Item.Label, s.Score), Alt: s.Item.Name}
	if img, err := decodeItem(s.Item); err == nil {
		if src, err := thumb(img, p.Thumb); err == nil {
			t.Src = src
		}
	}
	return t
}

func decodeItem(it dataset.Item) (*imaging.Image, error) {
	b, err := it.Read()
	if err != nil {
		return nil, err
	}
	return imaging.Decode(b, imaging.Limits{})
}

// thumb makes a small JPEG as a data URL.
func thumb(m *imaging.Image, side int) (template.URL, error) {
	if long := max(m.Width, m.Height); long > side {
		m = imaging.Resize(m, max(1, m.Width*side/long), max(1, m.Height*side/long), imaging.Bicubic)
	}
	b, err := m.JPEG(80)
	if err != nil {
		return "", err
	}
	// Base64 of bytes that this function made is a safe URL.
	return template.URL("data:image/jpeg;base64," + base64.StdEncoding.EncodeToString(b)), nil
}

// The curves' colours, one for each kind of anomaly, distinct for the colour-
// blind (Okabe and Ito).
var colours = []string{"#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000"}

// rocSVG draws the run's curve, and one for each label when there are several.
func rocSVG(run evaluate.Run) template.HTML {
	const size, pad = 260.0, 34.0
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
	var b strings.Builder
	fmt.Fprintf(&b, `<svg viewBox="0 0 %g %g" role="img" aria-label="receiver operating characteristic">`, size+2*pad, size+2*pad+14*float64(1+len(labels)))
	axes(&b, size, pad, "false alarms", "found")
	fmt.Fprintf(&b, `<line x1="%g" y1="%g" x2="%g" y2="%g" stroke="#ccc"/>`, pad, pad+size, pad+size, pad)
	draw := func(i int, label, name string, width float64) {
		normal, anomalous := run.Split(label)
		roc := thin(evaluate.ROC(normal, anomalous), 400)
		var points strings.Builder
		for _, p := range roc {
			fmt.Fprintf(&points, "%.1f,%.1f ", pad+p.FPR*size, pad+(1-p.TPR)*size)
		}
		c := colours[i%len(colours)]
		fmt.Fprintf(&b, `<polyline fill="none" stroke="%s" stroke-width="%g" points="%s"/>`, c, width, points.String())
		y := 2*pad + size + 14*float64(i) + 6
		fmt.Fprintf(&b, `<line x1="%g" x2="%g" y1="%g" y2="%g" stroke="%s" stroke-width="%g"/><text x="%g" y="%g">%s %.1f %%</text>`,
			pad, pad+20, y-4, y-4, c, width, pad+26, y, template.HTMLEscapeString(name), 100*evaluate.AUROC(normal, anomalous))
	}
	name := "all anomalies"
	draw(0, "", name, 2.2)
	for i, l := range labels {
		draw(i+1, l, l, 1.2)
	}
	b.WriteString(`</svg>`)
	return template.HTML(b.String())
}

// thin drops points of long curves, keeping the ends.
func thin(p []evaluate.Point, most int) []evaluate.Point {
	if len(p) <= most {
		return p
	}
	out := make([]evaluate.Point, 0, most)
	for i := range most {
		out = append(out, p[i*(len(p)-1)/(most-1)])
	}
	return out
}

func axes(b *strings.Builder, size, pad float64, x, y string) {
	fmt.Fprintf(b, `<rect x="%g" y="%g" width="%g" height="%g" fill="none" stroke="#999"/>`, pad, pad, size, size)
	fmt.Fprintf(b, `<text x="%g" y="%g" text-anchor="middle">%s</text>`, pad+size/2, pad+size+14, x)
	fmt.Fprintf(b, `<text x="%g" y="%g" text-anchor="middle" transform="rotate(-90 %g %g)">%s</text>`, pad-8, pad+size/2, pad-8, pad+size/2, y)
}

// histogramSVG draws both kinds' scores as shares, on a logarithmic axis where
// scores are positive and spread over more than a factor of 20.
func histogramSVG(normal, anomalous []float64) template.HTML {
	const size, pad, bins = 260.0, 34.0, 40
	lo, hi := math.Inf(1), math.Inf(-1)
	for _, s := range slices.Concat(normal, anomalous) {
		if !math.IsInf(s, 0) {
			lo, hi = min(lo, s), max(hi, s)
		}
	}
	log := lo > 0 && hi > 20*lo
	scale := func(s float64) float64 {
		if log {
			return math.Log(s)
		}
		return s
	}
	count := func(scores []float64) (h [bins]float64) {
		a, z := scale(lo), scale(hi)
		for _, s := range scores {
			i := bins - 1
			if z > a {
				i = min(bins-1, max(0, int((scale(s)-a)/(z-a)*bins)))
			}
			h[i] += 1 / float64(len(scores))
		}
		return h
	}
	n, a := count(normal), count(anomalous)
	top := max(slices.Max(n[:]), slices.Max(a[:]))
	var b strings.Builder
	fmt.Fprintf(&b, `<svg viewBox="0 0 %g %g" role="img" aria-label="histogram of the scores">`, size+2*pad, size+2*pad+28)
	name := "score"
	if log {
		name = "score, logarithmic"
	}
	axes(&b, size, pad, name, "share")
	for i, h := range [][bins]float64{n, a} {
		for j, v := range h {
			if v > 0 {
				fmt.Fprintf(&b, `<rect x="%.1f" y="%.1f" width="%.1f" height="%.1f" fill="%s" fill-opacity=".5"/>`,
					pad+float64(j)*size/bins, pad+size-v/top*size, size/bins, v/top*size, colours[i])
			}
		}
		y := 2*pad + size + 14*float64(i) + 6
		fmt.Fprintf(&b, `<rect x="%g" y="%g" width="20" height="9" fill="%s" fill-opacity=".5"/><text x="%g" y="%g">%s</text>`,
			pad, y-9, colours[i], pad+26, y, []string{"normal", "anomalous"}[i])
	}
	fmt.Fprintf(&b, `<text x="%g" y="%g">%.3g</text><text x="%g" y="%g" text-anchor="end">%.3g</text>`, pad, pad+size+14, lo, pad+size, pad+size+14, hi)
	b.WriteString(`</svg>`)
	return template.HTML(b.String())
}
