package plc

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/nearmiss/nearmiss/stream"
	"github.com/nearmiss/nearmiss/stream/sink"
)

// board is a controller in a world with a clock of its own: a request takes as
// long as the test says, and the controller carries it out at the last moment.
type board struct {
	now  time.Time
	cost time.Duration // of each request
	dead bool          // no connection
	t    Timing

	shown Result
	last  uint32
	part  string // of the last data
	on    bool
	beats uint32
	parts map[uint32]string // by sequence
	told  func(v string)    // when a verdict is in force
}

var errTimeOut = errors.New("time-out")

// request carries f out, unless the connection is away. One that takes longer
// than the time-out is carried out at the time-out, and nobody is told.
func (b *board) request(f func()) error {
	if b.dead {
		return errors.New("connection refused")
	}
	b.now = b.now.Add(min(b.cost, time.Duration(b.t.TimeOut)))
	f()
	if b.cost > time.Duration(b.t.TimeOut) {
		return errTimeOut
	}
	return nil
}

func (b *board) open(context.Context) error {
	if b.dead {
		return errors.New("connection refused")
	}
	return nil
}
func (b *board) close() {}
func (b *board) data(_ context.Context, v verdict) error {
	return b.request(func() { b.part = v.part })
}

func (b *board) result(_ context.Context, r Result, seq uint32) error {
	return b.request(func() {
		b.shown, b.last = r, seq
		if r != None {
			b.parts[seq] = b.part
			b.told(b.part)
		}
	})
}

func (b *board) coil(_ context.Context, on bool) error {
	return b.request(func() {
		if b.on = on; on {
			b.told(b.part)
		}
	})
}

func (b *board) beat(_ context.Context, n uint32) error {
	return b.request(func() { b.beats = n })
}
func (b *board) probe(context.Context) error { return b.request(func() {}) }

// Whatever happens and in whichever order, no verdict is written later than
// max_age after its frame was taken, each sequence belongs to one part, silence
// ends in no verdict, and the heartbeat stands still while nobody judges.
func TestNothingStaleIsEverWritten(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		timing := Timing{MaxAge: sink.Duration(rapid.IntRange(100, 2000).Draw(t, "max age")) * sink.Duration(time.Millisecond)}.withDefaults()
		b := &board{now: time.Unix(1_000_000, 0), t: timing, parts: map[uint32]string{}}
		taken := map[string]time.Time{}
		b.told = func(part string) {
			if age := b.now.Sub(taken[part]); age > time.Duration(timing.MaxAge) {
				t.Fatalf("the verdict on %s is written %v after its frame was taken", part, age)
			}
		}
		judged := true
		counts := map[string]int{}
		l := &link{
			panel: b, t: timing, now: func() time.Time { return b.now }, judged: func() bool { return judged },
			live: sink.Live{
				Count:  func(result, _ string) { counts[result]++ },
				Failed: func(error) {}, Delivered: func(time.Time, time.Duration) {},
			},
		}
		n := 0
		slow := func(t *rapid.T) {
			percent := rapid.OneOf(rapid.Just(1), rapid.Just(1), rapid.IntRange(50, 100), rapid.IntRange(90, 110)).Draw(t, "cost, percent of the time-out")
			b.cost = time.Duration(timing.TimeOut) * time.Duration(percent) / 100
		}
		score := func(t *rapid.T) {
			n++
			slow(t)
			part := fmt.Sprint("part-", n)
			// Most of them about as old as it just may be.
			percent := rapid.OneOf(rapid.IntRange(-200, 120), rapid.IntRange(80, 100)).Draw(t, "age, percent of the most")
			behind := time.Duration(timing.MaxAge) * time.Duration(percent) / 100
			score, threshold, bad := 1.0, 1.0, rapid.Bool().Draw(t, "anomalous")
			e := stream.Event{FrameID: part, Detector: "d", Camera: "c", ScoredAt: b.now, CapturedAt: b.now.Add(-behind), Score: &score, Threshold: &threshold, Anomalous: &bad}
			taken[part] = b.now.Add(-max(behind, 0))
			l.add(e)
			l.work(context.Background())
		}
		t.Repeat(map[string]func(*rapid.T){
			"score": score, "another score": score, "one more": score, "slow": slow,
			"time": func(t *rapid.T) {
				b.now = b.now.Add(time.Duration(rapid.IntRange(0, 400).Draw(t, "ms")) * time.Millisecond)
			},
			"due":     func(*rapid.T) { l.work(context.Background()) },
			"cut":     func(*rapid.T) { b.dead = true },
			"mend":    func(*rapid.T) { b.dead = false },
			"worker":  func(*rapid.T) { judged = true },
			"nobody":  func(*rapid.T) { judged = false },
			"wrap":    func(*rapid.T) { l.seq = ^uint32(0) - 1; clear(b.parts) },
			"restart": func(*rapid.T) { l.broken(errors.New("cut")) },
			"beat": func(t *rapid.T) {
				before := b.beats
				l.beat(context.Background())
				if !judged && b.beats != before {
					t.Fatal("the heartbeat goes on, and nobody judges")
				}
			},
		})
		// Silence: whatever was, in a world that works nothing is good any more.
		b.dead, b.cost = false, time.Millisecond
		for range 3 {
			b.now = b.now.Add(10 * time.Second)
			l.work(context.Background())
		}
		if b.shown != None || b.on {
			t.Fatalf("after half a minute of silence the result is %d and the coil %v", b.shown, b.on)
		}
		if l.seq != 0 && n > 0 && counts[sink.ResultSent]+counts[sink.ResultTooOld] > n+counts[sink.ResultFailed] {
			t.Fatalf("%d frames: %v", n, counts)
		}
	})
}

func TestPartsAreWrittenWithTheirEnd(t *testing.T) {
	if got := partASCII("lot-7-0042"); got != [4]uint16{'t'<<8 | '-', '7'<<8 | '-', '0'<<8 | '0', '4'<<8 | '2'} {
		t.Errorf("%x", got)
	}
	if got := partASCII("a\n"); got != [4]uint16{'a'<<8 | '?'} {
		t.Errorf("%x", got)
	}
	for id, want := range map[string]uint32{"": 0, "a": 0, "a-42": 42, "4294967297": 1} {
		if got := partNumber(id); got != want {
			t.Errorf("%s: %d, want %d", id, got, want)
		}
	}
}
