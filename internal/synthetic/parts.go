package synthetic

import (
	"math"

	"github.com/nearmiss/nearmiss/inference/imaging"
)

// part is one image of a machined part.
type part struct {
	c     *canvas
	d     design
	pose  pose
	lamp  lamp
	tone  float64 // brightness of the metal
	table rgb
	seed  uint64
	noise float64
	shade float64 // length of the shadow
	tilt  float64
	holes []float64
}

// pose is where a part lies in the image, the image being −1 … 1.
type pose struct {
	cx, cy   float64 // its middle
	scale    float64 // image units per part unit
	sin, cos float64 // of the angle by which it is turned
}

// lamp is the light on a part.
type lamp struct {
	from          [3]float64 // direction, of length 1
	power, warmth float64
}

func newPart(c *canvas, class int, r *rng, variation float64) scene {
	d := newDesign(class)
	p := &part{c: c, d: d, seed: r.next()}
	p.pose.cx, p.pose.cy = r.around(0.018*variation), r.around(0.018*variation)
	p.pose.scale = 0.80 * d.radius * (1 + r.around(0.008*variation))
	angle := r.around(0.05 * variation)
	if turn := r.unit() * 2 * math.Pi; d.free {
		angle = turn * min(variation, 1)
	}
	p.pose.sin, p.pose.cos = math.Sincos(angle)
	az := -2.2 + r.around(0.16*variation)
	el := 0.95 + r.around(0.05*variation)
	p.lamp.from = [3]float64{math.Cos(az) * math.Cos(el), math.Sin(az) * math.Cos(el), math.Sin(el)}
	p.lamp.power = 1 + r.around(0.045*variation)
	p.lamp.warmth = r.around(0.012 * variation)
	p.tone = 1 + r.around(0.03*variation)
	g := 0.115 + r.around(0.008*variation)
	p.table = rgb{g * 0.95, g, g * 1.12}
	p.noise = 0.9 + 0.5*r.unit()
	p.shade = 0.05 + 0.02*r.unit()
	p.tilt = r.around(0.02 * variation)
	p.holes = make([]float64, d.holes)
	p.fill(c.keepA, c.keepB, nil)
	return p
}

// fill computes the planes of distance and height.
func (p *part) fill(dist, height []float64, d *defect) {
	for i := range p.holes {
		p.holes[i] = 1
	}
	if d != nil {
		i := d.r.intn(len(p.holes))
		p.holes[i] = 1 - lerp(0.08, 0.62, d.amount)
		if d.amount > 0.5 {
			p.holes[i] = 0
		}
	}
	n := p.c.size
	px := 2 / float64(n)
	inv := 1 / p.pose.scale
	for y := range n {
		v := (float64(y)+0.5)*px - 1 - p.pose.cy
		for x := range n {
			u := (float64(x)+0.5)*px - 1 - p.pose.cx
			lx, ly := (u*p.pose.cos+v*p.pose.sin)*inv, (v*p.pose.cos-u*p.pose.sin)*inv
			dd, h := 9.0, 0.0
			if lx*lx+ly*ly < 1.8 {
				dd, h = p.d.shape.at(lx, ly, p.holes)
			} else {
				dd = math.Sqrt(lx*lx+ly*ly) - 1
			}
			dist[y*n+x], height[y*n+x] = dd*p.pose.scale, h*p.pose.scale
		}
	}
}

func (p *part) draw(dst *imaging.Image, d *defect) bool {
	c := p.c
	copy(c.a, c.keepA)
	copy(c.b, c.keepB)
	for i := range c.tint {
		c.tint[i] = rgb{1, 1, 1}
	}
	var over []strand
	if d != nil {
		switch d.kind {
		case "hole":
			if len(p.holes) == 0 {
				return false
			}
			p.fill(c.a, c.b, d)
		case "fibre":
			over = p.fibre(d)
		default:
			if !p.mar(d) {
				return false
			}
		}
	}
	p.render(dst)
	for _, s := range over {
		s.draw(dst)
	}
	finish(dst, 0.12, p.seed, p.noise*1.3) // blurred a little, as by a lens, with the sensor's noise
	return true
}

// spot looks for a pixel whose distance to the outline lies between lo and hi.
func (p *part) spot(r *rng, lo, hi float64) (x, y int, ok bool) {
	n := p.c.size
	for range 4000 {
		x, y = r.intn(n), r.intn(n)
		if v := p.c.a[y*n+x]; v >= lo && v <= hi {
			return x, y, true
		}
	}
	return 0, 0, false
}

// mar works a defect into the planes.
func (p *part) mar(d *defect) bool {
	n, r, c := p.c.size, d.r, p.c
	px := 2 / float64(n)
	amount := d.amount
	each := func(x0, y0 int, reach float64, f func(i int, u, v float64)) {
		k := int(reach/px) + 1
		for y := max(0, y0-k); y < min(n, y0+k+1); y++ {
			for x := max(0, x0-k); x < min(n, x0+k+1); x++ {
				f(y*n+x, float64(x-x0)*px, float64(y-y0)*px)
			}
		}
	}
	seed := r.next()
	switch d.kind {
	case "scratch", "crack":
		x0, y0, ok := p.spot(r, -9, -0.04)
		if !ok {
			return false
		}
		length := lerp(0.16, 0.85, amount)
		width := max(lerp(0.006, 0.016, amount), 0.6*px)
		jag, bend := 0.004, 0.12
		if d.kind == "crack" {
			length = lerp(0.12, 0.6, amount)
			width = max(lerp(0.005, 0.013, amount), 0.6*px)
			jag, bend = 0.03, 0.35
		}
		line := curve(r, length, bend, jag)
		sin, cos := math.Sincos(r.unit() * 2 * math.Pi)
		for i := range line {
			line[i][0], line[i][1] = line[i][0]*cos-line[i][1]*sin, line[i][0]*sin+line[i][1]*cos
		}
		strength := lerp(0.55, 1, amount)
		each(x0, y0, length*0.8+0.1, func(i int, u, v float64) {
			if c.a[i] > 0.01 {
				return
			}
			dist, t := along(line, u, v)
			taper := math.Sqrt(max(0, 4*t*(1-t)))
			w := width * (0.5 + 0.5*taper)
			if dist > 4*w {
				return
			}
			core := 1 - step(0.3*w, 1.2*w, dist)
			rim := step(0.6*w, 1.4*w, dist) * (1 - step(1.6*w, 2.6*w, dist))
			if d.kind == "crack" {
				c.b[i] -= 0.5 * w * core
				f := 1 - 0.82*core*strength
				c.tint[i] = rgb{c.tint[i][0] * f, c.tint[i][1] * f, c.tint[i][2] * f}
				return
			}
			c.b[i] += (-1.1*core + 0.4*rim) * w * strength
			f := 1 + (0.55*core-0.1*rim)*strength*(0.75+0.25*noise1(seed, 40*t))
			c.tint[i] = rgb{c.tint[i][0] * f, c.tint[i][1] * f, c.tint[i][2] * f}
		})
	case "dent":
		x0, y0, ok := p.spot(r, -9, -0.05)
		if !ok {
			return false
		}
		size := lerp(0.045, 0.15, amount)
		depth := size * lerp(0.20, 0.42, amount)
		stretch := r.between(0.6, 1)
		sin, cos := math.Sincos(r.unit() * math.Pi)
		each(x0, y0, 2.6*size, func(i int, u, v float64) {
			a, b := u*cos+v*sin, (v*cos-u*sin)/stretch
			q := (a*a + b*b) / (size * size)
			c.b[i] += depth * (-expNeg(1.6*q) + 0.25*expNeg(2.5*(math.Sqrt(q)-1.25)*(math.Sqrt(q)-1.25)*4))
		})
	case "chip", "burr":
		x0, y0, ok := p.spot(r, -0.012, 0.004)
		if !ok {
			return false
		}
		size := lerp(0.035, 0.17, amount)
		if d.kind == "burr" {
			size = lerp(0.03, 0.10, amount)
		}
		each(x0, y0, 2*size, func(i int, u, v float64) {
			rad := math.Sqrt(u*u + v*v)
			edge := rad - size*(1+0.35*cloud(seed, u/size*1.7, v/size*1.7, 3))
			if d.kind == "chip" {
				// broken away: the outline retreats, the break slopes down to it
				if depth := 0.5*size - edge; depth > 0 && c.a[i] < 0.02 {
					c.b[i] -= 0.35 * min(depth, size) * (0.8 + 0.5*cloud(seed+1, u/size*6, v/size*6, 2))
					f := 1 - 0.25*step(0, 0.3*size, depth)
					c.tint[i] = c.tint[i].times(f)
				}
				c.a[i] = max(c.a[i], -edge)
				return
			}
			if edge < c.a[i] {
				c.b[i] -= 0.02
				c.a[i] = edge
			}
			if edge < 0.5*size && c.a[i] < 0 { // torn metal
				c.b[i] += 0.10 * size * cloud(seed+2, u/size*5, v/size*5, 3) * (1 - step(0, 0.5*size, edge))
			}
		})
	case "stain", "tint":
		x0, y0, ok := p.spot(r, -9, -0.03)
		if !ok {
			return false
		}
		size := lerp(0.06, 0.28, amount)
		color, soft := rgb{0.62, 0.36, 0.20}, 0.25 // rust
		switch r.intn(3) {
		case 0:
			color = rgb{0.30, 0.27, 0.24} // oil
		case 1:
			color = rgb{0.55, 0.50, 0.42} // dried coolant
		}
		strength := lerp(0.40, 0.95, amount)
		if d.kind == "tint" { // heat: straw, purple, blue
			size, soft = lerp(0.16, 0.5, amount), 0.9
			color = []rgb{{1.02, 0.80, 0.48}, {0.80, 0.56, 0.80}, {0.58, 0.72, 1.08}}[r.intn(3)]
			strength = lerp(0.38, 0.9, amount)
		}
		each(x0, y0, 2*size, func(i int, u, v float64) {
			rad := math.Sqrt(u*u+v*v) / size
			rad -= 0.45 * cloud(seed, u/size*1.5, v/size*1.5, 4)
			cover := (1 - step(1-soft, 1, rad)) * strength
			if d.kind == "stain" {
				cover *= 0.75 + 0.25*cloud(seed+3, u*30, v*30, 2)
				cover += 0.25 * strength * step(0.72, 0.85, rad) * (1 - step(0.95, 1.02, rad)) // a dried edge
			}
			cover = clamp(cover, 0, 1)
			for k := range 3 {
				c.tint[i][k] *= 1 + (color[k]-1)*cover
			}
		})
	}
	return true
}

// curve draws a path of the given length around the origin.
func curve(r *rng, length, bend, jag float64) [][2]float64 {
	const n = 14
	out := make([][2]float64, n)
	turn := r.around(bend)
	a := -turn * n / 2 * 0.2
	x, y := 0.0, 0.0
	for i := range out {
		out[i] = [2]float64{x + r.around(jag), y + r.around(jag)}
		s, c := math.Sincos(a)
		x += length / (n - 1) * c
		y += length / (n - 1) * s
		a += turn*0.2 + r.around(bend*0.4)
	}
	mx, my := out[n/2][0], out[n/2][1]
	for i := range out {
		out[i][0] -= mx
		out[i][1] -= my
	}
	return out
}

// along returns the distance of a point to a path and where on the path, 0 to
// 1, it is closest.
func along(line [][2]float64, x, y float64) (dist, t float64) {
	best := math.Inf(1)
	for i := range len(line) - 1 {
		ax, ay := line[i][0], line[i][1]
		bx, by := line[i+1][0]-ax, line[i+1][1]-ay
		u := clamp(((x-ax)*bx+(y-ay)*by)/(bx*bx+by*by+1e-12), 0, 1)
		dx, dy := x-ax-u*bx, y-ay-u*by
		if d := dx*dx + dy*dy; d < best {
			best, t = d, (float64(i)+u)/float64(len(line)-1)
		}
	}
	return math.Sqrt(best), t
}

// render shades the planes into dst, linear light stored as the display's
// square root.
func (p *part) render(dst *imaging.Image) {
	n := p.c.size
	px := 2 / float64(n)
	dist, height := p.c.a, p.c.b
	bevel := p.d.bevel * p.pose.scale
	// The half vector between light and camera, for highlights.
	hx, hy, hz := p.lamp.from[0], p.lamp.from[1], p.lamp.from[2]+1
	hl := 1 / math.Sqrt(hx*hx+hy*hy+hz*hz)
	hx, hy, hz = hx*hl, hy*hl, hz*hl

	// The bevel lowers the surface towards the outline.
	surface := p.c.gray
	for i, d := range dist {
		t := 1 - clamp(-d/bevel, -0.4, 1)
		surface[i] = height[i] - bevel*0.55*t*t
	}
	// The shadow falls away from the light.
	shx, shy := int(math.Round(p.lamp.from[0]*p.shade/px)), int(math.Round(p.lamp.from[1]*p.shade/px))
	at := func(x, y int) float64 {
		return dist[min(max(y, 0), n-1)*n+min(max(x, 0), n-1)]
	}
	grit := 0.16 * p.d.grit
	for y := range n {
		v := (float64(y)+0.5)*px - 1
		for x := range n {
			i := y*n + x
			u := (float64(x)+0.5)*px - 1
			d := dist[i]
			cover := 1 - step(-0.7*px, 0.7*px, d)
			var under rgb
			if cover < 1 {
				tex := 1 + 0.10*noise(p.seed^0x7ab1e, u*45, v*45) + 0.10*noise(p.seed^0x7ab1f, u*5, v*5)
				lit := 0.5*(step(-0.035, 0.05, at(x+shx, y+shy))+step(-0.05, 0.08, at(x+2*shx/3, y+2*shy/3))) + 0.0
				contact := 0.55 + 0.45*step(0, 0.10, d)
				fall := 1.12 - 0.22*(u*u+v*v) + 0.18*(u*p.lamp.from[0]+v*p.lamp.from[1])
				under = p.table.times(tex * fall * contact * (0.35 + 0.65*lit))
			}
			if cover > 0 {
				x0, x1, y0, y1 := max(x-1, 0), min(x+1, n-1), max(y-1, 0), min(y+1, n-1)
				nx := -(surface[y*n+x1] - surface[y*n+x0]) / (float64(x1-x0) * px)
				ny := -(surface[y1*n+x] - surface[y0*n+x]) / (float64(y1-y0) * px)
				lx := ((u-p.pose.cx)*p.pose.cos + (v-p.pose.cy)*p.pose.sin) / p.pose.scale
				ly := ((v-p.pose.cy)*p.pose.cos - (u-p.pose.cx)*p.pose.sin) / p.pose.scale
				// Tool marks tilt the surface across their direction (tx, ty).
				var tx, ty, mark, aniso float64
				switch p.d.brush {
				case turned:
					rad := math.Sqrt(lx*lx+ly*ly) + 1e-9
					tx, ty = -ly/rad, lx/rad
					mark = noise1(p.seed^0x1a7e, rad*p.d.pitch) + 0.6*noise(p.seed^0x1a7f, rad*p.d.pitch*2.3, 3*tx)
					aniso = 0.8
				case milled:
					tx, ty = 0.9950041652780258, 0.09983341664682815
					across := -lx*ty + ly*tx
					mark = noise1(p.seed^0x1a7e, across*p.d.pitch) + 0.7*noise(p.seed^0x1a7f, across*p.d.pitch*2.1, (lx*tx+ly*ty)*2.5)
					aniso = 0.7
				default:
					mark = 1.2 * noise(p.seed^0x1a7e, lx*p.d.pitch*0.8, ly*p.d.pitch*0.8)
					tx, ty = 0.7071067811865476, 0.7071067811865476
					aniso = 0.15
				}
				// back to the image's directions
				tx, ty = tx*p.pose.cos-ty*p.pose.sin, tx*p.pose.sin+ty*p.pose.cos
				nx += -ty*mark*grit + p.tilt
				ny += tx * mark * grit
				nl := 1 / math.Sqrt(nx*nx+ny*ny+1)
				nx, ny = nx*nl, ny*nl
				nz := nl

				diffuse := max(0, nx*p.lamp.from[0]+ny*p.lamp.from[1]+nz*p.lamp.from[2])
				nh := max(0, nx*hx+ny*hy+nz*hz)
				s := nh * nh
				s *= s
				s *= s
				s *= s // 16
				th := tx*hx + ty*hy
				along := max(0, 1-th*th)
				along *= along
				along *= along
				along *= along
				along *= along // 32: a streak across the tool marks
				spec := (1-aniso)*s*s + aniso*along*s
				// A soft box above: brighter where the surface looks up the image.
				rx, ry := 2*nz*nx, 2*nz*ny
				box := step(-0.1, 0.9, -ry+0.3*rx)
				k := (0.22 + 0.66*diffuse + 0.26*box) * p.tone
				k *= 1 + 0.03*noise(p.seed^0xc10d, lx*2.5, ly*2.5)
				// Deep places see less light.
				k *= clamp(1+1.6*height[i], 0.25, 1)
				if d > -0.03 { // and so do the edges
					k *= 0.86 + 0.14*step(-0.03, 0, -d-0.004)
				}
				tint := p.c.tint[i]
				top := rgb{}
				for c := range 3 {
					top[c] = (p.d.metal[c]*k + 0.75*p.d.gloss*spec*lerp(1, p.d.metal[c], 0.4)) * tint[c]
				}
				under = mixRGB(under, top, cover)
			}
			j := 3 * i
			for c := range 3 {
				w := p.lamp.power * (1 + p.lamp.warmth*float64(1-c))
				dst.Pix[j+c] = uint8(clamp(255*under[c]*w, 0, 255))
			}
		}
	}
}

// finish blurs with the kernel (s, 1−2s, s) in both directions and adds noise
// of the given standard deviation in levels.
func finish(m *imaging.Image, s float64, seed uint64, sigma float64) {
	n, h := m.Width, m.Height
	a, b := int32(s*1024+0.5), int32(1024)-2*int32(s*1024+0.5)
	src := m.Clone().Pix
	stride := 3 * n
	for y := range h {
		up, down := max(y-1, 0)*stride, min(y+1, h-1)*stride
		row := y * stride
		for x := range n {
			l, r := max(x-1, 0)*3, min(x+1, n-1)*3
			g0, g1, g2 := grain(seed^0x6a17, y*n+x)
			for c, g := range [3]float64{g0, g1, g2} {
				at := func(base int) int32 {
					return a*(int32(src[base+l+c])+int32(src[base+r+c])) + b*int32(src[base+3*x+c])
				}
				v := a*(at(up)+at(down)) + b*at(row) // 20 fractional bits
				f := float64(v)/(1<<20) + sigma*g
				m.Pix[row+3*x+c] = uint8(clamp(f+0.5, 0, 255))
			}
		}
	}
}

// strand is a thread that lies on the picture.
type strand struct {
	line         [][2]float64
	x, y         float64
	width        float64
	color        rgb
	opacity      float64
	shadeX, shdY float64
}

func (p *part) fibre(d *defect) []strand {
	r := d.r
	length := lerp(0.22, 1.0, d.amount)
	s := strand{
		line: curve(r, length, 0.9, 0.004), width: max(lerp(0.007, 0.014, d.amount), 1.1/float64(p.c.size)),
		x: p.pose.cx + r.around(0.3), y: p.pose.cy + r.around(0.3), opacity: lerp(0.5, 0.92, d.amount),
		color: []rgb{{0.75, 0.72, 0.66}, {0.12, 0.12, 0.15}, {0.55, 0.14, 0.12}, {0.15, 0.25, 0.55}}[r.intn(4)],
	}
	sin, cos := math.Sincos(r.unit() * 2 * math.Pi)
	for i, q := range s.line {
		s.line[i] = [2]float64{q[0]*cos - q[1]*sin, q[0]*sin + q[1]*cos}
	}
	s.shadeX, s.shdY = -p.lamp.from[0]*0.02, -p.lamp.from[1]*0.02
	return []strand{s}
}

func (s strand) draw(dst *imaging.Image) {
	n := dst.Width
	px := 2 / float64(n)
	x0, y0, x1, y1 := 1.0, 1.0, -1.0, -1.0
	for _, q := range s.line {
		x0, x1 = min(x0, s.x+q[0]), max(x1, s.x+q[0])
		y0, y1 = min(y0, s.y+q[1]), max(y1, s.y+q[1])
	}
	pad := 0.05
	for y := max(0, int((y0-pad+1)/px)); y < min(n, int((y1+pad+1)/px)); y++ {
		for x := max(0, int((x0-pad+1)/px)); x < min(n, int((x1+pad+1)/px)); x++ {
			u, v := (float64(x)+0.5)*px-1-s.x, (float64(y)+0.5)*px-1-s.y
			shadow, _ := along(s.line, u-s.shadeX, v-s.shdY)
			dist, _ := along(s.line, u, v)
			dark := 1 - 0.45*s.opacity*(1-step(0.3*s.width, 2.2*s.width, shadow))
			cover := s.opacity * (1 - step(s.width-0.6*px, s.width+0.6*px, dist))
			round := 1.15 - 0.5*dist/s.width
			for c := range 3 {
				i := 3*(y*n+x) + c
				under := float64(dst.Pix[i]) * dark
				dst.Pix[i] = uint8(clamp(lerp(under, 255*s.color[c]*round, cover), 0, 255))
			}
		}
	}
}
