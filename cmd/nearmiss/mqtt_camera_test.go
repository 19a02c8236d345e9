package main

import (
	"bytes"
	"fmt"
	"path/filepath"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/nearmiss/nearmiss/internal/eventually"
	"github.com/nearmiss/nearmiss/stream"
)

// A camera of an MQTT broker loses nothing to a queue that is full: what does not fit
// stays with that broker, and comes when there is room.
func TestACameraOfAnMQTTBrokerWaitsForRoom(t *testing.T) {
	t.Parallel()
	config := filepath.Join(t.TempDir(), "small.yaml")
	write(t, config, "keep: {frames_bytes: 1048576}\n")
	natsURL, at := startWithMQTT(t, "broker", "--config", config)
	start(t, "camera", "mqtt://"+at+"/hall/line1", "--detector", "bolts", "--camera", "line1", "--server", natsURL)
	publish := mqttCamera(t, at)
	l := listen(t, natsURL)
	eventually.True(t, "the camera has subscribed", func() bool {
		publish("hall/line1", []byte("probe"))
		return l.waiting(t) > 0
	})
	const images, size = 20, 120_000
	image := func(n int) []byte { return append(bytes.Repeat([]byte("x"), size), fmt.Sprint(n)...) }
	for n := range images {
		publish("hall/line1", image(n)) // acknowledged by the MQTT broker
	}
	eventually.True(t, "the queue is full", func() bool {
		_, err := l.js.Publish(t.Context(), stream.Names{}.Frames("bolts", "other"), bytes.Repeat([]byte("y"), size))
		return stream.IsQueueFull(err)
	})
	frames, err := l.js.CreateConsumer(t.Context(), "NM_FRAMES", jetstream.ConsumerConfig{
		Durable: "reader", FilterSubject: stream.Names{}.Frames("bolts", "*"), AckPolicy: jetstream.AckExplicitPolicy,
	})
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]bool{}
	eventually.True(t, "every image is there", func() bool {
		batch, err := frames.Fetch(4, jetstream.FetchMaxWait(time.Second))
		if err != nil {
			return false
		}
		for m := range batch.Messages() {
			if len(m.Data()) > size {
				got[string(m.Data()[size:])] = true
			}
			if err := m.Ack(); err != nil {
				t.Error(err)
			}
		}
		return len(got) == images
	})
}
