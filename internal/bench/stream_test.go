package bench

import (
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/rs/zerolog"

	"github.com/nearmiss/nearmiss/internal/brokertest"
	"github.com/nearmiss/nearmiss/stream"
	"github.com/nearmiss/nearmiss/stream/broker"
)

func TestStreamCountsEveryFrame(t *testing.T) {
	b, _ := brokertest.Start(t, broker.Config{Port: -1})
	nc := brokertest.Connect(t, b)
	js := brokertest.StreamsOn(t, nc)
	scores, err := nc.SubscribeSync("nearmiss.scores.>")
	if err != nil {
		t.Fatal(err)
	}
	if err := nc.Flush(); err != nil {
		t.Fatal(err)
	}
	if err := stream.Ensure(t.Context(), js, stream.Topology{}); err != nil {
		t.Fatal(err)
	}
	res, err := Stream(t.Context(), StreamConfig{
		Frames: 200, FrameBytes: 4 << 10, Workers: 2, Cameras: 3, Dir: t.TempDir(),
		Connect: func(name string) (*nats.Conn, error) { return stream.Connect(b.ClientURL(), name, zerolog.Nop()) },
	}, zerolog.Nop())
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%+v", res)
	if res.PublishFPS <= 0 || res.ScoreFPS <= 0 || res.BothFPS <= 0 || res.Share[0]+res.Share[1] != 200 {
		t.Errorf("%+v", res)
	}
	cameras := map[string]bool{}
	for len(cameras) < 3 {
		m, err := scores.NextMsg(time.Minute)
		if err != nil {
			t.Fatalf("scores of the cameras %v alone: %v", cameras, err)
		}
		cameras[m.Subject] = true
	}
}
