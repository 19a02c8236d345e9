package training

import (
	"context"
	"io"
)

// SharpnessReport says what a slight blur does to normals, as [LightReport] says it of other
// light: pictures as they are a little out of focus, which lenses and shaken cameras make.
type SharpnessReport struct {
	// Choice is SharpnessUsual, SharpnessWhole or SharpnessVaried.
	Choice string `json:"choice"`
	// The shares of false alarms, 0..1, with pictures as they are, with blurred copies in
	// the banks of whole pictures, and in those of patches, too; nil where that was not tried.
	Usual  *float64 `json:"usual,omitempty"`
	Whole  *float64 `json:"whole,omitempty"`
	Varied *float64 `json:"varied,omitempty"`
	// Found is the AUROC, 0..1, of sharp normals against slightly spoilt ones, by choice.
	Found map[string]float64 `json:"found,omitempty"`
}

func (s *SharpnessReport) remedies() remedies {
	return remedies{[]remedy{
		{SharpnessUsual, "with pictures as they are", &s.Usual},
		{SharpnessWhole, "with blurred copies among the normals, but not among their patches", &s.Whole},
		{SharpnessVaried, "with blurred copies and their patches among the normals", &s.Varied},
	}, &s.Choice, &s.Found}
}

// String is the finding in a sentence, for people.
func (s SharpnessReport) String() string {
	tried := s.remedies().String()
	if tried == "" {
		return "too few normals to see what a slight blur does"
	}
	return "slightly blurred, 5 % of false alarms become " + tried
}

// inSharpness is inLight for a blur: want is one of what can be done, or SharpnessAuto.
func inSharpness[T io.Closer](want string, build func(choice string) (T, effect, error)) (best T, report *SharpnessReport, err error) {
	report = &SharpnessReport{}
	best, err = try(report.remedies(), func(choice string) bool { return want == choice || want == SharpnessAuto },
		func(e effect) float64 { return e.blur }, build)
	return best, report, err
}

// buildInSharpness has a score that is built be the best of what the plan says about blur,
// after what was chosen about light. Where it cannot be, the score is closed.
func buildInSharpness(ctx context.Context, p Plan, light string, one built, h halves) (built, *SharpnessReport, error) {
	if p.Model.Sharpness == SharpnessUsual {
		return one, nil, nil
	}
	b, made := one.x.b, map[*builtScore]copying{one.s: one.x.b.copies}
	s, report, err := inSharpness(p.Model.Sharpness, func(choice string) (*builtScore, effect, error) {
		if choice == SharpnessUsual || choice == p.Model.Sharpness {
			return one.s, one.s.effect, nil // which has what was asked for
		}
		b.copies = copyingOf(len(h.train), p.Model, light, choice)
		s, err := b.build(ctx, one.x.n.at(h.train), one.x.n.at(h.held))
		if err != nil {
			return nil, effect{}, err
		}
		made[s] = b.copies
		return s, s.effect, nil
	})
	if err != nil {
		return one, nil, err
	}
	b.copies = made[s] // of whatever else is built as this is
	one.s = s
	return one, report, nil
}
