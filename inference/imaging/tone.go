package imaging

import (
	"cmp"
	"fmt"
	"math"
	"slices"
)

// Tone evens out how bright pictures are before the model sees them, so that the
// exposure of the day neither raises nor hides an alarm. It is the same in learning
// and in scoring, and travels with the release. What it evens out cannot be found
// any more: a part that is wholly too dark.
type Tone struct {
	// Brightness, above 0 and below 1, is the mean sample that each picture is scaled
	// to, by a gain between 1/2 and 2; releases of before have it. 0: pictures stay as bright as they are.
	Brightness float64 `json:"brightness,omitempty"`
	// Levels, in place of Brightness, are what [LevelsOf] gives of usual pictures, ascending:
	// each picture is brought as near to them as a gain between 2/3 and 3/2 and an offset
	// of up to 0.15 can. Those of its own that black or white cut off do not count.
	Levels []float64 `json:"levels,omitempty"`
	// Floor and Ceiling, 0..1, bound the samples after the gain and the offset: what lies
	// beyond is cut off in every picture, as other light does it in some. 0 and 0: nothing
	// is.
	Floor   float64 `json:"floor,omitempty"`
	Ceiling float64 `json:"ceiling,omitempty"`
	// Gamma is the exponent of the samples in 0..1, after the gain: below 1 it opens
	// the shadows. 0 and 1: samples stay.
	Gamma float64 `json:"gamma,omitempty"`
}

// Validate reports what makes no sense.
func (t *Tone) Validate() error {
	if t == nil {
		return nil
	}
	if !(t.Brightness >= 0 && t.Brightness < 1) || !(t.Gamma >= 0 && t.Gamma <= 10) {
		return fmt.Errorf("tone: brightness %v and gamma %v: use 0 to 1 and 0 to 10", t.Brightness, t.Gamma)
	}
	if len(t.Levels) > 0 && (t.Brightness > 0 || len(t.Levels) > mostLevels || !slices.IsSorted(t.Levels) || !(t.Levels[0] >= 0) || !(t.Levels[len(t.Levels)-1] <= 1)) {
		return fmt.Errorf("tone: levels %v beside brightness %v: use one of them, at most %d levels from 0 to 1, ascending", t.Levels, t.Brightness, mostLevels)
	}
	if !(t.Floor >= 0 && t.Ceiling >= 0 && t.Ceiling <= 1 && t.Floor < t.ceiling()) {
		return fmt.Errorf("tone: floor %v and ceiling %v: use 0 to 1, the floor below", t.Floor, t.Ceiling)
	}
	return nil
}

func (t *Tone) ceiling() float64 {
	if t.Ceiling == 0 {
		return 1
	}
	return t.Ceiling
}

// mostGain bounds the gain of a Tone either way.
const mostGain = 2

// Apply changes samples in place. A nil tone changes nothing.
func (t *Tone) Apply(pix []uint8) { t.applyAs(pix, pix) }

// applyAs does so by the gain that another picture needs: parts of one picture all get
// the whole's.
func (t *Tone) applyAs(whole, pix []uint8) {
	if t == nil || len(pix) == 0 {
		return
	}
	gain, offset := 1.0, 0.0
	if len(t.Levels) > 0 {
		gain, offset = t.match(whole)
	} else if t.Brightness > 0 {
		gain = min(max(t.Brightness/max(Brightness(whole), 1e-6), 1/float64(mostGain)), mostGain)
	}
	gamma := cmp.Or(t.Gamma, 1)
	if gain == 1 && offset == 0 && gamma == 1 && t.Floor == 0 && t.Ceiling == 0 {
		return
	}
	var to [256]uint8
	for v := range to {
		to[v] = uint8(math.Round(255 * math.Pow(min(max(gain*float64(v)/255+offset, t.Floor), t.ceiling()), gamma)))
	}
	for i, v := range pix {
		pix[i] = to[v]
	}
}

const (
	// mostLevels bounds a tone's levels.
	mostLevels = 255
	// mostLevelGain and mostLevelOffset bound what matching them does.
	mostLevelGain, mostLevelOffset = 1.5, 0.15
	// leastSample and mostSample bound the levels that black and white have not cut off,
	// also where such samples were averaged with their neighbours.
	leastSample, mostSample = 1.5 / 255, 253.5 / 255
	// fewLevels say nothing of the gain.
	fewLevels = 4
)

// LevelsOf are n quantiles of samples, 0..1, evenly spaced and without the least and
// the greatest sample. A sample stands for all the values that are rounded to it.
func LevelsOf(pix []uint8, n int) []float64 {
	var counts [256]int
	for _, v := range pix {
		counts[v]++
	}
	out := make([]float64, n)
	at, below := 0, 0 // below: how many samples are less than at
	for i := range out {
		want := float64(i+1) / float64(n+1) * float64(len(pix))
		for at < 255 && float64(below+counts[at]) < want {
			below += counts[at]
			at++
		}
		within := (want - float64(below)) / float64(max(counts[at], 1))
		out[i] = min(max((float64(at)+within-0.5)/255, 0), 1)
	}
	return out
}

// match is the gain and the offset that bring a picture's levels nearest to the
// tone's, by least squares.
func (t *Tone) match(pix []uint8) (gain, offset float64) {
	var n, x, y, xx, xy float64
	for i, v := range LevelsOf(pix, len(t.Levels)) {
		if v >= leastSample && v <= mostSample {
			n, x, y, xx, xy = n+1, x+v, y+t.Levels[i], xx+v*v, xy+v*t.Levels[i]
		}
	}
	if n == 0 {
		return 1, 0
	}
	x, y = x/n, y/n
	gain = 1
	if spread := xx/n - x*x; n >= fewLevels && spread > 1e-6 {
		gain = min(max((xy/n-x*y)/spread, 1/mostLevelGain), mostLevelGain)
	}
	return gain, min(max(y-gain*x, -mostLevelOffset), mostLevelOffset)
}

// Brightness is the mean of samples, 0..1; 0 of none.
func Brightness(pix []uint8) float64 {
	sum := 0
	for _, v := range pix {
		sum += int(v)
	}
	return float64(sum) / (255 * float64(max(len(pix), 1)))
}
