package incident

import (
	"testing"
	"time"
)

// TestEnginesAgreeOnTheTime: an engine on a machine whose clock is wrong does not end what
// another has open, and ends what has been quiet for long enough when the other would.
func TestEnginesAgreeOnTheTime(t *testing.T) {
	broker := time.Date(2026, 11, 30, 12, 0, 0, 0, time.UTC)
	for _, off := range []time.Duration{0, 10 * time.Minute, -10 * time.Minute, -time.Hour} {
		passed := time.Duration(0)
		e := &Engine{clock: clock{local: func() time.Time { return broker.Add(off + passed) }}}
		e.clock.set(e.clock.local(), time.Time{}) // a server that does not tell its time
		if now := e.clock.now(); !now.Equal(broker.Add(off)) {
			t.Errorf("off by %v: without the broker's time it is %v", off, now)
		}
		e.clock.set(e.clock.local(), broker)
		open := func() *State {
			return &State{Open: &Incident{OpenedAt: broker, LastAt: broker}, CountedAt: broker}
		}
		rules := Rules{Quiet: time.Minute}
		for passed = 0; passed < 2*time.Minute; passed += 10 * time.Second {
			want := passed > rules.Quiet
			if s := open(); e.over(s, rules, nil, false, time.Time{}) != want || s.Open == nil != want {
				t.Errorf("off by %v: over %v after the last event: %v, want %v", off, passed, !want, want)
			}
		}
	}
}
