package sink

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/nearmiss/nearmiss/stream"
	"github.com/nearmiss/nearmiss/stream/incident"
)

// Sink is one receiver of events. Its JSON is the value of its key in NM_SINKS.
type Sink struct {
	Name    string `json:"name"`
	Kind    string `json:"kind"` // webhook, …
	Enabled bool   `json:"enabled"`

	// Which events. An empty list means all.
	Detectors []string `json:"detectors,omitempty"`
	Cameras   []string `json:"cameras,omitempty"`
	Kinds     []string `json:"kinds,omitempty"` // of event; empty: [DefaultKinds]
	// MinRatio is the least score, as a multiple of the threshold; 0: any.
	MinRatio float64 `json:"min_ratio,omitempty"`
	// MaxP is the largest p-value, 0-1; 0: any.
	MaxP float64 `json:"max_p,omitempty"`
	// Verdicts are the states of incidents that are sent, see [incident.Verdict]:
	// with open alone, what somebody has seen is sent no more. Empty: all.
	Verdicts []string `json:"verdicts,omitempty"`
	// Hours are when events are sent, such as "Mon-Fri 06:00-22:00
	// Europe/Berlin"; empty: always. What comes at other times is not sent later.
	Hours string `json:"hours,omitempty"`

	// CoolDown is how long nothing more is sent of a camera after something was.
	CoolDown Duration `json:"cool_down,omitzero"`
	// Rate bounds what is sent; what is beyond it is sent in one summary.
	Rate Rate `json:"rate,omitzero"`
	// MaxAge is the age from which an event is too old to be sent; 0: none is.
	MaxAge Duration `json:"max_age,omitzero"`
	// GiveUp is how long an event is tried before it goes to the dead letters.
	// Default 72 h.
	GiveUp Duration `json:"give_up,omitzero"`
	// Ordered sends one event after the other. Otherwise several are under way
	// and a failed one is overtaken.
	Ordered bool `json:"ordered,omitempty"`

	// Config is the kind's own.
	Config json.RawMessage `json:"config,omitempty"`
	// Secret says where the kind's secret is: file:PATH or env:NAME on the
	// machine that runs the sinks.
	Secret string `json:"secret,omitempty"`
}

// Rate is at most N in Per.
type Rate struct {
	N   int      `json:"n"`
	Per Duration `json:"per"`
}

// Duration is a [time.Duration] that is written as "30s" or "72h".
type Duration time.Duration

// MarshalText writes d as time.Duration's String does.
func (d Duration) MarshalText() ([]byte, error) { return []byte(time.Duration(d).String()), nil }

// UnmarshalText reads what time.ParseDuration reads; negative ones are refused.
func (d *Duration) UnmarshalText(b []byte) error {
	v, err := time.ParseDuration(string(b))
	if err == nil && v < 0 {
		err = fmt.Errorf("%s is negative", b)
	}
	*d = Duration(v)
	return err
}

// IncidentPrefix begins the kinds that are phases of incidents: incident.new,
// incident.update and incident.end.
const IncidentPrefix = "incident."

// DefaultKinds are what a sink for people gets when it names no kinds: each
// alarm once when it begins and once when it is over.
var DefaultKinds = []string{
	IncidentPrefix + incident.New, IncidentPrefix + incident.End,
	stream.KindDrift, stream.KindRelease, stream.KindStore, stream.KindCamera, stream.KindLost,
}

// verdictStates are the states of incidents.
var verdictStates = []string{incident.Open, incident.Seen, incident.Confirmed, incident.FalseAlarm}

// defaultGiveUp is for how long an event is tried.
const defaultGiveUp = 72 * time.Hour

// Limits of a sink's configuration.
const (
	maxConfig = 64 << 10 // bytes of the kind's configuration
	maxList   = 1000     // entries of a list
)

// Parse reads a sink. It sees what anybody may have written: unknown fields, a
// name that is not the key, and values out of range are refused.
func Parse(key string, value []byte) (Sink, error) {
	var s Sink
	dec := json.NewDecoder(bytes.NewReader(value))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&s); err != nil {
		return s, fmt.Errorf("sink %q: %w", key, err)
	}
	if dec.More() {
		return s, fmt.Errorf("sink %q: there is something behind the JSON object", key)
	}
	if s.Name != key {
		return s, fmt.Errorf("sink %q calls itself %q", key, s.Name)
	}
	return s, s.Validate()
}

// Validate reports everything that is wrong but what only the kind can know.
func (s Sink) Validate() error {
	var errs []error
	wrong := func(format string, v ...any) {
		errs = append(errs, fmt.Errorf("sink %s: "+format, append([]any{s.Name}, v...)...))
	}
	if err := stream.CheckToken("sink", s.Name); err != nil {
		errs = append(errs, err)
	}
	if err := stream.CheckToken("kind", s.Kind); err != nil {
		wrong("%w", err)
	}
	for what, list := range map[string][]string{"detector": s.Detectors, "camera": s.Cameras, "event kind": s.Kinds} {
		if len(list) > maxList {
			wrong("%d %ss are named, at most %d may be", len(list), what, maxList)
		}
		for _, v := range list {
			if what == "event kind" {
				v = strings.TrimPrefix(v, IncidentPrefix)
			}
			if err := stream.CheckToken(what, v); err != nil && !(what == "camera" && v == stream.NoCamera) {
				wrong("%w", err)
			}
		}
	}
	if !(s.MinRatio >= 0 && s.MinRatio <= 1e6) {
		wrong("min_ratio %g: use 0 (any) or a multiple of the threshold", s.MinRatio)
	}
	if !(s.MaxP >= 0 && s.MaxP <= 1) {
		wrong("max_p %g: use 0 (any) to 1", s.MaxP)
	}
	for _, v := range s.Verdicts {
		if !slices.Contains(verdictStates, v) {
			wrong("verdict %q: use %s", v, strings.Join(verdictStates, ", "))
		}
	}
	if _, err := parseHours(s.Hours); err != nil {
		wrong("%w", err)
	}
	if (s.Rate.N > 0) != (s.Rate.Per > 0) || s.Rate.N < 0 {
		wrong("a rate needs n and per, both above 0")
	}
	if len(s.Config) > maxConfig {
		wrong("its configuration has %d bytes, at most %d may be", len(s.Config), maxConfig)
	}
	if err := checkSecret(s.Secret); err != nil {
		wrong("%w", err)
	}
	return errors.Join(errs...)
}

// Decode reads the kind's configuration; unknown fields are refused.
func (s Sink) Decode(cfg any) error {
	dec := json.NewDecoder(bytes.NewReader(s.Config))
	dec.DisallowUnknownFields()
	if err := dec.Decode(cfg); err != nil {
		return fmt.Errorf("configuration: %w", err)
	}
	return nil
}

func (s Sink) kinds() []string {
	if len(s.Kinds) == 0 {
		return DefaultKinds
	}
	return s.Kinds
}

// filters are the subjects that the sink's consumers ask for, of the events and
// of the incidents.
func (s Sink) filters(n stream.Names) (events, incidents []string) {
	for _, d := range orAny(s.Detectors) {
		for _, k := range s.kinds() {
			if phase, ok := strings.CutPrefix(k, IncidentPrefix); ok {
				incidents = append(incidents, n.Incidents(d, "*", phase))
			} else {
				events = append(events, n.Events(d, "*", k))
			}
		}
	}
	slices.Sort(events)
	slices.Sort(incidents)
	return slices.Compact(events), slices.Compact(incidents)
}

// orAny are names as tokens of subjects: none are named, all are meant.
func orAny(names []string) []string {
	if len(names) == 0 {
		return []string{"*"}
	}
	return names
}

// hours are the times of a week at which a sink sends.
type hours struct {
	days     [7]bool // from Sunday
	from, to int     // minutes of the day; from > to: over midnight
	zone     *time.Location
	always   bool
}

var dayNames = []string{"Sun", "Mon", "Tue", "Wed", "Thu", "Fri", "Sat"}

// parseHours reads "[DAYS] HH:MM-HH:MM [ZONE]", where DAYS is Mon, Mon-Fri or a
// list of these by commas. Without a zone it is UTC.
func parseHours(s string) (hours, error) {
	h := hours{zone: time.UTC}
	fields := strings.Fields(s)
	if len(fields) == 0 {
		h.always = true
		return h, nil
	}
	bad := func(why string) (hours, error) {
		return h, fmt.Errorf("hours %q: %s: write them as \"Mon-Fri 06:00-22:00 Europe/Berlin\"", s, why)
	}
	if strings.Contains(fields[0], ":") { // no days: all of them
		fields = append([]string{"Sun-Sat"}, fields...)
	}
	if len(fields) < 2 || len(fields) > 3 {
		return bad("days, times and zone are expected")
	}
	for part := range strings.SplitSeq(fields[0], ",") {
		a, b, isRange := strings.Cut(part, "-")
		if !isRange {
			b = a
		}
		from, to := slices.Index(dayNames, a), slices.Index(dayNames, b)
		if from < 0 || to < 0 {
			return bad("the days are " + strings.Join(dayNames, ", "))
		}
		for d := from; ; d = (d + 1) % 7 {
			h.days[d] = true
			if d == to {
				break
			}
		}
	}
	a, b, ok := strings.Cut(fields[1], "-")
	from, err1 := time.Parse("15:04", a)
	to, err2 := time.Parse("15:04", strings.Replace(b, "24:00", "00:00", 1))
	if !ok || err1 != nil || err2 != nil {
		return bad("the times are not HH:MM-HH:MM")
	}
	h.from, h.to = from.Hour()*60+from.Minute(), to.Hour()*60+to.Minute()
	if b == "24:00" {
		h.to = 24 * 60
	}
	if len(fields) == 3 {
		zone, err := time.LoadLocation(fields[2])
		if err != nil {
			return bad("the time zone is not known")
		}
		h.zone = zone
	}
	return h, nil
}

func (h hours) at(t time.Time) bool {
	if h.always {
		return true
	}
	t = t.In(h.zone)
	m, day := t.Hour()*60+t.Minute(), int(t.Weekday())
	if h.from < h.to {
		return h.days[day] && m >= h.from && m < h.to
	}
	// Over midnight: the hours after it belong to the day before.
	return h.days[day] && m >= h.from || h.days[(day+6)%7] && m < h.to
}
