package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/nearmiss/nearmiss/stream"
	"github.com/nearmiss/nearmiss/stream/sink"
)

type sinksShowCmd struct {
	Name string `arg:"" help:"Sink."`
	JSON bool   `name:"json" help:"Print one JSON object: the sink as it is stored, and its status."`
	serverFlags
}

func (*sinksShowCmd) Help() string {
	return "What it sends and when, where to, and what became of its events. A secret is named, not shown.\n\n" + examples("nearmiss sinks show desk")
}

// sinkShown is what show --json prints.
type sinkShown struct {
	sink.Sink
	Status *sink.Status `json:"status,omitempty"` // where a process runs the sinks
}

func (c *sinksShowCmd) Run(ctx context.Context, o *output) error {
	step, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	var shown sinkShown
	err := withSinks(step, c.serverFlags, o, func(b jetstream.KeyValue, _ *stream.Client) error {
		e, err := b.Get(step, c.Name)
		if errors.Is(err, jetstream.ErrKeyNotFound) {
			return noSink(c.Name)
		}
		if err == nil {
			shown.Sink, err = sink.Parse(c.Name, e.Value())
		}
		return err
	})
	if err != nil {
		return err
	}
	all, asked := askSinks(step, c.serverFlags, o)
	if i := slices.IndexFunc(all, func(s sink.Status) bool { return s.Name == c.Name }); i >= 0 {
		shown.Status = &all[i]
	}
	text := describeSink(shown)
	if asked != nil {
		text += "\n" + asked.Error()
	}
	return o.result(c.JSON, shown, text)
}

// describeSink is a sink in words, a line each.
func describeSink(s sinkShown) string {
	var lines []string
	line := func(what, value string) {
		if value != "" {
			lines = append(lines, fmt.Sprintf("%-11s %s", what, value))
		}
	}
	list := func(names []string) string { return strings.Join(names, ", ") }
	line("sink", s.Name+" ("+s.Kind+")")
	if st := s.Status; st != nil {
		line("state", sinkState(*st))
	} else if !s.Enabled {
		line("state", "paused")
	}
	events := cmp.Or(list(s.Kinds), list(sink.DefaultKinds))
	line("events", events)
	line("detectors", list(s.Detectors))
	line("cameras", list(s.Cameras))
	line("verdicts", list(s.Verdicts))
	if s.MinRatio > 0 {
		line("scores from", fmt.Sprintf("%g times the threshold", s.MinRatio))
	}
	if s.MaxP > 0 {
		line("p-values to", fmt.Sprintf("%g", s.MaxP))
	}
	line("hours", s.Hours)
	for _, d := range []struct {
		what string
		v    sink.Duration
	}{{"cool-down", s.CoolDown}, {"up to age", s.MaxAge}, {"give up", s.GiveUp}} {
		if d.v > 0 {
			line(d.what, time.Duration(d.v).String())
		}
	}
	if s.Rate.N > 0 {
		line("rate", fmt.Sprintf("%d in %v", s.Rate.N, time.Duration(s.Rate.Per)))
	}
	if s.Ordered {
		line("order", "one event after the other")
	}
	var cfg map[string]json.RawMessage
	if json.Unmarshal(s.Config, &cfg) == nil {
		for _, k := range slices.Sorted(maps.Keys(cfg)) {
			line(k, clipped(cfg[k]))
		}
	}
	line("secret", s.Secret)
	if st := s.Status; st != nil {
		for _, k := range slices.Sorted(maps.Keys(st.Results)) {
			line(k, fmt.Sprint(st.Results[k]))
		}
		for _, k := range slices.Sorted(maps.Keys(st.Reasons)) {
			line("", fmt.Sprintf("%s: %d", k, st.Reasons[k]))
		}
		line("waiting", fmt.Sprint(st.Pending))
		if !st.LastSent.IsZero() {
			line("last sent", fmt.Sprintf("%s, %.1f s after it was stored", st.LastSent.UTC().Format(time.RFC3339), st.Delay))
		}
		line("error", st.Error)
	}
	return strings.Join(lines, "\n")
}

// clipped is a setting in one line of some length: a template is longer.
func clipped(v json.RawMessage) string {
	text := string(v)
	var plain string
	if json.Unmarshal(v, &plain) == nil {
		text = plain
	}
	if line, _, more := strings.Cut(text, "\n"); more || len(line) > 200 {
		text = strings.ToValidUTF8(line[:min(len(line), 200)], "") + "…"
	}
	return text
}
