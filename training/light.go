package training

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"

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

// remedies of light: LightColours is only done when it
// is asked for: what it hides cannot be separated from what it helps by light alone.
func (l *LightReport) remedies() remedies {
	return remedies{[]remedy{
		{LightUsual, "with pictures as they are", &l.Usual, 0},
		{LightEven, "with the light of every picture evened out", &l.Even, 0},
		{LightVaried, "with copies in other light among the normals", &l.Varied, 0},
		{LightColours, "with light and colours of every picture evened out", &l.Colours, 0},
	}, &l.Choice, &l.Found}
}

// String is the finding in a sentence, for people.
func (l LightReport) String() string {
	grey := ""
	if l.Grey {
		grey = "; pictures are read as grey, as all normals are"
	}
	tried := l.remedies().String()
	if tried == "" {
		return "too few normals to see what other light does" + grey
	}
	text := "in other light (±10 %) a false-alarm rate of 5 % becomes " + tried
	switch l.Choice {
	case LightEven:
		text += "; what is wholly too dark or bright is then no anomaly: if it is to be one use --exposure usual"
	case LightColours:
		text += "; what is wholly too dark or bright, or has a slight cast, is then no anomaly"
	}
	return text + grey
}

// inLight builds a score for each of the things that can be done about light, until
// one keeps false alarms low, and gives back the best. want is one of them, or LightAuto.
func inLight[T io.Closer](want string, build func(choice string) (T, effect, error)) (best T, report *LightReport, err error) {
	report = &LightReport{}
	best, err = try(report.remedies(), func(choice string) bool { return want == choice || want == LightAuto && choice != LightColours },
		func(e effect) float64 { return e.light }, build)
	return best, report, err
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
	best, report, err := inLight(p.Model.Light, func(choice string) (built, effect, error) {
		one := built{x: x, p: p}
		var err error
		if evensOut(choice) {
			one.own = true
			if one.p.Model.tone, err = evenTone(x.b.model, p.Data, x.imagesAt(h.train), choice == LightColours); err != nil {
				return one, effect{}, err
			}
			if one.x, err = x.twin(ctx, one.p, nets, filepath.Join(dir, "even.onnx")); err != nil {
				return one, effect{}, err
			}
		}
		one.x.b.light, one.x.b.blur, one.x.b.folded = p.Model.Light != LightUsual, p.Model.Sharpness != SharpnessUsual, h.folded
		one.x.b.copies = copyingOf(len(h.train), p.Model, choice, p.Model.Sharpness)
		if one.s, err = one.x.b.build(ctx, one.x.n.at(h.train), one.x.n.at(h.held)); err != nil {
			if one.own {
				err = errors.Join(err, one.x.Close())
			}
			return one, effect{}, err
		}
		return one, one.s.effect, nil
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
