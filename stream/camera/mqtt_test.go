package camera_test

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	paho "github.com/eclipse/paho.mqtt.golang"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/rs/zerolog"

	"github.com/nearmiss/nearmiss/internal/mqtttest"
	"github.com/nearmiss/nearmiss/stream"
	"github.com/nearmiss/nearmiss/stream/camera"
)

// A broker keeps an image until it is stored: what was handed out and not
// acknowledged comes again after a restart, and what was stored does not.
func TestImagesFromMQTTAreAcknowledgedWhenTheyAreStored(t *testing.T) {
	try := func(t *testing.T, at string, restart bool) {
		open := func() *camera.MQTT {
			s, err := camera.NewMQTT("mqtt://"+at+"/hall/#", "camera-1", zerolog.Nop())
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { s.Close() })
			return s
		}
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
		defer cancel()
		first := open()
		device := paho.NewClient(paho.NewClientOptions().AddBroker("tcp://" + at).SetClientID("device").SetConnectRetry(true).SetConnectRetryInterval(20 * time.Millisecond))
		defer device.Disconnect(250)
		must := func(tk paho.Token) {
			t.Helper()
			if !tk.WaitTimeout(time.Minute) || tk.Error() != nil {
				t.Fatal(tk.Error())
			}
		}
		must(device.Connect())
		next := func(s *camera.MQTT) camera.Image {
			t.Helper()
			for {
				img, err := s.Next(ctx)
				if err != nil {
					t.Fatal(err)
				}
				if string(img.Data) != "probe" {
					return img
				}
				img.Done()
			}
		}
		// A session begins with the first subscription: until then nothing arrives.
		began := make(chan struct{})
		go func() {
			defer close(began)
			if img, err := first.Next(ctx); err == nil {
				img.Done()
			}
		}()
		for waiting := true; waiting; {
			select {
			case <-began:
				waiting = false
			default:
				must(device.Publish("hall/probe", 1, false, "probe"))
			}
		}
		for n := range 5 {
			must(device.Publish("hall/line1", 1, false, fmt.Sprint("image ", n)))
		}
		for n := range 5 {
			img := next(first)
			if string(img.Data) != fmt.Sprint("image ", n) || img.Name != "hall/line1" {
				t.Fatalf("image %d is %q from %s", n, img.Data, img.Name)
			}
			if n < 3 || !restart {
				img.Done()
			}
		}
		first.Close()
		if !restart {
			return
		}
		second := open()
		got := []string{string(next(second).Data), string(next(second).Data)}
		slices.Sort(got)
		if !slices.Equal(got, []string{"image 3", "image 4"}) {
			t.Errorf("after the restart: %q", got)
		}
	}
	mqtttest.Brokers(t, func(t *testing.T, start func(testing.TB) string) {
		// The embedded broker sends again after half a minute only.
		try(t, start(t), !strings.HasSuffix(t.Name(), "/embedded"))
	})
}

// once is a source of one image.
type once struct {
	img  camera.Image
	sent bool
}

func (o *once) Next(ctx context.Context) (camera.Image, error) {
	if o.sent {
		<-ctx.Done()
		return camera.Image{}, ctx.Err()
	}
	o.sent = true
	return o.img, nil
}

// While the queue is full a source is not told that its image is stored.
func TestASourceIsToldWhenItsImageIsStored(t *testing.T) {
	js := setUp(t, stream.Topology{FramesMaxBytes: 64 << 10})
	var n stream.Names
	fill := strings.Repeat("x", 20<<10)
	for {
		if _, err := js.Publish(t.Context(), n.Frames("bolts", "other"), []byte(fill)); stream.IsQueueFull(err) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
	}
	p, err := camera.NewPublisher(camera.Config{Detector: "bolts", Camera: "line1"}, js, zerolog.Nop())
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() {
		ended <- p.Run(ctx, &once{img: camera.Image{Data: []byte(fill), Done: func() { close(done) }}})
	}()
	defer func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}()
	s, err := js.Stream(t.Context(), n.FramesStream())
	if err != nil {
		t.Fatal(err)
	}
	for has := false; !has; {
		select {
		case <-done:
			_, err := s.GetLastMsgForSubject(t.Context(), n.Frames("bolts", "line1"))
			if has = err == nil; !has {
				t.Fatalf("it is called stored: %v", err)
			}
		default:
			if err := s.Purge(t.Context(), jetstream.WithPurgeSubject(n.Frames("bolts", "other"))); err != nil {
				t.Fatal(err)
			}
		}
	}
}

func TestAddressesOfMQTTSources(t *testing.T) {
	for _, a := range []string{"mqtt://h", "mqtt://h/", "mqtt:///topic", "mqtt://u:hunter2@", "mqtt://%zz/t"} {
		if _, err := camera.NewMQTT(a, "s", zerolog.Nop()); err == nil || strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%s: %v", a, err)
		}
	}
	s, err := camera.NewMQTT("mqtts://u:p%40x@h:1/a/+/#", "s", zerolog.Nop())
	if err != nil {
		t.Fatal(err)
	}
	if s.Topic != "a/+/#" || s.User != "u" || s.Password != "p@x" || s.URL != "mqtts://h:1" {
		t.Errorf("%q %q %q %q", s.Topic, s.User, s.Password, s.URL)
	}
	if !camera.IsMQTT("mqtt://h/t") || camera.IsMQTT("mqtt.jpg") || camera.IsMQTT("http://h/t") {
		t.Error("IsMQTT")
	}
}
