package broker_test

import (
	"bytes"
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/rs/zerolog"

	"github.com/nearmiss/nearmiss/internal/brokertest"
	"github.com/nearmiss/nearmiss/internal/eventually"
	"github.com/nearmiss/nearmiss/stream"
	"github.com/nearmiss/nearmiss/stream/access"
	"github.com/nearmiss/nearmiss/stream/broker"
	"github.com/nearmiss/nearmiss/stream/camera"
	"github.com/nearmiss/nearmiss/stream/worker"
)

// TestLargeFramesAndSheddingAcrossAccounts: a camera in CAMERAS with an image above
// the payload limit, and a worker in NM that reads and removes it; a live camera
// has its own frames dropped by that worker. No right is missing, and a camera that
// may not send large frames is told.
func TestLargeFramesAndSheddingAcrossAccounts(t *testing.T) {
	h := newHall(t)
	h.start(broker.Config{MaxPayload: 256 << 10})
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	refused := make(chan error, 100)
	strict := nats.ErrorHandler(func(_ *nats.Conn, _ *nats.Subscription, err error) { refused <- err })

	publish := func(user, name string, cfg camera.Config, images ...[]byte) error {
		js := brokertest.StreamsOn(t, h.connect(user, strict))
		cfg.Detector, cfg.Camera, cfg.Run = "parts", name, "r"
		p, err := camera.NewPublisher(cfg, js, zerolog.Nop())
		if err != nil {
			t.Fatal(err)
		}
		return p.Run(ctx, &camera.Generated{Count: len(images), Make: func(n int) ([]byte, string, error) { return images[n], "", nil }})
	}
	large := bytes.Repeat([]byte("part"), 200<<10)
	if err := publish("big", "big", camera.Config{}, large, []byte("small")); err != nil {
		t.Fatal(err)
	}

	nc := h.connect("worker", strict)
	w, err := worker.New(worker.Config{CacheDir: t.TempDir()}, nc, func(context.Context, string) (worker.Scorer, error) {
		return nil, errors.New("there is no release")
	}, zerolog.Nop())
	if err != nil {
		t.Fatal(err)
	}
	brokertest.Run(t, "worker", w.Run)
	js := brokertest.StreamsOn(t, nc)
	store, err := js.ObjectStore(ctx, "NM_LARGE")
	if err != nil {
		t.Fatal(err)
	}
	const object = "frames/parts/big/r-1"
	if got, err := store.GetBytes(ctx, object); err != nil || !bytes.Equal(got, large) {
		t.Fatalf("%d bytes, %v", len(got), err)
	}
	if err := store.Delete(ctx, object); err != nil {
		t.Fatal(err)
	}

	// A live camera asks for room among its own frames.
	live := stream.NewClient(h.connect("big", strict), stream.Names{})
	eventually.True(t, "it is so", func() bool {
		n, err := live.Shed(ctx, "parts", "big", 1) // where there is a worker, for as long as it takes: it does so once
		return err == nil && n == 1
	})
	if n := h.info("NM_FRAMES"); n != 1 {
		t.Errorf("%d frames are left, want 1", n)
	}
	select {
	case err := <-refused:
		t.Errorf("a right is missing: %v", err)
	default:
	}

	// Others' frames it cannot have dropped, and is told so at once, nor can who has no right
	// send large ones.
	if _, err := live.Shed(ctx, "parts", "line1", 1); !errors.Is(err, stream.ErrForbidden) {
		t.Errorf("a camera has another's frames dropped: %v", err)
	}
	if err := publish("line1", "line1", camera.Config{}, large); !errors.Is(err, nats.ErrPermissionViolation) || !strings.Contains(err.Error(), "--large") {
		t.Errorf("a large frame without the right: %v", err)
	}
}

// TestWorkersAndCamerasCannotTouchReleases: who scores and who takes pictures can
// neither write nor remove what serves.
func TestWorkersAndCamerasCannotTouchReleases(t *testing.T) {
	h := newHall(t)
	h.embedded()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	trainer := brokertest.StreamsOn(t, h.connect("trainer"))
	releases, err := trainer.ObjectStore(ctx, "NM_ARTIFACTS")
	if err == nil {
		_, err = releases.PutString(ctx, "release", "what serves")
	}
	if err != nil {
		t.Fatal(err)
	}
	info, err := releases.GetInfo(ctx, "release")
	if err != nil {
		t.Fatal(err)
	}
	for _, user := range []string{"worker", "big", "line1", "sinks", "lamp"} {
		for _, subject := range []string{
			"$O.NM_ARTIFACTS.M.cmVsZWFzZQ==", "$O.NM_ARTIFACTS.C." + info.NUID,
			"$JS.API.STREAM.PURGE.OBJ_NM_ARTIFACTS", "$JS.API.STREAM.MSG.DELETE.OBJ_NM_ARTIFACTS", "$JS.API.STREAM.DELETE.OBJ_NM_ARTIFACTS",
		} {
			if h.may(user, func(nc *nats.Conn) error { return nc.Publish(subject, []byte(`{"seq":1}`)) }) {
				t.Errorf("%s may publish on %s", user, subject)
			}
		}
	}
	if got, err := releases.GetString(ctx, "release"); err != nil || got != "what serves" {
		t.Errorf("the release is %q, %v", got, err)
	}
	worker := brokertest.StreamsOn(t, h.connect("worker"))
	if store, err := worker.ObjectStore(ctx, "NM_ARTIFACTS"); err != nil {
		t.Error(err)
	} else if got, err := store.GetString(ctx, "release"); err != nil || got != "what serves" {
		t.Errorf("a worker reads %q, %v", got, err)
	}
	if n, err := access.Render(stream.Names{}, access.File{}, "", time.Now()); err != nil || strings.Contains(string(n), "$O.NM_ARTIFACTS") {
		t.Errorf("releases are exported to other accounts: %v", err)
	}
}
