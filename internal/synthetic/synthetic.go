// Package synthetic draws images of things to inspect: machined parts under a
// ring light, stained blood cells under a microscope, and surfaces with and
// without something on them, most of them normal, some with a defect that is known
// to the pixel.
//
// It serves demonstrations, tests and the training of a small starter backbone:
// nothing in it comes from a photograph. Image i of a source depends only on
// the source's kind, seed and options and on i, so any image can be had at any
// time, on any machine, and in any order. (The arithmetic is in float64 and
// rounds to bytes at the very end. A processor that fuses multiplications and
// additions could in principle round one byte in 10¹¹ to its neighbour.)
//
// No two images are the same: pose, proportions within tolerance, lighting,
// surface grain, neighbouring cells, focus and sensor noise vary. Defects are
// drawn in two severities: gross ones that nobody overlooks, and subtle ones
// that are near misses.
package synthetic

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/nearmiss/nearmiss/inference/imaging"
)

// The kinds of source.
const (
	Parts = "parts" // machined metal parts on a dark table
	Cells = "cells" // a white blood cell among red ones, Romanowsky stain
	// Patterns are surfaces, in endless variety: grain, cloth, stripes, things in
	// rows, … Nothing in particular is meant.
	Patterns = "patterns"
)

// Kinds lists the kinds of source.
func Kinds() []string { return []string{Parts, Cells, Patterns} }

// Severities of a defect.
const (
	Subtle = "subtle"
	Gross  = "gross"
)

// Options shapes a source. The zero value draws normal images of class 0 with
// 256 × 256 pixels.
type Options struct {
	// Size is the width and height in pixels, 32 to 2048; 0 means 256.
	Size int
	// DefectRate is the probability that an image has a defect, 0 to 1.
	DefectRate float64
	// SubtleShare is the share of the defects that are subtle, 0 to 1; nil
	// means one half.
	SubtleShare *float64
	// Defects are the kinds of defect that occur; none means all of Defects(kind).
	Defects []string
	// Class chooses what is drawn: ClassName(kind, Class) says what. Beyond the
	// basic classes, numbers give further designs of the same families (other
	// proportions, materials, stains), so there is no end to them.
	Class int
	// Classes > 1 draws each image's class from Class … Class+Classes−1.
	Classes int
	// Variation scales how much normal images differ from one another in pose,
	// light and texture; 0 means 1. Small values make an easy task.
	Variation float64
}

// Box is a rectangle in pixels; its right and lower edges are exclusive.
type Box struct {
	X int `json:"x"`
	Y int `json:"y"`
	W int `json:"w"`
	H int `json:"h"`
}

// Truth is what is known about an image.
type Truth struct {
	Index     uint64  `json:"index"`
	Kind      string  `json:"kind"`
	Class     int     `json:"class"`
	ClassName string  `json:"class_name"`
	Anomalous bool    `json:"anomalous"`
	Defect    string  `json:"defect,omitempty"`   // one of Defects(kind)
	Severity  string  `json:"severity,omitempty"` // subtle or gross
	Amount    float64 `json:"amount,omitempty"`   // how strong, 0 to 1 across both severities
	Box       *Box    `json:"box,omitempty"`      // around what the defect changed
	Mask      []uint8 `json:"-"`                  // Size × Size, 255 where the defect changed the image; nil without one
}

// Source draws images. It is safe for concurrent use.
type Source struct {
	kind    string
	seed    uint64
	o       Options
	subtle  float64
	defects []string
	counter atomic.Uint64
	scratch sync.Pool
}

// New returns a source of the kind. Sources with the same arguments draw the
// same images.
func New(kind string, seed uint64, o Options) (*Source, error) {
	s := &Source{kind: kind, seed: seed, o: o, subtle: 0.5}
	var errs []error
	if !slices.Contains(Kinds(), kind) {
		return nil, fmt.Errorf("synthetic source %q is not one of %v", kind, Kinds())
	}
	s.o.Size = cmp.Or(s.o.Size, 256)
	if s.o.Size < 32 || s.o.Size > 2048 {
		errs = append(errs, fmt.Errorf("synthetic source: size %d is not between 32 and 2048", s.o.Size))
	}
	if o.SubtleShare != nil {
		s.subtle = *o.SubtleShare
	}
	for name, v := range map[string]float64{"defect rate": o.DefectRate, "subtle share": s.subtle} {
		if !(v >= 0 && v <= 1) {
			errs = append(errs, fmt.Errorf("synthetic source: %s %g is not between 0 and 1", name, v))
		}
	}
	if o.Class < 0 || o.Classes < 0 {
		errs = append(errs, fmt.Errorf("synthetic source: class %d of %d is negative", o.Class, o.Classes))
	}
	if o.Variation == 0 {
		s.o.Variation = 1
	}
	if !(s.o.Variation > 0 && s.o.Variation <= 3) {
		errs = append(errs, fmt.Errorf("synthetic source: variation %g is not between 0 and 3", o.Variation))
	}
	s.defects = slices.Clone(o.Defects)
	if len(s.defects) == 0 {
		s.defects = Defects(kind)
	}
	for _, d := range s.defects {
		if !slices.Contains(Defects(kind), d) {
			errs = append(errs, fmt.Errorf("synthetic source: defect %q is not one of %v", d, Defects(kind)))
		}
	}
	s.scratch.New = func() any { return newCanvas(s.o.Size) }
	return s, errors.Join(errs...)
}

// Defects lists the kinds of defect of a kind of source.
func Defects(kind string) []string {
	switch kind {
	case Cells:
		return slices.Clone(cellDefects)
	case Patterns:
		return slices.Clone(patternDefects)
	}
	return slices.Clone(partDefects)
}

// ClassName says what a class shows. Names repeat beyond the basic classes,
// with a number of their design.
func ClassName(kind string, class int) string {
	names := families(kind)
	if design := class / len(names); design > 0 {
		return fmt.Sprintf("%s %d", names[class%len(names)], design+1)
	}
	return names[class%len(names)]
}

// BasicClasses is the number of families that a kind of source knows.
func BasicClasses(kind string) int {
	return len(families(kind))
}

func families(kind string) []string {
	switch kind {
	case Cells:
		return cellNames
	case Patterns:
		return patternNames
	}
	return partNames
}

// Next draws the next image, beginning with image 0.
func (s *Source) Next() (*imaging.Image, Truth) { return s.At(s.counter.Add(1) - 1) }

// At draws image i.
func (s *Source) At(i uint64) (*imaging.Image, Truth) {
	t := Truth{Index: i, Kind: s.kind, Class: s.o.Class}
	r := newRNG(s.seed, uint64(len(s.kind)), i)
	if s.o.Classes > 1 {
		t.Class += int(r.next() % uint64(s.o.Classes))
	}
	t.ClassName = ClassName(s.kind, t.Class)
	t.Anomalous = r.unit() < s.o.DefectRate
	subtle := r.unit() < s.subtle
	kind := s.defects[r.intn(len(s.defects))]
	drawn, picked := r.fork(), r.fork()

	c := s.scratch.Get().(*canvas)
	defer s.scratch.Put(c)
	scene := newPart
	switch s.kind {
	case Cells:
		scene = newCell
	case Patterns:
		scene = newPattern
	}
	img := imaging.New(s.o.Size, s.o.Size)
	sc := scene(c, t.Class, drawn, s.o.Variation)
	sc.draw(img, nil)
	if !t.Anomalous {
		return img, t
	}

	t.Defect, t.Severity = kind, Gross
	lo, hi := 0.55, 1.0
	if subtle {
		t.Severity, lo, hi = Subtle, 0.12, 0.4
	}
	marred := imaging.New(s.o.Size, s.o.Size)
	least := max(6, s.o.Size*s.o.Size/8000)
	for range 12 { // a defect may fall where it cannot be seen
		t.Amount = picked.between(lo, hi)
		if !sc.draw(marred, &defect{kind: kind, amount: t.Amount, subtle: subtle, r: picked.fork()}) {
			continue
		}
		mask, box, n := difference(img, marred)
		if n < least {
			hi = min(1, hi+0.04)
			continue
		}
		t.Mask, t.Box = mask, &box
		return marred, t
	}
	// The class has no room for this defect (a nut has no bolt holes): take
	// the one that finds room anywhere.
	t.Defect = fallback(s.kind)
	for range 40 {
		t.Amount = picked.between(lo, hi)
		sc.draw(marred, &defect{kind: t.Defect, amount: t.Amount, subtle: subtle, r: picked.fork()})
		if mask, box, n := difference(img, marred); n >= least {
			t.Mask, t.Box = mask, &box
			return marred, t
		}
		lo, hi = hi, min(1, hi+0.1)
	}
	// Not seen to happen; if it does, the image is normal and says so.
	return img, Truth{Index: i, Kind: t.Kind, Class: t.Class, ClassName: t.ClassName}
}

func fallback(kind string) string {
	switch kind {
	case Cells:
		return "precipitate"
	case Patterns:
		return "blot"
	}
	return "stain"
}

// defect is a request to spoil a scene.
type defect struct {
	kind   string
	amount float64
	subtle bool
	r      *rng
}

// scene is one image's content. draw renders it, always the same, with the
// defect if there is one; false says that the defect has no place in it.
type scene interface {
	draw(dst *imaging.Image, d *defect) bool
}

// visible is the difference in levels from which a pixel counts as changed.
const visible = 7

// difference finds the pixels that differ visibly.
func difference(a, b *imaging.Image) (mask []uint8, box Box, n int) {
	mask = make([]uint8, a.Width*a.Height)
	x0, y0, x1, y1 := a.Width, a.Height, 0, 0
	for i := range mask {
		p, q := a.Pix[3*i:3*i+3], b.Pix[3*i:3*i+3]
		for c := range 3 {
			if d := int(p[c]) - int(q[c]); d >= visible || d <= -visible {
				x, y := i%a.Width, i/a.Width
				x0, y0, x1, y1 = min(x0, x), min(y0, y), max(x1, x+1), max(y1, y+1)
				mask[i] = 255
				n++
				break
			}
		}
	}
	return mask, Box{x0, y0, x1 - x0, y1 - y0}, n
}

// canvas holds the working planes of one image, size × size values each.
type canvas struct {
	size int
	a    []float64 // parts: signed distance to the outline; cells: density of red
	b    []float64 // parts: height of the surface; cells: density of green
	c    []float64 // cells: density of blue
	tint []rgb     // parts: what the surface's colour is multiplied by
	gray []float64 // scratch
	// keep holds a and b without a defect, so that they are computed once.
	keepA, keepB []float64
}

func newCanvas(size int) *canvas {
	n := size * size
	return &canvas{
		size: size, a: make([]float64, n), b: make([]float64, n), c: make([]float64, n),
		tint: make([]rgb, n), gray: make([]float64, n), keepA: make([]float64, n), keepB: make([]float64, n),
	}
}
