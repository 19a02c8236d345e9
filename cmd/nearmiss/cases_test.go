package main

import (
	"bytes"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	paho "github.com/eclipse/paho.mqtt.golang"

	"github.com/nearmiss/nearmiss/internal/evaldata"
	"github.com/nearmiss/nearmiss/internal/eventually"
	"github.com/nearmiss/nearmiss/internal/mqtt"
	"github.com/nearmiss/nearmiss/stream"
)

// mqttCamera publishes as an MQTT client with QoS 1 does: each publish waits for its
// PUBACK.
func mqttCamera(t *testing.T, at string) func(topic string, payload []byte) {
	t.Helper()
	c := mqttClient(t, at)
	return func(topic string, payload []byte) {
		t.Helper()
		if err := mqtt.Wait(t.Context(), c.Publish(topic, 1, false, payload)); err != nil {
			t.Fatalf("publish on %s: %v", topic, err)
		}
	}
}

func mqttClient(t *testing.T, at string) paho.Client {
	t.Helper()
	o, err := mqtt.Access{URL: "mqtt://" + at}.Options("")
	if err != nil {
		t.Fatal(err)
	}
	c := paho.NewClient(o.SetClientID("case"))
	if err := mqtt.Wait(t.Context(), c.Connect()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Disconnect(100) })
	return c
}

// startWithMQTT starts a service that prints its addresses, with an MQTT listener.
func startWithMQTT(t *testing.T, args ...string) (natsURL, mqttAddress string) {
	t.Helper()
	p := start(t, append(args, "--data", t.TempDir(), "--port=-1", "--mqtt=-1", "--json")...)
	t.Cleanup(p.stop)
	a := p.addresses()
	if a.MQTT == "" {
		t.Fatalf("%+v", a)
	}
	return a.NATS, a.MQTT
}

// A camera that is named by its address, with dots, costs its own frames and no time
// of its detector's others.
func TestCasesOfCameraNames(t *testing.T) {
	t.Parallel()
	frame, err := os.ReadFile(filepath.Join(evaldata.Cases(t, "camera-name-stalls"), "frame.png"))
	if err != nil {
		t.Fatal(err)
	}
	p := fitPlates(t)
	natsURL, at := startWithMQTT(t, "up", "--backbone", p.model)
	server := "--server=" + natsURL
	l := listen(t, natsURL)
	program(t, 0, "detector", "create", "bolts", server)
	program(t, 0, "releases", "bolts", "publish", p.release, "--promote", server)
	publish := mqttCamera(t, at)
	for _, name := range []string{"10.0.0.7", "aa:bb:cc", "línea1"} {
		for range 6 {
			publish("nearmiss/frames/bolts/"+name, frame)
		}
	}
	for range 3 {
		publish("nearmiss/frames/bolts/line1", frame)
	}
	eventually.True(t, "the good frames are scored", func() bool { return len(l.scoresOf("bolts")) >= 3 })
	var st stream.Status
	eventually.True(t, "all bad ones are rejected or counted", func() bool {
		text, _ := program(t, 0, "status", "--json", server)
		if err := json.Unmarshal([]byte(text), &st); err != nil {
			t.Fatal(err)
		}
		_, events := l.seen()
		rejected, lost := 0, uint64(0)
		for _, e := range events {
			if e.Kind == stream.KindRejected {
				rejected++
			}
		}
		for _, x := range st.Lost {
			lost += x.Frames
		}
		return uint64(rejected)+lost == 18
	})
	if n := len(l.scoresOf("bolts")); n != 3 {
		t.Errorf("%d scores, 3 frames have a good name", n)
	}
}

// What MQTT acknowledges and no stream takes is counted and told: a full queue, and
// topics of another shape.
func TestCasesOfFramesLostOverMQTT(t *testing.T) {
	t.Parallel()
	config := filepath.Join(t.TempDir(), "small.yaml")
	write(t, config, "keep: {frames_bytes: 1048576}\n")
	natsURL, at := startWithMQTT(t, "broker", "--config", config)
	server := "--server=" + natsURL
	program(t, 0, "detector", "create", "bolts", server)
	publish := mqttCamera(t, at)
	for range 12 {
		publish("nearmiss/frames/bolts/line1", bytes.Repeat([]byte("x"), 150_000))
	}
	for _, topic := range []string{"nearmiss/frames/bolts/line1/top", "nearmiss/frames/bolts", "/nearmiss/frames/bolts/line1", "Nearmiss/frames/bolts/line1"} {
		publish(topic, []byte("x"))
	}
	l := listen(t, natsURL)
	var lost map[string]uint64
	eventually.True(t, "all are waiting or lost", func() bool {
		text, _ := program(t, 0, "status", "--json", server)
		var st stream.Status
		if err := json.Unmarshal([]byte(text), &st); err != nil {
			t.Fatal(err)
		}
		lost = map[string]uint64{}
		for _, x := range st.Lost {
			lost[x.Code] += x.Frames
		}
		return lost[stream.LostNotStored]+l.waiting(t) == 12 && lost[stream.LostBadTopic] == 4
	})
	if lost[stream.LostNotStored] == 0 {
		t.Error("twelve frames of 150 kB are in a queue of 1 MiB")
	}
	if text, _ := program(t, 0, "status", server); !strings.Contains(text, "are lost") {
		t.Errorf("status does not say it:\n%s", text)
	}
}

// A mean of zero is a mean, and constants for samples of 0 to 255 are refused.
func TestCasesOfAZeroMean(t *testing.T) {
	model := filepath.Join(evaldata.Cases(t, "mean-zero"), "pix.onnx")
	out := filepath.Join(t.TempDir(), "b.onnx")
	program(t, 0, "backbone", "import", model, "--out", out, "--mean", "0,0,0", "--std", "1,1,1")
	text, _ := program(t, 0, "backbone", "inspect", out, "--json")
	if !strings.Contains(strings.ReplaceAll(text, " ", ""), `"mean":[0,0,0],"std":[1,1,1]`) {
		t.Errorf("%s", text)
	}
	_, errs := program(t, 1, "backbone", "import", model, "--out", out+"2", "--mean", "123.675,116.28,103.53", "--std", "58.395,57.12,57.375")
	if !strings.Contains(errs, "255") {
		t.Errorf("%s", errs)
	}
}

// A video gives the pictures that are in it, whatever their times.
func TestCasesOfVideos(t *testing.T) {
	t.Parallel()
	dir := evaldata.Cases(t, "video-frames")
	if _, err := exec.LookPath("ffmpeg"); err != nil {
		t.Skip("no ffmpeg on this machine: videos are read through it")
	}
	server := "--server=" + startBroker(t)
	program(t, 0, "detector", "create", "bolts", server)
	for _, name := range []string{"cfr", "vfr"} {
		out, errs := program(t, 0, "camera", filepath.Join(dir, name+".mkv"), "--detector", "bolts", "--camera", name, server)
		if !strings.Contains(out+errs, "10 frames published") {
			t.Errorf("%s: %s%s", name, out, errs)
		}
	}
}
