package report

import (
	"cmp"
	"context"
	_ "embed"
	"encoding/base64"
	"fmt"
	"html/template"
	"io"
	"path"
	"path/filepath"
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
	// Together is how many pictures that follow each other stay in one row; 0 means
	// one.
	Together int
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
	Name   string
	Plots  []template.HTML
	Misses []thumbView
	Alarms []thumbView
	Note   string
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
	Anomaly, AUROC, PRO, Covered, CoveredAUROC, CoveredPRO string
	Regions                                                int
}

type thumbView struct {
	Src     template.URL
	Caption string
	Alt     string
}

type sheetView struct {
	Title, Caption string
	Sets           [][]thumbView // each in one row
	Side           int           // 0: the page's own
}

// HTML writes one page that needs nothing else: styles, curves and small images
// are in it. Images are read again for their thumbnails; one that cannot be
// read is named without a picture.
func HTML(ctx context.Context, w io.Writer, p Page) error {
	p.Worst = cmp.Or(p.Worst, 12)
	p.Thumb = cmp.Or(p.Thumb, 96)
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
		var all []thumbView
		for _, q := range s.Pictures {
			src, err := thumb(q.Image, cmp.Or(s.Side, p.Thumb))
			if err != nil {
				return fmt.Errorf("sheet %s: %w", s.Title, err)
			}
			all = append(all, thumbView{Src: src, Caption: q.Caption, Alt: q.Caption})
		}
		sv.Sets = slices.Collect(slices.Chunk(all, max(s.Together, 1)))
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
		for to, v := range map[*string]float64{&p.AUROC: f.AUROC, &p.PRO: f.PRO, &p.Covered: f.Covered, &p.CoveredAUROC: f.CoveredAUROC, &p.CoveredPRO: f.CoveredPRO} {
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
			Name: run.Normal, Plots: []template.HTML{rocSVG(run), precisionSVG(run), histogramSVG(normal, anomalous)},
			Note: fmt.Sprintf("learnt from %d images, tested on %d normal and %d anomalous ones; AUROC %.2f %%",
				run.Train, len(normal), len(anomalous), 100*evaluate.AUROC(normal, anomalous)),
		}
		worst := slices.Clone(run.Scored)
		slices.SortStableFunc(worst, func(a, b evaluate.Scored) int {
			return cmp.Or(cmp.Compare(a.Score, b.Score), strings.Compare(a.Item.Name, b.Item.Name))
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
	t := thumbView{Caption: fmt.Sprintf("%s, %.4g: %s", s.Item.Label, s.Score, path.Base(filepath.ToSlash(s.Item.Name))), Alt: s.Item.Name}
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
