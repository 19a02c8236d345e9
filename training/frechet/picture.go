package frechet

import (
	"errors"
	"fmt"
	"image"
	"image/color"
	"image/draw"
	"io"
	"math"
	"strconv"

	xdraw "golang.org/x/image/draw"
	"golang.org/x/image/font"
	"golang.org/x/image/font/basicfont"
	"golang.org/x/image/math/fixed"
	"gonum.org/v1/plot"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/vg"
)

// WriteCurve writes a PNG of the distance to the normals over training steps,
// with the target and the step that was chosen, 0 for none.
func WriteCurve(w io.Writer, title string, probes []Probe, t Target, chosen int) error {
	if len(probes) == 0 {
		return errors.New("plot the curve of early stopping: no probes")
	}
	p := plot.New()
	p.Title.Text = title
	p.X.Label.Text = "training steps"
	p.X.Min, p.Y.Min = 0, 0
	p.X.Tick.Marker = wholeTicks{}
	p.Add(plotter.NewGrid())
	value, label := func(q Probe) float64 { return q.FD }, "Fréchet distance"
	if t.Kind == Ratio {
		value, label = func(q Probe) float64 { return q.Ratio }, "r, of the way from the normals to noise"
	}
	p.Y.Label.Text = label
	points := make(plotter.XYs, len(probes))
	copies := make(plotter.XYs, len(probes))
	var chosenAt plotter.XYs
	top := 0.0
	for i, q := range probes {
		v := value(q)
		if math.IsNaN(v) || math.IsInf(v, 0) {
			return fmt.Errorf("plot the curve of early stopping: the distance at step %d is not finite", q.Step)
		}
		points[i] = plotter.XY{X: float64(q.Step), Y: v}
		top = max(top, v)
		if q.Step == chosen && chosen > 0 {
			chosenAt = append(chosenAt, points[i])
		}
	}
	for i, q := range probes {
		copies[i] = plotter.XY{X: float64(q.Step), Y: q.Copies.Share * top}
	}
	line, dots, err := plotter.NewLinePoints(points)
	if err != nil {
		return fmt.Errorf("plot the curve of early stopping: %w", err)
	}
	line.Color, dots.Color = color.RGBA{R: 0x1f, G: 0x4e, B: 0x9c, A: 255}, color.RGBA{R: 0x1f, G: 0x4e, B: 0x9c, A: 255}
	p.Add(line, dots)
	p.Legend.Add(string(t.Kind), line, dots)
	share, err := plotter.NewLine(copies)
	if err != nil {
		return fmt.Errorf("plot the curve of early stopping: %w", err)
	}
	share.Color, share.Dashes = color.Gray{Y: 0x90}, []vg.Length{vg.Points(2), vg.Points(2)}
	p.Add(share)
	p.Legend.Add("copies, of all fakes (top of the axis: all)", share)
	if t.Kind != Steps {
		at := plotter.NewFunction(func(float64) float64 { return t.Value })
		at.Color, at.Dashes = color.RGBA{R: 0xb0, G: 0x30, B: 0x20, A: 255}, []vg.Length{vg.Points(5), vg.Points(3)}
		p.Add(at)
		p.Legend.Add("target "+t.String(), at)
	}
	if chosenAt != nil {
		s, err := plotter.NewScatter(chosenAt)
		if err != nil {
			return fmt.Errorf("plot the curve of early stopping: %w", err)
		}
		s.Color, s.Radius = color.RGBA{R: 0xb0, G: 0x30, B: 0x20, A: 255}, vg.Points(5)
		p.Add(s)
		p.Legend.Add(fmt.Sprintf("chosen: step %d", chosen), s)
	}
	p.Legend.Top = true
	p.X.Max = max(p.X.Max*1.03, 1)
	p.Y.Max = max(top, t.Value*boolTo(t.Kind != Steps)) * 1.05
	if p.Y.Max <= 0 {
		p.Y.Max = 1
	}
	to, err := p.WriterTo(6.5*vg.Inch, 4*vg.Inch, "png")
	if err != nil {
		return fmt.Errorf("plot the curve of early stopping: %w", err)
	}
	_, err = to.WriteTo(w)
	return err
}

// wholeTicks labels an axis of counts without decimals.
type wholeTicks struct{}

func (wholeTicks) Ticks(lo, hi float64) []plot.Tick {
	ticks := plot.DefaultTicks{}.Ticks(lo, hi)
	for i, t := range ticks {
		if t.Label != "" {
			ticks[i].Label = strconv.FormatFloat(t.Value, 'f', -1, 64)
		}
	}
	return ticks
}

func boolTo(b bool) float64 {
	if b {
		return 1
	}
	return 0
}

// Column is one column of a contact sheet.
type Column struct {
	Title  []string // lines above the images
	Images []image.Image
}

// Sheet draws a contact sheet: columns side by side, each under its title, as
// the paper's figure 3 does from noise to real images. Every image is drawn
// side×side pixels, without smoothing so that pixels stay visible. Columns may
// have different lengths.
func Sheet(columns []Column, side int) *image.RGBA {
	const gap, line = 3, 13
	rows, lines := 0, 0
	for _, c := range columns {
		rows, lines = max(rows, len(c.Images)), max(lines, len(c.Title))
	}
	head := lines*line + 2*gap
	if lines == 0 {
		head = gap
	}
	out := image.NewRGBA(image.Rect(0, 0, len(columns)*(side+gap)+gap, head+rows*(side+gap)))
	draw.Draw(out, out.Bounds(), image.White, image.Point{}, draw.Src)
	for i, c := range columns {
		x := gap + i*(side+gap)
		for k, s := range c.Title {
			d := font.Drawer{Dst: out.SubImage(image.Rect(x, 0, x+side, head)).(*image.RGBA), Src: image.Black, Face: basicfont.Face7x13, Dot: fixed.P(x, gap+10+k*line)}
			d.DrawString(s)
		}
		for k, im := range c.Images {
			y := head + k*(side+gap)
			xdraw.NearestNeighbor.Scale(out, image.Rect(x, y, x+side, y+side), im, im.Bounds(), xdraw.Src, nil)
		}
	}
	return out
}
