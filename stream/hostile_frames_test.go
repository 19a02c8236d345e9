package stream_test

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/nearmiss/nearmiss/internal/brokertest"
	"github.com/nearmiss/nearmiss/internal/eventually"
	"github.com/nearmiss/nearmiss/internal/memory"
	"github.com/nearmiss/nearmiss/stream"
	"github.com/nearmiss/nearmiss/stream/internal/streamtest"
	"github.com/nearmiss/nearmiss/stream/steward"
	"github.com/nearmiss/nearmiss/stream/worker"
)

// number is a figure of the environment, for tests that `make hostile` runs longer.
func number(name string, otherwise int) int {
	if n, err := strconv.Atoi(os.Getenv(name)); err == nil {
		return n
	}
	return otherwise
}

// TestADeathCostsASecondAndNoFrame kills the only worker again and again: what it
// had in hand is given back at once, long before the broker would, and no death is
// laid at a good frame's door. A batch that came within the milliseconds before a
// death may not be on record yet; it waits for the broker.
func TestADeathCostsASecondAndNoFrame(t *testing.T) {
	const ackWait = 30 * time.Second
	kills := number("NEARMISS_TEST_KILLS", 4)
	r := streamtest.New(t, stream.Topology{})
	r.Release("bolts", streamtest.Fake{Name: "one", Delay: 30 * time.Millisecond})
	got := r.Scores()
	frames := 40 * (kills + 1)
	for i := range frames {
		r.Publish(stream.Frame{Detector: "bolts", Camera: "left", ID: fmt.Sprint("f", i), Image: streamtest.Image(0.1 + float64(i)/1e6)})
	}
	env := "NEARMISS_TEST_ACKWAIT=" + ackWait.String()
	w := startProcess(r, "worker", env)
	begin := time.Now()
	for k := range kills {
		target := frames * (k + 1) / (kills + 2)
		eventually.True(t, fmt.Sprintf("%d frames are scored", target), func() bool { return len(got.ByFrame()) >= target })
		w.kill()
		w = startProcess(r, "worker", env)
	}
	// Each death took up to 32 frames with it.
	last := time.Now()
	eventually.True(t, "most of what the dead had in hand is scored", func() bool { return len(got.ByFrame()) >= frames-16*kills })
	if soon := time.Since(last); soon > ackWait*3/4 {
		t.Errorf("it took %v: frames waited for the broker to give them back", soon)
	}
	eventually.True(t, "every frame is scored", func() bool { return len(got.ByFrame()) == frames })
	eventually.True(t, "the queue is empty", func() bool { return r.Waiting() == 0 })
	t.Logf("%d kills: %d frames in %v, %v after the last", kills, frames, time.Since(begin).Round(100*time.Millisecond), time.Since(last).Round(100*time.Millisecond))
	if dead := r.Stored(r.Names.DeadStream()); len(dead) > 0 {
		t.Errorf("%d dead letters, first: %v", len(dead), dead[0].Header)
	}
	if err := w.interrupt(); err != nil {
		t.Error(err)
	}
}

// TestAHostileNeighbour: a client with all rights publishes whatever it can think
// of while two honest cameras publish frames, which are all scored.
func TestAHostileNeighbour(t *testing.T) {
	messages, frames := number("NEARMISS_TEST_HOSTILE", 600), number("NEARMISS_TEST_HONEST", 200)
	const queue, budget = 64 << 20, 32 << 20
	r := streamtest.New(t, stream.Topology{FramesMaxBytes: queue})
	r.Detector(stream.Detector{Name: "bolts", Smoothing: 2})
	r.Release("bolts", streamtest.Fake{Name: "one", Threshold: 0.5})
	r.Consumers("bolts")
	r.Steward(steward.Config{FramesMaxBytes: queue})
	m := memory.New(budget)
	w, _ := r.Worker(worker.Config{Memory: m}, streamtest.LoadFake)
	store, err := r.JS.ObjectStore(t.Context(), r.Names.LargeBucket())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := store.PutBytes(t.Context(), "frames/shared", append(streamtest.Image(0.2), make([]byte, 8<<20)...)); err != nil {
		t.Fatal(err)
	}
	hostile := r.Connect()
	hjs := brokertest.StreamsOn(t, hostile)
	rng := rand.New(rand.NewPCG(3, 4))
	pick := func(s ...string) string { return s[rng.IntN(len(s))] }
	zero := 0.0
	forged, _ := json.Marshal(stream.Event{FrameID: "x", Detector: "bolts", Camera: "left", ScoredAt: time.Now(), Score: &zero})
	junk := func() *nats.Msg {
		m := nats.NewMsg("")
		id := fmt.Sprint("f", rng.IntN(frames))
		switch rng.IntN(10) {
		case 0: // ids of the honest ones
			m.Subject = r.Names.Frames("bolts", pick("thief", "left2"))
			m.Header.Set(stream.HeaderFrameID, id)
			m.Header.Set(nats.MsgIdHdr, pick("bolts/left/"+id, id))
			m.Data = streamtest.Image(0.9)
		case 1: // names that are none
			m.Subject = r.Names.Frames("bolts", pick("10//0//0//7", "aa:bb", "línea", "", "x/y", strings.Repeat("z", 90)))
			if strings.HasSuffix(m.Subject, ".") {
				m.Subject += "_"
			}
			m.Data = streamtest.Image(0.9)
		case 2: // objects: of others, missing, shared
			m.Subject = r.Names.Frames("bolts", "thief")
			m.Header.Set(stream.HeaderObject, pick("frames/bolts/left/1", "frames/none", "frames/shared", "release/x"))
		case 3: // headers
			m.Subject = r.Names.Frames("bolts", "thief")
			m.Header.Set(pick(stream.HeaderTruth, stream.HeaderSource, stream.HeaderCapturedAt, stream.HeaderFrameID, "X-Any"), pick(strings.Repeat("x", 50<<10), "\x1b[2J", "yesterday"))
			m.Data = []byte("no image")
		case 4: // detectors that nobody has made
			m.Subject = r.Names.Frames(pick("blots", "nuts", fmt.Sprint("d", rng.IntN(50))), "c")
			m.Data = make([]byte, 100<<10)
		case 5: // judgements
			m.Subject, m.Data = r.Names.Scores("bolts", "left"), forged
		case 6: // records of workers, tries and losses
			m.Subject = "$KV." + r.Names.WorkBucket() + "." + pick("held.nobody.bolts", "held.x.y", "tries.1.1", "lost")
			m.Data = []byte(pick(`["$JS.ACK.NM_FRAMES.frames-bolts.1.1.1.1.0",">"]`, "{", `{"failed":-5,"died":99}`, "null"))
		case 7: // advisories
			m.Subject = "$JS.EVENT.ADVISORY.CONSUMER.MAX_DELIVERIES." + r.Names.FramesStream() + ".frames-bolts"
			m.Data = []byte(pick("{", `{"stream_seq":18446744073709551615,"deliveries":5}`, `{"stream_seq":-1}`))
		case 8: // object metadata
			m.Subject = "$O." + r.Names.LargeBucket() + ".M." + pick("ZnJhbWVzL3g=", "x")
			m.Data = []byte(pick(`{"name":"frames/x","size":4611686018427387904,"chunks":1,"nuid":"x"}`, "{", "null"))
		default: // no frame at all
			m.Subject = pick("nearmiss.frames", "nearmiss.frames.a.b.c", "Nearmiss.frames.bolts.left", "nearmiss.events.bolts.left.anomaly", "nearmiss.feedback.bolts", "nearmiss.dead.NM_FRAMES")
			m.Data = []byte(pick("{", "null", "\x00\xff"))
		}
		return m
	}
	var before runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	var all sync.WaitGroup
	all.Go(func() {
		for range messages {
			if _, err := hjs.PublishMsgAsync(junk()); err != nil {
				time.Sleep(time.Millisecond)
			}
		}
	})
	got := r.Scores()
	for i := range frames {
		for _, camera := range []string{"left", "right"} {
			f := stream.Frame{Detector: "bolts", Camera: camera, ID: fmt.Sprint("f", i), Image: streamtest.Image(0.9 + float64(i)/1e6), Truth: "{}"}
			msg, err := f.Message(r.Names)
			if err != nil {
				t.Fatal(err)
			}
			eventually.True(t, "the broker takes an honest frame", func() bool {
				_, err := r.JS.PublishMsg(t.Context(), msg)
				return err == nil
			})
		}
	}
	all.Wait()
	honest := func() (n int) {
		for _, s := range got.ByFrame() {
			for _, camera := range []string{"left", "right"} {
				for _, e := range s {
					if e.Camera == camera && e.Truth == "{}" {
						n++
						break
					}
				}
			}
		}
		return n
	}
	eventually.True(t, "the queue is empty", func() bool { return r.Waiting() == 0 || honest() == 2*frames })
	eventually.True(t, fmt.Sprintf("every honest frame is scored, of which %d are; %+v, %d frames wait", honest(), w.Stats(), r.Waiting()),
		func() bool { return honest() == 2*frames })
	count := map[string]int{}
	for _, msg := range r.Stored(r.Names.EventsStream()) {
		if e, err := stream.ParseEvent(r.Names, msg.Subject, msg.Header, msg.Data); err == nil && e.Kind == stream.KindAnomaly && e.Truth == "{}" {
			count[e.Camera]++
		}
	}
	if count["left"] != frames || count["right"] != frames {
		t.Errorf("alarms %v, want %d of each", count, frames)
	}
	var after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&after)
	t.Logf("%d hostile messages: %+v, %d MiB of images at the most, heap %d → %d MiB", messages, w.Stats(), m.Peak()>>20, before.HeapAlloc>>20, after.HeapAlloc>>20)
	if m.Peak() > budget {
		t.Errorf("%d bytes of images at once, at most %d", m.Peak(), budget)
	}
}
