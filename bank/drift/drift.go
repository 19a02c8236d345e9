// Package drift watches a stream of conformal p-values and says when normal has
// moved away from what a detector was calibrated on.
//
// A plain test of p-values against the uniform distribution would be wrong: with
// n held-out normals they are uniform only on average over calibrations, one
// calibration is off by about 1/√n, and given enough frames any test finds that
// out. Here each p-value is instead judged by its exact distribution given the
// ones before. If held-out and new scores are exchangeable, the t-th new score
// falls into the j-th of the n+1 gaps between held-out scores with probability
// (1 + c_j)/(n + 1 + t), where c_j counts the earlier new scores in that gap
// (Pólya's urn). The randomised rank u that follows is exactly uniform and
// independent of the past (Vovk, Gammerman & Shafer, "Algorithmic Learning in a
// Random World", ch. 8).
//
// Each u is bet against with several densities f (∫f = 1). For each,
// Shiryaev–Roberts adds up evidence for a change at any earlier frame,
// R ← (1 + R)·f(u), and the mean of the R is compared with Options.Patience.
// While nothing changes R − t has mean zero at most, so the mean number of frames
// to a false alarm is at least Patience, and the chance of one within t frames
// at most t/Patience.
//
// Frames that are themselves anomalous are no evidence that normal has moved:
// defects come and go. They are left out of that test. Their share is watched by
// a second one, which bets that it exceeds what calibration and the expected
// share of defects explain.
//
// Consecutive frames of one scene are not exchangeable. Feed the test frames
// that are as good as independent: one per part, or one in a while
// (Options.Every).
package drift

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"math"

	"github.com/nearmiss/nearmiss/bank"
)

// Options set up a Monitor. The zero value of a field means its default.
type Options struct {
	// HeldOut is the number n of held-out normals behind the p-values. Required.
	HeldOut int `json:"held_out"`
	// Worth is how many independent ones these are worth, 1..HeldOut, as
	// [bank.Calibration.Worth] has it; p-values are then distinguished no finer than
	// so many can. Default HeldOut.
	Worth float64 `json:"worth,omitempty"`
	// Alpha is the detector's false-alarm rate, 0 < Alpha < 1: frames with p ≤
	// Alpha are anomalous. Required.
	Alpha float64 `json:"alpha"`
	// Patience is the mean number of observed frames to a false alarm of each
	// of the two tests, at least. Default 1,000,000.
	Patience float64 `json:"patience"`
	// Defects is the share of truly defective frames, 0..1, that is nothing to
	// worry about. Default 0.05.
	Defects float64 `json:"defects"`
	// Every observes only each Every-th frame. Default 1, all.
	Every int `json:"every"`
	// Seed of the randomised ranks.
	Seed uint64 `json:"seed"`
}

// EveryOf is Options.Every for frames of which alike in a row tell as much as
// one ([bank.Calibration.Alike]): frames so far apart are as good as independent.
func EveryOf(alike float64) int {
	if !(alike > 1) {
		return 1
	}
	return int(math.Ceil(min(2*alike, 1e6)))
}

// Cause says what moved.
type Cause string

const (
	// None: nothing moved.
	None Cause = ""
	// Scores: the scores of frames that pass as normal are distributed
	// otherwise than those of the held-out normals.
	Scores Cause = "scores"
	// Alarms: more frames are anomalous than calibration and expected defects
	// explain.
	Alarms Cause = "alarms"
)

// Status is what a Monitor knows.
type Status struct {
	// Frames observed and Anomalous ones among them.
	Frames    int `json:"frames"`
	Anomalous int `json:"anomalous"`
	// Drifted stays set, with its Cause and the frame count At which it was
	// found, until the monitor is made anew for another release.
	Drifted bool  `json:"drifted"`
	Cause   Cause `json:"cause,omitempty"`
	At      int   `json:"at,omitempty"`
	// Evidence is the larger of the two tests' statistics divided by Patience;
	// 1 and above means drift. It is an odds-like number, not a probability.
	Evidence float64 `json:"evidence"`
	// Level is the mean of recent ranks (about the last 100 normal frames),
	// 0..1: 0.5 as calibrated, less where scores rise, more where they fall.
	Level float64 `json:"level"`
	// AlarmShare is the share of anomalous frames among about the last 100.
	AlarmShare float64 `json:"alarm_share"`
}

// Monitor tests one stream: one detector's release on one camera. It is not safe
// for concurrent use.
type Monitor struct {
	o     Options
	first int     // levels 1..first are anomalous: ⌊α(n+1)⌋
	limit float64 // share of anomalous frames that is no evidence
	s     state
}

// state is what changes, and what MarshalJSON keeps.
type state struct {
	Offered int       `json:"seen"`   // frames offered
	Counts  []uint32  `json:"counts"` // normal frames observed, by level above first or groups of them
	Scores  []float64 `json:"scores"` // R of each bet on ranks
	Alarms  []float64 `json:"alarms"` // R of each bet on the alarm share
	Status  Status    `json:"status"`
}

// New makes a monitor.
func New(o Options) (*Monitor, error) {
	o.Patience = cmp.Or(o.Patience, 1e6)
	o.Defects = cmp.Or(o.Defects, 0.05)
	o.Every = cmp.Or(o.Every, 1)
	switch {
	case o.HeldOut < 1 || o.HeldOut > 1<<24:
		return nil, fmt.Errorf("drift monitor: %d held-out normals, must be in 1..%d", o.HeldOut, 1<<24)
	case !(o.Worth >= 0) || o.Worth != 0 && !(o.Worth >= 1 && o.Worth <= float64(o.HeldOut)):
		return nil, fmt.Errorf("drift monitor: %d held-out normals are worth %v, must be in 1..%d", o.HeldOut, o.Worth, o.HeldOut)
	case !(o.Alpha > 0 && o.Alpha < 1):
		return nil, fmt.Errorf("drift monitor: false-alarm rate %v is not between 0 and 1", o.Alpha)
	case !(o.Patience > 1):
		return nil, fmt.Errorf("drift monitor: patience of %v frames, must be more than 1", o.Patience)
	case !(o.Defects >= 0 && o.Defects < 1):
		return nil, fmt.Errorf("drift monitor: share of defects %v is not in 0..1", o.Defects)
	case o.Every < 1:
		return nil, fmt.Errorf("drift monitor: observe every %d-th frame, must be at least 1", o.Every)
	}
	m := &Monitor{o: o}
	n1 := float64(o.HeldOut + 1)
	for float64(m.first+1)/n1 <= o.Alpha {
		m.first++
	}
	levels, worth, promise := o.HeldOut+1-m.first, o.HeldOut, o.Alpha
	if o.Worth > 0 && o.Worth < float64(o.HeldOut) {
		worth = int(o.Worth)
		promise = max(o.Alpha, 1/float64(worth+1))
		levels = max(1, int(math.Round(float64(levels)*(o.Worth+1)/n1)))
	}
	// What this one calibration's own rate can be, defects on top.
	_, high := bank.FalseAlarmRange(worth, promise, 0.998)
	m.limit = min(high+o.Defects*(1-high), 0.99)
	m.s = state{
		Counts: make([]uint32, levels),
		Scores: make([]float64, len(rankBets)),
		Alarms: make([]float64, len(shareBets)),
		Status: Status{Level: 0.5},
	}
	return m, nil
}

// Status is what the monitor knows so far.
func (m *Monitor) Status() Status { return m.s.Status }

// Observe takes the p-value of the next frame, as bank.Result has it: one of
// 1/(n+1), …, n/(n+1), 1. It returns the new status, and an error, changing
// nothing, for a number that cannot be a p-value of this calibration.
func (m *Monitor) Observe(p float64) (Status, error) {
	n1 := float64(m.o.HeldOut + 1)
	level := int(math.Round(p * n1))
	if !(p > 0 && p <= 1) || level < 1 || math.Abs(p*n1-float64(level)) > 1e-6*n1 {
		return m.s.Status, fmt.Errorf("observe p-value %v: not of a calibration with %d held-out normals", p, m.o.HeldOut)
	}
	m.s.Offered++
	if (m.s.Offered-1)%m.o.Every != 0 {
		return m.s.Status, nil
	}
	st := &m.s.Status
	st.Frames++
	anomalous := level <= m.first
	m.betOnShare(anomalous)
	if anomalous {
		st.Anomalous++
	} else {
		u := m.rank((level - m.first - 1) * len(m.s.Counts) / (m.o.HeldOut + 1 - m.first))
		m.betOnRank(u)
		st.Level += (u - st.Level) / 100
	}
	st.AlarmShare += (indicator(anomalous) - st.AlarmShare) / float64(min(st.Frames, 100))
	scores, alarms := mean(m.s.Scores)/m.o.Patience, mean(m.s.Alarms)/m.o.Patience
	st.Evidence = max(scores, alarms)
	if !st.Drifted && st.Evidence >= 1 {
		st.Drifted, st.At, st.Cause = true, st.Frames, Scores
		if alarms > scores {
			st.Cause = Alarms
		}
	}
	return *st, nil
}

// rank draws the exact predictive rank, 0..1, of a normal frame whose p-value
// is on the given level above the anomalous ones, and counts it in.
func (m *Monitor) rank(level int) float64 {
	below := 0.0
	for _, c := range m.s.Counts[:level] {
		below += float64(1 + c)
	}
	own := float64(1 + m.s.Counts[level])
	total := float64(len(m.s.Counts) + m.s.Status.Frames - 1 - m.s.Status.Anomalous)
	m.s.Counts[level]++
	return (below + uniform(m.o.Seed, uint64(m.s.Offered))*own) / total
}

// rankBets are densities on 0..1. Slopes find scores that rise or fall, powers
// a share of frames close to the anomalous ones, bowls and humps scores that
// scatter more or less than they used to.
var rankBets = func() (out []func(u float64) float64) {
	for _, slope := range []float64{-1.8, -1, -0.4, 0.4, 1, 1.8} {
		out = append(out, func(u float64) float64 { return 1 + slope*(u-0.5) })
	}
	for _, k := range []float64{0.4, 0.7} {
		out = append(out, func(u float64) float64 { return k * math.Pow(max(u, 1e-9), k-1) })
	}
	for _, bend := range []float64{-0.9, 0.9} {
		// 6(u−½)² − ½ has mean 0 and lies in −½..1
		out = append(out, func(u float64) float64 { return 1 + bend*(6*(u-0.5)*(u-0.5)-0.5) })
	}
	return out
}()

// shareBets are the odds by which the share of anomalous frames may exceed the
// limit.
var shareBets = []float64{1.5, 3, 10}

func (m *Monitor) betOnRank(u float64) {
	for i, f := range rankBets {
		m.s.Scores[i] = gain(m.s.Scores[i], f(u))
	}
}

// betOnShare bets by likelihood ratios of a larger share to the limit, which
// have mean 1 at most wherever the true share is within the limit.
func (m *Monitor) betOnShare(anomalous bool) {
	odds := m.limit / (1 - m.limit)
	for i, factor := range shareBets {
		q := factor * odds / (1 + factor*odds)
		f := (1 - q) / (1 - m.limit)
		if anomalous {
			f = q / m.limit
		}
		m.s.Alarms[i] = gain(m.s.Alarms[i], f)
	}
}

// gain is one step of Shiryaev–Roberts, kept finite.
func gain(r, f float64) float64 { return min((1+r)*f, 1e300) }

func mean(v []float64) float64 {
	s := 0.0
	for _, x := range v {
		s += x / float64(len(v))
	}
	return s
}

func indicator(b bool) float64 {
	if b {
		return 1
	}
	return 0
}

// uniform is a number in (0, 1) for each seed and frame: splitmix64's
// finaliser (Steele, Lea & Flood 2014).
func uniform(seed, i uint64) float64 {
	x := seed ^ i*0x9e3779b97f4a7c15
	for range 2 {
		x += 0x9e3779b97f4a7c15
		x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9
		x = (x ^ (x >> 27)) * 0x94d049bb133111eb
		x ^= x >> 31
	}
	return (float64(x>>11) + 0.5) / (1 << 53)
}

// saved is a monitor as JSON.
type saved struct {
	Options Options `json:"options"`
	State   state   `json:"state"`
}

// MarshalJSON keeps everything, so that a monitor goes on after a restart where
// it was.
func (m *Monitor) MarshalJSON() ([]byte, error) { return json.Marshal(saved{m.o, m.s}) }

// UnmarshalJSON takes back what MarshalJSON gave.
func (m *Monitor) UnmarshalJSON(b []byte) error {
	var v saved
	if err := json.Unmarshal(b, &v); err != nil {
		return fmt.Errorf("read drift monitor: %w", err)
	}
	if v.Options.HeldOut > 1<<24 || v.Options.Worth == 0 && v.Options.HeldOut > len(v.State.Counts)+1<<20 { // bounds what New allocates
		return errors.New("read drift monitor: counts do not fit its options")
	}
	fresh, err := New(v.Options)
	if err != nil {
		return fmt.Errorf("read drift monitor: %w", err)
	}
	observed := 0
	for _, c := range v.State.Counts {
		observed += int(c)
	}
	st := v.State.Status
	if len(v.State.Counts) != len(fresh.s.Counts) || len(v.State.Scores) != len(fresh.s.Scores) ||
		len(v.State.Alarms) != len(fresh.s.Alarms) || st.Anomalous < 0 || observed != st.Frames-st.Anomalous ||
		v.State.Offered < st.Frames {
		return errors.New("read drift monitor: its state does not fit its options")
	}
	for _, r := range append(append([]float64{}, v.State.Scores...), v.State.Alarms...) {
		if !(r >= 0 && r <= 1e300) {
			return fmt.Errorf("read drift monitor: evidence %v is not in range", r)
		}
	}
	fresh.s = v.State
	*m = *fresh
	return nil
}
