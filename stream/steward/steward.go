// Package steward looks after the frame queue, beside an embedded broker or, with
// control, remote from a server of somebody's own: every detector has a share of it.
// Beside the broker, what was published and not stored is counted and reported.
//
// As long as half of the queue is free anybody may use it. Above that, a detector
// that takes more than its share is taken out of the stream's subjects until it
// takes less than half of that: its cameras get the error that the queue is full, and
// the others have what is theirs. Detectors that nobody has made share a sixteenth.
// What was acknowledged stays and is scored.
//
// [Steward.Run] is one loop: it lists the detectors, balances what waits
// against the shares, and reports what was lost. The handlers of its subscriptions run
// beside it, in nats.go's goroutines. Steward.mu guards what both touch: which
// detectors the stream takes, why others are refused, and the counts by subject. It
// is held alone, and never while the broker is waited for.
package steward

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/rs/zerolog"

	"github.com/nearmiss/nearmiss/stream"
	"github.com/nearmiss/nearmiss/stream/internal/kv"
	"github.com/nearmiss/nearmiss/stream/internal/text"
)

// Config configures a [Steward].
type Config struct {
	stream.Names
	// FramesMaxBytes is what all detectors' waiting frames may take together, as
	// in [stream.Topology]. Default 2 GiB; where Remote, the stream's own limit.
	FramesMaxBytes int64
	// Remote says that the broker is another server, which may be far away: then not
	// every frame is received, so that lost ones are not counted, and several stewards
	// may look after the queue, but none where one is beside the broker.
	Remote bool
	// Every is how often the queue is checked; a flood has it checked at once.
	// Default 250 ms, where Remote 1 s.
	Every time.Duration
	// Full says why no more frames are to be taken, in a sentence, or nothing.
	// Default: never.
	Full func() string
}

// Steward is one. Its Run owns all of it.
type Steward struct {
	cfg  Config
	js   jetstream.JetStream
	in   *stream.Installation
	log  zerolog.Logger
	poke chan struct{}

	detectors map[string]bool       // detectors; the loop's
	cut       map[string]bool       // of them, above their share; the loop's
	odd       bool                  // detectors that nobody has made are above theirs; the loop's
	reported  map[string]lossReport // by subject; the loop's
	full      string                // why no frames are taken; the loop's

	held held // the loop's

	mu    sync.Mutex
	rule  rule
	flows map[string]*flow
	burst int64 // bytes since the queue was checked
}

// rule says whose frames are taken.
type rule struct {
	takes map[string]bool // detectors that the stream takes; nil: all
	why   string          // why others are refused
}

// flow counts what was published on one subject.
type flow struct {
	published, quiet, stored, lost uint64          // quiet: published by who gets no answer
	before                         [settled]uint64 // published at the last reports, oldest first
	size                           float64         // bytes of a message, about
	code                           string          // why it is lost, where that is known
	last                           time.Time
}

type lossReport struct {
	count uint64
	at    time.Time
}

// New prepares a steward on a connection that the caller closes after Run
// has returned. It should be one within the broker's process, where the steward is not
// remote: it receives all frames.
func New(cfg Config, nc *nats.Conn, log zerolog.Logger) (*Steward, error) {
	cfg.FramesMaxBytes = cmp.Or(cfg.FramesMaxBytes, stream.Topology{}.WithDefaults().FramesMaxBytes)
	if cfg.Every == 0 {
		cfg.Every = 250 * time.Millisecond
		if cfg.Remote {
			cfg.Every = time.Second
		}
	}
	if cfg.Full == nil {
		cfg.Full = func() string { return "" }
	}
	js, err := cfg.JetStreamOn(nc)
	if err != nil {
		return nil, fmt.Errorf("start steward: %w", err)
	}
	return &Steward{
		cfg: cfg, js: js, in: stream.NewInstallation(js, cfg.Names), log: log.With().Str("component", "steward").Logger(), poke: make(chan struct{}, 1),
		cut: map[string]bool{}, reported: map[string]lossReport{}, flows: map[string]*flow{}, held: held{refused: map[string]*nats.Subscription{}},
	}, nil
}

// maxFlows bounds the subjects that are counted each by itself.
const maxFlows = 4096

// Run works until ctx ends.
func (s *Steward) Run(ctx context.Context) error {
	for subject, f := range s.handlers() {
		sub, err := s.js.Conn().Subscribe(subject, f)
		if err == nil {
			err = sub.SetPendingLimits(-1, 256<<20)
		}
		if err != nil {
			return fmt.Errorf("steward: subscribe to %s: %w", subject, err)
		}
		defer func() { _ = sub.Unsubscribe() }()
	}
	if s.cfg.Remote {
		defer s.subscribeRefused(plan{}, nil)
	} else {
		_ = s.in.SetLostFrames(ctx, nil) // what a steward before this one has counted
	}
	tick := time.Tick(s.cfg.Every)
	var listed, reported time.Time
	failing := false
	for ctx.Err() == nil {
		step, cancel := context.WithTimeout(ctx, 10*time.Second)
		if time.Since(listed) > time.Second {
			listed = time.Now()
			s.listDetectors(step)
		}
		err := s.balance(step)
		if err != nil && ctx.Err() == nil && !failing {
			s.log.Warn().Err(err).Msg("cannot attend to the frame queue: trying again")
		}
		failing = err != nil
		if time.Since(reported) > time.Second && !s.cfg.Remote {
			reported = time.Now()
			s.report(step)
		}
		cancel()
		select {
		case <-ctx.Done():
		case <-tick:
		case <-s.poke:
		}
	}
	return nil
}

// handlers are the steward's subscriptions.
func (s *Steward) handlers() map[string]nats.MsgHandler {
	p := s.cfg.Root()
	if s.cfg.Remote {
		return map[string]nats.MsgHandler{p + ".stored.*.*": s.measure}
	}
	return map[string]nats.MsgHandler{
		p + ".frames.>": s.countFrame, p + ".stored.*.*": s.stored, p + ".frames": s.misled,
		// What people write who mean frames.
		"/." + p + ".frames.>": s.misled, p + ".frame.>": s.misled, p + ".Frames.>": s.misled, p + ".FRAMES.>": s.misled,
		strings.ToUpper(p) + ".frames.>": s.misled, strings.ToUpper(p[:1]) + p[1:] + ".frames.>": s.misled, strings.ToUpper(p) + ".FRAMES.>": s.misled,
		s.cfg.Steward(): func(m *nats.Msg) { _ = m.Respond([]byte(s.cfg.Full())) },
	}
}

// flowOf returns the counts of a subject; mu is held.
func (s *Steward) flowOf(subject string) *flow {
	f := s.flows[subject]
	if f == nil {
		if len(s.flows) >= maxFlows {
			maps.DeleteFunc(s.flows, func(_ string, f *flow) bool { return f.lost == 0 && time.Since(f.last) > time.Minute })
		}
		if len(s.flows) >= maxFlows {
			subject = s.cfg.Root() + ".frames.(other)"
			if f = s.flows[subject]; f != nil {
				return f
			}
		}
		f = &flow{}
		s.flows[subject] = f
	}
	return f
}

// countFrame counts a frame that somebody publishes, and answers for the stream where
// that does not take it.
func (s *Steward) countFrame(m *nats.Msg) {
	rest := strings.TrimPrefix(m.Subject, s.cfg.Root()+".frames.")
	detector, camera, two := strings.Cut(rest, ".")
	if !two || strings.Contains(camera, ".") {
		s.misled(m)
		return
	}
	s.mu.Lock()
	f := s.flowOf(m.Subject)
	f.published++
	f.last = time.Now()
	if m.Reply == "" {
		f.quiet++
	}
	flood := s.add(f, len(m.Data)+len(m.Subject)+64)
	s.mu.Unlock()
	s.refuseFrame(m, detector)
	if flood {
		s.wake()
	}
}

// add counts the bytes of one frame, and says whether so many have come that the queue
// should be checked; mu is held.
func (s *Steward) add(f *flow, bytes int) (flood bool) {
	size := float64(bytes)
	f.size = cmp.Or(f.size, size)
	f.size += (size - f.size) / 8
	s.burst += int64(size)
	return s.burst > s.cfg.FramesMaxBytes/32
}

// wake has the queue checked now.
func (s *Steward) wake() {
	select {
	case s.poke <- struct{}{}:
	default:
	}
}

// refuseFrame answers a publish of a detector that the stream does not take.
func (s *Steward) refuseFrame(m *nats.Msg, detector string) {
	s.mu.Lock()
	refused, why := s.rule.takes != nil && !s.rule.takes[detector], s.rule.why
	s.mu.Unlock()
	if refused {
		// The words are the server's for a full stream: clients know them.
		refusePublish(m, 503, 10077, "maximum bytes exceeded: "+why)
	}
}

// stored counts a frame that the stream has.
func (s *Steward) stored(m *nats.Msg) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.flowOf(s.cfg.Root()+".frames."+strings.TrimPrefix(m.Subject, s.cfg.Root()+".stored.")).stored++
}

// misled counts what was meant to be a frame and goes nowhere.
func (s *Steward) misled(m *nats.Msg) {
	s.mu.Lock()
	f := s.flowOf(text.Clip(m.Subject))
	f.lost++
	f.code, f.last = stream.LostBadTopic, time.Now()
	s.mu.Unlock()
	refusePublish(m, 404, 10059, "stream not found: no stream takes "+text.Clip(m.Subject)+", frames go to "+s.cfg.Frames("<detector>", "<camera>"))
}

// refusePublish answers a publish as JetStream answers what it does not take.
func refusePublish(m *nats.Msg, code, errCode int, text string) {
	if m.Reply == "" {
		return
	}
	b, _ := json.Marshal(map[string]any{"error": map[string]any{"code": code, "err_code": errCode, "description": text}})
	_ = m.Respond(b)
}

// listDetectors finds out which detectors there are.
func (s *Steward) listDetectors(ctx context.Context) {
	detectors := map[string]bool{}
	for _, bucket := range []string{s.cfg.DetectorsBucket(), s.cfg.ActiveBucket()} {
		b, err := s.js.KeyValue(ctx, bucket)
		if err != nil {
			return
		}
		keys, err := kv.Keys(ctx, b)
		if err != nil {
			return
		}
		for _, k := range keys {
			if name, _, _ := strings.Cut(k, "."); stream.ValidToken(name) {
				detectors[name] = true
			}
		}
	}
	s.detectors = detectors
}

// plan is what the stream should take.
type plan struct {
	cut      map[string]bool // detectors above their share
	odd      bool            // detectors that nobody has made are above theirs
	takes    map[string]bool // detectors; nil: all
	subjects []string
	limit    int64 // bytes
}

// plan decides by what waits in bytes, together and of each detector, of the most that
// may; cut and odd are those that are refused now.
func (s *Steward) plan(use map[string]int64, total, most int64, cut map[string]bool, odd bool) plan {
	strange := int64(0)
	for d, n := range use {
		if !s.detectors[d] {
			strange += n
		}
	}
	p := plan{cut: map[string]bool{}, subjects: []string{s.cfg.Frames("*", "*")}, limit: most}
	share := (most - most/16) / int64(max(len(s.detectors), 1))
	for d := range s.detectors {
		if n := use[d]; n > share && total > most/2 || cut[d] && n > share/2 && total > most/4 {
			p.cut[d] = true
		}
	}
	p.odd = strange > most/16 || odd && strange > most/32
	if len(p.cut) == 0 && !p.odd {
		return p
	}
	p.takes = map[string]bool{}
	spare := int64(0)
	for d := range s.detectors {
		if !p.cut[d] {
			p.takes[d] = true
			spare += max(share-use[d], 0)
		}
	}
	for d := range use {
		if !s.detectors[d] && !p.odd && stream.ValidToken(d) {
			p.takes[d] = true
		}
	}
	// Whoever is within its share has it, even if the flood was there first.
	step := max(most/16, 1)
	p.limit = min(max(most, (total+spare+step-1)/step*step), 2*most)
	// The first is nobody's. A stream with one subject takes a consumer with that
	// filter for one without, which then has to acknowledge everybody's messages
	// (nats-server 2.15).
	p.subjects = []string{s.cfg.Frames(stream.NoCamera, stream.NoCamera)}
	for _, d := range slices.Sorted(maps.Keys(p.takes)) {
		p.subjects = append(p.subjects, s.cfg.Frames(d, "*"))
	}
	return p
}

// balance compares what waits with the shares, and has the stream take what it should.
func (s *Steward) balance(ctx context.Context) error {
	s.mu.Lock()
	s.burst = 0
	s.mu.Unlock()
	st, err := s.js.Stream(ctx, s.cfg.FramesStream())
	if err != nil {
		return err
	}
	if s.detectors == nil {
		return errors.New("which detectors there are is not known yet")
	}
	have, total := st.CachedInfo().Config, int64(st.CachedInfo().State.Bytes)
	if s.cfg.Remote && !s.remember(have) {
		return nil
	}
	most, full := s.cfg.FramesMaxBytes, s.cfg.Full()
	use := map[string]int64{}
	if total > most/32 || len(s.cut) > 0 || s.odd {
		if use, err = s.use(ctx, st); err != nil {
			return err
		}
	}
	p := s.plan(use, total, most, s.cut, s.odd)
	why := "the detector's share of the frame queue is full; a detector that nobody has made (nearmiss detector create) has a small one"
	if full != "" {
		why = full
	}
	switch {
	case full != "": // nothing more, and nothing less
		p.limit = max(min(have.MaxBytes, total), 1)
	case p.limit < total:
		p.limit = max(have.MaxBytes, total)
	}
	if p.takes == nil && full != "" {
		p.takes = map[string]bool{} // a full disk may not take the new limit either
	}
	if !asPlanned(have, p.subjects, p.limit) {
		switch err := s.update(ctx, have, p, func() {
			if p.takes != nil { // who publishes while the stream changes has an answer
				s.refuse(p, use, why)
			}
		}); {
		case errors.Is(err, errAttended):
			s.refuse(plan{}, nil, "")
			return nil
		case errors.Is(err, errNotNow):
			return nil
		case err != nil:
			return fmt.Errorf("bound the frame queue: %w", err)
		}
	}
	s.reportCut(ctx, p.cut)
	s.cut, s.odd = p.cut, p.odd
	s.reportFull(ctx, full)
	s.refuse(p, use, why)
	return nil
}

// asPlanned says whether the stream takes these subjects, and so many bytes.
func asPlanned(have jetstream.StreamConfig, subjects []string, limit int64) bool {
	return have.MaxBytes == limit && slices.Equal(slices.Sorted(slices.Values(have.Subjects)), slices.Sorted(slices.Values(subjects)))
}

// refuse has those answered that the stream does not take.
func (s *Steward) refuse(p plan, use map[string]int64, why string) {
	s.mu.Lock()
	s.rule.takes, s.rule.why = p.takes, why
	s.mu.Unlock()
	if s.cfg.Remote {
		s.subscribeRefused(p, use)
	}
}

// use estimates the bytes of each detector's waiting frames: the broker knows how
// many there are, and we how large they were.
func (s *Steward) use(ctx context.Context, st jetstream.Stream) (map[string]int64, error) {
	var state jetstream.StreamState
	var counted uint64
	// A server counts the subjects after the bytes. Where frames went in between, those
	// that are left must not stand for the bytes of the others.
	for try := 0; try == 0 || counted != state.Msgs && try < 3; try++ {
		info, err := st.Info(ctx, jetstream.WithSubjectFilter(s.cfg.Frames("*", "*")))
		if err != nil {
			return nil, err
		}
		state, counted = info.State, 0
		for _, n := range state.Subjects {
			counted += n
		}
	}
	mean := float64(state.Bytes) / float64(max(state.Msgs, 1))
	sum, use := 0.0, map[string]float64{}
	s.mu.Lock()
	for subject, n := range state.Subjects {
		size := mean
		if f := s.flows[subject]; f != nil && f.size > 0 {
			size = f.size
		}
		detector, _, _ := strings.Cut(strings.TrimPrefix(subject, s.cfg.Root()+".frames."), ".")
		use[detector] += size * float64(n)
		sum += size * float64(n)
	}
	s.mu.Unlock()
	scale := float64(state.Bytes) / max(sum, 1)
	if counted != state.Msgs {
		scale = min(scale, 1)
	}
	out := map[string]int64{}
	for d, n := range use {
		out[d] = int64(n * scale)
	}
	return out, nil
}

// reportCut reports detectors that are refused from now on, or no longer.
func (s *Steward) reportCut(ctx context.Context, cut map[string]bool) {
	for d := range cut {
		if !s.cut[d] {
			s.log.Warn().Str("detector", d).Msg("its frames fill more than its share of the queue: its cameras are refused until they are fewer")
			s.storeEvent(ctx, d, stream.NoCamera, stream.LostShare, "its waiting frames fill more than its share of the frame queue: its cameras are refused until they are fewer")
		}
	}
	for d := range s.cut {
		if !cut[d] {
			s.log.Info().Str("detector", d).Msg("its frames are taken again")
			s.storeEvent(ctx, d, stream.NoCamera, stream.LostOver, "its frames are taken again")
		}
	}
}

// reportFull reports that no frames are taken from now on, or that they are again.
func (s *Steward) reportFull(ctx context.Context, full string) {
	switch {
	case full != "" && s.full == "":
		s.log.Error().Str("why", full).Msg("no more frames are taken")
		s.storeEvent(ctx, stream.NoCamera, stream.NoCamera, stream.LostDisk, full)
	case full == "" && s.full != "":
		s.log.Info().Msg("frames are taken again")
		s.storeEvent(ctx, stream.NoCamera, stream.NoCamera, stream.LostOver, "frames are taken again")
	}
	s.full = full
}

// storeEvent stores an event. Another remote steward may store the same: whoever finds
// the same event before it gives it the same id, and who finds it stored leaves it.
func (s *Steward) storeEvent(ctx context.Context, detector, camera, code, reason string) {
	what := time.Now().UTC().Format(time.RFC3339Nano)
	if s.cfg.Remote {
		switch last, err := s.in.LastEvent(ctx, s.cfg.Events(detector, camera, stream.KindLost)); {
		case err == nil && last.Code == code:
			return
		case err == nil || errors.Is(err, stream.ErrNotFound):
			what = fmt.Sprint("after ", last.Sequence)
		}
	}
	err := s.in.StoreEvent(ctx, stream.Notice(stream.KindLost, detector, camera, "", code, reason, what))
	if err != nil && ctx.Err() == nil {
		s.log.Warn().Err(err).Str("detector", detector).Str("code", code).Msg("event not stored")
	}
}

const (
	// reportInterval is how often a subject's lost frames are reported, at most.
	reportInterval = time.Minute
	// settled is in how many reports, a second each, a frame is stored if it ever is: a
	// busy disk may keep it waiting for seconds.
	settled = 5
)

// report counts what was lost since the last report, reports it and writes it down.
func (s *Steward) report(ctx context.Context) {
	var all []stream.Lost
	s.mu.Lock()
	for subject, f := range s.flows {
		// Who got an answer has the error.
		if gone := int64(f.before[0]) - int64(f.stored); f.code != stream.LostBadTopic && f.quiet > 0 && gone > int64(f.lost) {
			f.lost = min(uint64(gone), f.quiet)
			f.code = stream.LostNotStored
		}
		copy(f.before[:], f.before[1:])
		f.before[settled-1] = f.published
		if f.lost > 0 {
			all = append(all, stream.Lost{Subject: subject, Code: f.code, Frames: f.lost, Last: f.last.UTC()})
		}
	}
	s.mu.Unlock()
	slices.SortFunc(all, func(a, b stream.Lost) int { return b.Last.Compare(a.Last) })
	all = all[:min(len(all), 100)]
	changed := false
	for _, l := range all {
		was := s.reported[l.Subject]
		if was.count == l.Frames || time.Since(was.at) < reportInterval {
			continue
		}
		changed = true
		s.reported[l.Subject] = lossReport{l.Frames, time.Now()}
		detector, camera := s.whose(l.Subject)
		reason := fmt.Sprintf("%d frames published on %s are not stored", l.Frames, l.Subject)
		if l.Code == stream.LostBadTopic {
			reason += ": frames go to " + s.cfg.Frames("<detector>", "<camera>") + ", over MQTT " + strings.ReplaceAll(s.cfg.Frames("<detector>", "<camera>"), ".", "/")
		} else {
			reason += ": there was no room, and MQTT and plain NATS clients get no error"
		}
		s.log.Warn().Str("subject", l.Subject).Uint64("frames", l.Frames).Str("code", l.Code).Msg("frames were published and not stored")
		s.storeEvent(ctx, detector, camera, l.Code, reason)
	}
	if changed {
		_ = s.in.SetLostFrames(ctx, all) // in vain: the next change writes them
	}
}

// whose names who may have published on a subject, in tokens that are valid.
func (s *Steward) whose(subject string) (detector, camera string) {
	parts := strings.Split(strings.TrimPrefix(subject, "/."), ".")
	detector, camera = stream.NoCamera, stream.NoCamera
	if len(parts) > 2 {
		detector = stream.SafeToken(parts[2])
	}
	if len(parts) > 3 {
		camera = stream.SafeToken(parts[3])
	}
	return detector, camera
}
