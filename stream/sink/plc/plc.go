// Package plc tells a controller (PLC) the verdict on every part, in time: by
// Modbus TCP or OPC UA.
//
// A reject gate needs a verdict for each part while the part is before it, and
// "no verdict" must mean reject. So these sinks follow the scores of every frame,
// not the events, and keep four promises:
//
//   - A verdict is written within max_age of when its frame was taken, or never.
//   - Silence is no verdict: max_age after the last one the result is 0 and the
//     accept coil is off.
//   - The sequence changes last: when the controller sees a new one, what belongs
//     to it is there.
//   - The heartbeat counts only while the broker and a worker answer. When it
//     stands still the controller must take nothing for good.
//
// The loop ([link]) decides what is written when; what a verdict looks like on
// the wire is the panel's: modbus.go, opcua.go.
package plc

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/nearmiss/nearmiss/stream"
	"github.com/nearmiss/nearmiss/stream/sink"
)

// Result is what the controller reads of a part.
type Result uint16

// The results. Whatever is not Good must be rejected.
const (
	None       Result = 0 // there is no verdict: nothing was scored lately, or nobody scores
	Good       Result = 1
	Anomalous  Result = 2
	Unreadable Result = 3
)

// Timing is when something is written. Both kinds have it in their configuration.
type Timing struct {
	// MaxAge is the age from which a verdict is not written any more, counted from
	// when the frame was taken or scored, whichever is longer ago. Default 2 s.
	MaxAge sink.Duration `json:"max_age,omitzero"`
	// TimeOut of one request. Default 500 ms, at most a quarter of MaxAge.
	TimeOut sink.Duration `json:"time_out,omitzero"`
	// Pulse is how long the coil stays on after a verdict that sets it. Default
	// 200 ms.
	Pulse sink.Duration `json:"pulse,omitzero"`
	// Means says when the coil is on: accept (default; after a good verdict, so
	// that silence rejects) or reject (after any other verdict; then the
	// controller must reject by itself while the heartbeat stands still).
	Means string `json:"means,omitempty"`
	// Heartbeat is how often that counter goes up. Default 1 s.
	Heartbeat sink.Duration `json:"heartbeat,omitzero"`
}

func (t Timing) withDefaults() Timing {
	for d, otherwise := range map[*sink.Duration]time.Duration{&t.MaxAge: 2 * time.Second, &t.Pulse: 200 * time.Millisecond, &t.Heartbeat: time.Second} {
		if *d == 0 {
			*d = sink.Duration(otherwise)
		}
	}
	t.TimeOut = cmp.Or(t.TimeOut, min(sink.Duration(500*time.Millisecond), t.MaxAge/4))
	t.Means = cmp.Or(t.Means, accept)
	return t
}

const (
	accept = "accept"
	reject = "reject"
)

func (t Timing) validate() error {
	switch t = t.withDefaults(); {
	case t.Means != accept && t.Means != reject:
		return fmt.Errorf("plc: means %q: use accept or reject", t.Means)
	case t.TimeOut > t.MaxAge/2:
		return fmt.Errorf("plc: a time-out of %v leaves no time for a verdict that must be written within %v", time.Duration(t.TimeOut), time.Duration(t.MaxAge))
	case t.MaxAge < sink.Duration(10*time.Millisecond), t.Heartbeat < sink.Duration(10*time.Millisecond), t.Pulse < sink.Duration(time.Millisecond):
		return errors.New("plc: max_age and heartbeat are at least 10ms, pulse at least 1ms")
	}
	return nil
}

// verdict is what is known of one part.
type verdict struct {
	result Result
	ratio  float64 // score as a multiple of the threshold; 0: none
	part   string  // the frame's id
	seq    uint32  // 0: not yet given
	scored time.Time
	taken  time.Time
}

// age is how old the verdict is: by the time of the frame, or of its scoring
// where the camera's clock runs ahead.
func (v verdict) age(now time.Time) time.Duration {
	age := now.Sub(v.scored)
	if !v.taken.IsZero() {
		age = max(age, now.Sub(v.taken))
	}
	return age
}

// panel is where a controller reads. Each call is one request, done within the
// time-out.
type panel interface {
	open(ctx context.Context) error
	// data writes what belongs to a verdict.
	data(ctx context.Context, v verdict) error
	// result writes the result together with the sequence.
	result(ctx context.Context, r Result, seq uint32) error
	// coil switches the coil.
	coil(ctx context.Context, on bool) error
	beat(ctx context.Context, n uint32) error
	// probe reads and writes back something that means nothing.
	probe(ctx context.Context) error
	close()
}

// sender is the sink: a link to one panel.
type sender struct {
	panel  func() panel
	timing Timing
	// missed is how long no worker may answer until none is taken to be there,
	// unless the broker says so at once. Tests on slow machines have more.
	missed time.Duration
}

func newSender(t Timing, p func() panel) *sender {
	return &sender{panel: p, timing: t, missed: max(3*time.Duration(t.Heartbeat), 3*time.Second)}
}

// Send proves that the controller can be reached, and changes nothing there: a
// made-up verdict could move a gate.
func (s *sender) Send(ctx context.Context, n sink.Notice) error {
	if !n.Test {
		return &sink.Permanent{Err: errors.New("plc: events are not for controllers: they follow scores")}
	}
	p := s.panel()
	if err := p.open(ctx); err != nil {
		return err
	}
	defer p.close()
	return p.probe(ctx)
}

// Close has nothing to do: Watch closes what it opens.
func (s *sender) Close() error { return nil }

// queue is how many verdicts can wait while a request is under way.
const queue = 8192

// Watch writes the verdict of every frame until ctx ends.
func (s *sender) Watch(ctx context.Context, live sink.Live) error {
	msgs := make(chan *nats.Msg, queue)
	subjects := live.Scores()
	for _, d := range live.Detectors() { // unreadable frames have no scores
		subjects = append(subjects, live.Events(d, "*", stream.KindRejected))
	}
	for _, subject := range subjects {
		sub, err := live.NC.ChanSubscribe(subject, msgs)
		if err != nil {
			return fmt.Errorf("plc: follow %s: %w", subject, err)
		}
		defer func() { _ = sub.Unsubscribe() }()
	}
	var alive atomic.Pointer[time.Time] // when a worker answered last; not of the clock on the wall, which may be set
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		s.watchWorkers(ctx, live.NC, &alive)
	}()
	l := &link{panel: s.panel(), t: s.timing, live: live, msgs: msgs, now: time.Now, judged: func() bool {
		last := alive.Load()
		return live.NC.IsConnected() && last != nil && time.Since(*last) < s.missed
	}}
	l.run(ctx)
	cancel()
	<-done
	return nil
}

// watchWorkers asks for a worker at each heartbeat.
func (s *sender) watchWorkers(ctx context.Context, nc *nats.Conn, alive *atomic.Pointer[time.Time]) {
	tick := time.Tick(time.Duration(s.timing.Heartbeat))
	for {
		step, cancel := context.WithTimeout(ctx, s.missed)
		_, err := nc.RequestWithContext(step, "$SRV.PING."+stream.WorkerService, nil)
		cancel()
		switch {
		case err == nil:
			alive.Store(new(time.Now()))
		case errors.Is(err, nats.ErrNoResponders):
			alive.Store(nil) // there is none, which is certain
		}
		select {
		case <-ctx.Done():
			return
		case <-tick:
		}
	}
}
