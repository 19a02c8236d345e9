package plc

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/nearmiss/nearmiss/stream"
	"github.com/nearmiss/nearmiss/stream/sink"
)

// link is one connection to a controller. One goroutine does everything, so
// that requests never overtake each other.
type link struct {
	panel panel
	t     Timing
	live  sink.Live
	msgs  <-chan *nats.Msg
	// judged says whether the broker and a worker answer.
	judged func() bool
	now    func() time.Time // time.Now but in tests

	open    bool
	again   time.Time     // when the next connection may be tried
	wait    time.Duration // between the last two
	waiting []verdict
	seq     uint32
	beats   uint32
	coilOff time.Time // when the coil goes off; zero: it is off
	expires time.Time // when the result becomes None; zero: it is
	alone   bool      // nobody judges, and that has been logged
}

// Times between connections.
const (
	firstWait = 200 * time.Millisecond
	lastWait  = 5 * time.Second
)

func (l *link) run(ctx context.Context) {
	beat := time.Tick(time.Duration(l.t.Heartbeat))
	defer l.farewell()
	for ctx.Err() == nil {
		select {
		case <-ctx.Done():
		case m := <-l.msgs:
			l.take(m)
		drain:
			for { // what has come meanwhile, so that nothing waits unseen
				select {
				case m := <-l.msgs:
					l.take(m)
				default:
					break drain
				}
			}
		case <-beat:
			l.beat(ctx)
		case <-time.After(l.due()):
		}
		l.work(ctx)
	}
}

// due is how long nothing has to be done unless something comes.
func (l *link) due() time.Duration {
	next := l.now().Add(time.Hour)
	for _, t := range []time.Time{l.coilOff, l.expires} {
		if !t.IsZero() && l.open && t.Before(next) {
			next = t
		}
	}
	if !l.open && l.again.Before(next) {
		next = l.again
	}
	return max(next.Sub(l.now()), 0)
}

// take makes a verdict of a message.
func (l *link) take(m *nats.Msg) {
	var e stream.Event
	var err error
	if _, _, _, isEvent := l.live.ParseEvents(m.Subject); isEvent {
		e, err = stream.ParseEvent(l.live.Names, m.Subject, m.Header, m.Data)
	} else {
		e, err = stream.ParseScore(m.Data, m.Header)
	}
	if err != nil {
		l.live.Count(sink.ResultForeign, "no score")
		return
	}
	if l.live.Wants(e.Camera) {
		l.add(e)
	}
}

// add puts the verdict of a frame behind those that wait.
func (l *link) add(e stream.Event) {
	v := verdict{part: e.FrameID, scored: e.ScoredAt, taken: e.CapturedAt, result: Unreadable}
	if e.Score != nil && e.Threshold != nil && e.Anomalous != nil {
		v.result = Anomalous
		if !*e.Anomalous {
			v.result = Good
		}
		v.ratio, _ = e.Ratio()
	}
	if len(l.waiting) >= queue {
		l.live.Count(sink.ResultTooOld, "too many wait")
		l.waiting = l.waiting[1:]
	}
	l.waiting = append(l.waiting, v)
}

// work does whatever is due.
func (l *link) work(ctx context.Context) {
	if ctx.Err() != nil {
		return
	}
	l.connect(ctx)
	for l.late(); len(l.waiting) > 0 && l.open && ctx.Err() == nil; l.late() {
		v := &l.waiting[0]
		if v.seq == 0 {
			if l.seq++; l.seq == 0 {
				l.seq = 1
			}
			v.seq = l.seq
		}
		if !l.write(ctx, *v) {
			break // it is tried again while it is not too late
		}
		l.waiting = l.waiting[1:]
		if !l.expires.IsZero() && l.now().After(l.expires) || !l.coilOff.IsZero() && l.now().After(l.coilOff) {
			l.expire(ctx)
		}
	}
	l.expire(ctx)
}

// late drops the verdicts for which it is too late: a request that is sent now
// may be carried out as late as its time-out.
func (l *link) late() {
	for len(l.waiting) > 0 && l.tooLate(l.waiting[0]) {
		l.live.Count(sink.ResultTooOld, "too late")
		l.waiting = l.waiting[1:]
	}
}

func (l *link) tooLate(v verdict) bool {
	return v.age(l.now()) > time.Duration(l.t.MaxAge-l.t.TimeOut)
}

// write tells the controller one verdict: what belongs to it first, then the
// result with the sequence, then the coil. It says whether it is done with.
func (l *link) write(ctx context.Context, v verdict) bool {
	on := (v.result == Good) == (l.t.Means == accept)
	steps := []func() error{
		func() error { return l.panel.data(ctx, v) },
		func() error { return l.panel.result(ctx, v.result, v.seq) },
		func() error { return l.panel.coil(ctx, on) },
	}
	for n, step := range steps {
		if l.tooLate(v) {
			l.live.Count(sink.ResultTooOld, "too late")
			if n > 0 { // half of it is there
				l.void(ctx)
			}
			return true
		}
		if err := step(); err != nil {
			l.broken(err)
			return false
		}
	}
	now := l.now()
	l.coilOff, l.expires = time.Time{}, time.Time{}
	if on {
		l.coilOff = now.Add(time.Duration(l.t.Pulse))
	}
	l.expires = now.Add(max(time.Duration(l.t.MaxAge)-v.age(now), 0))
	l.live.Count(sink.ResultSent, "")
	l.live.Delivered(now, now.Sub(v.scored))
	return true
}

// expire takes back what is no longer so.
func (l *link) expire(ctx context.Context) {
	now := l.now()
	if l.open && !l.coilOff.IsZero() && !now.Before(l.coilOff) {
		l.coilOff = time.Time{}
		if err := l.panel.coil(ctx, false); err != nil {
			l.broken(err)
			return
		}
	}
	if l.open && !l.expires.IsZero() && !now.Before(l.expires) {
		l.expires = time.Time{}
		if err := l.panel.result(ctx, None, l.seq); err != nil {
			l.broken(err)
		}
	}
}

// void makes that there is no verdict.
func (l *link) void(ctx context.Context) {
	now := l.now()
	l.coilOff, l.expires = now, now
	l.expire(ctx)
}

// beat counts on while somebody judges; else there is no verdict, whatever was
// written.
func (l *link) beat(ctx context.Context) {
	if !l.judged() {
		if !l.alone {
			l.alone = true
			l.live.Failed(errors.New("plc: no worker answers: the heartbeat stands still"))
		}
		l.waiting = nil
		if l.open && (!l.coilOff.IsZero() || !l.expires.IsZero()) {
			l.void(ctx)
		}
		return
	}
	l.alone = false
	if !l.open {
		return
	}
	l.beats++
	if err := l.panel.beat(ctx, l.beats); err != nil {
		l.broken(err)
	}
}

// connect opens the connection when its time has come. Nothing that was written
// before the connection was lost is so any more.
func (l *link) connect(ctx context.Context) {
	if l.open || l.now().Before(l.again) {
		return
	}
	err := l.panel.open(ctx)
	if err == nil {
		l.open = true
		now := l.now()
		l.coilOff, l.expires = now, now
		l.expire(ctx)
	}
	if err != nil {
		l.broken(err)
	} else if l.open {
		l.wait = 0
	}
}

func (l *link) broken(err error) {
	l.panel.close()
	l.open = false
	l.wait = min(max(2*l.wait, firstWait), lastWait)
	l.again = l.now().Add(l.wait)
	l.live.Count(sink.ResultFailed, "the controller does not answer")
	l.live.Failed(fmt.Errorf("plc: %w", err))
}

// farewell leaves no verdict behind.
func (l *link) farewell() {
	if !l.open {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Duration(l.t.TimeOut))
	defer cancel()
	l.void(ctx)
	l.panel.close()
}
