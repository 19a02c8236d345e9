package worker_test

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"net/url"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/rs/zerolog"

	"github.com/nearmiss/nearmiss/internal/brokertest"
	"github.com/nearmiss/nearmiss/internal/eventually"
	"github.com/nearmiss/nearmiss/internal/memory"
	"github.com/nearmiss/nearmiss/stream"
	"github.com/nearmiss/nearmiss/stream/internal/streamtest"
	"github.com/nearmiss/nearmiss/stream/worker"
)

// TestEventsThatCannotBeStoredAreNotTheFramesFault: the events stream takes
// nothing for longer than all tries of a frame last.
func TestEventsThatCannotBeStoredAreNotTheFramesFault(t *testing.T) {
	const ackWait = 1500 * time.Millisecond // a busy machine stops for a while
	r := streamtest.New(t, stream.Topology{})
	r.Release("bolts", streamtest.Fake{Name: "one"})
	w, _ := r.Worker(worker.Config{MaxDeliver: 2, RetryDelay: time.Millisecond, AckWait: ackWait, BatchSize: 4, Lanes: 1}, streamtest.LoadFake)
	eventually.True(t, "its release is told", func() bool { return len(r.EventsOf(stream.KindRelease)) == 1 })
	s, err := r.JS.Stream(t.Context(), r.Names.EventsStream())
	if err != nil {
		t.Fatal(err)
	}
	good := s.CachedInfo().Config
	full := good
	full.MaxMsgs, full.Discard = 1, jetstream.DiscardNew
	if _, err := r.JS.UpdateStream(t.Context(), full); err != nil {
		t.Fatal(err)
	}
	const frames = 20
	for i := range frames {
		img := streamtest.Image(0.91 + float64(i)/1000)
		if i%2 == 1 {
			img = []byte("no image")
		}
		r.Publish(stream.Frame{Detector: "bolts", Camera: "left", ID: fmt.Sprint("f", i), Image: img})
	}
	// Only what is in hand waits; it is kept alive, and nothing is taken besides.
	cons, err := r.JS.Consumer(t.Context(), r.Names.FramesStream(), "frames-bolts")
	if err != nil {
		t.Fatal(err)
	}
	begin := time.Now()
	eventually.True(t, "three times AckWait are over", func() bool {
		info, err := cons.Info(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if info.NumAckPending > 4 || info.NumRedelivered > 0 {
			t.Fatalf("%d frames in hand, %d delivered again", info.NumAckPending, info.NumRedelivered)
		}
		return time.Since(begin) > 3*ackWait
	})
	if st := w.Stats(); st.Scored+st.Rejected+st.Retried != 0 {
		t.Errorf("%+v", st)
	}
	if _, err := r.JS.UpdateStream(t.Context(), good); err != nil {
		t.Fatal(err)
	}
	eventually.True(t, "all have come to their end", func() bool { return r.Waiting() == 0 })
	if st := w.Stats(); st.Scored != frames/2 || st.Rejected != frames/2 || st.Retried != 0 {
		t.Errorf("%+v", st)
	}
	for _, e := range r.Events() {
		if e.Code == stream.CodeMaxDeliveries || e.Code == stream.CodeScoring {
			t.Errorf("%+v", e)
		}
	}
}

// TestAnAlarmIsWorthMoreThanItsPicture: the object store takes nothing.
func TestAnAlarmIsWorthMoreThanItsPicture(t *testing.T) {
	r := streamtest.New(t, stream.Topology{})
	r.Release("bolts", streamtest.Fake{Name: "one"})
	s, err := r.JS.Stream(t.Context(), "OBJ_"+r.Names.ImagesBucket())
	if err != nil {
		t.Fatal(err)
	}
	full := s.CachedInfo().Config
	full.MaxBytes = int64(s.CachedInfo().State.Bytes) + 1000
	if _, err := r.JS.UpdateStream(t.Context(), full); err != nil {
		t.Fatal(err)
	}
	w, _ := r.Worker(worker.Config{}, streamtest.LoadFake)
	r.Publish(stream.Frame{Detector: "bolts", Camera: "left", ID: "f", Image: append(streamtest.Image(0.95), make([]byte, 20<<10)...)})
	eventually.True(t, "it is scored", func() bool { return w.Stats().Scored == 1 })
	if e := r.Events(); len(e) != 1 || e[0].Kind != stream.KindAnomaly || e[0].Evidence != "" || e[0].NoPictures != stream.NoPicturesStorage {
		t.Errorf("evidence %q, no pictures %q", e[0].Evidence, e[0].NoPictures)
	}
	if st := w.Stats(); st.Retried != 0 {
		t.Errorf("%+v", st)
	}
}

// TestFramesUnderWayShareOneMemory: many small messages name one large object.
func TestFramesUnderWayShareOneMemory(t *testing.T) {
	r := streamtest.New(t, stream.Topology{})
	const size, frames, budget = 4 << 20, 48, 10 << 20
	store, err := r.JS.ObjectStore(t.Context(), r.Names.LargeBucket())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := store.PutBytes(t.Context(), "frames/huge", append(streamtest.Image(0.1), make([]byte, size-12)...)); err != nil {
		t.Fatal(err)
	}
	for i := range frames {
		detector := []string{"bolts", "nuts", "pins"}[i%3]
		r.Send(r.Names.Frames(detector, "left"), map[string]string{stream.HeaderObject: "frames/huge", stream.HeaderFrameID: fmt.Sprint(i)}, nil)
		r.Publish(stream.Frame{Detector: detector, Camera: "left", ID: fmt.Sprint("small", i), Image: append(streamtest.Image(0.2), make([]byte, 1<<20)...)})
	}
	// What is in the scorers at the same time is in memory.
	var mu sync.Mutex
	inHand, most := 0, 0
	loader := streamtest.Serve(streamtest.Fake{Delay: 5 * time.Millisecond, OnScore: func(images [][]byte) error {
		n := 0
		for _, b := range images {
			n += len(b)
		}
		mu.Lock()
		inHand += n
		most = max(most, inHand)
		mu.Unlock()
		time.Sleep(5 * time.Millisecond)
		mu.Lock()
		inHand -= n
		mu.Unlock()
		return nil
	}})
	for _, detector := range []string{"bolts", "nuts", "pins"} {
		r.Release(detector, streamtest.Fake{Name: "one"})
	}
	m := memory.New(budget)
	w, _ := r.Worker(worker.Config{Memory: m}, loader)
	// The first that is scored removes the object, which the others then miss.
	eventually.True(t, "all have come to their end", func() bool { st := w.Stats(); return st.Scored+st.Rejected == 2*frames })
	// A frame whose object went while it was read is tried again.
	if m.Peak() > budget || most > budget || w.Stats().Retried > 3 {
		t.Errorf("%d bytes were lent, %d in the scorers, of %d; %+v", m.Peak(), most, budget, w.Stats())
	}
	if most < size {
		t.Errorf("never more than %d bytes together: the test shows nothing", most)
	}
	eventually.True(t, "all is given back", func() bool {
		free, ok := m.Try(budget)
		if ok {
			free()
		}
		return ok
	})
}

// narrow is a link to the broker that carries so many bytes a second.
type narrow struct {
	listener net.Listener
	to       string
	rate     int
	all      sync.WaitGroup
	mu       sync.Mutex
	open     []net.Conn
	carried  atomic.Int64
}

func newNarrow(t *testing.T, to string, rate int) *narrow {
	t.Helper()
	u, err := url.Parse(to)
	if err != nil {
		t.Fatal(err)
	}
	n := &narrow{to: u.Host, rate: rate}
	if n.listener, err = net.Listen("tcp", "127.0.0.1:0"); err != nil {
		t.Fatal(err)
	}
	n.all.Go(func() {
		for {
			c, err := n.listener.Accept()
			if err != nil {
				return
			}
			d, err := net.Dial("tcp", n.to)
			if err != nil {
				_ = c.Close()
				continue
			}
			// Little is on its way at a time, as on a real link.
			_ = d.(*net.TCPConn).SetReadBuffer(32 << 10)
			_ = c.(*net.TCPConn).SetWriteBuffer(32 << 10)
			n.mu.Lock()
			n.open = append(n.open, c, d)
			n.mu.Unlock()
			n.all.Go(func() { _, _ = io.Copy(d, c); _ = d.Close() })
			n.all.Go(func() { n.carry(c, d); _ = c.Close() })
		}
	})
	t.Cleanup(func() {
		_ = n.listener.Close()
		n.mu.Lock()
		for _, c := range n.open {
			_ = c.Close()
		}
		n.mu.Unlock()
		n.all.Wait()
	})
	return n
}

// carry copies from the broker at the link's rate.
func (n *narrow) carry(to io.Writer, from io.Reader) {
	b := make([]byte, max(n.rate/50, 1))
	begin, sent := time.Now(), 0
	for {
		k, err := from.Read(b)
		if err != nil {
			return
		}
		if _, err := to.Write(b[:k]); err != nil {
			return
		}
		n.carried.Add(int64(k))
		sent += k
		due := begin.Add(time.Duration(float64(sent) / float64(n.rate) * float64(time.Second)))
		if late := time.Until(due); late > 0 {
			time.Sleep(late)
		} else if late < -time.Second {
			begin, sent = time.Now(), 0
		}
	}
}

func TestASlowLinkCostsTimeAndNoFrame(t *testing.T) {
	r := streamtest.New(t, stream.Topology{})
	r.Release("bolts", streamtest.Fake{Name: "one"})
	const frames, rate, ackWait = 30, 400 << 10, 400 * time.Millisecond
	img := func(i, size int) []byte {
		return append(streamtest.Image(float64(i)/1000), bytes.Repeat([]byte{byte(i)}, size)...)
	}
	total := 0
	for i := range frames {
		size := 60 << 10
		if i == frames/2 {
			size = 300 << 10 // longer on its way than the broker waits for an answer
		}
		total += size
		r.Publish(stream.Frame{Detector: "bolts", Camera: "left", ID: fmt.Sprint("f", i), Image: img(i, size)})
	}
	link := newNarrow(t, r.URL, rate)
	nc, err := stream.Connect("nats://"+link.listener.Addr().String(), "far away", zerolog.Nop(), nats.PingInterval(time.Minute))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	var scored atomic.Int64
	w, err := worker.New(worker.Config{CacheDir: filepath.Join(r.Dir, "cache"), AckWait: ackWait, RetryDelay: time.Millisecond, MaxDeliver: 2}, nc,
		streamtest.Serve(streamtest.Fake{OnScore: func(images [][]byte) error { scored.Add(int64(len(images))); return nil }}), streamtest.Log(t).Level(zerolog.DebugLevel))
	if err != nil {
		t.Fatal(err)
	}
	brokertest.Run(t, "worker", w.Run)
	eventually.True(t, "all are scored", func() bool { return r.Waiting() == 0 })
	if st := w.Stats(); st.Scored < frames || st.Rejected != 0 || st.Retried != 0 {
		t.Errorf("%+v", st)
	}
	if dead := r.Stored(r.Names.DeadStream()); len(dead) > 0 {
		t.Errorf("%d dead letters, first %v", len(dead), dead[0].Header)
	}
	t.Logf("%d frames scored %d times, %.1f times their bytes carried", frames, scored.Load(), float64(link.carried.Load())/float64(total))
	if carried := link.carried.Load(); carried > int64(2*total) {
		t.Errorf("%d bytes were carried for %d bytes of frames: frames come again and again", carried, total)
	}
}
