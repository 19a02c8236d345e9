package frechet

import (
	"cmp"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
)

// Target is where training should stop.
type Target struct {
	Kind  Kind
	Value float64
}

// Kind is the quantity that a target is set for.
type Kind string

const (
	// Ratio is r = (FD − FD_split)/(FD_noise − FD_split), for any extractor.
	Ratio Kind = "r"
	// FID is the Fréchet distance itself: the paper's targets, if the extractor
	// is FID's Inception network. It grows as sets shrink: the same generator
	// that has 5 with fifty thousand images has above 30 with a thousand.
	FID Kind = "fid"
	// Steps is a number of training steps, whatever the distance.
	Steps Kind = "steps"
)

// ParseTarget reads "r=0.3", "fid=40" or "steps=20000".
func ParseTarget(s string) (Target, error) {
	name, value, ok := strings.Cut(s, "=")
	v, err := strconv.ParseFloat(value, 64)
	t := Target{Kind(name), v}
	if !ok || err != nil || math.IsNaN(v) || math.IsInf(v, 0) || v <= 0 || !slices.Contains([]Kind{Ratio, FID, Steps}, t.Kind) ||
		t.Kind == Steps && v != math.Trunc(v) || t.Kind == Ratio && v >= 1 {
		return Target{}, fmt.Errorf("read stopping target %q: want r=R with 0 < R < 1, fid=F or steps=N", s)
	}
	return t, nil
}

func (t Target) String() string { return fmt.Sprintf("%s=%g", t.Kind, t.Value) }

// Probe is one measurement of the generator during training.
type Probe struct {
	Step int `json:"step"` // training steps done
	Measurement
	Copies CopyReport `json:"copies"`
}

// ControllerOptions tune a controller. Zero values mean the defaults.
type ControllerOptions struct {
	// Overshoot is how far below its target, as a part of it, a checkpoint may
	// lie and still be used; default 0.2. The paper's table 6 shows why it is
	// small: stopping late costs far more than stopping early.
	Overshoot float64
	// Keep is the number of checkpoints to keep around the target; default 3.
	Keep int
	// Reach is how far before its target, as a multiple of it, a checkpoint may
	// lie to be kept beside the best one; default 1.5, for steps 1.25: samples of
	// much earlier weights still are noisy.
	Reach float64
	// MaxCopies is the share of copied fakes at which training stops and the
	// checkpoint is not used; default 0.1.
	MaxCopies float64
}

// Controller decides, probe by probe, whether to go on training, and which
// checkpoints are worth keeping. It is not safe for concurrent use.
type Controller struct {
	target Target
	o      ControllerOptions
	probes []Probe
	reason string
}

// NewController returns a controller for a target.
func NewController(t Target, o ControllerOptions) *Controller {
	o.Overshoot = cmp.Or(o.Overshoot, 0.2)
	o.Keep = cmp.Or(o.Keep, 3)
	if o.Reach == 0 {
		o.Reach = 1.5
		if t.Kind == Steps {
			o.Reach = 1.25
		}
	}
	o.MaxCopies = cmp.Or(o.MaxCopies, 0.1)
	return &Controller{target: t, o: o}
}

// Observe takes the next probe, in the order of steps, and says whether to stop.
func (c *Controller) Observe(p Probe) (stop bool) {
	c.probes = append(c.probes, p)
	v := c.value(p)
	switch {
	case c.target.Kind == Steps && p.Step >= int(c.target.Value):
		c.reason = fmt.Sprintf("reached %d steps", p.Step)
	case p.Copies.Share > c.o.MaxCopies:
		c.reason = fmt.Sprintf("memorising: %.0f%% of the fakes are copies of normals at step %d", 100*p.Copies.Share, p.Step)
	case c.target.Kind != Steps && v < c.target.Value*(1-c.o.Overshoot):
		c.reason = fmt.Sprintf("passed %s at step %d with %.4g", c.target, p.Step, v)
	case c.target.Kind != Steps && v <= c.target.Value:
		c.reason = fmt.Sprintf("reached %s at step %d with %.4g", c.target, p.Step, v)
	}
	return c.reason != ""
}

// value is what the target is compared with.
func (c *Controller) value(p Probe) float64 {
	switch c.target.Kind {
	case Ratio:
		return p.Ratio
	case FID:
		return p.FD
	}
	return float64(p.Step)
}

// Reached reports whether a probe came as near to the normals as the target
// asks, or nearer.
func (c *Controller) Reached() bool {
	return slices.ContainsFunc(c.probes, func(p Probe) bool {
		if c.target.Kind == Steps {
			return p.Step >= int(c.target.Value)
		}
		return c.value(p) <= c.target.Value
	})
}

// Reason says why Observe asked to stop, or that the target was not reached.
func (c *Controller) Reason() string {
	switch {
	case c.reason != "":
		return c.reason
	case len(c.probes) == 0:
		return "no probe was taken"
	}
	last := c.probes[len(c.probes)-1]
	return fmt.Sprintf("target %s not reached: at %.4g after %d steps", c.target, c.value(last), last.Step)
}

// Probes are all probes observed.
func (c *Controller) Probes() []Probe { return slices.Clone(c.probes) }

// Keep are the steps whose checkpoints may still be used, best first: those that
// are not too far below the target, hold few copies, and lie nearest to it. The
// first is the one to sample from. Checkpoints of all other steps can be
// deleted.
func (c *Controller) Keep() []int {
	var usable []Probe
	for _, p := range c.probes {
		if p.Step > 0 && !c.overshoots(p) && p.Copies.Share <= c.o.MaxCopies {
			usable = append(usable, p)
		}
	}
	slices.SortStableFunc(usable, func(a, b Probe) int {
		return cmp.Compare(c.distance(a), c.distance(b))
	})
	var steps []int
	for i, p := range usable {
		if i == 0 || len(steps) < c.o.Keep && c.near(p) {
			steps = append(steps, p.Step)
		}
	}
	return steps
}

func (c *Controller) overshoots(p Probe) bool {
	if c.target.Kind == Steps {
		return p.Step > int(c.target.Value)
	}
	return c.value(p) < c.target.Value*(1-c.o.Overshoot)
}

func (c *Controller) distance(p Probe) float64 {
	return math.Abs(math.Log(max(c.value(p), 1e-12) / c.target.Value))
}

func (c *Controller) near(p Probe) bool {
	if c.target.Kind == Steps {
		return c.value(p) >= c.target.Value/c.o.Reach
	}
	return c.value(p) <= c.target.Value*c.o.Reach
}

// Share is the part of the fakes to draw from one checkpoint.
type Share struct {
	Step int     `json:"step"`
	Part float64 `json:"part"`
}

// Mix are the kept checkpoints in the order of training, with the parts of the
// fakes to draw from them: 40 % from each of the two best of three and 20 % from
// the third, 60 and 40 % of two. A mixture guards against one probe's chance.
func (c *Controller) Mix() []Share {
	parts := [][]float64{{1}, {0.6, 0.4}, {0.4, 0.4, 0.2}}
	steps := c.Keep()
	if len(steps) == 0 {
		return nil
	}
	n := min(len(steps), len(parts))
	mix := make([]Share, n)
	for i := range mix {
		mix[i] = Share{steps[i], parts[n-1][i]}
	}
	slices.SortFunc(mix, func(a, b Share) int { return a.Step - b.Step })
	return mix
}
