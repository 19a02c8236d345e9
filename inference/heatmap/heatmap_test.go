package heatmap

import (
	"bytes"
	"encoding/json"
	"image"
	"image/jpeg"
	"image/png"
	"math"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/nearmiss/nearmiss/inference/imaging"
)

func preprocess() imaging.Preprocess {
	half := [3]float64{0.5, 0.5, 0.5}
	return imaging.Preprocess{Resize: 248, Crop: 224, Interpolation: imaging.Bicubic, Mean: half, Std: half}
}

// drawPreprocess draws every way in which an image can become a model's input.
func drawPreprocess(t *rapid.T) imaging.Preprocess {
	p := preprocess()
	p.Crop = rapid.SampledFrom([]int{32, 64, 224}).Draw(t, "crop")
	p.Resize = p.Crop + rapid.IntRange(0, 40).Draw(t, "margin")
	p.Squash = rapid.Bool().Draw(t, "squash")
	p.Torchvision = rapid.Bool().Draw(t, "torchvision")
	if rapid.Bool().Draw(t, "view") {
		x, y := rapid.Float64Range(0, 0.5).Draw(t, "x"), rapid.Float64Range(0, 0.5).Draw(t, "y")
		p.View = &imaging.View{Region: &imaging.Rect{
			X: x, Y: y, Width: rapid.Float64Range(0.3, 1-x).Draw(t, "width"), Height: rapid.Float64Range(0.3, 1-y).Draw(t, "height"),
		}}
		if rapid.Bool().Draw(t, "ignore") {
			p.View.Ignore = []imaging.Rect{{X: 0.4, Y: 0.4, Width: 0.2, Height: 0.3}}
		}
	}
	return p
}

func TestPixelsAndPatchesFindEachOther(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		p := drawPreprocess(t)
		w, h := rapid.IntRange(40, 900).Draw(t, "w"), rapid.IntRange(40, 900).Draw(t, "h")
		columns, rows := rapid.IntRange(1, 30).Draw(t, "columns"), rapid.IntRange(1, 30).Draw(t, "rows")
		g := GeometryOf(p, w, h)
		if err := g.Validate(); err != nil {
			t.Fatal(err)
		}
		x, y := rapid.IntRange(0, w-1).Draw(t, "px"), rapid.IntRange(0, h-1).Draw(t, "py")
		c, r, ok := g.Patch(columns, rows, x, y)
		cx, cy := float64(x)+0.5, float64(y)+0.5
		inside := cx >= g.X0 && cx < g.X1 && cy >= g.Y0 && cy < g.Y1
		if ok != inside {
			t.Fatalf("pixel %d,%d: ok %v, but inside is %v of %+v", x, y, ok, inside, g)
		}
		if !ok {
			return
		}
		const eps = 1e-6
		x0, y0, x1, y1 := g.Rect(columns, rows, c, r)
		if cx < x0-eps || cx > x1+eps || cy < y0-eps || cy > y1+eps {
			t.Fatalf("pixel %d,%d is in patch %d,%d, which is %g,%g to %g,%g", x, y, c, r, x0, y0, x1, y1)
		}
	})
}

// What the model sees at a place of its input is what the frame shows at the
// place that the geometry names: one white square in a black frame, through the
// real preprocessing, EXIF orientation included.
func TestAPixelOfTheFrameIsInThePatchWhereTheModelSeesIt(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		p := drawPreprocess(t)
		w, h := rapid.IntRange(90, 500).Draw(t, "w"), rapid.IntRange(90, 500).Draw(t, "h")
		orientation := rapid.IntRange(1, 8).Draw(t, "orientation")
		g := GeometryOf(p, w, h)
		const columns, rows = 14, 14
		c, r := rapid.IntRange(0, columns-1).Draw(t, "c"), rapid.IntRange(0, rows-1).Draw(t, "r")
		x0, y0, x1, y1 := g.Rect(columns, rows, c, r)
		square := image.Rect(int(x0), int(y0), int(math.Ceil(x1)), int(math.Ceil(y1)))
		for _, q := range g.Ignored {
			if q.Overlaps(square) {
				t.Skip("painted over")
			}
		}
		frame := imaging.New(w, h)
		for y := max(square.Min.Y, 0); y < min(square.Max.Y, h); y++ {
			for x := max(square.Min.X, 0); x < min(square.Max.X, w); x++ {
				frame.SetRGB(x, y, 255, 255, 255)
			}
		}
		dst := make([]uint8, p.Bytes())
		header, err := p.Apply(oriented(t, frame, orientation), imaging.Limits{}, dst)
		if err != nil {
			t.Fatal(err)
		}
		if header.Width != w || header.Height != h {
			t.Fatalf("upright size %d×%d, want %d×%d", header.Width, header.Height, w, h)
		}
		// The brightness's middle in the model's input.
		var sum, sx, sy float64
		for i := 0; i < len(dst); i += 3 {
			if v := float64(dst[i]); v > 160 { // ignored parts are grey, and bicubic filters overshoot
				sum += v
				sx += v * (float64(i/3%p.Crop) + 0.5)
				sy += v * (float64(i/3/p.Crop) + 0.5)
			}
		}
		patch := float64(p.Crop) / columns
		dx, dy := sx/sum-(float64(c)+0.5)*patch, sy/sum-(float64(r)+0.5)*patch
		// The square is rounded outwards by up to a pixel on each side, cut at the
		// frame's border, and blurred by the resize.
		pw, ph := patch/(x1-x0), patch/(y1-y0) // input pixels a frame pixel
		if sum == 0 || math.Abs(dx) > 1+pw || math.Abs(dy) > 1+ph {
			t.Fatalf("patch %d,%d of %+v is seen %g,%g input pixels off (light %g)", c, r, g, dx, dy, sum)
		}
	})
}

// oriented is a JPEG file that is stored turned and says so in its EXIF data.
func oriented(t *rapid.T, upright *imaging.Image, orientation int) []byte {
	stored := upright
	switch orientation {
	case 2:
		stored = upright.FlipHorizontal()
	case 3:
		stored = upright.Rotate90(2)
	case 4:
		stored = upright.FlipVertical()
	case 5:
		stored = upright.Rotate90(1).FlipHorizontal()
	case 6:
		stored = upright.Rotate90(3)
	case 7:
		stored = upright.Rotate90(3).FlipHorizontal()
	case 8:
		stored = upright.Rotate90(1)
	}
	var buf bytes.Buffer
	if err := jpeg.Encode(&buf, stored.RGBA(), &jpeg.Options{Quality: 100}); err != nil {
		t.Fatal(err)
	}
	exif := []byte("Exif\x00\x00MM\x00*\x00\x00\x00\x08\x00\x01\x01\x12\x00\x03\x00\x00\x00\x01\x00" + string(rune(orientation)) + "\x00\x00\x00\x00\x00\x00")
	b := buf.Bytes()
	app1 := append([]byte{0xff, 0xe1, 0, byte(len(exif) + 2)}, exif...)
	return slices.Concat(b[:2], app1, b[2:])
}

func TestAHotPatchIsHotInTheMiddleOfItsPartOfTheFrame(t *testing.T) {
	for name, size := range map[string][2]int{"landscape": {640, 300}, "portrait": {210, 700}, "square": {333, 333}} {
		t.Run(name, func(t *testing.T) {
			geo := GeometryOf(preprocess(), size[0], size[1])
			g := NewGrid(14, 14)
			g.Values[5*14+9] = 1
			m, err := New(g, nil, geo)
			if err != nil {
				t.Fatal(err)
			}
			_, x, y, ok := m.Peak()
			x0, y0, x1, y1 := geo.Rect(14, 14, 9, 5)
			if !ok || math.Abs(float64(x)+0.5-(x0+x1)/2) > 0.2*(x1-x0) || math.Abs(float64(y)+0.5-(y0+y1)/2) > 0.2*(y1-y0) {
				t.Errorf("the peak is at %d,%d, the patch is %g,%g to %g,%g", x, y, x0, y0, x1, y1)
			}
			if c, r, ok := geo.Patch(14, 14, x, y); !ok || c != 9 || r != 5 {
				t.Errorf("the peak is in patch %d,%d", c, r)
			}
			none := 0
			for i, v := range m.Pixels(-1) {
				_, ok := m.At(i%m.Width, i/m.Width)
				if in := (image.Point{X: i % m.Width, Y: i / m.Width}).In(geo.Covered()); in != ok || in == (v < 0) {
					t.Fatalf("pixel %d has the value %v", i, v)
				}
				if v < 0 {
					none++
				}
			}
			if none == 0 { // 248 are cut to 224
				t.Error("every pixel has a value")
			}
		})
	}
}

// A constant grid stays constant, and a smoothed one keeps between its extremes.
func TestSmoothingNeitherAddsNorRemovesHeat(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		g := drawGrid(t, 0, 4)
		f := smooth(g)
		lo, hi := slices.Min(g.Values), slices.Max(g.Values)
		for i, v := range f.Values {
			if v < lo-1e-5 || v > hi+1e-5 {
				t.Fatalf("sample %d is %v, the grid is between %v and %v", i, v, lo, hi)
			}
		}
	})
}

func drawGrid(t *rapid.T, lo, hi float32) Grid {
	g := NewGrid(rapid.IntRange(1, 12).Draw(t, "columns"), rapid.IntRange(1, 12).Draw(t, "rows"))
	copy(g.Values, rapid.SliceOfN(rapid.Float32Range(lo, hi), len(g.Values), len(g.Values)).Draw(t, "values"))
	return g
}

func normals(n int, seed uint64) []Grid {
	r := rand.New(rand.NewPCG(seed, 1))
	out := make([]Grid, n)
	for i := range out {
		out[i] = NewGrid(14, 14)
		level := 0.2 + 0.05*r.NormFloat64()
		for j := range out[i].Values {
			out[i].Values[j] = float32(math.Abs(level + 0.05*r.NormFloat64()))
		}
	}
	return out
}

func TestIntensitiesRiseWithDistance(t *testing.T) {
	s, err := NewScale(normals(100, 1))
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Validate(); err != nil {
		t.Fatal(err)
	}
	rapid.Check(t, func(t *rapid.T) {
		a, b := rapid.Float32Range(0, 20).Draw(t, "a"), rapid.Float32Range(0, 20).Draw(t, "b")
		if a > b {
			a, b = b, a
		}
		i, j := s.Intensity(a), s.Intensity(b)
		if i > j || i < 0 || j >= 1 {
			t.Fatalf("%v has intensity %v, %v has %v", a, i, b, j)
		}
		if float64(a) > s.Tail[0].Distance && b > a*1.001 && b < 4 && i == j { // 4 is the most between unit vectors
			t.Fatalf("%v and %v have the same intensity %v", a, b, i)
		}
		if p := PValue(float64(j)); math.Abs(math.Log(p/s.P(b))) > 0.01 && p > 1e-30 {
			t.Fatalf("intensity %v means p = %v, the distance %v has %v", j, p, b, s.P(b))
		}
	})
	for _, bad := range []float32{float32(math.NaN()), float32(math.Inf(1))} {
		if v := s.Intensity(bad); v != 1 {
			t.Errorf("%v has intensity %v: what cannot be measured is not normal", bad, v)
		}
	}
}

// Fresh normals exceed the distances of the table as often as it says.
func TestIntensitiesMeanWhatTheySay(t *testing.T) {
	s, err := NewScale(normals(400, 1))
	if err != nil {
		t.Fatal(err)
	}
	fresh := normals(400, 2)
	count := map[float64]int{}
	total, alarms := 0, 0
	for _, g := range fresh {
		m, err := New(g, s, GeometryOf(preprocess(), 224, 224))
		if err != nil {
			t.Fatal(err)
		}
		for _, v := range m.fine.Values {
			total++
			for _, p := range []float64{0.5, 0.1, 0.01, 0.001} {
				if PValue(float64(v)) <= p {
					count[p]++
				}
			}
		}
		if len(m.Regions(s.Threshold)) > 0 {
			alarms++
		}
	}
	for p, n := range count {
		if got := float64(n) / float64(total); got < p/2 || got > 2*p {
			t.Errorf("a share of %v is as hot as p = %v says", got, p)
		}
	}
	if alarms < 4 || alarms > 50 { // 20 of 400 are expected
		t.Errorf("%d of %d normals show a region", alarms, len(fresh))
	}
}

func TestAScaleTravelsAsJSON(t *testing.T) {
	s, err := NewScale(normals(30, 3))
	if err != nil {
		t.Fatal(err)
	}
	b, err := json.Marshal(s)
	if err != nil {
		t.Fatal(err)
	}
	var back Scale
	if err := json.Unmarshal(b, &back); err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(s, &back); d != "" {
		t.Error(d)
	}
	if len(b) > 4096 {
		t.Errorf("%d bytes", len(b))
	}
	for name, bad := range map[string]Scale{
		"empty":         {},
		"out of order":  {Tail: []Quantile{{1, 2}, {0.5, 1}}},
		"p above 1":     {Tail: []Quantile{{2, 1}}},
		"not a number":  {Tail: []Quantile{{1, math.NaN()}}},
		"bad threshold": {Tail: []Quantile{{1, 1}}, Threshold: 2},
	} {
		if bad.Validate() == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

func TestAScaleOfEqualDistancesStillRises(t *testing.T) {
	for _, v := range []float32{0, 0.3} {
		g := NewGrid(3, 3)
		for i := range g.Values {
			g.Values[i] = v
		}
		s, err := NewScale([]Grid{g, g})
		if err != nil {
			t.Fatal(err)
		}
		if a, b := s.Intensity(v+0.1), s.Intensity(v+0.2); !(s.Intensity(v) < a && a < b && b < 1) {
			t.Errorf("%v: %v, %v", v, a, b)
		}
	}
	if _, err := NewScale(nil); err == nil {
		t.Error("a scale of nothing")
	}
	if _, err := NewScale([]Grid{{Width: 1, Height: 1, Values: []float32{float32(math.NaN())}}}); err == nil {
		t.Error("a scale of what is no number")
	}
}

// bruteRegions labels pixels by flooding.
func bruteRegions(m *Map, threshold float64) []Region {
	px := m.Pixels(-1)
	hot := func(x, y int) bool {
		return x >= 0 && y >= 0 && x < m.Width && y < m.Height && px[y*m.Width+x] >= 0 && float64(px[y*m.Width+x]) > threshold
	}
	seen := make([]bool, len(px))
	var all []Region
	for i := range px {
		if x, y := i%m.Width, i/m.Width; !seen[i] && hot(x, y) {
			r := Region{X: x, Y: y, Width: 1, Height: 1}
			stack := []int{i}
			seen[i] = true
			for len(stack) > 0 {
				k := stack[len(stack)-1]
				stack = stack[:len(stack)-1]
				x, y := k%m.Width, k/m.Width
				r = union(r, Region{X: x, Y: y, Width: 1, Height: 1, Area: 1, Peak: float64(px[k])})
				for dy := -1; dy <= 1; dy++ {
					for dx := -1; dx <= 1; dx++ {
						if q := (y+dy)*m.Width + x + dx; hot(x+dx, y+dy) && !seen[q] {
							seen[q] = true
							stack = append(stack, q)
						}
					}
				}
			}
			all = append(all, r)
		}
	}
	return all
}

func TestRegionsAreThoseOfABruteForceLabelling(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		p := drawPreprocess(t)
		w, h := rapid.IntRange(10, 90).Draw(t, "w"), rapid.IntRange(10, 90).Draw(t, "h")
		m, err := New(drawGrid(t, 0, 1), nil, GeometryOf(p, w, h))
		if err != nil {
			t.Fatal(err)
		}
		threshold := rapid.Float64Range(-0.1, 1).Draw(t, "threshold")
		got, want := m.Regions(threshold), bruteRegions(m, threshold)
		for i := 1; i < len(got); i++ {
			if got[i].Peak > got[i-1].Peak {
				t.Fatalf("not sorted: %+v", got)
			}
		}
		order := func(a, b Region) int {
			for _, d := range []int{a.Y - b.Y, a.X - b.X, a.Area - b.Area, a.Height - b.Height} {
				if d != 0 {
					return d
				}
			}
			return 0
		}
		slices.SortFunc(got, order)
		slices.SortFunc(want, order)
		if d := cmp.Diff(want, got); d != "" {
			t.Fatal(d)
		}
	})
}

func TestAnImageWithoutAHotPlaceNamesItsHottestAsFaint(t *testing.T) {
	s, err := NewScale(normals(50, 4))
	if err != nil {
		t.Fatal(err)
	}
	g := NewGrid(14, 14)
	for i := range g.Values {
		g.Values[i] = 0.1
	}
	g.Values[20] = 0.25
	m, err := New(g, s, GeometryOf(preprocess(), 300, 200))
	if err != nil {
		t.Fatal(err)
	}
	r := m.Find(8)
	if len(r) != 1 || !r[0].Faint || r[0].Peak > s.Threshold {
		t.Errorf("%+v", r)
	}
	g.Values[20] = 3
	if m, err = New(g, s, m.Geometry); err != nil {
		t.Fatal(err)
	}
	if r = m.Find(8); len(r) != 1 || r[0].Faint || r[0].Peak <= s.Threshold {
		t.Errorf("%+v", r)
	}
}

func TestPictures(t *testing.T) {
	s, err := NewScale(normals(50, 5))
	if err != nil {
		t.Fatal(err)
	}
	g := NewGrid(14, 14)
	g.Values[7*14+7] = 4
	p := preprocess()
	p.View = &imaging.View{Ignore: []imaging.Rect{{X: 0, Y: 0, Width: 0.3, Height: 0.3}}}
	m, err := New(g, s, GeometryOf(p, 300, 200))
	if err != nil {
		t.Fatal(err)
	}
	b, err := m.PNG16()
	if err != nil {
		t.Fatal(err)
	}
	img, err := png.Decode(bytes.NewReader(b))
	if err != nil {
		t.Fatal(err)
	}
	grey, ok := img.(*image.Gray16)
	if !ok {
		t.Fatalf("a %T", img)
	}
	for y := range m.Height {
		for x := range m.Width {
			v, ok := m.At(x, y)
			level := grey.Gray16At(x, y).Y
			if ok != (level > 0) {
				t.Fatalf("pixel %d,%d: %v and %d", x, y, ok, level)
			}
			if ok && math.Abs(float64(level-1)/65534-float64(v)) > 0.5/65534+1e-9 {
				t.Fatalf("pixel %d,%d: %v and %d", x, y, v, level)
			}
		}
	}
	frame := imaging.New(300, 200)
	for i := range frame.Pix {
		frame.Pix[i] = 100
	}
	regions := m.Find(4)
	over, err := m.Overlay(frame, regions, 0)
	if err != nil {
		t.Fatal(err)
	}
	if r, g, b := over.RGB(80, 100); r != 100 || g != 100 || b != 100 {
		t.Errorf("a cold pixel is %d %d %d", r, g, b)
	}
	if r, _, _ := over.RGB(10, 10); r != 45 {
		t.Errorf("a pixel that the model does not see is %d", r)
	}
	_, x, y, _ := m.Peak()
	if r, g, b := over.RGB(x, y); r < g+40 || r < b {
		t.Errorf("the hottest pixel is %d %d %d", r, g, b)
	}
	if r, g, b := over.RGB(regions[0].X-1, regions[0].Y+3); [3]uint8{r, g, b} != boxColour {
		t.Errorf("the box is %d %d %d", r, g, b)
	}
	if small, err := m.Overlay(frame, regions, 96); err != nil || small.Width != 96 || small.Height != 64 {
		t.Errorf("%+v, %v", small, err)
	}
	if _, err := m.Overlay(imaging.New(3, 3), nil, 0); err == nil {
		t.Error("the overlay of another frame")
	}
	small, err := m.SheetPNG()
	if err != nil {
		t.Fatal(err)
	}
	if img, err = png.Decode(bytes.NewReader(small)); err != nil {
		t.Fatal(err)
	}
	sheet, ok := img.(*image.Paletted)
	if !ok || sheet.Rect != image.Rect(0, 0, 64, 42) || len(small) > 3<<10 {
		t.Fatalf("a %T of %v in %d bytes", img, img.Bounds(), len(small))
	}
	value := func(x, y int) float64 { return float64(sheet.ColorIndexAt(x*64/300, y*42/200)) }
	if v, peak := value(x, y), value(x+60, y+40); math.Abs((v-1)/254-regions[0].Peak) > 0.05 || peak >= v || value(10, 10) != 0 {
		t.Errorf("heat %v at the peak of %v, %v beside it, %v where the model does not look", v, regions[0].Peak, peak, value(10, 10))
	}
	if q := m.Picture(150); q.Width != 150 || q.Height != 100 {
		t.Errorf("%d×%d", q.Width, q.Height)
	}
	for i := 1; i < len(colours); i++ {
		if lum(colours[i]) > lum(colours[i-1])+1 {
			t.Errorf("colour %d is lighter than the one before", i)
		}
	}
}

func lum(c [3]uint8) float64 {
	return 0.2126*math.Pow(float64(c[0]), 2.2)/760 + 0.7152*math.Pow(float64(c[1]), 2.2)/760 + 0.0722*math.Pow(float64(c[2]), 2.2)/760
}

// Whatever grid comes, and whatever frame, there is a map or an error.
func FuzzMap(f *testing.F) {
	f.Add(uint8(14), uint8(14), uint16(300), uint16(200), []byte{1, 2, 3, 255}, 0.5)
	f.Add(uint8(1), uint8(1), uint16(1), uint16(1), []byte{}, -1.0)
	f.Add(uint8(0), uint8(3), uint16(9), uint16(5), []byte{127, 128, 0, 0}, math.NaN())
	scale, err := NewScale(normals(5, 6))
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, columns, rows uint8, w, h uint16, values []byte, threshold float64) {
		w, h = w%600, h%600
		g := NewGrid(int(columns%40), int(rows%40))
		for i := range g.Values {
			if len(values) >= 4 {
				at := i * 4 % (len(values) - 3)
				g.Values[i] = math.Float32frombits(uint32(values[at]) | uint32(values[at+1])<<8 | uint32(values[at+2])<<16 | uint32(values[at+3])<<24)
			}
		}
		p := preprocess()
		if len(values)%2 == 1 {
			p.View = &imaging.View{Region: &imaging.Rect{X: 0.1, Y: 0.2, Width: 0.5, Height: 0.4}, Ignore: []imaging.Rect{{X: 0.2, Y: 0.1, Width: 0.3, Height: 0.3}}}
		}
		if w == 0 || h == 0 {
			if _, err := New(g, scale, Geometry{Width: int(w), Height: int(h)}); err == nil {
				t.Fatal("a map of no frame")
			}
			return
		}
		for _, s := range []*Scale{scale, nil} {
			m, err := New(g, s, GeometryOf(p, int(w), int(h)))
			if err != nil {
				if len(g.Values) > 0 {
					t.Fatal(err)
				}
				return
			}
			m.Regions(threshold)
			m.Find(3)
			m.Gray16()
			m.Sheet()
			if _, err := m.Overlay(imaging.New(int(w), int(h)), m.Find(3), 100); err != nil {
				t.Fatal(err)
			}
		}
	})
}

// What an event costs beside its score: regions and overlay of a full HD frame.
func BenchmarkEvent(b *testing.B) {
	s, err := NewScale(normals(50, 7))
	if err != nil {
		b.Fatal(err)
	}
	g := normals(1, 8)[0]
	g.Values[100] = 2
	frame := imaging.New(1920, 1080)
	geo := GeometryOf(preprocess(), frame.Width, frame.Height)
	b.Run("regions", func(b *testing.B) {
		for b.Loop() {
			m, err := New(g, s, geo)
			if err != nil {
				b.Fatal(err)
			}
			if len(m.Find(16)) == 0 {
				b.Fatal("no region")
			}
		}
	})
	b.Run("overlay", func(b *testing.B) {
		m, err := New(g, s, geo)
		if err != nil {
			b.Fatal(err)
		}
		regions := m.Find(16)
		for b.Loop() {
			if _, err := m.Overlay(frame, regions, 768); err != nil {
				b.Fatal(err)
			}
		}
	})
}

// TestFaintBoxesStandWhereThereIsHeat: a broken box around nothing that can be
// seen says nothing.
func TestFaintBoxesStandWhereThereIsHeat(t *testing.T) {
	m := &Map{threshold: 0.5}
	m.Width, m.Height = 60, 40
	frame := imaging.New(60, 40)
	for peak, want := range map[float64]bool{0.1: false, visible*m.threshold + 0.01: false, 0.49: true} {
		over, err := m.Overlay(frame, []Region{{X: 20, Y: 10, Width: 12, Height: 12, Peak: peak, Faint: true}}, 0)
		if err != nil {
			t.Fatal(err)
		}
		drawn := false
		for y := range over.Height {
			for x := range over.Width {
				r, g, b := over.RGB(x, y)
				drawn = drawn || [3]uint8{r, g, b} == boxColour
			}
		}
		if drawn != want {
			t.Errorf("a faint region with peak %.2f has a box: %v", peak, drawn)
		}
	}
}
