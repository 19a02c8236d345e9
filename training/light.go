package training

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"path/filepath"
	"strings"

	"github.com/nearmiss/nearmiss/inference/imaging"
	"github.com/nearmiss/nearmiss/training/evaluate"
)

// LightReport says what other light does to normals: of those above a threshold
// that 5 % of normals are above, how many there are when each is seen with a gain of
// up to ±10 % and an offset of up to ±5 %. It is measured on normals that are
// compared with others, and no anomaly is known.
type LightReport struct {
	// Choice is LightUsual, LightEven, LightVaried or LightColours.
	Choice string `json:"choice"`
	// Grey says that pictures are read as grey, because all normals are.
	Grey bool `json:"grey,omitempty"`
	// The shares, 0..1, with pictures as they are, with the light of each evened out,
	// with copies in other light in the banks, and with light and colours evened out;
	// nil where that was not tried.
	Usual   *float64 `json:"usual,omitempty"`
	Even    *float64 `json:"even,omitempty"`
	Varied  *float64 `json:"varied,omitempty"`
	Colours *float64 `json:"colours,omitempty"`
	// Found is the AUROC, 0..1, of normals against slightly spoilt ones, both in usual
	// light, by choice.
	Found map[string]float64 `json:"found,omitempty"`
}

// lightEffect is what is known of a score: what 5 % of false alarms become in other
// light, and the AUROC of normals against slightly spoilt ones; NaN: nothing.
type lightEffect struct{ alarms, found float64 }

const (
	// sensitiveAlarms is what 5 % of false alarms may become in other light.
	sensitiveAlarms = 2 * evaluate.SuiteAlarms
	// muchFewer is how many times fewer alarms make a remedy worth its price: evened-out
	// light hides what is wholly too dark or too bright, and copies in other light make
	// the normals less alike.
	muchFewer = 1.5
	// mostBlind is how much AUROC of spoilt normals a remedy may cost: what sees less
	// also has fewer false alarms.
	mostBlind = 0.05
)

// remedy is one of the things that can be done about light.
type remedy struct {
	choice, how string
	alarms      **float64 // of the report
}

// remedies are in the order in which they are tried. LightColours is only done when it
// is asked for: what it hides cannot be told from what it helps by light alone.
func (l *LightReport) remedies() []remedy {
	return []remedy{
		{LightUsual, "with pictures as they are", &l.Usual},
		{LightEven, "with the light of every picture evened out", &l.Even},
		{LightVaried, "with copies in other light among the normals", &l.Varied},
		{LightColours, "with light and colours of every picture evened out", &l.Colours},
	}
}

// String is the finding in a sentence, for people.
func (l LightReport) String() string {
	var tried []string
	for _, r := range l.remedies() {
		if v := *r.alarms; v != nil {
			how := r.how
			if r.choice == l.Choice {
				how += " (this release)"
			} else if l.blind(r.choice) {
				how += fmt.Sprintf(" (but slight defects are harder to see then: AUROC %.2f, %.2f as they are)", l.Found[r.choice], l.Found[LightUsual])
			}
			tried = append(tried, fmt.Sprintf("%.0f %% %s", 100**v, how))
		}
	}
	grey := ""
	if l.Grey {
		grey = "; pictures are read as grey, as all normals are"
	}
	if len(tried) == 0 {
		return "too few normals to see what other light does" + grey
	}
	text := "in other light (±10 %) 5 % of false alarms become " + strings.Join(tried, ", ")
	switch l.Choice {
	case LightEven:
		text += "; what is wholly too dark or bright is then no anomaly: if it is to be one use --exposure usual"
	case LightColours:
		text += "; what is wholly too dark or bright, or has a slight cast, is then no anomaly"
	}
	return text + grey
}

// blind says whether slight defects are much harder to see with a remedy.
func (l *LightReport) blind(choice string) bool {
	usual, known := l.Found[LightUsual]
	found, tried := l.Found[choice]
	return known && tried && found < usual-mostBlind
}

// inLight builds a score for each of the things that can be done about light, until
// one keeps false alarms low, and gives back the best; a later one must be much
// better, and see defects as well. want is one of them, or LightAuto. The others are
// closed.
func inLight[T io.Closer](want string, build func(choice string) (T, lightEffect, error)) (best T, report *LightReport, err error) {
	report = &LightReport{}
	least := math.NaN()
	for _, r := range report.remedies() {
		if want != r.choice && (want != LightAuto || r.choice == LightColours) {
			continue
		}
		one, effect, err := build(r.choice)
		if err == nil && !math.IsNaN(effect.found) {
			if report.Found == nil {
				report.Found = map[string]float64{}
			}
			report.Found[r.choice] = effect.found
		}
		alarms := effect.alarms
		if err == nil && report.Choice != "" && (!(alarms*muchFewer < least) || report.blind(r.choice)) {
			err = one.Close()
		} else if err == nil {
			if report.Choice != "" {
				err = best.Close()
			}
			best, report.Choice, least = one, r.choice, alarms
		}
		if err != nil {
			if report.Choice != "" && report.Choice != r.choice {
				err = errors.Join(err, best.Close())
			}
			return best, nil, err
		}
		if !math.IsNaN(alarms) {
			*r.alarms = &alarms
		}
		if !(least > sensitiveAlarms) {
			break
		}
	}
	return best, report, nil
}

// built is a score and the model and normals that it is of.
type built struct {
	x   *embedded
	s   *builtScore
	p   Plan
	own bool // the model is no other's
}

// Close gives back the score, and the model where that is its own.
func (b built) Close() error {
	err := b.s.Close()
	if b.own {
		err = errors.Join(err, b.x.Close())
	}
	return err
}

// buildInLight builds the score with what the plan says about light, or leaves open
// and helps. The model of x is closed where another is given back.
func buildInLight(ctx context.Context, p Plan, nets networks, dir string, x *embedded, h halves) (built, *LightReport, error) {
	best, report, err := inLight(p.Model.Light, func(choice string) (built, lightEffect, error) {
		one := built{x: x, p: p}
		var err error
		if evensOut(choice) {
			one.own = true
			if one.p.Model.tone, err = evenTone(x.b.model, p.Data, x.imagesAt(h.train), choice == LightColours); err != nil {
				return one, lightEffect{}, err
			}
			if one.x, err = x.twin(ctx, one.p, nets, filepath.Join(dir, "even.onnx")); err != nil {
				return one, lightEffect{}, err
			}
		}
		one.x.b.light, one.x.b.folded = p.Model.Light != LightUsual, h.folded
		one.x.b.copies = copyingOf(len(h.train), p.Model, choice == LightVaried)
		if one.s, err = one.x.b.build(ctx, one.x.n.at(h.train), one.x.n.at(h.held)); err != nil {
			if one.own {
				err = errors.Join(err, one.x.Close())
			}
			return one, lightEffect{}, err
		}
		return one, one.s.light, nil
	})
	if err != nil {
		return built{x: x, p: p}, nil, err
	}
	if p.Model.Light == LightUsual {
		report = nil
	} else {
		report.Grey = best.p.Model.tone.ReadsGrey()
	}
	if best.own {
		err = x.Close()
	}
	return best, report, err
}

const (
	// toneImages is how many normals say what their usual light is.
	toneImages = 100
	// toneLevels is by how many levels, the 5th to the 95th percentile.
	toneLevels = 19
)

// evensOut says whether each picture is brought to the usual light of the normals.
func evensOut(light string) bool { return light == LightEven || light == LightColours }

// evenTone brings pictures to the usual light of normals, and to their colours if these are
// to be evened out, too, as the model sees them, and
// cuts off in all what other light cuts off in some: an offset of −5 % leaves nothing of
// what is darker than that, and no gain or offset brings it back.
func evenTone(m *model, data Data, images []Image, colours bool) (*imaging.Tone, error) {
	prepare := m.e.Preprocess()
	t := imaging.Tone{Levels: make([]float64, toneLevels)}
	t.Floor, t.Ceiling = evaluate.Kept()
	if prepare.Tone != nil {
		t.Gamma, t.Grey = prepare.Tone.Gamma, prepare.Tone.Grey
	}
	if colours && !t.Grey {
		t.Colours = [][]float64{make([]float64, toneLevels), make([]float64, toneLevels), make([]float64, toneLevels)}
	}
	prepare.Tone, prepare.Tiles = nil, nil
	square := make([]uint8, prepare.Bytes())
	some := min(len(images), toneImages)
	for i := range some {
		img := images[i*len(images)/some]
		b, err := img.Read()
		if err != nil {
			return nil, fmt.Errorf("read normal image %s: %w", img.Name, err)
		}
		if _, err := prepare.Apply(b, data.Limits, square); err != nil {
			return nil, fmt.Errorf("prepare normal image %s: %w", img.Name, err)
		}
		for k, v := range imaging.LevelsOf(square, toneLevels) {
			t.Levels[k] += v / float64(some)
		}
		if t.Colours == nil {
			continue
		}
		for c, levels := range imaging.ColourLevelsOf(square, toneLevels) {
			for k, v := range levels {
				t.Colours[c][k] += v / float64(some)
			}
		}
	}
	return &t, nil
}
