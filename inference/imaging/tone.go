package imaging

import (
	"fmt"
	"math"
)

// Tone evens out how bright pictures are before the model sees them, so that the
// exposure of the day neither raises nor hides an alarm. It is the same in learning
// and in scoring, and travels with the release. What it evens out cannot be found
// any more: a part that is wholly too dark.
type Tone struct {
	// Brightness, above 0 and below 1, is the mean sample that each picture is scaled
	// to, by a gain between 1/2 and 2. 0: pictures stay as bright as they are.
	Brightness float64 `json:"brightness,omitempty"`
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
	return nil
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
	gain := 1.0
	if t.Brightness > 0 {
		gain = min(max(t.Brightness/max(Brightness(whole), 1e-6), 1/float64(mostGain)), mostGain)
	}
	gamma := t.Gamma
	if gamma == 0 {
		gamma = 1
	}
	if gain == 1 && gamma == 1 {
		return
	}
	var to [256]uint8
	for v := range to {
		to[v] = uint8(math.Round(255 * math.Pow(min(gain*float64(v)/255, 1), gamma)))
	}
	for i, v := range pix {
		pix[i] = to[v]
	}
}

// Brightness is the mean of samples, 0..1; 0 of none.
func Brightness(pix []uint8) float64 {
	sum := 0
	for _, v := range pix {
		sum += int(v)
	}
	return float64(sum) / (255 * float64(max(len(pix), 1)))
}
