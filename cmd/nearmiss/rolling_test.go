package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/nearmiss/nearmiss/internal/eventually"
	"github.com/nearmiss/nearmiss/internal/synthetic"
	"github.com/nearmiss/nearmiss/stream"
)

// TestARollingUpgrade goes from the program that NEARMISS_TEST_OLD names to this one,
// one part after the other, while a camera publishes: first a worker of the new
// version beside an older broker and worker, then the broker, then trainer and the
// other worker; back again to an older worker and trainer, too. Each frame that was
// acknowledged is scored, each event is there once, and no good frame becomes a dead
// letter (make upgrade-test).
func TestARollingUpgrade(t *testing.T) {
	old := os.Getenv("NEARMISS_TEST_OLD")
	if old == "" {
		t.Skip("needs an older program: make upgrade-test")
	}
	needRuntime(t)
	frames := 1000
	if n, err := strconv.Atoi(os.Getenv("NEARMISS_TEST_FRAMES")); err == nil {
		frames = n
	}
	dir := unpack(t, "e7c20b3.tar.zst")
	data, config := filepath.Join(dir, "data"), filepath.Join(dir, "nearmiss.yaml")
	older := func(args ...string) *process {
		t.Helper()
		cmd := exec.Command(old, args...)
		cmd.Env = append(os.Environ(), "NEARMISS_LOG_FORMAT=json")
		return launch(t, cmd)
	}
	server := older("broker", "--port=-1", "--json", "--data", data, "--config", config)
	way := lastingFor(t, server.natsAddress())
	at := way.url()
	l := listen(t, at)
	count := func() (scored, twice int, dead uint64) {
		seen := map[string]bool{}
		for _, e := range l.scoresOf("cells") {
			seen[e.Camera+"/"+e.FrameID] = true
		}
		_, events := l.seen()
		ids := map[string]int{}
		for _, e := range events {
			if ids[e.ID]++; ids[e.ID] > 1 {
				twice++
			}
		}
		if s, err := l.js.Stream(t.Context(), stream.Names{}.DeadStream()); err == nil {
			dead = s.CachedInfo().State.Msgs
		}
		return len(seen), twice, dead
	}
	_, _, before := count()
	worker := func(run func(...string) *process) *process {
		return run("worker", "--data", t.TempDir(), "--server", at, "--threads", "1")
	}
	newer := func(args ...string) *process { t.Helper(); return start(t, args...) }
	oldWorker := worker(older)
	eventually.True(t, "the frames that waited are scored", func() bool { n, _, _ := count(); return n == 5 })

	published := make(chan error, 1)
	acked, tenths := make(chan int, frames), make(chan struct{}, 10)
	go func() { published <- publishCells(t.Context(), l.js, frames, tenths, acked) }()
	allowed := 0
	publish := func(part int) { // tenths of the frames, and no more yet
		for ; allowed < part; allowed++ {
			tenths <- struct{}{}
		}
	}
	reached := func(part int) {
		t.Helper()
		publish(part)
		eventually.True(t, fmt.Sprintf("%d frames are scored", frames*part/10), func() bool { n, _, _ := count(); return n >= frames*part/10 })
		n, twice, dead := count()
		t.Logf("%d of %d acknowledged frames are scored, %d events twice, %d dead letters", n-5, len(acked), twice, dead-before)
	}
	reached(1)
	newWorker := worker(newer) // waits for what an older broker does not have
	oldTrainer := older("trainer", "--data", t.TempDir(), "--server", at, "--threads", "1")
	reached(2)

	publish(4)
	way.away()
	server.stop()
	server, now := runBroker(t, "--data", data, "--config", config)
	way.lead(now)
	newWorker.logged("release is in service")
	reached(4)
	t.Log("the broker is new; both workers and the older trainer are there")
	publish(6)
	program(t, 0, "train", "cells", "--wait", "--no-promote", "--server", at)
	oldTrainer.stop()
	newTrainer := newer("trainer", "--data", t.TempDir(), "--server", at, "--threads", "1")
	program(t, 0, "train", "cells", "--wait", "--force", "--server", at)
	trained := activeRelease(t, "cells", "--server="+at)
	eventually.True(t, "the new trainer's release serves", func() bool { return serves(t, "cells", "--server="+at, trained) })
	reached(6)
	publish(7)
	oldWorker.stop()
	t.Log("all is new")
	reached(7)
	publish(8)
	newWorker.stop()
	// It did not go well, and somebody goes back: an older program may not know a
	// newer one's releases, so that one of its own must serve first.
	program(t, 0, "releases", "cells", "rollback", "--server", at)
	again := worker(older)
	again.logged("worker is up")
	reached(8)
	newWorker = worker(newer)
	newWorker.logged("release is in service")
	publish(10)
	if err := <-published; err != nil {
		t.Fatal(err)
	}
	eventually.True(t, "no frame waits", func() bool { return l.waiting(t) == 0 })
	eventually.True(t, "every frame is scored", func() bool { n, _, _ := count(); return n == frames+5 })
	n, twice, dead := count()
	t.Logf("%d frames acknowledged, %d scored, %d events twice, %d dead letters", len(acked), n-5, twice, dead-before)
	if len(acked) != frames || twice != 0 || dead != before {
		t.Errorf("%d of %d acknowledged, %d events twice, %d dead letters", len(acked), frames, twice, dead-before)
	}
	again.stop()
	newTrainer.stop()
	newWorker.stop()
	server.stop()
}

// publishCells publishes drawn cells, each until it is acknowledged, and a tenth of
// them for each word to do so.
func publishCells(ctx context.Context, js jetstream.JetStream, frames int, tenths <-chan struct{}, acked chan<- int) error {
	s, err := synthetic.New(synthetic.Cells, 3, synthetic.Options{Size: 32, DefectRate: 0.2})
	if err != nil {
		return err
	}
	var images [][]byte
	for range 50 {
		img, _ := s.Next()
		b, err := img.PNG()
		if err != nil {
			return err
		}
		images = append(images, b)
	}
	for i := range frames {
		if i%(frames/10) == 0 && i < frames/10*10 {
			select {
			case <-tenths:
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		m := nats.NewMsg(stream.Names{}.Frames("cells", "rolling"))
		m.Header.Set(stream.HeaderFrameID, fmt.Sprint("r", i))
		m.Data = slices.Clone(images[i%len(images)])
		for {
			step, cancel := context.WithTimeout(ctx, 5*time.Second)
			_, err := js.PublishMsg(step, m)
			cancel()
			if err == nil {
				acked <- i
				break
			}
			if ctx.Err() != nil {
				return ctx.Err()
			}
			time.Sleep(100 * time.Millisecond)
		}
		time.Sleep(50 * time.Millisecond)
	}
	return nil
}
