package plc

import (
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/simonvetter/modbus"

	"github.com/nearmiss/nearmiss/internal/brokertest"
	"github.com/nearmiss/nearmiss/internal/modbustest"
	"github.com/nearmiss/nearmiss/stream"
	"github.com/nearmiss/nearmiss/stream/broker"
	"github.com/nearmiss/nearmiss/stream/sink"
)

func TestMain(m *testing.M) { brokertest.Main(m) }

// shown is what a controller has been told, and when.
type shown struct {
	at     time.Time
	result Result
	seq    uint32
	part   string
	beat   uint32
	coil   bool
}

// controller is a PLC that writes down whatever changes.
type controller struct {
	mu      sync.Mutex
	regs    [8]uint16
	coil    bool
	delay   time.Duration // before a request is carried out
	history []shown       // at each coil
	written []shown       // each verdict, and each time that the coil was switched on: when the request came
}

const firstRegister, coilAt = 100, 3

func (c *controller) HandleCoils(r *modbus.CoilsRequest) ([]bool, error) {
	came := time.Now()
	if c.wait(); r.Addr != coilAt || r.Quantity != 1 {
		return nil, modbus.ErrIllegalDataAddress
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if r.IsWrite {
		c.coil = r.Args[0]
		c.history = append(c.history, c.now())
		c.write(came, c.coil)
	}
	return []bool{c.coil}, nil
}

func (c *controller) HandleHoldingRegisters(r *modbus.HoldingRegistersRequest) ([]uint16, error) {
	came := time.Now()
	if c.wait(); r.Addr < firstRegister || r.Addr+r.Quantity > firstRegister+8 {
		return nil, modbus.ErrIllegalDataAddress
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if r.IsWrite {
		copy(c.regs[r.Addr-firstRegister:], r.Args)
		c.write(came, r.Addr == firstRegister && Result(c.regs[0]) != None)
	}
	return slices.Clone(c.regs[r.Addr-firstRegister : r.Addr-firstRegister+r.Quantity]), nil
}

func (c *controller) HandleDiscreteInputs(*modbus.DiscreteInputsRequest) ([]bool, error) {
	return nil, modbus.ErrIllegalFunction
}

func (c *controller) HandleInputRegisters(*modbus.InputRegistersRequest) ([]uint16, error) {
	return nil, modbus.ErrIllegalFunction
}

// write takes down what came if it was a verdict; the lock is held.
func (c *controller) write(came time.Time, verdict bool) {
	if verdict {
		s := c.now()
		s.at = came
		c.written = append(c.written, s)
	}
}

func (c *controller) wait() {
	c.mu.Lock()
	d := c.delay
	c.mu.Unlock()
	time.Sleep(d) // a slow controller
}

func (c *controller) slow(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.delay = d
}

// now is what it shows; the lock is held.
func (c *controller) now() shown {
	var part strings.Builder
	for _, r := range c.regs[3:7] {
		part.Write([]byte{byte(r >> 8), byte(r)})
	}
	return shown{time.Now(), Result(c.regs[0]), uint32(c.regs[1]), strings.TrimRight(part.String(), "\x00"), uint32(c.regs[7]), c.coil}
}

func (c *controller) look() shown {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now()
}

// start serves c and returns its address, and what cuts all connections.
func (c *controller) start(t *testing.T) (url string, cut func()) {
	t.Helper()
	r := brokertest.NewRelay(t, modbustest.Serve(t, c))
	return "tcp://" + r.Addr(), r.Cut
}

// line is a broker, a worker that only answers, and what the sink counted.
type line struct {
	t      *testing.T
	nc     *nats.Conn
	worker *nats.Subscription

	mu     sync.Mutex
	counts map[string]int
	errs   []string
}

func newLine(t *testing.T) *line {
	t.Helper()
	b, _ := brokertest.Start(t, broker.Config{Port: -1})
	l := &line{t: t, nc: brokertest.Connect(t, b), counts: map[string]int{}}
	l.work()
	return l
}

func (l *line) work() {
	l.t.Helper()
	var err error
	if l.worker, err = l.nc.Subscribe("$SRV.PING."+stream.WorkerService, func(m *nats.Msg) { _ = m.Respond([]byte("{}")) }); err != nil {
		l.t.Fatal(err)
	}
}

// watch runs a sink until the test ends.
func (l *line) watch(open func(sink.Sink, string) (sink.Sender, error), cfg any) {
	l.t.Helper()
	raw, err := json.Marshal(cfg)
	if err != nil {
		l.t.Fatal(err)
	}
	s := sink.Sink{Name: "gate", Detectors: []string{"bolts"}, Config: raw}
	opened, err := open(s, "")
	if err != nil {
		l.t.Fatal(err)
	}
	if _, long := frames(0); !long {
		opened.(*sender).missed = 10 * time.Minute // however slow the machine is
	}
	live := sink.Live{
		Sink: s, NC: l.nc,
		Count: func(result, _ string) {
			l.mu.Lock()
			defer l.mu.Unlock()
			l.counts[result]++
		},
		Delivered: func(time.Time, time.Duration) {},
		Failed: func(err error) {
			l.mu.Lock()
			defer l.mu.Unlock()
			l.errs = append(l.errs, err.Error())
		},
	}
	brokertest.Run(l.t, "plc", func(ctx context.Context) error { return opened.(sink.Watcher).Watch(ctx, live) })
}

func (l *line) count(result string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.counts[result]
}

// score publishes a frame's score, or that it could not be read.
func (l *line) score(n int, r Result) (part string) {
	l.t.Helper()
	score, threshold, bad := 0.5, 1.0, r == Anomalous
	if bad {
		score = 2.5
	}
	part, now := fmt.Sprintf("p%07d", n), time.Now().UTC()
	e := stream.Event{ID: part, Kind: stream.KindRejected, FrameID: part, Detector: "bolts", Camera: "line1", ScoredAt: now, CapturedAt: now, Code: "corrupt"}
	var m *nats.Msg
	var err error
	if r == Unreadable {
		m, err = e.Message(stream.Names{})
	} else {
		e.Kind, e.Code, e.Score, e.Threshold, e.Anomalous = "", "", &score, &threshold, &bad
		m = nats.NewMsg(stream.Names{}.Scores("bolts", "line1"))
		m.Data, err = json.Marshal(e)
	}
	if err == nil {
		err = l.nc.PublishMsg(m)
	}
	if err != nil {
		l.t.Fatal(err)
	}
	return part
}

// soon looks more often than package eventually: a coil is set for milliseconds.
func soon(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(2 * time.Minute); !ok(); time.Sleep(500 * time.Microsecond) {
		if time.Now().After(deadline) {
			t.Fatalf("gave up waiting: %s", what)
		}
	}
}

func frames(otherwise int) (n int, long bool) {
	if n, err := strconv.Atoi(os.Getenv("NEARMISS_TEST_PLC_FRAMES")); err == nil {
		return n, true
	}
	return otherwise, false
}

// Each part has its verdict: result, sequence, score and part belong together
// when the coil is written, which is on after a good verdict only. make plc
// measures how long it takes.
func TestAModbusControllerGetsEveryVerdict(t *testing.T) {
	n, long := frames(200)
	c := &controller{}
	url, _ := c.start(t)
	l := newLine(t)
	// No verdict is too old here, however slow the machine is.
	timing := Timing{MaxAge: sink.Duration(10 * time.Minute), TimeOut: sink.Duration(time.Minute), Pulse: sink.Duration(time.Hour), Heartbeat: sink.Duration(20 * time.Millisecond)}
	if long {
		timing = Timing{Pulse: sink.Duration(time.Hour)}
	}
	l.watch(OpenModbus, Modbus{URL: url, Coil: new(uint16(coilAt)), Registers: new(uint16(firstRegister)), Timing: timing})
	soon(t, "the heartbeat begins", func() bool { return c.look().beat > 0 })

	var took []time.Duration
	seen := 0
	for i := range n {
		r := []Result{Good, Anomalous, Good, Unreadable}[i%4]
		began := time.Now()
		part := l.score(i, r)
		var got shown
		soon(t, "the coil is written for "+part, func() bool {
			c.mu.Lock()
			defer c.mu.Unlock()
			for ; seen < len(c.history); seen++ {
				if got = c.history[seen]; got.part == part {
					return true
				}
			}
			return false
		})
		took = append(took, got.at.Sub(began))
		if got.result != r || got.coil != (r == Good) || got.seq != uint32(uint16(i+1)) {
			t.Fatalf("%s, frame %d: %+v", part, i, got)
		}
	}
	if sent := l.count(sink.ResultSent); sent < n-1 || sent > n { // the last one may be counted in a moment
		t.Errorf("%d frames, %d counted as sent", n, sent)
	}
	c.mu.Lock()
	if n%4 == 0 && c.regs[2] != 0 { // the last one was unreadable
		t.Errorf("the score is %d %%", c.regs[2])
	}
	c.mu.Unlock()
	slices.Sort(took)
	t.Logf("%d frames, score published → coil written: half within %v, 99 of 100 within %v, the longest %v", n, took[n/2], took[n*99/100], took[n-1])
	if long && took[n*99/100] > 20*time.Millisecond {
		t.Errorf("99 of 100 within %v: more than 20 ms", took[n*99/100])
	}
	before := c.look().beat
	soon(t, "the heartbeat goes on", func() bool { return c.look().beat != before })
}

// When the worker is gone, the heartbeat stands still and there is no verdict;
// when the connection is cut, it comes again by itself, without one.
func TestNobodyJudgesAndNobodyIsGood(t *testing.T) {
	c := &controller{}
	url, cut := c.start(t)
	l := newLine(t)
	l.watch(OpenModbus, Modbus{URL: url, Coil: new(uint16(coilAt)), Registers: new(uint16(firstRegister)), Timing: Timing{
		MaxAge: sink.Duration(10 * time.Minute), TimeOut: sink.Duration(time.Minute), Pulse: sink.Duration(time.Hour), Heartbeat: sink.Duration(20 * time.Millisecond),
	}})
	good := func(n int) {
		t.Helper()
		part := l.score(n, Good)
		soon(t, "a good part", func() bool {
			s := c.look()
			// The sink has the answer, too: else a cut would make it write this part again.
			return s.result == Good && s.coil && s.part == part && l.count(sink.ResultSent) == n
		})
	}
	soon(t, "the heartbeat begins", func() bool { return c.look().beat > 0 }) // it listens
	good(1)
	cut()
	soon(t, "the new connection has no verdict", func() bool { s := c.look(); return s.result == None && !s.coil })
	good(2)
	if err := l.worker.Drain(); err != nil { // who has asked already has an answer, and does not wait for one
		t.Fatal(err)
	}
	soon(t, "there is no verdict", func() bool { s := c.look(); return s.result == None && !s.coil })
	still := c.look().beat
	l.work()
	soon(t, "the heartbeat goes on", func() bool { return c.look().beat != still })
	good(3)
	l.mu.Lock()
	defer l.mu.Unlock()
	if !slices.ContainsFunc(l.errs, func(s string) bool { return strings.Contains(s, "no worker answers") }) {
		t.Errorf("%q", l.errs)
	}
}

// The long form only (make plc), since it measures time: the connection is cut,
// the controller takes a second for a request, the worker is gone, at random.
func TestNoStaleVerdictReachesAController(t *testing.T) {
	n, long := frames(0)
	if !long {
		t.Skip("make plc runs it: it measures time")
	}
	n /= 4
	c := &controller{}
	url, cut := c.start(t)
	l := newLine(t)
	t0 := time.Now()
	timing := Timing{}.withDefaults()
	l.watch(OpenModbus, Modbus{URL: url, Coil: new(uint16(coilAt)), Registers: new(uint16(firstRegister)), Timing: timing})
	soon(t, "the heartbeat begins", func() bool { return c.look().beat > 0 })
	rng := rand.New(rand.NewPCG(18, 4))
	published := map[string]time.Time{}
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	cuts, slows, gone := 0, 0, 0
	for i := range n {
		<-tick.C
		switch {
		case rng.IntN(250) == 0:
			cuts++
			cut()
		case rng.IntN(500) == 0:
			slows++
			c.slow(time.Second)
		case rng.IntN(100) == 0:
			c.slow(0)
		case rng.IntN(800) == 0:
			gone++
			_ = l.worker.Unsubscribe()
		case rng.IntN(200) == 0 && !l.worker.IsValid():
			l.work()
		}
		if l.worker.IsValid() { // a dead worker scores nothing
			at := time.Now()
			published[l.score(i, Good)] = at
		}
	}
	c.slow(0)
	soon(t, "there is no verdict after the last", func() bool { s := c.look(); return s.result == None && !s.coil })
	c.mu.Lock()
	defer c.mu.Unlock()
	stale, oldest := 0, time.Duration(0)
	for _, s := range c.written {
		age := s.at.Sub(published[s.part])
		oldest = max(oldest, age)
		if age > time.Duration(timing.MaxAge) {
			stale++
			t.Errorf("%s is written %v after it was published", s.part, age)
		}
	}
	t.Logf("%d frames in %v, %d cuts, %d times slow, %d times without a worker: %d writes of verdicts, the oldest %v old, %d too late and never written, %d stale",
		len(published), time.Since(t0).Round(time.Second), cuts, slows, gone, len(c.written), oldest.Round(time.Millisecond), l.count(sink.ResultTooOld), stale)
}
