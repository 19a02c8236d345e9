package evaluate

import (
	"context"
	"fmt"
	"hash/fnv"
	"math"
	"math/rand/v2"
	"slices"

	"github.com/nearmiss/nearmiss/inference/imaging"
	"github.com/nearmiss/nearmiss/training/dataset"
)

// Change is what Light does to pictures.
type Change string

const (
	// LightOther changes gain and offset, of all colours alike.
	LightOther Change = "other"
	// LightCast changes the gain of each colour by up to 5 %.
	LightCast Change = "cast"
	// LightBlur takes away detail, as a lens does that is a little out of focus: what a picture of
	// down to 1/1.5 of the size does not show.
	LightBlur Change = "blur"
	// LightLens is a blur of another form: each point becomes a disc of a radius of 1 to 2 pixels,
	// as by a lens that is out of focus.
	LightLens Change = "lens"
)

const (
	lightCast = 0.05
	lightBlur = 1.5
	lightLens = 1.0 // the smallest radius, in pixels; the largest is twice it
)

// How far light changes, in Light: the gain by up to 10 % and the offset by up to 5 %
// of the range, which exposure, lamps and dust do in a day.
const (
	lightGain   = 0.1
	lightOffset = 0.05
)

// Kept are the samples, 0..1, that no such light cuts off as black or white.
func Kept() (from, to float64) {
	return lightOffset / (1 - lightGain), (1 - lightOffset) / (1 + lightGain)
}

// lightDraws is in how many other lights each normal is seen: with one, a set of few
// normals says little.
const lightDraws = 4

// Light says what other light, or another [Change], does: the normal test images are seen once more, each
// with gains and offsets of its own, and the anomalies as they are.
type Light struct {
	// AUROC is of these normals against the anomalies.
	AUROC float64 `json:"auroc"`
	// Usual is the share of normals in usual light above a threshold, 0.05 or what is
	// nearest to it and not 0, and Alarms the share of those in other light above the
	// same threshold. Of several runs each normal counts as much.
	Usual  float64 `json:"usual"`
	Alarms float64 `json:"alarms"`
	// Normals is how many there are.
	Normals int `json:"normals"`
}

// items are items that are changed, each in several ways, the same at every call.
func (c Change) items(items []dataset.Item) []dataset.Item {
	var out []dataset.Item
	for _, it := range items {
		file, err := it.Read()
		for draw := range lightDraws {
			name := it.Name
			if draw > 0 {
				name = fmt.Sprintf("%s, light %d", it.Name, draw+1)
			}
			one := it // the protocol has read it before, so an error is reported when it is read
			if err == nil {
				if b, err := c.file(file, name); err == nil {
					one = dataset.FromBytes(string(c)+" light: "+name, it.Split, it.Label, b)
				}
			}
			out = append(out, one)
		}
	}
	return out
}

// alarmsAt is a threshold that a share of the normals are above: of SuiteAlarms of
// them or what is nearest to it, but one at least. It lies in the middle between two of
// them, so that what moves normals as often up as down moves as many over it as back.
func alarmsAt(normals []float64) (threshold, share float64) {
	sorted := slices.Sorted(slices.Values(normals))
	n := len(sorted)
	above := max(1, int(math.Round(SuiteAlarms*float64(n))))
	if above == n {
		return math.Inf(-1), 1
	}
	// Equals of those above are above, too.
	for above < n && sorted[n-above-1] == sorted[n-above] {
		above++
	}
	if above == n {
		return math.Inf(-1), 1
	}
	return sorted[n-above-1] + (sorted[n-above]-sorted[n-above-1])/2, float64(above) / float64(n)
}

// file is an image file with the change that its name draws.
func (c Change) file(file []byte, name string) ([]byte, error) {
	m, err := imaging.Decode(file, imaging.Limits{})
	if err != nil {
		return nil, fmt.Errorf("light %s otherwise: %w", name, err)
	}
	r := drawnBy(name)
	switch c {
	case LightCast:
		var gain [3]float64
		for k := range gain {
			gain[k] = 1 + lightCast*(2*r.Float64()-1)
		}
		relight(m, gain, 0)
	case LightBlur:
		m = blur(m, r.Float64())
	case LightLens:
		m = discs(m, lightLens*(1+r.Float64()))
	default:
		Relight(m, name)
	}
	return m.PNG()
}

// drawnBy draws the same for the same name.
func drawnBy(name string) *rand.Rand {
	h := fnv.New64a()
	_, _ = h.Write([]byte(name))
	return rand.New(rand.NewPCG(h.Sum64(), 0x6c69676874))
}

// Blur gives a picture that is slightly out of focus, as LightBlur is: by as much as the name
// draws from one of so many equal parts of the range, of which the first is the sharpest.
func Blur(m *imaging.Image, name string, part, parts int) *imaging.Image {
	return blur(m, (float64(part)+drawnBy(name).Float64())/float64(parts))
}

// blur takes away what a smaller picture does not show, of 1/1 of the size to 1/lightBlur for a
// share from 0 to 1.
func blur(m *imaging.Image, share float64) *imaging.Image {
	by := 1 + (lightBlur-1)*share
	small := imaging.Resize(m, max(1, int(math.Round(float64(m.Width)/by))), max(1, int(math.Round(float64(m.Height)/by))), imaging.Bilinear)
	return imaging.Resize(small, m.Width, m.Height, imaging.Bilinear)
}

// discs makes a disc of a radius in pixels of every point; beyond the edges a picture goes on
// as it is there.
func discs(m *imaging.Image, radius float64) *imaging.Image {
	const fine = 8 // parts of a pixel, each way, of which the disc covers some
	type weight struct {
		x, y int
		w    float64
	}
	var kernel []weight
	sum, reach := 0.0, int(math.Ceil(radius))
	for y := -reach; y <= reach; y++ {
		for x := -reach; x <= reach; x++ {
			w := 0.0
			for k := range fine * fine {
				dx, dy := float64(x)+(float64(k%fine)+0.5)/fine-0.5, float64(y)+(float64(k/fine)+0.5)/fine-0.5
				if dx*dx+dy*dy <= radius*radius {
					w++
				}
			}
			if w > 0 {
				kernel, sum = append(kernel, weight{x, y, w}), sum+w
			}
		}
	}
	out := m.Clone()
	for y := range m.Height {
		for x := range m.Width {
			var rgb [3]float64
			for _, k := range kernel {
				at := 3 * (min(max(y+k.y, 0), m.Height-1)*m.Width + min(max(x+k.x, 0), m.Width-1))
				for c := range rgb {
					rgb[c] += k.w * float64(m.Pix[at+c])
				}
			}
			for c := range rgb {
				out.Pix[3*(y*m.Width+x)+c] = uint8(math.Round(rgb[c] / sum))
			}
		}
	}
	return out
}

// Relight changes a picture's light, by a gain and an offset that the name draws.
func Relight(m *imaging.Image, name string) {
	r := drawnBy(name)
	gain, offset := 1+lightGain*(2*r.Float64()-1), lightOffset*(2*r.Float64()-1)
	relight(m, [3]float64{gain, gain, gain}, offset)
}

// relight changes light by a gain of each colour and an offset, in parts of the range.
func relight(m *imaging.Image, gain [3]float64, offset float64) {
	for i, v := range m.Pix {
		m.Pix[i] = uint8(min(max(math.Round(gain[i%3]*float64(v)+255*offset), 0), 255))
	}
}

// light scores the normals of a run with a change.
func (r *Run) light(ctx context.Context, scorer Scorer, c Change) (*Light, error) {
	var items []dataset.Item
	for _, s := range r.Scored {
		if !s.Anomalous {
			items = append(items, s.Item)
		}
	}
	scores, err := scorer.Score(ctx, c.items(items))
	if err != nil {
		return nil, fmt.Errorf("score normals in %s light: %w", c, err)
	}
	usual, anomalous := r.Split("")
	if len(usual) == 0 || len(anomalous) == 0 {
		return nil, nil
	}
	l := &Light{AUROC: AUROC(scores, anomalous), Normals: len(usual)}
	threshold, share := alarmsAt(usual)
	l.Usual = share
	for _, s := range scores {
		if s > threshold {
			l.Alarms += 1 / float64(len(scores))
		}
	}
	return l, nil
}

// meanLight averages over runs, shares over their normals; nil where none was measured.
func meanLight(runs []Run) *Light {
	var out *Light
	n := 0.0
	for _, r := range runs {
		if r.Light == nil {
			continue
		}
		if out == nil {
			out = &Light{}
		}
		count := float64(r.Light.Normals)
		out.AUROC, n = out.AUROC+r.Light.AUROC, n+1
		out.Usual, out.Alarms = out.Usual+count*r.Light.Usual, out.Alarms+count*r.Light.Alarms
		out.Normals += r.Light.Normals
	}
	if out != nil {
		count := float64(out.Normals)
		out.AUROC, out.Usual, out.Alarms = out.AUROC/n, out.Usual/count, out.Alarms/count
	}
	return out
}
