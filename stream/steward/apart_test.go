package steward_test

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/nearmiss/nearmiss/internal/brokertest"
	"github.com/nearmiss/nearmiss/internal/eventually"
	"github.com/nearmiss/nearmiss/stream"
	"github.com/nearmiss/nearmiss/stream/internal/streamtest"
	"github.com/nearmiss/nearmiss/stream/steward"
)

// onOwnServer is streamtest.New on a nats-server of somebody's own.
func onOwnServer(t *testing.T, topology stream.Topology, o *server.Options) *streamtest.Rig {
	t.Helper()
	t.Parallel()
	o.JetStream, o.StoreDir = true, t.TempDir()
	if o.JetStreamMaxStore == 0 { // else it depends on how much of the disk is free
		o.JetStreamMaxStore = 2 * topology.Reserved()
	}
	r := &streamtest.Rig{T: t, Names: topology.Names, Dir: t.TempDir(), URL: brokertest.Server(t, o)}
	r.Open(topology)
	return r
}

// TestSharesWhereTheStoreCannotGrow: on a server whose store has no room for a larger
// queue, those within their share still have what is free.
func TestSharesWhereTheStoreCannotGrow(t *testing.T) {
	const queue = 8 << 20
	topology := stream.Topology{
		FramesMaxBytes: queue, EventsMaxBytes: 1 << 20, DeadMaxBytes: 1 << 20, LargeMaxBytes: 1 << 20,
	}
	r := onOwnServer(t, topology, &server.Options{JetStreamMaxStore: topology.Reserved() + 1<<20})
	for _, d := range []string{"bolts", "nuts"} {
		r.Detector(stream.Detector{Name: d})
	}
	apart, err := steward.New(steward.Config{Remote: true}, r.Connect(), streamtest.Log(t))
	if err != nil {
		t.Fatal(err)
	}
	if n, err := floodQueue(r, "bolts", 100<<10, 60); err != nil {
		t.Fatalf("%d taken, then %v", n, err)
	}
	if err := apart.Look(t.Context()); err != nil {
		t.Fatal(err)
	}
	if n, err := floodQueue(r, "bolts", 10, 1); !stream.IsQueueFull(err) {
		t.Errorf("%d more frames of the flood are taken, %v", n, err)
	}
	n, err := floodQueue(r, "nuts", 100<<10, 100)
	if n < 15 || !stream.IsQueueFull(err) {
		t.Errorf("%d frames of the other are taken, then %v", n, err)
	}
	s, err := r.JS.Stream(t.Context(), r.Names.FramesStream())
	if err != nil || s.CachedInfo().Config.MaxBytes != queue {
		t.Errorf("%+v, %v", s, err)
	}
}

// emptyQueue removes all frames.
func emptyQueue(r *streamtest.Rig) {
	r.T.Helper()
	s, err := r.JS.Stream(r.T.Context(), r.Names.FramesStream())
	if err == nil {
		err = s.Purge(r.T.Context())
	}
	if err != nil {
		r.T.Fatal(err)
	}
}

// queueConfig is how the queue is set up now.
func queueConfig(r *streamtest.Rig) jetstream.StreamConfig {
	r.T.Helper()
	s, err := r.JS.Stream(r.T.Context(), r.Names.FramesStream())
	if err != nil {
		r.T.Fatal(err)
	}
	return s.CachedInfo().Config
}

// TestASecondStewardGoesOnWhereTheFirstEnded: one that begins while a detector is
// refused keeps to that, and to what the queue may hold, which the first has enlarged.
func TestASecondStewardGoesOnWhereTheFirstEnded(t *testing.T) {
	const queue = 8 << 20
	for _, c := range []struct {
		flooder   string // a detector, or one that nobody has made
		less, few int    // frames: below its share and above half of it, and below that
		told      []string
	}{
		{"bolts", 30, 10, []string{stream.LostShare, stream.LostOver}}, // 3.0 MiB of 3.75
		{"blots", 4, 1, nil}, // 400 KiB of 512
	} {
		t.Run(c.flooder, func(t *testing.T) {
			r := onOwnServer(t, stream.Topology{FramesMaxBytes: queue}, &server.Options{})
			for _, d := range []string{"bolts", "nuts"} {
				r.Detector(stream.Detector{Name: d})
			}
			look := func() {
				t.Helper()
				s, err := steward.New(steward.Config{Remote: true}, r.Connect(), streamtest.Log(t))
				if err == nil {
					err = s.Look(t.Context())
				}
				if err != nil {
					t.Fatal(err)
				}
			}
			config := func() string {
				t.Helper()
				c := queueConfig(r)
				return fmt.Sprintf("%d %v %s", c.MaxBytes, c.Subjects, c.Metadata[stream.FramesBytes])
			}
			before := config()
			if n, err := floodQueue(r, c.flooder, 100<<10, 60); err != nil {
				t.Fatalf("%d taken, then %v", n, err)
			}
			look()
			cut := config()
			if cut == before || strings.Contains(cut, c.flooder) || strings.Contains(cut, "frames.*") || !strings.Contains(cut, "frames.nuts.*") || !strings.HasSuffix(cut, fmt.Sprint(queue)) {
				t.Errorf("refused: %s", cut)
			}
			drop := func(keep int) {
				t.Helper()
				s, err := r.JS.Stream(t.Context(), r.Names.FramesStream())
				if err != nil {
					t.Fatal(err)
				}
				info, err := s.Info(t.Context())
				if err != nil {
					t.Fatal(err)
				}
				for seq := info.State.FirstSeq; info.State.LastSeq-seq+1 > uint64(keep); seq++ {
					if err := s.DeleteMsg(t.Context(), seq); err != nil {
						t.Fatal(err)
					}
				}
			}
			// Below its share, and not yet below half of it: it is still refused.
			drop(c.less)
			look()
			if got := config(); strings.Contains(got, "frames."+c.flooder) || strings.Contains(got, "frames.*") || !strings.HasSuffix(got, fmt.Sprint(queue)) {
				t.Errorf("between half and all of its share: %s", got)
			}
			drop(c.few)
			look()
			if got := config(); got != before {
				t.Errorf("after it: %s, before: %s", got, before)
			}
			var told []string
			for _, e := range r.EventsOf(stream.KindLost) {
				told = append(told, e.Code)
			}
			if !slices.Equal(told, c.told) {
				t.Errorf("told %v", told)
			}
		})
	}
}

// TestStewardsChangeTheStreamOneAtATime: while several see a flood begin and end, each
// frame of another detector is stored once.
func TestStewardsChangeTheStreamOneAtATime(t *testing.T) {
	const queue = 4 << 20
	r := onOwnServer(t, stream.Topology{FramesMaxBytes: queue}, &server.Options{})
	for _, d := range []string{"bolts", "nuts"} {
		r.Detector(stream.Detector{Name: d})
	}
	var stewards []*steward.Steward
	for range 4 {
		s, err := steward.New(steward.Config{Remote: true}, r.Connect(), streamtest.Log(t))
		if err != nil {
			t.Fatal(err)
		}
		stewards = append(stewards, s)
	}
	before := queueConfig(r).Subjects
	lookAll := func() {
		var all sync.WaitGroup
		for _, s := range stewards {
			all.Go(func() {
				if err := s.Look(t.Context()); err != nil {
					t.Error(err)
				}
			})
		}
		all.Wait()
	}
	look := func(changed bool) {
		t.Helper()
		eventually.True(t, "one has changed the queue", func() bool {
			lookAll()
			return slices.Equal(before, queueConfig(r).Subjects) != changed
		})
		lookAll() // the others see it
	}
	for range 8 {
		if n, err := floodQueue(r, "bolts", 100<<10, 25); err != nil {
			t.Fatalf("%d taken, then %v", n, err)
		}
		look(true)
		for range 3 {
			if _, err := floodQueue(r, "nuts", 10, 1); err != nil {
				t.Fatal(err)
			}
		}
		if n := r.Waiting(); n != 25+3 {
			t.Fatalf("%d frames wait, %d were published", n, 25+3)
		}
		emptyQueue(r)
		look(false)
	}
}

// TestATurnIsNotKeptForEver: a steward that died while it changed the queue does not keep
// others from it, and one that is at it does.
func TestATurnIsNotKeptForEver(t *testing.T) {
	const queue = 4 << 20
	r := onOwnServer(t, stream.Topology{FramesMaxBytes: queue}, &server.Options{})
	for _, d := range []string{"bolts", "nuts"} {
		r.Detector(stream.Detector{Name: d})
	}
	kv, err := r.JS.KeyValue(t.Context(), r.Names.WorkBucket())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := kv.Create(t.Context(), stream.StreamsLease, nil); err != nil {
		t.Fatal(err)
	}
	if n, err := floodQueue(r, "bolts", 100<<10, 25); err != nil {
		t.Fatalf("%d taken, then %v", n, err)
	}
	s, err := steward.New(steward.Config{Remote: true}, r.Connect(), streamtest.Log(t))
	if err != nil {
		t.Fatal(err)
	}
	before := queueConfig(r)
	look := func() jetstream.StreamConfig {
		t.Helper()
		if err := s.Look(t.Context()); err != nil {
			t.Fatal(err)
		}
		return queueConfig(r)
	}
	if got := look(); !slices.Equal(got.Subjects, before.Subjects) {
		t.Errorf("changed to %v in the turn of another", got.Subjects)
	}

	s.Wait(time.Hour)
	if got := look(); slices.Equal(got.Subjects, before.Subjects) {
		t.Errorf("not changed when the other had its turn for an hour: %v", got.Subjects)
	}
	if _, err := kv.Get(t.Context(), stream.StreamsLease); !errors.Is(err, jetstream.ErrKeyNotFound) {
		t.Errorf("the turn is not ended: %v", err)
	}
}

// TestStewardsTellTheSameOnce: of several that tell what they all see one is heard,
// however often it comes and goes, and whatever their clocks say.
func TestStewardsTellTheSameOnce(t *testing.T) {
	r := onOwnServer(t, stream.Topology{}, &server.Options{})
	var stewards []*steward.Steward
	for range 3 {
		s, err := steward.New(steward.Config{Remote: true}, r.Connect(), streamtest.Log(t))
		if err != nil {
			t.Fatal(err)
		}
		stewards = append(stewards, s)
	}
	want := []string{stream.LostShare, stream.LostOver, stream.LostShare, stream.LostOver}
	for i, code := range want {
		var all sync.WaitGroup
		for _, s := range stewards {
			all.Go(func() { s.Tell(t.Context(), "bolts", code) })
		}
		all.Wait()
		stewards[0].Tell(t.Context(), "bolts", code)
		var told []string
		for _, e := range r.EventsOf(stream.KindLost) {
			told = append(told, e.Code)
		}
		if !slices.Equal(told, want[:i+1]) {
			t.Fatalf("told %v, want %v", told, want[:i+1])
		}
	}
}

// TestTheStewardBesideTheBrokerDecides: one apart changes nothing there, though it sees
// a flood in a queue that could be larger.
func TestTheStewardBesideTheBrokerDecides(t *testing.T) {
	const queue = 8 << 20
	r := streamtest.New(t, stream.Topology{FramesMaxBytes: queue})
	for _, d := range []string{"bolts", "nuts"} {
		r.Detector(stream.Detector{Name: d})
	}
	if n, err := floodQueue(r, "bolts", 100<<10, 60); err != nil {
		t.Fatalf("%d taken, then %v", n, err)
	}
	var full atomic.Bool
	full.Store(true)
	// It looks rarely, so that it does not undo at once what another does.
	r.Steward(steward.Config{FramesMaxBytes: queue, Every: time.Second, Full: func() string {
		if full.Load() {
			return "the disk is full"
		}
		return ""
	}})
	eventually.True(t, "the queue takes no more", func() bool { return queueConfig(r).MaxBytes < queue })
	before := queueConfig(r)
	apart, err := steward.New(steward.Config{Remote: true}, r.Connect(), streamtest.Log(t))
	if err != nil {
		t.Fatal(err)
	}
	if err := apart.Look(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := queueConfig(r); got.MaxBytes != before.MaxBytes || !slices.Equal(got.Subjects, before.Subjects) {
		t.Errorf("the other has the queue take %d bytes of %v, not %d of %v", got.MaxBytes, got.Subjects, before.MaxBytes, before.Subjects)
	}
	if _, err := floodQueue(r, "nuts", 10, 1); !stream.IsQueueFull(err) {
		t.Errorf("the other let frames in: %v", err)
	}
	full.Store(false)
	eventually.True(t, "frames are taken again", func() bool { _, err := floodQueue(r, "nuts", 10, 1); return err == nil })
}
