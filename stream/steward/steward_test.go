package steward_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/nats-io/nuid"

	"github.com/nearmiss/nearmiss/internal/eventually"
	"github.com/nearmiss/nearmiss/stream"
	"github.com/nearmiss/nearmiss/stream/internal/streamtest"
	"github.com/nearmiss/nearmiss/stream/steward"
	"github.com/nearmiss/nearmiss/stream/worker"
)

// floodQueue publishes frames until the broker refuses, and returns how many it took. Each
// has an id, so that one that is published again is stored once.
func floodQueue(r *streamtest.Rig, detector string, size, most int) (taken int, err error) {
	r.T.Helper()
	for i := range most {
		m := nats.NewMsg(r.Names.Frames(detector, fmt.Sprint("c", i%3)))
		m.Data = append(streamtest.Image(0.1), make([]byte, size)...)
		m.Header.Set(nats.MsgIdHdr, nuid.Next())
		if err := insist(r.T.Context(), r.JS, m, jetstream.WithRetryAttempts(0)); err != nil {
			return i, err
		}
	}
	return most, nil
}

func TestAFloodLeavesOthersTheirShareOfTheQueue(t *testing.T) {
	for _, c := range []struct {
		flooder string // a detector, or a misspelt one
		own     bool   // on a server of somebody's own, with two stewards
	}{{"bolts", false}, {"blots", false}, {"bolts", true}, {"blots", true}} {
		flooder := c.flooder
		t.Run(fmt.Sprintf("%s, own server %v", flooder, c.own), func(t *testing.T) {
			const queue = 8 << 20
			var r *streamtest.Rig
			if c.own {
				r = onOwnServer(t, stream.Topology{FramesMaxBytes: queue}, &server.Options{})
			} else {
				r = streamtest.New(t, stream.Topology{FramesMaxBytes: queue})
			}
			for _, d := range []string{"bolts", "nuts"} {
				r.Detector(stream.Detector{Name: d})
			}
			r.Consumers("bolts", "blots", "nuts")
			if c.own {
				r.Steward(steward.Config{Remote: true})
				r.Steward(steward.Config{Remote: true})
			} else {
				r.Steward(steward.Config{FramesMaxBytes: queue})
			}
			taken, err := floodQueue(r, flooder, 100<<10, 1000)
			if !stream.IsQueueFull(err) {
				t.Errorf("%d taken, then %v", taken, err)
			}
			// The others go on, for as much as is theirs.
			in := 0
			eventually.True(t, "the others have their share", func() bool {
				n, err := floodQueue(r, "nuts", 50<<10, 1)
				if err != nil && !stream.IsQueueFull(err) {
					t.Fatal(err)
				}
				in += n
				return in == 40
			})
			if n, err := floodQueue(r, flooder, 10, 1); !stream.IsQueueFull(err) {
				t.Errorf("%d more frames of the flood are taken, %v", n, err)
			}
			// One that was on its way when the answer became no may be stored all the same.
			if got := r.Waiting(); got < uint64(taken+in) || got > uint64(taken+in+2) {
				t.Errorf("%d frames wait, %d were acknowledged", got, taken+in)
			}
			// What was acknowledged is scored, and then the flooder is welcome again.
			for _, d := range []string{"bolts", "blots", "nuts"} {
				r.Release(d, streamtest.Fake{Name: d})
			}
			w, _ := r.Worker(worker.Config{}, streamtest.LoadFake)
			eventually.True(t, "all are scored", func() bool { return r.Waiting() == 0 && w.Stats().Scored >= uint64(taken+in) })
			eventually.True(t, "its frames are taken again", func() bool { _, err := floodQueue(r, flooder, 10, 1); return err == nil })
			s, err := r.JS.Stream(t.Context(), r.Names.FramesStream())
			if err != nil {
				t.Fatal(err)
			}
			eventually.True(t, "the queue is as it was", func() bool {
				i, err := s.Info(t.Context())
				return err == nil && i.Config.MaxBytes == queue && i.Config.Subjects[0] == r.Names.Frames("*", "*")
			})
			if flooder == "bolts" {
				eventually.True(t, "it is told", func() bool {
					e := r.EventsOf(stream.KindLost)
					return len(e) >= 2 && e[0].Code == stream.LostShare && e[0].Detector == flooder && e[len(e)-1].Code == stream.LostOver
				})
			}
		})
	}
}

// TestNothingIsLostWhileSharesChange publishes for one detector while another one
// is cut and let in again.
func TestNothingIsLostWhileSharesChange(t *testing.T) {
	const queue = 4 << 20
	r := streamtest.New(t, stream.Topology{FramesMaxBytes: queue})
	for _, d := range []string{"bolts", "nuts"} {
		r.Release(d, streamtest.Fake{Name: d})
	}
	r.Consumers("bolts", "nuts")
	r.Steward(steward.Config{FramesMaxBytes: queue, Every: 20 * time.Millisecond})
	r.Worker(worker.Config{Detectors: []string{"nuts"}}, streamtest.LoadFake)
	scores := r.Scores()
	done := make(chan error, 1)
	go func() {
		for range 3 {
			if _, err := floodQueue(r, "bolts", 100<<10, 1000); !stream.IsQueueFull(err) {
				done <- err
				return
			}
			s, err := r.JS.Stream(t.Context(), r.Names.FramesStream())
			if err == nil {
				err = s.Purge(t.Context(), jetstream.WithPurgeSubject(r.Names.Frames("bolts", "*")))
			}
			if err != nil {
				done <- err
				return
			}
		}
		done <- nil
	}()
	var sent []string
	for over := false; !over; {
		select {
		case err := <-done:
			if err != nil {
				t.Fatal(err)
			}
			over = true
		default:
		}
		id := fmt.Sprint("f", len(sent))
		m, err := stream.Frame{Detector: "nuts", Camera: "left", ID: id, Image: streamtest.Image(0.1)}.Message(r.Names)
		if err != nil {
			t.Fatal(err)
		}
		if err := insist(t.Context(), r.JS, m); err == nil {
			sent = append(sent, id)
		} else if !stream.IsQueueFull(err) {
			t.Fatal(err)
		}
	}
	// Once or more: what had no answer in time was published again.
	eventually.True(t, "all that was acknowledged is scored", func() bool {
		all := scores.ByFrame()
		return !slices.ContainsFunc(sent, func(id string) bool { return len(all[id]) == 0 })
	})
}

// changing is a stream of which the server tells something else each time.
type changing struct {
	jetstream.Stream
	states []jetstream.StreamState
}

func (c *changing) Info(context.Context, ...jetstream.StreamInfoOpt) (*jetstream.StreamInfo, error) {
	state := c.states[0]
	if len(c.states) > 1 {
		c.states = c.states[1:]
	}
	return &jetstream.StreamInfo{State: state}, nil
}

// TestWhoIsLeftDoesNotStandForWhoIsGone: frames that go while the server counts are not
// taken for those of another detector.
func TestWhoIsLeftDoesNotStandForWhoIsGone(t *testing.T) {
	r := streamtest.New(t, stream.Topology{})
	s, err := steward.New(steward.Config{Remote: true}, r.NC, streamtest.Log(t))
	if err != nil {
		t.Fatal(err)
	}
	nuts, bolts := r.Names.Frames("nuts", "a"), r.Names.Frames("bolts", "a")
	between := jetstream.StreamState{Msgs: 140, Bytes: 4 << 20, Subjects: map[string]uint64{nuts: 100}}
	after := jetstream.StreamState{Msgs: 100, Bytes: 10_000, Subjects: map[string]uint64{nuts: 100}}
	both := jetstream.StreamState{Msgs: 200, Bytes: 60_000, Subjects: map[string]uint64{nuts: 100, bolts: 100}}
	for _, c := range []struct {
		states      []jetstream.StreamState
		nuts, bolts int64
	}{
		{[]jetstream.StreamState{both}, 20_000, 40_000}, // three times as large as what came last
		{[]jetstream.StreamState{between, after}, 10_000, 0},
		{[]jetstream.StreamState{between}, 6_666, 0}, // it never says the same twice
	} {
		s.SetSizes(map[string]float64{nuts: 66.66, bolts: 133.32})
		use, err := s.Use(t.Context(), &changing{states: c.states})
		if err != nil || use["nuts"]/10 != c.nuts/10 || use["bolts"]/10 != c.bolts/10 {
			t.Errorf("%v, %v, want %d and %d", use, err, c.nuts, c.bolts)
		}
	}
}

func TestWhatIsPublishedAndNotStoredIsCountedAndTold(t *testing.T) {
	r := streamtest.New(t, stream.Topology{FramesMaxBytes: 1 << 20})
	r.Detector(stream.Detector{Name: "bolts"})
	r.Steward(steward.Config{FramesMaxBytes: 1 << 20})
	eventually.True(t, "the steward hears", func() bool {
		_, err := r.JS.Publish(t.Context(), "nearmiss.frames.bolts.line1.top", nil)
		var api *jetstream.APIError
		return errors.As(err, &api) && api.Code == 404
	})
	for range 12 { // no answer is asked for, as from MQTT
		if err := r.NC.Publish("nearmiss.frames.bolts.line1", make([]byte, 150_000)); err != nil {
			t.Fatal(err)
		}
	}
	for _, subject := range []string{"nearmiss.frames.bolts", "/.nearmiss.frames.bolts.line1", "Nearmiss.frames.bolts.line1", "nearmiss.frame.bolts.line1", "nearmiss.frames.bolts.line1./"} {
		if err := r.NC.Publish(subject, []byte("x")); err != nil {
			t.Fatal(err)
		}
	}
	var lost map[string]stream.Lost
	eventually.True(t, "all is counted", func() bool {
		all, err := r.In.LostFrames(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		lost = map[string]stream.Lost{}
		for _, l := range all {
			lost[l.Subject] = l
		}
		// A look in between has counted a part, and the next one is a minute later.
		return len(lost) >= 7 && lost["nearmiss.frames.bolts.line1"].Frames+r.Waiting() >= 12
	})
	if l := lost["nearmiss.frames.bolts.line1"]; l.Code != stream.LostNotStored || l.Frames+r.Waiting() != 12 || l.Frames == 0 {
		t.Errorf("%+v, %d wait", l, r.Waiting())
	}
	for _, s := range []string{"nearmiss.frames.bolts", "/.nearmiss.frames.bolts.line1", "Nearmiss.frames.bolts.line1", "nearmiss.frame.bolts.line1", "nearmiss.frames.bolts.line1./", "nearmiss.frames.bolts.line1.top"} {
		if lost[s].Code != stream.LostBadTopic || lost[s].Frames == 0 {
			t.Errorf("%s: %+v", s, lost[s])
		}
	}
	eventually.True(t, "it is told", func() bool { return len(r.EventsOf(stream.KindLost)) >= 7 })
	if st, err := r.In.Status(t.Context()); err != nil || len(st.Lost) != len(lost) {
		t.Errorf("%+v, %v", st.Lost, err)
	}
}

// TestWhatIsStoredLateIsNotLost: a busy disk keeps frames waiting for seconds.
func TestWhatIsStoredLateIsNotLost(t *testing.T) {
	r := streamtest.New(t, stream.Topology{})
	s, err := steward.New(steward.Config{}, r.NC, streamtest.Log(t))
	if err != nil {
		t.Fatal(err)
	}
	const camera = "bolts.line1"
	lost := func() (n uint64) {
		t.Helper()
		all, err := r.In.LostFrames(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for _, l := range all {
			n += l.Frames
		}
		return n
	}
	for range 20 { // each frame is stored three seconds after it was published
		s.Published(camera, 10)
		s.Report(t.Context(), 3)
		s.Stored(camera, 10)
	}
	if n := lost(); n != 0 {
		t.Errorf("%d of 200 frames are said to be lost, all are stored", n)
	}
	s.Published(camera, 10)
	s.Stored(camera, 7)
	s.Report(t.Context(), 10)
	if n := lost(); n != 3 {
		t.Errorf("%d frames are said to be lost, three are", n)
	}
}

func TestAFullDiskRefusesFramesAndLetsThemInAgain(t *testing.T) {
	r := streamtest.New(t, stream.Topology{})
	full := make(chan string, 1)
	full <- ""
	state := func() string { s := <-full; full <- s; return s }
	set := func(s string) { <-full; full <- s }
	r.Steward(steward.Config{Full: state})
	r.Publish(stream.Frame{Detector: "bolts", Camera: "left", ID: "before", Image: streamtest.Image(0.1)})
	set("the disk is full")
	eventually.True(t, "frames are refused", func() bool { _, err := floodQueue(r, "bolts", 10, 1); return stream.IsQueueFull(err) })
	eventually.True(t, "it is told", func() bool { e := r.EventsOf(stream.KindLost); return len(e) == 1 && e[0].Code == stream.LostDisk })
	status := func() stream.Status {
		t.Helper()
		st, err := r.In.Status(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return st
	}
	if st, want := status(), "no frames are taken: the disk is full"; st.Full != "the disk is full" || !slices.Contains(stream.Ailments(st, make([]stream.WorkerStatus, 1)), want) {
		t.Errorf("%+v", st)
	}
	kept := r.Waiting()
	set("")
	eventually.True(t, "frames are taken again", func() bool { _, err := floodQueue(r, "bolts", 10, 1); return err == nil })
	if st := status(); st.Full != "" {
		t.Errorf("%+v", st)
	}
	if n := r.Waiting(); n < kept+1 {
		t.Errorf("%d frames wait, want %d", n, kept+1)
	}
}

// insist publishes as cameras do: again when no answer comes, which happens while
// the broker changes the stream.
func insist(ctx context.Context, js jetstream.JetStream, m *nats.Msg, opts ...jetstream.PublishOpt) error {
	for ctx.Err() == nil {
		step, cancel := context.WithTimeout(ctx, time.Second)
		_, err := js.PublishMsg(step, m, opts...)
		cancel()
		if !errors.Is(err, context.DeadlineExceeded) {
			return err
		}
	}
	return ctx.Err()
}
