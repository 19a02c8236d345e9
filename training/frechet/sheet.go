package frechet

import (
	"image"
	"image/draw"

	xdraw "golang.org/x/image/draw"
	"golang.org/x/image/font"
	"golang.org/x/image/font/basicfont"
	"golang.org/x/image/math/fixed"
)

// Column is one column of a contact sheet.
type Column struct {
	Title  []string // lines above the images
	Images []image.Image
}

// Sheet draws a contact sheet: columns side by side, each under its title, as
// the paper's figure 3 does from noise to real images. Every image is drawn
// side×side pixels, without smoothing so that pixels stay visible. Columns may
// have different lengths; they are as wide as their widest title.
func Sheet(columns []Column, side int) *image.RGBA {
	const gap, line = 3, 13
	face := basicfont.Face7x13
	rows, lines, wide := 0, 0, side
	for _, c := range columns {
		rows, lines = max(rows, len(c.Images)), max(lines, len(c.Title))
		for _, s := range c.Title {
			wide = max(wide, font.MeasureString(face, s).Ceil()+gap)
		}
	}
	head := lines*line + 2*gap
	if lines == 0 {
		head = gap
	}
	out := image.NewRGBA(image.Rect(0, 0, len(columns)*(wide+gap)+gap, head+rows*(side+gap)))
	draw.Draw(out, out.Bounds(), image.White, image.Point{}, draw.Src)
	for i, c := range columns {
		x := gap + i*(wide+gap)
		for k, s := range c.Title {
			d := font.Drawer{Dst: out, Src: image.Black, Face: face, Dot: fixed.P(x, gap+10+k*line)}
			d.DrawString(s)
		}
		for k, im := range c.Images {
			y := head + k*(side+gap)
			xdraw.NearestNeighbor.Scale(out, image.Rect(x, y, x+side, y+side), im, im.Bounds(), xdraw.Src, nil)
		}
	}
	return out
}
