package training

import "testing"

// TestWhatAFirstReleaseIsMadeWithout: what takes long and may come later, and nothing that
// was asked for by name.
func TestWhatAFirstReleaseIsMadeWithout(t *testing.T) {
	for name, c := range map[string]struct {
		plan        Plan
		without     string
		light, blur string
	}{
		"the default": {
			without: "a look at other light and a look at a slight blur", light: LightUsual, blur: SharpnessUsual,
		},
		"a tuned network": {
			plan:    Plan{Method: FITYMI, Data: Data{Anomalies: []Image{{}}}, Host: Host{Work: "steps"}},
			without: "tuning the network and a look at other light and a look at a slight blur", light: LightUsual, blur: SharpnessUsual,
		},
		"what was chosen":     {plan: Plan{Model: Model{Light: LightEven, Sharpness: SharpnessVaried}}, light: LightEven, blur: SharpnessVaried},
		"a score of one part": {plan: Plan{Score: Score{Groups: Class()}}},
	} {
		t.Run(name, func(t *testing.T) {
			p := c.plan
			without := p.Hasten()
			if without != c.without || p.Model.Light != c.light || p.Model.Sharpness != c.blur {
				t.Errorf("without %q: light %q, blur %q", without, p.Model.Light, p.Model.Sharpness)
			}
			if p.Method == FITYMI || p.Tuning != nil || p.Data.Anomalies != nil || p.Host.Work != "" {
				t.Errorf("it is tuned all the same: %+v", p)
			}
			if q := p; q.Hasten() != "" {
				t.Error("something is left out twice")
			}
		})
	}
}
