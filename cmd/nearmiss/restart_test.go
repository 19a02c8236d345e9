package main

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/nearmiss/nearmiss/internal/brokertest"
	"github.com/nearmiss/nearmiss/internal/eventually"
	"github.com/nearmiss/nearmiss/internal/synthetic"
	"github.com/nearmiss/nearmiss/stream"
	"github.com/nearmiss/nearmiss/stream/registry"
)

// TestTheBrokerReturnsWhileAllAreAtWork kills the broker while a camera
// publishes, a worker scores and a trainer has a fitymi job, and later ends it as
// an operator would. Each time another release is made active the moment it is
// back, before the others are connected again.
func TestTheBrokerReturnsWhileAllAreAtWork(t *testing.T) {
	t.Parallel()
	data := t.TempDir()
	server, at := runBroker(t, "--data", data)
	way := lastingFor(t, at)
	at = way.url()
	f := newFakery(t, at)

	// Two releases that know cells; what the camera shows is none, so that each
	// frame has its event.
	reg := openRegistry(t, f.js)
	var releases []string
	for seed := range uint64(2) {
		dir, _ := smallRelease(t, f.normals, seed+1, nil)
		releases = append(releases, put(t, reg, dir))
	}
	if _, err := reg.Promote(t.Context(), "cells", releases[0], registry.Change{}); err != nil {
		t.Fatal(err)
	}
	program(t, 0, "detector", "create", "cells", "--no-evidence", f.at)
	f.detector("learner", "long")
	shown := filepath.Join(t.TempDir(), "shown")
	drawParts(t, shown, 20)
	worker := start(t, "worker", "--server", at, "--data", t.TempDir(), "--threads", "1")
	trainer := f.trainer(t.TempDir())
	worker.logged("release is in service")
	camera := start(t, "camera", shown, "--loop", "--detector", "cells", "--camera", "one", "--fps", "20", "--server", at, "--json")
	told := f.follow(f.nc, "learner", "job")
	f.request("learner", "job")
	come := func(phase string) {
		t.Helper()
		for {
			select {
			case p := <-told:
				if strings.HasPrefix(p.Phase, phase) {
					return
				}
				if p.State != stream.JobRunning {
					t.Fatalf("the job has ended before %s: %+v", phase, p)
				}
			case <-time.After(patience):
				t.Fatalf("the job does not come to %s", phase)
			}
		}
	}

	lost := 0
	restart := func(how syscall.Signal, active string) {
		t.Helper()
		way.away()
		if err := server.cmd.Process.Signal(how); err != nil {
			t.Fatal(err)
		}
		<-server.exited
		lost++
		for _, p := range []*process{worker, trainer, camera} {
			eventually.True(t, "the connection is lost", func() bool { return strings.Count(p.stderr(), "connection to the broker lost") >= lost })
		}
		var now string
		server, now = runBroker(t, "--data", data)
		nc := brokertest.Client(t, now) // before the others
		told = f.follow(nc, "learner", "job")
		scores, err := nc.SubscribeSync(stream.Names{}.Scores("cells", "*"))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := openRegistry(t, brokertest.StreamsOn(t, nc)).Promote(t.Context(), "cells", active, registry.Change{}); err != nil {
			t.Fatal(err)
		}
		back := time.Now()
		way.lead(now)
		var first, swapped, trains time.Duration
		for swapped == 0 {
			m, err := scores.NextMsg(patience)
			if err != nil {
				t.Fatal(err)
			}
			e, err := stream.ParseScore(m.Data, m.Header)
			if err != nil {
				t.Fatal(err)
			}
			if first == 0 {
				first = time.Since(back)
			}
			if e.Release == active {
				swapped = time.Since(back)
			}
		}
		come("")
		trains = time.Since(back)
		t.Logf("%v: after the broker's return the first score came in %v, the first by the release that was made active then in %v, progress of the job by %v",
			how, first.Round(time.Millisecond), swapped.Round(time.Millisecond), trains.Round(time.Millisecond))
	}
	come("fakes-1: train")
	restart(syscall.SIGKILL, releases[1])
	come("finetune")
	restart(syscall.SIGINT, releases[0])

	j := f.end("job")
	if err := camera.cmd.Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	var count struct{ Published int }
	if err := json.Unmarshal([]byte(camera.line("the camera's counters", func(l string) bool { return strings.HasPrefix(l, "{") })), &count); err != nil {
		t.Fatal(err)
	}
	<-camera.exited
	l := &listener{js: f.js}
	eventually.True(t, "the queue is empty", func() bool { return l.waiting(t) == 0 })
	worker.stop()
	trainer.stop()

	// The broker kept each frame's event, once.
	s, err := f.js.Stream(t.Context(), stream.Names{}.EventsStream())
	if err != nil {
		t.Fatal(err)
	}
	info, err := s.Info(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	events := map[string]int{}
	for seq := info.State.FirstSeq; seq <= info.State.LastSeq; seq++ {
		m, err := s.GetMsg(t.Context(), seq)
		if err != nil {
			t.Fatal(err)
		}
		e, err := stream.ParseEvent(stream.Names{}, m.Subject, m.Header, m.Data)
		if err != nil {
			t.Fatal(err)
		}
		if e.Kind == stream.KindAnomaly {
			events[e.FrameID]++
		}
	}
	for id, n := range events {
		if n != 1 {
			t.Errorf("frame %s has %d events", id, n)
		}
	}
	// The interrupt may have come between a frame and the broker's answer.
	if n := len(events) - count.Published; n != 0 && n != 1 {
		t.Errorf("%d frames of %d have events", len(events), count.Published)
	}
	t.Logf("%d frames were published, %d have one event; the job ended after %d checkpoints", count.Published, len(events), j.CheckpointN)
	_ = server.cmd.Process.Signal(os.Interrupt)
	<-server.exited
}

// drawParts writes n images of machined parts.
func drawParts(t *testing.T, dir string, n int) {
	t.Helper()
	s, err := synthetic.New(synthetic.Parts, 3, synthetic.Options{Size: 96})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	for i := range n {
		img, _ := s.Next()
		b, err := img.PNG()
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, fmt.Sprintf("%03d.png", i)), b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
}
