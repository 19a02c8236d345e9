package pretrain

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"

	"golang.org/x/sync/errgroup"

	"github.com/nearmiss/nearmiss/internal/synthetic"
)

// HeldOut are the families and the defects of a kind of synthetic image that are
// not trained on. Family i has the classes i, i + n, i + 2n, … of n families.
type HeldOut struct {
	Families []int
	Defects  []string
}

// heldOut has the families that the demo shows, and others.
var heldOut = map[string]HeldOut{
	synthetic.Parts:    {Families: []int{0, 4}, Defects: []string{"chip", "stain"}},        // flanges and bearings
	synthetic.Cells:    {Families: []int{0, 3}, Defects: []string{"vacuole", "inclusion"}}, // neutrophils and eosinophils
	synthetic.Patterns: {Families: []int{3, 5}, Defects: []string{"smear"}},                // cobbles and tokens
}

// poolSize is the side of the images in the pool, in pixels: somewhat more than
// a backbone takes, so that crops differ.
const poolSize = 160

// picture is one image of the pool.
type picture struct {
	pix []uint8        // RGB, poolSize × poolSize
	box *synthetic.Box // of the defect
}

// design is one thing to inspect, as it is drawn.
type design struct {
	normal, marred []picture
}

// pool holds the drawn designs.
type pool []design

// drawPool draws the designs on so many threads; progress is called by one after
// another.
func drawPool(ctx context.Context, c Config, threads int, progress func(done int)) (pool, error) {
	p := make(pool, c.Designs)
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(max(threads, 1))
	var mu sync.Mutex
	done := 0
	for i := range p {
		g.Go(func() error {
			if err := ctx.Err(); err != nil {
				return err
			}
			d, err := drawDesign(c, i)
			if err != nil {
				return err
			}
			p[i] = d
			mu.Lock()
			defer mu.Unlock()
			done++
			progress(done)
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return nil, fmt.Errorf("draw the pictures: %w", err)
	}
	return p, nil
}

// drawDesign draws design i.
func drawDesign(c Config, i int) (design, error) {
	kind, nth := share(i)
	r := rand.New(rand.NewPCG(c.Seed, uint64(i)^0x706f6f6c))
	class, defects := trainedOn(kind, nth)
	o := synthetic.Options{Size: poolSize, Class: class, Defects: defects, Variation: 0.1 + 1.1*r.Float64()}
	seed := r.Uint64()
	good, err := synthetic.New(kind, seed, o)
	if err != nil {
		return design{}, err
	}
	subtle := 0.6
	o.DefectRate, o.SubtleShare = 1, &subtle
	bad, err := synthetic.New(kind, seed, o)
	if err != nil {
		return design{}, err
	}
	var d design
	for j := range uint64(c.PoolNormals) {
		img, _ := good.At(j)
		d.normal = append(d.normal, picture{pix: img.Pix})
	}
	for j := range uint64(c.PoolMarred) {
		img, truth := bad.At(uint64(c.PoolNormals) + j)
		if truth.Anomalous {
			d.marred = append(d.marred, picture{img.Pix, truth.Box})
		}
	}
	if len(d.marred) == 0 {
		return design{}, fmt.Errorf("design %d (%s) has no marred picture", i, synthetic.ClassName(kind, class))
	}
	return d, nil
}

// share says of which kind design i is, and which of that kind.
func share(i int) (kind string, nth int) {
	turn := i % len(turns)
	for _, k := range turns[:turn] {
		if k == turns[turn] {
			nth++
		}
	}
	each := 0
	for _, k := range turns {
		if k == turns[turn] {
			each++
		}
	}
	return turns[turn], nth + i/len(turns)*each
}

// turns are the kinds, one after the other: patterns have by far the greatest variety.
var turns = []string{synthetic.Patterns, synthetic.Parts, synthetic.Patterns, synthetic.Cells}

// trainedOn numbers the classes of a kind that are trained on, and lists the
// defects.
func trainedOn(kind string, n int) (class int, defects []string) {
	held, families := heldOut[kind], synthetic.BasicClasses(kind)
	var open []int
	for f := range families {
		if !slices.Contains(held.Families, f) {
			open = append(open, f)
		}
	}
	for _, d := range synthetic.Defects(kind) {
		if !slices.Contains(held.Defects, d) {
			defects = append(defects, d)
		}
	}
	return open[n%len(open)] + n/len(open)*families, defects
}
