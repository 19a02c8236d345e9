// Package check examines an installation as somebody does who has just set it up, or
// has changed its server: what is asked for that nobody would notice before it is
// needed. It changes nothing.
package check

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/url"
	"strings"
	"time"

	"github.com/dustin/go-humanize"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/nearmiss/nearmiss/stream"
	"github.com/nearmiss/nearmiss/stream/access"
)

// Levels of a finding.
const (
	OK      = "ok"
	Warning = "warning" // it works, and something should be done
	Failed  = "failed"  // it does not work, or not as it should
	Skipped = "skipped" // it could not be checked
)

// Finding is what one check found. The names of checks and levels stay.
type Finding struct {
	Check  string `json:"check"`  // server, rights, payload, jetstream, streams, replicas, space, clock, services, …
	Level  string `json:"level"`  // ok, warning, failed or skipped
	Detail string `json:"detail"` // what was found, in a sentence
	Advice string `json:"advice,omitempty"`
}

// Config says what an installation should be.
type Config struct {
	// Topology is what the streams and buckets should be.
	Topology stream.Topology
	// Role that the client should be fit for, and Detector that it is confined to.
	// Empty: whatever it may do is right.
	Role     access.Role
	Detector string
	// Wait is how long services may take to answer. Default 1 s.
	Wait time.Duration
	// Setup is the command that makes streams and buckets, for advice.
	Setup string
}

// Broker checks everything that a client sees from its connection, and calls report
// with each finding.
func Broker(ctx context.Context, nc *nats.Conn, cfg Config, report func(Finding)) error {
	js, err := cfg.Topology.JetStreamOn(nc)
	if err != nil {
		return err
	}
	cfg.Wait = cmp.Or(cfg.Wait, time.Second)
	l := &checker{nc: nc, js: js, cfg: cfg, report: report}
	for _, f := range []func(context.Context){l.server, l.rights, l.payload, l.account, l.streams, l.clock, l.services} {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		f(ctx)
	}
	return nil
}

// checker is one run of the checks.
type checker struct {
	nc     *nats.Conn
	js     jetstream.JetStream
	cfg    Config
	report func(Finding)

	limits *permissions // nil: not known
}

// step bounds one question.
const step = 5 * time.Second

// ask calls f, which asks on subject, unless this client may not.
func (l *checker) ask(ctx context.Context, subject string, f func(context.Context) error) error {
	if l.limits != nil && !l.limits.mayPublish(subject) {
		return stream.ErrForbidden
	}
	ctx, cancel := context.WithTimeout(ctx, step)
	defer cancel()
	return stream.UnlessForbidden(ctx, l.nc, subject, f)
}

// Versions of nats-server: what is used of it is there from Oldest on, and the tests
// run with Tested.
const (
	Oldest = "2.10"
	Tested = "2.15"
)

func (l *checker) server(context.Context) {
	version := l.nc.ConnectedServerVersion()
	f := Finding{Check: "server", Level: OK}
	where := l.nc.ConnectedUrlRedacted()
	if name := l.nc.ConnectedClusterName(); name != "" {
		where += " in cluster " + name
	}
	rtt, err := l.nc.RTT()
	if err != nil {
		f.Level, f.Detail = Failed, fmt.Sprintf("%s does not answer a ping: %v", where, err)
		l.report(f)
		return
	}
	f.Detail = fmt.Sprintf("nats-server %s at %s, %s away, %s", version, where, rtt.Round(10*time.Microsecond), l.encryption())
	switch {
	case older(version, Oldest):
		f.Level, f.Advice = Failed, "streams are used in ways that servers before "+Oldest+" do not know: use "+Tested
	case older(version, Tested):
		f.Level, f.Advice = Warning, "this program is tested with "+Tested
	case !l.encrypted() && !l.isLocal():
		f.Level, f.Advice = Warning, "who listens on the way reads images and passwords, and can change them: nearmiss lock, nearmiss tls"
	case rtt > 200*time.Millisecond:
		f.Level, f.Advice = Warning, "every frame waits for an answer or two: run workers nearer to the server"
	}
	l.report(f)
}

func (l *checker) encrypted() bool {
	_, err := l.nc.TLSConnectionState()
	return err == nil
}

func (l *checker) encryption() string {
	state, err := l.nc.TLSConnectionState()
	if err != nil {
		return "not encrypted"
	}
	return "encrypted by " + tls.VersionName(state.Version)
}

// isLocal says whether the server is on this machine.
func (l *checker) isLocal() bool {
	u, err := url.Parse(l.nc.ConnectedUrl())
	if err != nil {
		return false
	}
	ip := net.ParseIP(u.Hostname())
	return u.Hostname() == "localhost" || ip != nil && ip.IsLoopback()
}

// older says whether a version is before another; one that cannot be read is not.
func older(version, than string) bool {
	var a, b, x, y int
	if n, _ := fmt.Sscanf(version, "%d.%d", &a, &b); n != 2 {
		return false
	}
	if n, _ := fmt.Sscanf(than, "%d.%d", &x, &y); n != 2 {
		return false
	}
	return a < x || a == x && b < y
}

// usualPayload is the embedded broker's payload limit, and what the configurations of
// servers below deployments/ set.
const usualPayload = 8 << 20

func (l *checker) payload(context.Context) {
	f := Finding{Check: "payload", Level: OK, Detail: "messages of up to " + humanize.IBytes(uint64(l.nc.MaxPayload()))}
	if l.nc.MaxPayload() < usualPayload {
		f.Level = Warning
		f.Advice = "larger images are stored as objects, which takes several writes and which only cameras with NATS and the right to it can do: set max_payload: 8MB in the server's configuration"
	}
	l.report(f)
}

func (l *checker) account(ctx context.Context) {
	f := Finding{Check: "jetstream", Level: OK}
	var a *jetstream.AccountInfo
	err := l.ask(ctx, l.cfg.Topology.JetStreamRequest("INFO"), func(ctx context.Context) (err error) { a, err = l.js.AccountInfo(ctx); return err })
	switch {
	case errors.Is(err, stream.ErrForbidden):
		f.Level, f.Detail = Skipped, "what the account may store: "+err.Error()
	case errors.Is(err, jetstream.ErrJetStreamNotEnabled), errors.Is(err, nats.ErrNoResponders):
		f.Level, f.Detail = Failed, "the server has no JetStream"
		f.Advice = "put jetstream { store_dir: …, max_file_store: … } into its configuration, or name the domain with --js-domain"
	case errors.Is(err, jetstream.ErrJetStreamNotEnabledForAccount):
		f.Level, f.Detail, f.Advice = Failed, "this client's account has no JetStream", "put jetstream: enabled into the account, or name --js-api-prefix where it imports another's"
	case err != nil:
		f.Level, f.Detail = Failed, "JetStream does not answer: "+err.Error()
		f.Advice = "in a cluster: are most of its servers up?"
	default:
		f.stored(a)
	}
	l.report(f)
}

// stored says how much of what an account may store is taken.
func (f *Finding) stored(a *jetstream.AccountInfo) {
	f.Detail = fmt.Sprintf("%s stored by %d streams", humanize.IBytes(a.Store), a.Streams)
	most := a.Limits.MaxStore
	for _, t := range a.Tiers {
		most = max(most, t.Limits.MaxStore)
	}
	if most <= 0 {
		return
	}
	f.Detail += " of " + humanize.IBytes(uint64(most)) + " that the account may"
	if share := float64(a.Store) / float64(most); share > nearlyFull {
		f.Level, f.Advice = Warning, fmt.Sprintf("%.0f %% of it is taken: raise the account's limit, or keep less (keep.* of the configuration, nearmiss collect)", 100*share)
	}
}

// nearlyFull is the share of a limit that is worth a warning.
const nearlyFull = 0.85

// skew is how far clocks may be apart before it shows: in delays, in what came first,
// and in how long sessions last.
const skew = 2 * time.Second

func (l *checker) clock(ctx context.Context) {
	f := Finding{Check: "clock", Level: OK}
	name := l.cfg.Topology.EventsStream()
	var at time.Time
	begin := time.Now()
	err := l.ask(ctx, l.cfg.Topology.JetStreamRequest("STREAM.INFO."+name), func(ctx context.Context) error {
		s, err := l.js.Stream(ctx, name)
		if err == nil {
			at = s.CachedInfo().TimeStamp
		}
		return err
	})
	took := time.Since(begin)
	if err != nil || at.IsZero() {
		f.Level, f.Detail = Skipped, "the server does not tell its time"
		if err != nil {
			f.Detail += ": " + err.Error()
		}
		l.report(f)
		return
	}
	l.report(clocks(begin, took, at))
}

// clocks compares the server's time with this machine's, at which it was asked for it.
func clocks(begin time.Time, took time.Duration, server time.Time) Finding {
	f := Finding{Check: "clock", Level: OK}
	off := begin.Add(took / 2).Sub(server)
	f.Detail = fmt.Sprintf("%s %s the server's, to within %s", roughly(off.Abs()), map[bool]string{true: "ahead of", false: "behind"}[off > 0], roughly(took/2))
	if off.Abs()-took/2 > skew {
		f.Level = Failed
		f.Advice = "frames seem older or younger than they are, and what came first cannot be told: have this machine and the server follow one clock (chrony, systemd-timesyncd)"
	}
	return f
}

func roughly(d time.Duration) time.Duration {
	switch {
	case d > time.Minute:
		return d.Round(time.Second)
	case d > time.Second:
		return d.Round(100 * time.Millisecond)
	default:
		return d.Round(100 * time.Microsecond)
	}
}

// shortened joins what there are several of, as far as it can be read.
func shortened(all []string) string {
	const most = 4
	if len(all) > most {
		all = append(all[:most:most], fmt.Sprintf("and %d more", len(all)-most))
	}
	return strings.Join(all, ", ")
}
