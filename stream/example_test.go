package stream_test

import (
	"context"
	"fmt"
	"os"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/rs/zerolog"

	"github.com/nearmiss/nearmiss/stream"
)

// Any NATS client is a camera: the payload is the image file's bytes. (From
// MQTT it is the topic nearmiss/frames/bolts/phone.)
func Example_camera() {
	image, err := os.ReadFile("bolt.jpg")
	if err != nil {
		fmt.Println(err)
		return
	}
	nc, err := nats.Connect(nats.DefaultURL)
	if err != nil {
		fmt.Println(err)
		return
	}
	defer nc.Close()
	js, err := jetstream.New(nc)
	if err != nil {
		fmt.Println(err)
		return
	}
	// Without an answer publish again with the same id: it is stored once.
	if _, err := js.Publish(context.Background(), "nearmiss.frames.bolts.phone", image, jetstream.WithMsgID("phone-0001")); err != nil {
		fmt.Println(err)
	}
}

// A subscriber that the broker remembers: every event is handled once it has
// been handled without an error.
func ExampleWatch() {
	log := zerolog.New(os.Stderr)
	nc, err := stream.Connect(nats.DefaultURL, "desk", log)
	if err != nil {
		fmt.Println(err)
		return
	}
	defer nc.Close()
	err = stream.Watch(context.Background(), nc, stream.WatchConfig{Detector: "bolts", Kind: stream.KindAnomaly, Durable: "desk"}, log,
		func(_ context.Context, e stream.Event) error {
			fmt.Printf("camera %s, frame %s: score %.3f over %.3f\n", e.Camera, e.FrameID, *e.Score, *e.Threshold)
			return nil
		})
	if err != nil {
		fmt.Println(err)
	}
}
