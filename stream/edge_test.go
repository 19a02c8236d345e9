package stream_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/rs/zerolog"

	"github.com/nearmiss/nearmiss/internal/brokertest"
	"github.com/nearmiss/nearmiss/internal/eventually"
	"github.com/nearmiss/nearmiss/stream"
	"github.com/nearmiss/nearmiss/stream/internal/streamtest"
	"github.com/nearmiss/nearmiss/stream/registry"
	"github.com/nearmiss/nearmiss/stream/worker"
)

// sharedSubjects are those that both sides of a leaf node link store for themselves.
var sharedSubjects = []string{"nearmiss.>", "$KV.>", "$O.>"}

// natsServer runs a server with JetStream, and returns a client of it.
func natsServer(t *testing.T, o *server.Options) jetstream.JetStream {
	t.Helper()
	o.JetStream, o.StoreDir, o.JetStreamMaxStore = true, t.TempDir(), 8<<30
	return brokertest.Streams(t, brokertest.Server(t, o))
}

// storeEvents stores n events of an edge, each as large as most.
func storeEvents(ctx context.Context, js jetstream.JetStream, names stream.Names, detector string, from, n int) error {
	js, err := jetstream.New(js.Conn(), jetstream.WithPublishAsyncMaxPending(n))
	if err != nil {
		return err
	}
	for i := from; i < from+n; i++ {
		score, yes := 9.0, true
		m, err := stream.Event{
			ID: fmt.Sprintf("%s-%d", detector, i), Kind: stream.KindAnomaly, Detector: detector, Camera: "one", FrameID: fmt.Sprint(i),
			Digest: fmt.Sprintf("%064x", i), Score: &score, Anomalous: &yes, ScoredAt: time.Now().UTC(), Release: fmt.Sprintf("%064d", 1), Nearest: []stream.Near{},
		}.Message(names)
		if err != nil {
			return err
		}
		if _, err := js.PublishMsgAsync(m); err != nil {
			return err
		}
	}
	select {
	case <-js.PublishAsyncComplete():
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func stored(ctx context.Context, t *testing.T, js jetstream.JetStream, name string) uint64 {
	s, err := js.Stream(ctx, name)
	if err != nil {
		t.Log(err)
		return 0
	}
	return s.CachedInfo().State.Msgs
}

// TestAHubTakesTheEventsOfAnEdge: what an edge has before and after it is added is at
// the hub; the hub's own streams are set up anew meanwhile, as at each of its starts.
func TestAHubTakesTheEventsOfAnEdge(t *testing.T) {
	ctx, n := t.Context(), stream.Names{}
	o := &server.Options{ServerName: "hub", JetStreamDomain: "hub", LeafNode: server.LeafNodeOpts{Host: "127.0.0.1", Port: server.RANDOM_PORT}}
	hub := natsServer(t, o)
	at, err := url.Parse(fmt.Sprintf("nats-leaf://127.0.0.1:%d", o.LeafNode.Port)) // it has found one
	if err != nil {
		t.Fatal(err)
	}
	edge := natsServer(t, &server.Options{
		ServerName: "edge1", JetStreamDomain: "edge1",
		LeafNode: server.LeafNodeOpts{ReconnectInterval: time.Second, Remotes: []*server.RemoteLeafOpts{{URLs: []*url.URL{at}, DenyExports: sharedSubjects, DenyImports: sharedSubjects}}},
	})
	for _, js := range []jetstream.JetStream{hub, edge} {
		if err := stream.Ensure(ctx, js, stream.Topology{}); err != nil {
			t.Fatal(err)
		}
	}
	if err := storeEvents(ctx, edge, n, "bolts", 0, 20); err != nil {
		t.Fatal(err)
	}
	in := stream.NewInstallation(hub, n)
	if err := in.AddEdge(ctx, "hub", stream.EdgeParts{}); !errors.Is(err, stream.ErrBadName) {
		t.Errorf("the hub as an edge of its own: %v", err)
	}
	for range 2 { // the second time nothing changes
		if err := in.AddEdge(ctx, "edge1", stream.EdgeParts{Pictures: true}); err != nil {
			t.Fatal(err)
		}
	}
	eventually.True(t, "what the edge had is at the hub", func() bool { return stored(ctx, t, hub, n.EventsStream()) == 20 })

	if err := stream.Ensure(ctx, hub, stream.Topology{}); err != nil {
		t.Fatal(err)
	}
	if err := storeEvents(ctx, edge, n, "bolts", 20, 20); err != nil {
		t.Fatal(err)
	}
	if err := storeEvents(ctx, hub, n, "nuts", 0, 5); err != nil { // its own
		t.Fatal(err)
	}
	pictures, err := edge.ObjectStore(ctx, n.EvidenceBucket())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := pictures.PutBytes(ctx, "bolts/1.zip", make([]byte, 300_000)); err != nil {
		t.Fatal(err)
	}
	eventually.True(t, "events of both are at the hub", func() bool { return stored(ctx, t, hub, n.EventsStream()) == 45 })
	eventually.True(t, "the picture is at the hub", func() bool {
		b, err := hub.ObjectStore(ctx, n.EvidenceBucket())
		if err != nil {
			t.Fatal(err)
		}
		info, err := b.GetInfo(ctx, "bolts/1.zip")
		if err != nil {
			return false
		}
		return stored(ctx, t, hub, "OBJ_"+n.EvidenceBucket()) == uint64(info.Chunks)+1
	})
	if got := stored(ctx, t, edge, n.EventsStream()); got != 40 {
		t.Errorf("%d events at the edge, want its 40", got)
	}
	eventually.True(t, "the edge is here and has nothing more", func() bool {
		edges, err := in.Edges(ctx)
		if err != nil {
			t.Fatal(err)
		}
		return len(edges) == 1 && edges[0].Name == "edge1" && edges[0].Here && edges[0].Waiting == 0 && len(edges[0].Streams) == 3
	})
	if err := in.RemoveEdge(ctx, "edge1"); err != nil {
		t.Fatal(err)
	}
	if edges, err := in.Edges(ctx); err != nil || len(edges) != 0 {
		t.Errorf("after it was removed: %v, %v", edges, err)
	}
	if err := in.RemoveEdge(ctx, "edge1"); !errors.Is(err, stream.ErrNotFound) {
		t.Errorf("an edge that is none: %v", err)
	}
	if got := stored(ctx, t, hub, n.EventsStream()); got != 45 {
		t.Errorf("%d events at the hub after the edge was removed, want 45", got)
	}
}

// TestAnEdgeIsCutOff: as many events and pictures as an hour brings are stored at an
// edge while its link is cut, then again while the hub is dead; all of them are at the
// hub in the end, once. NEARMISS_TEST_EDGE says how many events (make leaf-test).
func TestAnEdgeIsCutOff(t *testing.T) {
	events := number("NEARMISS_TEST_EDGE", 0)
	if events == 0 {
		t.Skip("takes minutes: make leaf-test")
	}
	ctx, n, dir := t.Context(), stream.Names{}, t.TempDir()
	var free []net.Listener
	for range 3 {
		free = append(free, listenAnywhere(t))
	}
	addr := func(i int) string { return free[i].Addr().String() }
	cable := newLink(t, addr(1))
	write := func(name, conf string) string {
		path := filepath.Join(dir, name+".conf")
		conf = fmt.Sprintf("server_name: %s\nmax_payload: 8MB\njetstream { domain: %s, store_dir: %q, max_file_store: 16GB, max_buffered_size: 2GB, sync_interval: always }\n%s", name, name, filepath.Join(dir, name), conf)
		if err := os.WriteFile(path, []byte(conf), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	deny := `["nearmiss.>", "$KV.>", "$O.>"]`
	hubConf := write("hub", fmt.Sprintf("listen: %q\nleafnodes { listen: %q }\n", addr(0), addr(1)))
	edgeConf := write("edge1", fmt.Sprintf("listen: %q\nleafnodes { remotes: [ { urls: [%q], deny_exports: %s, deny_imports: %s } ] }\n",
		addr(2), "nats-leaf://"+cable.l.Addr().String(), deny, deny))
	for _, l := range free {
		_ = l.Close()
	}
	hubProcess, edgeProcess := startServer(t, hubConf), startServer(t, edgeConf)
	t.Cleanup(func() { killServer(hubProcess); killServer(edgeProcess) })
	long := func(what string, ok func() bool) time.Duration {
		t.Helper()
		begin := time.Now()
		for ; !ok(); time.Sleep(200 * time.Millisecond) {
			if time.Since(begin) > 5*time.Minute {
				t.Fatalf("not within 5 minutes: %s", what)
			}
		}
		return time.Since(begin).Round(100 * time.Millisecond)
	}
	client := func(at string) jetstream.JetStream {
		nc, err := stream.Connect("nats://"+at, "test", zerolog.Nop())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(nc.Close)
		js := brokertest.StreamsOn(t, nc)
		long("setup of "+at, func() bool {
			step, cancel := context.WithTimeout(ctx, 30*time.Second)
			defer cancel()
			err := stream.Ensure(step, js, stream.Topology{})
			if err != nil {
				t.Log(err)
			}
			return err == nil
		})
		return js
	}
	hub, edge := client(addr(0)), client(addr(2))
	in := stream.NewInstallation(hub, n)
	if err := in.AddEdge(ctx, "edge1", stream.EdgeParts{Pictures: true}); err != nil {
		t.Fatal(err)
	}
	pictures, err := edge.ObjectStore(ctx, n.EvidenceBucket())
	if err != nil {
		t.Fatal(err)
	}
	at := func(what string) (stored uint64, ok bool) {
		step, cancel := context.WithTimeout(ctx, 5*time.Second)
		defer cancel()
		s, err := hub.Stream(step, what)
		if err != nil {
			return 0, false
		}
		return s.CachedInfo().State.Msgs, true
	}
	total := 0
	outage := func(what string, end func()) {
		t.Helper()
		begin := time.Now()
		if err := storeEvents(ctx, edge, n, "bolts", total, events); err != nil {
			t.Fatal(err)
		}
		for i := total; i < total+events; i += 10 {
			if _, err := pictures.PutBytes(ctx, fmt.Sprintf("bolts/%d.zip", i), make([]byte, 30_000)); err != nil {
				t.Fatal(err)
			}
		}
		before := uint64(total)
		total += events
		stored := time.Since(begin).Round(100 * time.Millisecond)
		end()
		first := long("the first event", func() bool { have, ok := at(n.EventsStream()); return ok && have > before })
		all := long("every event", func() bool { have, ok := at(n.EventsStream()); return ok && have >= uint64(total) })
		last := long("every picture", func() bool { have, ok := at("OBJ_" + n.EvidenceBucket()); return ok && have >= uint64(2*total/10) })
		t.Logf("%s: %d events and %d pictures stored at the edge in %v; of them the first was at the hub %v after the end, the last event %v later, the last picture %v later",
			what, events, events/10, stored, first, all, last)
	}
	if err := storeEvents(ctx, edge, n, "bolts", 0, 1); err != nil {
		t.Fatal(err)
	}
	total = 1
	long("the link is up", func() bool { have, ok := at(n.EventsStream()); return ok && have == 1 })

	cable.set(true)
	outage("link cut", func() { cable.set(false) })
	killServer(hubProcess)
	outage("hub killed", func() { hubProcess = startServer(t, hubConf) })

	seen := map[string]int{}
	cons, err := hub.OrderedConsumer(ctx, n.EventsStream(), jetstream.OrderedConsumerConfig{HeadersOnly: true})
	if err != nil {
		t.Fatal(err)
	}
	have, _ := at(n.EventsStream())
	for range have {
		m, err := cons.Next(jetstream.FetchMaxWait(time.Minute))
		if err != nil {
			t.Fatal(err)
		}
		seen[m.Headers().Get("ce-id")]++
	}
	if len(seen) != total || have != uint64(total) {
		t.Errorf("%d events at the hub, %d different, of %d", have, len(seen), total)
	}
	t.Logf("%d events: lost %d, twice %d", total, total-len(seen), int(have)-len(seen))
}

// TestAWorkerBehindALeafNode serves the streams of another JetStream domain than the
// server's that it is connected to.
func TestAWorkerBehindALeafNode(t *testing.T) {
	ctx := t.Context()
	o := &server.Options{ServerName: "hub", JetStreamDomain: "hub", LeafNode: server.LeafNodeOpts{Host: "127.0.0.1", Port: server.RANDOM_PORT}}
	hub := natsServer(t, o)
	at, err := url.Parse(fmt.Sprintf("nats-leaf://127.0.0.1:%d", o.LeafNode.Port))
	if err != nil {
		t.Fatal(err)
	}
	leaf := natsServer(t, &server.Options{
		ServerName: "edge1", JetStreamDomain: "edge1",
		LeafNode: server.LeafNodeOpts{ReconnectInterval: time.Second, Remotes: []*server.RemoteLeafOpts{{URLs: []*url.URL{at}}}},
	})
	if err := stream.Ensure(ctx, hub, stream.Topology{}); err != nil {
		t.Fatal(err)
	}
	there := stream.Names{JetStreamAPI: stream.DomainAPI("hub")}
	js, err := there.JetStreamOn(leaf.Conn())
	if err != nil {
		t.Fatal(err)
	}
	in := stream.NewInstallation(js, there)
	eventually.True(t, "the hub's detectors are seen from the leaf", func() bool {
		step, cancel := context.WithTimeout(ctx, 5*time.Second)
		defer cancel()
		_, err := in.Detectors(step)
		return err == nil
	})
	detectors, err := in.Detectors(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := detectors.Create(ctx, stream.Detector{Name: "bolts"}); err != nil {
		t.Fatal(err)
	}
	reg, err := in.Registry(ctx)
	if err != nil {
		t.Fatal(err)
	}
	digest, err := reg.Put(ctx, "bolts", streamtest.WriteRelease(t, streamtest.Fake{Threshold: .5}))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := reg.Promote(ctx, "bolts", digest, registry.Change{By: "test"}); err != nil {
		t.Fatal(err)
	}
	w, err := worker.New(worker.Config{Names: there, CacheDir: t.TempDir()}, leaf.Conn(), streamtest.LoadFake, streamtest.Log(t))
	if err != nil {
		t.Fatal(err)
	}
	brokertest.Run(t, "worker", w.Run)
	for i := range 10 {
		if _, err := hub.Publish(ctx, there.Frames("bolts", "one"), streamtest.Image(.9+float64(i)/1000)); err != nil {
			t.Fatal(err)
		}
	}
	eventually.True(t, "all frames are scored, and their events at the hub", func() bool {
		s, err := hub.Stream(ctx, there.EventsStream())
		if err != nil {
			t.Fatal(err)
		}
		i, err := s.Info(ctx, jetstream.WithSubjectFilter(there.Events("bolts", "one", stream.KindAnomaly)))
		return err == nil && i.State.Subjects[there.Events("bolts", "one", stream.KindAnomaly)] == 10 && stored(ctx, t, hub, there.FramesStream()) == 0
	})
}
