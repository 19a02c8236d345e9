package camera_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"image/png"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/nats-io/nats.go/jetstream"
	"github.com/rs/zerolog"

	"github.com/nearmiss/nearmiss/internal/brokertest"
	"github.com/nearmiss/nearmiss/internal/synthetic"
	"github.com/nearmiss/nearmiss/stream"
	"github.com/nearmiss/nearmiss/stream/broker"
	"github.com/nearmiss/nearmiss/stream/camera"
	"github.com/nearmiss/nearmiss/stream/worker"
)

func TestMain(m *testing.M) { brokertest.Main(m) }

// setUp starts a broker with everything in it.
func setUp(t *testing.T, top stream.Topology) jetstream.JetStream {
	t.Helper()
	js := brokertest.JetStream(t, broker.Config{MaxPayload: 256 << 10})
	if err := stream.Ensure(t.Context(), js, top); err != nil {
		t.Fatal(err)
	}
	return js
}

// frames returns what waits in the queue. A frame that a publisher sent again, since the
// broker's answer was late, waits twice and is returned once: workers know it by its id.
func frames(t *testing.T, js jetstream.JetStream, from ...*camera.Publisher) []stream.Frame {
	t.Helper()
	var n stream.Names
	s, err := js.Stream(t.Context(), n.FramesStream())
	if err != nil {
		t.Fatal(err)
	}
	info := s.CachedInfo()
	var all []stream.Frame
	for seq := info.State.FirstSeq; seq > 0 && seq <= info.State.LastSeq; seq++ {
		m, err := s.GetMsg(t.Context(), seq)
		if errors.Is(err, jetstream.ErrMsgNotFound) {
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		f, err := stream.ParseFrame(n, m.Subject, m.Header, m.Data, &jetstream.MsgMetadata{Timestamp: m.Time, Sequence: jetstream.SequencePair{Stream: seq}}, info.State.FirstTime)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, f)
	}
	stored, repeated := len(all), uint64(0)
	all = slices.CompactFunc(all, func(a, b stream.Frame) bool { return a.Key() == b.Key() })
	for _, p := range from {
		repeated += p.Stats().Repeated
	}
	if again := stored - len(all); uint64(again) > repeated {
		t.Errorf("%d frames wait twice, %d were sent again", again, repeated)
	}
	return all
}

func publisher(t *testing.T, js jetstream.JetStream, cfg camera.Config) *camera.Publisher {
	t.Helper()
	cfg.Detector, cfg.Camera = "bolts", "left"
	p, err := camera.NewPublisher(cfg, js, zerolog.Nop())
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func TestFolderBecomesFrames(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"b.png", "a.JPG", "sub/c.tiff", "notes.txt", ".hidden.png"} {
		path := filepath.Join(dir, filepath.FromSlash(name))
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte("image "+name), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	js := setUp(t, stream.Topology{})
	var all []*camera.Publisher
	for range 2 { // the second time with the same ids, by which the worker knows them
		p := publisher(t, js, camera.Config{Run: "r"})
		all = append(all, p)
		if err := p.Run(t.Context(), &camera.Folder{Dir: dir}); err != nil {
			t.Fatal(err)
		}
		if p.Stats().Published != 3 {
			t.Errorf("%+v", p.Stats())
		}
	}
	var got []string
	for _, f := range frames(t, js, all...) {
		got = append(got, f.ID+" "+f.Source+" "+string(f.Image))
		if f.CapturedAt.IsZero() {
			t.Errorf("frame %s has no time", f.ID)
		}
	}
	want := []string{"r-1 a.JPG image a.JPG", "r-2 b.png image b.png", "r-3 sub/c.tiff image sub/c.tiff"}
	if want = append(want, want...); !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestFolderOrders(t *testing.T) {
	dir := t.TempDir()
	for i := range 20 {
		if err := os.WriteFile(filepath.Join(dir, fmt.Sprintf("%02d.png", i)), []byte{1}, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	names := func(s camera.Source, n int) (all []string) {
		for range n {
			img, err := s.Next(t.Context())
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				t.Fatal(err)
			}
			all = append(all, img.Name)
		}
		return all
	}
	sorted := names(&camera.Folder{Dir: dir}, 100)
	if len(sorted) != 20 || !slices.IsSorted(sorted) {
		t.Errorf("by name: %q", sorted)
	}
	one := names(&camera.Folder{Dir: dir, Order: camera.OrderRandom, Seed: 1, Loop: true}, 40)
	two := names(&camera.Folder{Dir: dir, Order: camera.OrderRandom, Seed: 1, Loop: true}, 40)
	if !slices.Equal(one, two) {
		t.Error("the same seed gives two orders")
	}
	if slices.Equal(one[:20], one[20:]) {
		t.Error("two rounds have one order")
	}
	for _, round := range [][]string{one[:20], one[20:]} {
		if s := slices.Sorted(slices.Values(round)); !slices.Equal(s, sorted) {
			t.Errorf("a round is %q", s)
		}
	}
	if _, err := (&camera.Folder{Dir: t.TempDir()}).Next(t.Context()); err == nil {
		t.Error("an empty folder is no error")
	}
	if _, err := (&camera.Folder{Dir: dir, Order: "size"}).Next(t.Context()); err == nil {
		t.Error("an unknown order is no error")
	}
}

func TestSyntheticFramesCarryTheirTruth(t *testing.T) {
	js := setUp(t, stream.Topology{})
	var publishers []*camera.Publisher
	for _, defects := range []float64{0, 1} {
		s, err := synthetic.New(synthetic.Parts, 7, synthetic.Options{Size: 32, DefectRate: defects})
		if err != nil {
			t.Fatal(err)
		}
		src := &camera.Generated{Count: 3, Make: camera.Drawn(s, uint64(3*defects))}
		p := publisher(t, js, camera.Config{})
		if err := p.Run(t.Context(), src); err != nil {
			t.Fatal(err)
		}
		publishers = append(publishers, p)
	}
	all := frames(t, js, publishers...)
	if len(all) != 6 {
		t.Fatalf("%d frames", len(all))
	}
	for i, f := range all {
		var truth synthetic.Truth
		if err := json.Unmarshal([]byte(f.Truth), &truth); err != nil || truth.Anomalous != (i >= 3) {
			t.Errorf("frame %d: truth %q, %v", i, f.Truth, err)
		}
		if img, err := png.Decode(bytes.NewReader(f.Image)); err != nil || img.Bounds().Dx() != 32 {
			t.Errorf("frame %d is no image: %v", i, err)
		}
	}
}

func TestAFullQueueHoldsTheCameraBackAndLosesNothing(t *testing.T) {
	js := setUp(t, stream.Topology{FramesMaxBytes: 64 << 10})
	const count = 40 // of 4 KiB: more than fit
	src := &camera.Generated{Count: count, Make: func(n int) ([]byte, string, error) { return make([]byte, 4<<10), "", nil }}
	p := publisher(t, js, camera.Config{})
	done := make(chan error, 1)
	go func() { done <- p.Run(t.Context(), src) }()

	var n stream.Names
	cons, err := js.CreateConsumer(t.Context(), n.FramesStream(), jetstream.ConsumerConfig{Durable: "d", AckPolicy: jetstream.AckExplicitPolicy})
	if err != nil {
		t.Fatal(err)
	}
	ids := map[string]int{}
	for len(ids) < count {
		m, err := cons.Next()
		if err != nil {
			t.Fatal(err)
		}
		ids[m.Headers().Get(stream.HeaderFrameID)]++
		if err := m.DoubleAck(t.Context()); err != nil {
			t.Fatal(err)
		}
		if s := p.Stats(); s.Bytes != s.Published*4<<10 { // read while it counts
			t.Errorf("%+v", s)
		}
	}
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	again := 0
	for _, c := range ids {
		again += c - 1
	}
	if uint64(again) > p.Stats().Repeated {
		t.Errorf("frames came again %d times, %d were sent again", again, p.Stats().Repeated)
	}
	if p.Stats().Published != count {
		t.Errorf("%+v", p.Stats())
	}
}

func TestALiveCameraDropsOldFrames(t *testing.T) {
	js := setUp(t, stream.Topology{FramesMaxBytes: 64 << 10})
	w, err := worker.New(worker.Config{CacheDir: t.TempDir()}, js.Conn(), func(context.Context, string) (worker.Scorer, error) {
		return nil, errors.New("there is no release")
	}, zerolog.Nop())
	if err != nil {
		t.Fatal(err)
	}
	brokertest.Run(t, "worker", w.Run) // drops frames when it is asked to
	src := &camera.Generated{Count: 100, Make: func(n int) ([]byte, string, error) { return make([]byte, 4<<10), "", nil }}
	p := publisher(t, js, camera.Config{Live: true, LiveBacklog: 5, Run: "r"})
	if err := p.Run(t.Context(), src); err != nil {
		t.Fatal(err)
	}
	all := frames(t, js, p)
	if len(all) == 0 || len(all) > 16 || all[len(all)-1].ID != "r-100" {
		t.Errorf("%d frames are left", len(all))
	}
}

func TestALargeImageTravelsAsAnObject(t *testing.T) {
	js := setUp(t, stream.Topology{})
	big := bytes.Repeat([]byte("x"), 1<<20) // the broker takes 256 KiB
	src := &camera.Generated{Count: 1, Make: func(int) ([]byte, string, error) { return big, "", nil }}
	p := publisher(t, js, camera.Config{})
	if err := p.Run(t.Context(), src); err != nil {
		t.Fatal(err)
	}
	all := frames(t, js, p)
	if len(all) != 1 || all[0].Object == "" || len(all[0].Image) != 0 {
		t.Fatalf("%+v", all)
	}
	var n stream.Names
	store, err := js.ObjectStore(t.Context(), n.LargeBucket())
	if err != nil {
		t.Fatal(err)
	}
	if got, err := store.GetBytes(t.Context(), all[0].Object); err != nil || !bytes.Equal(got, big) {
		t.Errorf("object of %d bytes, %v", len(got), err)
	}
}

// TestOddEntriesOfAFolderCostThemselves: a link to a folder is that folder, and
// a file that is gone when its turn comes is passed over.
func TestOddEntriesOfAFolderCostThemselves(t *testing.T) {
	root := t.TempDir()
	dir := filepath.Join(root, "real")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"a.png", "b.JFIF", "c.png"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(name), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for link, to := range map[string]string{"today": "real", "real/aa.png": "/gone/x.png"} {
		if err := os.Symlink(to, filepath.Join(root, link)); err != nil {
			t.Fatal(err)
		}
	}
	s := &camera.Folder{Dir: filepath.Join(root, "today"), Log: zerolog.Nop()}
	first, err := s.Next(t.Context())
	if err != nil || first.Name != "a.png" {
		t.Fatalf("%s, %v", first.Name, err)
	}
	if err := os.Remove(filepath.Join(dir, "b.JFIF")); err != nil {
		t.Fatal(err)
	}
	if img, err := s.Next(t.Context()); err != nil || img.Name != "c.png" {
		t.Errorf("%s, %v", img.Name, err)
	}
	if _, err := s.Next(t.Context()); !errors.Is(err, io.EOF) {
		t.Error(err)
	}
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	s = &camera.Folder{Dir: root, Loop: true, Log: zerolog.Nop()}
	if _, err := s.Next(t.Context()); err == nil {
		t.Error("an empty folder gave an image")
	}
}

// TestACameraBeforeItsBroker waits for it with the first frame.
func TestACameraBeforeItsBroker(t *testing.T) {
	js := setUp(t, stream.Topology{})
	way := brokertest.NewRelay(t, "127.0.0.1:1") // nobody is there
	nc, err := stream.Connect("nats://"+way.Addr(), "camera", zerolog.Nop())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	early := brokertest.StreamsOn(t, nc)
	p := publisher(t, early, camera.Config{})
	ended := make(chan error, 1)
	made := make(chan int, 2)
	go func() {
		ended <- p.Run(t.Context(), &camera.Generated{Count: 2, Make: func(n int) ([]byte, string, error) {
			made <- n
			return []byte("image"), "", nil
		}})
	}()
	<-made
	way.Lead(strings.TrimPrefix(js.Conn().ConnectedUrl(), "nats://"))
	if err := <-ended; err != nil {
		t.Fatal(err)
	}
	// One that is sent while the connection comes about is sent again with the next epoch.
	all := frames(t, js, p)
	for _, f := range all {
		if len(f.Image) == 0 {
			t.Errorf("frame %s has no image", f.ID)
		}
	}
	if len(all) != 2 {
		t.Errorf("%d frames wait, 2 were published", len(all))
	}
}
