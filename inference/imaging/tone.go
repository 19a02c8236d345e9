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
	// Grey has pictures read as grey, before all else: where all usual ones are, a cast
	// tells nothing of what they show.
	Grey bool `json:"grey,omitempty"`
	// Colours, beside Levels, are those of red, green and blue each: the samples of a
	// colour are brought nearer to its own by a further gain between 1/1.1 and 1.1, which
	// undoes slight casts and leaves what has another colour.
	Colours [][]float64 `json:"colours,omitempty"`
}

// Validate reports what makes no sense.
func (t *Tone) Validate() error {
	if t == nil {
		return nil
	}
	if !(t.Brightness >= 0 && t.Brightness < 1) || !(t.Gamma >= 0 && t.Gamma <= 10) {
		return fmt.Errorf("tone: brightness %v and gamma %v: use 0 to 1 and 0 to 10", t.Brightness, t.Gamma)
	}
	if len(t.Levels) > 0 && (t.Brightness > 0 || !areLevels(t.Levels)) {
		return fmt.Errorf("tone: levels %v beside brightness %v: use one of them, at most %d levels from 0 to 1, ascending", t.Levels, t.Brightness, mostLevels)
	}
	if len(t.Colours) > 0 && (len(t.Levels) == 0 || t.Grey || len(t.Colours) != 3) {
		return fmt.Errorf("tone: levels of %d colours beside %d of all, grey %v: use those of red, green and blue beside levels of all, and none of grey", len(t.Colours), len(t.Levels), t.Grey)
	}
	for _, levels := range t.Colours {
		if len(levels) != len(t.Levels) || !areLevels(levels) {
			return fmt.Errorf("tone: levels %v of a colour: use %d from 0 to 1, ascending", levels, len(t.Levels))
		}
	}
	if !(t.Floor >= 0 && t.Ceiling >= 0 && t.Ceiling <= 1 && t.Floor < t.ceiling()) {
		return fmt.Errorf("tone: floor %v and ceiling %v: use 0 to 1, the floor below", t.Floor, t.Ceiling)
	}
	return nil
}

func areLevels(v []float64) bool {
	return len(v) <= mostLevels && slices.IsSorted(v) && v[0] >= 0 && v[len(v)-1] <= 1
}

func (t *Tone) ceiling() float64 {
	if t.Ceiling == 0 {
		return 1
	}
	return t.Ceiling
}

// mostGain bounds the gain of a Tone either way.
const mostGain = 2

// ReadsGrey says whether pictures are read as grey; false of nil.
func (t *Tone) ReadsGrey() bool { return t != nil && t.Grey }

// toGrey gives the three samples of each pixel its luma. What is grey stays as it is.
func toGrey(pix []uint8) {
	for i := 0; i+2 < len(pix); i += 3 {
		p := pix[i : i+3 : i+3]
		if p[0] != p[1] || p[1] != p[2] {
			y := uint8((299*int(p[0]) + 587*int(p[1]) + 114*int(p[2]) + 500) / 1000)
			p[0], p[1], p[2] = y, y, y
		}
	}
}

// IsGrey says whether no pixel has a colour.
func (m *Image) IsGrey() bool {
	for i := 0; i+2 < len(m.Pix); i += 3 {
		if m.Pix[i] != m.Pix[i+1] || m.Pix[i+1] != m.Pix[i+2] {
			return false
		}
	}
	return true
}

// applyAs changes samples by the gains that another picture needs: parts of one picture
// all get the whole's.
func (t *Tone) applyAs(whole, pix []uint8) {
	if t == nil || len(pix) == 0 {
		return
	}
	gain, offset := 1.0, 0.0
	casts := [3]float64{1, 1, 1}
	if len(t.Levels) > 0 {
		gain, offset, casts = t.match(countsOf(whole))
	} else if t.Brightness > 0 {
		gain = min(max(t.Brightness/max(brightnessOf(whole), 1e-6), 1/float64(mostGain)), mostGain)
	}
	gamma := cmp.Or(t.Gamma, 1)
	if gain == 1 && offset == 0 && gamma == 1 && t.Floor == 0 && t.Ceiling == 0 && casts == [3]float64{1, 1, 1} {
		return
	}
	var to [3][256]uint8
	for c, cast := range casts {
		if c > 0 && cast == casts[0] {
			to[c] = to[0]
			continue
		}
		for v := range to[c] {
			to[c][v] = uint8(math.Round(255 * math.Pow(min(max(cast*(gain*float64(v)/255+offset), t.Floor), t.ceiling()), gamma)))
		}
	}
	if len(t.Colours) == 0 {
		for i, v := range pix {
			pix[i] = to[0][v]
		}
		return
	}
	for i := 0; i+2 < len(pix); i += 3 {
		p := pix[i : i+3 : i+3]
		p[0], p[1], p[2] = to[0][p[0]], to[1][p[1]], to[2][p[2]]
	}
}

const (
	// mostLevels bounds a tone's levels.
	mostLevels = 255
	// mostLevelGain and mostLevelOffset bound what matching them does.
	mostLevelGain, mostLevelOffset = 1.5, 0.15
	// mostCast bounds the further gain of a colour: casts of ±5 % are 1.1 apart at most.
	mostCast = 1.1
	// castRounds is how often the gains of the colours and that of all are found in turn.
	castRounds = 5
	// leastSample and mostSample bound the levels that black and white have not cut off,
	// also where such samples were averaged with their neighbours.
	leastSample, mostSample = 1.5 / 255, 253.5 / 255
	// fewLevels say nothing of the gain.
	fewLevels = 4
)

// LevelsOf are n quantiles of samples, 0..1, evenly spaced and without the least and
// the greatest sample. A sample stands for all the values that are rounded to it.
func LevelsOf(pix []uint8, n int) []float64 { return countsOf(pix).all().levels(n) }

// ColourLevelsOf are those of red, green and blue.
func ColourLevelsOf(pix []uint8, n int) (out [3][]float64) {
	for c, counts := range countsOf(pix) {
		out[c] = counts.levels(n)
	}
	return out
}

// counts is how many samples there are of each value.
type counts [256]int

// colourCounts are those of red, green and blue.
type colourCounts [3]counts

func countsOf(pix []uint8) *colourCounts {
	var out colourCounts
	for ; len(pix) >= 3; pix = pix[3:] {
		out[0][pix[0]]++
		out[1][pix[1]]++
		out[2][pix[2]]++
	}
	for c, v := range pix {
		out[c][v]++
	}
	return &out
}

func (c *colourCounts) all() (out counts) {
	for v := range out {
		out[v] = c[0][v] + c[1][v] + c[2][v]
	}
	return out
}

func (c counts) levels(n int) []float64 {
	total := 0
	for _, v := range c {
		total += v
	}
	out := make([]float64, n)
	at, below := 0, 0 // below: how many samples are less than at
	for i := range out {
		want := float64(i+1) / float64(n+1) * float64(total)
		for at < 255 && float64(below+c[at]) < want {
			below += c[at]
			at++
		}
		within := (want - float64(below)) / float64(max(c[at], 1))
		out[i] = min(max((float64(at)+within-0.5)/255, 0), 1)
	}
	return out
}

// match is the gain and the offset, and the further gains of the colours, that bring a
// picture's levels nearest to the tone's.
func (t *Tone) match(counts *colourCounts) (gain, offset float64, casts [3]float64) {
	casts = [3]float64{1, 1, 1}
	if len(t.Colours) == 0 {
		gain, offset = nearest(counts.all().levels(len(t.Levels)), t.Levels)
		return gain, offset, casts
	}
	var own, usual []float64 // of all colours
	for c, levels := range t.Colours {
		own, usual = append(own, counts[c].levels(len(levels))...), append(usual, levels...)
	}
	without := make([]float64, len(usual)) // the further gains
	for range castRounds {
		for i, v := range usual {
			without[i] = v / casts[i/len(t.Levels)]
		}
		gain, offset = nearest(own, without)
		for c := range casts {
			at := c * len(t.Levels)
			casts[c] = nearestCast(own[at:at+len(t.Levels)], usual[at:], gain, offset)
		}
	}
	return gain, offset, casts
}

// nearest are the gain and the offset that bring levels nearest to usual ones, by least
// squares.
func nearest(levels, usual []float64) (gain, offset float64) {
	var n, x, y, xx, xy float64
	for i, v := range levels {
		if isKept(v) {
			n, x, y, xx, xy = n+1, x+v, y+usual[i], xx+v*v, xy+v*usual[i]
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

// nearestCast is the further gain that brings levels nearest to usual ones after a gain
// and an offset.
func nearestCast(levels, usual []float64, gain, offset float64) float64 {
	var xx, xy float64
	for i, v := range levels {
		if isKept(v) {
			x := gain*v + offset
			xx, xy = xx+x*x, xy+x*usual[i]
		}
	}
	if !(xx > 1e-6) {
		return 1
	}
	return min(max(xy/xx, 1/mostCast), mostCast)
}

// isKept says whether a level is one that neither black nor white cut off.
func isKept(level float64) bool { return level >= leastSample && level <= mostSample }

// brightnessOf is the mean of samples, 0..1; 0 of none.
func brightnessOf(pix []uint8) float64 {
	sum := 0
	for _, v := range pix {
		sum += int(v)
	}
	return float64(sum) / (255 * float64(max(len(pix), 1)))
}
