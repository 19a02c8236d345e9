package training

import (
	"context"
	"fmt"
	"math"
	"path/filepath"

	"github.com/nearmiss/nearmiss/inference/imaging"
	"github.com/nearmiss/nearmiss/training/evaluate"
)

// LightReport says what other light does to normals: of those above a threshold
// that 5 % of normals are above, how many there are when each is seen with a gain of
// up to ±10 % and an offset of up to ±5 %. It is measured on normals that are
// compared with others, and no anomaly is known.
type LightReport struct {
	// Choice is LightUsual or LightEven.
	Choice string `json:"choice"`
	// Usual and Even are the shares, 0..1, with pictures as they are and with pictures
	// of one brightness; nil where that was not tried.
	Usual *float64 `json:"usual,omitempty"`
	Even  *float64 `json:"even,omitempty"`
}

const (
	// sensitiveAlarms is what 5 % of false alarms may become in other light.
	sensitiveAlarms = 2 * evaluate.SuiteAlarms
	// muchFewer is how many times fewer alarms make it worth to even the light out,
	// which hides what is wholly too dark or too bright.
	muchFewer = 1.5
)

// String is the finding in a sentence, for people.
func (l LightReport) String() string {
	percent := func(v *float64) string { return fmt.Sprintf("%.0f %%", 100**v) }
	switch {
	case l.Usual == nil && l.Even == nil:
		return "too few normals to see what other light does"
	case l.Usual == nil:
		return fmt.Sprintf("every picture is scaled to one brightness: in other light (±10 %%) 5 %% of false alarms become %s", percent(l.Even))
	case l.Even == nil:
		return fmt.Sprintf("in other light (±10 %%) 5 %% of false alarms become %s", percent(l.Usual))
	case l.Choice == LightEven:
		return fmt.Sprintf("in other light (±10 %%) 5 %% of false alarms would become %s, so every picture is scaled to one brightness: %s; what is wholly too dark or bright is then no anomaly, if it is to be one use --exposure usual",
			percent(l.Usual), percent(l.Even))
	}
	return fmt.Sprintf("in other light (±10 %%) 5 %% of false alarms become %s, and scaling pictures to one brightness would not help much: %s", percent(l.Usual), percent(l.Even))
}

// known is nil for what was not measured.
func known(alarms float64) *float64 {
	if math.IsNaN(alarms) {
		return nil
	}
	return &alarms
}

// evenBetter says whether it is worth to even the light out.
func evenBetter(usual, even float64) bool { return usual > sensitiveAlarms && even*muchFewer < usual }

// built is a score and the model and normals that it is of.
type built struct {
	x *embedded
	s *builtScore
	p Plan
}

// buildInLight builds the score, with pictures of one brightness where the plan says
// so, or leaves it open and that helps. It closes what it does not give back.
func buildInLight(ctx context.Context, p Plan, nets networks, dir string, x *embedded, h halves) (built, *LightReport, error) {
	usual := built{x: x, p: p}
	var err error
	x.b.light = p.Model.Light != LightUsual
	if p.Model.Light != LightEven {
		if usual.s, err = x.b.build(ctx, x.n.at(h.train), x.n.at(h.held)); err != nil {
			return usual, nil, err
		}
		if p.Model.Light == LightUsual {
			return usual, nil, nil
		}
		report := &LightReport{Choice: LightUsual, Usual: known(usual.s.alarms)}
		if report.Usual == nil || *report.Usual <= sensitiveAlarms {
			return usual, report, nil
		}
	}
	even := built{p: p}
	if even.p.Model.tone, err = evenTone(x, p, h.train); err != nil {
		return usual, nil, err
	}
	if even.x, err = x.twin(ctx, even.p, nets, filepath.Join(dir, "even.onnx")); err != nil {
		return usual, nil, err
	}
	even.x.b.light = true
	if even.s, err = even.x.b.build(ctx, even.x.n.at(h.train), even.x.n.at(h.held)); err != nil {
		_ = even.x.Close()
		return usual, nil, err
	}
	report := &LightReport{Choice: LightEven, Even: known(even.s.alarms)}
	keep, drop := even, usual
	if usual.s != nil {
		report.Usual = known(usual.s.alarms)
		if !evenBetter(usual.s.alarms, even.s.alarms) {
			report.Choice, keep, drop = LightUsual, usual, even
		}
	}
	if drop.s != nil {
		if err := drop.s.Close(); err != nil {
			return keep, nil, err
		}
	}
	return keep, report, drop.x.Close()
}

// toneImages is how many normals say what one brightness is.
const toneImages = 100

// evenTone is the mean brightness of normals, as the model sees them.
func evenTone(x *embedded, p Plan, train []int) (*imaging.Tone, error) {
	return brightnessOf(x.b.model, p.Data, x.imagesAt(train))
}

func brightnessOf(m *model, data Data, images []Image) (*imaging.Tone, error) {
	prepare := m.e.Preprocess()
	prepare.Tone = nil
	square := make([]uint8, prepare.Bytes())
	some := images[:min(len(images), toneImages)]
	sum := 0.0
	for _, img := range some {
		b, err := img.Read()
		if err != nil {
			return nil, fmt.Errorf("read normal image %s: %w", img.Name, err)
		}
		if _, err := prepare.Apply(b, data.Limits, square); err != nil {
			return nil, fmt.Errorf("prepare normal image %s: %w", img.Name, err)
		}
		sum += imaging.Brightness(square)
	}
	mean := sum / float64(max(len(some), 1))
	t := imaging.Tone{Brightness: min(max(mean, 0.02), 0.98)}
	if was := m.e.Preprocess().Tone; was != nil {
		t.Gamma = was.Gamma
	}
	return &t, nil
}
