package stream_test

import (
	"testing"

	"github.com/nats-io/nats.go"
	"github.com/rs/zerolog"

	"github.com/nearmiss/nearmiss/stream"
)

func TestBenchCountsEveryFrame(t *testing.T) {
	r := newRig(t, stream.Topology{})
	res, err := stream.Bench(t.Context(), stream.BenchConfig{
		Frames: 200, FrameBytes: 4 << 10, Workers: 2, Dir: t.TempDir(),
		Connect: func(name string) (*nats.Conn, error) { return stream.Connect(r.url, name, zerolog.Nop()) },
	}, zerolog.Nop())
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%+v", res)
	if res.PublishFPS <= 0 || res.ScoreFPS <= 0 || res.BothFPS <= 0 || res.Share[0]+res.Share[1] != 200 {
		t.Errorf("%+v", res)
	}
}
