package sink

import (
	"fmt"
	"slices"
	"sync"
	"time"
)

// Results are what can become of an event at a sink; they name the counters.
const (
	ResultSent      = "sent"
	ResultFiltered  = "filtered"   // kind, detector, camera, score or hours
	ResultTooOld    = "too_old"    // older than max_age
	ResultCooled    = "cooled"     // its camera's cool-down
	ResultLimited   = "limited"    // beyond the rate: reported in a summary
	ResultFailed    = "failed"     // a try that failed; another follows
	ResultDead      = "dead"       // in the dead letters
	ResultLost      = "lost"       // the broker discarded it by age or size before it was sent
	ResultSummaries = "summaries"  // summaries sent
	ResultForeign   = "unreadable" // no event
)

// busy is what decide answers while an event of a camera with a cool-down is
// under way: only what becomes of that one decides about the next.
const busy = "busy"

// judge decides whether an event is sent. Cool-downs and rates start when
// something was delivered, not when it was seen: what was filtered out must
// not silence what matters. Each engine has judges of its own.
type judge struct {
	sink  Sink
	hours hours

	mu      sync.Mutex
	cooling map[string]time.Time // detector/camera → when its cool-down ends
	flying  map[string]bool      // detector/camera → an event is under way; with a cool-down only
	period  time.Time            // when the rate's period began
	used    int                  // sent, or under way, in this period
	held    held
}

// held are the events beyond the rate.
type held struct {
	n       int
	cameras map[string]bool
	last    Notice
}

func newJudge(s Sink) (*judge, error) {
	h, err := parseHours(s.Hours)
	if err != nil {
		return nil, err
	}
	return &judge{sink: s, hours: h, cooling: map[string]time.Time{}, flying: map[string]bool{}}, nil
}

func place(n Notice) string { return n.Event.Detector + "/" + n.Event.Camera }

// decide returns [ResultSent] when the event is to be sent now, and otherwise
// what becomes of it and why. An event that is to be sent must be given back by
// delivered.
func (j *judge) decide(n Notice, now time.Time) (result, why string) {
	s := j.sink
	switch {
	case !slices.Contains(s.kinds(), n.Event.Kind):
		return ResultFiltered, "kind"
	case len(s.Detectors) > 0 && !slices.Contains(s.Detectors, n.Event.Detector):
		return ResultFiltered, "detector"
	case len(s.Cameras) > 0 && !slices.ContainsFunc(n.cameras(), func(c string) bool { return slices.Contains(s.Cameras, c) }):
		return ResultFiltered, "camera"
	case s.MinRatio > 0 && n.Event.Score != nil && n.Ratio() < s.MinRatio:
		return ResultFiltered, "score"
	case s.MaxP > 0 && n.Event.PValue != nil && *n.Event.PValue > s.MaxP:
		return ResultFiltered, "p_value"
	case len(s.Verdicts) > 0 && n.Incident != nil && !slices.Contains(s.Verdicts, n.Incident.State()):
		return ResultFiltered, "verdict"
	case !j.hours.at(now):
		return ResultFiltered, "hours"
	case s.MaxAge > 0 && now.Sub(n.At) > time.Duration(s.MaxAge):
		return ResultTooOld, fmt.Sprintf("%v old", now.Sub(n.At).Round(time.Second))
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	if until := j.cooling[place(n)]; now.Before(until) {
		return ResultCooled, "until " + until.UTC().Format(time.RFC3339)
	}
	if j.flying[place(n)] {
		return busy, ""
	}
	if r := s.Rate; r.N > 0 {
		if now.Sub(j.period) >= time.Duration(r.Per) && j.held.n == 0 {
			j.period, j.used = now, 0
		}
		if j.used >= r.N {
			if j.held.cameras == nil {
				j.held.cameras = map[string]bool{}
			}
			j.held.n++
			j.held.cameras[place(n)] = true
			j.held.last = n
			return ResultLimited, fmt.Sprintf("%d in %v", r.N, time.Duration(r.Per))
		}
		j.used++
	}
	if s.CoolDown > 0 {
		j.flying[place(n)] = true
	}
	return ResultSent, ""
}

// delivered takes note of what became of an event that was to be sent.
func (j *judge) delivered(n Notice, ok bool, now time.Time) {
	j.mu.Lock()
	defer j.mu.Unlock()
	delete(j.flying, place(n))
	if !ok {
		if j.used > 0 {
			j.used--
		}
		return
	}
	if d := time.Duration(j.sink.CoolDown); d > 0 {
		for k, until := range j.cooling { // no more than the cameras of one cool-down are kept
			if now.After(until) {
				delete(j.cooling, k)
			}
		}
		j.cooling[place(n)] = now.Add(d)
	}
}

// summary is the one notice for what was held back, once the rate's period is
// over or at the end.
func (j *judge) summary(now time.Time, atEnd bool) (Notice, bool) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.held.n == 0 || !atEnd && now.Sub(j.period) < time.Duration(j.sink.Rate.Per) {
		return Notice{}, false
	}
	n := j.held.last
	n.Summary = j.held.n
	n.ID = "summary-" + n.ID
	n.Event.ID = n.ID
	n.Event.Reason = fmt.Sprintf("and %d more on %d cameras", j.held.n, len(j.held.cameras))
	if len(j.held.cameras) == 1 {
		n.Event.Reason = fmt.Sprintf("and %d more on %s", j.held.n, place(n))
	}
	j.held = held{}
	j.period, j.used = now, 0
	return n, true
}
