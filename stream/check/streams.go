package check

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/dustin/go-humanize"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/nearmiss/nearmiss/stream"
)

// streams compares streams and buckets with what they should be, and looks whether they
// have their copies and their room.
func (l *checker) streams(ctx context.Context) {
	wanted := map[string]jetstream.StreamConfig{}
	var names []string
	for _, c := range l.cfg.Topology.Streams() {
		wanted[c.Name] = c
		names = append(names, c.Name)
	}
	names = append(names, l.cfg.Topology.BucketStreams()...)
	var there []*jetstream.StreamInfo
	var absent, hidden, wrong, differs []string
	var failed error
	for _, name := range names {
		var info *jetstream.StreamInfo
		err := l.ask(ctx, l.cfg.Topology.JetStreamRequest("STREAM.INFO."+name), func(ctx context.Context) error {
			s, err := l.js.Stream(ctx, name)
			if err == nil {
				info = s.CachedInfo()
			}
			return err
		})
		switch {
		case errors.Is(err, stream.ErrForbidden):
			hidden = append(hidden, name)
			continue
		case errors.Is(err, jetstream.ErrStreamNotFound):
			absent = append(absent, name)
			continue
		case err != nil:
			failed = fmt.Errorf("%s: %w", name, err)
		}
		if failed != nil {
			break // each of the others would take as long
		}
		there = append(there, info)
		if w, ok := wanted[name]; ok {
			bad, other := compare(info.Config, w)
			wrong, differs = append(wrong, bad...), append(differs, other...)
		}
		if want := max(l.cfg.Topology.Replicas, 1); info.Config.Replicas != want {
			differs = append(differs, fmt.Sprintf("%s has %s, not %d", name, copies(info.Config.Replicas), want))
		}
	}
	f := Finding{Check: "streams", Level: OK, Detail: fmt.Sprintf("%d streams and buckets are as they should be", len(there))}
	if len(hidden) > 0 {
		f.Detail += fmt.Sprintf("; at %d others this client may not look", len(hidden))
	}
	switch {
	case failed != nil:
		f.Level, f.Detail = Failed, failed.Error()
		f.Advice = "in a cluster: are most of its servers up?"
	case len(there) == 0 && len(absent) == 0:
		f.Level, f.Detail = Skipped, "this client may not look at any stream"
	case len(there) == 0:
		f.Level, f.Detail = Failed, "the server has none of the streams and buckets"
		f.Advice = l.cfg.Setup + " makes them; or is another --prefix in use?"
	case len(absent) > 0:
		f.Level, f.Detail, f.Advice = Failed, "missing: "+shortened(absent), l.cfg.Setup+" makes what is missing"
	case len(wrong) > 0:
		f.Level, f.Detail, f.Advice = Failed, shortened(wrong), l.cfg.Setup+" brings them to what this version needs"
	case len(differs) > 0:
		f.Level, f.Detail = Warning, shortened(differs)
		f.Advice = "keep.* of the configuration says otherwise (is --config the one of the set-up?): " + l.cfg.Setup + " brings it into force; on a small store the limits were scaled to it"
	}
	l.report(f)
	if len(there) > 0 {
		l.replicas(there)
		l.space(there)
	}
}

func copies(n int) string {
	if n == 1 {
		return "one copy"
	}
	return fmt.Sprintf("%d copies", n)
}

// compare says in what a stream is not what this version needs, and which of its limits
// are others.
func compare(have, want jetstream.StreamConfig) (wrong, differs []string) {
	note := func(to *[]string, format string, v ...any) {
		*to = append(*to, have.Name+" "+fmt.Sprintf(format, v...))
	}
	// Steward takes detectors that have more than their share out of the subjects.
	narrowed := have.Name == want.Name && len(have.Subjects) > 0 && !slices.Contains(have.Subjects, want.Subjects[0]) &&
		!slices.ContainsFunc(have.Subjects, func(s string) bool { return !covers(want.Subjects[0], s) })
	switch {
	case narrowed:
		note(&differs, "takes the frames of some detectors only: others have more than their share of the queue waiting")
	case !slices.Equal(slices.Sorted(slices.Values(have.Subjects)), slices.Sorted(slices.Values(want.Subjects))):
		note(&wrong, "stores %s, not %s", strings.Join(have.Subjects, " "), strings.Join(want.Subjects, " "))
	}
	if have.Retention != want.Retention {
		note(&wrong, "has retention %v, not %v", have.Retention, want.Retention)
	}
	if have.Discard != want.Discard {
		note(&wrong, "when full %v, not %v", have.Discard, want.Discard)
	}
	if have.AllowDirect != want.AllowDirect || have.DenyDelete != want.DenyDelete || have.DenyPurge != want.DenyPurge ||
		(have.RePublish == nil) != (want.RePublish == nil) || len(have.Sources) < len(want.Sources) {
		note(&wrong, "is of an earlier version")
	}
	if have.Storage != want.Storage {
		note(&wrong, "is kept in %v: it is lost with the server's process", have.Storage)
	}
	if have.MaxBytes != want.MaxBytes && !narrowed {
		note(&differs, "holds %s, not %s", limit(have.MaxBytes), limit(want.MaxBytes))
	}
	if have.MaxAge != want.MaxAge {
		note(&differs, "keeps messages for %v, not %v", have.MaxAge, want.MaxAge)
	}
	// Without a window of its own a stream gets the server's.
	if want.Duplicates != 0 && have.Duplicates != want.Duplicates {
		note(&differs, "remembers ids for %v, not %v", have.Duplicates, want.Duplicates)
	}
	return wrong, differs
}

func limit(n int64) string {
	if n < 0 {
		return "any number of bytes"
	}
	return humanize.IBytes(uint64(n))
}

// replicas looks whether all copies are there.
func (l *checker) replicas(all []*jetstream.StreamInfo) {
	f := Finding{Check: "replicas", Level: OK}
	var leaderless, behind []string
	least := all[0].Config.Replicas
	clustered := false
	for _, i := range all {
		least = min(least, i.Config.Replicas)
		if i.Cluster == nil || i.Cluster.Name == "" {
			continue
		}
		clustered = true
		if i.Cluster.Leader == "" {
			leaderless = append(leaderless, i.Config.Name)
		}
		for _, r := range i.Cluster.Replicas {
			if r.Offline || !r.Current {
				behind = append(behind, fmt.Sprintf("%s on %s", i.Config.Name, r.Name))
			}
		}
	}
	switch {
	case !clustered:
		return
	case len(leaderless) > 0:
		f.Level, f.Detail, f.Advice = Failed, "no leader: "+shortened(leaderless), "most of the servers that hold a stream must be up"
	case len(behind) > 0:
		f.Level, f.Detail, f.Advice = Warning, "copies that are away or behind: "+shortened(behind), "one more server that goes may stop these streams: wait, or look at that server"
	case least < 2:
		f.Level, f.Detail, f.Advice = Warning, "there are streams with one copy in a cluster", "when its server goes, nothing goes on until it is back: set keep.replicas: 3, then "+l.cfg.Setup
	default:
		f.Detail = copies(least) + " of everything, all up to date"
	}
	l.report(f)
}

// space looks for streams that refuse what is new when they are full, and nearly are.
func (l *checker) space(all []*jetstream.StreamInfo) {
	f := Finding{Check: "space", Level: OK, Detail: "no stream is nearly full"}
	var near, full []string
	for _, i := range all {
		if i.Config.Discard != jetstream.DiscardNew || i.Config.MaxBytes <= 0 {
			continue // the oldest go
		}
		share := float64(i.State.Bytes) / float64(i.Config.MaxBytes)
		text := fmt.Sprintf("%s %.0f %% of %s", i.Config.Name, 100*share, humanize.IBytes(uint64(i.Config.MaxBytes)))
		switch {
		case share > 0.98:
			full = append(full, text)
		case share > nearlyFull:
			near = append(near, text)
		}
	}
	const advice = "what is full refuses: start workers (frames), nearmiss collect (artifacts, images), or raise keep.* of the configuration"
	switch {
	case len(full) > 0:
		f.Level, f.Detail, f.Advice = Failed, "full: "+shortened(full), advice
	case len(near) > 0:
		f.Level, f.Detail, f.Advice = Warning, "nearly full: "+shortened(near), advice
	}
	l.report(f)
}
