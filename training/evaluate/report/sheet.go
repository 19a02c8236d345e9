package report

import (
	"cmp"
	"context"
	"fmt"
	"image"
	"image/color"
	"image/draw"
	"maps"
	"path"
	"path/filepath"
	"slices"

	"golang.org/x/image/font"
	"golang.org/x/image/font/basicfont"
	"golang.org/x/image/math/fixed"

	"github.com/nearmiss/nearmiss/inference/heatmap"
	"github.com/nearmiss/nearmiss/inference/imaging"
	"github.com/nearmiss/nearmiss/training/evaluate"
)

// HeatmapOptions choose what is shown of a run's maps. The zero value of a field
// means its default.
type HeatmapOptions struct {
	// PerKind anomalies of each kind and Normals normal images are shown, evenly
	// spread by rank from the lowest score to the highest: neither the best nor the
	// worst are picked. Default 3 and 4.
	PerKind, Normals int
	// Side is the longer side of each picture in pixels. Default 160.
	Side int
	// WithoutImages shows heat and the outline of the ground truth only, for data
	// that may not be passed on.
	WithoutImages bool
}

func (o HeatmapOptions) withDefaults() HeatmapOptions {
	o.PerKind = cmp.Or(o.PerKind, 3)
	o.Normals = cmp.Or(o.Normals, 4)
	o.Side = cmp.Or(o.Side, 160)
	return o
}

// shown is one image of a run that was chosen.
type shown struct {
	evaluate.Scored
	rank, of int // by score among its kind, from 1
}

func (s shown) caption() string {
	return fmt.Sprintf("%s %d of %d: %s", s.Item.Label, s.rank, s.of, path.Base(filepath.ToSlash(s.Item.Name)))
}

// choose takes the images that are shown: anomalies by kind, then normal ones.
func choose(run evaluate.Run, o HeatmapOptions) (out []shown) {
	kinds := map[string][]evaluate.Scored{}
	for _, s := range run.Scored {
		if s.Grid != nil {
			kinds[s.Item.Label] = append(kinds[s.Item.Label], s)
		}
	}
	names := slices.Sorted(maps.Keys(kinds))
	slices.SortStableFunc(names, func(a, b string) int { // the normal class last
		return b2i(a == run.Normal) - b2i(b == run.Normal)
	})
	for _, name := range names {
		all := kinds[name]
		slices.SortStableFunc(all, func(a, b evaluate.Scored) int { return cmp.Compare(a.Score, b.Score) })
		n := o.PerKind
		if name == run.Normal {
			n = o.Normals
		}
		n = min(n, len(all))
		for i := range n {
			at := (len(all) - 1) / 2
			if n > 1 {
				at = i * (len(all) - 1) / (n - 1)
			}
			out = append(out, shown{all[at], at + 1, len(all)})
		}
	}
	return out
}

func b2i(b bool) int {
	if b {
		return 1
	}
	return 0
}

// panels are the pictures of one image: frame, frame with heat and regions, and
// ground truth; or, without images, the heat with the ground truth's outline.
func panels(run evaluate.Run, s shown, o HeatmapOptions) ([]*imaging.Image, error) {
	frame, err := decodeItem(s.Item)
	if err != nil {
		return nil, fmt.Errorf("heatmap of %s: %w", s.Item.Name, err)
	}
	m, err := run.Places.Map(s.Scored, frame.Width, frame.Height)
	if err != nil {
		return nil, err
	}
	mask, w, h, err := s.Item.ReadMask()
	if err != nil {
		return nil, err
	}
	if mask != nil && (w != frame.Width || h != frame.Height) {
		return nil, fmt.Errorf("heatmap of %s: %d×%d pixels, its mask has %d×%d", s.Item.Name, frame.Width, frame.Height, w, h)
	}
	// Faded, with what is wrong in blue. Where nothing is known it stays empty, and
	// says so.
	truth := heatmap.Thumbnail(frame, o.Side).Clone()
	inside := make([]bool, truth.Width*truth.Height)
	marked := slices.ContainsFunc(mask, func(v uint8) bool { return v != 0 })
	for i := range inside {
		x, y := i%truth.Width, i/truth.Width
		p := truth.Pix[3*i:][:3:3]
		inside[i] = marked && covers(mask, frame.Width, frame.Height, truth.Width, truth.Height, x, y)
		for c, ink := range [3]uint8{40, 120, 255} {
			p[c] = uint8(170 + int(p[c])/3)
			if inside[i] {
				p[c] = uint8((int(p[c]) + 3*int(ink)) / 4)
			}
		}
	}
	if !marked {
		truth = blank(truth.Width, truth.Height, map[bool]string{true: "no mask", false: "normal"}[s.Anomalous])
	}
	if o.WithoutImages {
		heat := m.Picture(o.Side)
		outline(heat, inside)
		return []*imaging.Image{heat}, nil
	}
	regions := m.Find(8)
	if !s.Anomalous { // the hottest place of a normal image means nothing
		regions = slices.DeleteFunc(regions, func(r heatmap.Region) bool { return r.Faint })
	}
	over, err := m.Overlay(frame, regions, o.Side)
	if err != nil {
		return nil, err
	}
	return []*imaging.Image{heatmap.Thumbnail(frame, o.Side), over, truth}, nil
}

// blank is a light panel with a few words.
func blank(w, h int, text string) *imaging.Image {
	m := image.NewRGBA(image.Rect(0, 0, w, h))
	draw.Draw(m, m.Bounds(), image.NewUniform(color.Gray{238}), image.Point{}, draw.Src)
	write(m, max(2, (w-7*len(text))/2), h/2+4, text)
	return imaging.FromImage(m)
}

// covers says whether any marked pixel lies below pixel (x, y) of a picture that
// is smaller: a hole of few pixels must not vanish.
func covers(mask []uint8, w, h, smallW, smallH, x, y int) bool {
	for j := y * h / smallH; j < max((y+1)*h/smallH, y*h/smallH+1); j++ {
		for i := x * w / smallW; i < max((x+1)*w/smallW, x*w/smallW+1); i++ {
			if mask[j*w+i] != 0 {
				return true
			}
		}
	}
	return false
}

// outline draws the border of what is inside, in a blue that heat has not.
func outline(m *imaging.Image, inside []bool) {
	at := func(x, y int) bool {
		return x >= 0 && y >= 0 && x < m.Width && y < m.Height && inside[y*m.Width+x]
	}
	for i, in := range inside {
		x, y := i%m.Width, i/m.Width
		if in && !(at(x-1, y) && at(x+1, y) && at(x, y-1) && at(x, y+1)) {
			m.SetRGB(x, y, 0, 110, 255)
		}
	}
}

// HeatmapSheet is a contact sheet of a run's maps for an HTML page. A run without
// maps gives a sheet without pictures.
func HeatmapSheet(ctx context.Context, run evaluate.Run, o HeatmapOptions) (Sheet, error) {
	o = o.withDefaults()
	sheet := Sheet{Title: "Where images are unlike the normal ones (" + run.Normal + ")", Caption: explanation(run, o), Side: o.Side, Together: 3}
	if o.WithoutImages {
		sheet.Together = 1
	}
	for _, s := range choose(run, o) {
		if err := ctx.Err(); err != nil {
			return sheet, err
		}
		ps, err := panels(run, s, o)
		if err != nil {
			return sheet, err
		}
		for i, p := range ps {
			what := []string{s.caption(), fmt.Sprintf("score %.4g", s.Score), "ground truth"}[i]
			sheet.Pictures = append(sheet.Pictures, Picture{p, what})
		}
	}
	return sheet, nil
}

func explanation(run evaluate.Run, o HeatmapOptions) string {
	text := "Images are spread evenly by rank of their scores within their kind. "
	if o.WithoutImages {
		text += "Heat, with the ground truth's outline in blue. "
	} else {
		text += "Each with its heat and regions (broken lines: no hotter than many normals), and the ground truth in blue. "
	}
	if run.Places != nil && run.Places.Scale != nil {
		text += fmt.Sprintf("Heat begins where one patch in %.0f of the tested normals is, and is full at one in %.0f, above which 5 %% of them have a region. Dark borders are not looked at.",
			1/heatmap.PValue(0.6*run.Places.Scale.Threshold), 1/heatmap.PValue(run.Places.Scale.Threshold))
	}
	return text
}

// Sizes of a contact sheet, in pixels.
const (
	gap      = 6
	line     = 15 // of text
	perSheet = 2  // images beside each other, each with its panels
)

// ContactSheet draws the same as one picture. It fails for a run without maps.
func ContactSheet(ctx context.Context, run evaluate.Run, o HeatmapOptions) (*imaging.Image, error) {
	o = o.withDefaults()
	all := choose(run, o)
	if len(all) == 0 {
		return nil, fmt.Errorf("contact sheet: the method says nowhere where images are strange: it takes a score with patches")
	}
	perImage, across := 3, perSheet
	if o.WithoutImages {
		perImage, across = 1, 3*perSheet
	}
	cell := o.Side + gap
	width := across*(perImage*cell+gap) + gap
	room := (perImage*cell - gap) / 7 // characters above an image
	// A row is as high as its highest picture.
	var pictures [][]*imaging.Image
	heights := make([]int, (len(all)+across-1)/across)
	for i, s := range all {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		ps, err := panels(run, s, o)
		if err != nil {
			return nil, err
		}
		pictures = append(pictures, ps)
		for _, p := range ps {
			heights[i/across] = max(heights[i/across], p.Height)
		}
	}
	y := 2*line + gap
	height := y
	for _, h := range heights {
		height += h + line + 2*gap
	}
	sheet := image.NewRGBA(image.Rect(0, 0, width, height+2*line))
	draw.Draw(sheet, sheet.Bounds(), image.White, image.Point{}, draw.Src)
	title := "Where images are unlike the normal ones (" + run.Normal + ")"
	if perImage > 1 {
		title += ": image, heat and regions, ground truth"
	}
	write(sheet, gap, line, shorten(title, (width-2*gap)/7))
	for i, s := range all {
		if i%across == 0 && i > 0 {
			y += heights[i/across-1] + line + 2*gap
		}
		x := gap + i%across*(perImage*cell+gap)
		caption := s.caption()
		if perImage > 1 { // there is room for it
			caption = fmt.Sprintf("%.3g  %s", s.Score, caption)
		}
		write(sheet, x, y+line-4, shorten(caption, room))
		for j, p := range pictures[i] {
			at := image.Pt(x+j*cell, y+line)
			draw.Draw(sheet, image.Rectangle{Min: at, Max: at.Add(image.Pt(p.Width, p.Height))}, p.RGBA(), image.Point{}, draw.Src)
		}
	}
	y = height + line - gap
	if scale := run.Places.Scale; scale != nil {
		bar := heatmap.Bar(scale.Threshold, 256, line-3)
		draw.Draw(sheet, image.Rect(gap, y-line+5, gap+256, y+2), bar.RGBA(), image.Point{}, draw.Src)
		write(sheet, gap+256+gap, y, "intensity 0 to 0.75")
		write(sheet, gap, y+line, fmt.Sprintf("full heat: one normal patch in %.0f", 1/heatmap.PValue(scale.Threshold)))
	}
	return imaging.FromImage(sheet), nil
}

// shorten keeps so many characters of a text that is too long, the first and the
// last.
func shorten(text string, most int) string {
	r := []rune(text)
	if len(r) <= most || most < 8 {
		return text
	}
	tail := most / 2
	return string(r[:most-tail-2]) + ".." + string(r[len(r)-tail:])
}

func write(to draw.Image, x, y int, text string) {
	d := font.Drawer{Dst: to, Src: image.NewUniform(color.Gray{40}), Face: basicfont.Face7x13, Dot: fixed.P(x, y)}
	d.DrawString(text)
}
