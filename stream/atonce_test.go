package stream_test

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/nearmiss/nearmiss/internal/brokertest"
	"github.com/nearmiss/nearmiss/stream"
)

// atOnce are that many clients of one server of somebody's own: what several programs
// do at the same moment.
func atOnce(t *testing.T, n int) []jetstream.JetStream {
	t.Helper()
	var far *nats.Conn
	t.Cleanup(func() { far.Close() }) // after the server's end
	url := brokertest.Server(t, &server.Options{JetStream: true, StoreDir: t.TempDir()})
	far, err := nats.Connect(url, nats.NoReconnect(), nats.Timeout(time.Minute))
	if err == nil {
		_, err = far.Subscribe("$JS.*.API.>", func(m *nats.Msg) { // an edge that is not set up yet
			_ = m.Respond([]byte(`{"error": {"code": 404, "err_code": 10059, "description": "stream not found"}}`))
		})
	}
	if err != nil {
		t.Fatal(err)
	}
	all := make([]jetstream.JetStream, n)
	for i := range all {
		all[i] = brokertest.Streams(t, url)
	}
	return all
}

// allDo has every client do something at the same moment.
func allDo(t *testing.T, all []jetstream.JetStream, do func(i int, js jetstream.JetStream) error) {
	t.Helper()
	var ready, ended sync.WaitGroup
	ready.Add(len(all))
	for i, js := range all {
		ended.Go(func() {
			ready.Done()
			ready.Wait()
			if err := do(i, js); err != nil {
				t.Errorf("program %d: %v", i, err)
			}
		})
	}
	ended.Wait()
}

// TestSetupsAtOnce: several programs set up what is not there, and then what an earlier
// version has set up. Each picture is stored once afterwards: the server makes a
// subscription twice, of two changes at once.
func TestSetupsAtOnce(t *testing.T) {
	t.Parallel()
	ctx, all := t.Context(), atOnce(t, 4)
	for round := range 3 {
		names := stream.Names{Prefix: fmt.Sprint("round", round)}
		topology, _ := stream.Topology{Names: names}.Fit(64 << 20)
		setup := func(_ int, js jetstream.JetStream) error { return stream.Ensure(ctx, js, topology) }
		allDo(t, all, setup)
		normals, err := all[0].Stream(ctx, names.NormalsStream())
		if err != nil {
			t.Fatal(err)
		}
		earlier := normals.CachedInfo().Config
		earlier.Subjects = []string{names.Normals("*"), names.Anomalies("bolts"), names.Anomalies("nuts")}
		if _, err := all[0].UpdateStream(ctx, earlier); err != nil {
			t.Fatal(err)
		}
		allDo(t, all, setup)
		for _, subject := range []string{names.Normals("bolts"), names.Anomalies("bolts")} {
			if _, err := all[0].Publish(ctx, subject, []byte("a picture")); err != nil {
				t.Fatal(err)
			}
		}
		info, err := normals.Info(ctx)
		if err != nil {
			t.Fatal(err)
		}
		if info.State.Msgs != 2 {
			t.Fatalf("round %d: the stream has %d messages of 2 pictures", round, info.State.Msgs)
		}
	}
}

// TestSetupWaitsForItsTurn: it changes nothing while another program changes streams.
func TestSetupWaitsForItsTurn(t *testing.T) {
	t.Parallel()
	ctx, js := t.Context(), atOnce(t, 1)[0]
	names := stream.Names{Prefix: "waits"}
	topology, _ := stream.Topology{Names: names}.Fit(64 << 20)
	if err := stream.Ensure(ctx, js, topology); err != nil {
		t.Fatal(err)
	}
	normals := func() jetstream.StreamConfig {
		t.Helper()
		s, err := js.Stream(ctx, names.NormalsStream())
		if err != nil {
			t.Fatal(err)
		}
		return s.CachedInfo().Config
	}
	earlier := normals()
	usual := earlier.Subjects
	earlier.Subjects = usual[:1]
	if _, err := js.UpdateStream(ctx, earlier); err != nil {
		t.Fatal(err)
	}
	work, err := js.KeyValue(ctx, names.WorkBucket())
	if err == nil {
		_, err = work.PutString(ctx, stream.StreamsLease, "another's")
	}
	if err != nil {
		t.Fatal(err)
	}
	moment, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	if err := stream.Ensure(moment, js, topology); err == nil {
		t.Error("it does not wait for the turn of another")
	}
	if got := normals().Subjects; !slices.Equal(got, earlier.Subjects) {
		t.Errorf("in the turn of another the stream was changed to %v", got)
	}
	if err := work.Purge(ctx, stream.StreamsLease); err != nil {
		t.Fatal(err)
	}
	if err := stream.Ensure(ctx, js, topology); err != nil || !slices.Equal(normals().Subjects, usual) {
		t.Errorf("in its own turn: %v, %v", normals().Subjects, err)
	}
}

// TestEdgesAddedAtOnce, while the hub's own streams are set up: each is taken from.
func TestEdgesAddedAtOnce(t *testing.T) {
	t.Parallel()
	ctx, all := t.Context(), atOnce(t, 6)
	for round := range 3 {
		names := stream.Names{Prefix: fmt.Sprint("round", round)}
		topology, _ := stream.Topology{Names: names}.Fit(64 << 20)
		if err := stream.Ensure(ctx, all[0], topology); err != nil {
			t.Fatal(err)
		}
		edge := func(i int) string { return fmt.Sprint("edge", i) }
		add := func(i int, js jetstream.JetStream) error {
			if i == 0 {
				return stream.Ensure(ctx, js, topology)
			}
			return stream.NewInstallation(js, names).AddEdge(ctx, edge(i), stream.EdgeParts{Pictures: true})
		}
		edges := func() (s []string) {
			found, err := stream.NewInstallation(all[0], names).Edges(ctx)
			if err != nil {
				t.Fatal(err)
			}
			for _, e := range found {
				s = append(s, fmt.Sprint(e.Name, " ", len(e.Streams)))
			}
			return s
		}
		allDo(t, all, add)
		if want := []string{"edge1 3", "edge2 3", "edge3 3", "edge4 3", "edge5 3"}; !slices.Equal(edges(), want) {
			t.Fatalf("round %d: %v are taken from, want %v", round, strings.Join(edges(), ", "), want)
		}
		allDo(t, all, func(i int, js jetstream.JetStream) error {
			if i < 3 {
				return stream.Ensure(ctx, js, topology)
			}
			return stream.NewInstallation(js, names).RemoveEdge(ctx, edge(i))
		})
		if want := []string{"edge1 3", "edge2 3"}; !slices.Equal(edges(), want) {
			t.Fatalf("round %d: %v are taken from, want %v", round, strings.Join(edges(), ", "), want)
		}
	}
}
